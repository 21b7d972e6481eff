"""What the JSON of an exported program may say before torch reads it.

``torch.export.load`` gives the program's expressions (sizes such as ``2*s77 + 1``) to sympy, which evaluates them as Python. It
looks its operators up by their dotted names anywhere below ``torch``. So both are compared with what an export writes: symbols,
numbers and arithmetic; and operators of torch's dispatcher, of ``operator`` and of ``math``.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any, Final

_SYMBOL: Final = re.compile(r"[a-z]{1,8}[0-9]{1,6}")
_OPERATOR: Final = re.compile(
    r"torch\.ops\.[a-z][a-z0-9_]*\.[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)?"
    r"|torch\.ops\.aten\._[a-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)?"
    r"|torch\.ops\.aten\.__i?(or|and|xor|lshift|rshift)__(\.[A-Za-z][A-Za-z0-9_]*)?"
    r"|torch\.sym_[a-z]+|torch\._sym_sqrt|_operator\.[a-z]+_?|math\.[a-z0-9]+"
)
_FUNCTIONS: Final = frozenset(
    {"Add", "Mul", "Pow", "Integer", "Rational", "Max", "Min", "Mod", "Abs", "Equality", "Unequality", "StrictGreaterThan"}
    | {"GreaterThan", "StrictLessThan", "LessThan", "Eq", "Ne", "Gt", "Ge", "Lt", "Le", "Not", "And", "Or"}
    | {"PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "CeilToInt", "FloorToInt", "IntTrueDiv", "FloatTrueDiv", "ToFloat"}
    | {"TruncToInt", "ModularIndexing", "PowByNatural", "Where"}
)
_CONSTANTS: Final = frozenset({"oo", "int_oo", "true", "false"})
_ASSUMPTIONS: Final = frozenset({"integer", "positive", "nonnegative", "negative", "nonzero", "real", "finite", "zero"})
_BINARY: Final = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.BitAnd, ast.BitOr)
_COMPARISONS: Final = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_MAX_LENGTH: Final = 2000
_MAX_NUMBER: Final = 1 << 64
_MAX_POWER: Final = 16
_MAX_POWERS: Final = 4


def check_program_text(content: bytes) -> str:
    """What is wrong with a member of ``models/``; empty if nothing is.

    Args:
        content: The member's bytes.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {error}"
    pending: list[Any] = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            fault = _fault_of(value)
            if fault:
                return fault
            pending += value.values()
    return ""


def _fault_of(fields: dict[str, Any]) -> str:
    expression = fields.get("expr_str")
    if expression is not None and not is_arithmetic(expression):
        return f"has the expression {str(expression)[:200]!r}: only symbols, numbers and arithmetic are accepted"
    ranges = fields.get("range_constraints")
    for name in ranges if isinstance(ranges, dict) else ():
        if not is_arithmetic(name):
            return f"has a range of {str(name)[:200]!r}: only symbols have ranges"
    target = fields.get("target")
    if isinstance(target, str) and "inputs" in fields and not _OPERATOR.fullmatch(target):
        return f"calls {target[:200]!r}: only operators of torch.ops, operator and math are accepted"
    return ""


def is_arithmetic(text: object) -> bool:
    """Whether a text is an expression of symbols, numbers and arithmetic, small enough to be worked out at once.

    Example:
        >>> is_arithmetic("2*s77 + Max(1, s3)//4"), is_arithmetic("Mul(Integer(2), Symbol('s77', integer=True))")
        (True, True)
        >>> is_arithmetic("__import__('os')"), is_arithmetic("9**9**9")
        (False, False)
    """
    if not isinstance(text, str) or len(text) > _MAX_LENGTH or not text.isascii():
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
        num_powers = sum(_is_power(node) for node in ast.walk(tree))
        return num_powers <= _MAX_POWERS and _is_plain(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_plain(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bool | int | float) and abs(node.value) <= _MAX_NUMBER
    if isinstance(node, ast.Name):
        return node.id in _CONSTANTS or _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Call):
        return _is_plain_call(node)
    if isinstance(node, ast.BinOp):
        small = not isinstance(node.op, ast.Pow) or _is_small(node.right)
        return isinstance(node.op, _BINARY) and small and _is_plain(node.left) and _is_plain(node.right)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub | ast.UAdd | ast.Invert) and _is_plain(node.operand)
    if isinstance(node, ast.Compare):
        return all(map(_is_plain, (node.left, *node.comparators))) and all(isinstance(op, _COMPARISONS) for op in node.ops)
    return False


def _is_plain_call(node: ast.Call) -> bool:
    """A call as sympy's own notation has it: ``Symbol('s3', integer=True)``, ``Integer(2)``, ``Mul(..., ...)``."""
    if not isinstance(node.func, ast.Name):
        return False
    for keyword in node.keywords:
        if keyword.arg not in _ASSUMPTIONS or not isinstance(keyword.value, ast.Constant):
            return False
        if not isinstance(keyword.value.value, bool):
            return False
    if node.func.id == "Symbol":
        name = node.args[0].value if len(node.args) == 1 and isinstance(node.args[0], ast.Constant) else None
        return isinstance(name, str) and _SYMBOL.fullmatch(name) is not None
    if node.keywords or node.func.id not in _FUNCTIONS:
        return False
    if _is_power(node) and not (len(node.args) == 2 and _is_small(node.args[1])):
        return False
    return all(map(_is_plain, node.args))


def _is_power(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in {"Pow", "PowByNatural"}
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)


def _is_small(node: ast.AST) -> bool:
    """Whether an exponent is a small whole number."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Integer" and len(node.args) == 1:
        return _is_small(node.args[0])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _is_small(node.operand)
    return isinstance(node, ast.Constant) and isinstance(node.value, int) and 0 <= node.value <= _MAX_POWER
