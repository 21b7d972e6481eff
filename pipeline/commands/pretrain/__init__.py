"""`multifacet pretrain`: from a store, or from plain data, to a snapshot."""

import typer

from multifacet.pipeline.commands.pretrain.contrastive import pretrain_contrastive
from multifacet.pipeline.commands.pretrain.kge import pretrain_kge

app = typer.Typer(no_args_is_help=True, help="Pretrain embedding tables on a window of a graph store.")
app.command("kge")(pretrain_kge)
app.command("contrastive")(pretrain_contrastive)
