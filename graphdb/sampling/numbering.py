"""Local numbers of the nodes of one type within a sampled subgraph: seeds first, then in the order of their discovery."""

from __future__ import annotations

import abc
import dataclasses
import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np

from multifacet.graphdb.counter import mix

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MIN_SLOTS: Final = 1 << 10
_EMPTY: Final = np.empty(0, np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Frontier:
    """Nodes that were numbered one after another.

    Attributes:
        first: Local number of the first.
        nodes: int64 [n], idx.
        subgraphs: int64 [n], number of the seed that each was reached from; empty where seeds share nodes.
    """

    first: int
    nodes: NDArray[np.int64]
    subgraphs: NDArray[np.int64]


class Numbering(abc.ABC):
    """Gives nodes their local numbers; the kinds differ in what counts as the same node."""

    def __init__(self) -> None:
        self._size = 0
        self._nodes: list[NDArray[np.int64]] = []
        self._subgraphs: list[NDArray[np.int64]] = []
        self._frontier = 0, 0

    def __len__(self) -> int:
        return self._size

    @property
    def nodes(self) -> NDArray[np.int64]:
        """Node idx by local number, int64 [size]."""
        return _joined(self._nodes)

    @property
    def subgraphs(self) -> NDArray[np.int64]:
        """Subgraph by local number, int64 [size]; empty where seeds share nodes."""
        return _joined(self._subgraphs)

    def take_frontier(self) -> Frontier:
        """The nodes that were numbered since the last call."""
        first, part = self._frontier
        self._frontier = self._size, len(self._nodes)
        return Frontier(first=first, nodes=_joined(self._nodes[part:]), subgraphs=_joined(self._subgraphs[part:]))

    @abc.abstractmethod
    def add_seeds(self, nodes: NDArray[np.int64], numbers: NDArray[np.int64]) -> None:
        """Numbers the seeds 0 to n - 1; `numbers` are their subgraphs."""

    @abc.abstractmethod
    def add(self, nodes: NDArray[np.int32], centers: NDArray[np.int64], frontier: Frontier) -> NDArray[np.int64]:
        """The local numbers of `nodes`, int64 [n], reached from positions `centers` of `frontier`.

        Unseen nodes get the next numbers, in their order.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Gives back what was borrowed."""


class ScratchPool:
    """Arrays that map every node of a type to its local number, -1 throughout while they are not in use.

    They make numbering one memory access a node; each concurrent call takes its own and gives it back clean.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[NDArray[np.int32]]] = defaultdict(list)
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[ScratchPool], tuple[()]]:
        return ScratchPool, ()  # scratch is worth nothing in another process

    def take(self, num_nodes: int) -> NDArray[np.int32]:
        """An array int32 [num_nodes] of -1."""
        with self._lock:
            free = self._free[num_nodes]
            if free:
                return free.pop()
        return np.full(num_nodes, -1, np.int32)

    def give_back(self, local: NDArray[np.int32]) -> None:
        """Takes back an array that is -1 throughout again."""
        with self._lock:
            self._free[len(local)].append(local)


class SharedNumbering(Numbering):
    """A node has one number, however many seeds reach it.

    A seed that is given twice keeps both places; edges lead to the first.
    """

    def __init__(self, num_nodes: int, pool: ScratchPool) -> None:
        super().__init__()
        self._pool = pool
        self._local = pool.take(num_nodes)

    def add_seeds(self, nodes: NDArray[np.int64], numbers: NDArray[np.int64]) -> None:  # noqa: ARG002 - one interface
        """Numbers the seeds 0 to n - 1."""
        _number_seeds(nodes, self._local)
        self._nodes.append(nodes)
        self._size += len(nodes)

    def add(
        self,
        nodes: NDArray[np.int32],
        centers: NDArray[np.int64],  # noqa: ARG002 - one interface
        frontier: Frontier,  # noqa: ARG002 - one interface
    ) -> NDArray[np.int64]:
        """The local numbers of `nodes`, int64 [n]."""
        numbers = np.empty(len(nodes), np.int64)
        unseen = np.empty(len(nodes), np.int64)
        num_unseen = _number(nodes, self._local, self._size, numbers, unseen)
        self._nodes.append(unseen[:num_unseen])
        self._size += num_unseen
        return numbers

    def close(self) -> None:
        """Cleans the scratch and gives it back."""
        for nodes in self._nodes:
            self._local[nodes] = -1
        self._pool.give_back(self._local)


class DisjointNumbering(Numbering):
    """A node has one number in each subgraph that reaches it."""

    def __init__(self, num_nodes: int) -> None:
        super().__init__()
        self._num_nodes = num_nodes
        self._keys = np.full(_MIN_SLOTS, -1, np.int64)
        self._numbers = np.empty(_MIN_SLOTS, np.int32)

    def add_seeds(self, nodes: NDArray[np.int64], numbers: NDArray[np.int64]) -> None:
        """Numbers the seeds 0 to n - 1, each in its own subgraph."""
        everyone = np.arange(len(nodes))
        self.add(nodes.astype(np.int32), everyone, Frontier(first=0, nodes=nodes, subgraphs=numbers))

    def add(self, nodes: NDArray[np.int32], centers: NDArray[np.int64], frontier: Frontier) -> NDArray[np.int64]:
        """The local numbers of `nodes` in the subgraphs of their centres, int64 [n]."""
        self._reserve(len(nodes))
        numbers = np.empty(len(nodes), np.int64)
        unseen = np.empty((2, len(nodes)), np.int64)
        num_unseen = _number_hashed(
            nodes, centers, frontier.subgraphs, self._num_nodes, self._keys, self._numbers, self._size, numbers, unseen
        )
        self._nodes.append(unseen[0, :num_unseen])
        self._subgraphs.append(unseen[1, :num_unseen])
        self._size += num_unseen
        return numbers

    def close(self) -> None:
        """Nothing is borrowed, so nothing is given back."""

    def _reserve(self, num_more: int) -> None:
        wanted = 2 * (self._size + num_more)
        if wanted <= len(self._keys):
            return
        num_slots = 1 << (wanted - 1).bit_length()
        keys, numbers = np.full(num_slots, -1, np.int64), np.empty(num_slots, np.int32)
        _rehash(self._keys, self._numbers, keys, numbers)
        self._keys, self._numbers = keys, numbers


def _joined(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else _EMPTY


@numba.njit(nogil=True, cache=True)
def _number_seeds(nodes: Any, local: Any) -> None:
    for position in range(len(nodes)):
        if local[nodes[position]] < 0:
            local[nodes[position]] = position


@numba.njit(nogil=True, cache=True)
def _number(nodes: Any, local: Any, size: int, numbers: Any, unseen: Any) -> int:
    num_unseen = 0
    for position in range(len(nodes)):
        node = nodes[position]
        number: Any = local[node]
        if number < 0:
            number = size + num_unseen
            local[node] = number
            unseen[num_unseen] = node
            num_unseen += 1
        numbers[position] = number
    return num_unseen


@numba.njit(nogil=True, cache=True)
def _slot(keys: Any, key: int) -> Any:
    """The slot that holds `key`, or the free one where it belongs (open addressing, linear probing)."""
    mask = np.int64(len(keys) - 1)
    slot = np.int64(mix(np.uint64(key)) & np.uint64(mask))
    while keys[slot] >= 0 and keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@numba.njit(nogil=True, cache=True)
def _number_hashed(
    nodes: Any,
    centers: Any,
    subgraphs: Any,
    num_nodes: int,
    keys: Any,
    numbers_of: Any,
    size: int,
    numbers: Any,
    unseen: Any,
) -> int:
    num_unseen = 0
    for position in range(len(nodes)):
        node, subgraph = np.int64(nodes[position]), subgraphs[centers[position]]
        key = subgraph * num_nodes + node
        slot = _slot(keys, key)
        if keys[slot] < 0:
            keys[slot] = key
            numbers_of[slot] = size + num_unseen
            unseen[0, num_unseen] = node
            unseen[1, num_unseen] = subgraph
            num_unseen += 1
        numbers[position] = numbers_of[slot]
    return num_unseen


@numba.njit(nogil=True, cache=True)
def _rehash(old_keys: Any, old_numbers: Any, keys: Any, numbers: Any) -> None:
    for old_slot in range(len(old_keys)):
        if old_keys[old_slot] >= 0:
            slot = _slot(keys, old_keys[old_slot])
            keys[slot] = old_keys[old_slot]
            numbers[slot] = old_numbers[old_slot]
