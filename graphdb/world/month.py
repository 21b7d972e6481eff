"""The state of a world in one month."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from multifacet.graphdb.schema import Surface


@dataclasses.dataclass(frozen=True, kw_only=True)
class Month:
    """Who lives in a month, and with which interests.

    Attributes:
        number: The month, from 0.
        users: Table from which living users are drawn by activity (see `alias.build_alias`).
        pins: Table from which living pins are drawn by popularity.
        interests: Users' interests in this month, float32 [users, dim].
        appeals: Surface -> pins' appeals there, float32 [pins, dim].
    """

    number: int
    users: NDArray[np.uint32]
    pins: NDArray[np.uint32]
    interests: NDArray[np.float32]
    appeals: Mapping[Surface, NDArray[np.float32]]
