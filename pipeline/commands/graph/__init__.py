"""`multifacet graph`: create, load, ask, change and export a graph store."""

import typer

from multifacet.pipeline.commands.graph import asking, building, changing, exporting, walking

app = typer.Typer(no_args_is_help=True, help="Create, load, ask, change and export a graph store.")
for _commands in (building, asking, walking, changing, exporting):
    _commands.register(app)
