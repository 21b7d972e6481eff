"""Where a table's first rows come from, and by which rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from multifacet.inputs import expect_attributes, expect_type, number, whole
from multifacet.tables.filling import Collisions

if TYPE_CHECKING:
    from torch import Tensor

    from multifacet.tables import IdMap, Snapshot

Missing = Literal["mean", "zero", "keep", "normal"]
HashPooling = Literal["sum", "mean"]
#: "position", "id", an array of rows, a mapping from ids to rows, or a function from ids to an array of rows.
Rows = Any


@dataclass(frozen=True, kw_only=True, eq=False)
class TableSource:
    """Where a table's rows come from, and by which rules.

    The source must say how the model finds an id's row: by `id_map` or by `rows`. There is no default, since a table that is
    filled by another rule than the model reads it by looks filled, and is not.

    Attributes:
        snapshot: The pretrained vectors. Rows that no gradient has reached are left out.
        node_type: Which of the snapshot's tables, e.g. "pin".
        id_map: External id -> row of the model's table, exact or hashed.
        rows: In place of `id_map`: the model's row of each id of the snapshot, as

            - a mapping from external ids to rows; ids that it lacks have no row;
            - an integer array [n], by position in the snapshot; -1 for an id that has no row;
            - a function that is called with the external ids (pyarrow, [n]) and gives such an array;
            - "id": an integer id is its own row, as in public data sets; ids beyond the table have no row;
            - "position": the snapshot's positions (the graph's idx) are the model's rows, so that no id is read at all;
            - "managed", of a table whose ids TorchRec's managed collision gives rows as they arrive: an id that it knows
              keeps its row, others take open rows in the snapshot's order.
        padding_row: A row that stands for no id at all, as `torch.nn.Embedding`'s padding_idx: it gets zeros.
        collisions: How ids that share a row are combined: the "mean" of their vectors, their mean by `weights`
            ("weighted"), or the "first" one in the snapshot's order.
        weights: float32 by position in the snapshot, e.g. each id's degree; for "weighted" only.
        missing: What rows get that no id of the snapshot fills, an out-of-vocabulary row among them: the "mean" of the
            filled rows (an unknown id is taken for an average one), "zero", "normal" noise with the filled rows' root
            mean square norm, or what they hold ("keep").
        norm: Root mean square norm of what an id reads, reached by one factor for all, so that the rows' relative
            lengths, which tell popularity and certainty, stay. None: the vectors as they are.
        hash_pooling: What the model makes of the rows of an id of several hashes: their "sum", of which each row then gets its
            share, or their "mean".
        except_ids_of: An older snapshot that the table was filled from: only ids that it lacks are filled, and all other rows
            stay, so `missing` must be "keep".
        projection: How vectors of another dimension become the table's: "pca" (to fewer), or a matrix [D of the
            snapshot, D of the table]. None: the dimensions must be equal.
        seed: Seed of missing="normal".
    """

    snapshot: Snapshot
    node_type: str
    id_map: IdMap | None = None
    rows: Rows = field(default=None, repr=False)
    padding_row: int | None = None
    collisions: Collisions = "mean"
    weights: Tensor | None = field(default=None, repr=False)
    missing: Missing = "mean"
    norm: float | None = None
    hash_pooling: HashPooling = "sum"
    except_ids_of: Snapshot | None = None
    projection: Literal["pca"] | Tensor | None = field(default=None, repr=False)
    seed: int = 0

    def __post_init__(self) -> None:
        expect_attributes("snapshot", self.snapshot, ("vectors", "trained", "fingerprint"), "Snapshot")
        expect_type("node_type", self.node_type, str)
        if self.id_map is not None:
            expect_attributes("id_map", self.id_map, ("rows_of", "num_rows"), "IdMap")
        if self.norm is not None:
            number()("norm", self.norm)
        whole(0)("seed", self.seed)
        for name, value, kinds in (
            ("collisions", self.collisions, get_args(Collisions)),
            ("missing", self.missing, get_args(Missing)),
            ("hash_pooling", self.hash_pooling, get_args(HashPooling)),
        ):
            if value not in kinds:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(kinds)}")
        if self.norm is not None and not 0 < self.norm < float("inf"):
            raise ValueError(f"norm is {self.norm}; expected a positive number or None")
        if (self.collisions == "weighted") != (self.weights is not None):
            raise ValueError("weights go with collisions='weighted', and only with it")
        if (self.id_map is None) == (self.rows is None):
            raise ValueError(
                f"the source for {self.node_type!r} must say in one way how the model finds an id's row: id_map=..., or rows=a "
                'mapping from ids to rows, an array, a function, "id", or "position" where the model\'s rows are the '
                "snapshot's "
                "positions"
            )
        if isinstance(self.rows, str) and self.rows not in {"position", "id", "managed"}:
            raise ValueError(f'rows is {self.rows!r}; expected "position", "id", "managed", an array, a mapping or a function')
        if self.except_ids_of is not None and self.missing != "keep":
            raise ValueError(
                f"except_ids_of fills an older snapshot's new ids and leaves all other rows, but missing={self.missing!r} "
                "would "
                "overwrite them: set missing='keep'"
            )

    @property
    def placed_by(self) -> str:
        """What says which row an id has, for the report."""
        if self.id_map is not None:
            return f"{self.id_map.kind} id map"
        if isinstance(self.rows, str):
            return self.rows
        return "mapping" if isinstance(self.rows, Mapping) else "function" if isinstance(self.rows, Callable) else "array"  # type: ignore[arg-type]
