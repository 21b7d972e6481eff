"""Negatives of seed links: nodes of the right type that existed at the link's time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import torch

from multifacet.graphdb.counter import derive_key
from multifacet.graphdb.sampling.known_links import KnownLinks
from multifacet.graphdb.sampling.negatives import NegativeSampler
from multifacet.graphdb.sql import GraphError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from torch_geometric.sampler import NegativeSampling

    from multifacet.graphdb.reverse import EdgeType
    from multifacet.graphdb.sampling.config import SamplerConfig
    from multifacet.graphdb.sampling.stream import Stream
    from multifacet.graphdb.sampling.topology import Topology

End = Literal["src", "dst"]

_MAX_ROUNDS: Final = 32


class LinkNegatives:
    """Draws the negatives of a loader's seed links.

    A node is drawn by `NegativeSampling`'s weights of its end where it has them, else in proportion to
    degree^`negative_alpha` in the window. Where links have times, only nodes are drawn that had been seen by then. With
    `exclude_positives`, a pair that is an edge of the relation (by the link's time, where it has one) is drawn again.

    Args:
        topology: The graph.
        config: `negative_alpha` and `exclude_positives`.
        stream: Where keys come from.
    """

    def __init__(self, topology: Topology, config: SamplerConfig, stream: Stream) -> None:
        self._topology = topology
        self._config = config
        self._stream = stream
        self._by_degree: dict[tuple[EdgeType, End], NegativeSampler] = {}
        self._by_weight: dict[tuple[EdgeType, End], tuple[Tensor, NegativeSampler]] = {}
        self._known: dict[EdgeType, KnownLinks] = {}

    def draw(
        self,
        edge_type: EdgeType,
        wanted: NegativeSampling,
        positive_src: NDArray[np.int64],
        times: NDArray[np.int64] | None,
    ) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
        """The src and dst of negatives; triplet negatives have no src of their own.

        Negative `j` belongs to positive `j % P`.

        Args:
            edge_type: Edge type of the links.
            wanted: What PyG's loader asks for.
            positive_src: int64 [P], src of the positives.
            times: int64 [P], or None where the links have no times.

        Raises:
            GraphError: Weights that do not fit, no node that existed at a link's time, or no pair that is not an edge.
        """
        positive = np.arange(math.ceil(len(positive_src) * wanted.amount)) % max(1, len(positive_src))
        negative_times = None if times is None else times[positive]
        is_binary = wanted.is_binary()
        src_sampler = self._sampler(edge_type, "src", wanted) if is_binary else None
        dst_sampler = self._sampler(edge_type, "dst", wanted)
        src = positive_src[positive]
        if src_sampler is not None:
            src = _drawn(src_sampler, self._stream.next_key(), negative_times, len(positive))
        key = self._stream.next_key()
        dst = _drawn(dst_sampler, key, negative_times, len(positive))
        if self._config.exclude_positives:
            self._redraw(edge_type, src_sampler, dst_sampler, src, dst, negative_times, key)
        return (src if is_binary else None), dst

    def _redraw(
        self,
        edge_type: EdgeType,
        src_sampler: NegativeSampler | None,
        dst_sampler: NegativeSampler,
        src: NDArray[np.int64],
        dst: NDArray[np.int64],
        times: NDArray[np.int64] | None,
        key: int,
    ) -> None:
        """Draws again, in place, those pairs that are edges."""
        if edge_type not in self._known:
            self._known[edge_type] = KnownLinks(self._topology.relation(edge_type))
        known = self._known[edge_type]
        bad = np.flatnonzero(known.holds(src, dst, times))
        for number in range(_MAX_ROUNDS):
            if not len(bad):
                return
            bad_times = None if times is None else times[bad]
            if src_sampler is not None:
                src[bad] = _drawn(src_sampler, int(derive_key(key, "src", number)), bad_times, len(bad))
            dst[bad] = _drawn(dst_sampler, int(derive_key(key, "dst", number)), bad_times, len(bad))
            bad = bad[known.holds(src[bad], dst[bad], bad_times)]
        # So few pairs are left where so many draws fail that they can be listed.
        generator = np.random.default_rng(int(derive_key(key, "rest")))
        for position in bad:
            time = None if times is None else times[position : position + 1]
            sources = src[position : position + 1]
            if src_sampler is not None:
                sources = generator.permutation(np.flatnonzero(src_sampler.weights(time)))
            for source in sources:
                weights = dst_sampler.weights(time)
                everyone = np.arange(len(weights))
                at_time = None if time is None else np.broadcast_to(time, len(weights))
                weights[known.holds(np.full(len(weights), source), everyone, at_time)] = 0.0
                if weights.any():
                    src[position] = source
                    dst[position] = generator.choice(everyone, p=weights / weights.sum())
                    break
            else:
                msg = (
                    f"no negative is left for a link {edge_type} of {edge_type[0]} {int(src[position])}: it is linked to every "
                    f"{edge_type[2]} that can be drawn; leave out exclude_positives, or such links"
                )
                raise GraphError(msg)

    def _sampler(self, edge_type: EdgeType, end: End, wanted: NegativeSampling) -> NegativeSampler:
        node_type = edge_type[0] if end == "src" else edge_type[2]
        num_nodes = self._topology.num_nodes[node_type]
        first_seen = self._topology.first_seen(node_type) if self._config.temporal is not None else None
        weight: Tensor | None = getattr(wanted, f"{end}_weight")
        if weight is not None:
            kept = self._by_weight.get((edge_type, end))
            if kept is None or kept[0] is not weight:
                if weight.numel() != num_nodes:
                    msg = f"{end}_weight has {weight.numel()} weights, expected one for each of {num_nodes} nodes"
                    raise GraphError(msg)
                kept = self._by_weight[edge_type, end] = weight, NegativeSampler(weight, alpha=1.0, first_seen=first_seen)
            return kept[1]
        if (edge_type, end) not in self._by_degree:
            self._by_degree[edge_type, end] = NegativeSampler(
                self._degrees(edge_type, end, num_nodes), alpha=self._config.negative_alpha, first_seen=first_seen
            )
        return self._by_degree[edge_type, end]

    def _degrees(self, edge_type: EdgeType, end: End, num_nodes: int) -> Tensor:
        if self._config.negative_alpha == 0:
            return torch.ones(num_nodes)
        adjacency = self._topology.relation(edge_type)
        if end == "dst":
            return torch.from_numpy(adjacency.degrees)
        return torch.from_numpy(np.bincount(adjacency.row, minlength=num_nodes))


def _drawn(sampler: NegativeSampler, key: int, times: NDArray[np.int64] | None, number: int) -> NDArray[np.int64]:
    drawn: NDArray[np.int64] = sampler.draw(number, key, times=times).numpy().astype(np.int64)
    return drawn
