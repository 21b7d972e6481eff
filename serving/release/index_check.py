"""Whether an id map that somebody else wrote stays within its own arrays and within its table.

Kernels follow it without looking: a row that does not exist would be read from whatever memory is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from multifacet.artifacts import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

_BLOCK: Final = 1 << 20


def check_index(arrays: Mapping[str, npt.NDArray[Any]], num_rows: int, path: Path) -> None:
    """Refuse an index that would lead a lookup anywhere else.

    Args:
        arrays: As `tables.ids.index` describes them; their lengths are known to belong together.
        num_rows: Rows of the table, the out-of-vocabulary row included.
        path: The map, for messages.

    Raises:
        ArtifactError: A row is beyond the table, or a place beyond its array.
    """
    for block in _blocks(arrays["rows"]):
        if len(block) and not 0 <= int(block.min()) <= int(block.max()) < num_rows:
            raise ArtifactError(
                f"{path} names rows {block.min()} to {block.max()}: its table has {num_rows}, from 0. Publish the model again."
            )
    _check_places(arrays["starts"], len(arrays["keys"]), f"{path}: starts")
    if "offsets" in arrays:
        _check_places(arrays["offsets"], len(arrays["text"]), f"{path}: offsets")


def _check_places(places: npt.NDArray[Any], length: int, what: str) -> None:
    last = 0
    for block in _blocks(places):
        if int(block[0]) < last or bool((block[1:] < block[:-1]).any()):
            raise ArtifactError(f"{what} do not ascend. Publish the model again.")
        last = int(block[-1])
    if int(places[0]) != 0 or last != length:
        raise ArtifactError(f"{what} go from {places[0]} to {last}, expected was 0 to {length}. Publish the model again.")


def _blocks(array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    return np.split(array, range(_BLOCK, len(array), _BLOCK))
