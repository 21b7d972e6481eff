"""One file that runs every day: load, pretrain, train, evaluate, judge, publish, roll out."""
