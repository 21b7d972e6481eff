"""The remapping of a managed-collision table: which row TorchRec's module gives each id as it arrives."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import torch

from multifacet.ranking.initialize.row_numbers import LEFT_OUT, NO_ROW, left_out, row_numbers

with warnings.catch_warnings():
    # fbgemm_gpu's CPU build warns about kernels that only its CUDA build has.
    warnings.simplefilter("ignore", DeprecationWarning)
    from torchrec import JaggedTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from torchrec.modules.mc_modules import MCHManagedCollisionModule

    from multifacet.ranking.initialize.sources import TableSource

_NO_ID: Final = torch.iinfo(torch.int64).max
_NUM_SAMPLES: Final = 64


class Remapping:
    """What one table's managed-collision module is told, planned before anything is written.

    The module keeps its ids sorted, each with a row; its last row is that of ids it does not know. An id of the snapshot gets
    the row that the source says; with ``rows="managed"`` an id that the module knows keeps its row, and others take open rows
    in the snapshot's order, as long as there are any. Written ids count as seen once, just now, so that ids that arrive take
    open rows before theirs.

    Args:
        module: The table's module, whole.
        source: Where the table's rows come from.
        table: The table's name, for errors.

    Attributes:
        rows: int32 [n, 1], the row of each position of the source's snapshot, as `row_numbers` gives them.

    Raises:
        ValueError: If two ids have one row, an id has the row of unknown ids, the module has ids already and the source says
            their rows anew, or the module's state is on the meta device.
        TypeError: If the ids are no integers.
    """

    def __init__(self, module: MCHManagedCollisionModule, source: TableSource, *, table: str) -> None:
        self._module, self._table = module, table
        ids = source.snapshot.ids(source.node_type)
        if not pa.types.is_integer(ids.type):
            raise TypeError(
                f"table {table} is managed by {type(module).__name__}, which takes int64 ids; those of {source.node_type!r} "
                f"are {ids.type}: make the snapshot of the integers that the model is asked for"
            )
        if module._mch_sorted_raw_ids.device.type == "meta":
            raise ValueError(
                f"table {table}: its {type(module).__name__} is on the meta device, which keeps no values: make it on a device"
            )
        raw = torch.from_numpy(ids.to_numpy().astype(np.int64))
        self._raw_ids = raw
        self._ids = _seen_as(module, raw).cpu().numpy()
        known = module._mch_sorted_raw_ids.cpu().numpy()
        self._num_known = int(np.searchsorted(known, _NO_ID))
        self._known = known[: self._num_known]
        mapping = module._mch_remapped_ids_mapping.cpu().numpy() - module._output_global_offset
        self._known_rows, self._open_rows = mapping[: self._num_known], mapping[self._num_known : -1]
        self.rows = self._managed_rows(source) if source.placed_by == "managed" else self._given_rows(source)
        self._check()

    def write(self) -> None:
        """Tell the module the ids and their rows."""
        module = self._module
        chosen = np.flatnonzero(self.rows[:, 0] >= 0)
        ids, rows = self._ids[chosen], self.rows[chosen, 0].astype(np.int64)
        is_new = ~np.isin(ids, self._known)
        ids, rows = np.concatenate([self._known, ids[is_new]]), np.concatenate([self._known_rows, rows[is_new]])
        order = np.argsort(ids, kind="stable")
        last = module._zch_size - 1
        still_open = np.setdiff1d(np.arange(last), rows)
        device = module._mch_sorted_raw_ids.device
        num_ids = len(ids)
        module._mch_sorted_raw_ids.fill_(_NO_ID)
        module._mch_sorted_raw_ids[:num_ids] = torch.from_numpy(ids[order]).to(device)
        mapping = np.concatenate([rows[order], still_open, [last]]) + module._output_global_offset
        module._mch_remapped_ids_mapping.copy_(torch.from_numpy(mapping))
        now = max(1, int(module._current_iter_tensor))
        for name, kept in module._mch_metadata.items():
            values = np.zeros(module._zch_size, np.int64)
            values[: self._num_known] = kept[: self._num_known].cpu().numpy()
            values[self._num_known : num_ids] = now if name == "last_access_iter" else 1
            values[:num_ids] = values[:num_ids][order]
            values[last] = int(kept[last])
            kept.copy_(torch.from_numpy(values))

    def samples(self) -> tuple[Tensor, Tensor]:
        """Give some ids and the rows that the module gives them: int64 [m] each; see `look_up`."""
        chosen = np.flatnonzero(self.rows[:, 0] >= 0)
        chosen = chosen[:: max(1, len(chosen) // _NUM_SAMPLES)][:_NUM_SAMPLES]
        return self._raw_ids[chosen], torch.from_numpy(self.rows[chosen, 0].astype(np.int64))

    def _managed_rows(self, source: TableSource) -> NDArray[np.int32]:
        rows = np.full(len(self._ids), NO_ROW, np.int32)
        dropped = left_out(source, self._table)
        counted = np.ones(len(rows), np.bool_) if dropped is None else ~dropped
        place = np.searchsorted(self._known, self._ids)
        place[place == self._num_known] = 0
        knows = np.zeros(len(rows), np.bool_) if not self._num_known else self._known[place] == self._ids
        rows[knows] = self._known_rows[place[knows]]
        waiting = np.flatnonzero(counted & ~knows)[: len(self._open_rows)]
        rows[waiting] = self._open_rows[: len(waiting)]
        rows[~counted] = LEFT_OUT
        return rows[:, None]

    def _given_rows(self, source: TableSource) -> NDArray[np.int32]:
        if self._num_known:
            raise ValueError(
                f"table {self._table}: its {type(self._module).__name__} has given rows to {self._num_known} ids already, "
                f'which rows by {source.placed_by} would take from them; rows="managed" keeps them, and gives others open rows'
            )
        rows = row_numbers(source, self._module._zch_size, table=self._table)
        return np.arange(len(self._ids), dtype=np.int32)[:, None] if rows is None else rows

    def _check(self) -> None:
        rows, name = self.rows, type(self._module).__name__
        if rows.shape[1] != 1:
            raise ValueError(f"table {self._table}: {name} gives an id one row, the id map {rows.shape[1]}")
        chosen = np.flatnonzero(rows[:, 0] >= 0)
        for values, what in ((rows[chosen, 0], "row"), (self._ids[chosen], "hashed id")):
            _, first, counts = np.unique(values, return_index=True, return_counts=True)
            if (counts > 1).any():
                raise ValueError(
                    f"table {self._table}: {int((counts > 1).sum())} {what}s are those of several ids, the first {what} "
                    f"{values[first[counts > 1][0]]}: {name} gives each id a row of its own; use an exact id map, or "
                    'rows="managed"'
                )
        last = self._module._zch_size - 1
        if (rows[chosen, 0] == last).any():
            raise ValueError(
                f"table {self._table}: an id has row {last}, which {name} reads for all ids that it does not know: give ids "
                f"the rows 0 to {last - 1}"
            )
        if (self._ids[chosen] == _NO_ID).any():
            raise ValueError(f"table {self._table}: id {_NO_ID} is what {name} takes for an open row; leave it out")


def look_up(module: MCHManagedCollisionModule, raw_ids: Tensor) -> Tensor:
    """Give the rows that a module reads for ids, int64 [n], without its counting them as seen."""
    seen = _jagged(_seen_as(module, raw_ids).to(module._mch_sorted_raw_ids.device))
    found: Tensor = (module.remap({"": seen})[""].values() - module._output_global_offset).cpu()
    return found


def _seen_as(module: MCHManagedCollisionModule, raw_ids: Tensor) -> Tensor:
    """What a module takes ids for: themselves, or their hashes by its own function."""
    values: Tensor = module.preprocess({"": _jagged(raw_ids)})[""].values()
    return values


def _jagged(values: Tensor) -> JaggedTensor:
    return JaggedTensor(values=values, lengths=torch.ones(len(values), dtype=torch.int64, device=values.device))
