"""What finds candidates for an index: lists of 4-bit codes or a graph, by faiss, or a graph by usearch.

Lists take inner products as they are. A graph over raw inner products fails where lengths differ, as the long rows are near to
everyone; so a graph's inner products become distances by one more coordinate, sqrt(M^2 - |x|^2) with M the longest row's length
(Bachrach et al., RecSys 2014). Directions are put on the unit sphere. faiss's graph knows absolute differences; elsewhere "l1"
and "moduli" are searched by Euclidean distance, which is near to them. What is found is a set of candidates: the index scores
them by its own similarity.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from multifacet.tables.searching.config import IndexConfig
    from multifacet.tables.searching.similarity import Similarity

__all__ = [
    "FILE_NAMES",
    "Kind",
    "Structure",
    "build_structure",
    "choose_kind",
    "effort_of",
    "load_structure",
    "to_points",
    "to_query_points",
]

Kind = Literal["ivf", "hnsw"]
FILE_NAMES: Final = {"faiss": "index.faiss", "usearch": "index.usearch"}

_MIN_IVF_ROWS: Final = 50_000
_POINTS_PER_LIST: Final = 64
_MODULES: Final = {"faiss": "faiss-cpu", "usearch": "usearch"}


class Structure(Protocol):
    """What gives candidates."""

    def search(self, points: NDArray[np.float32], count: int, effort: int) -> NDArray[np.int64]:
        """Gives positions of candidates of each query point, int64 [Q, count], -1 where there are no more."""

    def save(self, path: Path) -> None:
        """Writes a file."""


def to_points(vectors: NDArray[np.float32], similarity: Similarity, kind: Kind) -> NDArray[np.float32]:
    """Gives the points that are indexed, float32 [N, D], of a graph of inner products [N, D + 1]."""
    if similarity == "cosine":
        unit: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return unit
    if similarity != "dot" or kind == "ivf":
        return vectors
    squares = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
    missing = np.sqrt(np.maximum(squares.max(initial=0.0) - squares, 0.0)).astype(np.float32)
    return np.concatenate([vectors, missing[:, None]], axis=1)


def to_query_points(queries: NDArray[np.float32], similarity: Similarity, kind: Kind) -> NDArray[np.float32]:
    """Gives the points that are searched for, beside those of `to_points`.

    A query's length means nothing to the order of inner products and directions; it is taken away, so that a large one costs no
    digits.
    """
    if similarity not in {"cosine", "dot"}:
        return np.ascontiguousarray(queries)
    unit = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(np.pad(unit, ((0, 0), (0, 1))) if similarity == "dot" and kind == "hnsw" else unit)


def effort_of(kind: Kind, step: int) -> int:
    """Gives the effort of a step of the search for the least that suffices: lists to read, or rows to keep in view."""
    return round((1 if kind == "ivf" else 16) * 2 ** (step / 2))


def choose_kind(num_rows: int, config: IndexConfig) -> Kind:
    """Gives the structure that a configuration asks for.

    Raises:
        ValueError: usearch is asked for lists.
    """
    if config.structure == "auto":
        return "hnsw" if num_rows < _MIN_IVF_ROWS or config.backend == "usearch" else "ivf"
    if config.backend == "usearch" and config.structure == "ivf":
        raise ValueError('usearch builds graphs only: give structure="hnsw", or backend="faiss"')
    return config.structure


def build_structure(vectors: NDArray[np.float32], similarity: Similarity, kind: Kind, config: IndexConfig) -> Structure:
    """Builds a structure of vectors, float32 [N, D].

    Raises:
        ImportError: The library is not installed; the message has the line that installs it.
    """
    points = to_points(vectors, similarity, kind)
    if config.backend == "usearch":
        return _Usearch.build(points, config)
    return _build_lists(points, similarity, config) if kind == "ivf" else _build_graph(points, similarity, config)


def load_structure(path: Path, backend: Literal["faiss", "usearch"], width: int) -> Structure:
    """Opens what was saved.

    Raises:
        ImportError: The library is not installed.
        OSError: The file is not one of its indexes.
    """
    if backend == "usearch":
        return _Usearch.load(path, width)
    faiss = _library("faiss")
    try:
        return _Faiss(faiss, faiss.read_index(str(path)))
    except RuntimeError as error:
        raise OSError(f"{path} is no index that this faiss ({faiss.__version__}) reads: {error}") from error


class _Faiss:
    def __init__(self, faiss: Any, index: Any) -> None:
        self._faiss = faiss
        self._index = index
        self._lists = hasattr(index, "nprobe")

    def search(self, points: NDArray[np.float32], count: int, effort: int) -> NDArray[np.int64]:
        faiss = self._faiss
        if self._lists:
            parameters = faiss.SearchParametersIVF(nprobe=min(effort, self._index.nlist))
        else:
            parameters = faiss.SearchParametersHNSW(efSearch=max(effort, count))
        return self._index.search(points, count, params=parameters)[1]  # type: ignore[no-any-return]

    def save(self, path: Path) -> None:
        self._faiss.write_index(self._index, str(path))


def _build_lists(points: NDArray[np.float32], similarity: Similarity, config: IndexConfig) -> _Faiss:
    faiss = _library("faiss")
    rows, width = points.shape
    num_lists = config.num_lists or 2 ** max(4, round(math.log2(4 * math.sqrt(rows))))
    num_lists = max(1, min(num_lists, rows // 39))  # below 39 points a list faiss warns that lists are too many
    # A code of 4 bits a pair of coordinates, or a coordinate where they are odd, of what is left behind the list's center.
    pairs = width // 2 if width % 2 == 0 else width
    index = faiss.index_factory(width, f"IVF{num_lists},PQ{pairs}x4fs", faiss.METRIC_L2)
    index.by_residual = True
    index.cp.seed = index.pq.cp.seed = config.seed + 1
    index.cp.max_points_per_centroid = _POINTS_PER_LIST
    index.train(points)
    index.add(points)
    if similarity in {"cosine", "dot"}:
        # Rows go to the list whose center is near, so that long rows have lists of their own: the largest inner product would
        # put half of the table in one. Lists are then read by inner product, q.c + q.(x - c), which the codes hold.
        centers = faiss.IndexFlatIP(width)
        centers.add(faiss.downcast_index(index.quantizer).reconstruct_n(0, num_lists))
        index.quantizer = centers
        index.metric_type = faiss.METRIC_INNER_PRODUCT
    return _Faiss(faiss, index)


def _build_graph(points: NDArray[np.float32], similarity: Similarity, config: IndexConfig) -> _Faiss:
    faiss = _library("faiss")
    index = faiss.IndexHNSWFlat(points.shape[1], config.links, faiss.METRIC_L1 if similarity == "l1" else faiss.METRIC_L2)
    index.hnsw.efConstruction = config.build_effort
    index.add(points)
    return _Faiss(faiss, index)


class _Usearch:
    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def build(cls, points: NDArray[np.float32], config: IndexConfig) -> _Usearch:
        usearch = _library("usearch")
        index = usearch.Index(
            ndim=points.shape[1],
            metric="l2sq",
            dtype="f32",
            connectivity=config.links,
            expansion_add=config.build_effort,
        )
        index.add(np.arange(len(points), dtype=np.uint64), points)
        return cls(index)

    @classmethod
    def load(cls, path: Path, width: int) -> _Usearch:
        usearch = _library("usearch")
        try:
            index = usearch.Index(ndim=width, metric="l2sq", dtype="f32")
            index.load(str(path))
        except RuntimeError as error:
            raise OSError(f"{path} is no index that this usearch reads: {error}") from error
        return cls(index)

    def search(self, points: NDArray[np.float32], count: int, effort: int) -> NDArray[np.int64]:
        self._index.expansion_search = max(effort, count)
        found = np.full((len(points), count), -1, dtype=np.int64)
        if not len(points):
            return found
        matches = self._index.search(points, count)
        keys = np.atleast_2d(np.asarray(matches.keys)).astype(np.int64)
        counts = np.full(len(points), keys.shape[1]) if len(points) == 1 else np.asarray(matches.counts)
        for row, num in enumerate(counts):
            found[row, :num] = keys[row, :num]
        return found

    def save(self, path: Path) -> None:
        self._index.save(str(path))


def _library(name: Literal["faiss", "usearch"]) -> Any:
    if find_spec(name) is None:
        raise ImportError(f"an index needs {_MODULES[name]}: pip install 'multifacet[index]', or pip install {_MODULES[name]}")
    if name == "faiss":
        import faiss  # noqa: PLC0415 - an extra

        return faiss
    import usearch.index  # noqa: PLC0415 - an extra

    return usearch.index
