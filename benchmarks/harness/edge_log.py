"""A made-up log of user-pin edges in Parquet files, and the store that it is loaded into."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Literal

import duckdb

from multifacet.graphdb import GraphSchema, GraphStore, NodeType, Relation

FIRST_DAY = dt.datetime(2025, 1, 1)
NUM_DAYS = 100
_NUM_FILES = 4

IdType = Literal["int64", "string"]


def write_edge_log(folder: Path, num_edges: int, *, id_type: IdType = "int64", seed: float = 0.5) -> str:
    """Writes `num_edges` edges in time's order, users and pins by squares of uniform draws, to four Parquet files.

    External ids are 63-bit hashes, or those behind a word: neither dense nor sorted.

    Returns:
        The pattern of the files.
    """
    num_users, num_pins = max(num_edges // 20, 100), max(num_edges // 50, 50)
    prefix = {"src": "'user-' || ", "dst": "'pin-' || "} if id_type == "string" else {"src": "", "dst": ""}
    step_us = NUM_DAYS * 86_400_000_000 // num_edges
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute("SELECT setseed(?)", [seed])
        for file in range(_NUM_FILES):
            first, last = num_edges * file // _NUM_FILES, num_edges * (file + 1) // _NUM_FILES
            rows = (
                f"SELECT {prefix['src']}(hash((random() * random() * {num_users})::BIGINT) >> 1)::BIGINT AS src, "
                f"{prefix['dst']}(hash(-1 - (random() * random() * {num_pins})::BIGINT) >> 1)::BIGINT AS dst, "
                f"TIMESTAMP '{FIRST_DAY}' + to_microseconds(edge * {step_us}) AS time FROM range({first}, {last}) AS t(edge)"
            )
            connection.execute(f"COPY ({rows}) TO '{folder / f'{id_type}-{file}.parquet'}' (FORMAT parquet)")
    return str(folder / f"{id_type}-*.parquet")


def create_store(path: Path, *, id_type: IdType = "int64", memory_limit: str | None = None) -> GraphStore:
    """An empty store for such a log."""
    nodes = NodeType(name="user", id_type=id_type), NodeType(name="pin", id_type=id_type)
    relations = (Relation(src="user", name="clicks", dst="pin"),)
    return GraphStore.create(path, GraphSchema(nodes=nodes, relations=relations), memory_limit=memory_limit)
