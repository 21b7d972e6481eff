"""The model artefact: what a trained ranker leaves for serving, and offline scores from it at any precision."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from multifacet.artifacts import Artifact, ArtifactWriter
from multifacet.inputs import FLAG, PATH, expect_attributes, expect_type, takes
from multifacet.ranking.export.programs import export_pooling, export_upper, save_program
from multifacet.ranking.model.heads import TASKS
from multifacet.ranking.model.layout import RowLayout, TableSpec
from multifacet.ranking.slots import RECENT_PINS, make_slots
from multifacet.tables import IdMap, decode, encode, row_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from multifacet.ranking.examples.examples import Examples
    from multifacet.ranking.training.training import RankingResult
    from multifacet.tables import Precision

logger = getLogger(__name__)

KIND = "ranking-model"
_UPPER = "upper.pt2"
_POOLING = "pooling.pt2"
_REQUEST_POOLING = "request_pooling.pt2"
_ID_MAPS = "id_maps"
_SCORING_BATCH = 8192


class ExportedModel:
    """A model artefact, ready to score; made by `load_model`.

    Attributes:
        artifact: The artefact.
        name: The arm's name.
        dense_names: Names of the dense features, in column order.
        dim: Elements a table row.
        tables: Weights of each table, [rows, dim], float32 or float16 as they were trained.
        id_maps: Id map of each table, in the tables' order.
        features: Id feature of each table, in the tables' order.
        layout: Where the tables' rows stand among the upper model's slots.
    """

    def __init__(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        self.artifact = artifact
        self.name: str = manifest["name"]
        self.dense_names: tuple[str, ...] = tuple(manifest["dense_features"])
        self.dim: int = manifest["dim"]
        described: list[dict[str, Any]] = manifest["tables"]
        self.tables: dict[str, Tensor] = {
            table["name"]: load_file(artifact.file(table["vectors"]))["weights"] for table in described
        }
        self._maps = {name: IdMap.load(artifact.path / _ID_MAPS, name) for name in {table["id_map"] for table in described}}
        self.id_maps: tuple[IdMap, ...] = tuple(self._maps[table["id_map"]] for table in described)
        self.features = tuple(table["feature"] for table in described)
        specs = [
            TableSpec(
                feature=table["feature"],
                facet=table["facet"],
                node_type=table["node_type"],
                num_rows=table["rows"],
                dim=table["dim"],
                num_hashes=self._maps[table["id_map"]].num_hashes,
                list_length=table.get("list_length", 0),
            )
            for table in described
        ]
        sequence = manifest.get("sequence")
        slots = make_slots((slot["feature"], slot["facet"]) for slot in manifest.get("slots", described))
        self.layout = RowLayout(specs, slots, 0 if sequence is None else sequence["length"])
        self._pooling: nn.Module | None = None
        if sequence is not None:
            self._pooling = torch.export.load(artifact.file(sequence["pooling"])).module()
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
            examples,
            {name: decode(encode(table.float(), precision), self.dim, precision) for name, table in self.tables.items()},
        )

    def score_with(self, examples: Examples, tables: Mapping[str, Tensor]) -> NDArray[np.float32]:
        """Score examples with other rows than the trained ones, such as those of a `MixedTable`.

        Args:
            examples: Examples with the dense features that the model was trained on.
            tables: Float [rows, dim] of each table of the model; looked-up rows become FP32.

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
        rows = self.layout.rows(examples, dict(zip(self.features, self.id_maps, strict=True)))
        num_recent = torch.from_numpy(examples.recent.num_recent) if examples.recent else torch.zeros(len(rows))
        scores = np.empty((len(examples), len(TASKS)), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(examples), _SCORING_BATCH):
                batch = slice(start, start + _SCORING_BATCH)
                dense = torch.from_numpy(examples.dense[batch])
                embeddings = dense.new_zeros((len(dense), 0, self.dim))
                if self.tables:
                    looked_up = self.layout.gather(rows[batch], tables.__getitem__)
                    embeddings = self.layout.slots(looked_up, num_recent[batch], self._pooling)
                scores[batch] = torch.sigmoid(self._upper(dense, embeddings)).numpy()
        return scores


@takes(path=PATH, replace=FLAG)
def export_model(
    path: Path | str,
    result: RankingResult,
    *,
    metrics: Mapping[str, Any] | None = None,
    learned: tuple[dt.datetime | None, dt.datetime] | None = None,
    replace: bool = False,
) -> Artifact:
    """Write a trained ranker as an artefact of kind "ranking-model".

    On disk::

        manifest.json               name, dense_features, dim, tables, slots, sequence, upper, tasks, parents, config, metrics,
                                    collisions (of each hashed feature), examples (how they were made), lineage (see below)
        vectors/<table>.safetensors key "weights", float32 or float16 [rows, dim], the out-of-vocabulary row included
        id_maps/<feature>...        external id -> row, one a feature, or one for all features of a node type
        upper.pt2                   torch.export program: (dense [B, F], embeddings [B, T, dim]) -> logits [B, 2]
        pooling.pt2                 with a sequence: (rows [B, L, facets, dim], num_recent [B], candidate [B, facets, dim])
                                    -> the slots "recent_pins" [B, facets, dim]
        request_pooling.pt2         the same of one user: (rows [1, L, facets, dim], num_recent [1], candidate [B, ...])

    Args:
        path: Directory to write.
        result: The trained ranker.
        metrics: Metrics beside the validation's, such as the test's.
        learned: Time of the first training example (None: the first there is), and the time before which all of them lie. The
            manifest's `lineage` keeps it beside the snapshots' windows; `knows_until` in it is the latest time of which the
            model knows events, by its examples or its tables.
        replace: Whether to replace an artefact that is already there.

    Returns:
        The artefact, opened.

    Raises:
        ArtifactError: If the path exists, or a field is not JSON.
    """
    expect_attributes("result", result, ("model", "id_maps", "config"), "RankingResult, such as train gives")
    model = result.model
    with ArtifactWriter(path, kind=KIND, replace=replace) as writer:
        (writer.directory / "vectors").mkdir()
        (writer.directory / _ID_MAPS).mkdir()
        for spec in model.specs:
            weights = {"weights": model.table(spec.name).contiguous()}
            save_file(weights, writer.directory / "vectors" / f"{spec.name}.safetensors")
        for name in dict.fromkeys(_id_map_of(spec, result.id_maps) for spec in model.specs):
            result.id_maps[name].save(writer.directory / _ID_MAPS, name)
        if model.pooling is not None:
            save_program(export_pooling(model.pooling), writer.directory / _POOLING)
            save_program(export_pooling(model.pooling, one_user=True), writer.directory / _REQUEST_POOLING)
        save_program(export_upper(model.upper), writer.directory / _UPPER)
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
                    "id_map": _id_map_of(spec, result.id_maps),
                }
                | ({"list_length": spec.list_length} if spec.list_length else {})
                for spec in model.specs
            ],
            "upper": _UPPER,
            "slots": [{"feature": slot.feature, "facet": slot.facet} for slot in model.upper.slots],
            "sequence": None
            if model.pooling is None
            else {
                "feature": RECENT_PINS,
                "candidate_feature": "pin",
                "length": model.pooling.length,
                "facets": list(model.pooling.facets),
                "pooling": _POOLING,
                "request_pooling": _REQUEST_POOLING,
            },
            "tasks": list(TASKS),
            "parents": list(result.parents),
            "config": result.config.model_dump(mode="json"),
            "metrics": result.metrics | dict(metrics or {}),
            "collisions": {feature: asdict(report) for feature, report in result.collisions.items()},
            "examples": dict(result.metadata),
            "lineage": _lineage(result, learned),
        }
    return Artifact.open(path, kind=KIND, verify=False)


def _lineage(result: RankingResult, learned: tuple[dt.datetime | None, dt.datetime] | None) -> dict[str, Any]:
    """Say of which time a model's tables and examples are."""
    tables = {
        facet: {name: window[name] for name in ("since", "as_of") if window.get(name) is not None}
        for facet, window in result.windows.items()
    }
    ends = [dt.datetime.fromisoformat(window["as_of"]) for window in tables.values() if "as_of" in window]
    lineage: dict[str, Any] = {"tables": tables}
    if learned is not None:
        since, until = learned
        lineage["examples"] = {"since": since and since.isoformat(), "until": until.isoformat()}
        ends.append(until)
    return lineage | ({"knows_until": max(ends).isoformat()} if ends else {})


def _id_map_of(spec: TableSpec, id_maps: Mapping[str, IdMap]) -> str:
    """Name the id map of a table: that of the first feature that has the same one."""
    feature = "pin" if spec.feature == RECENT_PINS else spec.feature
    return next(name for name, id_map in id_maps.items() if id_map is id_maps[feature])


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
    expect_type("path", path, str, Path)
    FLAG("verify", verify)
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
    expect_attributes("examples", examples, ("dense_names", "recent"), "Examples")
    loaded = model if isinstance(model, ExportedModel) else load_model(model)
    return loaded.score(examples, precision), loaded.table_bytes(precision)
