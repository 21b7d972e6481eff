"""What an experiment asks, and what it takes to answer."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from multifacet.pipeline.experiments.arm import Arm
from multifacet.pipeline.experiments.source import Source
from multifacet.pipeline.stages import PRECISIONS

Expectation = Literal["higher", "lower", "no difference"]


class Comparison(BaseModel):
    """One difference that the experiment was made for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str = Field(description="arm that is compared")
    baseline: str = Field(description="arm that it is compared with")
    claim: str = Field(description="what is claimed of the two, in words")
    expectation: Expectation = Field(description="what the claim says of the arm's ROC-AUC beside the baseline's")
    by: Literal["paper", "us"] = Field(default="paper", description="who claims it")
    size: float | None = Field(default=None, gt=0, description="ROC-AUC that the claim speaks of; None: the settings' margin")


class Experiment(BaseModel):
    """A question, the arms that answer it, and the comparisons that were declared before any of them ran."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="name, as on the command line")
    question: str = Field(description="what is asked")
    setting: str = Field(description="how it is answered, for a reader who knows the paper")
    arms: tuple[Arm, ...] = Field(min_length=2, description="what is compared")
    comparisons: tuple[Comparison, ...] = Field(min_length=1, description="what was declared beforehand")
    quantized: str | None = Field(default=None, description="arm whose tables are also scored at every precision")
    budgets: tuple[float, ...] = Field(
        default=(), description="bytes of that arm's tables in mixed precision, as multiples of INT4's, each an arm of its own"
    )
    axis: str | None = Field(default=None, description="what the arms' positions along a line mean, for a plot")
    positions: dict[str, float | None] = Field(
        default_factory=dict, description="arm -> position along the axis; None: the CPU seconds that its pretraining took"
    )

    @model_validator(mode="after")
    def _names_match(self) -> Experiment:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            raise ValueError(f"experiment {self.name!r} has two arms of one name: {names}")
        known = {*names, *self.precision_arms}
        if self.budgets and not self.quantized:
            raise ValueError(f"experiment {self.name!r} has budgets, but names no arm to quantise")
        for comparison in self.comparisons:
            stray = {comparison.arm, comparison.baseline} - known
            if stray:
                raise ValueError(f"experiment {self.name!r} compares {sorted(stray)}, which are no arms: {sorted(known)}")
        return self

    @property
    def precision_arms(self) -> tuple[str, ...]:
        """Arms that quantising adds: one a precision; with budgets, INT4 rounded as theirs, then one a budget."""
        if not self.quantized:
            return ()
        return (*PRECISIONS, *((REFIT, *map(mixed_name, self.budgets)) if self.budgets else ()))


#: Arm with INT4 rows that are rounded by least squares, as rows of mixed precision are; "int4" rounds by minimum and maximum.
REFIT = "refit"


def mixed_name(share: float) -> str:
    """Name of the arm with rows of mixed precision within a budget."""
    return f"mixed{share:g}"


class Settings(BaseModel):
    """How thoroughly an experiment is run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Source = Field(description="the data")
    num_seeds: int = Field(default=5, ge=1, description="seeds of pretraining, negatives, fits")
    num_trials: int = Field(default=4, ge=1, le=4, description="trials on the validation periods, the same for every arm")
    num_resamples: int = Field(default=400, ge=20, description="bootstrap resamples of users")
    max_epochs: int = Field(default=10, ge=1, description="most epochs of a fit")
    pretraining_share: float = Field(
        default=1.0, gt=0, le=1, description="share of the pretrainers' default epochs, at least one"
    )
    margin: float = Field(default=0.002, gt=0, description="ROC-AUC that counts as no difference where one claims none")
