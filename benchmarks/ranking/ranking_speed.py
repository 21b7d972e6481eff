"""Examples a second of training a ranker from the store's labelled rows to updated weights, beside other scripts.

The Complete Journey (a sample of it when quick): labelled exposures of weeks 37 to 41 lie in the store as one table of external
ids, dense features and labels. A run reads them, gives ids rows, and trains the default ranker (DCN-V2 over user, pin and
advertiser ids in two facets of 64 values, from scratch) for one epoch. Everything between the query and the last step counts.

Peers: `torchrec_dataloader` does the same as one would write it down: numpy.unique for the ids, a TensorDataset and a shuffling
DataLoader (with no worker and with one, the faster counts), KeyedJaggedTensors, TorchRec's FusedEmbeddingBagCollection with
row-wise Adagrad, and this project's very upper model and loss with AdamW. `deepctr_torch` is that package's DCN with matrix
crosses and as many embeddings, by its own `fit`; it is measured where it can be imported, and not a dependency (`pip install
--no-deps --target=FOLDER deepctr-torch`, then PYTHONPATH=FOLDER).
`input_share` is the share of our run that is not spent in training steps: reading, id maps, starting tables, waiting for
batches, and one small validation.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad

from benchmarks.harness import HIGHER, LOWER, Metric, Peer, Row
from multifacet.graphdb import GraphStore, Recipe
from multifacet.ranking import LabelledColumns, RankingConfig, UpperModel, arm_config, build_examples, read_examples, train
from multifacet.ranking.training.objective import training_loss

EXAMPLES_PER_S = Metric(name="examples_per_s", unit="1/s", better=HIGHER)
INPUT_SHARE = Metric(name="input_share", unit="", better=LOWER)
BUILD_PER_S = Metric(name="build_examples_per_s", unit="1/s", better=HIGHER)
SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample"
FEATURES = ("user", "pin", "advertiser")
_NUM_VALIDATED = 2048


@dataclass(frozen=True)
class _Task:
    """What every script gets."""

    store: GraphStore
    columns: LabelledColumns
    config: RankingConfig

    def rows(self) -> pa.Table:
        return self.store.sql("SELECT * FROM labelled")


def run(quick: bool) -> Iterator[Row]:
    """Three weeks of the sample when quick, else five of all households."""
    with tempfile.TemporaryDirectory() as name:
        recipe = Recipe.load("completejourney")
        recipe.build(Path(name) / "graph.duckdb", SAMPLE if quick else None)
        with GraphStore.open(Path(name) / "graph.duckdb") as store:
            row, dense = _draw(store, range(37, 40 if quick else 42))
            yield row
            task = _Task(
                store=store,
                columns=LabelledColumns(
                    advertiser="advertiser",
                    click="clicked",
                    conversion="bought_again",
                    dense=dense,
                ),
                config=arm_config("scratch", max_epochs=1, validations_per_epoch=1),
            )
            yield from _measure(task, quick=quick)


def _draw(store: GraphStore, weeks: range) -> tuple[Row, tuple[str, ...]]:
    """Write the labelled rows; give their dense features too."""
    started = time.perf_counter()
    examples = build_examples(store, weeks)
    seconds = time.perf_counter() - started
    advertiser = pa.array(examples.advertiser_id, mask=examples.advertiser_id < 0)
    bought_again = pa.array(examples.cvr_label, mask=np.isnan(examples.cvr_label))
    labels = {"clicked": examples.ctr_label, "bought_again": bought_again}
    dense = {name: np.ascontiguousarray(examples.dense[:, number]) for number, name in enumerate(examples.dense_names)}
    ids = {"user_id": examples.user_id, "pin_id": examples.pin_id, "advertiser": advertiser}
    store.load_table("labelled", pa.table({**ids, **labels, **dense}))
    row = Row(case="drawing", metric=BUILD_PER_S, value=len(examples) / seconds, config={"examples": len(examples)})
    return row, examples.dense_names


def _measure(task: _Task, *, quick: bool) -> Iterator[Row]:
    num_examples = task.rows().num_rows
    _ours(task)  # compiles kernels
    seconds, step_seconds = _ours(task)
    config = {
        "examples": num_examples,
        "batch_size": task.config.batch_size,
        "dim": task.config.dim,
        "threads": torch.get_num_threads(),
        "source": "sample" if quick else "all households",
    }
    peers: dict[str, Callable[[], float]] = {
        "torchrec_dataloader": lambda: min(_torchrec_dataloader(task, num_workers) for num_workers in (0, 1))
    }
    if importlib.util.find_spec("deepctr_torch") is not None:
        peers["deepctr_torch"] = lambda: _deepctr(task)
    for name, peer in peers.items():
        taken = peer()
        yield Row(
            case="dcn_v2",
            metric=EXAMPLES_PER_S,
            value=num_examples / seconds,
            peer=Peer(name=name, value=num_examples / taken),
            config=config,
        )
    yield Row(case="dcn_v2", metric=INPUT_SHARE, value=1 - step_seconds / seconds, config=config)


def _ours(task: _Task) -> tuple[float, float]:
    """Seconds in all, and those in training steps."""
    started = time.perf_counter()
    examples = read_examples(task.rows(), task.columns)
    validated = examples.take(np.linspace(0, len(examples) - 1, _NUM_VALIDATED, dtype=np.int64))
    result = train(examples, validated, task.config)
    return time.perf_counter() - started, sum(row["seconds"] for row in result.history)


def _torchrec_dataloader(task: _Task, num_workers: int) -> float:
    started = time.perf_counter()
    torch.manual_seed(0)
    config, table = task.config, task.rows()
    ids = [table[name].fill_null(-1).to_numpy() for name in ("user_id", "pin_id", "advertiser")]
    encoded = [np.unique(column, return_inverse=True) for column in ids]
    dense = torch.from_numpy(np.stack([table[name].to_numpy() for name in task.columns.dense], axis=1))
    again = np.array(table["bought_again"].to_numpy())
    tensors = [
        dense,
        *(torch.from_numpy(inverse.astype(np.int32)) for _, inverse in encoded),
        torch.from_numpy(np.array(table["clicked"].to_numpy())),
        torch.from_numpy(np.nan_to_num(again)),
        torch.from_numpy(np.isfinite(again).astype(np.float32)),
    ]
    loader = DataLoader(TensorDataset(*tensors), batch_size=config.batch_size, shuffle=True, num_workers=num_workers)
    tables = FusedEmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=f"{feature}_{facet}", embedding_dim=config.dim, num_embeddings=len(unique), feature_names=[feature]
            )
            for facet in config.facets
            for feature, (unique, _) in zip(FEATURES, encoded, strict=True)
        ],
        optimizer_type=RowWiseAdagrad,
        optimizer_kwargs={"lr": config.table_lr},
        device=torch.device("cpu"),
    )
    slots = [(feature, facet) for facet in config.facets for feature in FEATURES]
    upper = UpperModel(num_dense=dense.shape[1], slots=slots, dim=config.dim, hidden=config.hidden, dropout=config.dropout)
    upper.fit_normalisation(dense)
    optimizer = torch.optim.AdamW(upper.parameters(), lr=config.upper_lr, weight_decay=config.weight_decay)
    for batch_dense, *rows, ctr, cvr, known in loader:
        lengths = torch.ones(len(FEATURES) * len(ctr), dtype=torch.int32)
        pooled = tables(KeyedJaggedTensor(keys=list(FEATURES), values=torch.cat(rows), lengths=lengths)).values()
        logits = upper(batch_dense, pooled.view(len(ctr), len(slots), -1))
        loss = training_loss(logits, ctr, cvr, known, heads=config.heads, cvr_weight=config.cvr_weight)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if not np.isfinite(loss.item()):
            raise RuntimeError(f"torchrec_dataloader: the loss is {loss.item()}")
    return time.perf_counter() - started


def _deepctr(task: _Task) -> float:
    inputs, models = (importlib.import_module(f"deepctr_torch.{name}") for name in ("inputs", "models"))
    started = time.perf_counter()
    config, table = task.config, task.rows()
    given: dict[str, Any] = {name: table[name].to_numpy() for name in task.columns.dense}
    columns: list[Any] = [inputs.DenseFeat(name, 1) for name in task.columns.dense]
    for feature, name in zip(FEATURES, ("user_id", "pin_id", "advertiser"), strict=True):
        unique, inverse = np.unique(table[name].fill_null(-1).to_numpy(), return_inverse=True)
        for facet in config.facets:
            given[f"{feature}_{facet}"] = inverse
            columns.append(inputs.SparseFeat(f"{feature}_{facet}", len(unique), embedding_dim=config.dim))
    model = models.DCN(
        [],
        columns,
        cross_num=config.num_cross_layers,
        cross_parameterization="matrix",
        dnn_hidden_units=config.hidden,
        dnn_dropout=config.dropout,
    )
    model.compile("adagrad", "binary_crossentropy")
    model.fit(given, table["clicked"].to_numpy(), batch_size=config.batch_size, epochs=1, verbose=0, shuffle=True)
    return time.perf_counter() - started
