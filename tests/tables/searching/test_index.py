"""An index finds what exact search finds, says how often, and refuses a snapshot that it was not made of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from multifacet.artifacts import ArtifactError
from multifacet.tables import (
    IndexConfig,
    IndexSource,
    Similarity,
    Snapshot,
    SnapshotTable,
    VectorIndex,
    find_neighbors,
    measure_recall,
)
from multifacet.tables.searching import SIMILARITIES, structures
from multifacet.tables.searching.recall import find_exact, judge
from multifacet.tables.searching.similarity import compare_all, compare_each

SOURCE = IndexSource(snapshot="0" * 64, facet="kge", node_type="pin")


def clustered(rows: int, dim: int, *, seed: int = 0, spread: float = 1.0) -> Tensor:
    """Rows around 50 centers, whose lengths differ a hundredfold."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(50, dim, generator=torch.Generator().manual_seed(9))
    around = centers[torch.randint(50, (rows,), generator=generator)] + 0.4 * torch.randn(rows, dim, generator=generator)
    return around * torch.exp(spread * torch.randn(rows, 1, generator=generator))


def scores_in_numpy(queries: Tensor, vectors: Tensor, similarity: Similarity) -> np.ndarray:
    left, right = queries.double().numpy()[:, None], vectors.double().numpy()[None]
    if similarity == "cosine":
        left, right = (part / np.linalg.norm(part, axis=-1, keepdims=True) for part in (left, right))
    if similarity in {"cosine", "dot"}:
        return (left * right).sum(-1)
    difference = left - right
    half = difference.shape[-1] // 2
    return -{
        "squared": lambda: (difference**2).sum(-1),
        "l2": lambda: np.sqrt((difference**2).sum(-1)),
        "l1": lambda: np.abs(difference).sum(-1),
        "moduli": lambda: np.abs(difference[..., :half] + 1j * difference[..., half:]).sum(-1),
    }[similarity]()


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_similarity_is_its_formula(similarity: Similarity) -> None:
    queries, vectors = clustered(7, 6), clustered(11, 6, seed=1)
    expected = scores_in_numpy(queries, vectors, similarity)
    each = compare_each(queries, vectors.expand(7, 11, 6), similarity)
    np.testing.assert_allclose(each.numpy(), expected, rtol=1e-4, atol=1e-5)
    if similarity == "cosine":
        queries, vectors = (torch.nn.functional.normalize(part) for part in (queries, vectors))
    np.testing.assert_allclose(compare_all(queries, vectors, similarity).numpy(), expected, rtol=1e-3, atol=1e-3)
    _, rows = find_neighbors(queries, vectors, 3, similarity=similarity)
    assert rows.tolist() == np.argsort(-expected, axis=1)[:, :3].tolist()


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(("backend", "structure"), [("faiss", "ivf"), ("faiss", "hnsw"), ("usearch", "hnsw")])
def test_an_index_reaches_its_recall_by_the_facets_own_score(
    tmp_path: Path, similarity: Similarity, backend: str, structure: str
) -> None:
    pytest.importorskip(backend)
    vectors, queries = clustered(3000, 16), clustered(300, 16, seed=2)
    config = IndexConfig(backend=backend, structure=structure, num_lists=32, recall=0.97)
    ids = pa.array([f"pin {row}" for row in range(3000)])
    built, recall = VectorIndex.write(
        tmp_path / "index", ids=ids, vectors=vectors, similarity=similarity, queries=queries, source=SOURCE, config=config
    )
    assert recall.recall > 0.93
    opened = VectorIndex.load(tmp_path / "index")
    assert opened.fingerprint == built.fingerprint
    scores, positions = opened.search(queries, 10)
    expected = scores_in_numpy(queries, vectors, similarity)
    np.testing.assert_allclose(scores.numpy(), np.take_along_axis(expected, positions.numpy(), 1), rtol=1e-3, atol=1e-3)
    best = np.argsort(-expected, axis=1)[:, :10]
    overlap = [len(set(found) & set(wanted)) / 10 for found, wanted in zip(positions.tolist(), best.tolist(), strict=True)]
    assert np.mean(overlap) > 0.93
    assert opened.measure(queries).recall == pytest.approx(np.mean(overlap), abs=0.01)


def test_a_graph_over_raw_inner_products_would_miss_what_this_one_finds(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    vectors, queries = clustered(5000, 16, spread=2.0), clustered(200, 16, seed=3)
    raw = faiss.IndexHNSWFlat(16, 8, faiss.METRIC_INNER_PRODUCT)
    raw.add(vectors.numpy())
    raw.hnsw.efSearch = 16
    exact = find_exact(queries, vectors, 10, "dot")
    missed = judge(queries, vectors, torch.from_numpy(raw.search(queries.numpy(), 10)[1]), exact, "dot")
    config = IndexConfig(structure="hnsw", links=8, recall=0.95)
    _, recall = VectorIndex.write(
        tmp_path / "index",
        ids=pa.array(range(5000)),
        vectors=vectors,
        similarity="dot",
        queries=queries,
        source=SOURCE,
        config=config,
    )
    assert recall.recall > 0.93
    assert recall.recall > missed


def test_duplicates_and_ties_are_no_misses_and_one_row_counts_once() -> None:
    vectors = clustered(20, 4).repeat(30, 1)  # each row thirty times: any ten of them are right
    queries = vectors[:20]
    exact = find_exact(queries, vectors, 10, "l2")
    twins = torch.arange(20)[:, None] + 20 * torch.arange(29, 19, -1)[None]
    assert judge(queries, vectors, twins, exact, "l2") == 1.0
    assert judge(queries, vectors, twins[:, :1].expand(-1, 10), exact, "l2") == pytest.approx(0.1)
    assert judge(queries, vectors, (twins + 1) % 20 + 20 * (twins // 20), exact, "l2") == 0.0
    assert judge(queries, vectors, torch.full((20, 10), -1), exact, "l2") == 0.0


def test_a_search_that_is_wrong_is_told(tmp_path: Path) -> None:
    vectors = clustered(200, 8)

    def backwards(queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return find_neighbors(-queries, vectors, k, similarity="dot")

    assert measure_recall(backwards, vectors[:50], vectors, 5, "dot").recall < 0.05


def test_untrained_rows_are_left_out_and_rows_lead_back_to_the_table(tmp_path: Path) -> None:
    vectors = clustered(400, 8)
    trained = torch.ones(400, dtype=torch.bool)
    trained[::4] = False
    index, _ = VectorIndex.write(
        tmp_path / "index",
        ids=pa.array(range(1000, 1400)),
        vectors=vectors.half(),
        similarity="l2",
        queries=vectors,
        source=SOURCE,
        trained=trained,
        config=IndexConfig(recall=1.0),
    )
    _, positions = index.search(vectors[[3]], 1)
    assert index.ids[int(positions)].as_py() == 1003
    assert index.table_rows(positions).tolist() == [[3]]
    assert len(index) == 300
    assert index.search(vectors[:2], 1000)[0].shape == (2, 300)
    assert index.search(vectors[:0], 3)[1].shape == (0, 3)


def test_a_stale_pair_and_a_damaged_index_are_refused(tmp_path: Path) -> None:
    vectors = clustered(60, 4)
    snapshots = [
        Snapshot.write(
            tmp_path / name, facet="own", tables={"pin": SnapshotTable(ids=pa.array(range(60)), vectors=vectors * scale)}
        )
        for name, scale in (("old", 1.0), ("new", 2.0))
    ]
    source = IndexSource(snapshot=snapshots[0].fingerprint, facet="own", node_type="pin")
    fields = {"ids": pa.array(range(60)), "vectors": vectors, "similarity": "dot", "queries": vectors, "source": source}
    VectorIndex.write(tmp_path / "index", **fields)
    assert VectorIndex.load(tmp_path / "index", snapshot=snapshots[0]).manifest["parents"] == [snapshots[0].fingerprint]
    with pytest.raises(ArtifactError, match="build it again by `multifacet snapshot index`"):
        VectorIndex.load(tmp_path / "index", snapshot=snapshots[1])
    with pytest.raises(ArtifactError, match="already exists"):
        VectorIndex.write(tmp_path / "index", **fields)
    data = bytearray((tmp_path / "index" / "index.faiss").read_bytes())
    data[-3] ^= 1
    (tmp_path / "index" / "index.faiss").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"index\.faiss: sha256"):
        VectorIndex.load(tmp_path / "index")


def test_the_rows_are_plain_arrow(tmp_path: Path) -> None:
    vectors = clustered(50, 4)
    VectorIndex.write(
        tmp_path / "index",
        ids=pa.array([f"pin {row}" for row in range(50)]),
        vectors=vectors,
        similarity="dot",
        queries=vectors,
        source=SOURCE,
    )
    table = pa.ipc.open_file(tmp_path / "index" / "rows.arrow").read_all()
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 4)
    assert table.column("id").to_pylist()[:2] == ["pin 0", "pin 1"]
    assert np.array_equal(np.array(table.column("vector").to_pylist(), dtype=np.float32), vectors.numpy())
    assert json.loads(table.schema.metadata[b"multifacet"])["source"]["node_type"] == "pin"


def test_qdrant_takes_the_rows(tmp_path: Path) -> None:
    qdrant = pytest.importorskip("qdrant_client", reason="Qdrant's client is not installed: pip install qdrant-client")
    vectors = clustered(50, 4)
    index, _ = VectorIndex.write(
        tmp_path / "index",
        ids=pa.array([f"pin {row}" for row in range(50)]),
        vectors=vectors,
        similarity="dot",
        queries=vectors,
        source=SOURCE,
    )
    table = pa.ipc.open_file(tmp_path / "index" / "rows.arrow").read_all()
    client = qdrant.QdrantClient(":memory:")
    distance = qdrant.models.Distance.DOT
    client.create_collection("pins", vectors_config=qdrant.models.VectorParams(size=4, distance=distance))
    points = [
        qdrant.models.PointStruct(id=row["row"], vector=row["vector"], payload={"id": row["id"]}) for row in table.to_pylist()
    ]
    client.upsert("pins", points)
    found = client.query_points("pins", query=vectors[7].tolist(), limit=3).points
    _, positions = index.search(vectors[[7]], 3)
    assert [point.payload["id"] for point in found] == [index.ids[place].as_py() for place in positions[0].tolist()]


def test_lancedb_takes_the_rows(tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb", reason="LanceDB is not installed: pip install lancedb")
    vectors = clustered(50, 4)
    index, _ = VectorIndex.write(
        tmp_path / "index", ids=pa.array(range(50)), vectors=vectors, similarity="l2", queries=vectors, source=SOURCE
    )
    table = lancedb.connect(tmp_path / "lance").create_table(
        "pins", data=pa.ipc.open_file(tmp_path / "index" / "rows.arrow").read_all()
    )
    found = table.search(vectors[7].numpy()).distance_type("l2").limit(3).to_list()
    assert [row["id"] for row in found] == index.ids.take(index.search(vectors[[7]], 3)[1][0].numpy()).to_pylist()


def test_faults_are_told_in_our_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(30, 4)
    fields = {"ids": pa.array(range(30)), "similarity": "dot", "source": SOURCE}
    with pytest.raises(ValueError, match=r"expected \[Q, D\]"):
        VectorIndex.write(tmp_path / "index", vectors=vectors, queries=vectors[:, :2], **fields)
    with pytest.raises(ValueError, match="1 queries; expected at least 1 and 2"):
        VectorIndex.write(tmp_path / "index", vectors=vectors, queries=vectors[:1], **fields)
    config = IndexConfig(backend="usearch", structure="ivf")
    with pytest.raises(ValueError, match="usearch builds graphs only"):
        VectorIndex.write(tmp_path / "index", vectors=vectors, queries=vectors, config=config, **fields)
    monkeypatch.setattr(structures, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"multifacet\[index\]"):
        VectorIndex.write(tmp_path / "index", vectors=vectors, queries=vectors, **fields)
    assert not (tmp_path / "index").exists()
