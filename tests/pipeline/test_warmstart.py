"""Warm starts of both pretrainers: what old rows keep, where new rows begin, and what the new snapshot says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from multifacet import contrastive, kge
from multifacet.graphdb import GraphSchema, GraphStore, GraphView, NodeType, Relation
from multifacet.tables import Lifecycle, RowwiseAdagrad, Snapshot, WarmStart
from multifacet.tables.warmstart import PulledAdagrad

SCHEMA = GraphSchema(
    nodes=(NodeType(name="user"), NodeType(name="pin")),
    relations=(Relation(src="user", name="clicks", dst="pin", timed=False),),
)
NUM_OLD, NUM_NEW = 60, 80


def build(path: Path, num_pins: int, *, shift: int) -> GraphStore:
    """Users click the pins of their half; ids come in another order in the second store, so that an idx means another id."""
    store = GraphStore.create(path, SCHEMA)
    users, pins = np.divmod(np.arange(40 * num_pins), num_pins)
    kept = (users % 2 == pins % 2) & ((users + pins) % 3 > 0)
    edges = pa.table({"src": users[kept] + 100, "dst": pins[kept] + 1000})
    for part in (np.arange(shift, num_pins), np.arange(shift)):
        store.load_nodes("pin", pa.table({"id": part + 1000}))
    store.load_edges("clicks", edges)
    return store


def train(kind: str, view: GraphView, **settings: Any) -> Any:
    life = settings.pop("lifecycle", None)
    if kind == "kge":
        fields = {"dim": 8, "epochs": 3, "batch_size": 64, "validation": {"num_edges": 0}, **settings}
        return kge.train(view, kge.KgeConfig.model_validate(fields), lifecycle=life)
    fields = {"dim": 8, "epochs": 3, "batch_size": 64, "lr": 0.3, "validation": {"num_queries": 0}, **settings}
    return contrastive.train(view, contrastive.ContrastiveConfig.model_validate(fields), lifecycle=life)


@pytest.fixture(scope="module", params=["kge", "contrastive"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The kind of pretrainer, an old snapshot, and the view of a later store with twenty more pins."""
    folder = tmp_path_factory.mktemp(request.param)
    with build(folder / "old.duckdb", NUM_OLD, shift=0) as old:
        snapshot = train(request.param, old.view()).write_snapshot(folder / "old", old.view())
    with build(folder / "new.duckdb", NUM_NEW, shift=7) as new:
        yield request.param, snapshot, new.view()


def drift_of(snapshot: Snapshot, table: str) -> dict[str, Any]:
    found: dict[str, Any] = snapshot.metrics["drift"][table]
    return found


def test_old_rows_start_where_they_were_and_new_ones_begin(world: Any, tmp_path: Path) -> None:
    kind, old, view = world
    # So small a rate moves nothing: what is seen is the start.
    life = Lifecycle(warm_start=WarmStart.load(old.path))
    fields = {"lr": 1e-12, "epochs": 1} | ({"relation_lr": 1e-12} if kind == "kge" else {})
    result = train(kind, view, lifecycle=life, **fields)
    snapshot = result.write_snapshot(tmp_path / "new", view)

    assert snapshot.parents == (view.fingerprint, old.fingerprint)
    drift = drift_of(snapshot, "pin")
    assert (drift["num_matched"], drift["num_new"], drift["num_gone"]) == (NUM_OLD, NUM_NEW - NUM_OLD, 0)
    assert drift["cosine"]["p1"] == pytest.approx(1.0, abs=1e-5)
    ids = view.node_ids("pin").to_pylist()
    assert ids != sorted(ids)
    for row, pin in enumerate(ids):
        if pin < 1000 + NUM_OLD:
            old_row = old.ids("pin").to_pylist().index(pin)
            torch.testing.assert_close(result.vectors["pin"][row], old.vectors("pin")[old_row], atol=1e-5, rtol=0)
    if kind == "kge":
        for name, value in old.parameters().items():
            if name.startswith("relation/"):
                torch.testing.assert_close(snapshot.parameters()[name], value)


def test_the_optimisers_state_keeps_old_rows_in_their_place(world: Any, tmp_path: Path) -> None:
    kind, old, view = world
    moved = {}
    for name, settings in (("kept", {}), ("forgotten", {"keep_state": 0.0}), ("pulled", {"pull": 100.0, "keep_state": 0.0})):
        life = Lifecycle(warm_start=WarmStart.load(old.path, **settings))
        snapshot = train(kind, view, lifecycle=life, epochs=2).write_snapshot(tmp_path / name, view)
        moved[name] = 1.0 - drift_of(snapshot, "user")["cosine"]["mean"]
    assert moved["kept"] < 0.5 * moved["forgotten"]
    assert moved["pulled"] < 0.5 * moved["forgotten"]


def test_new_rows_can_begin_around_the_mean(world: Any) -> None:
    kind, old, view = world
    life = Lifecycle(warm_start=WarmStart.load(old.path, new_rows="mean"))
    fields = {"lr": 1e-12, "epochs": 1, "init_scale": 1e-4} | ({"relation_lr": 1e-12} if kind == "kge" else {})
    result = train(kind, view, lifecycle=life, **fields)
    rows = [row for row, pin in enumerate(view.node_ids("pin").to_pylist()) if pin >= 1000 + NUM_OLD]
    kept = old.optimizer("pin")
    assert kept is not None
    mean = (old.vectors("pin") * kept.lengths[:, None]).mean(0)
    cosine = torch.nn.functional.cosine_similarity(result.vectors["pin"][rows], mean[None])
    assert cosine.min() > 0.99


def test_what_cannot_be_gone_on_with_is_refused(world: Any, tmp_path: Path) -> None:
    kind, old, view = world
    life = Lifecycle(warm_start=WarmStart.load(old.path))
    with pytest.raises(ValueError, match="has dimension 8, this training has 16; set dim=8"):
        train(kind, view, lifecycle=life, dim=16)
    with pytest.raises(ValueError, match="cannot go on with"):
        train({"kge": "contrastive", "contrastive": "kge"}[kind], view, lifecycle=life)
    if kind == "kge":
        with pytest.raises(ValueError, match="was trained with model='complex'"):
            train(kind, view, lifecycle=life, model="transe")


def test_a_pull_is_the_gradient_of_the_mean_squared_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    table, anchors, gradients = (torch.randn(6, 4, generator=generator) for _ in range(3))
    rows = torch.tensor([1, 2, 5], dtype=torch.int32)
    is_anchored = torch.tensor([True, True, False, True, True, True])
    leaf = table.clone().requires_grad_()
    away = ((leaf - anchors) * is_anchored[:, None])[rows.long()].square().sum(1).mean()
    (pull,) = torch.autograd.grad(0.7 * away, leaf)
    expected, plain = table.clone(), RowwiseAdagrad(6, 0.1)
    plain.step(expected, rows, gradients[:3] + pull[rows.long()])
    pulled = PulledAdagrad(RowwiseAdagrad(6, 0.1), anchors=anchors, is_anchored=is_anchored, weight=0.7)
    pulled.step(table, rows, gradients[:3].contiguous())
    torch.testing.assert_close(table, expected)
