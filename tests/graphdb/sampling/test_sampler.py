"""The sampler beyond its contract: threads, errors, and windows of a store."""

import datetime as dt
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
import torch
import torch_geometric.typing
from pydantic import ValidationError
from torch_geometric.loader import LinkLoader, NodeLoader
from torch_geometric.sampler import EdgeSamplerInput, HeteroSamplerOutput, NegativeSampling, NodeSamplerInput
from torch_geometric.transforms import ToUndirected

from multifacet.graphdb import GraphError, GraphStore
from multifacet.graphdb.sampling import MetapathWalker, MultifacetSampler, NegativeSampler, SamplerConfig, Topology

CONFIGS = {
    "uniform": SamplerConfig(num_neighbors=[9, 9, 9]),
    "replacing": SamplerConfig(num_neighbors=[9, 9, 9], replace=True),
    "disjoint": SamplerConfig(num_neighbors=[9, 9], disjoint=True),
    "temporal": SamplerConfig(num_neighbors=[9, 9], temporal="uniform"),
}


def with_backend(config: SamplerConfig, backend: str) -> SamplerConfig:
    return config.model_copy(update={"backend": backend})


def users(count: int, config: SamplerConfig, *, seed: int = 0) -> NodeSamplerInput:
    nodes = torch.randint(60, (count,), generator=torch.Generator().manual_seed(seed))
    time = torch.full((count,), 600) if config.temporal else None
    return NodeSamplerInput(input_id=torch.arange(count), node=nodes, time=time, input_type="user")


def plain(output: HeteroSamplerOutput) -> dict[str, object]:
    parts = {"node": output.node, "row": output.row, "col": output.col, "edge": output.edge, "batch": output.batch or {}}
    lists = {name: {key: value.tolist() for key, value in part.items()} for name, part in parts.items()}
    return lists | {"nodes": output.num_sampled_nodes, "edges": output.num_sampled_edges}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_number_of_threads_changes_nothing(
    random_topology: Topology, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, backend: str, name: str
):
    # Small graphs are cut into ranges too, so that the threads meet.
    monkeypatch.setattr("multifacet.graphdb.sampling.neighbors._MIN_EDGES_PER_THREAD", 4)
    outputs = []
    for num_threads in (1, 2, 5):
        threads(num_threads)
        sampler = MultifacetSampler(random_topology, with_backend(CONFIGS[name], backend))
        outputs.append([plain(sampler.sample_from_nodes(users(300, CONFIGS[name]))) for _ in range(2)])
    assert outputs[0] == outputs[1] == outputs[2]
    assert outputs[0][0] != outputs[0][1]


@pytest.mark.parametrize("name", CONFIGS)
def test_several_threads_may_call_one_sampler(random_topology: Topology, backend: str, name: str):
    config = with_backend(CONFIGS[name], backend)
    sampler = MultifacetSampler(random_topology, config)
    expected = [plain(sampler.sample_from_nodes(users(50, CONFIGS[name]))) for _ in range(20)]
    again = MultifacetSampler(random_topology, config)
    with ThreadPoolExecutor(4) as executor:
        outputs = list(executor.map(lambda _: plain(again.sample_from_nodes(users(50, CONFIGS[name]))), range(20)))
    # Which thread makes which call is open; what the calls draw is not.
    assert sorted(map(str, outputs)) == sorted(map(str, expected))


def test_a_pickled_sampler_goes_on_where_it_was(random_topology: Topology):
    sampler = MultifacetSampler(random_topology, CONFIGS["uniform"])
    sampler.sample_from_nodes(users(5, CONFIGS["uniform"]))
    copy = pickle.loads(pickle.dumps(sampler))  # noqa: S301 - its own bytes
    inputs = users(5, CONFIGS["uniform"])
    assert plain(copy.sample_from_nodes(inputs)) == plain(sampler.sample_from_nodes(inputs))


def test_an_interrupted_call_leaves_no_trace(random_topology: Topology, monkeypatch: pytest.MonkeyPatch):
    sampler = MultifacetSampler(random_topology, CONFIGS["uniform"])
    sampler.sample_from_nodes(users(5, CONFIGS["uniform"]))
    with monkeypatch.context() as patch:
        patch.setattr("multifacet.graphdb.sampling.subgraph._joined", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sampler.sample_from_nodes(users(5, CONFIGS["uniform"]))
    fresh = MultifacetSampler(random_topology, CONFIGS["uniform"])
    for _ in range(2):
        fresh.sample_from_nodes(users(5, CONFIGS["uniform"]))
    inputs = users(5, CONFIGS["uniform"])
    assert plain(sampler.sample_from_nodes(inputs)) == plain(fresh.sample_from_nodes(inputs))


def sample_users(topology: Topology, config: SamplerConfig, nodes: list[int], **inputs: object) -> HeteroSamplerOutput:
    seeds = NodeSamplerInput(**({"input_id": None, "node": torch.tensor(nodes), "input_type": "user"} | inputs))
    return MultifacetSampler(topology, config).sample_from_nodes(seeds)


@pytest.mark.parametrize(
    ("config", "inputs", "message"),
    [
        ("uniform", {"input_type": "shop"}, "unknown node type 'shop', known: .*'user', 'pin'"),
        ("uniform", {"node": torch.tensor([0, 60])}, "seed 1 is 60; 'user' has nodes 0 to 59"),
        ("uniform", {"node": torch.tensor([-1])}, "seed 0 is -1"),
        ("uniform", {"time": torch.tensor([5])}, "would ignore; give it temporal"),
        ("temporal", {}, "needs the seeds' times: give NodeLoader input_time"),
        ("temporal", {"time": torch.tensor([5.5])}, "times are torch.float32"),
        ("temporal", {"time": torch.tensor([5, 6])}, r"expected integers \[1\]"),
    ],
)
def test_seeds_that_do_not_fit_are_refused(random_topology: Topology, config: str, inputs: dict[str, object], message: str):
    with pytest.raises(GraphError, match=message):
        sample_users(random_topology, CONFIGS[config], [0], **inputs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_neighbors": []}, "at least 1"),
        ({"num_neighbors": {"clicks": [1], "buys": [1, 2]}}, "the same number"),
        ({"num_neighbors": [-2]}, "-1 for all"),
        ({"num_neighbors": [2], "replace": True, "temporal": "last"}, "leave one of them out"),
        ({"num_neighbors": [2], "negative_alpha": -1}, "greater than or equal to 0"),
        ({"num_neighbors": [2], "strategy": "last"}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str):
    with pytest.raises(ValidationError, match=message):
        SamplerConfig.model_validate(settings)


def test_settings_that_the_graph_cannot_do_are_refused(random_topology: Topology):
    with pytest.raises(GraphError, match="num_neighbors names 'likes', which 0 edge types are called"):
        MultifacetSampler(random_topology, SamplerConfig(num_neighbors={"likes": [1]}))
    untimed = Topology(random_topology.num_nodes, [random_topology.relation("makes")])
    with pytest.raises(GraphError, match=r"no relation of .* has times"):
        MultifacetSampler(untimed, SamplerConfig(num_neighbors=[1], temporal="uniform"))


@pytest.mark.skipif(torch_geometric.typing.WITH_PYG_LIB, reason="pyg-lib is installed, so nothing is missing")
def test_without_pyg_lib_asking_for_it_says_where_it_is(random_topology: Topology):
    with pytest.raises(GraphError, match=r"pyg-lib is not installed .*; backend='numba' needs nothing"):
        MultifacetSampler(random_topology, SamplerConfig(num_neighbors=[1], backend="pyg_lib"))


def test_the_backend_is_our_own_unless_asked(random_topology: Topology):
    assert MultifacetSampler(random_topology, SamplerConfig(num_neighbors=[1])).backend == "numba"


def test_negatives_have_the_type_and_the_degrees_of_their_end(random_topology: Topology):
    config = SamplerConfig(num_neighbors=[1], negative_alpha=0.75)
    sampler = MultifacetSampler(random_topology, config)
    row, col = torch.tensor([1, 2]), torch.tensor([3, 4])
    inputs = EdgeSamplerInput(None, row, col, input_type=("user", "buys", "pin"))
    output = sampler.sample_from_edges(inputs, NegativeSampling("binary", amount=500))
    places = output.metadata[1]
    src, dst = output.node["user"][places[0]], output.node["pin"][places[1]]
    assert src[:2].tolist() == [1, 2]
    assert dst[:2].tolist() == [3, 4]
    adjacency = random_topology.relation("buys")
    for drawn, degrees in (
        (src[2:], torch.bincount(torch.from_numpy(adjacency.row), minlength=60)),
        (dst[2:], torch.from_numpy(adjacency.degrees)),
    ):
        counts = torch.bincount(drawn, minlength=len(degrees))
        assert counts.sum() == 1000
        assert counts[degrees == 0].sum() == 0
        weights = degrees.double() ** 0.75
        expected = weights / weights.sum() * 1000
        likely = expected > 5
        assert ((counts - expected)[likely].abs() < 5 * expected[likely].sqrt()).all()
        assert expected.max() > 2 * expected[likely].min(), "the degrees differ enough to tell"


def test_given_weights_of_negatives_are_kept_to(random_topology: Topology):
    sampler = MultifacetSampler(random_topology, SamplerConfig(num_neighbors=[1]))
    inputs = EdgeSamplerInput(None, torch.tensor([1]), torch.tensor([3]), input_type=("user", "buys", "pin"))
    only_pin_9 = torch.zeros(40)
    only_pin_9[9] = 1.0
    output = sampler.sample_from_edges(inputs, NegativeSampling("triplet", amount=20, dst_weight=only_pin_9))
    assert set(output.node["pin"][output.metadata[3]].flatten().tolist()) == {9}
    with pytest.raises(GraphError, match="dst_weight has 3 weights, expected one for each of 40 nodes"):
        sampler.sample_from_edges(inputs, NegativeSampling("triplet", dst_weight=torch.ones(3)))


@pytest.fixture
def shop(store: GraphStore, at: Callable[[float], dt.datetime]) -> GraphStore:
    """User `u` clicks pin 10d + u on day d; users 1 and 2 buy pins 10 and 20, the latter with weight 0."""
    clicks = [(user, 10 * day + user, at(day)) for day in range(5) for user in range(1, 4)]
    store.load_edges("clicks", pa.table(dict(zip(("src", "dst", "time"), zip(*clicks, strict=True), strict=True))))
    store.load_edges("buys", pa.table({"src": [1, 2], "dst": [10, 20], "time": [at(9)] * 2, "weight": [1.0, 0.0]}))
    return store


def test_a_windows_sampler_sees_the_window(shop: GraphStore, at: Callable[[float], dt.datetime]):
    view = shop.view(as_of=at(3))
    sampler = view.sampler([-1], reverse=True)
    ids = {name: view.node_ids(name).to_pylist() for name in ("user", "pin")}
    output = sampler.sample_from_nodes(NodeSamplerInput(None, torch.tensor([ids["user"].index(2)]), input_type="user"))
    assert sorted(ids["pin"][node] for node in output.node["pin"]) == [2, 12, 22]
    edges = view.edges("clicks")
    reverse = ("pin", "rev_clicks", "user")
    numbers = sampler.edge_permutation[reverse][output.edge[reverse]]
    assert {ids["user"][src] for src in edges.src[numbers]} == {2}
    assert sorted(ids["pin"][dst] for dst in edges.dst[numbers]) == [2, 12, 22]


def test_a_windows_stores_and_data_load_alike(shop: GraphStore):
    shop.load_nodes("user", pa.table({"id": [1, 2, 3], "age": [31, 32, 33], "country": ["a", "b", "c"]}))
    view = shop.view()
    data = ToUndirected()(view.to_hetero_data())
    stores = view.feature_store(), view.graph_store()
    clicks = ("user", "clicks", "pin")
    links = data[clicks].edge_index[:, :5]
    batches = []
    for source in (data, stores):
        nodes = NodeLoader(source, view.sampler([2, 2], reverse=True), input_nodes=("pin", torch.arange(15)), batch_size=15)
        ends = LinkLoader(
            source, view.sampler([2], temporal="last"), (clicks, links), None, data[clicks].time[:5], "binary", batch_size=5
        )
        batches.append((next(iter(nodes)), next(iter(ends))))
    for of_data, of_stores in zip(*batches, strict=True):
        assert torch.equal(of_stores["user"].age, torch.tensor([31.0, 32.0, 33.0])[of_stores["user"].n_id])
        for name in ("user", "pin"):
            assert torch.equal(of_data[name].n_id, of_stores[name].n_id)
        assert torch.equal(of_data[clicks].edge_index, of_stores[clicks].edge_index)
    assert batches[0][0][clicks].edge_index.size(1) > 0
    assert torch.equal(batches[0][1][clicks].edge_label_index, batches[1][1][clicks].edge_label_index)


def test_a_windows_weights_and_times_are_used_where_they_are_asked_for(shop: GraphStore):
    view = shop.view()
    pins = view.node_ids("pin").to_pylist()
    seeds = NodeSamplerInput(None, torch.tensor([pins.index(10), pins.index(20)]), input_type="pin")
    assert view.sampler({"buys": [3]}).sample_from_nodes(seeds).num_sampled_edges["user", "buys", "pin"] == [2]
    weighted = view.sampler({"buys": [3]}, weighted=True)
    assert weighted.sample_from_nodes(seeds).num_sampled_edges["user", "buys", "pin"] == [1]
    with pytest.raises(GraphError, match=r"none of the relations .*'clicks'.* has weights"):
        shop.view(relations=["clicks"]).sampler([1], weighted=True)
    with pytest.raises(GraphError, match="has times; leave it out"):
        shop.view(relations=["in"]).sampler([1], temporal="last")


def test_walks_and_negatives_of_a_window(shop: GraphStore, at: Callable[[float], dt.datetime]):
    view = shop.view(as_of=at(2))
    users, pins = view.node_ids("user").to_pylist(), view.node_ids("pin").to_pylist()
    walks = MetapathWalker.from_view(view, ["clicks", "clicks^-1"]).walk(torch.arange(3), length=4)
    for start, *rest in walks.tolist():
        assert {pins[pin] % 10 for pin in rest[::2]} == {users[start]}
        assert rest[1::2] == [start, start]
    drawn = NegativeSampler.from_view(view, "pin", relations=["clicks"]).sample(500)
    assert {pins[pin] for pin in drawn} == {1, 2, 3, 11, 12, 13}
