"""Aligned snapshots: every score as it was, and a planted change of basis found."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from multifacet import kge
from multifacet.kge.alignment import _changed
from multifacet.kge.models.relations import RelationParameters
from multifacet.tables import Alignment, OptimizerRows, Snapshot, SnapshotTable

DIM = 8
SIDES: tuple[Literal["tail", "head"], ...] = ("tail", "head")
ENDS = {"buys": ["user", "pin"], "likes": ["user", "user"], "made_by": ["pin", "brand"]}
SIZES = {"user": 60, "pin": 50, "brand": 30}
MODELS = [
    ("transe", "squared"),
    ("transe", "l2"),
    ("transe", "l1"),
    ("transr", "squared"),
    ("transr", "l1"),
    ("transra", "squared"),
    ("transra", "l1"),
    ("distmult", "squared"),
    ("complex", "squared"),
    ("rotate", "squared"),
    ("rotate", "l1"),
]


def make_snapshot(path: Path, model: str, distance: str, seed: int, *, reciprocal: bool = False, start: int = 0) -> Snapshot:
    """Tables and relations of no training: what a score is does not depend on how its numbers came about."""
    fields: dict[str, Any] = {} if model in {"distmult", "complex"} else {"distance": distance}
    config = kge.KgeConfig(model=model, dim=DIM, reciprocal=reciprocal, **fields, **({"rank": 3} if model == "transra" else {}))
    generator = torch.Generator().manual_seed(seed)
    relations = RelationParameters(kge.build_model(config), tuple(ENDS), reciprocal=reciprocal, generator=generator)
    relations.table.add_(torch.randn(relations.table.shape, generator=generator), alpha=0.3)
    relations.state.copy_(torch.rand(relations.state.shape, generator=generator))
    tables = {
        name: SnapshotTable(
            ids=pa.array(range(start, start + size)),
            # Of unequal spread and off the origin, as trained tables are: otherwise coordinates cannot be told apart.
            vectors=torch.randn(size, DIM, generator=generator) * torch.linspace(0.5, 2.0, DIM) + 0.4,
            optimizer=OptimizerRows(adagrad=torch.rand(size, generator=generator), lengths=torch.ones(size)),
        )
        for name, size in SIZES.items()
    }
    return Snapshot.write(
        path,
        facet="kge",
        tables=tables,
        window={"ends": ENDS},
        config=config.model_dump(mode="json"),
        parameters=relations.to_tensors(),
    )


def scores(snapshot: Snapshot) -> Tensor:
    """Scores of triples of every relation, and of reciprocal relations' head queries."""
    predictor = kge.LinkPredictor.from_snapshot(snapshot)
    found = []
    for relation in ENDS:
        rows = torch.arange(20)
        found.append(predictor.score(relation, rows, rows))
        candidates = {side: predictor.candidates(relation, side) for side in SIDES}
        found += [predictor.score_candidates(relation, rows, candidates[side], side).flatten() for side in SIDES]
    return torch.cat(found)


def plant(model: str, distance: str, generator: np.random.Generator) -> Alignment:
    """A change of basis that the model allows, drawn by hand and not by what is tested."""
    names = list(SIZES)
    symmetry = kge.symmetry_of(model, distance)
    shifts = {name: torch.from_numpy(generator.normal(size=DIM)) for name in names} if symmetry.startswith("shifted") else {}
    if symmetry == "shifted_rotation":
        rotation = torch.from_numpy(np.linalg.qr(generator.normal(size=(DIM, DIM)))[0])
        return Alignment(symmetry=symmetry, matrices=dict.fromkeys(names, rotation), shifts=shifts)
    if symmetry in {"signs", "shifted_signs"}:
        order = torch.eye(DIM).double()[torch.from_numpy(generator.permutation(DIM))]
        common = torch.from_numpy(generator.choice([-1.0, 1.0], DIM))
        signs = {
            name: torch.from_numpy(generator.choice([-1.0, 1.0], DIM)) if symmetry == "signs" else common for name in names
        }
        return Alignment(symmetry=symmetry, matrices={name: order * signs[name] for name in names}, shifts=shifts)
    half = DIM // 2
    order, conjugated = generator.permutation(half), generator.random(half) < 0.5
    matrices = {}
    for name in names:
        phases = np.exp(2j * np.pi * generator.random(half))
        basis = np.concatenate([np.eye(half), 1j * np.eye(half)])[:, order]
        turned = np.where(conjugated, basis.conj(), basis) * phases
        matrices[name] = torch.from_numpy(np.concatenate([turned.real, turned.imag], axis=1))
    return Alignment(symmetry=symmetry, matrices=matrices)


def changed(snapshot: Snapshot, path: Path, alignment: Alignment) -> Snapshot:
    tensors = _changed(snapshot.parameters(), snapshot.config["model"], ENDS, alignment)
    tables = {
        name: SnapshotTable(
            ids=snapshot.ids(name), vectors=alignment.apply(name, snapshot.vectors(name)), optimizer=snapshot.optimizer(name)
        )
        for name in snapshot.node_types
    }
    return Snapshot.write(path, facet="kge", tables=tables, window=snapshot.window, config=snapshot.config, parameters=tensors)


@pytest.mark.parametrize(("model", "distance"), MODELS)
@pytest.mark.parametrize("reciprocal", [False, True])
def test_a_planted_change_keeps_the_scores_and_is_undone(
    tmp_path: Path, model: str, distance: str, *, reciprocal: bool
) -> None:
    old = make_snapshot(tmp_path / "old", model, distance, 0, reciprocal=reciprocal)
    planted = plant(model, distance, np.random.default_rng(1))
    new = changed(old, tmp_path / "new", planted)
    torch.testing.assert_close(scores(new), scores(old), rtol=1e-5, atol=1e-4)
    assert not torch.allclose(new.vectors("pin"), old.vectors("pin"), atol=0.1)
    back = kge.align(tmp_path / "back", new, old)
    torch.testing.assert_close(scores(back), scores(old), rtol=1e-5, atol=1e-4)
    for name in SIZES:
        torch.testing.assert_close(back.vectors(name), old.vectors(name), rtol=1e-4, atol=1e-4)
    assert max(table["residual_after"] for table in back.metrics["alignment"]["tables"].values()) < 1e-9


@pytest.mark.parametrize(("model", "distance"), MODELS)
def test_aligning_another_training_keeps_its_scores(tmp_path: Path, model: str, distance: str) -> None:
    old = make_snapshot(tmp_path / "old", model, distance, 0)
    new = make_snapshot(tmp_path / "new", model, distance, 1, reciprocal=True, start=7)  # other ids, another training
    before = scores(new)
    aligned = kge.align(tmp_path / "aligned", new, old)
    error = (scores(aligned) - before).abs() / before.abs().mean()
    assert float(error.max()) < 1e-5
    told = aligned.metrics["alignment"]["tables"]
    assert all(table["residual_after"] <= table["residual_before"] + 1e-12 for table in told.values())
    assert aligned.parents[-1] == old.fingerprint
    assert aligned.metrics["alignment"]["to"] == old.fingerprint
    assert aligned.parameters()["alignment/pin"].shape == (DIM, DIM)
    for name in SIZES:
        before_rows, after_rows = new.optimizer(name), aligned.optimizer(name)
        assert before_rows is not None
        assert after_rows is not None
        torch.testing.assert_close(after_rows.adagrad, before_rows.adagrad)


@settings(max_examples=15, deadline=None)
@given(number=st.integers(0, len(MODELS) - 1), seed=st.integers(0, 2**16))
def test_scores_survive_any_allowed_change(tmp_path_factory: pytest.TempPathFactory, number: int, seed: int) -> None:
    model, distance = MODELS[number]
    folder = tmp_path_factory.mktemp("change")
    old = make_snapshot(folder / "old", model, distance, seed, reciprocal=bool(seed % 2))
    new = changed(old, folder / "new", plant(model, distance, np.random.default_rng(seed)))
    torch.testing.assert_close(scores(new), scores(old), rtol=1e-5, atol=1e-4)


def test_other_models_are_refused(tmp_path: Path) -> None:
    old = make_snapshot(tmp_path / "old", "distmult", "squared", 0)
    new = make_snapshot(tmp_path / "new", "complex", "squared", 0)
    with pytest.raises(ValueError, match="vectors of one mean nothing in the other's basis"):
        kge.align(tmp_path / "aligned", new, old)
    assert not (tmp_path / "aligned").exists()


def test_snapshots_without_a_common_row_are_refused(tmp_path: Path) -> None:
    old = make_snapshot(tmp_path / "old", "transe", "l2", 0)
    new = make_snapshot(tmp_path / "new", "transe", "l2", 0, start=1000)
    with pytest.raises(ValueError, match="no row is in both"):
        kge.align(tmp_path / "aligned", new, old)
