"""The graph's schema: node types and relations."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from graphdb.sql import GraphError

IdType = Literal["int64", "string"]
Surface = Literal["onsite", "offsite"]

_PROPERTY_TYPES = frozenset({"BOOLEAN", "INTEGER", "BIGINT", "FLOAT", "DOUBLE", "VARCHAR", "DATE", "TIMESTAMP"})
_RESERVED_PROPERTIES = frozenset({"idx", "id"})


class _Declaration(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NodeType(_Declaration):
    """A type of node, such as user, pin or advertiser."""

    name: str = Field(description="name of the node type", pattern=r"\S", max_length=100)
    id_type: IdType = Field(default="int64", description="type of the external ids: int64 or string")
    properties: dict[str, str] = Field(default_factory=dict, description="property name -> DuckDB type")

    @model_validator(mode="after")
    def _check_properties(self) -> Self:
        for name, duckdb_type in self.properties.items():
            if name.lower() in _RESERVED_PROPERTIES:
                msg = f"node type {self.name!r}: property {name!r} is reserved; rename the column"
                raise ValueError(msg)
            if duckdb_type not in _PROPERTY_TYPES:
                msg = (
                    f"node type {self.name!r}: property {name!r} has type {duckdb_type!r}, "
                    f"expected one of {', '.join(sorted(_PROPERTY_TYPES))}"
                )
                raise ValueError(msg)
        return self

    @property
    def sql_id_type(self) -> str:
        """DuckDB type of the external ids."""
        return "BIGINT" if self.id_type == "int64" else "VARCHAR"


class Relation(_Declaration):
    """A typed edge `(src, name, dst)`.

    `surface` tells where the edge was seen: onsite (the platform's own pages and catalogue) or offsite (opt-in conversions
    on an advertiser's side).
    """

    src: str = Field(description="node type of the edge's head")
    name: str = Field(description="name of the relation, unique in its schema", pattern=r"\S", max_length=100)
    dst: str = Field(description="node type of the edge's tail")
    surface: Surface = Field(default="onsite", description="onsite or offsite")
    timed: bool = Field(default=True, description="whether an edge has a time; untimed edges are in every window")
    weighted: bool = Field(default=False, description="whether an edge has a weight")

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
        """Reads `[nodes.<name>]` and `[relations.<name>]` tables; keys that are not the schema's are refused."""
        with Path(path).open("rb") as file:
            document = tomllib.load(file)
        return cls(
            nodes=tuple(NodeType(name=name, **fields) for name, fields in document.get("nodes", {}).items()),
            relations=tuple(Relation(name=name, **fields) for name, fields in document.get("relations", {}).items()),
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


def _refuse_duplicates(what: str, names: Sequence[str]) -> None:
    # DuckDB's identifiers do not tell upper from lower case apart, so neither may ours.
    seen: dict[str, str] = {}
    for name in names:
        if name.lower() in seen:
            msg = f"{what} {name!r} is declared twice (as {seen[name.lower()]!r}; case does not count); rename one"
            raise ValueError(msg)
        seen[name.lower()] = name
