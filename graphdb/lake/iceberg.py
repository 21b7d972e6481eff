"""An Iceberg table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from typing_extensions import override

from multifacet.graphdb.lake.condition import as_conditions, bind
from multifacet.graphdb.lake.table import LakeTable, Piece, choose_columns, told
from multifacet.inputs import import_extra

__all__ = ["IcebergTable"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class IcebergTable(LakeTable):
    """An Iceberg table as it is in a snapshot; each of its data files is a piece, so that a later one brings what is new.

    Columns that were renamed are read by their names of now, and rows that were deleted are not read.

    Attributes:
        table: Its name in the catalogue, such as "shop.views".
        catalog: The catalogue's name in pyiceberg's configuration.
        where: As for `ParquetTable`; partitions and statistics tell which files cannot fulfil them.
        version: A snapshot's number; the current one by default.
        options: The catalogue's properties (type, uri, warehouse, ...), where no configuration names them.
    """

    table: str
    catalog: str = "default"
    where: Sequence[Any] | str | None = None
    version: int | None = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    @override
    def address(self) -> str:
        return f"iceberg:{self.catalog}/{self.table}" + ("" if self.version is None else f" at snapshot {self.version}")

    @override
    def pieces(self, wanted: Sequence[str] | None) -> list[Piece]:
        catalogs = import_extra("pyiceberg.catalog", "lake")
        with told(self.address):
            table = catalogs.load_catalog(self.catalog, **self.options).load_table(self.table)
            whole = table.scan(snapshot_id=self.version)
            # Arrow's own types of a scan: a table's file may hold large_string where the schema says string.
            schema: pa.Schema = whole.projection().as_arrow()
            condition = _expression(bind(as_conditions(self.where), schema, where=self.address))
            columns = choose_columns(schema, wanted)
            scan = table.scan(row_filter=condition, selected_fields=tuple(columns), snapshot_id=self.version)
            tasks = sorted(scan.plan_files(), key=lambda task: task.file.file_path)
            chosen = pa.schema([schema.field(column) for column in scan.projection().as_arrow().names])
            pieces = [
                Piece(name=task.file.file_path, schema=chosen, batches=_reading(table, scan, task, chosen, self.address))
                for task in tasks
            ]
            return pieces or [Piece(name=None, schema=chosen, batches=lambda: iter(()))]


def _reading(table: Any, scan: Any, task: Any, schema: pa.Schema, address: str) -> Any:
    def read() -> Iterator[pa.RecordBatch]:
        from pyiceberg.io.pyarrow import ArrowScan  # noqa: PLC0415 - `pieces` has seen that it is there

        with told(address):
            reading = ArrowScan(scan.table_metadata, table.io, scan.projection(), scan.row_filter, scan.case_sensitive)
            for batch in reading.to_record_batches([task]):
                yield batch.select(schema.names).cast(schema)

    return read


def _expression(bound: Mapping[Any, pa.Scalar]) -> Any:
    from pyiceberg import expressions  # noqa: PLC0415 - `pieces` has seen that it is there

    classes: dict[str, Any] = {
        "=": expressions.EqualTo,
        "<": expressions.LessThan,
        "<=": expressions.LessThanOrEqual,
        ">": expressions.GreaterThan,
        ">=": expressions.GreaterThanOrEqual,
    }
    whole: Any = expressions.AlwaysTrue()
    for condition, value in bound.items():
        whole = expressions.And(whole, classes[condition.operator](condition.column, value.as_py()))
    return whole
