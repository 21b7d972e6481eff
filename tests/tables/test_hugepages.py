"""Memory on huge pages is memory like any other."""

from __future__ import annotations

import pytest
import torch

from multifacet.tables.hugepages import empty_on_huge_pages


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [0, 7, 100_000])
def test_a_tensor_has_its_shape_and_keeps_what_is_written_to_its_ends(num_rows: int, dtype: torch.dtype) -> None:
    tensor = empty_on_huge_pages(num_rows, 48, dtype=dtype)

    assert tensor.shape == (num_rows, 48)
    assert tensor.dtype == dtype
    assert tensor.is_contiguous()
    tensor[:1], tensor[-1:] = 3.0, 4.0
    assert float(tensor[:1].sum() + tensor[-1:].sum()) == (48 * 7.0 if num_rows else 0.0)


def test_a_large_tensor_begins_with_a_huge_page() -> None:
    assert empty_on_huge_pages(1 << 21).data_ptr() % (1 << 21) == 0
