"""A checkpoint: all that a training has to remember, as an artefact that is replaced in one step."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from multifacet.tables.artifact import Artifact, ArtifactError, ArtifactWriter
from multifacet.tables.partitions import link_or_copy

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["Checkpoint", "CheckpointError", "SavedState"]

KIND: Final = "checkpoint"
_TENSORS: Final = "state.safetensors"
_MAX_DIFFERENCES: Final = 12


class CheckpointError(ArtifactError):
    """A checkpoint that does not belong to the run that asks for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedState:
    """What a trainer's state is on disk.

    Attributes:
        tensors: name -> tensor, of any dtype and shape.
        fields: JSON-able values: counters, history, the state of a random generator.
        files: name -> file that is never changed in place, such as a table's partition: it is linked, not copied.
    """

    tensors: Mapping[str, Tensor]
    fields: Mapping[str, Any]
    files: Mapping[str, Path] = field(default_factory=dict)


class Checkpoint:
    """The state of one training, on disk.

    On disk it is an `Artifact` of kind "checkpoint"::

        manifest.json        identity, fields, and the file's sha256
        state.safetensors    the tensors
        ...                  the state's files, by their names

    It is written beside its place, fsynced, and exchanged for the one before in one step: whatever happens while it is
    written (a kill, a full disk), the place holds the last whole one. While it is written both need room.

    Attributes:
        identity: what the training is: its configuration, the data that it reads. Only the same run may go on with it.
        fields: the state's JSON-able values.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        try:
            self.identity: Mapping[str, Any] = dict(artifact.manifest["identity"])
            self.fields: Mapping[str, Any] = dict(artifact.manifest["fields"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{artifact.path} is not a checkpoint that this version reads.") from error

    def __repr__(self) -> str:
        num_bytes = sum(file["bytes"] for file in self._artifact.manifest["files"].values())
        return f"{type(self).__name__}({str(self._artifact.path)!r}, bytes={num_bytes})"

    @classmethod
    def write(cls, path: str | os.PathLike[str], state: SavedState, *, identity: Mapping[str, Any]) -> None:
        """Writes a state, in the place of the one before.

        Args:
            path: The checkpoint's directory.
            state: What to write.
            identity: JSON-able; what `load` will compare.

        Raises:
            OSError: The disk is full, for one; the checkpoint before is still there.
            ArtifactError: Something else is at `path`, or a field is not JSON.
        """
        _refuse_others(path)
        with ArtifactWriter(path, kind=KIND, replace=True) as writer:
            writer.manifest |= {"identity": dict(identity), "fields": dict(state.fields)}
            tensors = {name: tensor.detach().contiguous() for name, tensor in state.tensors.items()}
            try:
                save_file(tensors, writer.directory / _TENSORS)
            except SafetensorError as error:
                raise OSError(f"{path} could not be written, the checkpoint before is kept: {error}") from error
            for name, file in state.files.items():
                place = writer.directory / name
                place.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(file, place)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, identity: Mapping[str, Any] | None = None) -> Self:
        """Opens and verifies a checkpoint.

        Args:
            path: The checkpoint's directory.
            identity: What the run that asks for it is; None takes any checkpoint.

        Raises:
            CheckpointError: It is of another run; the message lists what differs.
            ArtifactError: There is none, or it is damaged.
        """
        checkpoint = cls(Artifact.open(path, kind=KIND, verify=True))
        if identity is not None:
            differences = list_differences(checkpoint.identity, identity)
            if differences:
                shown = differences[:_MAX_DIFFERENCES] + ["..."] * (len(differences) > _MAX_DIFFERENCES)
                raise CheckpointError(
                    f"{path} is the checkpoint of another run, so this one cannot go on from it: {'; '.join(shown)}. "
                    "Give the settings and the window of that run, or start anew with another checkpoint folder."
                )
        return checkpoint

    def state(self) -> SavedState:
        """Gives the state; tensors are mapped from the file, so that a table can be filled from one without a second copy."""
        path = self._artifact.file(_TENSORS)
        try:
            with safe_open(path, framework="pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (not a dict)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a safetensors file: {error}.") from error
        files = {name: self._artifact.file(name) for name in self._artifact.manifest["files"] if name != _TENSORS}
        self._artifact.check_unreplaced()
        return SavedState(tensors=tensors, fields=self.fields, files=files)


def list_differences(saved: Any, current: Any, where: str = "") -> list[str]:
    """Lists where two JSON-able documents differ, e.g. `config.lr: 0.1 there, 0.2 here`."""
    if isinstance(saved, dict) and isinstance(current, dict):
        return [
            difference
            for key in dict.fromkeys([*saved, *current])
            for difference in list_differences(
                saved.get(key, "nothing"), current.get(key, "nothing"), f"{where}.{key}" if where else str(key)
            )
        ]
    if isinstance(current, tuple):
        current = list(current)
    return [] if saved == current else [f"{where}: {saved} there, {current} here"]


def _refuse_others(path: str | os.PathLike[str]) -> None:
    """`replace` exchanges any artefact; a checkpoint must not take a snapshot's place."""
    if Path(path).exists():
        Artifact.open(path, kind=KIND, verify=False)
