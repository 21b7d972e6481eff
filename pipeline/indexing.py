"""What an index of a snapshot's table is made of, and how it is asked: by what each facet scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from multifacet import contrastive, kge
from multifacet.tables import IndexSource, VectorIndex
from multifacet.tables.ids import find_row

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from multifacet.tables import IndexConfig, Recall, Similarity, Snapshot

__all__ = ["build_index", "find_predictions", "predict_items", "predict_links"]

Side = Literal["head", "tail"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Asked:
    """Vectors as they are compared, what by, and queries such as will be asked."""

    vectors: Tensor
    queries: Tensor
    similarity: Similarity
    relation: str | None = None
    side: Side | None = None


def build_index(
    path: Path,
    snapshot: Snapshot,
    node_type: str,
    config: IndexConfig,
    *,
    similarity: Similarity | None = None,
    relation: str | None = None,
    side: Side = "tail",
    replace: bool = False,
) -> tuple[VectorIndex, Recall]:
    """Index one table of a snapshot by its facet's own score.

    Args:
        path: directory to write.
        snapshot: the snapshot.
        node_type: the table.
        config: how it is built.
        similarity: what to compare by; None for the facet's own.
        relation: of a model that projects entities (TransR, TransRA): the relation whose answers are searched for.
        side: the side of it that the table's rows answer for.
        replace: whether an index that is there is replaced.

    Returns:
        The index, and its recall on queries of the facet: other ends of relations, translated, or the other tower's rows.

    Raises:
        ValueError: if there is no such table, or the facet's score is not known or needs a relation.
        ArtifactError: if something is at `path`.
    """
    if node_type not in snapshot.node_types:
        raise ValueError(f"{snapshot.path} has no table {node_type!r}; it has {', '.join(snapshot.node_types)}")
    generator = torch.Generator().manual_seed(config.seed)
    if similarity is not None:
        vectors = snapshot.vectors(node_type)
        asked = _Asked(vectors=vectors, queries=vectors[_draw(vectors, config, generator)], similarity=similarity)
    elif snapshot.facet == "kge" and snapshot.parameters():
        asked = _ask_relations(snapshot, node_type, config, generator, relation, side)
    elif "query_type" in snapshot.config:
        asked = _ask_other_tower(snapshot, node_type, config, generator)
    else:
        raise ValueError(f"{snapshot.path} is of facet {snapshot.facet!r}, whose score is not known here: give --similarity")
    source = IndexSource(
        snapshot=snapshot.fingerprint,
        facet=snapshot.facet,
        node_type=node_type,
        relation=asked.relation,
        side=asked.side,
    )
    return VectorIndex.write(
        path,
        ids=snapshot.ids(node_type),
        vectors=asked.vectors,
        similarity=asked.similarity,
        queries=asked.queries,
        source=source,
        config=config,
        trained=snapshot.trained(node_type),
        replace=replace,
    )


def find_predictions(
    index: VectorIndex,
    query: Tensor,
    k: int,
    *,
    node_type: str,
    relation: str | None = None,
    side: Side = "tail",
) -> list[dict[str, Any]]:
    """Find the best rows of a query by an index, as ids and scores.

    Args:
        index: of the snapshot.
        query: float [1, D], as its facet compares it.
        k: how many.
        node_type: the table that is searched.
        relation: the relation that is asked, if one is.
        side: the side of it that is asked for.

    Raises:
        ValueError: if the index is of another table, or of another relation's space.
    """
    source = index.source
    if source.node_type != node_type:
        raise ValueError(f"the index is of {source.node_type!r}; {node_type!r} is searched. Build one of that table")
    if source.relation is not None and (source.relation, source.side) != (relation, side):
        raise ValueError(
            f"the index is of the space in which {source.relation!r} finds its {source.side}s; ask it by `multifacet snapshot "
            f"predict --relation {source.relation} --side {source.side} --index`, or build one for what you ask"
        )
    scores, positions = index.search(query, k)
    found = zip(positions[0].tolist(), scores[0].tolist(), strict=True)
    return [{"id": index.ids[position].as_py(), "score": score} for position, score in found if position >= 0]


def predict_links(
    path: Path, snapshot: Snapshot, predictor: kge.LinkPredictor, given: Any, relation: str, side: Side, k: int
) -> list[kge.Prediction]:
    """Find the likeliest ends of a relation by an index at a path, as `LinkPredictor.top_tails` does by all rows.

    Raises:
        KeyError: if there is no such relation or id.
        ValueError: if the index is of another table or space, or compares otherwise than the model scores.
        ArtifactError: if the index is of another snapshot.
    """
    ends = predictor.ends_of(relation)
    asked, known = (ends[1], ends[0]) if side == "tail" else ends
    row = find_row(predictor.ids[known], given, known)
    query = predictor.queries(relation, torch.tensor([row]), side)
    index = _open(path, snapshot, predictor.similarity)
    found = find_predictions(index, query, k, node_type=asked, relation=relation, side=side)
    return [kge.Prediction(**each) for each in found]


def predict_items(
    path: Path, snapshot: Snapshot, predictor: contrastive.ItemPredictor, given: Any, item_type: str | None, k: int
) -> list[contrastive.Prediction]:
    """Find the best items of a query by an index at a path, as `ItemPredictor.top_items` does by all rows.

    Raises:
        KeyError: if there is no such query.
        ValueError: if the query has not been trained, or the index is of another table or compares otherwise.
        ArtifactError: if the index is of another snapshot.
    """
    query = predictor.queries[find_row(predictor.query_ids, given, "query")].float()
    if not bool(query.any()):
        raise ValueError(f"the query {given!r} has no edge that was trained on: all items are alike to it")
    index = _open(path, snapshot, "dot")
    found = find_predictions(index, query[None], k, node_type=item_type or snapshot.config["item_type"])
    return [contrastive.Prediction(**each) for each in found]


def _open(path: Path, snapshot: Snapshot, similarity: Similarity) -> VectorIndex:
    index = VectorIndex.load(path, snapshot=snapshot, verify=False)
    if index.similarity != similarity:
        raise ValueError(
            f"{path} compares by {index.similarity}; the facet scores by {similarity}: build it without --similarity"
        )
    return index


def _ask_relations(
    snapshot: Snapshot, node_type: str, config: IndexConfig, generator: torch.Generator, relation: str | None, side: Side
) -> _Asked:
    predictor = kge.LinkPredictor.from_snapshot(snapshot)
    sides: list[tuple[str, Side]] = [
        (name, asked)
        for name, ends in sorted(predictor.ends.items())
        for asked in ("head", "tail")
        if ends[asked == "tail"] == node_type
    ]
    if relation is not None:
        sides = [pair for pair in sides if pair == (relation, side)]
    if not sides:
        raise ValueError(
            f"no relation{f' {relation!r} with its {side}s' if relation else ''} ends in {node_type!r}; {snapshot.path} has "
            f"{', '.join(f'{name} ({src} to {dst})' for name, (src, dst) in predictor.ends.items())}"
        )
    if predictor.projects_entities and relation is None:
        raise ValueError(
            f"{predictor.model} compares in a space of each relation's own: give --relation, one of "
            f"{', '.join(dict.fromkeys(name for name, _ in sides))}"
        )
    queries = []
    for name, asked in sides:
        known = predictor.vectors[predictor.ends[name][asked == "head"]]
        rows = _draw(known, config, generator)[: -(-config.num_queries // len(sides))]
        queries.append(predictor.queries(name, rows, asked))
    projected = predictor.projects_entities
    mixed = torch.cat(queries)
    return _Asked(
        vectors=predictor.candidates(sides[0][0], sides[0][1]) if projected else snapshot.vectors(node_type),
        queries=mixed[torch.randperm(len(mixed), generator=generator)],
        similarity=predictor.similarity,
        relation=relation if projected else None,
        side=side if projected else None,
    )


def _ask_other_tower(snapshot: Snapshot, node_type: str, config: IndexConfig, generator: torch.Generator) -> _Asked:
    query_type = snapshot.config["query_type"]
    if node_type == query_type:
        query_type = snapshot.config["item_type"]
    others = snapshot.vectors(query_type)
    return _Asked(
        vectors=snapshot.vectors(node_type), queries=others[_draw(others, config, generator)].float(), similarity="dot"
    )


def _draw(vectors: Tensor, config: IndexConfig, generator: torch.Generator) -> Tensor:
    """Draw rows that may be asked about: a row of zeros has never been trained, and finds all rows alike."""
    rows = torch.randperm(len(vectors), generator=generator)[: 2 * config.num_queries]
    return rows[vectors[rows].any(1)][: config.num_queries]
