"""What a load says of itself, to its caller and in the store."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import duckdb

from multifacet.graphdb.sql import GraphError, run

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """What became of the rows of one load: `read == loaded + already_there + held + num_rejected`.

    Attributes:
        target: The node type or relation.
        source: Where the rows came from.
        read: Rows read.
        loaded: Rows that are new in the store.
        already_there: Rows whose key the store, or an earlier row of the load, already had.
        rejected: Reason -> rows set aside for it; the rows themselves are in the `rejected_rows` view.
        created_nodes: Node type -> nodes that this load of edges created.
        seconds: Wall time.
        held: Edges that wait for their nodes, where the caller asked for that.
        released: Relation -> edges that had waited for the nodes of this load, and are in the graph now.
        absent: Declared properties that the source has no column of, which are as they were.
    """

    target: str
    source: str
    read: int
    loaded: int
    already_there: int
    rejected: Mapping[str, int]
    created_nodes: Mapping[str, int]
    seconds: float
    held: int = 0
    released: Mapping[str, int] = dataclasses.field(default_factory=dict)
    absent: tuple[str, ...] = ()

    @property
    def num_rejected(self) -> int:
        """Rows set aside, whatever the reason."""
        return sum(self.rejected.values())

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able fields."""
        return dataclasses.asdict(self)


def next_load_id(connection: duckdb.DuckDBPyConnection) -> int:
    """The number of the load that is about to happen."""
    return int(run(connection, "SELECT coalesce(max(load_id) + 1, 0) FROM _load")[0][0])


def rejected_by_reason(connection: duckdb.DuckDBPyConnection, load_id: int) -> dict[str, int]:
    """Reason -> rows of a load that were set aside for it."""
    query = "SELECT reason, count(*) FROM _rejected WHERE load_id = ? GROUP BY reason ORDER BY reason"
    return dict(run(connection, query, [load_id]))


def refuse_too_many(connection: duckdb.DuckDBPyConnection, load_id: int, max_rejected: int | None, *, where: str) -> None:
    """Refuses a load of which more rows were set aside than its caller allows.

    Raises:
        GraphError: There are more; the message has the reasons, and the first row of each.
    """
    if max_rejected is None:
        return
    rejected = rejected_by_reason(connection, load_id)
    if sum(rejected.values()) <= max_rejected:
        return
    query = (
        "SELECT reason, count(*), arg_min(coalesce(file || ', ', '') || 'row ' || row, (coalesce(file, ''), row)) "
        "FROM _rejected "
        "WHERE load_id = ? GROUP BY reason ORDER BY ALL"
    )
    reasons = "; ".join(
        f"{reason}: {number} ({first} is the first)" for reason, number, first in run(connection, query, [load_id])
    )
    msg = (
        f"{where}: {sum(rejected.values())} rows would be set aside, more than max_rejected={max_rejected}, so "
        f"nothing is loaded: {reasons}"
    )
    raise GraphError(msg)


def record(connection: duckdb.DuckDBPyConnection, load_id: int, report: LoadReport) -> LoadReport:
    """Writes a load into the store's own account of loads."""
    run(
        connection,
        "INSERT INTO _load VALUES (?, ?, ?, ?, ?, ?, ?, ?, now()::TIMESTAMP)",
        [
            load_id, report.target, report.source, report.read, report.loaded, report.already_there, report.held,
            report.num_rejected,
        ],
    )  # fmt: skip
    logger.info(
        "%s: read %d rows, loaded %d, already there %d, held %d, rejected %d in %.2f s",
        report.target, report.read, report.loaded, report.already_there, report.held, report.num_rejected, report.seconds,
    )  # fmt: skip
    return report
