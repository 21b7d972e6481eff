"""The upper model of a release: an exported program that runs without the code that trained it.

What ``torch.export.save`` writes (torch 2.13) is a zip archive: each weight as raw bytes with its dtype and shape in
``data/weights/model_weights_config.json``, the graph as JSON in ``models/model.json``. Three places may hold pickles,
though, and ``torch.export.load`` unpickles them with ``weights_only=False``, which runs any code that they name:
weights and constants of a tensor subclass (``use_pickle``), custom and opaque object constants, and the sample inputs
(tried with ``weights_only=True`` first, then without). Plain models have only the last. `publish` therefore drops the
sample inputs, and every archive is looked through here before torch may load it.

The graph's JSON is looked through as well: torch would evaluate the expressions in it (`serving.release.program_text`). Members
must be stored as they are, so that none expands beyond the size that the manifest gives the file. What operators a graph calls
is its author's choice all the same: serve only releases whose version you know.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass
from torch.fx.graph import CodeGen

from multifacet.artifacts import ArtifactError
from multifacet.serving.release.program_text import check_program_text

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

_PICKLE_FREE_PREFIXES = ("weight_", "tensor_")


def check_archive(path: Path, *, allow_sample_inputs: bool = False) -> None:
    """Refuse a program whose loading would unpickle anything but plain tensors.

    Args:
        path: The ``.pt2`` file.
        allow_sample_inputs: Whether it may hold sample inputs, provided that they are plain tensors.

    Raises:
        ArtifactError: It is not such an archive, or has a pickled member; the member is named.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_names(path, archive)
            _check_sizes(path, archive)
            for name in archive.namelist():
                _check_member(path, archive, name, allow_sample_inputs=allow_sample_inputs)
    except ArtifactError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, EOFError) as error:
        raise ArtifactError(f"{path} is not a torch.export archive: {error!r}") from error


def _check_names(path: Path, archive: zipfile.ZipFile) -> None:
    names = archive.namelist()
    if len(set(names)) != len(names):
        raise ArtifactError(f"{path}: the archive has two members of one name")
    if not any("/models/" in name for name in names):
        raise ArtifactError(f"{path}: no program inside; write it with torch.export.save")


def _check_sizes(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse members that are more than the file: the manifest bounds its size, and torch.export.save compresses none."""
    members = archive.infolist()
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ArtifactError(f"{path}: {member.filename} is compressed; torch.export.save stores members as they are")
    num_bytes = sum(member.file_size for member in members)
    if num_bytes > path.stat().st_size:
        raise ArtifactError(
            f"{path}: its members have {num_bytes} bytes together, the file {path.stat().st_size}: they overlap"
        )


def _check_member(path: Path, archive: zipfile.ZipFile, name: str, *, allow_sample_inputs: bool) -> None:
    _, _, inner = name.partition("/")  # the first folder is the file's stem
    if inner.startswith("data/sample_inputs/"):
        _check_sample_inputs(path, name, archive.read(name), allowed=allow_sample_inputs)
    elif inner.startswith(("data/weights/", "data/constants/")) and inner.endswith("_config.json"):
        _check_payloads(path, name, json.loads(archive.read(name))["config"])
    elif inner.startswith(("data/weights/", "data/constants/")):
        if not inner.rpartition("/")[2].startswith(_PICKLE_FREE_PREFIXES):
            raise ArtifactError(f"{path}: {name} is a pickle of an older format: export the model again")
    elif inner.startswith("models/"):
        fault = check_program_text(archive.read(name))
        if fault:
            raise ArtifactError(f"{path}: {name} {fault}")
    elif inner not in {"archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id"}:
        raise ArtifactError(f"{path}: unexpected member {name}; only a plain exported program is accepted")


def _check_sample_inputs(path: Path, name: str, content: bytes, *, allowed: bool) -> None:
    if not content:
        return
    if not allowed:
        raise ArtifactError(f"{path}: {name} is a pickle; publish the model again, which drops it")
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:
        raise ArtifactError(f"{path}: {name} holds more than plain tensors: {error}") from error


def _check_payloads(path: Path, name: str, payloads: Mapping[str, Mapping[str, object]]) -> None:
    for key, payload in payloads.items():
        plain = str(payload["path_name"]).startswith(_PICKLE_FREE_PREFIXES)
        if payload["use_pickle"] or not plain:
            raise ArtifactError(f"{path}: {key!r} in {name} is stored as a pickle: export a model of plain tensors")


def load_program(path: Path, *, allow_sample_inputs: bool = False) -> ExportedProgram:
    """Check and load an exported program.

    Raises:
        ArtifactError: See `check_archive`; or torch refuses it.
    """
    check_archive(path, allow_sample_inputs=allow_sample_inputs)
    try:
        return torch.export.load(path)
    except Exception as error:  # a dozen kinds, none documented
        raise ArtifactError(f"{path} cannot be loaded by torch {torch.__version__}: {error}") from error


def run_graph(program: ExportedProgram, device: torch.device) -> GraphModule:
    """A program ready to be called by position, on a device.

    An exported module takes its arguments apart and checks their shapes with sympy at every call, which costs more than a small
    model itself. Shapes are checked by its caller: only the graph is run.
    """
    if device.type != "cpu":
        program = move_to_device_pass(program, device)
    module = program.module(check_guards=False)
    module.graph.set_codegen(CodeGen())
    module.recompile()
    return module


class UpperModel:
    """Scores from dense features and embeddings.

    Args:
        program: Call ``(dense f32 [B, num_dense], embeddings f32 [B, num_slots, dim]) -> logits f32 [B, 2]``.
        num_dense: Columns of ``dense``.
        num_slots: Slots of ``embeddings``.
        dim: Dimension of each slot.
        device: ``cpu`` or ``cuda``.

    Raises:
        ArtifactError: The program does not take these shapes, or any batch size, or answers in another shape.
    """

    def __init__(self, program: ExportedProgram, *, num_dense: int, num_slots: int, dim: int, device: str = "cpu"):
        self.device = torch.device(device)
        signature = program.graph_signature
        if len(signature.user_inputs) != 2 or len(signature.user_outputs) != 1:
            raise ArtifactError(
                f"the upper model takes {list(signature.user_inputs)} and answers {list(signature.user_outputs)}: "
                "expected two tensors, dense and embeddings, and one of logits"
            )
        self._module = run_graph(program, self.device)
        for num_candidates in (1, 2, 50):  # also warms up the allocator and the kernels
            dense = torch.zeros(num_candidates, num_dense)
            embeddings = torch.zeros(num_candidates, num_slots, dim)
            try:
                shape = tuple(self.logits(dense, embeddings).shape)
            except Exception as error:  # whatever the program's operators raise
                raise ArtifactError(
                    f"the upper model fails on dense {list(dense.shape)} and embeddings {list(embeddings.shape)}: "
                    f"{error}. Export it with a dynamic batch, for these features and tables."
                ) from error
            if shape != (num_candidates, 2):
                raise ArtifactError(
                    f"the upper model answers {list(shape)} to {num_candidates} candidates: expected "
                    f"[{num_candidates}, 2], the logits of ctr and cvr"
                )

    def logits(self, dense: Tensor, embeddings: Tensor) -> Tensor:
        """Logits of ctr and cvr.

        Args:
            dense: float32 [B, num_dense], raw.
            embeddings: float32 [B, num_slots, dim].

        Returns:
            float32 [B, 2] on the CPU.
        """
        with torch.inference_mode():
            (logits,) = self._module.forward(dense.to(self.device), embeddings.to(self.device))
            answer: Tensor = logits.float().cpu()
            return answer
