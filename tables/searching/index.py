"""An approximate index of one table, as an artefact bound to the snapshot that it was made of."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from multifacet.artifacts import Artifact, ArtifactError, ArtifactWriter
from multifacet.inputs import PATH, expect_type, one_of, takes, whole
from multifacet.tables.searching.config import IndexConfig
from multifacet.tables.searching.recall import Recall, find_exact, judge, measure_recall
from multifacet.tables.searching.rows_file import FILE_NAME, map_rows, write_rows
from multifacet.tables.searching.similarity import SIMILARITIES, Similarity, compare_each
from multifacet.tables.searching.structures import (
    FILE_NAMES,
    Kind,
    Structure,
    build_structure,
    choose_kind,
    effort_of,
    load_structure,
    to_query_points,
)

if TYPE_CHECKING:
    import os
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

    from multifacet.tables.snapshot import Snapshot

__all__ = ["IndexSource", "VectorIndex"]

logger = logging.getLogger(__name__)

KIND: Final = "index"
_MAX_STEPS: Final = 26
_MARGIN: Final = 0.2  # of the misses that are allowed: queries that choose are not those that come
_MAX_FETCH: Final = 256
_SEARCH_ELEMENTS: Final = 1 << 20  # of candidates' vectors scored at once: 4 MiB, which caches hold


class IndexSource(BaseModel):
    """What an index was made of."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    snapshot: str = Field(description="the snapshot's fingerprint")
    facet: str = Field(description="its facet")
    node_type: str = Field(description="the table")
    relation: str | None = Field(
        default=None, description="relation whose space the vectors are in, where the model projects entities"
    )
    side: Literal["head", "tail"] | None = Field(default=None, description="side of that relation that the rows answer for")


class _Contents(BaseModel):
    """The manifest's own fields."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    source: IndexSource
    rows: int = Field(ge=1)
    dim: int = Field(ge=1)
    similarity: Similarity
    backend: Literal["faiss", "usearch"]
    structure: Kind
    effort: int = Field(ge=1)
    fetch: int = Field(ge=1)
    recall: float = Field(ge=0, le=1)
    k: int = Field(ge=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Aim:
    effort: int
    fetch: int


class VectorIndex:
    """Nearest rows of a table, found among candidates that an approximate structure gives and scored as the facet scores.

    On disk it is an `Artifact` of kind "index"::

        manifest.json       source, similarity, structure, effort, recall, config, and the files' sha256
        index.faiss         or index.usearch: the structure
        rows.arrow          columns id, row (of the snapshot's table), vector; LanceDB takes it as it is, Qdrant by row

    Example:
        >>> import tempfile, pyarrow as pa
        >>> table = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
        >>> source = IndexSource(snapshot="0" * 64, facet="kge", node_type="pin")
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     index, recall = VectorIndex.write(
        ...         f"{parent}/pins", ids=pa.array(range(500)), vectors=table, similarity="l2", queries=table, source=source
        ...     )
        >>> recall.recall > 0.95
        True
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        try:
            contents = _Contents.model_validate(artifact.manifest)
        except ValidationError as error:
            raise ArtifactError(f"{artifact.path} is not an index that this version reads: {error}") from error
        self.source: IndexSource = contents.source
        self.similarity: Similarity = contents.similarity
        self.dim: int = contents.dim
        self._told = contents
        self._ids, self._rows, self._vectors = map_rows(artifact.file(FILE_NAME), contents.rows, contents.dim)
        width = contents.dim + (contents.similarity == "dot" and contents.structure == "hnsw")
        try:
            self._structure = load_structure(artifact.file(FILE_NAMES[contents.backend]), contents.backend, width)
        except OSError as error:
            raise ArtifactError(f"{error}. Build the index again.") from error
        artifact.check_unreplaced()

    def __repr__(self) -> str:
        told = self._told
        return (
            f"{type(self).__name__}({self.source.node_type}=[{told.rows}, {told.dim}], similarity={told.similarity}, "
            f"structure={told.structure}, recall@{told.k}={told.recall:.3f})"
        )

    def __len__(self) -> int:
        return self._told.rows

    @property
    def fingerprint(self) -> str:
        """The sha256 (hex) of the manifest, which covers every file."""
        return self._artifact.fingerprint

    @property
    def manifest(self) -> dict[str, Any]:
        """All fields of the manifest."""
        return self._artifact.manifest

    @property
    def ids(self) -> pa.Array:
        """External ids [N]; position i is that of the rows that `search` gives."""
        return self._ids

    @classmethod
    @takes(path=PATH, similarity=one_of(*SIMILARITIES))
    def write(
        cls,
        path: str | os.PathLike[str],
        *,
        ids: pa.Array,
        vectors: Tensor,
        similarity: Similarity,
        queries: Tensor,
        source: IndexSource,
        config: IndexConfig | None = None,
        trained: Tensor | None = None,
        replace: bool = False,
    ) -> tuple[VectorIndex, Recall]:
        """Builds an index, chooses the least effort that reaches the recall asked for, and writes it.

        Args:
            path: Directory to write; it must not exist, unless `replace`.
            ids: External ids [N].
            vectors: float [N, D], as they are compared.
            similarity: What the facet scores by.
            queries: float [Q, D], such as will be asked. Half choose the effort, the other half measure.
            source: What the vectors were made of.
            config: How it is built.
            trained: Rows that a gradient has reached, bool [N]; the others are left out. None for all.
            replace: Whether an index that is there is replaced.

        Returns:
            The index, opened, and its recall on queries that did not choose its effort.

        Raises:
            ImportError: The library is not installed.
            ValueError: There are no rows or fewer than two queries, or the sizes do not fit.
            ArtifactError: Something is at `path`.
        """
        config = config or IndexConfig()
        expect_type("vectors", vectors, Tensor)
        expect_type("queries", queries, Tensor)
        if queries.ndim != 2 or vectors.ndim != 2 or queries.shape[1] != vectors.shape[1] or len(ids) != len(vectors):
            raise ValueError(
                f"queries {list(queries.shape)}, vectors {list(vectors.shape)} and {len(ids)} ids do not fit: expected [Q, D], "
                "[N, D] and N"
            )
        rows = np.arange(len(vectors)) if trained is None else np.flatnonzero(trained.numpy())
        if not len(rows) or len(queries) < 2:
            raise ValueError(f"there are {len(rows)} trained rows and {len(queries)} queries; expected at least 1 and 2")
        kept = vectors if trained is None else vectors[torch.from_numpy(rows)]
        table = np.ascontiguousarray(kept.float().numpy())
        queries = queries.float()
        kind = choose_kind(len(table), config)
        structure = build_structure(table, similarity, kind, config)
        search = _Search(structure, table, similarity, kind)
        half = len(queries) // 2
        aim = _choose_aim(search, kind, queries[:half], config)
        measured = measure_recall(
            lambda asked, k: search.run(asked, k, aim), queries[half:], torch.from_numpy(table), config.k, similarity
        )
        told = {"source": source.model_dump(), "similarity": similarity}
        with ArtifactWriter(path, kind=KIND, replace=replace) as writer:
            structure.save(writer.directory / FILE_NAMES[config.backend])
            write_rows(writer.directory / FILE_NAME, ids.take(rows) if trained is not None else ids, rows, table, told)
            writer.manifest |= told | {
                "parents": [source.snapshot],
                "rows": len(table),
                "dim": table.shape[1],
                "backend": config.backend,
                "structure": kind,
                "effort": aim.effort,
                "fetch": aim.fetch,
                "recall": measured.recall,
                "k": measured.k,
                "config": config.model_dump(mode="json"),
            }
        return cls(Artifact.open(path, kind=KIND, verify=False)), measured

    @classmethod
    def load(cls, path: str | Path, *, snapshot: Snapshot | None = None, verify: bool = True) -> VectorIndex:
        """Opens an index.

        Args:
            path: The index's directory.
            snapshot: What it will be used with; an index of any other one is refused.
            verify: Whether to compare every file's sha256 first.

        Raises:
            ImportError: The library that searches is not installed.
            ArtifactError: There is no index, it is not what its manifest says, or it was made of another snapshot.
        """
        index = cls(Artifact.open(path, kind=KIND, verify=verify))
        if snapshot is not None and snapshot.fingerprint != index.source.snapshot:
            raise ArtifactError(
                f"{path} was made of the snapshot {index.source.snapshot[:12]}, and {snapshot.path} is "
                f"{snapshot.fingerprint[:12]}, whose rows are others: build it again by `multifacet snapshot index`."
            )
        return index

    def search(self, queries: Tensor, k: int = 10, *, effort: int | None = None) -> tuple[Tensor, Tensor]:
        """Finds near rows of each query.

        Args:
            queries: float [Q, D], as those that the index was measured with.
            k: rows to find.
            effort: lists to read (ivf) or rows to keep in view (hnsw); by default what reached the recall when it was built.

        Returns:
            Scores by the facet's own similarity, float32 [Q, k], from the largest; and positions in `ids`, int64 [Q, k]. Where
            fewer were found a score is -inf and a position -1.

        Raises:
            ValueError: k is below 1, or the width is another.
        """
        whole(1)("k", k)
        expect_type("queries", queries, Tensor)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries are {list(queries.shape)}; expected [Q, {self.dim}]")
        aim = _Aim(effort=effort if effort is not None else self._told.effort, fetch=self._told.fetch)
        return _Search(self._structure, self._vectors, self.similarity, self._told.structure).run(queries.float(), k, aim)

    def measure(self, queries: Tensor, k: int = 10) -> Recall:
        """Measures recall and speed against exact search, with queries of one's own, float [Q, D]."""
        return measure_recall(self.search, queries.float(), torch.from_numpy(self._vectors.copy()), k, self.similarity)

    def table_rows(self, positions: Tensor) -> Tensor:
        """Gives the rows of the snapshot's table at some positions of `ids`, int64 of the same shape."""
        return torch.from_numpy(self._rows[positions.numpy()])


class _Search:
    def __init__(self, structure: Structure, vectors: NDArray[np.float32], similarity: Similarity, kind: Kind) -> None:
        self._kind: Kind = kind
        self._structure = structure
        self._vectors = vectors
        self._similarity = similarity

    def run(self, queries: Tensor, k: int, aim: _Aim) -> tuple[Tensor, Tensor]:
        """Asks for `fetch` candidates a neighbour, scores them, and keeps the best."""
        k = min(k, len(self._vectors))
        count = min(k * aim.fetch, len(self._vectors))
        scores, rows = [], []
        for block in torch.split(queries, max(1, _SEARCH_ELEMENTS // max(1, count * queries.shape[1]))):
            found = self._structure.search(to_query_points(block.numpy(), self._similarity, self._kind), count, aim.effort)
            candidates = torch.from_numpy(self._vectors[np.maximum(found, 0)])
            compared = compare_each(block, candidates, self._similarity)
            positions = torch.from_numpy(found)
            best = compared.masked_fill_(positions < 0, -torch.inf).topk(k, dim=1)
            scores.append(best.values)
            rows.append(positions.gather(1, best.indices))
        if not scores:
            return torch.empty(0, k), torch.empty(0, k, dtype=torch.int64)
        return torch.cat(scores), torch.cat(rows)


def _choose_aim(search: _Search, kind: Kind, queries: Tensor, config: IndexConfig) -> _Aim:
    """Raises what limits the recall, effort or candidates, until it is reached with a margin."""
    wanted = 1.0 - (1.0 - config.recall) * (1.0 - _MARGIN)
    table = torch.from_numpy(search._vectors)
    exact = find_exact(queries, table, config.k, search._similarity)

    def recall(aim: _Aim) -> float:
        return judge(queries, table, search.run(queries, config.k, aim)[1], exact, search._similarity)

    step, fetch = 0, 8 if kind == "ivf" else 1
    aim = _Aim(effort=effort_of(kind, step), fetch=fetch)
    found = recall(aim)
    while found < wanted and (step < _MAX_STEPS or fetch < _MAX_FETCH):
        wider = _Aim(effort=effort_of(kind, step + 1), fetch=fetch)
        deeper = _Aim(effort=effort_of(kind, step), fetch=fetch * 2)
        by_effort = recall(wider) if step < _MAX_STEPS else -1.0
        by_fetch = recall(deeper) if fetch < _MAX_FETCH else -1.0
        if by_effort >= by_fetch:
            aim, found, step = wider, by_effort, step + 1
        else:
            aim, found, fetch = deeper, by_fetch, fetch * 2
    if found < config.recall:
        logger.warning(
            "The index reaches a recall@%d of %.3f with all its effort, below the %.3f asked for: try structure='hnsw', or "
            "more build_effort.",
            config.k,
            found,
            config.recall,
        )
    return aim
