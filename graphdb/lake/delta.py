"""A Delta Lake table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from multifacet.graphdb.lake.parquet import pieces_of
from multifacet.graphdb.lake.table import LakeTable, Piece, told
from multifacet.inputs import import_extra

__all__ = ["DeltaTable"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeltaTable(LakeTable):
    """A Delta table as it was at a version; each of its files is a piece, so that a later version brings what is new.

    Attributes:
        path: Its folder: a path or an address (s3://, gs://, abfss://).
        where: As for `ParquetTable`; the table's own statistics tell which files cannot fulfil them.
        version: The version; the latest by default.
        options: The storage's options, as the deltalake package takes them.
    """

    path: str | Path
    where: Sequence[Any] | str | None = None
    version: int | None = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    @override
    def address(self) -> str:
        return f"delta:{self.path}" + ("" if self.version is None else f" at version {self.version}")

    @override
    def pieces(self, wanted: Sequence[str] | None) -> list[Piece]:
        deltalake = import_extra("deltalake", "lake")
        with told(self.address):
            table = deltalake.DeltaTable(self.path, version=self.version, storage_options=dict(self.options) or None)
            root = str(table.table_uri).rstrip("/")
            dataset = table.to_pyarrow_dataset()
            # A column that was added later is null in older files: that is the table's word, not a file that lacks it.
            return pieces_of(
                dataset,
                self,
                wanted,
                self.where,
                name=lambda path: f"{root}/{path}",
                schema_of=lambda _: dataset.schema,
            )
