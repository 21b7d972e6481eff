"""Renews the tables of a trained ranker from newer snapshots, while its upper model stays."""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file

from multifacet.artifacts import Artifact, ArtifactWriter, link_or_copy
from multifacet.inputs import FLAG, PATH, expect_type, takes
from multifacet.ranking.export.export import KIND, load_model
from multifacet.tables import IdMap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from multifacet.ranking.export.export import ExportedModel
    from multifacet.tables import Snapshot

_ID_MAPS = "id_maps"


@dataclass(frozen=True, kw_only=True)
class TableRenewal:
    """What a renewal did to one table.

    Attributes:
        table: The table's name.
        num_moved: Rows that moved by what their pretrained vectors moved.
        num_placed: Rows of ids that the older snapshot had no trained vector of: new ids, and those that it never reached.
        num_kept: Rows that stay as they were.
        scale: What vectors of the table's facet are multiplied by; None for a facet that was not renewed.
    """

    table: str
    num_moved: int
    num_placed: int
    num_kept: int
    scale: float | None


@takes(model=PATH, path=PATH, replace=FLAG)
def renew_model(
    model: Path | str, path: Path | str, chains: Sequence[Sequence[Snapshot]], *, replace: bool = False
) -> tuple[Artifact, list[TableRenewal]]:
    """Write a ranker whose tables follow newer snapshots; what is above the tables stays as it was trained.

    A row is what its pretrained vector became in fine-tuning. It moves by as much as the vector has moved since::

        row_new = row + scale * (vector_new - vector_old)

    where `scale` is the one that the vectors were given when the ranker was trained. So frozen tables get the new vectors
    themselves. Ids that are new get a row: the new vector, scaled. In the tables of facets that are not renewed, theirs is the
    row that unknown ids read.

    The newer snapshot must be in the older one's basis: aligned to it (`snapshot align`), or trained on from it
    (`--warm-start`).

    Args:
        model: Directory of a ranker that `train` made.
        path: Directory to write.
        chains: For each facet to renew, its snapshots: first the one that the ranker was trained from, then those up to the
            newest, each in the basis of the one before.
        replace: Whether to replace an artefact that is already there.

    Returns:
        The artefact, opened, and what was done to each table, those of other facets too.

    Raises:
        ValueError: A chain does not begin with the ranker's own snapshot, a snapshot is in another basis than the one before,
            or the ranker hashes ids.
        ArtifactError: There is no such ranker, or the path exists.
    """
    loaded = load_model(model)
    ends = _check_chains(loaded, chains)
    manifest = loaded.artifact.manifest
    maps = _extended_maps(loaded, ends)
    own = {"files", "kind", "schema_version"}
    renewals = []
    with ArtifactWriter(path, kind=KIND, replace=replace) as writer:
        (writer.directory / "vectors").mkdir()
        (writer.directory / _ID_MAPS).mkdir()
        described = []
        for table in manifest["tables"]:
            rows, renewal = _renewed(loaded, table, maps[table["id_map"]], ends.get(table["facet"]))
            save_file({"weights": rows.contiguous()}, writer.directory / table["vectors"])
            renewals.append(renewal)
            described.append(table | {"rows": len(rows)})
        for name, id_map in maps.items():
            id_map.save(writer.directory / _ID_MAPS, name)
        for name in manifest["files"]:
            if not name.startswith(("vectors/", f"{_ID_MAPS}/")):
                link_or_copy(loaded.artifact.file(name), writer.directory / name)
        newer = {old.fingerprint: new.fingerprint for old, new in ends.values()}
        writer.manifest |= {key: value for key, value in manifest.items() if key not in own} | {
            "tables": described,
            "parents": [newer.get(parent, parent) for parent in manifest["parents"]],
            # They were measured with the older tables.
            "metrics": {},
            "lineage": _lineage(manifest.get("lineage", {}), ends),
            "renewed": {"model": loaded.artifact.fingerprint, "tables": [asdict(renewal) for renewal in renewals]},
        }
    return Artifact.open(path, kind=KIND, verify=False), renewals


def _check_chains(loaded: ExportedModel, chains: Sequence[Sequence[Snapshot]]) -> dict[str, tuple[Snapshot, Snapshot]]:
    """Give each facet's oldest and newest snapshot."""
    expect_type("chains", chains, list, tuple)
    manifest = loaded.artifact.manifest
    config: Mapping[str, Any] = manifest.get("config") or {}
    if not config.get("pretrained_facets"):
        raise ValueError(f"model {loaded.name} has no tables that began as a snapshot's, so that there is nothing to renew")
    ends: dict[str, tuple[Snapshot, Snapshot]] = {}
    for chain in chains:
        expect_type("a chain", chain, list, tuple)
        if len(chain) < 2:
            raise ValueError("a chain has the snapshot that the ranker was trained from, and at least one that is newer")
        old, new = chain[0], chain[-1]
        if old.fingerprint not in manifest["parents"]:
            raise ValueError(f"{old.path} is not a snapshot that model {loaded.name} was trained from; a chain begins with it")
        for before, after in itertools.pairwise(chain):
            if before.fingerprint not in after.parents:
                raise ValueError(
                    f"{after.path} is neither aligned to {before.path} nor trained on from it, so that its basis is another: "
                    f"multifacet snapshot align {after.path} {before.path} ALIGNED"
                )
        if old.facet in ends:
            raise ValueError(f"there are two chains of the facet {old.facet!r}")
        ends[old.facet] = (old, new)
    if not ends:
        raise ValueError("there is no chain of snapshots, so that nothing would be renewed")
    hashed = sorted({table["id_map"] for table in manifest["tables"] if loaded.id_maps[_place(loaded, table)].kind == "hashed"})
    if hashed:
        raise ValueError(f"model {loaded.name} hashes the ids of {hashed}: a row of several ids cannot follow one of them")
    return ends


def _place(loaded: ExportedModel, table: Mapping[str, Any]) -> int:
    return list(loaded.tables).index(table["name"])


def _extended_maps(loaded: ExportedModel, ends: Mapping[str, tuple[Snapshot, Snapshot]]) -> dict[str, IdMap]:
    """Give each id map with the newest snapshots' ids behind its own."""
    maps = {}
    for table in loaded.artifact.manifest["tables"]:
        name, node_type = table["id_map"], table["node_type"]
        if name in maps:
            continue
        known = loaded.id_maps[_place(loaded, table)]
        ids = _ids_in_order(known)
        for _, new in ends.values():
            if node_type in new.node_types:
                newest = new.ids(node_type)
                if newest.type != ids.type:
                    raise ValueError(f"{new.path} has {node_type} ids of {newest.type}, model {loaded.name} of {ids.type}")
                trained = new.trained(node_type)
                if trained is not None:
                    newest = newest.filter(pa.array(trained.numpy()))
                ids = pa.chunked_array([*ids.chunks, newest]).unique()
                ids = pa.chunked_array([ids])
        maps[name] = IdMap.exact(ids.combine_chunks())
    return maps


def _ids_in_order(id_map: IdMap) -> pa.ChunkedArray:
    """Give the ids of an exact map, in the order of their rows."""
    places = np.arange(id_map.num_rows - 1)
    ids = id_map.known_ids(places)
    ordered = np.empty_like(ids)
    ordered[id_map.rows(pa.array(ids))] = ids
    return pa.chunked_array([pa.array(ordered, pa.int64() if id_map.id_type == "int64" else pa.string())])


def _renewed(
    loaded: ExportedModel, table: Mapping[str, Any], id_map: IdMap, ends: tuple[Snapshot, Snapshot] | None
) -> tuple[Tensor, TableRenewal]:
    """Give a table's new rows: old ids first, in their order, then new ones, and last the row of unknown ids."""
    trained = loaded.tables[table["name"]]
    num_old, unknown = len(trained) - 1, trained[-1]
    rows = unknown.float().repeat(id_map.num_rows, 1)
    rows[:num_old] = trained[:num_old].float()
    num_moved, num_placed, scale = 0, 0, _scale_before(loaded, table["name"])
    if ends is not None and table["node_type"] in ends[0].node_types and table["node_type"] in ends[1].node_types:
        (before, was), (after, now) = (_place_vectors(snapshot, table["node_type"], id_map) for snapshot in ends)
        if before.shape[1] != rows.shape[1] or after.shape[1] != rows.shape[1]:
            raise ValueError(
                f"table {table['name']} was projected from {before.shape[1]} numbers: it cannot follow its vectors"
            )
        if scale is None:
            length = float(before[was].double().square().sum(1).sum().sqrt()) / max(1, int(was.sum())) ** 0.5
            if not length > 0:
                raise ValueError(f"{ends[0].path} has no trained {table['node_type']} vector but zeros: nothing moves by them")
            norm: float = loaded.artifact.manifest["config"]["pretrained_norm"]
            scale = norm / length
        moved, placed = was & now, now & ~was
        rows[moved] += scale * (after - before)[moved]
        rows[placed] = scale * after[placed]
        num_moved, num_placed = int(moved.sum()), int(placed.sum())
    limit = torch.finfo(trained.dtype).max
    if not bool((rows.abs() <= limit).all()):
        raise ValueError(f"table {table['name']} gets values that {trained.dtype} cannot hold, or NaN")
    return rows.to(trained.dtype), TableRenewal(
        table=table["name"],
        num_moved=num_moved,
        num_placed=num_placed,
        num_kept=len(rows) - num_moved - num_placed,
        scale=scale,
    )


def _scale_before(loaded: ExportedModel, name: str) -> float | None:
    """Give the scale that an earlier renewal went by: it stays the one of the training."""
    earlier = loaded.artifact.manifest.get("renewed", {}).get("tables", ())
    return next((row["scale"] for row in earlier if row["table"] == name), None)


def _place_vectors(snapshot: Snapshot, node_type: str, id_map: IdMap) -> tuple[Tensor, Tensor]:
    """Give a snapshot's vectors in a table's order, float32 [rows, D], and which rows have one that was trained."""
    rows = torch.from_numpy(id_map.rows(snapshot.ids(node_type)).astype(np.int64))
    vectors, trained = snapshot.vectors(node_type).float(), snapshot.trained(node_type)
    counts = rows < id_map.num_rows - 1
    if trained is not None:
        counts &= trained
    placed, known = torch.zeros(id_map.num_rows, vectors.shape[1]), torch.zeros(id_map.num_rows, dtype=torch.bool)
    placed[rows[counts]], known[rows[counts]] = vectors[counts], True
    return placed, known


def _lineage(lineage: Mapping[str, Any], ends: Mapping[str, tuple[Snapshot, Snapshot]]) -> dict[str, Any]:
    """Say of which time the renewed tables are."""
    tables = dict(lineage.get("tables", {}))
    for facet, (_, new) in ends.items():
        window = new.manifest["window"]
        tables[facet] = {name: window[name] for name in ("since", "as_of") if window.get(name) is not None}
    times = [dt.datetime.fromisoformat(window["as_of"]) for window in tables.values() if "as_of" in window]
    if "examples" in lineage:
        times.append(dt.datetime.fromisoformat(lineage["examples"]["until"]))
    return {**lineage, "tables": tables} | ({"knows_until": max(times).isoformat()} if times else {})
