"""A program's JSON is arithmetic and operators, its members are stored as they are: else torch never reads it."""

from __future__ import annotations

import json
import time
import zipfile

import pytest
import torch

from multifacet.artifacts import ArtifactError
from multifacet.serving.release.program_text import is_arithmetic
from multifacet.serving.release.upper import load_program


class _Net(torch.nn.Module):
    def forward(self, dense, embeddings):
        both = torch.cat([dense, embeddings.flatten(1)], 1)
        rows = torch.softmax(both.view(both.shape[0] * 1, -1), 1)
        kept = rows[: (dense.shape[0] + 3) // 2 + dense.shape[0] ** 2]
        return kept.sum() + both[:, :2] * (dense.shape[0] % 7)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    batch = torch.export.Dim("batch", min=1, max=100_000)
    example = (torch.zeros(3, 3), torch.zeros(3, 4, 16))
    exported = torch.export.export(_Net().eval(), example, dynamic_shapes=({0: batch}, {0: batch}))
    exported.example_inputs = None
    path = tmp_path_factory.mktemp("program") / "upper.pt2"
    torch.export.save(exported, path)
    return path


def _rewrite(program, path, change, **options):
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(path, "w", **options) as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, change(json.loads(content)) if "/models/" in name else content)
    return path


def _with(key, value):
    def change(document):
        text = json.dumps(document)
        found = []

        def walk(node):
            if isinstance(node, dict):
                if key in node and isinstance(node[key], str):
                    found.append(node[key])
                    node[key] = value
                for item in list(node.values()):
                    walk(item)
            elif isinstance(node, list):
                for item in node:
                    walk(item)

        walk(document)
        assert found, text[:200]
        return json.dumps(document)

    return change


def test_a_program_of_sizes_and_arithmetic_is_read(program):
    module = load_program(program).module()
    assert module(torch.ones(5, 3), torch.ones(5, 4, 16)).shape == (5, 2)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('pathlib').Path('{mark}').touch()",
        "Symbol('s0', positive=__import__('pathlib').Path('{mark}').touch())",
        "Symbol(name=open('{mark}', 'w'))",
        "(lambda: open('{mark}', 'w'))()",
        "[open('{mark}', 'w') for _ in [1]][0]",
        "s0.__class__",
        "f'{{s0}}'",
        "9**9**9",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "factorial(100000000)",
        "(" * 5000 + "s0" + ")" * 5000,
        "Add(" + "1" * 1900 + ", 1)",
    ],
)
def test_an_expression_is_compared_and_not_evaluated(program, tmp_path, text):
    mark = tmp_path / "mark"
    path = _rewrite(program, tmp_path / "upper.pt2", _with("expr_str", text.replace("{mark}", str(mark)).replace("{{", "{")))
    started = time.process_time()
    with pytest.raises(ArtifactError, match="only symbols, numbers and arithmetic"):
        load_program(path)
    assert time.process_time() - started < 1
    assert not mark.exists()


@pytest.mark.parametrize("name", ["s0); import os", "__import__('os')"])
def test_so_is_what_has_a_range(program, tmp_path, name):
    def change(document):
        document["range_constraints"] = {name: {"min_val": 1, "max_val": 2}}
        return json.dumps(document)

    with pytest.raises(ArtifactError, match="only symbols have ranges"):
        load_program(_rewrite(program, tmp_path / "upper.pt2", change))


@pytest.mark.parametrize(
    "target",
    ["torch.load", "torch.hub.load", "torch.ops.load_library", "torch.os.system", "torch.ops.aten.__class__", "system"],
)
def test_only_operators_are_called(program, tmp_path, target):
    with pytest.raises(ArtifactError, match="only operators"):
        load_program(_rewrite(program, tmp_path / "upper.pt2", _with("target", target)))


def test_a_member_does_not_expand(program, tmp_path):
    path = _rewrite(
        program, tmp_path / "upper.pt2", lambda _: b" " * (1 << 28), compression=zipfile.ZIP_DEFLATED, compresslevel=1
    )
    started = time.process_time()
    with pytest.raises(ArtifactError, match="is compressed"):
        load_program(path)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "NaN nonsense", ""])
def test_what_is_no_json_is_refused_in_our_words(program, tmp_path, text):
    with pytest.raises(ArtifactError, match="is not JSON"):
        load_program(_rewrite(program, tmp_path / "upper.pt2", lambda _: text))


@pytest.mark.parametrize(
    "text",
    ["s77", "2*s77 + 1", "Mul(Integer(2), Symbol('s11', positive=True, integer=True))", "s0**2 >= 4", "-s0//2"],
)
def test_arithmetic(text):
    assert is_arithmetic(text)
