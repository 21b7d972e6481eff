"""A CSV of impressions to a trained ranker, a release, and served scores that equal the offline ones.

    python examples/own_logs.py impressions.csv build/own_logs

The columns: user and item (strings), country, hour, shown_at (a time), price, clicked (0 or 1).
"""

import sys
from pathlib import Path

import numpy as np

from multifacet import ranking
from multifacet.serving import LocalDeployment, RankerClient, publish

log, folder = Path(sys.argv[1]), Path(sys.argv[2])
features = {"country": "country", "hour": "hour"}
columns = ranking.LabelledColumns(
    user="user", pin="item", click="clicked", time="shown_at", dense=("price",), features=features
)
rows = ranking.read_examples(log, columns)
is_late = ranking.read_times(log, columns) >= np.datetime64("2025-03-01")

names = ("user", "pin", *features)
config = ranking.RankingConfig(features=names, facets=("own",), pretrained_facets=(), dim=16, batch_size=128)
result = ranking.train(rows.take(~is_late), rows.take(is_late), config)
ranking.export_model(folder / "model", result)
publish(folder / "model", folder / "release", precision="fp32")

last = rows.take(np.arange(len(rows) - 8, len(rows)))
offline = ranking.load_model(folder / "model").score(last)
with LocalDeployment(folder / "release") as deployment, RankerClient(deployment.ranker_address) as client:
    for place in range(len(last)):
        one = last.take(np.array([place]))
        candidates = {name: list(one.ids(name).tolist()) for name in ("pin", *features)}
        answer = client.rank({"user": one.ids("user")[0].as_py()}, candidates, dense=one.dense)
        assert abs(answer.ctr[0] - offline[place, 0]) < 1e-5, (answer.ctr, offline[place])
print(f"validation AUC {result.metrics['valid_ctr_roc_auc']:.3f}; {len(last)} served scores equal the offline ones")
