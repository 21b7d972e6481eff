"""Triples out of what a user has: data frames, Arrow, files, tuples, PyKEEN's and PyG's objects, datasets of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from multifacet.inputs import expect_type
from multifacet.kge.triples.distinct import are_among, first_positions
from multifacet.kge.triples.hetero_data import triples_from_hetero_data
from multifacet.kge.triples.text import TextTriples
from multifacet.kge.triples.triples import TripleSet, TripleSplit

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Duplicates", "read_split", "read_triples"]

Duplicates = Literal["refuse", "drop", "keep"]
_COLUMNS: Final = ("head", "relation", "tail")
_ENTITY: Final = "entity"
_TEXT_SUFFIXES: Final = (".tsv", ".txt", ".gz")


def read_triples(
    source: Any,
    *,
    columns: Sequence[str] = _COLUMNS,
    weight: str | None = None,
    types: Mapping[str, tuple[str, str]] | None = None,
    duplicates: Duplicates = "refuse",
) -> TripleSet:
    """Read triples of ids into a vocabulary of their own.

    Args:
        source: a pandas or polars data frame, an Arrow table, or anything that gives one (PyCapsule); a Parquet or CSV file
            with a
            header; a file of tab-separated head, relation, tail lines without one (.tsv, .txt, .gz); a list or array of (head,
            relation, tail); a `torch.utils.data.Dataset` of such; PyKEEN's TriplesFactory; PyG's HeteroData, whose types it
            has.
        columns: names of the columns of head, relation and tail.
        weight: column that says how often each triple stands there; None for once.
        types: relation -> (node type of its heads, of its tails); None for one type, "entity".
        duplicates: what becomes of a triple that stands there twice: it is refused, dropped but once, or kept (and learned from
            twice).

    Returns:
        The triples, entities and relations in the order of their first appearance, with their ids.

    Raises:
        ValueError: if there are no triples, a column is missing or has nulls, a triple is repeated that may not be, or ids of
            one type are of two kinds.
        TypeError: if the source is nothing of this.

    Example:
        >>> read_triples([("ann", "buys", "tea"), ("bob", "buys", "tea")], types={"buys": ("user", "pin")})
        TripleSet(user=2, pin=1, (user, buys, pin)=2)
    """
    return read_split(source, columns=columns, weight=weight, types=types, duplicates=duplicates).train


def read_split(
    train: Any,
    valid: Any = None,
    test: Any = None,
    *,
    columns: Sequence[str] = _COLUMNS,
    weight: str | None = None,
    types: Mapping[str, tuple[str, str]] | None = None,
    duplicates: Duplicates = "refuse",
) -> TripleSplit:
    """Read triples to learn from, to choose by and to report on, into one vocabulary.

    Args:
        train: as `read_triples`.
        valid: likewise; None for none.
        test: likewise; None for none.
        columns: as `read_triples`.
        weight: as `read_triples`; of `train` alone.
        types: as `read_triples`.
        duplicates: as `read_triples`. A triple of two parts would be learned from and ranked at once: it is refused, or, with
            "drop" and "keep", left out of the earlier part.

    Raises:
        ValueError: as `read_triples`.
        TypeError: as `read_triples`.
    """
    if duplicates not in get_args(Duplicates):
        raise ValueError(f"duplicates is {duplicates!r}; expected one of {', '.join(get_args(Duplicates))}")
    if not isinstance(columns, list | tuple) or len(columns) != 3:
        raise ValueError(f"columns are {columns!r}; expected the names of the columns of head, relation and tail")
    if types is not None:
        expect_type("types", types, Mapping)
        for name, pair in types.items():
            if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(end, str) for end in pair):
                raise TypeError(f"types[{name!r}] is {pair!r}; expected (type of heads, type of tails)")
    if hasattr(train, "edge_types"):
        if valid is not None or test is not None or types is not None:
            raise ValueError(
                "a HeteroData has its own types and numbers: give it alone, and hold triples out by TripleSet.hold_out"
            )
        whole = triples_from_hetero_data(train)
        none = whole.take(slice(0))
        return _settle(TripleSplit(train=whole, valid=none, test=none), duplicates)
    names = ("train", "valid", "test")
    tables = [
        None if part is None else _columns(part, name, tuple(columns), weight if name == "train" else None)
        for name, part in zip(names, (train, valid, test), strict=True)
    ]
    return _settle(
        _number([table for table in tables if table is not None], [table is not None for table in tables], types), duplicates
    )


def _columns(source: Any, name: str, columns: tuple[str, ...], weight: str | None) -> pa.Table:
    """Give a source's head, relation, tail and weight as an Arrow table."""
    if isinstance(source, (str, Path)):
        table = _read_file(Path(source), columns)
    elif hasattr(source, "mapped_triples"):
        table = _of_factory(source)
        columns = _COLUMNS
    elif hasattr(source, "__arrow_c_stream__") or isinstance(source, pa.Table):
        table = pa.table(source)
    elif hasattr(source, "__len__") and hasattr(source, "__getitem__") and not isinstance(source, Mapping):
        table = _of_tuples(source, name)
        columns = _COLUMNS
    else:
        raise TypeError(
            f"{name} is a {type(source).__name__}; expected a data frame, an Arrow table, a file, (head, relation, tail) "
            "tuples, a "
            "TriplesFactory, a HeteroData or a Dataset of triples"
        )
    return _check_columns(table, name, columns, weight)


def _check_columns(table: pa.Table, name: str, columns: tuple[str, ...], weight: str | None) -> pa.Table:
    wanted = [*columns, *([weight] if weight is not None else [])]
    missing = [column for column in wanted if column not in table.column_names]
    if missing:
        raise ValueError(
            f"{name} has no columns {missing}; it has {table.column_names}. Name them by columns=(head, relation, tail)"
        )
    if not table.num_rows:
        raise ValueError(f"{name} has no triples")
    found = table.select(wanted).rename_columns([*_COLUMNS, *(["weight"] if weight is not None else [])])
    for column in found.column_names:
        if found[column].null_count:
            place = int(np.argmax(found[column].is_null().to_numpy()))
            raise ValueError(
                f"{name}: column {column!r} has {found[column].null_count} nulls, the first in row {place}: drop such rows"
            )
    if weight is not None and not (pa.types.is_integer(found["weight"].type) or pa.types.is_floating(found["weight"].type)):
        raise ValueError(f"{name}: the weights are {found['weight'].type}; expected numbers")
    if weight is not None:
        # A triple of weight zero stands there zero times.
        found = found.filter(pc.not_equal(found["weight"], 0))
        if not found.num_rows:
            raise ValueError(f"{name}: all triples have weight zero")
    return found


def _read_file(path: Path, columns: tuple[str, ...]) -> pa.Table:
    if not path.exists():
        raise FileNotFoundError(f"there is no triple file {path}")
    if path.suffix in _TEXT_SUFFIXES:
        found = TextTriples.read([path], refuse_repeats=False)
        ids, names = found.entity_ids, pa.array(found.relation_names)
        parts = (ids.take(pa.array(found.heads)), names.take(pa.array(found.relations)), ids.take(pa.array(found.tails)))
        return pa.table(dict(zip(columns, parts, strict=True)))
    try:
        return pyarrow.csv.read_csv(path) if path.suffix == ".csv" else pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as {'CSV' if path.suffix == '.csv' else 'Parquet'}: {error}. Tab-separated triples "
            "without a "
            "header have the suffix .tsv or .txt"
        ) from error


def _of_factory(factory: Any) -> pa.Table:
    """Read PyKEEN's TriplesFactory; one without labels has numbers for ids."""
    triples = factory.mapped_triples.cpu().numpy()
    columns = [pa.array(triples[:, place]) for place in range(3)]
    for places, name in (((0, 2), "entity_to_id"), ((1,), "relation_to_id")):
        labels = getattr(factory, name, None)
        if labels:
            by_number = pa.array([label for label, _ in sorted(labels.items(), key=lambda item: item[1])])
            for place in places:
                columns[place] = by_number.take(columns[place])
    return pa.table(dict(zip(_COLUMNS, columns, strict=True)))


def _of_tuples(source: Any, name: str) -> pa.Table:
    """Read a sequence of (head, relation, tail): a list, an array, or a map-style Dataset."""
    rows: list[Any] = []
    for number in range(len(source)):
        row = source[number]
        if isinstance(row, tuple) and len(row) == 1:  # a TensorDataset of one tensor
            (row,) = row
        values = [value.item() if hasattr(value, "item") else value for value in row] if hasattr(row, "__len__") else []
        if isinstance(row, str) or len(values) != 3:
            raise ValueError(f"{name}[{number}] is {row!r}; expected (head, relation, tail)")
        rows.append(values)
    try:
        columns = [pa.array([row[place] for row in rows]) for place in range(3)]
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{name}: ids must be all integers or all strings: {error}") from error
    return pa.table(dict(zip(_COLUMNS, columns, strict=True)))


def _number(tables: list[pa.Table], present: list[bool], types: Mapping[str, tuple[str, str]] | None) -> TripleSplit:
    sizes = [table.num_rows for table in tables]
    together = pa.concat_tables([table.select(_COLUMNS) for table in _of_one_type(tables)])
    relation_column = together["relation"].cast(pa.string()).combine_chunks()
    numbers, names = _encode(relation_column)
    relation_names = tuple(names.to_pylist())
    ends = dict.fromkeys(relation_names, (_ENTITY, _ENTITY)) if types is None else dict(types)
    unknown = [name for name in relation_names if name not in ends]
    if unknown:
        raise ValueError(f"types says nothing of the relations {unknown}; give each one's (type of heads, type of tails)")
    ends = {name: (ends[name][0], ends[name][1]) for name in relation_names}
    columns = {"head": np.empty(len(numbers), np.int32), "tail": np.empty(len(numbers), np.int32)}
    ids: dict[str, pa.Array] = {}
    for node_type in dict.fromkeys(end for pair in ends.values() for end in pair):
        masks = [np.array([ends[name][end] == node_type for name in relation_names])[numbers] for end in range(2)]
        parts = [together[column].filter(pa.array(mask)) for column, mask in zip(("head", "tail"), masks, strict=True)]
        if len({part.type for part in parts if len(part)}) > 1:
            raise ValueError(
                f"ids of {node_type!r} are {parts[0].type} where they are heads and {parts[1].type} where they are tails: "
                "make them "
                "alike, or name their types by types={relation: (type of heads, type of tails)}"
            )
        encoded, ids[node_type] = _encode(pa.chunked_array([chunk for part in parts for chunk in part.chunks], parts[0].type))
        columns["head"][masks[0]] = encoded[: masks[0].sum()]
        columns["tail"][masks[1]] = encoded[masks[0].sum() :]
    everything = TripleSet(
        heads=columns["head"],
        relations=numbers,
        tails=columns["tail"],
        relation_names=relation_names,
        ends=ends,
        num_nodes={name: len(values) for name, values in ids.items()},
        ids=ids,
    )
    bounds, pieces = np.cumsum([0, *sizes]), []
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        pieces.append(everything.take(slice(begin, end)))
    if "weight" in tables[0].column_names:
        pieces[0] = replace(pieces[0], weights=tables[0]["weight"].cast(pa.float64()).to_numpy().astype(np.float64))
    given = iter(pieces)
    train, valid, test = (next(given) if here else everything.take(slice(0)) for here in present)
    return TripleSplit(train=train, valid=valid, test=test)


def _of_one_type(tables: list[pa.Table]) -> list[pa.Table]:
    """Bring the parts' columns to int64 or string each, the same in all parts."""
    casted = []
    for table in tables:
        columns = {}
        for name in _COLUMNS:
            kind = table[name].type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if pa.types.is_integer(kind):
                columns[name] = table[name].cast(pa.int64())
            elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
                columns[name] = table[name].cast(pa.string())
            else:
                raise ValueError(f"column {name!r} is {kind}; ids are integers or strings")
        casted.append(pa.table(columns))
    for name in _COLUMNS:
        kinds = {table[name].type for table in casted}
        if len(kinds) > 1:
            raise ValueError(f"column {name!r} is of the types {sorted(map(str, kinds))} in the parts; make them alike")
    return casted


def _encode(values: Any) -> tuple[NDArray[np.int32], pa.Array]:
    encoded = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    encoded = pc.dictionary_encode(encoded)
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.indices.to_numpy().astype(np.int32), encoded.dictionary


def _settle(split: TripleSplit, duplicates: Duplicates) -> TripleSplit:
    """Refuse or drop what stands there twice, within a part and in two of them."""
    parts = dict(zip(("train", "valid", "test"), split, strict=True))
    for name, part in parts.items():
        first = first_positions(part)
        if len(first) < len(part) and duplicates == "refuse":
            raise ValueError(
                f"{len(part) - len(first)} triples of {name} stand there more than once: drop or keep them by "
                "duplicates='drop' or "
                "'keep' (--duplicates)"
            )
        # What is ranked is ranked once.
        parts[name] = part if duplicates == "keep" and name == "train" else part.take(first)
    for earlier, later in (("valid", "test"), ("train", "valid"), ("train", "test")):
        shared = are_among(parts[earlier], parts[later])
        if shared.any() and duplicates == "refuse":
            raise ValueError(
                f"{int(shared.sum())} triples of {earlier} stand in {later} too, and would be learned from and ranked at "
                "once: remove "
                f"them, or leave them out of {earlier} by duplicates='drop' (--duplicates drop)"
            )
        parts[earlier] = parts[earlier].take(~shared)
    return TripleSplit(**parts)
