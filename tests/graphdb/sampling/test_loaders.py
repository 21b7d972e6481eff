"""NodeLoader and LinkLoader train models on what the sampler draws."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import LinkLoader, NodeLoader
from torch_geometric.nn import SAGEConv, to_hetero
from torch_geometric.transforms import ToUndirected

from multifacet.graphdb.sampling import MultifacetSampler, SamplerConfig, Topology

CLICKS = ("user", "clicks", "pin")
REVERSED = ("pin", "rev_clicks", "user")


@pytest.fixture
def clubs() -> HeteroData:
    """Users and pins of two clubs: users click pins of their club; a pin's features tell its club, a user's tell nothing."""
    generator = torch.Generator().manual_seed(0)
    club = {"user": torch.arange(80) % 2, "pin": torch.arange(60) % 2}
    users = torch.randint(80, (900,), generator=generator)
    pins = 2 * torch.randint(30, (900,), generator=generator) + club["user"][users]
    data = HeteroData()
    data["user"].x, data["user"].y = torch.ones(80, 4), club["user"]
    data["pin"].x = F.one_hot(club["pin"], 4).float() + 0.1 * torch.randn(60, 4, generator=generator)
    data["topic"].x = torch.ones(3, 4)  # an isolated type
    data[CLICKS].edge_index = torch.stack([users, pins])
    data[CLICKS].time = torch.randint(1000, (900,), generator=generator)
    return ToUndirected()(data)


@pytest.fixture(autouse=True)
def one_thread(threads: Callable[[int], None]) -> None:
    """Models of this size lose more by waiting for threads than they gain."""
    threads(1)


class Sage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = SAGEConv((-1, -1), 16), SAGEConv((-1, -1), 8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


def sampler_of(data: Data | HeteroData, **settings: object) -> MultifacetSampler:
    return MultifacetSampler(Topology.from_data(data), SamplerConfig.model_validate({"num_neighbors": [5, 3], **settings}))


def train(model: nn.Module, loader: NodeLoader | LinkLoader, loss_of: Callable[[HeteroData], Tensor], epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            loss = loss_of(batch)
            loss.backward()
            optimizer.step()


@pytest.mark.parametrize("settings", [{}, {"temporal": "last"}])
def test_a_node_loader_trains_a_sage_model(clubs: HeteroData, settings: dict[str, object]):
    torch.manual_seed(0)
    del clubs["topic"]  # to_hetero refuses types that no message reaches
    input_time = torch.full((80,), 500) if "temporal" in settings else None
    loader = NodeLoader(
        clubs, sampler_of(clubs, **settings), input_nodes="user", input_time=input_time, batch_size=16, shuffle=True
    )
    model = to_hetero(Sage(), clubs.metadata())

    def logits(batch: HeteroData) -> Tensor:
        return model(batch.x_dict, batch.edge_index_dict)["user"][: batch["user"].batch_size, :2]

    train(model, loader, lambda batch: F.cross_entropy(logits(batch), batch["user"].y[: batch["user"].batch_size]), epochs=8)
    correct = 0
    for batch in loader:
        assert torch.equal(batch["user"].n_id[: batch["user"].batch_size], batch["user"].input_id)
        for key in (CLICKS, REVERSED):
            # Attributes of an edge come from the same edge of the data.
            ends = clubs[key].edge_index[:, batch[key].e_id]
            assert torch.equal(batch[key[0]].n_id[batch[key].edge_index[0]], ends[0])
            assert torch.equal(batch[key[2]].n_id[batch[key].edge_index[1]], ends[1])
            assert torch.equal(batch[key].time, clubs[key].time[batch[key].e_id])
            if "temporal" in settings:
                assert (batch[key].time < 500).all()
        correct += int((logits(batch).argmax(1) == batch["user"].y[: batch["user"].batch_size]).sum())
    assert correct >= 72


@pytest.mark.parametrize(("mode", "disjoint"), [("binary", False), ("triplet", True)])
def test_a_link_loader_trains_a_sage_model(clubs: HeteroData, mode: str, disjoint: bool):
    torch.manual_seed(0)
    del clubs["topic"]
    clubs["user"].x = torch.eye(80)  # so that a user can be told from the others
    sampler = sampler_of(clubs, disjoint=disjoint)
    loader = LinkLoader(
        clubs, sampler, edge_label_index=CLICKS, neg_sampling={"mode": mode, "amount": 1}, batch_size=64, shuffle=True
    )
    model = to_hetero(Sage(), clubs.metadata())

    def scores(batch: HeteroData) -> tuple[Tensor, Tensor]:
        out = model(batch.x_dict, batch.edge_index_dict)
        if mode == "binary":
            src, dst = batch[CLICKS].edge_label_index
            return (out["user"][src] * out["pin"][dst]).sum(-1), batch[CLICKS].edge_label
        user = out["user"][batch["user"].src_index]
        positive = (user * out["pin"][batch["pin"].dst_pos_index]).sum(-1)
        negative = (user * out["pin"][batch["pin"].dst_neg_index]).sum(-1)
        return torch.cat([positive, negative]), torch.cat([torch.ones_like(positive), torch.zeros_like(negative)])

    train(model, loader, lambda batch: F.binary_cross_entropy_with_logits(*scores(batch)), epochs=4)
    score, label = scores(next(iter(loader)))
    # A negative is of the right club half the time, so 0.75 is the best that can be hoped for.
    accuracy = ((score > 0) == (label > 0.5)).float().mean()
    assert accuracy > 0.68


@pytest.mark.parametrize("settings", [{}, {"disjoint": True}, {"temporal": "uniform"}])
@pytest.mark.parametrize(("mode", "amount"), [("binary", 1), ("binary", 1.5), ("binary", 0.4), ("triplet", 1), ("triplet", 3)])
def test_links_and_negatives_find_their_places(clubs: HeteroData, settings: dict[str, object], mode: str, amount: float):
    links, label = clubs[CLICKS].edge_index[:, 40:50], torch.arange(10) % 2
    time = clubs[CLICKS].time[40:50] if "temporal" in settings else None
    loader = LinkLoader(
        clubs,
        sampler_of(clubs, **settings),
        edge_label_index=(CLICKS, links),
        edge_label=label if mode == "binary" else None,
        edge_label_time=time,
        neg_sampling={"mode": mode, "amount": amount},
        batch_size=10,
    )
    batch = next(iter(loader))
    users, pins = batch["user"].n_id, batch["pin"].n_id
    if mode == "binary":
        num_negatives = int(-(-10 * amount // 1))
        src, dst = batch[CLICKS].edge_label_index
        assert src.shape == dst.shape == (10 + num_negatives,)
        assert torch.equal(torch.stack([users[src[:10]], pins[dst[:10]]]), links)
        assert batch[CLICKS].edge_label.tolist() == [*(label + 1).tolist(), *[0] * num_negatives]
        if time is not None:
            assert batch[CLICKS].edge_label_time.tolist() == time.repeat(3)[: 10 + num_negatives].tolist()
        ends = [("user", src), ("pin", dst)]
    else:
        assert torch.equal(users[batch["user"].src_index], links[0])
        assert torch.equal(pins[batch["pin"].dst_pos_index], links[1])
        negative = batch["pin"].dst_neg_index
        assert negative.shape == ((10, amount) if amount > 1 else (10,))
        ends = [("user", batch["user"].src_index), ("pin", batch["pin"].dst_pos_index)]
        ends += [("pin", column) for column in negative.view(10, -1).t()]
    if settings:
        # Each end's subgraph bears the number of its positive link.
        for name, places in ends:
            assert batch[name].batch[places].tolist() == [link % 10 for link in range(len(places))]
    if time is not None:
        for key in (CLICKS, REVERSED):
            assert (batch[key].time < time[batch[key[2]].batch[batch[key].edge_index[1]]]).all()


def test_links_of_one_type_share_their_seeds():
    pages = Data(edge_index=torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]]), num_nodes=5, x=torch.arange(5.0))
    for disjoint in (False, True):
        loader = LinkLoader(pages, sampler_of(pages, disjoint=disjoint), neg_sampling="binary", batch_size=5)
        batch = next(iter(loader))
        ends = batch.n_id[batch.edge_label_index]
        assert torch.equal(ends[:, :5], pages.edge_index)
        assert torch.equal(batch.x, batch.n_id.float())
        if disjoint:
            assert batch.batch[batch.edge_label_index].tolist() == [[*range(5)] * 2] * 2
        else:
            assert batch.n_id.unique().numel() == batch.n_id.numel()


def test_a_graph_without_types_loads(clubs: HeteroData):
    pages = Data(edge_index=torch.tensor([[3, 1, 0, 2], [0, 0, 2, 1]]), x=torch.eye(4), edge_attr=torch.arange(4))
    batch = next(iter(NodeLoader(pages, sampler_of(pages), input_nodes=torch.tensor([0]), batch_size=1)))
    assert batch.n_id.tolist() == [0, 3, 1, 2]
    assert batch.edge_attr.tolist() == [0, 1, 3]
    assert torch.equal(batch.n_id[batch.edge_index], pages.edge_index[:, batch.e_id])
    assert batch.num_sampled_nodes == [1, 2, 1]


def test_feature_and_graph_stores_load(clubs: HeteroData):
    # HeteroData is PyG's own feature store and graph store.
    loader = NodeLoader((clubs, clubs), sampler_of(clubs), input_nodes=("user", torch.arange(8)), batch_size=8)
    batch = next(iter(loader))
    assert torch.equal(batch["pin"].x, clubs["pin"].x[batch["pin"].n_id])
    assert batch[REVERSED].edge_index.size(1) == len(batch[REVERSED].e_id) > 0
    links = LinkLoader(
        (clubs, clubs), sampler_of(clubs), edge_label_index=(CLICKS, clubs[CLICKS].edge_index[:, :6]), batch_size=6
    )
    batch = next(iter(links))
    src, dst = batch[CLICKS].edge_label_index
    assert torch.equal(batch["user"].n_id[src], clubs[CLICKS].edge_index[0, :6])
    assert torch.equal(batch["pin"].n_id[dst], clubs[CLICKS].edge_index[1, :6])


def test_workers_and_epochs_draw_differently_and_repeat_by_the_generator(clubs: HeteroData):
    clubs = clubs.subgraph({"user": torch.zeros(1, dtype=torch.int64)})  # one user, seeded again and again

    def epochs(seed: int) -> list[list[list[int]]]:
        loader = NodeLoader(
            clubs,
            sampler_of(clubs, num_neighbors=[4]),
            input_nodes=("user", torch.zeros(4, dtype=torch.int64)),
            batch_size=1,
            num_workers=2,
            generator=torch.Generator().manual_seed(seed),
        )
        return [[batch[REVERSED].e_id.tolist() for batch in loader] for _ in range(2)]

    first, second = epochs(1)
    assert clubs[REVERSED].edge_index.size(1) > 8
    assert len({str(drawn) for drawn in first + second}) > 4
    assert first != second, "an epoch must not repeat the one before"
    assert epochs(1) == [first, second]
    assert epochs(2) != [first, second]
