"""How well a model finds the missing end of edges that it has not seen, by protocols that keep their names apart.

filtered_*       among all entities of the right type, other known answers left out: what the literature reports
constrained_*    the same among the entities that training has seen at that end of the relation
sampledN_*       among N entities drawn for each edge: cheap at any scale, and never comparable with the others, nor
                 with another N
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from multifacet.inputs import kind, mapping_to, takes, whole, whole_numbers
from multifacet.kge.evaluation.ranks import EdgeRanks, SeenEnds, rank_edges
from multifacet.kge.evaluation.sampled_ranks import rank_edges_among_sample
from multifacet.kge.triples.triples import TripleSet
from multifacet.training import PairIndex

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from multifacet.kge.evaluation.predictor import LinkPredictor
    from multifacet.kge.triples.triples import EdgeList

__all__ = ["evaluate", "evaluate_constrained", "evaluate_sampled", "known_pairs", "ranking_metrics"]

_HITS: Final = (1, 3, 10)


@takes(edges=mapping_to("EdgeList", "heads", "tails"), known=mapping_to("PairIndex", "transposed"), hits=whole_numbers(1))
def evaluate(
    predictor: LinkPredictor,
    edges: Mapping[str, EdgeList],
    known: Mapping[str, PairIndex],
    *,
    hits: Sequence[int] = _HITS,
) -> dict[str, float]:
    """Rank each edge's head and tail among all entities of its type, known answers left out.

    Args:
        predictor: a trained model.
        edges: relation name -> edges to rank.
        known: relation name -> all known (head, tail) pairs: what is in training and what is ranked.
        hits: the k of hits@k.

    Returns:
        `filtered_mrr`, `filtered_mean_rank` and `filtered_hits@k` over both sides of all edges, and `filtered_mrr` of each
        part: `/<relation>`, `_of_side/<head or tail>`, `_of_type/<node type that was asked for>`. Empty if there are no edges.
    """
    return _summarise("filtered", predictor, rank_edges(predictor, edges, known), hits)


@takes(
    edges=mapping_to("EdgeList", "heads", "tails"),
    known=mapping_to("PairIndex", "transposed"),
    hits=whole_numbers(1),
    seen=mapping_to("SeenEnds", "heads", "tails"),
)
def evaluate_constrained(
    predictor: LinkPredictor,
    edges: Mapping[str, EdgeList],
    known: Mapping[str, PairIndex],
    seen: Mapping[str, SeenEnds],
    *,
    hits: Sequence[int] = _HITS,
) -> dict[str, float]:
    """Rank as `evaluate` does, but only among entities that were seen at that end of the relation.

    Where one node type holds everything, as in public knowledge graphs, this is what types would have done: no person is
    ranked as the capital of a country (Krompass et al., ISWC 2015).

    Args:
        predictor: a trained model.
        edges: relation name -> edges to rank.
        known: relation name -> all known (head, tail) pairs.
        seen: from `SeenEnds.of`, of the training triples. An edge's own end always is a candidate.
        hits: the k of hits@k.

    Returns:
        As `evaluate`, under names that begin with `constrained_`.
    """
    return _summarise("constrained", predictor, rank_edges(predictor, edges, known, constraint=seen), hits)


@takes(
    edges=mapping_to("EdgeList", "heads", "tails"),
    known=mapping_to("PairIndex", "transposed"),
    hits=whole_numbers(1),
    num_sampled=whole(),
    generator=kind(np.random.Generator),
)
def evaluate_sampled(
    predictor: LinkPredictor,
    edges: Mapping[str, EdgeList],
    known: Mapping[str, PairIndex],
    *,
    num_sampled: int,
    generator: np.random.Generator,
    hits: Sequence[int] = _HITS,
) -> dict[str, float]:
    """Rank each edge's head and tail among entities drawn for it.

    Args:
        predictor: a trained model.
        edges: relation name -> edges to rank.
        known: relation name -> all known (head, tail) pairs; what is drawn of them is left out.
        num_sampled: entities drawn an edge and side, uniformly with repeats from the right type.
        generator: source of the draws.
        hits: the k of hits@k.

    Returns:
        As `evaluate`, under names that begin with `sampledN_`, N being `num_sampled`.
    """
    ranks = rank_edges_among_sample(predictor, edges, known, num_sampled=num_sampled, generator=generator)
    return _summarise(f"sampled{num_sampled}", predictor, ranks, hits)


def known_pairs(*triples: TripleSet) -> dict[str, PairIndex]:
    """Index what some sets of one vocabulary know, for the filter of filtered ranks.

    Args:
        triples: all that is known, usually `*split`: training, validation and test.

    Returns:
        Relation name -> its distinct (head, tail) pairs.
    """
    if not triples:
        raise ValueError("there are no triples to know: give at least one set, usually *split")
    for part in triples:
        if not isinstance(part, TripleSet):
            raise TypeError(f"triples are a {type(part).__name__}; expected TripleSet, usually *split")
    first = triples[0]
    if any((part.ends, part.num_nodes) != (first.ends, first.num_nodes) for part in triples):
        raise ValueError(f"the sets count in other vocabularies: {list(triples)}")
    edges = [part.edges() for part in triples]
    return {
        name: PairIndex(
            np.concatenate([part[name].heads for part in edges]),
            np.concatenate([part[name].tails for part in edges]),
            num_left=first.num_nodes[src],
            num_right=first.num_nodes[dst],
        )
        for name, (src, dst) in first.ends.items()
    }


def ranking_metrics(protocol: str, ranks: NDArray[np.float64], hits: Iterable[int]) -> dict[str, float]:
    """Summarise ranks [n], which count from 1, under names that begin with the protocol's."""
    metrics = {f"{protocol}_mrr": float(np.mean(1.0 / ranks)), f"{protocol}_mean_rank": float(np.mean(ranks))}
    return metrics | {f"{protocol}_hits@{k}": float(np.mean(ranks <= k)) for k in hits}


def _summarise(
    protocol: str, predictor: LinkPredictor, ranks: Mapping[str, EdgeRanks], hits: Iterable[int]
) -> dict[str, float]:
    if not ranks:
        return {}
    everything = np.concatenate([of_relation.both() for of_relation in ranks.values()])
    metrics = ranking_metrics(protocol, everything, hits)
    parts: dict[str, list[NDArray[np.float64]]] = {}
    for name, of_relation in ranks.items():
        src, dst = predictor.ends_of(name)
        for part, of_part in (
            (f"/{name}", of_relation.both()),
            ("_of_side/head", of_relation.heads),
            ("_of_side/tail", of_relation.tails),
            (f"_of_type/{src}", of_relation.heads),
            (f"_of_type/{dst}", of_relation.tails),
        ):
            parts.setdefault(part, []).append(of_part)
    return metrics | {f"{protocol}_mrr{part}": float(np.mean(1.0 / np.concatenate(pieces))) for part, pieces in parts.items()}
