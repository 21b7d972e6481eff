"""Where a table's first rows come from, and by which rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from tables.rowcopy import Collisions

if TYPE_CHECKING:
    from torch import Tensor

    from tables import IdMap, Snapshot

Missing = Literal["mean", "zero", "keep", "normal"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TableSource:
    """Where a table's rows come from, and by which rules.

    Attributes:
        snapshot: The pretrained vectors.
        node_type: Which of the snapshot's tables, e.g. "pin".
        id_map: External id -> row of the model's table, exact or hashed. None: the model's rows are the snapshot's
            positions (the graph's idx), so that no id is read at all.
        collisions: How ids that share a row are combined: the "mean" of their vectors, their mean by `weights`
            ("weighted"), or the "first" one in the snapshot's order.
        weights: float32 by position in the snapshot, e.g. each id's degree; for "weighted" only.
        missing: What rows get that no id of the snapshot fills, an out-of-vocabulary row among them: the "mean" of the
            filled rows (an unknown id is taken for an average one), "zero", "normal" noise with the filled rows' root
            mean square norm, or what they hold ("keep").
        norm: Root mean square norm of the filled rows, reached by one factor for all, so that the rows' relative
            lengths, which tell popularity and certainty, stay. None: the vectors as they are.
        projection: How vectors of another dimension become the table's: "pca" (to fewer), or a matrix [D of the
            snapshot, D of the table]. None: the dimensions must be equal.
        seed: Seed of missing="normal".
    """

    snapshot: Snapshot
    node_type: str
    id_map: IdMap | None = None
    collisions: Collisions = "mean"
    weights: Tensor | None = field(default=None, repr=False)
    missing: Missing = "mean"
    norm: float | None = None
    projection: Literal["pca"] | Tensor | None = field(default=None, repr=False)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, kinds in (
            ("collisions", self.collisions, get_args(Collisions)),
            ("missing", self.missing, get_args(Missing)),
        ):
            if value not in kinds:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(kinds)}")
        if self.norm is not None and not 0 < self.norm < float("inf"):
            raise ValueError(f"norm is {self.norm}; expected a positive number or None")
        if (self.collisions == "weighted") != (self.weights is not None):
            raise ValueError("weights go with collisions='weighted', and only with it")
