"""From an address on a command line to the table that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from multifacet.graphdb.lake.database import DatabaseQuery
from multifacet.graphdb.lake.delta import DeltaTable
from multifacet.graphdb.lake.iceberg import IcebergTable
from multifacet.graphdb.lake.parquet import ParquetTable
from multifacet.graphdb.lake.table import LakeTable
from multifacet.graphdb.sql import GraphError

__all__ = ["open_table"]

_DATABASES: Final = ("sqlite://", "postgresql://", "postgres://")


def open_table(
    address: str,
    *,
    where: Sequence[Any] = (),
    version: int | None = None,
    query: str | None = None,
    options: Mapping[str, str] | None = None,
) -> LakeTable | None:
    """Gives the table that an address names; None if it is a path or a glob, and nothing asks for more than reading files.

    Args:
        address: iceberg:[CATALOG/]NAMESPACE.TABLE, delta:PATH, sqlite:///PATH, postgresql://..., s3://... and the like, or the
            path of a folder of Parquet files.
        where: Conditions.
        version: Iceberg's snapshot or Delta's version.
        query: For databases, what is asked.
        options: Of the catalogue or the storage.

    Raises:
        GraphError: Something is asked for that such a table does not have.

    Example:
        >>> open_table("delta:lake/views", version=3).address
        'delta:lake/views at version 3'
    """
    kind, _, rest = address.partition(":")
    options = dict(options or {})
    is_database = address.startswith(_DATABASES)
    if not is_database and query is not None:
        msg = f"{address}: a query is for databases ({', '.join(_DATABASES)})"
        raise GraphError(msg)
    if is_database:
        if where or version is not None or options or query is None:
            msg = f"{address}: a database takes a query, which says all, and nothing else"
            raise GraphError(msg)
        return DatabaseQuery(uri=address, query=query)
    if kind == "iceberg":
        catalog, slash, name = rest.rpartition("/")
        return IcebergTable(table=name, catalog=catalog if slash else "default", where=where, version=version, options=options)
    if kind == "delta":
        return DeltaTable(path=rest, where=where, version=version, options=options)
    if version is not None:
        msg = f"{address}: versions are of Iceberg's and Delta's tables"
        raise GraphError(msg)
    if "://" in address or where or options:
        return ParquetTable(path=address, where=where, options=options)
    return None
