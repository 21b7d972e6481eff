"""What an embedding table is: artefacts, id maps, snapshots, codecs, row-wise optimisers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multifacet.tables.artifact import Artifact, ArtifactError, ArtifactWriter, remove_stale_temporaries
    from multifacet.tables.checkpoint import Checkpoint, CheckpointError, SavedState
    from multifacet.tables.codec import Precision, Rounding, check_encodable, decode, encode, relative_error, row_bytes
    from multifacet.tables.collisions import CollisionReport
    from multifacet.tables.drift import TableDrift, compare_snapshots
    from multifacet.tables.idmap import IdMap
    from multifacet.tables.mixed import MixedTable, plan_precision
    from multifacet.tables.neighbors import find_neighbors
    from multifacet.tables.rowwise import RowwiseAdagrad, accumulate_rows
    from multifacet.tables.sharded_rows import gather_rows
    from multifacet.tables.snapshot import OptimizerRows, Snapshot, SnapshotTable
    from multifacet.tables.training import Lifecycle, Position, StepProgress, TrainingRun
    from multifacet.tables.warmstart import WarmStart

__all__ = [
    "Artifact",
    "ArtifactError",
    "ArtifactWriter",
    "Checkpoint",
    "CheckpointError",
    "CollisionReport",
    "IdMap",
    "Lifecycle",
    "MixedTable",
    "OptimizerRows",
    "Position",
    "Precision",
    "Rounding",
    "RowwiseAdagrad",
    "SavedState",
    "Snapshot",
    "SnapshotTable",
    "StepProgress",
    "TableDrift",
    "TrainingRun",
    "WarmStart",
    "accumulate_rows",
    "check_encodable",
    "compare_snapshots",
    "decode",
    "encode",
    "find_neighbors",
    "gather_rows",
    "plan_precision",
    "relative_error",
    "remove_stale_temporaries",
    "row_bytes",
]

# Imported at first use: opening an artefact needs neither torch nor FBGEMM, whose imports take seconds.
_MODULES = {
    "artifact": ("Artifact", "ArtifactError", "ArtifactWriter", "remove_stale_temporaries"),
    "checkpoint": ("Checkpoint", "CheckpointError", "SavedState"),
    "codec": ("Precision", "Rounding", "check_encodable", "decode", "encode", "relative_error", "row_bytes"),
    "collisions": ("CollisionReport",),
    "drift": ("TableDrift", "compare_snapshots"),
    "idmap": ("IdMap",),
    "mixed": ("MixedTable", "plan_precision"),
    "neighbors": ("find_neighbors",),
    "rowwise": ("RowwiseAdagrad", "accumulate_rows"),
    "sharded_rows": ("gather_rows",),
    "snapshot": ("OptimizerRows", "Snapshot", "SnapshotTable"),
    "training": ("Lifecycle", "Position", "StepProgress", "TrainingRun"),
    "warmstart": ("WarmStart",),
}
_MODULE_OF = {name: f"tables.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'tables' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
