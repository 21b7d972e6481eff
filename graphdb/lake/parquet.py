"""A folder of Parquet files, on this machine or in a bucket, whose sub-folders may say a column's value (`day=2026-11-01`)."""

from __future__ import annotations

import dataclasses
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs
from typing_extensions import override

from multifacet.graphdb.lake.condition import as_conditions, as_expression, bind
from multifacet.graphdb.lake.table import LakeTable, Piece, choose_columns, told

__all__ = ["ParquetTable", "pieces_of"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParquetTable(LakeTable):
    """Parquet files below a folder; values that folders' names say are text, as they are written there.

    Attributes:
        path: The folder, or a file: a path, or an address that pyarrow opens (s3://, gs://, hdfs://, file://).
        where: Conditions that rows must fulfil, as texts or (column, operator, value); files that cannot are not opened.
        options: Arguments of pyarrow's S3FileSystem (endpoint_override, region, anonymous, ...) for s3:// addresses.

    Example:
        >>> ParquetTable(path="s3://shop/views", where=["day >= 2026-11-01"]).address
        's3://shop/views'
    """

    path: str | Path
    where: Sequence[Any] | str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    @override
    def address(self) -> str:
        return str(self.path)

    @override
    def pieces(self, wanted: Sequence[str] | None) -> list[Piece]:
        import pyarrow.dataset as ds  # noqa: PLC0415 - only such tables need it

        with told(self.address):
            files, root = self._open()
            scheme = self.address.partition("://")[0] if "://" in self.address else ""
            info = files.get_file_info(root)
            if info.type == fs.FileType.NotFound:
                raise FileNotFoundError("there is nothing at this address")
            found = [root]
            if info.type == fs.FileType.Directory:
                selector = fs.FileSelector(root, recursive=True)
                below = [entry.path for entry in files.get_file_info(selector) if entry.type == fs.FileType.File]
                found = sorted(path for path in below if _is_data(path.removeprefix(root)))
            if not found:
                raise FileNotFoundError("no Parquet file lies below it")
            keys = _keys_of(found[0].removeprefix(root))
            partitioning = ds.partitioning(pa.schema([(key, pa.string()) for key in keys]), flavor="hive") if keys else None
            dataset = ds.dataset(found, filesystem=files, format="parquet", partitioning=partitioning, partition_base_dir=root)
            partitions = [] if partitioning is None else list(partitioning.schema)
            return pieces_of(
                dataset,
                self,
                wanted,
                self.where,
                name=lambda path: f"{scheme}://{path}" if scheme else path,
                schema_of=lambda fragment: _with(fragment.physical_schema, partitions),
            )

    def _open(self) -> tuple[fs.FileSystem, str]:
        if "://" not in self.address:
            if self.options:
                raise ValueError(f"{', '.join(self.options)}: options are for s3:// addresses")
            return fs.LocalFileSystem(), str(Path(self.address).absolute())
        if self.options:
            if not self.address.startswith("s3://"):
                raise ValueError(f"{', '.join(self.options)}: options are for s3:// addresses; give others in the address")
            return fs.S3FileSystem(**self.options), self.address.removeprefix("s3://").rstrip("/")
        opened, root = fs.FileSystem.from_uri(self.address)
        return opened, root.rstrip("/") or root


def pieces_of(
    dataset: Any,
    table: LakeTable,
    wanted: Sequence[str] | None,
    where: Any,
    *,
    name: Callable[[str], str],
    schema_of: Callable[[Any], pa.Schema],
) -> list[Piece]:
    """Gives a pyarrow dataset's files as pieces, without those that conditions rule out.

    Args:
        dataset: The dataset.
        table: The table that it is, for messages.
        wanted: Columns.
        where: Conditions, as a user wrote them.
        name: Gives a piece's name from its file's path.
        schema_of: Gives the columns that a file is read with.
    """
    conditions = as_conditions(where)
    condition = as_expression(bind(conditions, dataset.schema, where=table.address))
    pieces = []
    for fragment in sorted(dataset.get_fragments(filter=condition), key=lambda fragment: fragment.path):
        schema = schema_of(fragment)
        columns = choose_columns(schema, wanted)
        own = as_expression(bind(conditions, schema, where=fragment.path))
        chosen = pa.schema([schema.field(column) for column in columns])
        batches = _reading(fragment, schema, columns, own, table.address)
        pieces.append(Piece(name=name(fragment.path), schema=chosen, batches=batches))
    if not pieces:
        columns = choose_columns(dataset.schema, wanted)
        chosen = pa.schema([dataset.schema.field(column) for column in columns])
        pieces = [Piece(name=None, schema=chosen, batches=lambda: iter(()))]
    return pieces


def _with(schema: pa.Schema, partitions: Sequence[pa.Field]) -> pa.Schema:
    """A file's own columns, and those that its folders' names say; these win, as they do for pyarrow."""
    named = {field.name for field in partitions}
    return pa.schema([*(field for field in schema if field.name not in named), *partitions])


def _reading(fragment: Any, schema: pa.Schema, columns: list[str], condition: pc.Expression | None, address: str) -> Any:
    def read() -> Iterator[pa.RecordBatch]:
        with told(address):
            yield from fragment.scanner(schema=schema, columns=columns, filter=condition).to_batches()

    return read


def _is_data(below: str) -> bool:
    parts = [part for part in below.split("/") if part]
    return not any(part.startswith(("_", ".")) for part in parts) and parts[-1].endswith((".parquet", ".pq"))


def _keys_of(below: str) -> list[str]:
    folders = [part for part in below.split("/")[:-1] if "=" in part]
    return [urllib.parse.unquote(part.partition("=")[0]) for part in folders]
