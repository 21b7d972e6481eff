"""The reference: a page a room from its face and its docstrings, one of the commands, one of the configurations."""

import ast
import html
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from multifacet.pipeline.cli import app

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("graphdb", "tables", "training", "kge", "contrastive", "ranking", "serving", "artifacts", "inputs")


def homes(room: str) -> dict[str, str]:
    """Map each public name of a room to the module that defines it, as the room's face (or its stub) imports it."""
    package = f"multifacet.{room}"
    folder = ROOT / "multifacet" / room
    face = folder / "__init__.pyi"
    tree = ast.parse((face if face.exists() else folder / "__init__.py").read_text())
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("multifacet")):
            module = f"{package}.{node.module}" if node.level else str(node.module)
            found |= {alias.asname or alias.name: module for alias in node.names}
    return {name: found.get(name, package) for name in sorted(importlib.import_module(package).__all__, key=str.lower)}


def undocumented(room: str) -> Iterator[str]:
    """Name what a reader of the reference would find without a word: names, methods, properties, fields of configurations."""
    module = importlib.import_module(f"multifacet.{room}")
    for name in module.__all__:
        thing = getattr(module, name)
        path = f"multifacet.{room}.{name}"
        if not (inspect.isclass(thing) or (inspect.isroutine(thing) and thing.__name__ == name)):
            continue  # a constant or the name of a type, which the page shows as it is written
        if not inspect.getdoc(thing):
            yield path
        if not inspect.isclass(thing):
            continue
        fields = getattr(thing, "model_fields", {})
        yield from (f"{path}.{field}" for field, info in fields.items() if not info.description)
        for member, value in vars(thing).items():
            is_said = inspect.isroutine(getattr(value, "__func__", value)) or isinstance(value, property)
            if is_said and not member.startswith("_") and not inspect.getdoc(getattr(thing, member)):
                yield f"{path}.{member}"


def room_page(room: str) -> str:
    """Write a room's page: its public names, each by its docstring."""
    module = importlib.import_module(f"multifacet.{room}")
    lines = [f"# multifacet.{room}", "", inspect.getdoc(module) or "", ""]
    for name, home in homes(room).items():
        lines += [f"::: {home}.{name}", ""]
        if name in configurations():  # its fields have a table of their own
            lines[-1:] = ["    options:", "      members: false", "      show_signature: false", ""]
            lines += [f"Its fields: [configuration](configuration.md#{name.lower()}).", ""]
    return "\n".join(lines)


def configurations() -> dict[str, type[BaseModel]]:
    """Find the public configurations of all rooms, by name."""
    found: dict[str, type[BaseModel]] = {}
    for room in ROOMS:
        module = importlib.import_module(f"multifacet.{room}")
        for name in module.__all__:
            thing = getattr(module, name)
            if isinstance(thing, type) and issubclass(thing, BaseModel) and thing.model_fields:
                found[name] = thing
    return found


def configuration_page() -> str:
    """Write a table of fields for each public configuration."""
    lines = ["# Configuration", "", "Every field of every public configuration, with its type, default and meaning.", ""]
    for name, config in sorted(configurations().items()):
        summary = (inspect.getdoc(config) or "").split("\n\n")[0].replace("\n", " ")
        lines += [f"## {name} {{ #{name.lower()} }}", "", f"`{config.__module__.rsplit('.', 1)[0]}`. {summary}", ""]
        lines += ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
        for field, info in config.model_fields.items():
            kind = info.annotation.__name__ if isinstance(info.annotation, type) else str(info.annotation)
            lines.append(_table_row(_code(field), _code(_short(kind)), _default(info), info.description or ""))
        lines.append("")
    return "\n".join(lines)


def commands_page() -> str:
    """Write every command of `multifacet` with its arguments and options."""
    lines = ["# Commands", "", "Every command ends with 0 for success, 1 for failure and 2 for wrong usage.", ""]
    for path, command in _commands(typer.main.get_command(app), "multifacet"):
        lines += [f"## {path}", "", inspect.cleandoc(command.help or ""), ""]
        arguments = " ".join(_metavar(parameter) for parameter in command.params if parameter.param_type_name == "argument")
        lines += [f"    {path} {arguments} [OPTIONS]".replace("  [", " ["), ""]
        rows = [_row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
        if rows:
            lines += ["| option | meaning | default |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


def index_page() -> str:
    """Write the page that leads to the others."""
    lines = ["# Reference", "", "Written by the build, from docstrings, commands and configurations.", ""]
    for room in ROOMS:
        module = importlib.import_module(f"multifacet.{room}")
        lines.append(f"- [`multifacet.{room}`]({room}.md): {(inspect.getdoc(module) or '').splitlines()[0]}")
    lines += ["- [Commands](commands.md)", "- [Configuration](configuration.md)", ""]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Give the text of each page by its place below docs."""
    found = {f"reference/{room}.md": room_page(room) for room in ROOMS}
    found["reference/commands.md"] = commands_page()
    found["reference/configuration.md"] = configuration_page()
    found["reference/index.md"] = index_page()
    return found


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
    else:
        for name, child in sorted(children.items()):
            yield from _commands(child, f"{path} {name}")


def _metavar(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name).upper().replace("_", "-")
    return name if parameter.required else f"[{name}]"


def _row(parameter: Any) -> str:
    is_option = parameter.param_type_name == "option"
    names = ", ".join(_code(name) for name in parameter.opts) if is_option else _code(_metavar(parameter))
    default = parameter.default
    is_plain = default is None or default is False or default in ((), []) or callable(default)
    shown = "required" if parameter.required else "" if is_plain else _code(str(default))
    return _table_row(names, getattr(parameter, "help", None) or "", shown)


def _default(info: Any) -> str:
    if info.is_required():
        return "required"
    if info.default is PydanticUndefined or info.default_factory is not None:
        return "derived"
    value = info.default
    return _code(f"{type(value).__name__}()" if isinstance(value, BaseModel) else repr(value))


def _code(text: str) -> str:
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"


def _table_row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("\n", " ").replace("|", "&#124;") for cell in cells) + " |"


def _short(kind: str) -> str:
    for module in ("typing.", "pathlib.", "collections.abc.", "datetime."):
        kind = kind.replace(module, "")
    return ".".join(kind.split(".")[-1:]) if kind.startswith("multifacet.") else kind
