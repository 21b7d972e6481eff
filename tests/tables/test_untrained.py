"""Rows that no gradient has reached are marked, and left out of all that looks at rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from multifacet import contrastive, kge
from multifacet.contrastive.graph_facet import LightGcnConfig, train_lightgcn
from multifacet.graphdb import GraphSchema, GraphStore, NodeType, Relation
from multifacet.tables import ArtifactError, Lifecycle, Snapshot, SnapshotTable, WarmStart, compare_snapshots

pytestmark = [  # PyG's sparse matrices
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning"),
]


def write(path: Path, vectors: Any, trained: list[bool] | None = None, ids: list[int] | None = None) -> Snapshot:
    rows = torch.as_tensor(vectors).float()
    table = SnapshotTable(
        ids=pa.array(ids or list(range(len(rows)))), vectors=rows, trained=None if trained is None else torch.tensor(trained)
    )
    return Snapshot.write(path, facet="kge", tables={"pin": table})


def test_a_mark_is_written_only_where_a_row_needs_it(tmp_path: Path) -> None:
    plain, marked_all = write(tmp_path / "a", np.eye(3)), write(tmp_path / "b", np.eye(3), [True] * 3)
    assert plain.fingerprint == marked_all.fingerprint
    assert plain.trained("pin") is None
    some = write(tmp_path / "c", np.eye(3), [True, False, True])
    assert some.trained("pin").tolist() == [True, False, True]
    assert (some.num_untrained("pin"), plain.num_untrained("pin")) == (1, 0)
    assert Snapshot.load(tmp_path / "c").trained("pin").tolist() == [True, False, True]
    for wrong in (torch.ones(2, dtype=torch.bool), torch.ones(3)):
        with pytest.raises(ValueError, match=r"Table pin: trained is .*expected torch.bool \[3\]"):
            Snapshot.write(
                tmp_path / "d",
                facet="kge",
                tables={"pin": SnapshotTable(ids=pa.array([1, 2, 3]), vectors=torch.eye(3), trained=wrong)},
            )
    with pytest.raises(KeyError):
        some.trained("user")


def test_a_mark_that_is_not_what_the_manifest_says_is_damage(tmp_path: Path) -> None:
    snapshot = write(tmp_path / "a", np.eye(3), [True, False, True])
    entry = snapshot._tables["pin"].model_copy(update={"untrained": 2})
    snapshot._tables = {"pin": entry}
    with pytest.raises(ArtifactError, match="does not mark 2 of 3"):
        snapshot.trained("pin")


def test_drift_leaves_untrained_rows_out(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 4, generator=generator)
    noise = rows.clone()
    noise[20:] = torch.randn(20, 4, generator=generator)
    marks = [True] * 20 + [False] * 20
    old, new = write(tmp_path / "old", rows, marks), write(tmp_path / "new", noise)
    drift = compare_snapshots(old, new)["pin"]
    assert (drift.num_matched, drift.num_zero) == (40, 20)
    assert drift.cosine["p1"] == pytest.approx(1.0)
    assert drift.neighbor_overlap == 1.0


@pytest.fixture
def store(tmp_path: Path) -> Any:
    """Pins 8 and 9 and users 8 and 9 have no edge; no relation reaches a shop."""
    schema = GraphSchema(
        nodes=(NodeType(name="user"), NodeType(name="pin"), NodeType(name="shop")),
        relations=(
            Relation(src="user", name="buys", dst="pin", timed=False),
            Relation(src="pin", name="at", dst="shop", timed=False),
        ),
    )
    with GraphStore.create(tmp_path / "g.duckdb", schema) as graph:
        for name in ("user", "pin", "shop"):
            graph.load_nodes(name, pa.table({"id": np.arange(10)}))
        users, pins = np.nonzero(1 - np.eye(8))
        graph.load_edges("buys", pa.table({"src": users, "dst": pins}))
        yield graph


@pytest.mark.parametrize("full", [None, {"optimizer": "adagrad"}, {"optimizer": "adam"}])
def test_kge_marks_the_rows_that_it_has_not_reached(store: GraphStore, tmp_path: Path, full: Any) -> None:
    view = store.view()
    sampled = {"batch_size": 8, "chunk_size": 8, "num_uniform": 0, "num_degree": 0} if full is None else {}
    config = kge.KgeConfig(dim=4, epochs=1, full_softmax=full, validation={"num_edges": 0}, **sampled)
    snapshot = kge.train(view, config).write_snapshot(tmp_path / "kge", view)
    # Against all entities every row of a type is a negative.
    expected = [True] * 8 + [False] * 2 if full is None else [True] * 10
    trained = {name: snapshot.trained(name) for name in snapshot.node_types}
    assert trained["shop"].tolist() == [False] * 10
    for name in ("user", "pin"):
        assert (trained[name].tolist() if trained[name] is not None else [True] * 10) == expected


@pytest.mark.parametrize("keep_state", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["kge", "contrastive"])
def test_a_warm_start_takes_trained_rows_only_and_keeps_them_trained(
    store: GraphStore, tmp_path: Path, kind: str, keep_state: float
) -> None:
    view = store.view()
    room: Any = {"kge": kge, "contrastive": contrastive}[kind]
    if kind == "kge":
        small = {"batch_size": 8, "chunk_size": 8, "num_uniform": 0, "num_degree": 0}
        config: Any = kge.KgeConfig(dim=4, epochs=1, validation={"num_edges": 0}, **small)
    else:
        config = contrastive.ContrastiveConfig(
            dim=4, epochs=20, batch_size=4, num_uniform=0, num_degree=0, validation={"num_queries": 0}
        )
    old = room.train(view, config).write_snapshot(tmp_path / "old", view)
    known = old.trained("user")
    assert known is not None
    assert known.tolist() == [True] * 8 + [False] * 2
    # The new graph's purchases are of users 8 and 9 alone, so nothing reaches users 0 to 7.
    with GraphStore.create(tmp_path / "new.duckdb", store.schema) as graph:
        for name in ("user", "pin", "shop"):
            graph.load_nodes(name, pa.table({"id": np.arange(10)}))
        graph.load_edges("buys", pa.table({"src": np.repeat([8, 9], 4), "dst": np.arange(8)}))
        again = graph.view()
        life = Lifecycle(warm_start=WarmStart.load(old.path, keep_state=keep_state))
        result = room.train(again, config, lifecycle=life)
        new = result.write_snapshot(tmp_path / "new", again)
    assert new.trained("user") is None, "rows of the older snapshot are trained rows"
    if kind == "contrastive":
        assert bool(new.vectors("user").any(1).all())
    assert torch.allclose(new.vectors("user")[:8], old.vectors("user")[:8], atol=1e-6)


def test_lightgcn_gives_unreached_rows_as_zeros(store: GraphStore, tmp_path: Path) -> None:
    view = store.view()
    config = LightGcnConfig(dim=4, epochs=1, batch_size=8, num_uniform=0, positives_per_query=1, validation={"num_queries": 0})
    result = train_lightgcn(view, config)
    assert not result.vectors["user"][8:].any()
    snapshot = result.write_snapshot(tmp_path / "lightgcn", view)
    assert snapshot.trained("user").tolist() == [True] * 8 + [False] * 2
