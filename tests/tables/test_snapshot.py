"""Snapshots: what was trained, with its ids and its origin, mapped and not copied."""

import datetime as dt
import json
import re

import numpy as np
import pyarrow as pa
import pytest
import torch

from multifacet.artifacts import Artifact, ArtifactError, ArtifactWriter
from multifacet.artifacts.manifest import canonical_bytes
from multifacet.tables import Snapshot, SnapshotTable


def table(ids: object = (7, 9, 8), dim: int = 4, **changes: object) -> SnapshotTable:
    ids = ids if isinstance(ids, pa.Array) else pa.array(ids)
    vectors = torch.randn(len(ids), dim, generator=torch.Generator().manual_seed(0))
    return SnapshotTable(**{"ids": ids, "vectors": vectors, **changes})


def anonymous_bytes() -> int:
    """Memory of this process that is not backed by a file."""
    with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def test_what_is_written_is_read(tmp_path):
    tables = {"user": table(), "category": table(["soup", "", "fish é"], dim=2)}
    written = Snapshot.write(
        tmp_path / "kge",
        facet="kge",
        tables=tables,
        parents=["ab" * 32],
        window={"since": None, "as_of": dt.datetime(2017, 10, 1, 12)},
        metrics={"mrr": 0.25, "epochs": 3},
        config={"dim": 4, "relations": ["buys"]},
    )
    snapshot = Snapshot.load(tmp_path / "kge")
    assert snapshot.fingerprint == written.fingerprint
    assert (snapshot.facet, snapshot.node_types) == ("kge", ("category", "user"))
    assert snapshot.parents == ("ab" * 32,)
    assert snapshot.window == {"since": None, "as_of": "2017-10-01T12:00:00"}
    assert snapshot.metrics == {"mrr": 0.25, "epochs": 3}
    assert snapshot.config == {"dim": 4, "relations": ["buys"]}
    assert repr(snapshot) == "Snapshot(facet=kge, category=[3, 2], user=[3, 4], precision=fp32)"
    for name, expected in tables.items():
        assert snapshot.ids(name).equals(expected.ids)
        assert torch.equal(snapshot.vectors(name), expected.vectors)
        assert (snapshot.num_rows(name), snapshot.dim(name)) == tuple(expected.vectors.shape)
    entry = snapshot.manifest["tables"]["user"]
    assert entry == {
        "rows": 3, "dim": 4, "precision": "fp32", "id_type": "int64",
        "vectors": "vectors/user.safetensors", "ids": "ids/user.parquet",
    }  # fmt: skip
    assert set(snapshot.manifest["files"]) == {
        f"{d}" for t in snapshot.manifest["tables"].values() for d in (t["vectors"], t["ids"])
    }


def test_equal_content_has_an_equal_fingerprint(tmp_path):
    def write(name: str, **changes: object) -> str:
        arguments = {"facet": "kge", "tables": {"user": table(), "pin": table(["a", "b"])}, "config": {"b": 1, "a": 2}}
        return Snapshot.write(tmp_path / name, **{**arguments, **changes}).fingerprint

    first = write("one")
    assert write("two", tables={"pin": table(["a", "b"]), "user": table()}, config={"a": 2, "b": 1}) == first
    assert write("three", facet="contrastive") != first
    assert write("four", config={"a": 2, "b": 2}) != first
    assert write("five", tables={"user": table(), "pin": table(["b", "a"])}) != first


def test_fp16_halves_the_file_and_rounds(tmp_path):
    tables = {"user": table(range(1000), dim=32)}
    full = Snapshot.write(tmp_path / "fp32", facet="kge", tables=tables)
    half = Snapshot.write(tmp_path / "fp16", facet="kge", tables=tables, precision="fp16")
    assert half.vectors("user").dtype == torch.float16
    assert torch.equal(half.vectors("user"), tables["user"].vectors.half())
    sizes = [s.manifest["files"]["vectors/user.safetensors"]["bytes"] for s in (full, half)]
    assert sizes[0] - sizes[1] == 64_000
    assert "precision=fp16" in repr(half)


def test_vectors_are_mapped_and_not_copied(tmp_path):
    vectors = torch.ones(400_000, 16)  # 25.6 million bytes
    ids = pa.array(np.arange(400_000))
    snapshot = Snapshot.write(tmp_path / "kge", facet="kge", tables={"user": SnapshotTable(ids=ids, vectors=vectors)})
    before = anonymous_bytes()
    mapped = snapshot.vectors("user")
    assert float(mapped[::1000].sum()) == 400 * 16
    assert float(mapped.sum()) == 6_400_000  # exact in float32, and without a copy in float64
    assert anonymous_bytes() - before < 5_000_000


def test_writing_to_mapped_vectors_leaves_the_snapshot_as_it_was(tmp_path):
    snapshot = Snapshot.write(tmp_path / "kge", facet="kge", tables={"user": table()})
    snapshot.vectors("user").zero_()
    assert torch.equal(Snapshot.load(tmp_path / "kge").vectors("user"), table().vectors)


def test_mapped_vectors_outlive_a_replacement(tmp_path):
    old = Snapshot.write(tmp_path / "kge", facet="kge", tables={"user": table()})
    mapped = old.vectors("user")
    new_table = SnapshotTable(ids=pa.array([1]), vectors=torch.zeros(1, 4))
    Snapshot.write(tmp_path / "kge", facet="kge", tables={"user": new_table}, replace=True)
    assert torch.equal(mapped, table().vectors)
    with pytest.raises(ArtifactError, match="was replaced"):
        old.vectors("user")
    with pytest.raises(ArtifactError, match="was replaced"):
        old.ids("user")
    with pytest.raises(ArtifactError, match="already exists"):
        Snapshot.write(tmp_path / "kge", facet="kge", tables={"user": new_table})


def test_strided_trainable_and_chunked_input_and_an_empty_table_are_taken(tmp_path):
    tables = {
        "strided": SnapshotTable(ids=pa.array([1, 2]), vectors=torch.arange(16.0).view(4, 4)[::2, ::2]),
        "parameter": SnapshotTable(ids=pa.chunked_array([[1], [2]]), vectors=torch.nn.Parameter(torch.ones(2, 2))),
        "empty": SnapshotTable(ids=pa.array([], pa.string()), vectors=torch.zeros(0, 8)),
        "sliced": SnapshotTable(ids=pa.array(["x", "a", "b"])[1:], vectors=torch.ones(2, 2)),
    }
    snapshot = Snapshot.write(tmp_path / "kge", facet="kge", tables=tables)
    assert snapshot.vectors("strided").tolist() == [[0.0, 2.0], [8.0, 10.0]]
    assert snapshot.vectors("empty").shape == (0, 8)
    assert snapshot.ids("empty").type == pa.string()
    assert snapshot.ids("parameter").to_pylist() == [1, 2]
    assert snapshot.ids("sliced").to_pylist() == ["a", "b"]


def spoiled(row: int, value: float) -> torch.Tensor:
    vectors = torch.zeros(3, 4)
    vectors[row, 1] = value
    return vectors


@pytest.mark.parametrize(
    ("changes", "precision", "message"),
    [
        ({"vectors": spoiled(2, float("nan"))}, "fp32", "Table user: Row 2 cannot be .* element 1 is nan"),
        ({"vectors": spoiled(1, float("-inf"))}, "fp32", "Table user: Row 1 .* element 1 is -inf"),
        ({"vectors": spoiled(1, 1e5)}, "fp16", "Table user: Row 1 .* up to 65504"),
        ({"vectors": torch.zeros(2, 4)}, "fp32", "Table user: 3 ids and 2 vectors"),
        ({"vectors": torch.zeros(3, 4).double()}, "fp32", "Table user: vectors is torch.float64"),
        ({"vectors": torch.zeros(3)}, "fp32", "Table user: vectors is"),
        ({"ids": pa.array([5, 6, 5])}, "fp32", "Table user: The id 5 occurs twice, at positions 0 and 2"),
        ({"ids": pa.array(["a", None, "b"])}, "fp32", "Table user: ids have 1 nulls, the first at position 1"),
        ({"ids": pa.array([1, 2, 3], pa.int32())}, "fp32", "Table user: ids are int32"),
        ({}, "int4", "precision is 'int4'; expected one of fp32, fp16"),
    ],
)
def test_what_is_no_table_is_refused_by_name_and_leaves_nothing(tmp_path, changes, precision, message):
    with pytest.raises(ValueError, match=message):
        Snapshot.write(tmp_path / "kge", facet="kge", tables={"pin": table(), "user": table(**changes)}, precision=precision)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "../user", "a/b", ".user", "user pin"])
def test_node_types_that_are_no_file_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="is refused"):
        Snapshot.write(tmp_path / "kge", facet="kge", tables={name: table()})


def test_no_facet_no_tables_and_no_json_are_refused(tmp_path):
    with pytest.raises(ValueError, match="facet is ''"):
        Snapshot.write(tmp_path / "kge", facet="", tables={"user": table()})
    with pytest.raises(ValueError, match="0 tables"):
        Snapshot.write(tmp_path / "kge", facet="kge", tables={})
    with pytest.raises(ArtifactError, match=r"manifest\.metrics\.mrr is nan"):
        Snapshot.write(tmp_path / "kge", facet="kge", tables={"user": table()}, metrics={"mrr": float("nan")})
    with pytest.raises(ArtifactError, match="parents"):
        Snapshot.write(tmp_path / "kge", facet="kge", tables={"user": table()}, parents=[1])
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_node_type_is_refused_with_the_known_ones(tmp_path):
    snapshot = Snapshot.write(tmp_path / "kge", facet="kge", tables={"user": table(), "pin": table()})
    for read in (snapshot.vectors, snapshot.ids, snapshot.dim, snapshot.num_rows):
        with pytest.raises(KeyError, match="no table for 'advertiser'; it has pin, user"):
            read("advertiser")


def test_a_damaged_snapshot_is_refused(tmp_path):
    Snapshot.write(tmp_path / "kge", facet="kge", tables={"user": table()})
    file = tmp_path / "kge" / "vectors" / "user.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"vectors/user\.safetensors: sha256"):
        Snapshot.load(tmp_path / "kge")
    Snapshot.load(tmp_path / "kge", verify=False)


@pytest.mark.parametrize(
    ("entry", "read", "message"),
    [
        ({"rows": 2}, "vectors", r"holds torch.float32 \[3, 4\]; the manifest says fp32 \[2, 4\]"),
        ({"rows": 2}, "ids", "holds 3 int64 ids; the manifest says 2 int64 ids"),
        ({"precision": "fp16"}, "vectors", "the manifest says fp16"),
        ({"id_type": "string"}, "ids", "the manifest says 3 string ids"),
        ({"vectors": "ids/user.parquet"}, "vectors", "not a safetensors file"),
        ({"ids": "vectors/user.safetensors"}, "ids", "not a Parquet file"),
        ({"vectors": "../../elsewhere"}, "vectors", "no file '../../elsewhere'"),
    ],
)
def test_a_manifest_that_contradicts_the_files_is_refused(tmp_path, entry, read, message):
    Snapshot.write(tmp_path / "kge", facet="kge", tables={"user": table()})
    path = tmp_path / "kge" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["tables"]["user"].update(entry)
    path.write_bytes(canonical_bytes(manifest))
    with pytest.raises(ArtifactError, match=message):
        getattr(Snapshot.load(tmp_path / "kge"), read)("user")


@pytest.mark.parametrize("fields", [{}, {"facet": "kge", "tables": {}}, {"facet": "kge", "tables": {"user": {"rows": -1}}}])
def test_an_artefact_that_only_claims_to_be_a_snapshot_is_refused(tmp_path, fields):
    with ArtifactWriter(tmp_path / "fake", kind="snapshot") as writer:
        writer.manifest.update(fields)
    assert Artifact.open(tmp_path / "fake").kind == "snapshot"
    with pytest.raises(ArtifactError, match="is not a snapshot that this version reads"):
        Snapshot.load(tmp_path / "fake")


def test_another_kind_of_artefact_is_refused(tmp_path):
    with ArtifactWriter(tmp_path / "release", kind="release"):
        pass
    with pytest.raises(ArtifactError, match=re.escape("kind 'release'; expected 'snapshot'")):
        Snapshot.load(tmp_path / "release")
