"""The steps of a training whose tables are whole in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from multifacet.ranking.objective import training_loss
from multifacet.ranking.optimizers import Optimizers
from multifacet.ranking.scoring import score_columns, validate
from multifacet.tables.lanes import Lanes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from multifacet.ranking.columns import Columns
    from multifacet.ranking.config import RankingConfig
    from multifacet.ranking.coverage import InitReport
    from multifacet.ranking.model import RankingModel

MODEL: Final = "model"
BEST: Final = "best"


class Trainer:
    """Takes steps, validates, and keeps the best weights.

    Args:
        model: The model.
        config: Rates and weights.
        first_rows: Fills the tables of the module that it gets with their first rows.
    """

    def __init__(self, model: RankingModel, config: RankingConfig, first_rows: Callable[[nn.Module], InitReport]) -> None:
        self.model, self.config, self._first_rows = model, config, first_rows
        self.optimizers = Optimizers(model, config)
        self._best: dict[str, Tensor] = {}

    def start_tables(self) -> InitReport:
        """Give the tables their first rows, and their optimisers nothing to remember."""
        self.optimizers.forget_rows()
        return self._first_rows(self.model)

    def count_rows(self, rows: Tensor) -> None:
        """Learn how often each row occurs in the training examples, int32 [n, columns]."""
        self.optimizers.count_rows(rows)

    def lanes(self) -> Lanes:
        """Give what prepares batches and runs steps."""
        return Lanes()

    def take(self, columns: Columns, chosen: Tensor) -> Columns:
        """Give a step's examples."""
        return columns.take(chosen)

    def step(self, batch: Columns, lanes: Lanes, *, number: int, learns_tables: bool) -> float:
        """Take one step: the tables' gradients stay those of the rows looked up, never a whole table's.

        Args:
            batch: What `take` gave.
            lanes: What `lanes` gave.
            number: The step's, another one at each: half-precision tables are rounded by it.
            learns_tables: Whether the tables learn, or only what is above them.

        Returns:
            The batch's loss.
        """
        model, config = self.model.train(), self.config
        looked_up = model.gather(batch.rows)
        for rows in looked_up.values():
            rows.requires_grad_(learns_tables)
        logits = model.score(batch.dense, looked_up, batch.num_recent)
        loss = training_loss(
            logits,
            batch.ctr,
            batch.cvr,
            batch.cvr_known,
            heads=config.heads,
            cvr_weight=config.cvr_weight,
            weight=batch.weight,
        )
        self.optimizers.upper.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = {feature: rows.grad for feature, rows in looked_up.items() if rows.grad is not None}
        lanes.run(
            self.optimizers.step_upper,
            lambda: self.optimizers.step_tables(batch.rows, gradients, number),
        )
        return loss.item()

    def validate(self, columns: Columns) -> dict[str, float]:
        """Score examples and give their metrics."""
        return validate(score_columns(self.model, columns), columns)

    def keep_best(self) -> None:
        """Keep the weights as they are now."""
        self._best = {name: value.clone() for name, value in self.model.state_dict().items()}

    def finish(self) -> RankingModel:
        """Give the model with the weights that were kept last."""
        self.model.load_state_dict(self._best)
        return self.model

    def to_tensors(self) -> dict[str, Tensor]:
        """Give all state as named tensors, which may be the living ones."""
        tensors = {f"{MODEL}.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"{BEST}.{name}": value for name, value in self._best.items()}
        return tensors | self.optimizers.to_tensors() | {"torch_generator.0": torch.get_rng_state()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go to where `to_tensors` was called."""
        self.model.load_state_dict(named(tensors, MODEL))
        self._best = {name: value.clone() for name, value in named(tensors, BEST).items()}
        self.optimizers.restore(tensors)
        torch.set_rng_state(tensors["torch_generator.0"].clone())


def named(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Choose the tensors of a kind, such as "model", by their own names."""
    return {name.removeprefix(f"{kind}."): value for name, value in tensors.items() if name.startswith(f"{kind}.")}
