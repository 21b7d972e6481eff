from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from multifacet.tables import Precision, decode, encode, relative_error, row_bytes
from multifacet.tables.codec.rows import Rounding

ROUNDINGS: tuple[Rounding, ...] = ("minmax", "greedy", "refit")


def random_rows(num_rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, dim, generator=generator) * torch.rand(num_rows, 1, generator=generator)


def errors_by_row(vectors: torch.Tensor, precision: Precision, rounding: Rounding) -> torch.Tensor:
    decoded = decode(encode(vectors, precision, rounding), vectors.shape[1], precision)
    return (decoded - vectors).double().square().sum(1)


@pytest.mark.parametrize("dim", [16, 64])
def test_refitted_rows_err_less_than_greedy_and_much_less_than_minmax(dim: int) -> None:
    vectors = random_rows(2000, dim)
    minmax, greedy, refit = (
        relative_error(vectors, decode(encode(vectors, "int4", rounding), dim, "int4")) for rounding in ROUNDINGS
    )
    assert refit < greedy < minmax
    assert refit < 0.85 * minmax


@settings(max_examples=60, deadline=None)
@given(
    values=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 5), st.sampled_from([4, 8, 20])), elements=st.floats(-1e4, 1e4, width=32)
    ),
    precision=st.sampled_from(["int8", "int4"]),
)
def test_no_row_errs_more_than_with_minmax(values: np.ndarray, precision: Precision) -> None:
    vectors = torch.from_numpy(values)
    before, after = (errors_by_row(vectors, precision, rounding) for rounding in ("minmax", "refit"))
    # FBGEMM divides where the kernel multiplies by the inverse: a value half-way between two levels may go either way.
    assert (after <= before * (1 + 1e-4) + 1e-6 * vectors.double().square().sum(1)).all()


def test_a_short_row_gets_the_best_line_there_is() -> None:
    """Brute force over every scale and bias of a fine grid, on rows small enough for it."""
    vectors = random_rows(20, 8, seed=3)
    found = errors_by_row(vectors, "int4", "refit")
    low, high = vectors.min(1).values, vectors.max(1).values
    cuts = torch.linspace(-0.05, 0.3, 71)
    best = torch.full((20,), torch.inf, dtype=torch.float64)
    for low_cut in cuts:
        for high_cut in cuts:
            start, end = low + (high - low) * low_cut, high - (high - low) * high_cut
            scale = (end - start) / 15
            codes = ((vectors - start[:, None]) / scale[:, None]).round().clamp(0, 15)
            rest = vectors - codes * scale[:, None] - start[:, None]
            best = torch.minimum(best, rest.double().square().sum(1))
    assert (found / best).median() < 1.1


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_rows_that_every_rounding_stores_exactly(rounding: Rounding) -> None:
    constant, zero = torch.full((1, 8), 0.75), torch.zeros(1, 8)
    levels = torch.arange(16, dtype=torch.float32)[None] * 0.25 - 1
    for vectors in (constant, zero, levels):
        decoded = decode(encode(vectors, "int4", rounding), vectors.shape[1], "int4")
        torch.testing.assert_close(decoded, vectors, rtol=0, atol=1e-3)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e6, 65505.0])
def test_values_that_would_decode_to_something_else_are_refused(rounding: Rounding, value: float) -> None:
    vectors = torch.zeros(5, 8)
    vectors[3, 2] = value
    with pytest.raises(ValueError, match="Row 3 cannot be encoded as int4"):
        encode(vectors, "int4", rounding)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_range_beyond_fp16_is_refused_and_one_within_decodes_finite(rounding: Rounding) -> None:
    with pytest.raises(ValueError, match="Row 0 cannot be encoded"):
        encode(torch.tensor([[-40000.0, 40000.0, 0, 0]]), "int4", rounding)
    vectors = torch.tensor([[-32000.0, 32000.0, 0, 0], [65504.0, 65504.0, 65504.0, 65504.0], [1e-7, 0, 0, -1e-7]])
    decoded = decode(encode(vectors, "int4", rounding), 4, "int4")
    assert decoded.isfinite().all()


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_rows_have_no_padding_and_a_dim_that_does_not_fit_is_refused(rounding: Rounding) -> None:
    assert encode(random_rows(3, 64), "int4", rounding).shape == (3, 36)
    assert encode(torch.zeros(0, 64), "int4", rounding).shape == (0, 36)
    assert row_bytes(64, "int4") == 36
    with pytest.raises(ValueError, match="multiple of 4, not 6"):
        encode(random_rows(3, 6), "int4", rounding)


def test_a_rounding_that_would_do_nothing_is_refused() -> None:
    vectors = random_rows(2, 8)
    for precision, rounding in (("fp16", "refit"), ("fp32", "greedy"), ("int8", "greedy")):
        with pytest.raises(ValueError, match="does not apply to"):
            encode(vectors, precision, rounding)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rounding is 'nearest'"):
        encode(vectors, "int4", "nearest")  # type: ignore[arg-type]


def test_threads_do_not_change_a_bit() -> None:
    vectors = random_rows(3000, 16)
    threads = torch.get_num_threads()
    try:
        encoded = []
        for count in (1, 3):
            torch.set_num_threads(count)
            encoded.append(encode(vectors, "int4", "refit"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*encoded)
