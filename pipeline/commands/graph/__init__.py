"""`multifacet graph`: create, load, ask, change and export a graph store."""

import typer

from multifacet.pipeline.commands.graph import explore as walking
from multifacet.pipeline.commands.graph import export as exporting
from multifacet.pipeline.commands.graph import feed as feeding
from multifacet.pipeline.commands.graph import load as building
from multifacet.pipeline.commands.graph import query as asking
from multifacet.pipeline.commands.graph import schema as changing

app = typer.Typer(no_args_is_help=True, help="Create, load, ask, change and export a graph store.")
for _commands in (building, asking, walking, changing, exporting, feeding):
    _commands.register(app)
