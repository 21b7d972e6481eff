"""Triples in text files, one a line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa
import pyarrow.csv

from multifacet.kge.distinct import sorted_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["TextTriples"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTriples:
    """What some files hold, numbered in the order of the files.

    Attributes:
        heads: int32 [T].
        relations: int32 [T].
        tails: int32 [T].
        entity_ids: each entity's text.
        relation_names: each relation's text.
        bounds: the triples of file i are `bounds[i]:bounds[i + 1]`.
    """

    heads: NDArray[np.int32]
    relations: NDArray[np.int32]
    tails: NDArray[np.int32]
    entity_ids: pa.Array
    relation_names: tuple[str, ...]
    bounds: tuple[int, ...]

    @classmethod
    def read(cls, paths: Sequence[Path], *, refuse_repeats: bool = True) -> Self:
        """Read tab-separated head, relation, tail lines, plain or compressed (.gz), into one vocabulary.

        Args:
            paths: the files.
            refuse_repeats: whether a triple that stands in the files twice is an error.

        Raises:
            ValueError: if a line does not have three non-empty fields, or a triple stands in the files twice; the
                message names file and line.
            FileNotFoundError: if there is no such file.
        """
        tables = [_read_lines(path) for path in paths]
        sizes = [table.num_rows for table in tables]
        ends = pa.chunked_array(
            [chunk for table in tables for name in ("head", "tail") for chunk in table[name].chunks], pa.string()
        )
        entities, entity_ids = _number(ends)
        relations, relation_ids = _number(pa.chunked_array([chunk for table in tables for chunk in table["relation"].chunks]))
        # Per file: its heads, then its tails.
        parts = np.split(entities, np.cumsum([size for size in sizes for _ in range(2)])[:-1])
        triples = cls(
            heads=np.concatenate(parts[0::2]),
            relations=relations,
            tails=np.concatenate(parts[1::2]),
            entity_ids=entity_ids,
            relation_names=tuple(relation_ids.to_pylist()),
            bounds=tuple(np.cumsum([0, *sizes]).tolist()),
        )
        if refuse_repeats:
            _refuse_duplicates(triples, paths)
        return triples


def _read_lines(path: Path) -> pa.Table:
    if not path.exists():
        raise FileNotFoundError(f"there is no triple file {path}")

    refused: list[pyarrow.csv.InvalidRow] = []

    def refuse(row: pyarrow.csv.InvalidRow) -> str:
        refused.append(row)
        return "error"

    try:
        table = pyarrow.csv.read_csv(
            path,
            # One thread: with more, pyarrow does not tell a line's number.
            read_options=pyarrow.csv.ReadOptions(column_names=["head", "relation", "tail"], use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter="\t", quote_char=False, ignore_empty_lines=False, invalid_row_handler=refuse
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(("head", "relation", "tail"), pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        if refused:
            raise ValueError(
                f"{path}, line {refused[0].number}: expected head, relation and tail with a tab between them, "
                f"got {refused[0].text!r}"
            ) from error
        raise ValueError(f"{path}: {error}") from error
    for name in table.column_names:
        empty = table[name].to_numpy() == ""
        if empty.any():
            raise ValueError(f"{path}, line {int(np.argmax(empty)) + 1}: the {name} is empty")
    return table


def _number(values: pa.ChunkedArray) -> tuple[NDArray[np.int32], pa.Array]:
    """Number distinct strings in the order of their first appearance."""
    encoded = values.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.indices.to_numpy().astype(np.int32), encoded.dictionary


def _refuse_duplicates(triples: TextTriples, paths: Sequence[Path]) -> None:
    order, repeats = sorted_order(triples.relations, triples.heads, triples.tails)
    if not repeats.any():
        return
    place = int(np.flatnonzero(repeats)[np.argmin(order[repeats])])

    def name(position: int) -> str:
        number = int(np.searchsorted(triples.bounds, position, side="right")) - 1
        return f"{paths[number]}, line {position - triples.bounds[number] + 1}"

    raise ValueError(
        f"{name(int(order[place]))}: the triple stands already in {name(int(order[place - 1]))}; a triple that is given twice "
        "would be learned from and ranked at once, or counted twice: remove one"
    )
