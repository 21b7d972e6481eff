"""Where ids stand in a batch's rows, and how looked-up rows become the slots of an upper model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from multifacet.ranking.slots import RECENT_PINS, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from multifacet.ranking.examples import Examples
    from multifacet.tables import IdMap


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """One embedding table: the rows of one id feature in one facet.

    Attributes:
        feature: Id feature, such as "user"; its rows come from the feature's id map.
        facet: Which pretraining the table's rows may start from, such as "kge".
        node_type: Node type of the ids in the graph.
        num_rows: Rows, the out-of-vocabulary row included.
        dim: Elements a row.
        num_hashes: Rows that an id reads; a slot is their sum.
        list_length: Ids that the feature has at most, whose mean is the slot; 0 for a feature of one id.
    """

    feature: str
    facet: str
    node_type: str
    num_rows: int
    dim: int
    num_hashes: int = 1
    list_length: int = 0

    @property
    def name(self) -> str:
        """The table's name: feature and facet."""
        return f"{self.feature}_{self.facet}"


@dataclass(frozen=True, kw_only=True)
class TableGroup:
    """The tables that one feature's rows are looked up in, one a facet; the same row in each.

    Attributes:
        feature: The feature that the tables are named after.
        specs: The tables.
        columns: Columns of a batch's rows that are looked up here.
        num_recent: How many of these columns, at the end, are recent pins'.
        is_list: Whether the columns are a feature of several ids: what is not there is row -1.
    """

    feature: str
    specs: tuple[TableSpec, ...]
    columns: slice
    num_recent: int
    is_list: bool = False

    def shares(self, rows: Tensor) -> Tensor | None:
        """Give what each looked-up row counts for in the slot's sum, float32 [B, columns]; None for 1.

        Args:
            rows: The group's columns of a batch's rows, int32 [B, columns].
        """
        if not self.is_list:
            return None
        there = (rows >= 0).float()
        return there * self.specs[0].num_hashes / there.sum(1, keepdim=True).clamp(min=1.0)


class RowLayout:
    """The columns of a batch's rows, and the slots that they become.

    A batch's ids are int32 rows, [B, columns]: for each feature as many columns as its id map has hashes, in the order of
    `features`. The recent pins' columns (their number times the hashes) follow the pin's own where they share its tables,
    and are those of a feature of their own where they do not.

    Args:
        specs: The tables. Recent pins read those of the feature "recent_pins" if there are any, else those of "pin".
        slots: The upper model's slots: one a table, and one "recent_pins" a facet where there are recent pins.
        num_recent: Recent pins of an example at most, L; 0 for a ranker without a sequence.

    Attributes:
        groups: The tables by feature.
        features: Feature of each group.
        num_columns: Columns of a batch's rows.
        facets: Facets of the recent pins; empty for a ranker without a sequence.

    Raises:
        ValueError: If the parts do not fit.
    """

    def __init__(self, specs: Sequence[TableSpec], slots: Sequence[Slot], num_recent: int = 0) -> None:
        names = [spec.name for spec in specs]
        if len(set(names)) != len(names):
            raise ValueError(f"tables are named {names}; each name may occur once")
        self.specs, self.upper_slots, self.num_recent = tuple(specs), tuple(slots), num_recent
        self.groups = _group(self.specs, num_recent)
        self.features = tuple(group.feature for group in self.groups)
        self.num_columns = self.groups[-1].columns.stop if self.groups else 0
        self.facets = tuple(spec.facet for spec in specs if spec.feature == "pin") if num_recent else ()
        filled = {Slot(spec.feature, spec.facet) for spec in specs if spec.feature != RECENT_PINS}
        filled |= {Slot(RECENT_PINS, facet) for facet in self.facets}
        if filled != set(slots):
            raise ValueError(
                f"{len(specs)} tables fill the slots {sorted(map(tuple, filled))}; the upper model has "
                f"{sorted(map(tuple, slots))}"
            )

    def rows(self, examples: Examples, id_maps: Mapping[str, IdMap]) -> Tensor:
        """Look the ids of examples up.

        Args:
            examples: The examples.
            id_maps: Id map of each feature that has tables; recent pins have the pin's.

        Returns:
            int32 [n, columns].

        Raises:
            ValueError: If there are recent pins here, and the examples have none, or another number of them.
        """
        recent = examples.recent
        if self.num_recent and (recent is None or recent.length != self.num_recent):
            raise ValueError(
                f"the model reads {self.num_recent} recent pins, the examples have {recent.length if recent else 'none'}; "
                f"build them with FeatureConfig(recent_pins={self.num_recent})"
            )
        rows = torch.empty((len(examples), self.num_columns), dtype=torch.int32)
        for group in self.groups:
            parts = []
            if group.is_list:
                parts.append(_list_rows(examples, group, id_maps[group.feature]))
            elif group.feature in examples.lists:
                raise ValueError(f"the model reads one id of {group.feature!r} an example, and the examples have lists of them")
            elif group.feature != RECENT_PINS:
                parts.append(examples.rows(group.feature, id_maps[group.feature]))
            if group.num_recent and recent is not None:
                looked_up = examples.rows("pin", id_maps["pin"], recent.pin_ids)
                parts.append(looked_up.reshape(len(examples), -1))
            rows[:, group.columns] = torch.from_numpy(np.concatenate(parts, axis=1))
        return rows

    def gather(self, rows: Tensor, table: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Read rows of whole tables, those of several ids already as parts of their mean.

        Args:
            rows: int32 [B, columns].
            table: Gives a table's weights by its name.

        Returns:
            Feature of each group -> float32 [B, columns of the group, facets, D].
        """
        looked_up = {}
        for group in self.groups:
            part = rows[:, group.columns]
            shares = group.shares(part)
            if shares is not None:
                part = part.clamp(min=0)
            found = torch.stack([table(spec.name)[part] for spec in group.specs], dim=2).float()
            looked_up[group.feature] = found if shares is None else found * shares[:, :, None, None]
        return looked_up

    def slots(
        self,
        looked_up: Mapping[str, Tensor],
        num_recent: Tensor,
        pooling: Callable[[Tensor, Tensor, Tensor], Tensor] | None,
    ) -> Tensor:
        """Bring looked-up rows into the upper model's slots: sum over hashes, and pool the recent pins.

        Args:
            looked_up: Feature of each group -> float32 [B, columns of the group, facets, D].
            num_recent: How many recent pins there are, int [B].
            pooling: As `SequencePooling`; None for a ranker without a sequence.

        Returns:
            float32 [B, T, D].
        """
        by_slot: dict[Slot, Tensor] = {}
        recent: Any = None
        for group in self.groups:
            own, rest = looked_up[group.feature].tensor_split([group.columns.stop - group.columns.start - group.num_recent], 1)
            if group.num_recent:
                recent = rest.view(rest.shape[0], self.num_recent, group.specs[0].num_hashes, *rest.shape[2:]).sum(2)
            if group.feature != RECENT_PINS:
                rows = own.sum(1) if own.shape[1] != 1 else own.squeeze(1)
                by_slot |= {Slot(group.feature, spec.facet): row for spec, row in zip(group.specs, rows.unbind(1), strict=True)}
        if pooling is not None:
            candidate = torch.stack([by_slot[Slot("pin", facet)] for facet in self.facets], dim=1)
            pooled = pooling(recent, num_recent, candidate).unbind(1)
            by_slot |= {Slot(RECENT_PINS, facet): row for facet, row in zip(self.facets, pooled, strict=True)}
        return torch.stack([by_slot[slot] for slot in self.upper_slots], dim=1)


def _group(specs: Sequence[TableSpec], length: int) -> tuple[TableGroup, ...]:
    """Lay out the columns, feature by feature, the recent pins' behind those whose tables they read."""
    by_feature: dict[str, list[TableSpec]] = {}
    for spec in specs:
        by_feature.setdefault(spec.feature, []).append(spec)
    recent_in = RECENT_PINS if RECENT_PINS in by_feature else "pin"
    if not length and RECENT_PINS in by_feature:
        raise ValueError("there are tables of recent_pins, but num_recent is 0")
    facets = {feature: [spec.facet for spec in by_feature.get(feature, ())] for feature in ("pin", recent_in)}
    if length and (not facets["pin"] or facets["pin"] != facets[recent_in]):
        raise ValueError(f"recent pins need tables of pin, and their own in the same facets; there are {facets}")
    groups, start = [], 0
    for feature, tables in by_feature.items():
        num_hashes = {spec.num_hashes for spec in tables}
        if len(num_hashes) > 1:
            raise ValueError(f"tables of {feature} have {sorted(num_hashes)} hashes; they share an id map")
        if len({spec.list_length for spec in tables}) > 1:
            raise ValueError(
                f"tables of {feature} have lists of {[spec.list_length for spec in tables]} ids; expected one length"
            )
        own = 0 if feature == RECENT_PINS else tables[0].num_hashes * max(1, tables[0].list_length)
        num_recent = length * tables[0].num_hashes if feature == recent_in else 0
        stop = start + own + num_recent
        groups.append(
            TableGroup(
                feature=feature,
                specs=tuple(tables),
                columns=slice(start, stop),
                num_recent=num_recent,
                is_list=tables[0].list_length > 0,
            )
        )
        start = stop
    return tuple(groups)


def _list_rows(examples: Examples, group: TableGroup, id_map: IdMap) -> NDArray[np.int32]:
    """Look a feature of several ids up, int32 [n, length times hashes]; -1 where there is none."""
    length = group.specs[0].list_length
    if group.feature not in examples.lists:
        raise ValueError(f"the model reads up to {length} ids of {group.feature!r}, of which the examples have no lists")
    values = examples.lists[group.feature]
    if values.length > length:
        raise ValueError(f"the model reads up to {length} ids of {group.feature!r}, the examples have lists of {values.length}")
    rows = np.full((len(examples), length, id_map.num_hashes), -1, np.int32)
    there = np.arange(values.length) < values.num_recent[:, None]
    rows[:, : values.length][there] = examples.rows(group.feature, id_map, values.listed())
    return rows.reshape(len(examples), -1)
