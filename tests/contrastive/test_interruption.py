"""A training that is interrupted leaves its last checkpoint, and resumed ends with the bits of one that was not."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest
import torch

from multifacet import contrastive
from multifacet.contrastive import ContrastiveConfig, ContrastiveValidation
from multifacet.graphdb import GraphView
from multifacet.tables.checkpoint import Checkpoint
from multifacet.tables.training import Lifecycle, StepProgress

# Everything that has a state of its own: momentum, queue, hard negatives, temperature, composed tower.
CONFIG = ContrastiveConfig(
    dim=8,
    epochs=3,
    batch_size=64,
    positives_per_query=2,
    num_uniform=8,
    num_degree=8,
    queue_size=32,
    num_hard=1,
    hard_depth=10,
    history=0.5,
    temperature=0.5,
    temperature_lr=0.02,
    optimizer="adam",
    lr=0.03,
    lr_schedule="cosine",
    composed=(contrastive.ComposedTower(node_type="advertiser", through="made_by"),),
    validation=ContrastiveValidation(num_queries=20, num_latest=2, min_remaining=2),
)


@pytest.fixture(scope="module")
def whole(view: GraphView) -> contrastive.ContrastiveResult:
    """The same training, left alone."""
    return contrastive.train(view, CONFIG)


@pytest.mark.parametrize("way", ["asked to stop", "Ctrl-C"])
@pytest.mark.parametrize(("epoch", "step"), [(0, 3), (1, 1), (2, 7)])
def test_it_goes_on_with_the_same_bits(
    view: GraphView, whole: contrastive.ContrastiveResult, tmp_path: Path, way: str, epoch: int, step: int
) -> None:
    stop = threading.Event()

    def interrupt(progress: StepProgress) -> None:
        if (progress.epoch, progress.step) == (epoch, step):
            if way == "asked to stop":
                stop.set()
            else:
                signal.raise_signal(signal.SIGINT)

    # Asked to stop, it saves at the end of the next step; Ctrl-C ends it between a step and its checkpoint.
    every_seconds = 3600.0 if way == "asked to stop" else 0.0
    life = {"checkpoint": tmp_path / "checkpoint", "every_seconds": every_seconds}
    with pytest.raises(KeyboardInterrupt):
        contrastive.train(view, CONFIG, lifecycle=Lifecycle(**life, on_step=interrupt, stop=stop))
    position = Checkpoint.load(tmp_path / "checkpoint").fields["position"]
    if way == "asked to stop":
        assert (position["epoch"], position["step"]) == (epoch, step + 1)
    else:
        assert (0, 0) < (position["epoch"], position["step"]) < (epoch, step)

    resumed = contrastive.train(view, CONFIG, lifecycle=Lifecycle(**life, resume=True))

    for node_type, vectors in whole.vectors.items():
        assert torch.equal(vectors, resumed.vectors[node_type]), node_type
    assert resumed.metrics == whole.metrics
