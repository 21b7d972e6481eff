"""From a configuration to the trainer that carries it out."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from multifacet.kge.batches.feed_source import FeedSource
from multifacet.kge.full.trainer import FullTrainer
from multifacet.kge.partitioned.buckets import count_partitions
from multifacet.kge.partitioned.trainer import PartitionedTrainer
from multifacet.kge.sampled.trainer import Trainer
from multifacet.kge.triples.feeds import FeedSplit
from multifacet.training import are_several

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    import numpy as np

    from multifacet.kge.config import KgeConfig
    from multifacet.kge.evaluation.predictor import LinkPredictor
    from multifacet.kge.sampled.state import LearnedState
    from multifacet.kge.triples.triples import TripleSplit
    from multifacet.training import TrainingRun, WarmStart

__all__ = ["EpochTrainer", "make_trainer"]

logger = logging.getLogger(__name__)


class EpochTrainer(Protocol):
    """What a whole training needs of whatever runs its epochs."""

    @property
    def state(self) -> LearnedState:
        """What has been learned."""

    def run_epoch(self, run: TrainingRun | None = None) -> dict[str, float]:
        """Pass once over the triples, or over what is left of an epoch that was interrupted."""

    def predictor(self) -> LinkPredictor:
        """Give the scores of the tables as they are now."""

    def warm_start(self, warm_start: WarmStart, node_ids: Callable[[str], Any]) -> None:
        """Begin with the rows and relations of an older snapshot; `node_ids` gives the external ids of a node type."""


def make_trainer(
    split: TripleSplit | FeedSplit, config: KgeConfig, generator: np.random.Generator, checkpoint: Path | None, stack: ExitStack
) -> EpochTrainer:
    """Give the one trainer that a configuration asks for.

    ============================================  ====================
    a group of several processes                  `ShardedTrainer`
    `full_softmax`                                `FullTrainer`
    tables that the memory limit does not hold    `PartitionedTrainer`
    otherwise                                     `Trainer`
    ============================================  ====================

    Args:
        split: what is learned from and what is ranked.
        config: the model and how it is trained.
        generator: source of shuffles and negatives.
        checkpoint: where the training is saved; tables in partitions lie beside it.
        stack: closes what the trainer holds when the training ends.

    Raises:
        ValueError: if the configuration does not fit the split, or the trainer that it asks for.
    """
    if isinstance(split, FeedSplit):
        return _make_feed_trainer(split, config, generator, checkpoint)
    if are_several():
        from multifacet.kge.sharded.trainer import ShardedTrainer  # noqa: PLC0415 - importing TorchRec takes seconds

        return ShardedTrainer(split, config, generator, folder=checkpoint.absolute().parent if checkpoint else None)
    if config.full_softmax is not None:
        return FullTrainer(split, config, generator)
    num_partitions = count_partitions(
        split.train.num_nodes, config.dim, partitions=config.partitions, memory_limit_gb=config.memory_limit_gb
    )
    if num_partitions == 1:
        return Trainer(split, config, generator)
    if checkpoint is None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="multifacet-tables-"))) / "tables"
    else:
        # Beside the checkpoint, which links its files.
        folder = checkpoint.with_name(f"{checkpoint.name}.tables")
    logger.info("kge: tables in %d partitions, in %s", num_partitions, folder)
    trainer = PartitionedTrainer(split, config, generator, num_partitions=num_partitions, folder=folder)
    stack.callback(trainer.close)
    return trainer


def _make_feed_trainer(
    split: FeedSplit, config: KgeConfig, generator: np.random.Generator, checkpoint: Path | None
) -> EpochTrainer:
    """Give what trains from a feed: alone, or each process from its own shards."""
    feed = split.train.feed
    if not are_several():
        return Trainer(split, config, generator, source=FeedSource(feed, config))
    import torch.distributed as dist  # noqa: PLC0415 - as TorchRec

    from multifacet.kge.sharded.trainer import ShardedTrainer  # noqa: PLC0415 - importing TorchRec takes seconds

    rank, world_size = dist.get_rank(), dist.get_world_size()
    source = FeedSource(feed, config, rank=rank, world_size=world_size, tells_places=False)
    folder = checkpoint.absolute().parent if checkpoint else None
    return ShardedTrainer(split, config, generator, folder=folder, source=source)
