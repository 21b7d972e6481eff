"""A lookup server of a world: rows of the version that is asked for, and of no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.harness.worlds.releases import CELLS, Half
from benchmarks.harness.worlds.server import Server
from multifacet.serving.protocol import lookup_pb2

if TYPE_CHECKING:
    from benchmarks.harness.worlds.network import Answer
    from benchmarks.harness.worlds.world import World
    from multifacet.serving.server.versions import Lease

MAX_IDS = 1000


class Rows(NamedTuple):
    """An answer: what the server says that it is of, and what each row says."""

    version: str
    shard: tuple[int, int]
    cells: tuple[str, ...]


class Lookup(Server):
    """One lookup server.

    Args:
        world: Where it stands.
        name: Its address.
        shard: Which part of each release it holds, as (index, of how many).
        waits: As `Server`.
    """

    def __init__(self, world: World, name: str, shard: tuple[int, int], *, waits: bool):
        super().__init__(world, name, "lookup", waits=waits)
        self.shard = shard
        self.places = range(CELLS) if shard[1] == 1 else range(shard[0], shard[0] + 1)

    def serve(self, kind: str, message: Any, answer: Answer) -> None:
        """Answer a lookup, or say what is held."""
        if kind == "describe":
            answer(self.describe())
            return
        self.lease(message, lambda lease, _, half: self._read(lease, half, (), answer), answer)

    def describe(self) -> lookup_pb2.LookupDescription:
        """What is held."""
        index, of = self.shard
        return lookup_pb2.LookupDescription(
            versions=[
                lookup_pb2.LookupVersion(version=version, shard_index=index, num_shards=of if of > 1 else 0)
                for version in self.loaded.versions
            ],
            max_ids_per_request=MAX_IDS,
            current_version=self.loaded.current,
        )

    def _read(self, lease: Lease[Half], half: Half, cells: tuple[str, ...], answer: Answer) -> None:
        """Read row after row; other things happen meanwhile."""
        if len(cells) < len(self.places):
            cells = (*cells, half.cells[self.places[len(cells)]])
            self.later(self.engine.random.expovariate(1 / 0.003), self._read, lease, half, cells, answer)
            return
        self.end_lease(lease)
        answer(Rows(half.layer.version, self.shard, cells))
