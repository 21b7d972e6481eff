"""Whole trainings against all entities: validation, stopping early, and keeping the best."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from kge.evaluation import evaluate, known_pairs
from kge.full_trainer import FullTrainer
from kge.result import KgeResult
from kge.triples import TripleSet, TripleSplit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from graphdb import GraphView
    from kge.config import KgeConfig

__all__ = ["train_against_all"]

logger = logging.getLogger(__name__)

_TIMINGS = ("seconds", "edges_per_s")


def train_against_all(
    data: GraphView | TripleSplit,
    config: KgeConfig,
    *,
    progress: Callable[[Mapping[str, float]], None] | None = None,
) -> KgeResult:
    """Learn tables by comparing each query with every entity of the right type.

    Args:
        data: a graph window, of which `config.validation` is held out, or triples split already.
        config: the model and how it is trained, with `full_softmax` given.
        progress: called with the history's row after each epoch.

    Returns:
        Tables, relation parameters, history and metrics: of the last epoch, or of the best validation where
        `full_softmax.patience` is given.

    Raises:
        ValueError: if there is nothing to train on, or the loss stops being a number.
    """
    if not isinstance(data, TripleSplit):
        chosen = [relation.name for relation in data.relations if config.relation_weights.get(relation.name, 1.0) > 0]
        triples = TripleSet.from_view(data, relations=chosen).distinct()
        data = triples.hold_out(config.validation, np.random.default_rng(config.seed))
    trainer = FullTrainer(data, config)
    state, patience = trainer.state, trainer.objective.patience
    held_out, known = data.valid.edges(), known_pairs(*data)
    best: tuple[dict[str, float], dict[str, Tensor]] | None = None
    num_worse = 0
    for epoch in range(1, config.epochs + 1):
        row = trainer.run_epoch()
        is_last = epoch == config.epochs
        if len(data.valid) and (is_last or epoch % config.validation.every == 0):
            row |= evaluate(trainer.predictor(), held_out, known)
            if best is None or row["filtered_mrr"] > best[0]["filtered_mrr"]:
                num_worse = 0
                best = row, trainer.copy_values() if patience is not None else {}
            else:
                num_worse += 1
        state.history.append(row)
        logger.info("kge epoch %d: %s", epoch, row)
        if progress is not None:
            progress(row)
        if patience is not None and num_worse > patience:
            break
    final = state.history[-1]
    if patience is not None and best is not None:
        final, values = best
        trainer.restore_values(values)
    # No clock: equal trainings have equal metrics, and so equal snapshots.
    metrics = {name: value for name, value in final.items() if name not in _TIMINGS}
    return KgeResult(
        config=config,
        vectors=state.tables,
        relations=state.relations,
        ends=trainer.ends,
        history=state.history,
        metrics=metrics | {"num_held_out": float(len(data.valid))},
        # Row-wise Adagrad's state is the mean of these: a later training by it can go on from here.
        adagrad={
            node_type: optimizer.state["squares"].mean(1)
            for node_type, optimizer in state.optimizers.items()
            if optimizer.kind == "adagrad"
        },
    )
