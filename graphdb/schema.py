"""The graph's schema: node types and relations."""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from multifacet.graphdb.sql import GraphError

IdType = Literal["int64", "string"]
Surface = Literal["onsite", "offsite"]
Duplicates = Literal["first", "last", "sum", "all"]

_INTEGER = re.compile(r"[+-]?[0-9]+")
#: DuckDB types that a property can have.
PROPERTY_TYPES = frozenset({"BOOLEAN", "INTEGER", "BIGINT", "FLOAT", "DOUBLE", "VARCHAR", "DATE", "TIMESTAMP"})
#: What columns of the store's own begin with.
_OWN_PREFIX = "_mf_"
_RESERVED_NODE_PROPERTIES = frozenset({"idx", "id"})
_RESERVED_EDGE_PROPERTIES = frozenset({"src", "dst", "src_idx", "dst_idx", "src_id", "dst_id", "time", "weight"})


class _Declaration(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _in_capitals(properties: Any) -> Any:
    """DuckDB's names of types, which may be written small."""
    if not isinstance(properties, Mapping):
        return properties
    return {name: kind.strip().upper() if isinstance(kind, str) else kind for name, kind in properties.items()}


Properties = Annotated[dict[str, str], BeforeValidator(_in_capitals)]


class NodeType(_Declaration):
    """A type of node, such as user, pin or advertiser."""

    name: str = Field(description="name of the node type", pattern=r"\S", max_length=100)
    id_type: IdType = Field(default="int64", description="type of the external ids: int64 or string")
    properties: Properties = Field(default_factory=dict, description="property name -> DuckDB type")

    @model_validator(mode="after")
    def _check_properties(self) -> Self:
        _check_properties(f"node type {self.name!r}", self.properties, _RESERVED_NODE_PROPERTIES)
        return self

    @property
    def sql_id_type(self) -> str:
        """DuckDB type of the external ids."""
        return "BIGINT" if self.id_type == "int64" else "VARCHAR"

    def external_id(self, given: int | str) -> int | str:
        """An external id of this type, also from its digits, as a command line has them.

        Raises:
            GraphError: What is given cannot be one.
        """
        if self.id_type == "string":
            if isinstance(given, str):
                return given
            expected = f"strings, such as {str(given)!r}"
        else:
            expected = "int64"
            if isinstance(given, int) or _INTEGER.fullmatch(given):
                number = int(given)
                if -(1 << 63) <= number < 1 << 63:
                    return number
        msg = f"{given!r} is not an id of {self.name!r}, whose ids are {expected}"
        raise GraphError(msg)


class Relation(_Declaration):
    """A typed edge `(src, name, dst)`.

    `surface` tells where the edge was seen: onsite (the platform's own pages and catalogue) or offsite (opt-in conversions
    on an advertiser's side).
    """

    src: str = Field(description="node type of the edge's head")
    name: str = Field(description="name of the relation, unique in its schema", pattern=r"\S", max_length=100)
    dst: str = Field(description="node type of the edge's tail")
    surface: Surface = Field(default="onsite", description="onsite or offsite")
    timed: bool = Field(
        default=True, description="whether edges have times; an untimed one is in each window of both of its ends"
    )
    weighted: bool = Field(default=False, description="whether an edge has a weight")
    properties: Properties = Field(default_factory=dict, description="property of an edge -> DuckDB type")
    duplicates: Duplicates = Field(
        default="first",
        description="what becomes of rows with the same src, dst and time: the first or the last stands, their weights are "
        "summed, or all are edges",
    )
    out_clustered: bool = Field(default=False, description="whether to keep a copy clustered by (src, time) for out-neighbours")

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_properties(f"relation {self}", self.properties, _RESERVED_EDGE_PROPERTIES)
        if self.duplicates == "sum" and not self.weighted:
            msg = f"relation {self}: duplicates = 'sum' adds up weights, but the relation is not weighted; set weighted = true"
            raise ValueError(msg)
        return self

    @property
    def triple(self) -> tuple[str, str, str]:
        """PyG's edge type."""
        return self.src, self.name, self.dst

    def __str__(self) -> str:
        return f"({self.src}, {self.name}, {self.dst})"


class GraphSchema(_Declaration):
    """Node types and the relations between them.

    Example:
        >>> schema = GraphSchema(
        ...     nodes=(NodeType(name="user"), NodeType(name="pin")),
        ...     relations=(Relation(src="user", name="clicks", dst="pin"),),
        ... )
        >>> schema.relation("clicks").triple
        ('user', 'clicks', 'pin')
    """

    nodes: tuple[NodeType, ...] = Field(description="node types", min_length=1)
    relations: tuple[Relation, ...] = Field(default=(), description="relations between the node types")

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        _refuse_duplicates("node type", [node.name for node in self.nodes])
        _refuse_duplicates("relation", [relation.name for relation in self.relations])
        known = {node.name for node in self.nodes}
        for relation in self.relations:
            for end in (relation.src, relation.dst):
                if end not in known:
                    msg = f"relation {relation}: node type {end!r} is not declared, known: {sorted(known)}"
                    raise ValueError(msg)
        return self

    @classmethod
    def from_toml(cls, path: str | Path) -> GraphSchema:
        """Reads `[nodes.<name>]` and `[relations.<name>]` tables.

        Raises:
            GraphError: The file cannot be read, or has a section or a key that is not the schema's.
        """
        document = read_toml(path)
        unknown = [name for name in document if name not in {"nodes", "relations"}]
        if unknown:
            way = "a recipe is given as such" if "source" in document else "expected [nodes.<name>] and [relations.<name>]"
            msg = f"{path}: unknown section {', '.join(map(repr, unknown))}; {way}"
            raise GraphError(msg)
        with told_by_section(path):
            return cls(
                nodes=tuple(_declared(NodeType, "nodes", document) if "nodes" in document else ()),
                relations=tuple(_declared(Relation, "relations", document)),
            )

    def node(self, name: str) -> NodeType:
        """The node type called `name`; `GraphError` lists the known ones."""
        for node in self.nodes:
            if node.name == name:
                return node
        msg = f"unknown node type {name!r}, known: {[node.name for node in self.nodes]}"
        raise GraphError(msg)

    def relation(self, name: str) -> Relation:
        """The relation called `name`; `GraphError` lists the known ones."""
        for relation in self.relations:
            if relation.name == name:
                return relation
        msg = f"unknown relation {name!r}, known: {[relation.name for relation in self.relations]}"
        raise GraphError(msg)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        GraphError: There is none at `path`, or it is not TOML.
    """
    try:
        with Path(path).open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise GraphError(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path} is not TOML: {error}"
        raise GraphError(msg) from error


@contextlib.contextmanager
def told_by_section(path: str | Path, section: str = "") -> Iterator[None]:
    """Tells what a file's declarations lack by section and key, as the file has them.

    Raises:
        GraphError: Something is wrong with them.
    """
    try:
        yield
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            place = ".".join(str(part) for part in (section, *fault["loc"]) if part != "")
            told = _FAULTS.get(fault["type"], fault["msg"].removeprefix("Value error, "))
            faults.append(f"{f'[{place}] ' if place else ''}{told}")
        msg = f"{path}: {'; '.join(faults)}"
        raise GraphError(msg) from error


#: Faults by pydantic's name of their kind.
_FAULTS = {"extra_forbidden": "is no key that is known here", "missing": "is missing"}
_Declared = TypeVar("_Declared", NodeType, Relation)


def _declared(kind: type[_Declared], section: str, document: Mapping[str, Any]) -> Iterator[_Declared]:
    tables = document.get(section, {})
    if not isinstance(tables, Mapping) or not all(isinstance(fields, Mapping) for fields in tables.values()):
        msg = f"expected tables [{section}.<name>], got {section} = {tables!r}"
        raise GraphError(msg)
    for name, fields in tables.items():
        with told_by_section("the schema", f"{section}.{name}"):
            yield kind.model_validate({"name": name, **fields})


def _check_properties(owner: str, properties: dict[str, str], reserved: frozenset[str]) -> None:
    _refuse_duplicates(f"{owner}: property", list(properties))
    for name, duckdb_type in properties.items():
        if name.lower() in reserved or name.lower().startswith(_OWN_PREFIX):
            msg = f"{owner}: property {name!r} is reserved; rename the column"
            raise ValueError(msg)
        if duckdb_type not in PROPERTY_TYPES:
            msg = f"{owner}: property {name!r} has type {duckdb_type!r}, expected one of {', '.join(sorted(PROPERTY_TYPES))}"
            raise ValueError(msg)


def _refuse_duplicates(what: str, names: Sequence[str]) -> None:
    # DuckDB's identifiers do not tell upper from lower case apart, so neither may ours.
    seen: dict[str, str] = {}
    for name in names:
        if name.lower() in seen:
            msg = f"{what} {name!r} is declared twice (as {seen[name.lower()]!r}; case does not count); rename one"
            raise ValueError(msg)
        seen[name.lower()] = name


def choose_relations(
    schema: GraphSchema, relations: Sequence[str] | None, surface: Surface | None, types: Sequence[str] | None
) -> list[Relation]:
    """Give the relations of a view: those named, of a surface, and with both ends of the types that are kept.

    Raises:
        GraphError: Nothing has such a name, or a named relation ends in a type that is not kept.
    """
    chosen = [schema.relation(name) for name in relations] if relations is not None else list(schema.relations)
    chosen = [relation for relation in chosen if surface is None or relation.surface == surface]
    if types is None:
        return chosen
    kept = {schema.node(name).name for name in types}
    outside = [relation for relation in chosen if not {relation.src, relation.dst} <= kept]
    if relations is not None and outside:
        msg = f"relation {outside[0]} has an end that is not of types={list(types)}; add its type, or leave it out"
        raise GraphError(msg)
    return [relation for relation in chosen if relation not in outside]
