"""The pins of a user's latest purchases before an exposure's period."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from multifacet.inputs import kind, takes, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class RecentPins:
    """Each example's recent pins, the latest first.

    ::

        pin_ids   [[7, 3, 7], [9, 0, 0], [0, 0, 0]]       what stands beyond num_recent means nothing
        num_recent [3, 1, 0]

    Attributes:
        pin_ids: External pin ids, int64 [n, L]; a pin that was bought twice is there twice.
        num_recent: How many there are, int32 [n].
    """

    pin_ids: NDArray[np.int64]
    num_recent: NDArray[np.int32]

    def __post_init__(self) -> None:
        fits = self.pin_ids.ndim == 2 and self.pin_ids.dtype == np.int64 and self.num_recent.dtype == np.int32
        if not fits or self.num_recent.shape != self.pin_ids.shape[:1]:
            raise ValueError(
                f"recent pins are {self.pin_ids.dtype}{list(self.pin_ids.shape)} and "
                f"{self.num_recent.dtype}{list(self.num_recent.shape)}; expected int64[n, L] and int32[n]"
            )
        if len(self) and not 0 <= self.num_recent.min() <= self.num_recent.max() <= self.length:
            raise ValueError(f"num_recent goes up to {self.num_recent.max()}; expected 0 to {self.length}")

    def __len__(self) -> int:
        return len(self.num_recent)

    @property
    def length(self) -> int:
        """Pins at most, L."""
        return int(self.pin_ids.shape[1])

    def take(self, rows: NDArray[Any]) -> Self:
        """Return chosen rows."""
        return type(self)(pin_ids=self.pin_ids[rows], num_recent=self.num_recent[rows])

    def listed(self) -> NDArray[np.int64]:
        """Return all pin ids that there are, row after row."""
        return self.pin_ids[np.arange(self.length) < self.num_recent[:, None]]

    def to_arrow(self) -> pa.ListArray:
        """Return lists, the latest pin first."""
        offsets = np.concatenate([[0], np.cumsum(self.num_recent)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(self.listed()))

    @classmethod
    def from_arrow(cls, lists: pa.ChunkedArray, *, length: int) -> Self:
        """Read lists of pin ids, the latest first; longer ones are cut to their first `length`.

        Args:
            lists: Lists of int64, without nulls.
            length: Pins at most, L.

        Raises:
            ValueError: If a list, or an id in one, is null.
        """
        column = lists.combine_chunks() if lists.num_chunks != 1 else lists.chunk(0)
        values = column.flatten().cast(pa.int64())
        if column.null_count or values.null_count:
            raise ValueError(f"recent pins have {column.null_count} null lists and {values.null_count} null ids; drop them")
        counts = np.asarray(column.value_lengths().to_numpy(zero_copy_only=False), dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
        return cls._gather(values.to_numpy(), starts, np.minimum(counts, length), length=length, step=1)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join parts of one length."""
        return cls(
            pin_ids=np.concatenate([part.pin_ids for part in parts]),
            num_recent=np.concatenate([part.num_recent for part in parts]),
        )

    @classmethod
    def _gather(
        cls, values: NDArray[np.int64], first: NDArray[np.int64], counts: NDArray[np.int64], *, length: int, step: int
    ) -> Self:
        """Read `counts` values of each row from `first` on, forwards or backwards."""
        position = np.arange(length)
        chosen = position < counts[:, None]
        pin_ids = np.zeros((len(first), length), dtype=np.int64)
        pin_ids[chosen] = values[(first[:, None] + step * position)[chosen]]
        return cls(pin_ids=pin_ids, num_recent=counts.astype(np.int32))


#: Several ids an example, of any feature, as `RecentPins` has them.
IdLists = RecentPins


@takes(events=kind(pa.Table), periods=kind(pa.Table), user_ids=kind(np.ndarray), exposed_in=kind(np.ndarray), length=whole(1))
def recent_pins(
    events: pa.Table, periods: pa.Table, user_ids: NDArray[np.int64], exposed_in: NDArray[np.int32], *, length: int
) -> RecentPins:
    """Find the pins of each exposure's user's latest events before the exposure's period began.

    As for the dense features, nothing at or after the start of the exposure's own period is seen.

    Args:
        events: user_id, pin_id, time; in any order. Of events at one time, the larger pin id counts as later.
        periods: period, start_time (and more).
        user_ids: External user id of each exposure, int64 [n].
        exposed_in: Period of each exposure, int32 [n].
        length: Pins at most.

    Returns:
        n rows.

    Raises:
        ValueError: If a period is not in periods.
    """
    if user_ids.shape != exposed_in.shape:
        raise ValueError(f"there are {len(user_ids)} users and {len(exposed_in)} periods of exposures; expected as many")
    if not periods.num_rows:
        raise ValueError("the table periods is empty")
    starts = periods["start_time"].cast(pa.timestamp("us")).cast(pa.int64()).to_numpy()
    numbers = periods["period"].to_numpy()
    by_number = np.argsort(numbers)
    place = np.minimum(np.searchsorted(numbers[by_number], exposed_in), len(numbers) - 1)
    if (numbers[by_number][place] != exposed_in).any():
        unknown = sorted(set(exposed_in.tolist()) - set(numbers.tolist()))
        raise ValueError(f"exposures are in the periods {unknown}, which the table periods has not")
    users, user = np.unique(events["user_id"].to_numpy(), return_inverse=True)
    time_us = events["time"].cast(pa.timestamp("us")).cast(pa.int64()).to_numpy()
    pin = events["pin_id"].to_numpy()
    # How many periods had begun: an exposure sees the events at which its own had not.
    begun = np.searchsorted(np.sort(starts), time_us, side="right")
    order = np.lexsort((pin, time_us, user))
    num_steps = len(starts) + 1
    keys = (user * num_steps + begun)[order]
    step = np.searchsorted(np.sort(starts), starts[by_number][place], side="right")
    exposed = np.minimum(np.searchsorted(users, user_ids), max(len(users) - 1, 0))
    known = users[exposed] == user_ids if len(users) else np.zeros(len(user_ids), dtype=np.bool_)
    stop = np.searchsorted(keys, exposed * num_steps + step)
    counts = np.where(known, np.minimum(stop - np.searchsorted(keys, exposed * num_steps), length), 0)
    return RecentPins._gather(pin[order], stop - 1, counts, length=length, step=-1)
