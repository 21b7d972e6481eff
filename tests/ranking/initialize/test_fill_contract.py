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
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)

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


@pytest.mark.slow
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


NUM_MANAGED = 60
POLICIES: dict[str, Callable[[], Any]] = {
    "distance": DistanceLFU_EvictionPolicy,
    "lfu": LFU_EvictionPolicy,
    "lru": LRU_EvictionPolicy,
}


def managed(kind: str, policy: str = "distance", num_rows: int = NUM_MANAGED, **fields: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rule = MCHManagedCollisionModule(
            zch_size=num_rows,
            device=torch.device("cpu"),
            eviction_policy=POLICIES[policy](),
            eviction_interval=1,
            **fields,
        )
        shape: dict[str, Any] = {"name": "t", "embedding_dim": DIM, "num_embeddings": num_rows, "feature_names": ["f", "g"]}
        if kind == "bags":
            bags = [EmbeddingBagConfig(**shape)]
            return ManagedCollisionEmbeddingBagCollection(
                EmbeddingBagCollection(tables=bags),
                ManagedCollisionCollection({"t": rule}, bags),
                return_remapped_features=True,
            )
        tables = [EmbeddingConfig(**shape)]
        return ManagedCollisionEmbeddingCollection(
            EmbeddingCollection(tables=tables), ManagedCollisionCollection({"t": rule}, tables), return_remapped_features=True
        )


def ask(model: nn.Module, ids: Any, *, training: bool = False) -> Tensor:
    """Look ids up by the model's own forward pass, half of them as one feature and half as the other."""
    values = torch.as_tensor(np.asarray(ids)).long()
    values = torch.cat([values, values])
    bags = KeyedJaggedTensor(keys=["f", "g"], values=values, lengths=torch.ones(len(values), dtype=torch.int64))
    model.train(training)
    with torch.no_grad():
        found, _ = model(bags)
    first, second = ((part if isinstance(part, Tensor) else part.values()).float() for part in (found["f"], found["g"]))
    assert torch.equal(first, second)
    return first


def scatter(ids: Tensor, size: int) -> Tensor:
    """A hash as a user of `input_hash_func` has one, without collisions here."""
    return (ids * 2_654_435_761) % size


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["bags", "sequence"])
@pytest.mark.parametrize("rule", ["managed", "exact", "position", "array", "mapping"])
@pytest.mark.parametrize("hashes", [False, True])
def test_ids_of_a_managed_collision_read_their_own_rows(
    snapshot: Snapshot, rule: str, kind: str, policy: str, *, hashes: bool
) -> None:
    num_rows, fields, _ = (NUM_MANAGED, {"rows": "managed"}, None) if rule == "managed" else RULES[rule]()
    num_rows += rule in ("array", "position", "mapping")  # the last row is that of unknown ids
    hashing = {"input_hash_size": 1_000_003, "input_hash_func": scatter} if hashes else {}
    model = managed(kind, policy, max(num_rows, NUM_IDS + 1), **hashing)
    if rule == "mapping":
        fields = {"rows": fields["rows"]}
    report = init_tables(model, {"t": TableSource(snapshot=snapshot, node_type="pin", missing="zero", **fields)})
    vectors, trained = snapshot.vectors("pin"), snapshot.trained("pin").numpy()
    ids = np.array(IDS)
    assert (report["t"].num_filled, report["t"].num_unused, report["t"].rows) == (45, 0, _placed_by(rule))
    assert torch.equal(ask(model, ids[trained]), vectors[trained])
    assert not ask(model, ids[~trained]).any(), "what no gradient has reached is not filled"
    # Known ids keep their rows in training, and new ones take open rows.
    for seed in range(6):
        seen = np.random.default_rng(seed).permutation(ids[trained])[:20]
        assert torch.equal(ask(model, seen, training=True), vectors[np.searchsorted(ids, seen)])
    report.check(model)
    ask(model, [10_001, 10_001, 10_002, *ids[trained]], training=True)
    assert torch.equal(ask(model, ids[trained]), vectors[trained])
    collisions = model._managed_collision_collection._managed_collision_modules["t"]
    assert int(collisions.open_slots()) == max(0, max(num_rows, NUM_IDS + 1) - 1 - 45 - 2)
    # A checkpoint of it is one of TorchRec's own, which checks what it loads.
    other = managed(kind, policy, max(num_rows, NUM_IDS + 1), **hashing)
    other.load_state_dict(model.state_dict())
    assert torch.equal(ask(other, ids[trained]), vectors[trained])


def _placed_by(rule: str) -> str:
    return "exact id map" if rule == "exact" else rule


@pytest.mark.parametrize("kind", ["bags", "sequence"])
def test_ids_that_have_arrived_keep_their_rows_and_the_snapshots_first_take_the_open_ones(
    snapshot: Snapshot, kind: str
) -> None:
    model = managed(kind, num_rows=31)
    here = [IDS[0], IDS[30], 9_999, 10_000]
    for _ in range(3):
        ask(model, here, training=True)
    before = ask(model, here)
    report = init_tables(model, {"t": TableSource(snapshot=snapshot, node_type="pin", rows="managed", missing="keep")})
    # 30 rows, of which two are those of ids that the snapshot lacks; the snapshot's first take the 26 open ones.
    assert (report["t"].num_filled, report["t"].num_unused) == (28, 45 - 28)
    vectors = snapshot.vectors("pin")
    filled = [*range(27), 30]
    assert torch.equal(ask(model, np.array(IDS)[filled]), vectors[filled])
    assert torch.equal(ask(model, here)[2:], before[2:])
    report.check(model)
    unknown = ask(model, [123_456])
    assert torch.equal(ask(model, [IDS[27]]), unknown)
    with pytest.raises(ValueError, match=r"has given rows to 30 ids already, which rows by array would take"):
        init_tables(model, {"t": TableSource(snapshot=snapshot, node_type="pin", rows=np.arange(NUM_IDS) % 31)})


def test_rows_that_a_managed_collision_cannot_give_are_refused(snapshot: Snapshot, tmp_path: Path) -> None:
    def fill(model: nn.Module, source: Snapshot = snapshot, **fields: Any) -> None:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        try:
            init_tables(model, {"t": TableSource(snapshot=source, node_type="pin", **fields)})
        finally:
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    with pytest.raises(
        ValueError, match="an id has row 49, which MCHManagedCollisionModule reads for all ids that it does not"
    ):
        fill(managed("bags", num_rows=NUM_IDS), rows=np.arange(NUM_IDS)[::-1])
    with pytest.raises(ValueError, match="15 rows are those of several ids, the first row 0"):
        fill(managed("bags"), rows=np.arange(NUM_IDS) % 30)
    with pytest.raises(ValueError, match="gives an id one row, the id map 2"):
        fill(managed("bags"), id_map=IdMap.hashed(NUM_MANAGED, id_type="int64", num_hashes=2))
    named = SnapshotTable(ids=pa.array(["a"]), vectors=torch.ones(1, DIM))
    with pytest.raises(TypeError, match="takes int64 ids; those of 'pin' are string"):
        fill(managed("bags"), Snapshot.write(tmp_path / "n", facet="kge", tables={"pin": named}), rows="managed")
    largest = SnapshotTable(ids=pa.array([2**63 - 1]), vectors=torch.ones(1, DIM))
    with pytest.raises(ValueError, match="what MCHManagedCollisionModule takes for an open row"):
        fill(managed("bags"), Snapshot.write(tmp_path / "l", facet="kge", tables={"pin": largest}), rows="managed")
    with pytest.raises(ValueError, match='looks its ids up as they are: rows="managed" is for'):
        fill(build("sum", NUM_IDS, DataType.FP32), rows="managed")
    hashing = {"input_hash_size": 10, "input_hash_func": lambda ids, size: ids % size}
    with pytest.raises(ValueError, match="hashed ids are those of several ids"):
        fill(managed("bags", **hashing), rows="managed")


def test_a_remapping_that_was_made_anew_is_found(snapshot: Snapshot) -> None:
    model = managed("bags")
    report = init_tables(model, {"t": TableSource(snapshot=snapshot, node_type="pin", rows="managed")})
    report.check(nn.ModuleDict({"tower": model}))
    fresh = managed("bags")
    fresh._embedding_module.load_state_dict(model._embedding_module.state_dict())
    with pytest.raises(ValueError, match="its ids are not remapped to the rows that were filled for them"):
        report.check(fresh)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("kind", ["bags", "sequence"])
def test_remappings_that_cannot_be_written_are_refused(snapshot: Snapshot, kind: str, *, deep: bool) -> None:
    class Own(MCHManagedCollisionModule):
        """Whatever somebody's own does with ids is not known here."""

    model = managed(kind)
    modules = model._managed_collision_collection._managed_collision_modules
    modules["t"].__class__ = Own
    if deep:
        model = nn.ModuleDict({"tower": model})
    with pytest.raises(ValueError, match="with Own, which gives ids their rows as they arrive"):
        init_tables(model, {"t": TableSource(snapshot=snapshot, node_type="pin", rows="managed")})


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
