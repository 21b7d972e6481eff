"""What an embedding table is: artefacts, id maps, snapshots, codecs, row-wise optimisers."""

from tables.artifact import Artifact, ArtifactError, ArtifactWriter, remove_stale_temporaries
from tables.codec import Precision, decode, encode, row_bytes
from tables.collisions import CollisionReport
from tables.idmap import IdMap
from tables.rowwise import RowwiseAdagrad, accumulate_rows
from tables.snapshot import Snapshot, SnapshotTable

__all__ = [
    "Artifact",
    "ArtifactError",
    "ArtifactWriter",
    "CollisionReport",
    "IdMap",
    "Precision",
    "RowwiseAdagrad",
    "Snapshot",
    "SnapshotTable",
    "accumulate_rows",
    "decode",
    "encode",
    "remove_stale_temporaries",
    "row_bytes",
]
