"""Windows as PyG's data and stores: every batch holds what was loaded, edge by edge, whatever the relations are."""

from __future__ import annotations

import datetime as dt
import math
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import torch_geometric.typing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import HeteroData
from torch_geometric.loader import HGTLoader, LinkLoader, LinkNeighborLoader, NeighborLoader, NodeLoader
from torch_geometric.nn import HGTConv
from torch_geometric.sampler import NodeSamplerInput
from torch_geometric.transforms import RandomLinkSplit, ToUndirected

from multifacet.graphdb import (
    GraphError,
    GraphSchema,
    GraphStore,
    GraphView,
    MetapathWalker,
    MultifacetSampler,
    NegativeSampler,
    NodeType,
    Relation,
    SamplerConfig,
    Topology,
)
from multifacet.graphdb.windows.properties import NO_TIME

needs_pyg_lib = pytest.mark.skipif(
    not torch_geometric.typing.WITH_PYG_LIB, reason="pyg-lib is not installed (make test-pyg-lib runs this)"
)

EPOCH = dt.datetime(1970, 1, 1)
FOLLOWS, RATES = ("user", "follows", "user"), ("user", "rates", "pin")
REVERSES = {FOLLOWS: ("user", "rev_follows", "user"), RATES: ("pin", "rev_rates", "user")}

#: src, dst, seconds, stars (or null), day (or null)
Rows = list[tuple[int, int, int, float | None, int | None]]


def rows(num_src: int, num_dst: int) -> st.SearchStrategy[Rows]:
    """Edges of which no two have the same ends and time."""
    stars = st.none() | st.sampled_from([0.5, 1.0, 4.5])
    edge = st.tuples(
        st.integers(0, num_src - 1), st.integers(0, num_dst - 1), st.integers(0, 9), stars, st.none() | st.integers(0, 40)
    )
    return st.lists(edge, max_size=25, unique_by=lambda row: row[:3])


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "ages": draw(st.lists(st.none() | st.integers(-(2**31), 2**31 - 1), min_size=5, max_size=5)),
        "follows": draw(rows(5, 5)),
        "rates": draw(rows(5, 4)),
        "compacted": draw(st.booleans()),
    }


def store_of(folder: Path, graph: dict[str, Any], *, declared: bool = False) -> GraphStore:
    """Users with an age, pins and topics without a property; relations whose edges have stars and a day.

    Nodes are there from 1970 on where that is declared, else from their first edge or the test's own time.
    """
    carried = {"stars": "FLOAT", "day": "DATE", "note": "VARCHAR"}
    schema = GraphSchema(
        nodes=(NodeType(name="user", properties={"age": "INTEGER"}), NodeType(name="pin"), NodeType(name="topic")),
        relations=(
            Relation(src="user", name="follows", dst="user", properties=carried),
            Relation(src="user", name="rates", dst="pin", properties=carried, weighted=True),
        ),
    )
    store = GraphStore.create(folder / "graph.duckdb", schema)
    time = "since" if declared else None
    users = {"id": range(5), "age": pa.array(graph["ages"], pa.int32()), "since": [EPOCH] * 5}
    store.load_nodes("user", pa.table(users), time=time)
    store.load_nodes("pin", pa.table({"id": range(4), "since": [EPOCH] * 4}), time=time)
    store.load_nodes("topic", pa.table({"id": range(2), "since": [EPOCH] * 2}), time=time)
    for name in ("follows", "rates"):
        given = graph[name]
        for part in (given[::2], given[1::2]):
            if part:
                store.load_edges(name, edge_table(part, weighted=name == "rates"))
        if graph["compacted"]:
            store.compact()
    return store


def edge_table(part: Rows, *, weighted: bool) -> pa.Table:
    columns = {
        "src": [row[0] for row in part],
        "dst": [row[1] for row in part],
        "time": [EPOCH + dt.timedelta(seconds=row[2]) for row in part],
        "stars": pa.array([row[3] for row in part], pa.float32()),
        "day": pa.array(
            [None if row[4] is None else dt.date(1970, 1, 1) + dt.timedelta(days=row[4]) for row in part], pa.date32()
        ),
        "note": ["a note"] * len(part),
    }
    if weighted:
        columns["weight"] = [weight_of(row) for row in part]
    return pa.table(columns)


def weight_of(row: Any) -> float:
    return 1.0 + row[0] + 10.0 * row[1] + 100.0 * row[2]


def expected(part: Rows, *, weighted: bool) -> set[tuple[Any, ...]]:
    return {
        (
            row[0],
            row[1],
            row[2] * 1_000_000,
            "null" if row[3] is None else row[3],
            NO_TIME if row[4] is None else row[4] * 86_400_000_000,
            weight_of(row) if weighted else None,
        )
        for row in part
    }


def held(ends: torch.Tensor, attributes: dict[str, torch.Tensor]) -> list[tuple[Any, ...]]:
    """The edges of a batch, or of a window, with all that they carry."""
    stars = ["null" if math.isnan(value) else value for value in attributes["stars"].tolist()]
    weights = attributes["edge_weight"].tolist() if "edge_weight" in attributes else [None] * len(stars)
    times = attributes["time" if "time" in attributes else "edge_time"].tolist()
    return list(zip(*ends.tolist(), times, stars, attributes["day"].tolist(), weights, strict=True))


@pytest.mark.slow
@given(graph=graphs(), reverse=st.booleans())
@settings(max_examples=25, deadline=None)
def test_batches_hold_what_was_loaded(graph: dict[str, Any], reverse: bool) -> None:
    """Of HeteroData and of the pair of stores, forwards and back, between nodes of one type too."""
    with tempfile.TemporaryDirectory() as folder, store_of(Path(folder), graph) as store:
        view = store.view()
        data = view.to_hetero_data(reverse=reverse)
        ages = [math.nan if age is None else float(age) for age in graph["ages"]]
        torch.testing.assert_close(data["user"].age, torch.tensor(ages, dtype=torch.float64), equal_nan=True)
        stores = view.feature_store(reverse=reverse), view.graph_store(reverse=reverse)
        for source in (data, stores):
            sampler = view.sampler([-1], reverse=reverse, data=source)
            for node_type in view.num_nodes:
                loader = NodeLoader(source, sampler, (node_type, None) if source is data else node_type, batch_size=3)
                check_batches(list(loader), graph, stores[0], node_type, is_data=source is data, reverse=reverse)


def check_batches(
    batches: list[HeteroData], graph: dict[str, Any], features: Any, node_type: str, *, is_data: bool, reverse: bool
) -> None:
    found: dict[tuple[str, str, str], list[tuple[Any, ...]]] = {}
    for batch in batches:
        assert batch["user"].age.shape == batch["user"].n_id.shape
        for kind in (*REVERSES, *(REVERSES.values() if reverse else ())):
            part = batch[kind]
            ends = torch.stack([batch[kind[0]].n_id[part.edge_index[0]], batch[kind[2]].n_id[part.edge_index[1]]])
            names = ["stars", "day", "edge_time", *(["edge_weight"] if "rates" in kind[1] else [])]
            if is_data:
                attributes = {name: part[name] for name in part.to_dict() if name in {*names, "time"}}
            else:
                attributes = {name: features.get_tensor(kind, name, index=part.e_id) for name in names}
            found.setdefault(kind, []).extend(held(ends if kind in REVERSES else ends.flip(0), attributes))
    for kind, back in REVERSES.items():
        weighted = kind == RATES
        if node_type == kind[2]:
            # Every node of the type was a seed once, so all in-edges are there; an end that was a seed twice changes nothing.
            assert set(found[kind]) == expected(graph[kind[1]], weighted=weighted)
        if reverse and node_type == kind[0]:
            assert set(found[back]) == expected(graph[kind[1]], weighted=weighted)


@pytest.mark.slow
@given(graph=graphs(), cut=st.integers(1, 9), compact_later=st.booleans())
@settings(max_examples=15, deadline=None)
def test_a_window_gives_the_same_before_and_after_later_loads(graph: dict[str, Any], cut: int, compact_later: bool) -> None:
    """Data, stores, files, batches and negatives of a window, bit by bit; later edges bring later users and pins."""
    early = {name: [row for row in graph[name] if row[2] < cut] for name in ("follows", "rates")}
    late = {name: [(src + 5, dst + 5, *rest) for src, dst, *rest in graph[name]] for name in ("follows", "rates")}
    with tempfile.TemporaryDirectory() as name, store_of(Path(name), graph | early, declared=True) as store:
        before = everything(store, Path(name) / "before", EPOCH + dt.timedelta(seconds=cut))
        for relation, rows_then in late.items():
            # Some of them from before the users of the window, but seen by it no earlier than they come.
            moved = [(src, dst, second + cut, *rest) for src, dst, second, *rest in rows_then]
            kept = [row for row in graph[relation] if row[2] >= cut] + moved
            if kept:
                store.load_edges(relation, edge_table(kept, weighted=relation == "rates"))
        if compact_later:
            store.compact()
        after = everything(store, Path(name) / "after", EPOCH + dt.timedelta(seconds=cut))
    assert before == after


def everything(store: GraphStore, folder: Path, as_of: dt.datetime) -> dict[str, Any]:
    """All that a window hands out, as bytes and lists."""
    view = store.view(as_of=as_of)
    data = view.to_hetero_data(reverse=True)
    found: dict[str, Any] = {"nodes": dict(view.num_nodes), "edges": view.num_edges, "fingerprint": view.fingerprint}
    for part in (*data.node_stores, *data.edge_stores):
        found |= {f"{part._key} {key}": str(value) for key, value in part.to_dict().items()}
    features = view.feature_store(reverse=True)
    for attr in features.get_all_tensor_attrs():
        found[f"store {attr.group_name} {attr.attr_name}"] = str(
            features.get_tensor(attr.group_name, attr.attr_name, index=None)
        )
    for path in view.write_parquet(folder):
        found[path.name] = path.read_bytes()
    view.write_safetensors(folder / "graph.safetensors")
    found["safetensors"] = (folder / "graph.safetensors").read_bytes()
    edges = view.edges("rates")
    if len(edges):
        sampler = view.sampler([2, 2], reverse=True, data=data, temporal="uniform", negative_alpha=0.75, seed=3)
        links = (RATES, torch.stack([edges.src, edges.dst]).long())
        loader = LinkLoader(data, sampler, links, None, edges.time, {"mode": "binary", "amount": 2}, batch_size=4)
        found["batches"] = [str(batch.to_dict()) for batch in loader]
        found["drawn"] = NegativeSampler.from_view(view, "pin", seed=2).sample(50).tolist()
        walker = MetapathWalker.from_view(view, ["rates", "rates^-1"], seed=4)
        found["walks"] = walker.walk(edges.src, length=4).tolist()
    return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[GraphStore]:
    follows = [(1, 2, 1, None, None), (1, 2, 2, 0.5, 1), (2, 1, 3, 1.0, 2), (3, 4, 4, None, 3), (2, 4, 5, 4.5, None)]
    rates = [(user, user % 4, 10 * user, 1.0, user) for user in range(5)]
    graph = {"ages": [20, 21, None, 23, 24], "follows": follows, "rates": rates, "compacted": True}
    with store_of(tmp_path, graph) as store:
        yield store


@pytest.fixture
def view(store: GraphStore) -> GraphView:
    return store.view()


def test_merged_directions_of_a_relation_are_refused(view: GraphView) -> None:
    merged = ToUndirected()(view.to_hetero_data())
    with pytest.raises(GraphError, match=r"\(user, follows, user\) joins nodes of one type.*to_hetero_data\(reverse=True\)"):
        view.sampler([5], reverse=True)
    with pytest.raises(GraphError, match="joins nodes of one type"):
        MultifacetSampler(Topology.from_view(view, reverse=True), SamplerConfig(num_neighbors=[5]))
    MetapathWalker.from_view(view, ["follows", "follows^-1"])  # walks have no attributes of edges
    with pytest.raises(GraphError, match=r"the data's 6 edges .* are not the window's 5"):
        view.sampler([5], reverse=True, data=merged)
    kept_apart = ToUndirected(merge=False)(view.to_hetero_data())
    sampler = view.sampler([5], reverse=True, data=kept_apart)
    batch = next(iter(NodeLoader(kept_apart, sampler, ("user", None), batch_size=5)))
    assert sorted(batch[FOLLOWS].time.tolist()) == sorted(batch[REVERSES[FOLLOWS]].time.tolist())
    assert sorted(batch[FOLLOWS].time.tolist()) == [1_000_000, 2_000_000, 3_000_000, 4_000_000, 5_000_000]


def test_data_that_a_transform_has_changed_is_refused(view: GraphView) -> None:
    data = view.to_hetero_data(reverse=True)
    train, _, _ = RandomLinkSplit(num_val=0.2, num_test=0.2, edge_types=RATES, rev_edge_types=REVERSES[RATES])(data)
    with pytest.raises(GraphError, match=r"a transform has changed them.*Topology.from_data"):
        view.sampler([5], reverse=True, data=train)
    with pytest.raises(GraphError, match=r"the data has no edges .*rev_follows"):
        view.sampler([5], reverse=True, data=view.to_hetero_data())


def test_a_relation_named_like_a_reverse_is_kept_apart(tmp_path: Path) -> None:
    schema = GraphSchema(
        nodes=(NodeType(name="user"), NodeType(name="pin")),
        relations=(
            Relation(src="user", name="clicks", dst="pin", timed=False),
            Relation(src="pin", name="rev_clicks", dst="user", timed=False),
            Relation(src="pin", name="clicks^-1", dst="user", timed=False),
        ),
    )
    with GraphStore.create(tmp_path / "graph.duckdb", schema) as store:
        store.load_edges("clicks", pa.table({"src": [0, 1], "dst": [0, 1]}))
        store.load_edges("rev_clicks", pa.table({"src": [0, 1], "dst": [1, 0]}))
        store.load_edges("clicks^-1", pa.table({"src": [0, 1], "dst": [1, 1]}))
        view = store.view()
        message = "relation 'rev_clicks' has the name that the reverse of 'clicks' would get"
        for make in (
            view.to_hetero_data,
            view.graph_store,
            view.feature_store,
            lambda reverse: view.sampler([1], reverse=reverse),
        ):
            with pytest.raises(GraphError, match=message):
                make(reverse=True)
        assert view.to_hetero_data()["pin", "rev_clicks", "user"].edge_index.tolist() == [[1, 0], [0, 1]]
        # Without reversed relations, a walk along `clicks` must not go along `rev_clicks` instead.
        with pytest.raises(GraphError, match="relation 'clicks' has no reverse here"):
            MetapathWalker(Topology.from_view(view), ["clicks"])
        for ask in (lambda: view.queries.top("pin", 0, ["clicks^-1"]), lambda: MetapathWalker.from_view(view, ["clicks^-1"])):
            with pytest.raises(GraphError, match="is a relation, and also the way back along 'clicks'"):
                ask()
        walks = MetapathWalker.from_view(view, ["rev_clicks"]).walk(torch.tensor([0, 1]))
        assert walks.tolist() == [[0, 1], [1, 0]]
        walker = MetapathWalker.from_view(store.view(relations=["clicks"]), ["clicks", "clicks^-1"])
        assert walker.walk(torch.tensor([0]), length=2).tolist() == [[0, 0, 0]]


def test_properties_that_a_batch_cannot_carry_are_refused(tmp_path: Path) -> None:
    properties = {"batch": "INTEGER", "key": "BIGINT", "title": "VARCHAR", "born": "TIMESTAMP", "new": "BOOLEAN"}
    schema = GraphSchema(
        nodes=(NodeType(name="user", properties=properties), NodeType(name="pin")),
        relations=(Relation(src="user", name="likes", dst="pin", timed=False, properties={"edge_weight": "DOUBLE"}),),
    )
    born = dt.datetime(2026, 1, 1, 0, 0, 0, 1)
    with GraphStore.create(tmp_path / "graph.duckdb", schema) as store:
        nodes = {"id": [1, 2], "batch": [1, 2], "key": [2**53 + 1, None], "title": ["a", None], "born": [born, None]}
        store.load_nodes("user", pa.table(nodes | {"new": [True, None]}))
        store.load_edges("likes", pa.table({"src": [1], "dst": [1], "edge_weight": [0.1]}))
        view = store.view()
        for make in (view.to_hetero_data, view.feature_store):
            with pytest.raises(
                GraphError, match=r"property 'batch' of node type 'user' has a name that PyG's loaders write to"
            ):
                make()
            with pytest.raises(GraphError, match=r"property 'key' of 'user' has values from 9007199254740993 to"):
                make(properties={"user": ["key"]})
            with pytest.raises(GraphError, match="property 'title' of 'user' is VARCHAR, which no tensor holds"):
                make(properties={"user": ["title"]})
            with pytest.raises(GraphError, match="node type 'user' has no property 'age'"):
                make(properties={"user": ["age"]})
            with pytest.raises(GraphError, match="property 'edge_weight' of relation 'likes'"):
                make(properties={("user", "likes", "pin"): ["edge_weight"]})
            make(properties=False)
        data = view.to_hetero_data(properties={"user": ["born", "new"]})
        assert data["user"].born.tolist() == [round((born - EPOCH).total_seconds() * 10**6), NO_TIME]
        assert data["user"].new.tolist()[0] == 1.0
        assert data["user"].new[1].isnan()
        with pytest.raises(GraphError, match="property 'born' of 'user' is TIMESTAMP, no number"):
            view.node_property("user", "born")
        assert view.node_property("user", "batch").tolist() == [1.0, 2.0]
        # What no tensor holds is read as it is stored.
        assert view.node_properties("user")["key"].to_pylist() == [2**53 + 1, None]
        assert view.edge_properties("likes")["edge_weight"].to_pylist() == [0.1]


@pytest.mark.slow
def test_stores_go_to_spawned_workers(view: GraphView) -> None:
    stores = view.feature_store(reverse=True), view.graph_store(reverse=True)
    sampler = view.sampler([3], reverse=True, data=stores)
    batches = []
    for options in ({}, {"num_workers": 1, "multiprocessing_context": "spawn"}):
        loader = NodeLoader(stores, sampler, "user", batch_size=5, **options)
        batches.append(next(iter(loader)))
    assert torch.equal(batches[0]["user"].n_id[:5], batches[1]["user"].n_id[:5])
    torch.testing.assert_close(batches[1]["user"].age[:5], view.to_hetero_data()["user"].age, equal_nan=True)
    copies = pickle.loads(pickle.dumps(stores))  # noqa: S301 - our own
    view.close()
    for edge_type in (*REVERSES, *REVERSES.values()):
        for layout in ("coo", "csc"):
            ours = stores[1].get_edge_index(edge_type, layout=layout)
            theirs = copies[1].get_edge_index(edge_type, layout=layout)
            assert all(map(torch.equal, ours, theirs))
        assert torch.equal(
            stores[0].get_tensor(edge_type, "edge_time", index=None), copies[0].get_tensor(edge_type, "edge_time", index=None)
        )


def test_a_closed_view_says_so(store: GraphStore) -> None:
    view = store.view()
    graph = view.graph_store()
    view.close()
    with pytest.raises(GraphError, match=r"this view is closed; open another"):
        graph.get_edge_index(FOLLOWS, layout="csc")


def test_links_over_stores_find_their_ends(view: GraphView) -> None:
    stores = view.feature_store(), view.graph_store()
    loader = LinkLoader(stores, view.sampler([2]), RATES, neg_sampling="binary", batch_size=5)
    batch = next(iter(loader))
    ends = batch[RATES].edge_label_index[:, :5]
    edges = view.edges("rates")
    assert batch["user"].n_id[ends[0]].tolist() == edges.src.tolist()
    assert batch["pin"].n_id[ends[1]].tolist() == edges.dst.tolist()


def test_zero_weights_keep_the_numbers_of_reversed_edges(tmp_path: Path) -> None:
    schema = GraphSchema(
        nodes=(NodeType(name="user"), NodeType(name="pin")),
        relations=(Relation(src="user", name="buys", dst="pin", weighted=True),),
    )
    with GraphStore.create(tmp_path / "graph.duckdb", schema) as store:
        times = [EPOCH + dt.timedelta(seconds=second) for second in (4, 3, 2, 1)]
        store.load_edges(
            "buys", pa.table({"src": [0, 1, 0, 1], "dst": [0, 0, 1, 1], "time": times, "weight": [0.0, 1.0, 2.0, 3.0]})
        )
        view = store.view()
        back = ("pin", "rev_buys", "user")
        stores = view.feature_store(reverse=True), view.graph_store(reverse=True)
        sampler = view.sampler([-1], reverse=True, weighted=True, data=stores)
        output = sampler.sample_from_nodes(NodeSamplerInput(None, torch.tensor([0, 1]), input_type="user"))
        numbers = (
            output.edge[back] if sampler.edge_permutation[back] is None else sampler.edge_permutation[back][output.edge[back]]
        )
        assert sorted(stores[0].get_tensor(back, "edge_weight", index=numbers).tolist()) == [1.0, 2.0, 3.0]


@needs_pyg_lib
@given(graph=graphs(), reverse=st.booleans())
@settings(max_examples=15, deadline=None)
def test_pygs_neighbor_loader_holds_what_was_loaded(graph: dict[str, Any], reverse: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, store_of(Path(folder), graph) as store:
        view = store.view()
        data = view.to_hetero_data(reverse=reverse)
        stores = view.feature_store(reverse=reverse), view.graph_store(reverse=reverse)
        for source in (data, stores):
            for node_type in view.num_nodes:
                seeds = (node_type, None) if source is data else node_type
                batches = list(NeighborLoader(source, [-1], input_nodes=seeds, batch_size=3))
                check_batches(batches, graph, stores[0], node_type, is_data=source is data, reverse=reverse)


@needs_pyg_lib
def test_pygs_link_neighbor_loader_runs_over_data_and_stores(view: GraphView) -> None:
    data = view.to_hetero_data(reverse=True)
    stores = view.feature_store(reverse=True), view.graph_store(reverse=True)
    edges = view.edges("rates")
    for source, links in ((data, (RATES, None)), (stores, RATES)):
        batch = next(iter(LinkNeighborLoader(source, [4, 2], links, neg_sampling="binary", batch_size=5)))
        ends = batch[RATES].edge_label_index[:, :5]
        assert batch["user"].n_id[ends[0]].tolist() == edges.src.tolist()
        assert batch["pin"].n_id[ends[1]].tolist() == edges.dst.tolist()
        assert batch[RATES].edge_label.tolist() == [1] * 5 + [0] * 5
        assert batch["user"].age.shape == batch["user"].n_id.shape
        assert batch[REVERSES[RATES]].edge_index.size(1) > 0


@needs_pyg_lib
def test_pygs_temporal_sampling_runs_over_data(view: GraphView) -> None:
    data = view.to_hetero_data(reverse=True)
    times = torch.tensor([0, 1_500_000, 3_500_000, 9_000_000, 9_000_000])
    seeds = ("user", torch.arange(5))
    loader = NeighborLoader(data, [-1], input_nodes=seeds, input_time=times, time_attr="time", batch_size=5)
    batch = next(iter(loader))
    for kind in (FOLLOWS, REVERSES[FOLLOWS]):
        assert (batch[kind].time <= times[batch["user"].batch[batch[kind].edge_index[1]]]).all()
    assert sorted(batch[FOLLOWS].time.tolist()) == [1_000_000, 2_000_000, 4_000_000, 5_000_000]


@pytest.mark.skipif(
    not torch_geometric.typing.WITH_TORCH_SPARSE, reason="PyG's HGTLoader needs torch-sparse; pyg-lib has no kernel for it"
)
def test_pygs_hgt_loader_runs_over_data(view: GraphView) -> None:
    data = view.to_hetero_data(reverse=True)
    batch = next(iter(HGTLoader(data, [4, 4], ("user", torch.arange(5)), batch_size=5)))
    assert batch["user"].age.shape == batch["user"].n_id.shape


def test_hgt_convolutions_take_our_batches(view: GraphView) -> None:
    data = view.to_hetero_data(reverse=True)
    for name in data.node_types:
        data[name].x = torch.ones(data[name].num_nodes, 4)
    batch = next(iter(NodeLoader(data, view.sampler([4, 4], reverse=True, data=data), ("user", None), batch_size=5)))
    layer = HGTConv(4, 8, data.metadata(), heads=2)
    out = layer(batch.x_dict, batch.edge_index_dict)
    assert out["user"].shape == (batch["user"].num_nodes, 8)
    out["user"].sum().backward()
    assert layer.k_rel.weight.grad.abs().sum() > 0
