"""A run at an MLflow server, by its client."""

from __future__ import annotations

import math
import re
import time
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import override

from multifacet.pipeline.tracking.tracker import Tracker

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MlflowTracker"]

_EXPERIMENT: Final = "multifacet"
_BATCH: Final = 100  # parameters and figures that the server takes at once
_MISSING: Final = "--track mlflow: needs MLflow's client: pip install 'multifacet[track]', or pip install mlflow-skinny"


class MlflowTracker(Tracker):
    """One run of the experiment "multifacet"; a child names its parent by MLflow's own tag."""

    def __init__(self, client: Any, run: str, experiment: str) -> None:
        self._client = client
        self._run = run
        self._experiment = experiment

    @classmethod
    def begin(cls, uri: str, name: str) -> MlflowTracker:
        """Begin a run at a tracking URI.

        Raises:
            ImportError: if MLflow's client is not installed.
        """
        try:
            from mlflow import MlflowClient  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ImportError(_MISSING) from error
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(_EXPERIMENT)
        experiment = found.experiment_id if found is not None else client.create_experiment(_EXPERIMENT)
        return cls(client, client.create_run(experiment, run_name=name).info.run_id, experiment)

    @override
    def child(self, name: str) -> MlflowTracker:
        tags = {"mlflow.parentRunId": self._run}
        run = self._client.create_run(self._experiment, run_name=name, tags=tags)
        return MlflowTracker(self._client, run.info.run_id, self._experiment)

    @override
    def parameters(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param  # noqa: PLC0415 - an extra, which is there

        given = [Param(_name(key), value) for key, value in values.items()]
        for begin in range(0, len(given), _BATCH):
            self._client.log_batch(self._run, params=given[begin : begin + _BATCH])

    @override
    def figures(self, values: Mapping[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric  # noqa: PLC0415

        now = time.time_ns() // 1_000_000
        told = [Metric(_name(key), value, now, step or 0) for key, value in values.items() if math.isfinite(value)]
        for begin in range(0, len(told), _BATCH):
            self._client.log_batch(self._run, metrics=told[begin : begin + _BATCH])

    @override
    def reference(self, name: str, value: str) -> None:
        self._client.set_tag(self._run, f"multifacet.{name}", value)

    @override
    def end(self, *, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


def _name(key: str) -> str:
    """A name that MLflow takes, in a folder's store too, where recall@20 and recall@20/head cannot be a file and its folder."""
    return re.sub(r"[^\w\-. ]", "_", key.replace("@", "_at_").replace("/", "."))
