"""What the clients give back, read from the wire."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from multifacet.serving.core import agreement
from multifacet.serving.errors import BrokenAnswerError, VersionNotLoadedError
from multifacet.serving.protocol import lookup_pb2, ranker_pb2
from multifacet.serving.wire.frames import padded


class TableRows(NamedTuple):
    """Rows of one table, as stored.

    Attributes:
        rows: uint8 [num_ids, row_bytes], in the order of the ids; ``tables.decode(rows, dim, precision)`` reads them.
        dim: Dimension of a decoded row.
        precision: fp32, fp16, int8 or int4.
        num_unknown_ids: How many of the ids got the out-of-vocabulary row.
    """

    rows: npt.NDArray[np.uint8]
    dim: int
    precision: str
    num_unknown_ids: int


class LookupAnswer(NamedTuple):
    """Rows of one version.

    Attributes:
        version: The release's version.
        tables: Rows by table, in the release's order of tables.
        server_us: Time inside the lookup server's handler, in microseconds; of several servers the longest.
        shard_index: Which shard of the release the server holds.
        num_shards: Of how many; 0 or 1 if it holds all of it.
    """

    version: str
    tables: Mapping[str, TableRows]
    server_us: int
    shard_index: int = 0
    num_shards: int = 0


class Shard(NamedTuple):
    """A part of a release that is split over hosts.

    Attributes:
        number: From 0.
        of: Of how many; 1 is the whole release.
    """

    number: int
    of: int

    def __str__(self) -> str:
        return f"shard {self.number} of {self.of}" if self.of > 1 else "a release that is not split"


WHOLE = Shard(0, 1)


class Asked(NamedTuple):
    """What was asked, as far as an answer must fit it.

    Attributes:
        version: The version.
        shard: What the server must hold: any other part has out-of-vocabulary rows for the ids of this one.
        lengths: How many ids each feature has.
    """

    version: str
    shard: Shard
    lengths: Collection[int]

    @classmethod
    def of(cls, version: str, shard: Shard, ids: Mapping[str, npt.ArrayLike]) -> Self:
        """A lookup of ids that are packed, and so have a length."""
        return cls(version, shard, {len(values) for values in ids.values()})  # type: ignore[arg-type]

    def check(self, answer: lookup_pb2.LookupAnswer, tables: Mapping[str, TableRows], server: str) -> None:
        """Refuse an answer to anything else.

        Raises:
            VersionNotLoadedError: It is of another version.
            BrokenAnswerError: The server holds another part of the release, or sent more or fewer rows than ids.
        """
        given = Shard(answer.shard_index, max(1, answer.num_shards))
        fault = agreement.misfit(self.version, answer.version, self.shard, given)
        if fault == "version":
            raise VersionNotLoadedError(
                f"{server} answered with rows of version {answer.version}, asked for was {self.version}: rows of another "
                "version are never taken",
                loaded=(answer.version,),
            )
        if fault == "shard":
            raise BrokenAnswerError(
                f"{server} holds {given}, expected was {self.shard}: it has out-of-vocabulary rows for the ids of the others. "
                "List the servers of all shards in the order of their indices, with a | between them (a comma is for "
                "servers that hold the same)"
            )
        for name, table in tables.items():
            if len(table.rows) not in self.lengths:
                raise BrokenAnswerError(
                    f"{server} sent {len(table.rows)} rows of table {name!r}; the features have {sorted(self.lengths)} ids"
                )


class RankAnswer(NamedTuple):
    """Scores of one request's candidates.

    Attributes:
        version: The version that scored all of them.
        request_id: As in the request.
        ctr: float32 [num_candidates], probability of a response.
        cvr: float32 [num_candidates], probability of a conversion.
        phases: Microseconds by phase: prepare_us, assemble_us, lookup_wait_us, decode_us, pooling_us, upper_us, total_us, and
            of the lookup beside them lookup_us and lookup_server_us; see ``serving/protocol/ranker.proto``.
        num_unknown_ids: Distinct (table, id) pairs that got an out-of-vocabulary row.
        without_tables: Whether no row came in time, and every candidate was scored with zeros for its embeddings.
    """

    version: str
    request_id: str
    ctr: npt.NDArray[np.float32]
    cvr: npt.NDArray[np.float32]
    phases: Mapping[str, int]
    num_unknown_ids: int
    without_tables: bool = False


def read_lookup(answer: lookup_pb2.LookupAnswer, asked: Asked, server: str) -> LookupAnswer:
    """A lookup server's answer from its message.

    Raises:
        VersionNotLoadedError: As `Asked.check`.
        BrokenAnswerError: As `Asked.check`, or a table's bytes are not a whole number of rows.
    """
    tables = {}
    for table in answer.tables:
        rows = table.rows  # each look at it is a copy
        if not table.row_bytes or len(rows) % table.row_bytes:
            raise BrokenAnswerError(
                f"{server}: table {table.table!r} came with {len(rows)} bytes of rows of {table.row_bytes} bytes"
            )
        tables[table.table] = TableRows(
            rows=np.frombuffer(rows, dtype=np.uint8).reshape(-1, table.row_bytes),
            dim=table.dim,
            precision=table.precision,
            num_unknown_ids=table.num_unknown_ids,
        )
    asked.check(answer, tables, server)
    return _lookup_answer(answer, tables)


def read_framed_lookup(answer: lookup_pb2.LookupAnswer, rows: npt.NDArray[np.uint8], asked: Asked, server: str) -> LookupAnswer:
    """A lookup server's answer from its message and the rows behind it, which are not copied.

    Args:
        answer: The message, with ``num_rows`` of each table.
        rows: uint8, the rows of all tables as a frame holds them.
        asked: What it must fit.
        server: What to call the other end in messages.

    Raises:
        VersionNotLoadedError: As `Asked.check`.
        BrokenAnswerError: As `Asked.check`, or the rows do not have the length that the message says.
    """
    tables = {}
    start = 0
    for table in answer.tables:
        num_bytes = table.num_rows * table.row_bytes
        if not table.row_bytes or start + padded(num_bytes) > len(rows):
            raise BrokenAnswerError(
                f"{server}: table {table.table!r} should have {table.num_rows} rows of {table.row_bytes} bytes, but the frame "
                f"has {len(rows) - start} bytes of rows left"
            )
        tables[table.table] = TableRows(
            rows=rows[start : start + num_bytes].reshape(table.num_rows, table.row_bytes),
            dim=table.dim,
            precision=table.precision,
            num_unknown_ids=table.num_unknown_ids,
        )
        start += padded(num_bytes)
    if start != len(rows):
        raise BrokenAnswerError(f"{server}: the frame has {len(rows) - start} bytes of rows that no table owns")
    asked.check(answer, tables, server)
    return _lookup_answer(answer, tables)


def _lookup_answer(answer: lookup_pb2.LookupAnswer, tables: Mapping[str, TableRows]) -> LookupAnswer:
    return LookupAnswer(
        version=answer.version,
        tables=tables,
        server_us=answer.server_us,
        shard_index=answer.shard_index,
        num_shards=answer.num_shards,
    )


def read_rank(answer: ranker_pb2.RankAnswer, num_candidates: int, server: str) -> RankAnswer:
    """A ranker's answer from its message.

    Raises:
        BrokenAnswerError: It does not have a score a candidate and task.
    """
    if not len(answer.ctr) == len(answer.cvr) == num_candidates:
        raise BrokenAnswerError(
            f"{server}: {len(answer.ctr)} ctr and {len(answer.cvr)} cvr scores for {num_candidates} candidates"
        )
    return RankAnswer(
        version=answer.version,
        request_id=answer.request_id,
        ctr=np.array(answer.ctr, dtype=np.float32),
        cvr=np.array(answer.cvr, dtype=np.float32),
        phases={field.name: getattr(answer.phases, field.name) for field in answer.phases.DESCRIPTOR.fields},
        num_unknown_ids=answer.num_unknown_ids,
        without_tables=answer.without_tables,
    )
