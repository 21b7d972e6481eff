"""A release served by two processes: scores of a user's candidates, and the quantized rows behind them.

    python examples/serve_and_rank.py build/serve_and_rank

The tables and the upper model are those of a small ranker that is trained here first.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from multifacet import ranking
from multifacet.serving import LocalDeployment, LookupClient, RankerClient, publish

folder = Path(sys.argv[1])
generator = np.random.default_rng(0)
users, pins = generator.integers(0, 60, 6000), generator.integers(0, 90, 6000)
clicked = (generator.random(6000) < np.where(users % 3 == pins % 3, 0.7, 0.1)).astype(int)
log = pa.table({"user_id": users, "pin_id": pins, "clicked": clicked, "price": generator.random(6000)})
examples = ranking.read_examples(log, ranking.LabelledColumns(dense=("price",)))
early, late = examples.take(np.arange(5000)), examples.take(np.arange(5000, 6000))
config = ranking.RankingConfig(features=("user", "pin"), facets=("own",), pretrained_facets=(), dim=16, batch_size=100)
result = ranking.train(early, late, config)
ranking.export_model(folder / "model", result)
release = publish(folder / "model", folder / "release", precision="int4")
print(release)

# The offline scores of the same INT4 rows, to hold the served ones to.
offline, table_bytes = ranking.quantized_scores(folder / "model", "int4", late)

with LocalDeployment(folder / "release") as deployment:
    with RankerClient(deployment.ranker_address, timeout_s=5.0) as ranker:
        # What an ads server does: one user, some candidates, their dense features.
        candidates = list(range(12))
        answer = ranker.rank({"user": 7}, {"pin": candidates}, dense=np.full((12, 1), 0.5, dtype=np.float32))
        best = sorted(candidates, key=lambda pin: -answer.ctr[pin])
        print(f"version {answer.version[:12]}: pins {best[:4]} come first for user 7")
        assert answer.version == release.version

        for row in range(50):
            one = late.take(np.array([row]))
            request = {"user": one.ids("user").tolist()[0]}, {"pin": one.ids("pin").tolist()}
            assert abs(ranker.rank(*request, dense=one.dense).ctr[0] - offline[row, 0]) < 1e-5

    # What the ranker asks the lookup server for: quantized rows of a version, by id.
    with LookupClient(deployment.lookup_address, timeout_s=5.0) as lookup:
        rows = lookup.lookup(release.version, {"pin": [3, 4]})
        print(rows)
print(f"50 served scores equal the offline ones; all tables' rows take {table_bytes:,} bytes in INT4")
