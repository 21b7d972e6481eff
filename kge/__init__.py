"""Knowledge graph embedding: the pretrainer on the heterogeneous graph."""
