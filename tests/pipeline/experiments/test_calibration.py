"""The harness finds what is there and nothing else, in worlds whose truth is known."""

from collections.abc import Iterator
from typing import Any

import pytest

from multifacet.pipeline.experiments import Settings, run_experiment
from multifacet.pipeline.experiments.arm import Arm
from multifacet.pipeline.experiments.catalogue.parts import contrastive_facet, without_tables
from multifacet.pipeline.experiments.experiment import Comparison, Experiment
from multifacet.pipeline.experiments.source import WORLD, Source
from multifacet.pipeline.experiments.writing import to_markdown, verdicts
from multifacet.pipeline.runs.workspace import Stage, Workspace

pytestmark = pytest.mark.slow


class Silence:
    def started(self, name: str) -> None: ...

    def progressed(self, name: str, message: str) -> None: ...

    def finished(self, stage: Stage) -> None: ...


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path_factory.mktemp("calibration"), Silence())
    with workspace.locked():
        yield workspace


def run_calibration(workspace: Workspace, interest_strength: float) -> dict[str, Any]:
    """Pretrained tables beside none and beside vectors of other ids, in a world where interests play the given part."""
    fields = {"num_users": 600, "num_pins": 500, "num_advertisers": 40, "num_edges": 50_000, "num_visits": 15_000}
    still = {"drift_per_month": 0.0, "user_churn_per_month": 0.0, "pin_churn_per_month": 0.0, "noise_share": 0.0}
    world = WORLD.model_copy(update={**fields, **still, "interest_strength": interest_strength})
    settings = Settings(
        source=Source.of_world(world), num_seeds=2, num_trials=1, num_resamples=100, max_epochs=8, pretraining_share=0.5
    )
    facet = contrastive_facet(settings)
    arms = (
        without_tables(),
        Arm(name="contrastive", title="contrastive", facets=(facet,)),
        Arm(name="shuffled", title="vectors of other ids", facets=(facet.model_copy(update={"shuffled": True}),)),
    )
    experiment = Experiment(
        name="calibration",
        question="Is there anything to be found?",
        setting="One facet, fine-tuned.",
        arms=arms,
        comparisons=tuple(
            Comparison(arm="contrastive", baseline=baseline, claim=f"better than {baseline}", expectation="higher")
            for baseline in ("none", "shuffled")
        ),
    )
    return run_experiment(experiment, settings, workspace)


def test_a_strong_signal_is_found(workspace: Workspace):
    document = run_calibration(workspace, interest_strength=5.0)
    found = verdicts(document, "ctr")
    assert [row["verdict"] for row in found] == ["reproduced", "reproduced"]
    assert "better than shuffled" in to_markdown(document)


def test_where_interests_play_no_part_nothing_is_found(workspace: Workspace):
    found = verdicts(run_calibration(workspace, interest_strength=0.0), "ctr")
    assert "reproduced" not in [row["verdict"] for row in found]
