"""Runs told to MLflow and TensorBoard: parameters, curves, figures, and where what they made is; nothing until it is asked for.

One option of the `multifacet` command, `--track`, begins it for the process. Trainings tell their epochs, and every stage of a
pipeline, an experiment or the demo is a run within the command's run. Artifacts are told by path and fingerprint, not copied.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from multifacet.artifacts import MANIFEST_NAME

if TYPE_CHECKING:
    from multifacet.pipeline.runs.workspace import Stage
    from multifacet.pipeline.tracking.tracker import Tracker

__all__ = [
    "end_tracking",
    "is_tracking",
    "run_name",
    "start_tracking",
    "track_epoch",
    "track_made",
    "track_message",
    "track_stage",
]

_MAX_PARAMETER: Final = 500
_MAX_DEPTH: Final = 4
_PAIR: Final = re.compile(r"([A-Za-z_][\w@/]*) (-?\d[\d,.]*(?:e[+-]?\d+)?)")
_FORMS: Final = "mlflow:URI (mlflow:http://HOST:5000) or tensorboard:FOLDER"


class _Run:
    """One run at every tracker, and how many epochs it has had."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = trackers
        self.epochs = 0

    def child(self, name: str) -> _Run:
        return _Run([tracker.child(name) for tracker in self.trackers])

    def epoch(self, row: Mapping[str, float]) -> None:
        self.epochs += 1
        for tracker in self.trackers:
            tracker.figures(dict(_numbers(row)), self.epochs)

    def made(self, path: Path, result: Mapping[str, Any]) -> None:
        manifest = _read_manifest(path)
        window = {f"window.{key}": text for key, text in _flat(manifest.get("window", {})).items()}
        settings = _flat(manifest.get("config", {})) | window
        for tracker in self.trackers:
            tracker.parameters(settings)
            tracker.figures(dict(_numbers(result)))
            tracker.reference("path", str(path.resolve()))
            for key, value in manifest.get("told", {}).items():
                tracker.reference(key, value)

    def end(self, *, failed: bool) -> None:
        for tracker in self.trackers:
            tracker.end(failed=failed)


_run: _Run | None = None
_stages: dict[str, _Run] = {}


def start_tracking(places: Sequence[str], name: str) -> None:
    """Tell this process's run to places, and all that it trains.

    Args:
        places: each "mlflow:URI" or "tensorboard:FOLDER".
        name: the run's name, such as the command's.

    Raises:
        ValueError: if a place is of another form.
        ImportError: if a library is not installed; the message has the line that installs it.
    """
    global _run  # noqa: PLW0603 - a process has one run
    _run = _Run([_open(place, name) for place in places])
    _stages.clear()


def end_tracking(*, failed: bool) -> None:
    """End the run, if there is one, and the stages that have not ended: they failed."""
    global _run  # noqa: PLW0603
    if _run is None:
        return
    for stage in _stages.values():
        stage.end(failed=True)
    _stages.clear()
    _run.end(failed=failed)
    _run = None


def is_tracking() -> bool:
    """Whether runs are told."""
    return _run is not None


def track_epoch(row: Mapping[str, float]) -> None:
    """Tell an epoch's row of the command's own training."""
    if _run is not None:
        _run.epoch(row)


def track_made(path: Path, metrics: Mapping[str, Any]) -> None:
    """Tell what the command's own training made: its manifest's settings, what was measured, where it is."""
    if _run is not None:
        _run.made(path, metrics)


def track_message(name: str, message: str) -> None:
    """Tell a stage's progress: a line with an epoch ("epoch 3, loss 0.41") is a point of its curves."""
    if _run is not None:
        row = {key: float(text.replace(",", "")) for key, text in _PAIR.findall(message)}
        if "epoch" in row:
            _stage(name).epoch(row)


def track_stage(stage: Stage) -> None:
    """Tell a finished stage; one that was found done is told by its figures alone."""
    if _run is None:
        return
    told = _stage(stage.name)
    costs = {"seconds": stage.seconds, "cpu_seconds": stage.cpu_seconds, "peak_rss_bytes": float(stage.peak_rss_bytes)}
    made = next((path.parent for path in sorted(stage.path.glob(f"*/{MANIFEST_NAME}"))), stage.path)
    told.made(made, {**stage.result, **({} if stage.reused else costs)})
    for tracker in told.trackers:
        tracker.reference("stage", stage.key)
        tracker.reference("reused", str(stage.reused).lower())
    told.end(failed=False)
    del _stages[stage.name]


def _stage(name: str) -> _Run:
    assert _run is not None  # noqa: S101 - callers have looked
    if name not in _stages:
        _stages[name] = _run.child(name)
    return _stages[name]


def _open(place: str, name: str) -> Tracker:
    kind, _, where = place.partition(":")
    if kind == "mlflow" and where:
        from multifacet.pipeline.tracking.mlflow_tracker import MlflowTracker  # noqa: PLC0415 - an extra

        return MlflowTracker.begin(where, name)
    if kind == "tensorboard" and where:
        from multifacet.pipeline.tracking.tensorboard_tracker import TensorBoardTracker  # noqa: PLC0415 - an extra

        return TensorBoardTracker.begin(Path(where), name)
    raise ValueError(f"--track is {place!r}: expected {_FORMS}")


def _read_manifest(path: Path) -> dict[str, Any]:
    """The parts of an artifact's manifest that are told; nothing of what is no artifact."""
    file = path / MANIFEST_NAME
    if not file.is_file():
        return {}
    raw = file.read_bytes()
    manifest: dict[str, Any] = json.loads(raw)
    told = {"fingerprint": hashlib.sha256(raw).hexdigest(), "kind": str(manifest.get("kind", ""))}
    parents = manifest.get("parents") or []
    return {**manifest, "told": told | ({"parents": " ".join(map(str, parents))} if parents else {})}


def _flat(values: Any, depth: int = _MAX_DEPTH) -> dict[str, str]:
    if not isinstance(values, dict):
        return {}
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict) and depth > 1:
            flat |= {f"{key}.{name}": text for name, text in _flat(value, depth - 1).items()}
        else:
            flat[str(key)] = (value if isinstance(value, str) else json.dumps(value, default=str))[:_MAX_PARAMETER]
    return flat


def _numbers(values: Mapping[str, Any], prefix: str = "", depth: int = _MAX_DEPTH) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            yield f"{prefix}{key}", float(value)
        elif isinstance(value, Mapping) and depth > 1:
            yield from _numbers(value, f"{prefix}{key}/", depth - 1)


def run_name(command: str) -> str:
    """A name that tells when it was."""
    return f"{command} {time.strftime('%Y-%m-%d %H:%M:%S')}"
