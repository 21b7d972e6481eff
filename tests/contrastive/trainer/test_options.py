"""Drawn negatives alone, dropout of queries and lazy Adam, each against plain torch or a run that was not stopped."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multifacet.contrastive import ContrastiveConfig, Positives, train_pairs
from multifacet.contrastive.trainer.step import Stepper, Temperature
from multifacet.contrastive.trainer.towers import Tower
from multifacet.contrastive.trainer.vectors import History
from multifacet.tables.optim import RowwiseAdagrad
from multifacet.training import Lanes, Lifecycle, StepProgress

NUM_USERS, NUM_PINS = 12, 60


class Gradients(RowwiseAdagrad):
    """Keeps the gradient of a whole table, and moves nothing."""

    def __init__(self, table: Tensor) -> None:
        super().__init__(len(table), 1.0)
        self.of_table = torch.zeros_like(table)

    def step(self, table: Tensor, rows: Tensor, gradients: Tensor) -> None:
        del table
        self.of_table.index_add_(0, rows.long(), gradients)


def pairs(seed: int = 0) -> Positives:
    generator = np.random.default_rng(seed)
    items = generator.permuted(np.tile(np.arange(NUM_PINS), (NUM_USERS, 1)), axis=1)[:, :5].ravel()
    return Positives.from_pairs(np.arange(NUM_USERS).repeat(5), items, num_queries=NUM_USERS, num_items=NUM_PINS)


@pytest.mark.parametrize("history", [0.0, 0.5])
@pytest.mark.parametrize("mask_known", [True, False])
def test_a_step_is_that_of_plain_torch(history: float, mask_known: bool) -> None:
    positives = pairs()
    config = ContrastiveConfig(
        dim=6,
        loss="bilateral",
        negative_weight=1.22,
        temperature=0.2,
        in_batch=False,
        query_dropout=0.3,
        history=history,
        mask_known=mask_known,
        batch_size=8,
        positives_per_query=2,
        num_uniform=7,
        num_degree=0,
    )
    tower = Tower("pin", positives, config, share=1.0)
    batch = tower.draw(np.random.default_rng(1))
    assert batch.seed
    drawn = torch.Generator().manual_seed(0)
    tables = {"user": torch.randn(NUM_USERS, 6, generator=drawn), "pin": torch.randn(NUM_PINS, 6, generator=drawn)}
    optimizers = {name: Gradients(table) for name, table in tables.items()}
    stepper = Stepper(
        config,
        tables=tables,
        optimizers=optimizers,
        temperature=Temperature(0.2),
        history=History(share=history, items=tower.known),
    )
    with Lanes() as lanes:
        loss = stepper.step("pin", batch, lanes)

    users, pins = (tables[name].clone().requires_grad_() for name in ("user", "pin"))
    candidates = batch.candidates
    assert candidates.only_positives is not None
    rows = candidates.rows.tolist()
    known = [
        set(tower.known.indices[tower.known.indptr[query] : tower.known.indptr[query + 1]].tolist()) for query in batch.queries
    ]
    kept = np.random.default_rng(batch.seed).random((len(batch.queries), 6), dtype=np.float32) >= 0.3
    total, num_positives = users.new_zeros(()), 0
    for number, query in enumerate(batch.queries.tolist()):
        vector = (1 - history) * users[query] + history * pins[sorted(known[number])].mean(0)
        vector = F.normalize(vector * torch.from_numpy(kept[number]) / 0.7, dim=0)
        own = candidates.targets.slots[candidates.targets.indptr[number] : candidates.targets.indptr[number + 1]].tolist()
        negatives = [
            row
            for place, row in enumerate(rows)
            if not candidates.only_positives[place] and place not in own and not (mask_known and row in known[number])
        ]
        scores = F.normalize(pins[negatives]) @ vector / 0.2
        for place in own:
            similarity = F.normalize(pins[rows[place]], dim=0) @ vector / 0.2
            total = total + 1.22 * (torch.logsumexp(scores, 0) - np.log(len(negatives))) - similarity
            num_positives += 1
    expected = total / num_positives
    by_user, by_pin = torch.autograd.grad(expected, (users, pins))
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    torch.testing.assert_close(optimizers["user"].of_table, by_user, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(optimizers["pin"].of_table, by_pin, rtol=1e-3, atol=1e-5)


def test_only_what_was_drawn_is_a_negative() -> None:
    config = ContrastiveConfig(loss="bilateral", in_batch=False, batch_size=16, num_uniform=5, num_degree=0)
    tower = Tower("pin", pairs(), config, share=1.0)
    for seed in range(20):
        candidates = tower.draw(np.random.default_rng(seed)).candidates
        assert candidates.only_positives is not None
        assert int((~candidates.only_positives).sum()) <= 5
        assert set(np.flatnonzero(candidates.only_positives)) <= set(candidates.targets.slots.tolist())
    # Where the whole table is among the candidates, all of it is drawn.
    config = config.model_copy(update={"num_uniform": NUM_PINS})
    everything = Tower("pin", pairs(), config, share=1.0).draw(np.random.default_rng(0)).candidates
    assert everything.only_positives is not None
    assert not everything.only_positives.any()


def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    config = ContrastiveConfig(
        preset="bilateral", dim=8, batch_size=16, num_uniform=8, epochs=4, history=0.5, lr=0.05, positives_per_query=2
    )
    whole = train_pairs(pairs(), config)
    stop = threading.Event()

    def on_step(progress: StepProgress) -> None:
        if (progress.epoch, progress.step) == (2, 1):
            stop.set()

    with pytest.raises(KeyboardInterrupt):
        train_pairs(pairs(), config, lifecycle=Lifecycle(checkpoint=tmp_path / "state", on_step=on_step, stop=stop))
    resumed = train_pairs(pairs(), config, lifecycle=Lifecycle(checkpoint=tmp_path / "state", resume=True))
    for name, vectors in whole.vectors.items():
        assert torch.equal(resumed.vectors[name], vectors)


def test_younger_options_are_not_written_where_they_are_off() -> None:
    assert not {"in_batch", "query_dropout", "preset"} & ContrastiveConfig().model_dump().keys()
    document = ContrastiveConfig(preset="bilateral").model_dump()
    assert ContrastiveConfig.model_validate(document).model_dump() == document
    assert document["in_batch"] is False


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"in_batch": False}, "set loss='bilateral'"),
        ({"in_batch": False, "loss": "bilateral", "logq": True}, "leave one of them out"),
        ({"in_batch": False, "loss": "bilateral", "num_uniform": 0, "num_degree": 0}, "leaves no negatives"),
        ({"loss": "bilateral", "margin": 0.1}, "margin means nothing to the bilateral loss"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContrastiveConfig(**fields)
