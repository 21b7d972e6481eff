"""The model artefact: what a trained ranker leaves for serving, and offline scores from it at any precision."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ranking.model import TASKS
from tables import Artifact, ArtifactWriter, IdMap, decode, encode, row_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from ranking.examples import Examples
    from ranking.model import UpperModel
    from ranking.training import RankingResult
    from tables import Precision

logger = getLogger(__name__)

KIND = "ranking-model"
_UPPER = "upper.pt2"
_ID_MAPS = "id_maps"
_SCORING_BATCH = 8192


class ExportedModel:
    """A model artefact, ready to score; made by `load_model`.

    Attributes:
        artifact: The artefact.
        name: The arm's name.
        dense_names: Names of the dense features, in column order.
        dim: Elements a table row.
        tables: Weights of each table, float32 [rows, dim], in slot order.
        id_maps: Id map of each table's feature, in slot order.
        features: Id feature of each table, in slot order.
    """

    def __init__(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        self.artifact = artifact
        self.name: str = manifest["name"]
        self.dense_names: tuple[str, ...] = tuple(manifest["dense_features"])
        self.dim: int = manifest["dim"]
        described: list[dict[str, Any]] = manifest["tables"]
        self.features = tuple(table["feature"] for table in described)
        self.tables: dict[str, Tensor] = {
            table["name"]: load_file(artifact.file(table["vectors"]))["weights"] for table in described
        }
        maps = {name: IdMap.load(artifact.path / _ID_MAPS, name) for name in {table["id_map"] for table in described}}
        self.id_maps: tuple[IdMap, ...] = tuple(maps[table["id_map"]] for table in described)
        self._upper: nn.Module = torch.export.load(artifact.file(manifest["upper"])).module()

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={list(table.shape)}" for name, table in self.tables.items())
        return f"{type(self).__name__}({self.name}, {len(self.dense_names)} dense, {shapes})"

    def table_bytes(self, precision: Precision) -> int:
        """Return the bytes of all tables' rows at a precision.

        Args:
            precision: "fp32", "fp16", "int8" or "int4".
        """
        return sum(len(table) * row_bytes(self.dim, precision) for table in self.tables.values())

    def score(self, examples: Examples, precision: Precision = "fp32") -> NDArray[np.float32]:
        """Score examples with the tables' rows encoded and decoded at a precision.

        Args:
            examples: Examples with the dense features that the model was trained on.
            precision: "fp32" (exact), "fp16", "int8" or "int4".

        Returns:
            Probabilities of (ctr, cvr), float32 [n, 2].

        Raises:
            ValueError: If the dense features are others, or a row cannot be encoded.
        """
        return self.score_with(
            examples, {name: decode(encode(table, precision), self.dim, precision) for name, table in self.tables.items()}
        )

    def score_with(self, examples: Examples, tables: Mapping[str, Tensor]) -> NDArray[np.float32]:
        """Score examples with other rows than the trained ones, such as those of a `MixedTable`.

        Args:
            examples: Examples with the dense features that the model was trained on.
            tables: float32 [rows, dim] of each table of the model.

        Returns:
            Probabilities of (ctr, cvr), float32 [n, 2].

        Raises:
            ValueError: If the dense features are others, or a table is missing or of another shape.
        """
        shapes = {name: tuple(table.shape) for name, table in self.tables.items()}
        if (given := {name: tuple(table.shape) for name, table in tables.items()}) != shapes:
            raise ValueError(f"the tables are {given}; model {self.name} has {shapes}")
        if examples.dense_names != self.dense_names:
            raise ValueError(
                f"the examples' dense features are {examples.dense_names}; model {self.name} was trained on {self.dense_names}"
            )
        slots = list(zip(self.features, self.id_maps, (tables[name] for name in self.tables), strict=True))
        scores = np.empty((len(examples), len(TASKS)), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(examples), _SCORING_BATCH):
                batch = slice(start, start + _SCORING_BATCH)
                dense = torch.from_numpy(examples.dense[batch])
                rows = [
                    vectors[torch.from_numpy(id_map.rows(examples.ids(feature)[batch])).long()]
                    for feature, id_map, vectors in slots
                ]
                embeddings = torch.stack(rows, dim=1) if rows else dense.new_zeros((len(dense), 0, self.dim))
                scores[batch] = torch.sigmoid(self._upper(dense, embeddings)).numpy()
        return scores


def export_model(
    path: Path | str,
    result: RankingResult,
    *,
    metrics: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Artifact:
    """Write a trained ranker as an artefact of kind "ranking-model".

    On disk::

        manifest.json               name, dense_features, dim, tables, upper, tasks, parents, config, metrics
        vectors/<table>.safetensors key "weights", float32 [rows, dim], the out-of-vocabulary row included
        id_maps/<feature>...        external id -> row, one a feature
        upper.pt2                   torch.export program: (dense [B, F], embeddings [B, T, dim]) -> logits [B, 2]

    Args:
        path: Directory to write.
        result: The trained ranker.
        metrics: Metrics beside the validation's, such as the test's.
        replace: Whether to replace an artefact that is already there.

    Returns:
        The artefact, opened.

    Raises:
        ArtifactError: If the path exists, or a field is not JSON.
    """
    model = result.model
    with ArtifactWriter(path, kind=KIND, replace=replace) as writer:
        (writer.directory / "vectors").mkdir()
        (writer.directory / _ID_MAPS).mkdir()
        for spec in model.specs:
            weights = {"weights": model.table(spec.name).contiguous()}
            save_file(weights, writer.directory / "vectors" / f"{spec.name}.safetensors")
        for feature in model.features:
            result.id_maps[feature].save(writer.directory / _ID_MAPS, feature)
        torch.export.save(export_upper(model.upper), writer.directory / _UPPER)
        writer.manifest |= {
            "name": result.config.name,
            "dense_features": list(result.dense_names),
            "dim": result.config.dim,
            "tables": [
                {
                    "name": spec.name,
                    "feature": spec.feature,
                    "node_type": spec.node_type,
                    "facet": spec.facet,
                    "rows": spec.num_rows,
                    "dim": spec.dim,
                    "vectors": f"vectors/{spec.name}.safetensors",
                    "id_map": spec.feature,
                }
                for spec in model.specs
            ],
            "upper": _UPPER,
            "tasks": list(TASKS),
            "parents": list(result.parents),
            "config": result.config.model_dump(mode="json"),
            "metrics": result.metrics | dict(metrics or {}),
        }
    return Artifact.open(path, kind=KIND, verify=False)


def export_upper(upper: UpperModel) -> torch.export.ExportedProgram:
    """Export an upper model, in evaluation mode, for any number of examples.

    Args:
        upper: The upper model; left in evaluation mode.

    Returns:
        Program with the call (dense [B, F], embeddings [B, T, D]) -> logits [B, 2].
    """
    upper.eval()
    batch = torch.export.Dim("batch", min=1)
    # Two examples: with one, the exporter would take the batch for a constant.
    sample = (torch.zeros(2, upper.num_dense), torch.zeros(2, upper.num_slots, upper.dim))
    return torch.export.export(upper, sample, dynamic_shapes=({0: batch}, {0: batch}), strict=False)


def load_model(path: Path | str, *, verify: bool = True) -> ExportedModel:
    """Open a model artefact, to score without training again.

    Args:
        path: Directory that `export_model` wrote. Load only what you trust: an exported program is code.
        verify: Whether to compare every file's sha256 first.

    Returns:
        The model.

    Raises:
        ArtifactError: If there is no such artefact, or it is not what its manifest says.
    """
    return ExportedModel(Artifact.open(path, kind=KIND, verify=verify))


def quantized_scores(
    model: ExportedModel | Path | str, precision: Precision, examples: Examples
) -> tuple[NDArray[np.float32], int]:
    """Score examples with every table row through the codec that serving uses.

    Args:
        model: The model, or its artefact's directory.
        precision: "fp32", "fp16", "int8" or "int4".
        examples: Examples to score.

    Returns:
        Probabilities of (ctr, cvr), float32 [n, 2], and the bytes of all tables' rows at that precision.

    Raises:
        ValueError: If a row cannot be encoded, or the dense features are others.
    """
    loaded = model if isinstance(model, ExportedModel) else load_model(model)
    return loaded.score(examples, precision), loaded.table_bytes(precision)
