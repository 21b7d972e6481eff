"""The schema: what it accepts, and what it says about what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from multifacet.graphdb import GraphError, GraphSchema, NodeType, Relation


def test_reads_toml(tmp_path: Path) -> None:
    path = tmp_path / "schema.toml"
    path.write_text(
        "[nodes.user]\n[nodes.tag]\nid_type = 'string'\nproperties = { lang = 'VARCHAR' }\n"
        "[relations.likes]\nsrc = 'user'\ndst = 'tag'\nsurface = 'offsite'\nweighted = true\n"
    )
    schema = GraphSchema.from_toml(path)
    assert schema.node("tag").id_type == "string"
    assert schema.node("tag").properties == {"lang": "VARCHAR"}
    assert schema.relation("likes") == Relation(src="user", name="likes", dst="tag", surface="offsite", weighted=True)
    assert schema.relation("likes").triple == ("user", "likes", "tag")
    assert GraphSchema.model_validate_json(schema.model_dump_json()) == schema


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"name": "user", "id_type": "uuid"}, "int64"),
        ({"name": "user", "colour": "red"}, "colour"),
        ({"name": "user", "properties": {"idx": "INTEGER"}}, "'idx' is reserved"),
        ({"name": "user", "properties": {"age": "INT; DROP TABLE x"}}, "expected one of BIGINT, BOOLEAN"),
        ({"name": "  "}, "pattern"),
        ({"name": "x" * 101}, "100"),
    ],
)
def test_refuses_node_types(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        NodeType.model_validate(fields)


def test_names_the_undeclared_node_type_and_the_known_ones() -> None:
    with pytest.raises(
        ValidationError, match=r"\(user, clicks, pun\): node type 'pun' is not declared, known: \['pin', 'user'\]"
    ):
        GraphSchema(
            nodes=(NodeType(name="user"), NodeType(name="pin")), relations=(Relation(src="user", name="clicks", dst="pun"),)
        )


def test_refuses_names_that_differ_in_case_only() -> None:
    with pytest.raises(ValidationError, match="node type 'User' is declared twice"):
        GraphSchema(nodes=(NodeType(name="user"), NodeType(name="User")))
    relations = tuple(Relation(src="user", name=name, dst="user") for name in ("likes", "LIKES"))
    with pytest.raises(ValidationError, match="relation 'LIKES' is declared twice"):
        GraphSchema(nodes=(NodeType(name="user"),), relations=relations)


def test_look_ups_list_what_there_is(schema: GraphSchema) -> None:
    with pytest.raises(GraphError, match=r"unknown node type 'usr', known: \['user', 'pin', 'category'\]"):
        schema.node("usr")
    with pytest.raises(GraphError, match=r"unknown relation 'click', known: \['clicks', 'buys', 'in'\]"):
        schema.relation("click")
