"""A trained model of one's own as the artefact that serving publishes: tables, their id maps, and what is above them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from multifacet.artifacts import Artifact, ArtifactWriter
from multifacet.inputs import FLAG, PATH, expect_type, kind, mapping_to, takes
from multifacet.ranking.export.export import KIND
from multifacet.ranking.export.programs import save_program
from multifacet.ranking.model.heads import TASKS
from multifacet.tables import IdMap

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@takes(
    path=PATH,
    tables=kind(Mapping),
    id_maps=mapping_to("IdMap", "num_rows", "rows_of", "id_type"),
    dense_names=kind(list, tuple),
    name=kind(str),
    replace=FLAG,
)
def write_model(
    path: Path | str,
    upper: nn.Module,
    tables: Mapping[str, Tensor],
    id_maps: Mapping[str, IdMap],
    *,
    dense_names: Sequence[str] = (),
    list_lengths: Mapping[str, int] | None = None,
    name: str = "own",
    config: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Artifact:
    """Write somebody else's trained ranker as an artefact of kind "ranking-model", for `multifacet publish`.

    Args:
        path: Directory to write.
        upper: What is above the tables, called as (dense float32 [B, F], embeddings float32 [B, T, D]) -> logits of
            (ctr, cvr), float32 [B, 2], with the rows of the T tables in their order. It is exported by torch.export, in
            evaluation mode, for any B.
        tables: Id feature -> trained rows, float32 or float16 [rows, D], all of one D.
        id_maps: The id map of each feature, whose rows are the table's.
        dense_names: Names of the F dense features, in column order.
        list_lengths: Features of several ids -> ids that the model reads of a list, the first ones; the upper model gets the
            mean of their rows, and zeros for an empty list.
        name: Name of the model.
        config: How it was made; JSON-able.
        replace: Whether to replace an artefact that is already there.

    Returns:
        The artefact, opened.

    Raises:
        ValueError: If there are no tables, a table and its id map do not fit, a value is not finite, or the module cannot be
            called or exported so.
        ArtifactError: If the path exists, or a field is not JSON.

    Example:
        >>> class Upper(nn.Module):
        ...     def forward(self, dense, embeddings):
        ...         score = (embeddings[:, 0] * embeddings[:, 1]).sum(1, keepdim=True)
        ...         return torch.cat([score, score], dim=1)
        >>> users, pins = IdMap.exact(["ann"]), IdMap.exact([7, 8])
        >>> tables = {"user": torch.ones(2, 8), "pin": torch.ones(3, 8)}
        >>> write_model("model", Upper(), tables, {"user": users, "pin": pins})  # doctest: +SKIP
    """
    expect_type("upper", upper, nn.Module)
    dim = _check_tables(tables, id_maps)
    lengths = _checked_lengths(list_lengths or {}, tables)
    program = _export(upper, len(dense_names), len(tables), dim)
    with ArtifactWriter(path, kind=KIND, replace=replace) as writer:
        (writer.directory / "vectors").mkdir()
        (writer.directory / "id_maps").mkdir()
        for feature, table in tables.items():
            save_file({"weights": table.detach().cpu().contiguous()}, writer.directory / "vectors" / f"{feature}.safetensors")
            id_maps[feature].save(writer.directory / "id_maps", feature)
        save_program(program, writer.directory / "upper.pt2")
        writer.manifest |= {
            "name": name,
            "dense_features": list(dense_names),
            "dim": dim,
            "tables": [
                {
                    "name": feature,
                    "feature": feature,
                    "node_type": feature,
                    "facet": "own",
                    "rows": len(table),
                    "dim": dim,
                    "vectors": f"vectors/{feature}.safetensors",
                    "id_map": feature,
                }
                | ({"list_length": int(lengths[feature])} if feature in lengths else {})
                for feature, table in tables.items()
            ],
            "upper": "upper.pt2",
            "slots": [{"feature": feature, "facet": "own"} for feature in tables],
            "sequence": None,
            "tasks": list(TASKS),
            "parents": [],
            "config": dict(config or {}),
            "metrics": {},
            "collisions": {},
            "examples": {},
        }
    return Artifact.open(path, kind=KIND, verify=False)


def _check_tables(tables: Mapping[str, Tensor], id_maps: Mapping[str, IdMap]) -> int:
    if not tables or set(tables) != set(id_maps):
        raise ValueError(f"there are tables of {sorted(tables)} and id maps of {sorted(id_maps)}; expected the same features")
    for feature, table in tables.items():
        if not _NAME.fullmatch(feature):
            raise ValueError(f"feature {feature!r} is refused; use letters, digits, '_', '-' and '.' only")
        if type(table) not in (Tensor, nn.Parameter) or table.device.type == "meta":
            raise ValueError(
                f"table {feature} is a {type(table).__name__} on {getattr(table, 'device', 'no device')}: bring the rows of a "
                "sharded table together with tables.gather_rows, and give tables memory first"
            )
        if table.ndim != 2 or table.dtype not in (torch.float32, torch.float16):
            raise ValueError(f"table {feature} is {table.dtype} {list(table.shape)}; expected float32 or float16 [rows, D]")
        id_map = id_maps[feature]
        if id_map.num_rows != len(table) or id_map.num_hashes != 1:
            raise ValueError(
                f"table {feature} has {len(table)} rows, its id map {id_map.num_rows} of {id_map.num_hashes} hashes; "
                f"expected as many, "
                "and one row an id"
            )
        if not bool(table.isfinite().all()):
            raise ValueError(f"table {feature} holds values that are not finite")
    dims = {table.shape[1] for table in tables.values()}
    if len(dims) > 1:
        raise ValueError(f"tables have rows of {sorted(dims)} elements; serving ships rows of one length")
    return int(dims.pop())


def _checked_lengths(list_lengths: Mapping[str, int], tables: Mapping[str, Tensor]) -> Mapping[str, int]:
    expect_type("list_lengths", list_lengths, Mapping)
    unknown = sorted(set(list_lengths) - set(tables))
    if unknown:
        raise ValueError(f"list_lengths names {unknown}; there are tables of {sorted(tables)}")
    for feature, length in list_lengths.items():
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ValueError(f"list_lengths[{feature!r}] is {length!r}; expected a whole number of 1 or more")
    return list_lengths


def _export(upper: nn.Module, num_dense: int, num_slots: int, dim: int) -> torch.export.ExportedProgram:
    upper.eval()
    sample = (torch.zeros(2, num_dense), torch.zeros(2, num_slots, dim))
    try:
        with torch.no_grad():
            logits = upper(*sample)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"the upper model cannot be called with dense [2, {num_dense}] and embeddings [2, {num_slots}, {dim}]: {error}"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, len(TASKS)):
        given = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the upper model gives {given} for 2 examples; expected logits of (ctr, cvr), [2, 2]")
    batch = {0: torch.export.Dim("batch", min=1)}
    try:
        return torch.export.export(upper, sample, dynamic_shapes=(batch, batch), strict=False)
    except Exception as error:
        # torch.export raises what it likes.
        raise ValueError(f"the upper model cannot be exported by torch.export for any number of examples: {error}") from error
