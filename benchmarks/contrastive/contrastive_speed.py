"""Positives a second of contrastive training, beside plain torch on the same batches.

The peer torch is what one would write: nn.Embedding with sparse gradients, one row of scores for each positive against the same
candidates, known positives masked, logQ subtracted, cross-entropy, autograd, and torch's Adagrad. Both draw nothing within the
time measured: they get the same prepared batches. The first step's losses of the two must agree, or there is no result. What
the speed costs in quality is shown by an epoch of each on a tenth of the data, by the same batches, and the recall of held-out
pairs.

The data is planted: users and pins are in 50 groups, four of five pairs stay within a group, and both ends are skewed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import HIGHER, Metric, Peer, Row
from multifacet.contrastive import ContrastiveConfig, Positives, evaluate
from multifacet.contrastive.trainer.towers import Batch, Tower
from multifacet.contrastive.trainer.trainer import Trainer
from multifacet.training import Lanes

_NUM_GROUPS: Final = 50
_LOSSES: Final[dict[str, dict[str, Any]]] = {"softmax": {}, "bilateral": {"loss": "bilateral", "negative_weight": 1.2}}
RECALL = Metric(name="recall_at_20", unit="", better=HIGHER)
PAIRS_PER_S = Metric(name="pairs_per_s", unit="1/s", better=HIGHER)


def run(quick: bool) -> Iterator[Row]:
    """6 steps a case when quick, else 40, the fastest third counted; 200k users, 50k pins, 4M pairs (quick: a tenth)."""
    scale, num_steps = (10, 6) if quick else (1, 40)
    generator = np.random.default_rng(0)
    positives, _ = _plant(scale, generator)
    for per_query, loss in ((1, "softmax"), (16, "softmax"), (16, "bilateral")):
        shared = {"batch_size": 2048, "positives_per_query": per_query, "num_uniform": 1024, "num_degree": 0}
        config = ContrastiveConfig.model_validate(shared | _LOSSES[loss])
        tower = Tower("pin", positives, config, share=1.0)
        batches = [tower.draw(generator) for _ in range(num_steps)]
        own, peer = _both(tower, config)
        losses = own.step(batches[0]), peer.step(batches[0])
        if abs(losses[0] - losses[1]) > 1e-3 * losses[1]:
            raise RuntimeError(f"the two trainings differ at the first step: {losses}")
        yield Row(
            case=f"{per_query} positives a query{'' if loss == 'softmax' else f', {loss} loss'}",
            metric=PAIRS_PER_S,
            value=_pairs_per_s(own, batches),
            peer=Peer(name="torch", value=_pairs_per_s(peer, batches)),
            config=_settings(config, positives)
            | {"candidates": int(np.mean([len(batch.candidates.rows) for batch in batches])), "steps": num_steps},
        )
    yield _recall_after_an_epoch(100 if quick else 10, generator)


def _recall_after_an_epoch(scale: int, generator: np.random.Generator) -> Row:
    positives, held_out = _plant(scale, generator)
    config = ContrastiveConfig(batch_size=2048, num_uniform=1024, num_degree=0, lr=0.3)
    tower = Tower("pin", positives, config, share=1.0)
    recalls = []
    batches = [tower.draw(generator) for _ in range(-(-len(positives) // config.batch_size))]
    for training in _both(tower, config):
        for batch in batches:
            training.step(batch)
        users, pins = training.vectors()
        recalls.append(evaluate(users, pins, relevant=held_out.index(), seen=positives.index())["recall@20"])
    return Row(
        case="recall after one epoch",
        metric=RECALL,
        value=recalls[0],
        peer=Peer(name="torch", value=recalls[1]),
        config=_settings(config, positives) | {"held_out": len(held_out), "steps": len(batches)},
    )


def _plant(scale: int, generator: np.random.Generator) -> tuple[Positives, Positives]:
    """Pairs to train on, and the last one of each of 2,000 users."""
    num_users, num_pins, num_pairs = 200_000 // scale, 50_000 // scale, 4_000_000 // scale
    users = (generator.random(num_pairs) ** 2 * num_users).astype(np.int32)
    groups = np.where(generator.random(num_pairs) < 0.8, users % _NUM_GROUPS, generator.integers(0, _NUM_GROUPS, num_pairs))
    pins = (generator.random(num_pairs) ** 2 * (num_pins // _NUM_GROUPS)).astype(np.int32) * _NUM_GROUPS + groups
    pairs = Positives.from_pairs(users, pins, num_queries=num_users, num_items=num_pins)
    last = np.append(np.diff(pairs.queries) != 0, True)
    chosen = generator.choice(np.flatnonzero(last), min(2000, int(last.sum())), replace=False)
    held_out = np.zeros(len(pairs), dtype=np.bool_)
    held_out[chosen] = True
    return pairs.keep(~held_out), pairs.keep(held_out)


def _settings(config: ContrastiveConfig, positives: Positives) -> dict[str, Any]:
    return {
        "contrastive": config.model_dump(mode="json"),
        "users": positives.num_queries,
        "pins": positives.num_items,
        "pairs": len(positives),
        "torch_threads": torch.get_num_threads(),
    }


def _both(tower: Tower, config: ContrastiveConfig) -> tuple[_Own, _Torch]:
    return _Own(tower, config), _Torch(Trainer([tower], config, np.random.default_rng(0)).state.tables, config)


class _Own:
    def __init__(self, tower: Tower, config: ContrastiveConfig) -> None:
        self._tower = tower
        self._trainer = Trainer([tower], config, np.random.default_rng(0))

    def step(self, batch: Batch) -> float:
        with Lanes() as lanes:
            return self._trainer.step(self._tower, batch, lanes)

    def vectors(self) -> tuple[Tensor, Tensor]:
        return self._trainer.vectors("user"), self._trainer.vectors("pin")


class _Torch:
    def __init__(self, tables: dict[str, Tensor], config: ContrastiveConfig) -> None:
        self._config = config
        self._users = torch.nn.Embedding.from_pretrained(tables["user"].clone(), freeze=False, sparse=True)  # type: ignore[no-untyped-call]
        self._pins = torch.nn.Embedding.from_pretrained(tables["pin"].clone(), freeze=False, sparse=True)  # type: ignore[no-untyped-call]
        self._optimizer = torch.optim.Adagrad([self._users.weight, self._pins.weight], lr=config.lr)

    def step(self, batch: Batch) -> float:
        candidates, targets = batch.candidates, batch.candidates.targets
        of_query = np.repeat(np.arange(len(batch.queries)), np.diff(targets.indptr))
        queries = F.normalize(self._users(torch.from_numpy(batch.queries[of_query])))
        logits = queries @ F.normalize(self._pins(torch.from_numpy(candidates.rows))).t() / (self._config.temperature or 1.0)
        if self._config.corrects_logq:
            logits = logits - torch.from_numpy(candidates.log_inclusion)
        slots = torch.from_numpy(targets.slots).long()
        if candidates.masked is not None:
            mask = torch.zeros(len(batch.queries), len(candidates.rows), dtype=torch.bool)
            rows = np.repeat(np.arange(len(batch.queries)), np.diff(candidates.masked.indptr))
            mask[torch.from_numpy(rows), torch.from_numpy(candidates.masked.slots).long()] = True
            hidden = mask[torch.from_numpy(of_query)]
            hidden[torch.arange(len(slots)), slots] = self._config.loss == "bilateral"
            own = logits[torch.arange(len(slots)), slots]
            logits = logits.masked_fill(hidden, -torch.inf)
        if self._config.loss == "bilateral":
            of_negatives = torch.logsumexp(logits, 1) - (logits > -torch.inf).sum(1).log()
            loss = ((self._config.negative_weight or 1.0) * of_negatives - own).mean()
        else:
            loss = F.cross_entropy(logits, slots)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return float(loss.detach())

    def vectors(self) -> tuple[Tensor, Tensor]:
        return F.normalize(self._users.weight.detach()), F.normalize(self._pins.weight.detach())


def _pairs_per_s(training: _Own | _Torch, batches: list[Batch]) -> float:
    seconds = []
    for batch in batches:
        started = time.perf_counter()
        training.step(batch)
        seconds.append(time.perf_counter() - started)
    fastest = sorted(seconds)[: max(1, len(seconds) // 3)]
    return len(batches[0]) * len(fastest) / sum(fastest)
