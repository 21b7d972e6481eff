"""Whatever init_tables reports as filled is read back by the model's own forward pass; every other combination is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    PoolingType,
)
from torchrec.distributed import DistributedModelParallel
from torchrec.modules.embedding_configs import DataType
from torchrec.modules.mc_embedding_modules import (
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
from torchrec.modules.mc_modules import DistanceLFU_EvictionPolicy, ManagedCollisionCollection, MCHManagedCollisionModule

from multifacet.ranking import TableSource, init_tables
from multifacet.tables import IdMap, Snapshot, SnapshotTable

DIM, NUM_IDS = 8, 50
IDS = [3 * number + 1 for number in range(NUM_IDS)]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Ids 1, 4, 7, ...; the last five are not trained. Small integers, which every type of table holds exactly."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randint(-8, 9, (NUM_IDS, DIM), generator=generator).float()
    vectors[vectors.abs().sum(1) == 0] = 1.0
    trained = torch.arange(NUM_IDS) < NUM_IDS - 5
    table = SnapshotTable(ids=pa.array(IDS), vectors=vectors, trained=trained)
    return Snapshot.write(tmp_path_factory.mktemp("s") / "kge", facet="kge", tables={"pin": table})


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path_factory.mktemp('g')}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def rows_of_permutation() -> np.ndarray:
    return np.random.default_rng(1).permutation(NUM_IDS)


# How the model finds an id's row: its table's rows, the source's fields, and the row of each id of the snapshot.
RULES: dict[str, Callable[[], tuple[int, dict[str, Any], Any]]] = {
    "exact": lambda: (NUM_IDS + 1, {"id_map": IdMap.exact(IDS[::-1])}, lambda: IdMap.exact(IDS[::-1]).rows(IDS)),
    "hashed": lambda: (
        100_003,
        {"id_map": IdMap.hashed(100_003, id_type="int64")},
        lambda: IdMap.hashed(100_003, id_type="int64").rows(IDS),
    ),
    "position": lambda: (NUM_IDS + 3, {"rows": "position"}, lambda: np.arange(NUM_IDS)),
    "own number": lambda: (3 * NUM_IDS, {"rows": "id", "padding_row": 0}, lambda: np.array(IDS)),
    "array": lambda: (NUM_IDS, {"rows": rows_of_permutation()}, rows_of_permutation),
    "tensor": lambda: (NUM_IDS, {"rows": torch.from_numpy(rows_of_permutation())}, rows_of_permutation),
    "mapping": lambda: (
        NUM_IDS + 9,
        {"rows": dict(zip(IDS, (rows_of_permutation() + 9).tolist(), strict=True)), "padding_row": 2},
        lambda: rows_of_permutation() + 9,
    ),
    "function": lambda: (NUM_IDS, {"rows": lambda ids: (ids.to_numpy() - 1) // 3}, lambda: np.arange(NUM_IDS)),
}


def build(kind: str, num_rows: int, data_type: DataType, device: str = "cpu") -> nn.Module:
    shape: dict[str, Any] = {"embedding_dim": DIM, "num_embeddings": num_rows, "data_type": data_type}
    where = torch.device(device)
    if kind == "sequence":
        return EmbeddingCollection(tables=[EmbeddingConfig(name="t", feature_names=["f"], **shape)], device=where)
    pooling = {"sum": PoolingType.SUM, "mean": PoolingType.MEAN}[kind]
    return EmbeddingBagCollection(
        tables=[EmbeddingBagConfig(name="t", feature_names=["f"], pooling=pooling, **shape)], device=where
    )


def read(model: nn.Module, rows: Any) -> Tensor:
    """Look rows [n] or [n, rows an id] up by the model's own forward pass, a bag an id."""
    rows = torch.as_tensor(np.asarray(rows)).long()
    rows = rows.reshape(len(rows), -1)
    bags = KeyedJaggedTensor(keys=["f"], values=rows.flatten(), lengths=torch.full((len(rows),), rows.shape[1]))
    with torch.no_grad():
        looked_up = model(bags)
        found = (looked_up.wait() if hasattr(looked_up, "wait") else looked_up)["f"]
        found = found.wait() if hasattr(found, "wait") else found
    return (found if isinstance(found, Tensor) else found.values()).detach().float()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("prepared", ["whole", "to_empty", "sharded", "sharded from meta"])
@pytest.mark.parametrize("kind", ["sum", "mean", "sequence"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("data_type", [DataType.FP32, DataType.FP16])
def test_what_is_reported_as_filled_is_read_back(
    snapshot: Snapshot, group: None, rule: str, kind: str, prepared: str, data_type: DataType
) -> None:
    num_rows, fields, rows_of_ids = RULES[rule]()
    rows = rows_of_ids()
    model = build(kind, num_rows, data_type, "meta" if prepared in {"to_empty", "sharded from meta"} else "cpu")
    if prepared == "to_empty":
        model = model.to_empty(device="cpu")
    elif prepared.startswith("sharded"):
        model = DistributedModelParallel(model, device=torch.device("cpu"))
    report = init_tables(model, {"t": TableSource(snapshot=snapshot, node_type="pin", missing="zero", **fields)})
    vectors, trained = snapshot.vectors("pin"), snapshot.trained("pin").numpy()
    assert torch.equal(read(model, rows[trained]), vectors[trained])
    assert not read(model, rows[~trained]).any(), "what no gradient has reached is not filled"
    assert report["t"].num_filled == trained.sum()
    assert (report["t"].num_untrained, report["t"].num_unused) == (5, 0)
    if "padding_row" in fields:
        assert not read(model, [fields["padding_row"]]).any()
    report.check(model)


@pytest.mark.parametrize("norm", [None, 3.0])
@pytest.mark.parametrize("kind", ["sum", "mean"])
def test_an_id_of_two_hashes_reads_its_vector(snapshot: Snapshot, kind: str, norm: float | None) -> None:
    id_map = IdMap.hashed(1_000_003, id_type="int64", num_hashes=2)
    model = build(kind, id_map.num_rows, DataType.FP32)
    source = TableSource(snapshot=snapshot, node_type="pin", id_map=id_map, norm=norm, hash_pooling=kind, missing="zero")
    init_tables(model, {"t": source})
    trained = snapshot.trained("pin")
    expected = snapshot.vectors("pin")[trained]
    found = read(model, id_map.rows(IDS)[trained.numpy()])
    scale = 1.0 if norm is None else norm / float(expected.square().sum(1).mean().sqrt())
    torch.testing.assert_close(found, expected * scale)


def test_only_a_second_snapshots_new_ids_are_filled(snapshot: Snapshot, tmp_path: Path) -> None:
    newer = Snapshot.write(
        tmp_path / "new",
        facet="kge",
        tables={"pin": SnapshotTable(ids=pa.array([*IDS[-8:], 1000, 1001]), vectors=torch.full((10, DIM), 100.0))},
    )
    id_map = IdMap.exact([*IDS, 1000, 1001])
    model = build("sum", id_map.num_rows, DataType.FP32)
    init_tables(model, {"t": TableSource(snapshot=snapshot, node_type="pin", id_map=id_map)})
    before = read(model, np.arange(id_map.num_rows))
    source = TableSource(snapshot=newer, node_type="pin", id_map=id_map, except_ids_of=snapshot, missing="keep")
    (coverage,) = init_tables(model, {"t": source})
    after = read(model, np.arange(id_map.num_rows))
    # Five ids of the older snapshot were never trained: they are as good as new.
    new = id_map.rows([*IDS[-5:], 1000, 1001])
    changed = torch.nonzero((before != after).any(1)).flatten().tolist()
    assert changed == sorted(new.tolist())
    assert coverage.num_filled == 7
    with pytest.raises(ValueError, match="set missing='keep'"):
        TableSource(snapshot=newer, node_type="pin", id_map=id_map, except_ids_of=snapshot)


def managed(kind: str) -> nn.Module:
    rule = MCHManagedCollisionModule(
        zch_size=60, device=torch.device("cpu"), eviction_policy=DistanceLFU_EvictionPolicy(), eviction_interval=1
    )
    if kind == "bags":
        bags = [EmbeddingBagConfig(name="t", embedding_dim=DIM, num_embeddings=60, feature_names=["f"])]
        return ManagedCollisionEmbeddingBagCollection(
            EmbeddingBagCollection(tables=bags), ManagedCollisionCollection({"t": rule}, bags), return_remapped_features=True
        )
    tables = [EmbeddingConfig(name="t", embedding_dim=DIM, num_embeddings=60, feature_names=["f"])]
    return ManagedCollisionEmbeddingCollection(
        EmbeddingCollection(tables=tables), ManagedCollisionCollection({"t": rule}, tables), return_remapped_features=True
    )


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("kind", ["bags", "sequence"])
def test_a_collection_that_gives_ids_rows_as_they_arrive_is_refused(snapshot: Snapshot, kind: str, *, deep: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = managed(kind)
    if deep:
        model = nn.ModuleDict({"tower": model})
    with pytest.raises(ValueError, match="which gives ids their rows as they arrive"):
        init_tables(model, {"t": TableSource(snapshot=snapshot, node_type="pin", rows="position")})


def test_tables_without_memory_are_refused_and_losses_are_found(snapshot: Snapshot) -> None:
    source = {"t": TableSource(snapshot=snapshot, node_type="pin", rows="position")}
    with pytest.raises(ValueError, match=r"on the meta device, which keeps no values: give it memory first \(module.to_empty"):
        init_tables(build("sum", NUM_IDS, DataType.FP32, "meta"), source)
    model = build("sum", NUM_IDS, DataType.FP32)
    report = init_tables(model, source)
    report.check(model)
    with torch.no_grad():
        model.embedding_bags["t"].weight.normal_()
    with pytest.raises(ValueError, match="is not what it was filled with"):
        report.check(model)
    with pytest.raises(ValueError, match="what it was filled with is lost"):
        report.check(build("sum", NUM_IDS, DataType.FP32, "meta"))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({}, ValueError, "must say in one way how the model finds an id's row"),
        ({"rows": "position", "id_map": IdMap.exact(IDS)}, ValueError, "must say in one way"),
        ({"rows": "idx"}, ValueError, "rows is 'idx'; expected"),
        ({"rows": np.arange(3)}, ValueError, "expected one for each of the snapshot's 50 ids"),
        ({"rows": np.arange(NUM_IDS) + 1}, ValueError, "has 50 rows, and position 49 of the snapshot is given row 50"),
        ({"rows": np.arange(NUM_IDS) - 2}, ValueError, "is given row -2; expected 0 to 49"),
        ({"rows": np.linspace(0, 1, NUM_IDS)}, TypeError, "rows are float64; expected integers"),
        ({"rows": {}}, ValueError, "the mapping from ids to rows is empty"),
        ({"rows": {"a": 1}}, TypeError, "are of two types"),
        ({"rows": {1: "a"}}, TypeError, "expected an integer for each id"),
        ({"rows": {1: 0, 4: 1}, "padding_row": 1}, ValueError, "id 4 has row 1, which is the padding row"),
        ({"rows": "position", "padding_row": 50}, ValueError, "padding_row is 50"),
        ({"rows": lambda _: [0]}, ValueError, "expected one for each of the snapshot's 50 ids"),
        ({"rows": {2: 0, 3: 1}}, ValueError, "trained ids has a row, by mapping"),
        ({"id_map": IdMap.exact(IDS)}, ValueError, "an exact map has one more than ids"),
    ],
)
def test_rows_that_cannot_be_are_refused_and_nothing_is_written(
    snapshot: Snapshot, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = build("sum", NUM_IDS, DataType.FP32)
    before = model.embedding_bags["t"].weight.detach().clone()
    with pytest.raises(error, match=message):
        init_tables(model, {"t": TableSource(snapshot=snapshot, node_type="pin", **fields)})
    assert torch.equal(model.embedding_bags["t"].weight, before)


def test_string_ids_have_no_number_of_their_own(tmp_path: Path) -> None:
    named = Snapshot.write(
        tmp_path / "s", facet="kge", tables={"pin": SnapshotTable(ids=pa.array(["a", "b"]), vectors=torch.eye(2, DIM))}
    )
    model = build("sum", 4, DataType.FP32)
    with pytest.raises(TypeError, match="takes integer ids for rows"):
        init_tables(model, {"t": TableSource(snapshot=named, node_type="pin", rows="id")})
    init_tables(model, {"t": TableSource(snapshot=named, node_type="pin", rows={"b": 3, "a": 1}, missing="zero")})
    assert torch.equal(read(model, [1, 3]), torch.eye(2, DIM))
