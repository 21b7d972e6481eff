"""The gradients of a batch, chunk by chunk, in one kernel: from rows of the table to gradients of those rows and of relations.

A chunk of one side goes through all of its stages while its vectors and scores lie in its core's cache:

    rows -> gather -> (project) -> translate -> (drop) -> scores -> loss, in place
         -> gradients of queries and candidates -> back to rows

Nothing of it needs the interpreter, so that threads that run the kernel never wait for each other; they take chunks in turn.
Each chunk writes to places of its own: nothing depends on which thread did what.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numba
import numpy as np

from multifacet.kge.projections import ProjectionKind, project, project_backward
from multifacet.kge.translations import translate, translate_backward
from multifacet.tables.counters import random_bits, random_stream
from multifacet.tables.gather import gather_rows
from multifacet.tables.halves import NumberFormat
from multifacet.tables.rowloss import differentiate_rows
from multifacet.tables.similarity import Similarity, differentiate, score
from multifacet.tables.threads import take_turn

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Formula", "Learned", "Side", "Workspace", "differentiate_chunks", "drop"]


class Formula(NamedTuple):
    """What is computed, as numbers: see the enumerations of the same names."""

    projection: int
    num_projection_parameters: int
    translation: int
    similarity: int
    loss: int
    margin: np.float32
    temperature: np.float32
    l2: np.float32
    n3: np.float32
    has_complex_entities: bool
    dropout: np.float32


class Learned(NamedTuple):
    """What is read.

    Attributes:
        table: entities' rows as raw bits, uint16 [num_rows, D or 2 D]: the kernel is compiled once for all number formats.
        number_format: theirs.
        parameters: relations' parameters [K, P].
        translations: the table of translations [K, W].
    """

    table: NDArray[np.uint16]
    number_format: int
    parameters: NDArray[np.float32]
    translations: NDArray[np.float32]


class Side(NamedTuple):
    """One side of a batch: C chunks of B edges and N candidates.

    Attributes:
        rows: int32 [C, B + N]: each chunk's known ends, then its candidates.
        keys: rows of the relations' parameters, int32 [C, B]; of one relation a chunk where entities are projected.
        bias: float32 [C, N], see `tables.chunks.ChunkCandidates`, as for the next three.
        targets: int32 [C, B].
        hits: int32; empty if nothing is masked.
        hits_indptr: int64 [C * B + 1].
        inverse: whether known ends are tails, and translated back.
        seed: of what is dropped.
        gradients: written, of each row's place, float32 [C, B + N, D].
        relation_gradients: written, float32 [C, B, P], or [C, 1, P] where entities are projected.
        losses: written, each chunk's sum of losses in nats, unweighted, float64 [C].
    """

    rows: NDArray[np.int32]
    keys: NDArray[np.int32]
    bias: NDArray[np.float32]
    targets: NDArray[np.int32]
    hits: NDArray[np.int32]
    hits_indptr: NDArray[np.int64]
    inverse: bool
    seed: int
    gradients: NDArray[np.float32]
    relation_gradients: NDArray[np.float32]
    losses: NDArray[np.float64]


class Workspace(NamedTuple):
    """A thread's memory for one chunk; `projected` and what follows it are empty where entities stay as they are.

    Attributes:
        vectors: float32 [B + N, D].
        queries: float32 [B, D].
        queries_gradient: float32 [B, D].
        scores: float32 [B * N].
        scores_kept: float32 [B * N], if the similarity's gradient needs them, else empty.
        projected: float32 [B + N, D].
        projected_gradient: float32 [B + N, D].
        translation_gradient: float32 [B, D].
        inner: float32 [B + N, k].
        inner_gradient: float32 [B + N, k].
    """

    vectors: NDArray[np.float32]
    queries: NDArray[np.float32]
    queries_gradient: NDArray[np.float32]
    scores: NDArray[np.float32]
    scores_kept: NDArray[np.float32]
    projected: NDArray[np.float32]
    projected_gradient: NDArray[np.float32]
    translation_gradient: NDArray[np.float32]
    inner: NDArray[np.float32]
    inner_gradient: NDArray[np.float32]

    @classmethod
    def of(cls, formula: Formula, *, size: int, num_candidates: int, dim: int, rank: int) -> Workspace:
        """Allocate for chunks of `size` edges and at most `num_candidates` candidates."""
        projects = formula.projection != ProjectionKind.NONE
        num_rows = size + num_candidates if projects else 0

        def empty(*shape: int) -> NDArray[np.float32]:
            return np.empty(shape, dtype=np.float32)

        return cls(
            vectors=empty(size + num_candidates, dim),
            queries=empty(size, dim),
            queries_gradient=empty(size, dim),
            scores=empty(size * num_candidates),
            scores_kept=empty(size * num_candidates if formula.similarity == Similarity.EUCLIDEAN else 0),
            projected=empty(num_rows, dim),
            projected_gradient=empty(num_rows, dim),
            translation_gradient=empty(size if projects else 0, dim),
            inner=empty(num_rows, rank),
            inner_gradient=empty(num_rows, rank),
        )


@numba.njit(nogil=True, cache=True)
def differentiate_chunks(formula: Any, learned: Any, first: Any, second: Any, weights: Any, workspace: Any, turns: Any) -> None:
    """Write the gradients of a batch's chunks, or of a thread's share of them.

    Args:
        formula: what is computed.
        learned: what is read.
        first: the first `Side`, written to.
        second: the other.
        weights: each edge's share of the batch's loss, float32 [C, B]; 0 for padding.
        workspace: the thread's.
        turns: int64 [1], 0 at first: threads that are given the same share the chunks out among themselves.
    """
    while True:
        turn = take_turn(turns)
        chunk = turn // 2
        if chunk >= len(weights):
            return
        side = first if turn % 2 == 0 else second
        side.losses[chunk] = _differentiate_chunk(formula, learned, side, chunk, weights[chunk], workspace)


@numba.njit(nogil=True, cache=True, inline="always")
def _differentiate_chunk(formula: Any, learned: Any, side: Any, chunk: int, weights: Any, workspace: Any) -> float:
    size, rows, keys = len(weights), side.rows[chunk], side.keys[chunk]
    gradients, relation_gradients = side.gradients[chunk], side.relation_gradients[chunk]
    vectors = workspace.vectors[: len(rows)]
    _gather(learned, rows, vectors)

    queries, queries_gradient = workspace.queries, workspace.queries_gradient
    num_scores = size * (len(rows) - size)
    scores = workspace.scores[:num_scores].reshape(size, len(rows) - size)
    projects = formula.projection != ProjectionKind.NONE
    entities, entities_gradient = vectors, gradients
    translations = learned.translations
    relation = learned.parameters[keys[0]]
    inner = workspace.inner[: len(rows)]
    if projects:
        entities, entities_gradient = workspace.projected[: len(rows)], workspace.projected_gradient[: len(rows)]
        project(formula.projection, vectors, relation, inner, entities)
        translations = relation[formula.num_projection_parameters :].reshape(1, -1)
        keys = np.zeros(size, dtype=np.int32)
    known, candidates = entities[:size], entities[size:]

    translate(formula.translation, known, keys, translations, side.inverse, queries)
    if formula.dropout > 0:
        drop(queries, formula.dropout, side.seed, chunk * size)
    score(formula.similarity, queries, candidates, scores)
    num_kept = num_scores if formula.similarity == Similarity.EUCLIDEAN else 0
    kept = workspace.scores_kept[:num_kept].reshape(-1, len(rows) - size)
    _copy(scores, kept)
    if len(side.hits):
        _mask(scores, side.hits_indptr, side.hits, chunk * size)
    loss = differentiate_rows(
        formula.loss, formula.margin, formula.temperature, scores, side.bias[chunk], side.targets[chunk], weights
    )

    differentiate(formula.similarity, scores, queries, candidates, kept, queries_gradient, entities_gradient[size:])
    if formula.dropout > 0:
        drop(queries_gradient, formula.dropout, side.seed, chunk * size)
    to_relation = workspace.translation_gradient if projects else relation_gradients
    translate_backward(
        formula.translation,
        queries_gradient,
        known,
        keys,
        translations,
        side.inverse,
        entities_gradient[:size],
        to_relation,
    )
    if projects:
        project_backward(
            formula.projection,
            entities_gradient,
            vectors,
            relation,
            inner,
            workspace.inner_gradient[: len(rows)],
            gradients,
            relation_gradients[0],
        )
        _sum_edges(to_relation, relation_gradients[0, formula.num_projection_parameters :])
    if formula.l2 > 0 or formula.n3 > 0:
        _regularise(gradients, vectors, weights, formula.l2, formula.n3, formula.has_complex_entities)
    return loss


@numba.njit(nogil=True, cache=True)
def _gather(learned: Any, rows: Any, vectors: Any) -> None:
    if learned.number_format == NumberFormat.FP32:
        gather_rows(learned.table.view(np.float32), rows, vectors)
    elif learned.number_format == NumberFormat.FP16:
        gather_rows(learned.table, rows, vectors)
    else:
        gather_rows(learned.table.view(np.int16), rows, vectors)


@numba.njit(nogil=True, cache=True)
def drop(queries: Any, chance: Any, seed: Any, first_query: int) -> None:
    """Drop numbers of queries [B, D] in place, and scale the others so that their mean stays.

    What is dropped is a function of the seed, the query's number and the column: a gradient meets the same zeros.
    """
    least = np.uint32(np.float64(chance) * 4294967296.0)
    scale = np.float32(1.0) / (np.float32(1.0) - chance)
    for query in range(len(queries)):
        row, stream = queries[query], random_stream(seed, first_query + query)
        for column in range(len(row)):
            row[column] *= scale if random_bits(stream, column) >= least else np.float32(0.0)


@numba.njit(nogil=True, cache=True)
def _copy(source: Any, target: Any) -> None:
    for row in range(len(target)):
        for column in range(target.shape[1]):
            target[row, column] = source[row, column]


@numba.njit(nogil=True, cache=True)
def _mask(scores: Any, indptr: Any, hits: Any, first_query: int) -> None:
    for query in range(len(scores)):
        for place in range(indptr[first_query + query], indptr[first_query + query + 1]):
            scores[query, hits[place]] = -np.inf


@numba.njit(nogil=True, cache=True)
def _sum_edges(gradients: Any, total: Any) -> None:
    for column in range(len(total)):
        total[column] = np.float32(0.0)
    for edge in range(len(gradients)):
        gradient = gradients[edge]
        for column in range(len(total)):
            total[column] += gradient[column]


@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def _regularise(gradients: Any, vectors: Any, weights: Any, l2: Any, n3: Any, is_complex: bool) -> None:
    """Add the gradients of the known ends' squared lengths and cubed moduli."""
    two, three = np.float32(2.0), np.float32(3.0)
    half = vectors.shape[1] // 2
    for edge in range(len(weights)):
        vector, gradient = vectors[edge], gradients[edge]
        squares_share, cubes_share = two * l2 * weights[edge], three * n3 * weights[edge]
        for column in range(len(vector)):
            gradient[column] += squares_share * vector[column]
        if n3 == 0:
            continue
        if is_complex:
            for column in range(half):
                real, imaginary = vector[column], vector[half + column]
                factor = cubes_share * np.sqrt(real * real + imaginary * imaginary)
                gradient[column] += factor * real
                gradient[half + column] += factor * imaginary
        else:
            for column in range(len(vector)):
                gradient[column] += cubes_share * abs(vector[column]) * vector[column]
