"""Graphs whose right samples are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch_geometric.typing

from multifacet.graphdb.sampling import Adjacency, Topology

needs_pyg_lib = pytest.mark.skipif(
    not torch_geometric.typing.WITH_PYG_LIB, reason="pyg-lib is not installed (make test-pyg-lib runs these)"
)


@pytest.fixture(params=["numba", pytest.param("pyg_lib", marks=needs_pyg_lib)])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


Edges = Sequence[tuple[int, int]]


@pytest.fixture
def star() -> Callable[..., Adjacency]:
    """One pin, with an edge of each user; `times` and `weights` one for each."""

    def star(num_users: int, *, times: Sequence[int] | None = None, weights: Sequence[float] | None = None) -> Adjacency:
        return Adjacency.from_edges(
            ("user", "clicks", "pin"),
            np.arange(num_users, dtype=np.int32),
            np.zeros(num_users, np.int32),
            num_src=num_users,
            num_dst=1,
            time=None if times is None else np.array(times, np.int64),
            weight=None if weights is None else np.array(weights, np.float32),
        )

    return star


@pytest.fixture
def random_topology() -> Topology:
    """Users, pins, topics without an edge, and advertisers; two timed relations both ways, and an untimed one."""
    generator = np.random.default_rng(3)
    num_nodes = {"user": 60, "pin": 40, "topic": 5, "advertiser": 7}
    adjacencies = []
    for name, num_edges in (("clicks", 500), ("buys", 150)):
        src = generator.integers(0, 50, num_edges, dtype=np.int32)  # users 50 to 59 have no edge
        dst = (40 * generator.random(num_edges) ** 2).astype(np.int32)
        time = generator.integers(0, 1000, num_edges)
        for edge_type, ends in ((("user", name, "pin"), (src, dst)), (("pin", f"rev_{name}", "user"), (dst, src))):
            adjacencies.append(
                Adjacency.from_edges(
                    edge_type, *ends, num_src=num_nodes[edge_type[0]], num_dst=num_nodes[edge_type[2]], time=time
                )
            )
    pins = np.arange(40, dtype=np.int32)
    makers = generator.integers(0, 7, 40, dtype=np.int32)
    adjacencies.append(Adjacency.from_edges(("pin", "made_by", "advertiser"), pins, makers, num_src=40, num_dst=7))
    adjacencies.append(Adjacency.from_edges(("advertiser", "makes", "pin"), makers, pins, num_src=7, num_dst=40))
    adjacencies.append(
        Adjacency.from_edges(("topic", "about", "topic"), np.empty(0, np.int32), np.empty(0, np.int32), num_src=5, num_dst=5)
    )
    return Topology(num_nodes, adjacencies)


@pytest.fixture
def threads() -> Callable[[int], None]:
    """Sets the number of threads; the test's end restores it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
