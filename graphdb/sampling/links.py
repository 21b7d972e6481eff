"""Seed links with their negatives, and the places of their ends in a sampled subgraph: PyG's conventions for a LinkLoader."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from multifacet.graphdb.sampling.subgraph import Seeds

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch_geometric.sampler import EdgeSamplerInput, HeteroSamplerOutput, NegativeSampling

    from multifacet.graphdb.reverse import EdgeType
    from multifacet.graphdb.sampling.link_negatives import LinkNegatives


class Links:
    """A batch of seed links: the positives, then their negatives.

    Binary negatives are pairs of a drawn src and a drawn dst; triplet negatives are `amount` drawn dst for each positive.
    Negative `j` shares the time, and in disjoint subgraphs the `batch`, of positive `j % P`.

    Args:
        inputs: The P positives.
        edge_type: Their edge type.
        wanted: What negatives to add, or None.
        negatives: Draws them.
    """

    def __init__(
        self, inputs: EdgeSamplerInput, edge_type: EdgeType, wanted: NegativeSampling | None, negatives: LinkNegatives
    ) -> None:
        self._inputs = inputs
        self._edge_type = edge_type
        self._is_triplet = wanted is not None and wanted.is_triplet()
        self.num_positives = inputs.row.numel()
        self.src, self.dst = inputs.row.long(), inputs.col.long()
        self.label = inputs.label
        if wanted is None:
            return
        times = None if inputs.time is None else inputs.time.long().numpy()
        src, dst = negatives.draw(edge_type, wanted, self.src.numpy(), times)
        if src is not None:
            self.src = torch.cat([self.src, torch.from_numpy(src)])
            label = torch.ones(self.num_positives) if self.label is None else self.label
            self.label = torch.cat([label, label.new_zeros(len(src), *label.shape[1:])])
        self.dst = torch.cat([self.dst, torch.from_numpy(dst)])

    def sample(self, sample: Callable[[Seeds], HeteroSamplerOutput], *, disjoint: bool) -> HeteroSamplerOutput:
        """Samples around the ends of all links, and adds the metadata that `LinkLoader` reads.

        Args:
            sample: Samples a subgraph around seeds.
            disjoint: Whether each end has a subgraph of its own; else an end that several links share is one seed.
        """
        src_type, _, dst_type = self._edge_type
        ends = {src_type: self.src, dst_type: self.dst}
        if src_type == dst_type:
            ends = {src_type: torch.cat([self.src, self.dst])}
        places = {name: torch.arange(len(nodes)) for name, nodes in ends.items()}
        times = None
        if disjoint:
            times = self._times()
        else:
            for name, nodes in ends.items():
                ends[name], places[name] = nodes.unique(return_inverse=True)
        output = sample(Seeds(nodes={name: nodes.numpy() for name, nodes in ends.items()}, times=times))
        if disjoint:
            self._merge_subgraphs(output)
        src_place = places[src_type][: len(self.src)]
        dst_place = places[dst_type][len(self.src) :] if src_type == dst_type else places[dst_type]
        output.metadata = self._metadata(src_place, dst_place)
        return output

    def _positive_of(self, end: Tensor) -> NDArray[np.int64]:
        """The positive to which each src or dst belongs."""
        positives: NDArray[np.int64] = np.arange(len(end)) % max(1, self.num_positives)
        return positives

    def _times(self) -> dict[str, NDArray[np.int64]] | None:
        if self._inputs.time is None:
            return None
        src_type, _, dst_type = self._edge_type
        time = self._inputs.time.long().numpy()
        src_time, dst_time = time[self._positive_of(self.src)], time[self._positive_of(self.dst)]
        if src_type == dst_type:
            return {src_type: np.concatenate([src_time, dst_time])}
        return {src_type: src_time, dst_type: dst_time}

    def _merge_subgraphs(self, output: HeteroSamplerOutput) -> None:
        """Renames each end's subgraph to the number of its positive."""
        positive = torch.from_numpy(np.concatenate([self._positive_of(self.src), self._positive_of(self.dst)]))
        assert output.batch is not None  # noqa: S101 - disjoint outputs have it
        output.batch = {name: positive[subgraphs] for name, subgraphs in output.batch.items()}

    def _metadata(self, src_place: Tensor, dst_place: Tensor) -> tuple[Any, ...]:
        inputs, time = self._inputs, self._inputs.time
        if self._is_triplet:
            negative_place = dst_place[self.num_positives :].view(-1, self.num_positives).t().squeeze(-1)
            return inputs.input_id, src_place, dst_place[: self.num_positives], negative_place, time
        if time is not None:
            time = time[torch.from_numpy(self._positive_of(self.src))]
        return inputs.input_id, torch.stack([src_place, dst_place]), self.label, time
