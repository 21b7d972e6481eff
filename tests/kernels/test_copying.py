"""Short rows are copied whole, whatever their length, and nothing beside them is touched."""

import numba
import numpy as np
import pytest

from multifacet.kernels.memory import copy_bytes, load_at
from multifacet.serving.lookup.rows import MappedRows, SendBuffer


@pytest.mark.parametrize("num_bytes", [0, 1, 5, 7, 8, 9, 15, 16, 20, 31, 32, 33, 36, 63, 64, 65, 68, 100, 256])
def test_as_many_bytes_are_copied_as_asked_for_from_and_to_any_address(num_bytes: int) -> None:
    generator = np.random.default_rng(num_bytes)
    for lead, other_lead in ((0, 0), (1, 3), (7, 4)):
        source = generator.integers(1, 256, lead + num_bytes + 40).astype(np.uint8)
        target = np.zeros(other_lead + num_bytes + 40, np.uint8)
        copy_bytes(np.uintp(target.ctypes.data + other_lead), np.uintp(source.ctypes.data + lead), np.uintp(num_bytes))
        assert np.array_equal(target[other_lead : other_lead + num_bytes], source[lead : lead + num_bytes])
        assert not target[:other_lead].any()
        assert not target[other_lead + num_bytes :].any()


@pytest.mark.parametrize("row_bytes", [1, 3, 5, 8, 12, 20, 36, 68, 128, 260])
def test_rows_of_any_length_are_gathered_back_to_back(row_bytes: int) -> None:
    generator = np.random.default_rng(0)
    table = generator.integers(0, 256, (50, row_bytes)).astype(np.uint8)
    wanted = generator.integers(0, 50, 33).astype(np.int32)
    send = SendBuffer()
    stop = MappedRows(table).gather(wanted, send.take(8 + 33 * row_bytes + 16), 8)
    gathered = np.frombuffer(send.read(8, stop), np.uint8)
    assert np.array_equal(gathered[: 33 * row_bytes].reshape(33, row_bytes), table[wanted])
    assert stop % 8 == 0
    assert not gathered[33 * row_bytes :].any()


def test_a_word_is_read_at_an_odd_address() -> None:
    bytes_ = np.arange(16, dtype=np.uint8)

    @numba.njit
    def read(address: int) -> int:
        return load_at(np.uintp(address))  # type: ignore[no-any-return]

    assert read(bytes_.ctypes.data + 3) == int.from_bytes(bytes(range(3, 11)), "little")
