"""A ranker's tables follow newer snapshots: row by row what numpy says, by id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from multifacet.ranking import LabelledColumns, arm_config, export_model, load_model, read_examples, renew_model, train
from multifacet.tables import Snapshot, SnapshotTable
from tests.ranking.conftest import DIM, Planted

NEW_PINS = (9001, 9002)


@pytest.fixture(scope="module")
def make(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def model(**settings: Any) -> Path:
        key = repr(sorted(settings.items()))
        if key not in made:
            config = arm_config("pretrained", dim=DIM, batch_size=256, max_epochs=1, hidden=(32, 16), **settings)
            made[key] = tmp_path_factory.mktemp("model") / "ranker"
            export_model(made[key], train(planted.train, planted.valid, config, snapshots=planted.snapshots))
        return made[key]

    return model


def moved_on(old: Snapshot, path: Path, *, parents: Sequence[str] | None = None, noise: float = 0.3) -> Snapshot:
    """A snapshot after the old one: pins in another order, one of them gone, one without a gradient, and two that are new."""
    generator = torch.Generator().manual_seed(3)
    tables = {}
    for name in old.node_types:
        ids, vectors = np.asarray(old.ids(name)), old.vectors(name).float()
        vectors = vectors + noise * torch.randn(vectors.shape, generator=generator)
        trained = None
        if name == "pin":
            order = np.random.default_rng(0).permutation(len(ids))[1:]
            new = [pin for pin in NEW_PINS if pin not in ids]
            ids = np.append(ids[order], new).astype(np.int64)
            vectors = torch.cat([vectors[order], torch.randn(len(new), DIM, generator=generator)])
            trained = torch.ones(len(ids), dtype=torch.bool)
            trained[0] = False
        tables[name] = SnapshotTable(ids=pa.array(ids), vectors=vectors, trained=trained)
    return Snapshot.write(path, facet=old.facet, tables=tables, parents=[old.fingerprint] if parents is None else parents)


def by_id(model: Path, table: str) -> dict[Any, np.ndarray]:
    loaded = load_model(model)
    id_map = loaded.id_maps[list(loaded.tables).index(table)]
    ids = np.asarray(id_map.known_ids(np.arange(id_map.num_rows - 1)))
    rows = loaded.tables[table].float().numpy()
    return dict(zip(ids.tolist(), rows[id_map.rows(pa.array(ids))], strict=True)) | {"unknown": rows[-1]}


def vectors_by_id(snapshot: Snapshot, name: str) -> dict[Any, np.ndarray]:
    trained = snapshot.trained(name)
    return {
        key: vector
        for place, (key, vector) in enumerate(zip(snapshot.ids(name).to_pylist(), snapshot.vectors(name).numpy(), strict=True))
        if trained is None or bool(trained[place])
    }


@pytest.mark.parametrize("settings", [{"freeze_tables": True}, {"pretrained_norm": 2.0}], ids=["frozen", "fine-tuned"])
def test_rows_follow_their_vectors(make: Callable[..., Path], planted: Planted, tmp_path: Path, settings: Any) -> None:
    model, old = make(**settings), planted.snapshots[1]
    new = moved_on(old, tmp_path / "new")
    _, renewals = renew_model(model, tmp_path / "renewed", [[old, new]])
    counts = {renewal.table: (renewal.num_moved, renewal.num_placed, renewal.num_kept) for renewal in renewals}
    # Of 600 pins one is gone and one has no gradient; the row of unknown ids stays.
    assert counts["pin_kge"] == (598, 2, 3)
    assert counts["user_kge"] == (400, 0, 1)
    assert counts["pin_contrastive"] == (0, 0, 603)
    for name in ("user", "pin"):
        rows, renewed = by_id(model, f"{name}_kge"), by_id(tmp_path / "renewed", f"{name}_kge")
        before, after = vectors_by_id(old, name), vectors_by_id(new, name)
        norm = settings.get("pretrained_norm", 1.0)
        scale = norm / np.sqrt(np.mean([np.square(vector.astype(np.float64)).sum() for vector in before.values()]))
        assert set(renewed) == set(rows) | set(after)
        for key, row in renewed.items():
            expected = rows.get(key, 0.0)
            if key in after:
                expected = expected + scale * (after[key] - before.get(key, 0.0))
            np.testing.assert_allclose(row, expected, atol=1e-4)
            if key in after and "freeze_tables" in settings:
                np.testing.assert_allclose(row, scale * after[key], atol=1e-4)
    contrastive = by_id(tmp_path / "renewed", "pin_contrastive")
    for pin in NEW_PINS:
        np.testing.assert_array_equal(contrastive[pin], contrastive["unknown"])
    # What is above the tables is the same program; examples of old ids score by the moved rows.
    loaded = load_model(tmp_path / "renewed")
    assert loaded.artifact.manifest["files"]["upper.pt2"] == load_model(model).artifact.manifest["files"]["upper.pt2"]
    assert np.abs(loaded.score(planted.test) - load_model(model).score(planted.test)).max() > 1e-3
    assert loaded.artifact.manifest["metrics"] == {}
    assert new.fingerprint in loaded.artifact.manifest["parents"]
    assert old.fingerprint not in loaded.artifact.manifest["parents"]


def test_nothing_new_changes_no_score(make: Callable[..., Path], planted: Planted, tmp_path: Path) -> None:
    old = planted.snapshots[1]
    tables = {name: SnapshotTable(ids=old.ids(name), vectors=old.vectors(name)) for name in old.node_types}
    same = Snapshot.write(tmp_path / "same", facet="kge", tables=tables, parents=[old.fingerprint])
    renew_model(make(), tmp_path / "renewed", [[old, same]])
    np.testing.assert_array_equal(load_model(tmp_path / "renewed").score(planted.test), load_model(make()).score(planted.test))


def test_a_chain_over_days_and_a_second_renewal(make: Callable[..., Path], planted: Planted, tmp_path: Path) -> None:
    old = planted.snapshots[1]
    second = moved_on(old, tmp_path / "second")
    third = moved_on(second, tmp_path / "third", noise=0.2)
    renew_model(make(freeze_tables=True), tmp_path / "at once", [[old, second, third]])
    renew_model(make(freeze_tables=True), tmp_path / "first", [[old, second]])
    renew_model(tmp_path / "first", tmp_path / "then", [[second, third]])
    # The scale of a table stays the one of its training.
    rows = by_id(tmp_path / "at once", "user_kge")
    before, after = vectors_by_id(old, "user"), vectors_by_id(third, "user")
    scale = 1.0 / np.sqrt(np.mean([np.square(vector.astype(np.float64)).sum() for vector in before.values()]))
    for key, vector in after.items():
        np.testing.assert_allclose(rows[key], scale * vector, atol=1e-4)
    later = by_id(tmp_path / "then", "user_kge")
    for key, row in rows.items():
        np.testing.assert_allclose(later[key], row, atol=1e-4)


def test_what_cannot_be_renewed_is_refused(make: Callable[..., Path], planted: Planted, tmp_path: Path) -> None:
    old, out = planted.snapshots[1], tmp_path / "out"
    anew = moved_on(old, tmp_path / "anew", parents=[])
    with pytest.raises(ValueError, match=r"neither aligned to .* nor trained on from it.*multifacet snapshot align"):
        renew_model(make(), out, [[old, anew]])
    new = moved_on(old, tmp_path / "new")
    with pytest.raises(ValueError, match="is not a snapshot that model pretrained was trained from"):
        renew_model(make(), out, [[new, moved_on(new, tmp_path / "newer")]])
    with pytest.raises(ValueError, match="at least one that is newer"):
        renew_model(make(), out, [[old]])
    with pytest.raises(ValueError, match="two chains of the facet 'kge'"):
        renew_model(make(), out, [[old, new], [old, new]])
    with pytest.raises(ValueError, match="no chain of snapshots"):
        renew_model(make(), out, [])
    with pytest.raises(ValueError, match=r"hashes the ids of \['pin'\]"):
        renew_model(make(hash_rows={"pin": {"rows": 300}}), out, [[old, new]])
    huge = Snapshot.write(
        tmp_path / "huge",
        facet="kge",
        tables={"pin": SnapshotTable(ids=old.ids("pin"), vectors=torch.full((600, DIM), float(2**100)))},
        parents=[old.fingerprint],
    )
    with pytest.raises(ValueError, match=r"table pin_kge gets values that torch\.float16 cannot hold"):
        renew_model(make(table_dtype="fp16"), out, [[old, huge]])
    assert not out.exists()


def test_ids_that_are_strings_get_rows_too(tmp_path: Path) -> None:
    def snapshot(name: str, ids: list[str], value: float, parents: Sequence[str] = ()) -> Snapshot:
        table = SnapshotTable(ids=pa.array(ids), vectors=torch.full((len(ids), 2), value))
        return Snapshot.write(tmp_path / name, facet="kge", tables={"user": table, "pin": table}, parents=parents)

    old = snapshot("old", ["a", "b"], 1.0)
    new = snapshot("new", ["b", "c", "ünder"], 2.0, [old.fingerprint])
    rows = pa.table(
        {
            "user": ["a", "b"] * 20,
            "pin": ["b", "a"] * 20,
            "click": [0, 1] * 20,
            "buy": [None, 1] * 10 + [None, 0] * 10,
            "x": [0.5] * 40,
        }
    )
    columns = LabelledColumns(user="user", pin="pin", click="click", conversion="buy", dense=("x",))
    examples = read_examples(rows, columns)
    config = arm_config(
        "pretrained",
        dim=2,
        facets=("kge",),
        pretrained_facets=("kge",),
        features=("user", "pin"),
        freeze_tables=True,
        max_epochs=1,
        hidden=(4,),
    )
    export_model(tmp_path / "model", train(examples, examples, config, snapshots=[old]))
    renew_model(tmp_path / "model", tmp_path / "renewed", [[old, new]])
    found = by_id(tmp_path / "renewed", "pin_kge")
    assert set(found) == {"a", "b", "c", "ünder", "unknown"}
    scale = 1 / np.sqrt(2)
    for name, value in (("a", 1.0), ("b", 2.0), ("c", 2.0), ("ünder", 2.0)):
        np.testing.assert_allclose(found[name], scale * value, rtol=1e-5)
