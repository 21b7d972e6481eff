"""The limits that tables, rankers and releases are held against."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from multifacet.inputs import Configuration

__all__ = ["GatesSection"]


class GatesSection(Configuration):
    """`[gates]`: what stops a release, what only warns; None never stops, or never warns."""

    window_gap_warn_days: float | None = Field(default=30.0, description="days between a window's end and fine-tuning")
    window_gap_stop_days: float | None = Field(default=90.0, description="likewise, to stop at")
    frozen_tables: Literal["stop", "warn", "ignore"] = Field(
        default="stop", description="tables that do not learn, and freeze_tables does not say so"
    )
    coverage_warn: float | None = Field(default=0.8, description="least share of a feature's examples whose id has a row")
    coverage_stop: float | None = Field(default=0.5, description="likewise, to stop at")
    calibration_warn: float | None = Field(
        default=0.1, description="most that predicted over observed may be off by, beyond chance"
    )
    calibration_stop: float | None = Field(default=0.5, description="likewise, to stop at")
    drift_warn: float | None = Field(default=0.5, description="least median cosine of an old row with itself a training ago")
    drift_stop: float | None = Field(default=None, description="likewise, to stop at")
    effective_rank_warn: float | None = Field(default=0.1, description="least effective rank, as a share of the width")
    effective_rank_stop: float | None = Field(default=0.03, description="likewise, to stop at")
    hub_warn: float | None = Field(default=0.4, description="most of all neighbor lists that one row may stand in")
    hub_stop: float | None = Field(default=None, description="likewise, to stop at")
    auc_drop_warn: float | None = Field(default=0.0, description="most that CTR ROC-AUC may drop for certain, against serving")
    auc_drop_stop: float | None = Field(default=0.005, description="likewise, to stop at: the interval's high end is below -it")
    auc_seed_deviation: float = Field(
        default=0.0015,
        ge=0,
        description="standard deviation of CTR ROC-AUC between trainings that differ in their seed alone; it widens the "
        "interval of the change",
    )
    int4_drop_warn: float | None = Field(default=0.001, description="most that the release's precision may cost, for certain")
    int4_drop_stop: float | None = Field(default=0.005, description="likewise, to stop at")
    row_error_warn: float | None = Field(default=0.05, description="most of the rows' squares that the precision may lose")
    row_error_stop: float | None = Field(default=None, description="likewise, to stop at")
