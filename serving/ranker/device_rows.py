"""Rows to a device and decoded there: what travels is the quantised bytes, from memory that the device reads by itself."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from multifacet.serving.release.manifest import Precision

_LEAST_BYTES: Final = 1 << 20


def decode_rows(rows: Tensor, precision: Precision) -> Tensor:
    """Decode rows as `tables.decode` does, by torch's operators and so on any device.

    Args:
        rows: uint8 [n, row_bytes], contiguous and aligned to 4 bytes.
        precision: The rows' format; see `tables.codec.rows`.

    Returns:
        float32 [n, dim], on the rows' device.

    Example:
        >>> from multifacet.tables import encode
        >>> decode_rows(encode(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), "int4"), "int4").round(decimals=2).tolist()
        [[0.0, 1.0, 2.0, 3.0]]
    """
    if precision == "fp32":
        return rows.view(torch.float32)
    if precision == "fp16":
        return rows.view(torch.float16).float()
    num_codes = rows.shape[1] - 4
    parameters = rows[:, num_codes:].contiguous().view(torch.float16).float()
    codes = rows[:, :num_codes]
    if precision == "int4":  # the low half of a byte comes first
        codes = torch.stack((codes & 15, codes >> 4), dim=2).flatten(1)
    return torch.addcmul(parameters[:, 1:], codes.float(), parameters[:, :1])


class PinnedRows:
    """Gathers rows of one request in pinned memory and sends them to a device; one a thread.

    A copy from pinned memory goes on beside the device's work and the host's. The memory is kept for the next request, once
    the device has read it.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._of_thread = threading.local()

    def send(self, blocks: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        """Send blocks of rows of one width, back to back.

        Args:
            blocks: uint8 [n_i, row_bytes].

        Returns:
            uint8 [sum of n_i, row_bytes] on the device.
        """
        num_rows, row_bytes = sum(len(block) for block in blocks), blocks[0].shape[1]
        buffer, copied = self._buffer(num_rows * row_bytes)
        copied.synchronize()  # the last request's copy; done long ago
        rows = buffer[: num_rows * row_bytes].view(num_rows, row_bytes)
        np.concatenate(blocks, out=rows.numpy())
        sent = rows.to(self._device, non_blocking=True)
        copied.record(torch.cuda.current_stream(self._device))
        return sent

    def _buffer(self, num_bytes: int) -> tuple[Tensor, torch.cuda.Event]:
        held: tuple[Tensor, torch.cuda.Event] | None = getattr(self._of_thread, "held", None)
        if held is None or len(held[0]) < num_bytes:
            size = max(_LEAST_BYTES, 1 << (num_bytes - 1).bit_length())
            held = torch.empty(size, dtype=torch.uint8, pin_memory=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._of_thread.held = held
        return held
