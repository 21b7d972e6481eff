"""Diagnoses whatever is named: a snapshot, a model, a release, or live servers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from multifacet import ranking
from multifacet.artifacts import MANIFEST_NAME, Artifact
from multifacet.pipeline.diagnosis import model_checks, server_checks, table_checks
from multifacet.pipeline.diagnosis.finding import Finding
from multifacet.pipeline.diagnosis.gates import GatesSection
from multifacet.serving import Release, read_tables
from multifacet.tables import Snapshot, compare_snapshots, decode

if TYPE_CHECKING:
    from multifacet.ranking import Examples, ExportedModel

__all__ = ["diagnose"]


def diagnose(
    targets: Sequence[str],
    *,
    against: Path | None = None,
    examples: Path | None = None,
    gates: GatesSection | None = None,
    precision: str = "int4",
) -> list[Finding]:
    """Checks what is named, each failure signature that can be seen there.

    Args:
        targets: A snapshot's, a model's or a release's folder; or addresses of servers' metrics, of one deployment.
        against: A snapshot's folder: the older tables; a model's: the model that serves; a release's: the model it was cut
            from.
        examples: Labelled rows to measure a model by, of the columns that it was trained on, or examples that were saved.
        gates: Limits; the defaults if none are given.
        precision: Of a model: the precision that it will be served in.

    Returns:
        What was found, in order.

    Raises:
        ValueError: A target is none of these, or what is given with it does not fit.
        OSError: A server does not answer.
    """
    gates = gates or GatesSection()
    paths = [Path(target) for target in targets]
    if not any(path.exists() for path in paths):
        return server_checks.check_servers([server_checks.scrape(target) for target in targets])
    if len(targets) > 1:
        raise ValueError(f"{' '.join(targets)}: several targets are addresses of servers; name one folder or file at a time")
    path = paths[0]
    kind = Artifact.open(path, verify=False).manifest["kind"] if (path / MANIFEST_NAME).exists() else ""
    if kind == "snapshot":
        return _of_snapshot(Snapshot.load(path), None if against is None else Snapshot.load(against), gates)
    if kind == "ranking-model":
        return _of_model(path, against, examples, gates, precision)
    if kind == "release":
        return _of_release(Release.open(path, verify=False), against, gates)
    raise ValueError(f"{path} is no snapshot, model or release, and no server's address")


def _of_snapshot(snapshot: Snapshot, older: Snapshot | None, gates: GatesSection) -> list[Finding]:
    findings = []
    for name in snapshot.node_types:
        subject = f"{snapshot.facet} {name}"
        findings += table_checks.check_table(subject, snapshot.vectors(name), snapshot.trained(name), gates)
    if older is not None:
        drift = compare_snapshots(older, snapshot, align=False, neighbors=False)
        findings += table_checks.check_drift(snapshot.facet, drift, gates)
    return findings


def _of_model(path: Path, serving: Path | None, rows: Path | None, gates: GatesSection, precision: Any) -> list[Finding]:
    model = ranking.load_model(path)
    findings = model_checks.check_model(model.artifact.manifest, gates)
    for name, table in model.tables.items():
        findings += table_checks.check_table(name, table.float(), None, gates)
    if rows is None:
        if serving is not None:
            raise ValueError("two models are compared on labelled rows: give --examples FILE too")
        return findings
    examples = _read(model, rows)
    exact, served = model.score(examples), model.score(examples, precision)
    evaluation: dict[str, Any] = {
        "precision": precision,
        "coverage": model_checks.id_coverage(model, examples),
        "metrics": ranking.evaluate(served, examples),
        "precision_change": ranking.compare(served, exact, examples),
        "serving_change": None,
    }
    if serving is not None:
        before = ranking.load_model(serving).score(examples, precision)
        evaluation["serving_change"] = ranking.compare(served, before, examples)
    return findings + model_checks.check_evaluation(evaluation, gates)


def _read(model: ExportedModel, rows: Path) -> Examples:
    """Reads examples that were saved, or labelled rows of the columns that a model was trained on."""
    columns = model.artifact.manifest.get("examples", {}).get("columns")
    if columns is None:
        return ranking.Examples.load(rows)
    return ranking.read_examples(rows, ranking.LabelledColumns(**columns))


def _of_release(release: Release, model_path: Path | None, gates: GatesSection) -> list[Finding]:
    """Checks a release's rows as they are served, and beside those of the model."""
    model = None if model_path is None else ranking.load_model(model_path)
    if model is not None and model.artifact.fingerprint not in release.manifest.parents:
        raise ValueError(f"{release.path} was not cut from {model_path}: its parents are {release.manifest.parents}")
    findings = [] if model is None else model_checks.check_model(model.artifact.manifest, gates)
    for table, ids, encoded in read_tables(release.path):
        rows = decode(encoded, table.dim, table.precision)
        findings += table_checks.check_table(table.name, rows, None, gates)
        if model is not None:
            trained = model.tables[table.name].float()
            if ids is not None:  # shards and deltas have the model's rows in another order
                own = model.id_maps[list(model.tables).index(table.name)]
                trained = trained[torch.from_numpy(np.append(own.rows(ids), own.num_rows - 1)).long()]
            findings.append(table_checks.check_error(table.name, trained, rows, table.precision, gates))
    return findings
