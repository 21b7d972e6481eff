"""Codecs: bit for bit FBGEMM's, within their error bounds, and no hazard passes in silence."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from multifacet.tables.codec.rows import decode, encode, row_bytes

FUSED = [("int8", 8), ("int4", 4)]
PRECISIONS = ["fp32", "fp16", "int8", "int4"]


def decode_oracle(rows: np.ndarray, bits: int) -> np.ndarray:
    """The documented layout, read with NumPy alone."""
    scale_and_bias = np.ascontiguousarray(rows[:, -4:]).view(np.float16).astype(np.float32)
    codes = rows[:, :-4]
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=2).reshape(len(rows), -1)
    return codes.astype(np.float32) * scale_and_bias[:, :1] + scale_and_bias[:, 1:]


def scale_and_bias(rows: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    fused = np.ascontiguousarray(rows.numpy()[:, -4:]).view(np.float16).astype(np.float64)
    return fused[:, :1], fused[:, 1:]


def tables(width: int = 32) -> st.SearchStrategy[np.ndarray]:
    """Rows of 4, 8, ... values of one magnitude a table, from far below FP16's smallest number to its range."""
    return st.tuples(st.integers(1, 6), st.integers(1, width // 4), st.floats(1e-9, 3e4)).flatmap(
        lambda size: hnp.arrays(
            np.float32,
            (size[0], 4 * size[1]),
            elements=st.floats(-1, 1, width=32).map(lambda value, size=size: np.float32(value * size[2])),
        )
    )


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("precision", "expected"), [("fp32", 256), ("fp16", 128), ("int8", 68), ("int4", 36)])
def test_bytes_of_a_row_at_dim_64(precision, expected):
    assert row_bytes(64, precision) == expected
    assert encode(torch.zeros(3, 64), precision).shape == (3, expected)


@pytest.mark.parametrize(("dim", "precision", "better"), [(63, "int8", 64), (63, "int4", 64), (66, "int4", 68), (2, "int4", 4)])
def test_a_dim_that_the_layout_cannot_hold_is_refused_with_the_next_one(dim, precision, better):
    message = f"not {dim}: train the table with dim={better}, or choose fp16"
    with pytest.raises(ValueError, match=message):
        row_bytes(dim, precision)
    with pytest.raises(ValueError, match=message):
        encode(torch.zeros(1, dim), precision)
    with pytest.raises(ValueError, match=message):
        decode(torch.zeros(1, 36, dtype=torch.uint8), dim, precision)


def test_unknown_precisions_and_dims_are_refused():
    with pytest.raises(ValueError, match="'int2'; expected one of fp32, fp16, int8, int4"):
        row_bytes(64, "int2")
    with pytest.raises(ValueError, match="dim is 0"):
        row_bytes(0, "fp32")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("num_rows", [0, 1, 5, 20_000])
def test_encode_and_decode_agree_with_their_row_by_row_results(precision, num_rows):
    vectors = normal(num_rows, 16)
    rows = encode(vectors, precision)
    decoded = decode(rows, 16, precision)
    assert rows.shape == (num_rows, row_bytes(16, precision))
    assert decoded.shape == (num_rows, 16)
    for row in {0, num_rows // 2, num_rows - 1} if num_rows else ():
        assert torch.equal(rows[row], encode(vectors[row : row + 1], precision)[0])
        assert torch.equal(decoded[row], decode(rows[row : row + 1], 16, precision)[0])


def test_fp32_is_exact_and_fp16_rounds_to_the_nearest():
    vectors = normal(100, 7)
    assert torch.equal(decode(encode(vectors, "fp32"), 7, "fp32"), vectors)
    assert torch.equal(decode(encode(vectors, "fp16"), 7, "fp16"), vectors.half().float())


@pytest.mark.parametrize(("precision", "bits"), FUSED)
class TestFused:
    def test_rows_are_fbgemms(self, precision, bits):
        vectors = normal(40_000, 24) * 10 ** normal(40_000, 1, seed=1)
        rows = encode(vectors, precision)
        assert torch.equal(rows, torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf(vectors, bits))
        decoded = decode(rows, 24, precision)
        assert torch.equal(decoded, torch.ops.fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloat(rows, bits))
        assert np.array_equal(decoded.numpy(), decode_oracle(rows.numpy(), bits))

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=20)
    def test_any_bytes_with_a_finite_scale_and_bias_decode_as_documented(self, precision, bits, seed):
        rng = np.random.default_rng(seed)
        rows = rng.integers(0, 256, (64, row_bytes(32, precision)), dtype=np.uint8)
        fused = rng.standard_normal((64, 2)) * 10.0 ** rng.integers(-8, 4, (64, 2))
        rows[:, -4:] = fused.astype(np.float16).view(np.uint8)
        assert np.array_equal(decode(torch.from_numpy(rows), 32, precision).numpy(), decode_oracle(rows, bits))

    @given(vectors=tables())
    @settings(max_examples=100)
    def test_the_error_stays_within_half_a_scale_and_fp16s_rounding(self, precision, bits, vectors):
        rows = encode(torch.from_numpy(vectors), precision)
        decoded = decode(rows, vectors.shape[1], precision).numpy().astype(np.float64)
        exact = vectors.astype(np.float64)
        scale, bias = scale_and_bias(rows)
        low, high = exact.min(axis=1, keepdims=True), exact.max(axis=1, keepdims=True)
        levels = 2**bits - 1
        # What FP16 lost: of the bias (then values below it are clipped to it), and of the scale, at the top code.
        lost = np.abs(low - bias) + np.maximum(0.0, high - (bias + levels * scale))
        # A range too small for FP16's scale collapses to the bias, at most levels * FP16's smallest number away.
        collapsed = np.where((scale == 1) & (high - low < levels * 2.0**-24), high - low, 0.0)
        bound = np.where(collapsed > 0, collapsed, np.abs(scale) / 2) + lost
        assert np.isfinite(decoded).all()
        assert (np.abs(decoded - exact) <= bound * (1 + 1e-5) + 1e-12).all()

    def test_the_error_of_an_ordinary_table_is_half_a_step(self, precision, bits):
        vectors = normal(1000, 64)
        steps = (vectors.amax(1, keepdim=True) - vectors.amin(1, keepdim=True)) / (2**bits - 1)
        errors = (decode(encode(vectors, precision), 64, precision) - vectors).abs()
        assert (errors <= 0.5 * steps * 1.001 + 2e-3).all()
        assert errors.max() > 0.4 * steps.min()


@pytest.mark.parametrize("precision", ["int8", "int4"])
@given(st.floats(-65504, 65504, width=32))
@settings(max_examples=100)
def test_a_constant_row_comes_back_within_fp16s_rounding(precision, value):
    decoded = decode(encode(torch.full((1, 8), value), precision), 8, precision)
    assert decoded[0].tolist() == pytest.approx([value] * 8, rel=2**-11, abs=2**-24)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_encoding_a_decoded_row_changes_nothing_of_note(precision):
    once = decode(encode(normal(500, 32), precision), 32, precision)
    twice = decode(encode(once, precision), 32, precision)
    assert torch.allclose(once, twice, atol=5e-3)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0.0, 70000.0], "reach from 0 to 70000"),
        ([1e6, 1e6], r"reach from 1e\+06 to 1e\+06"),
        ([-982560.0, 0.0], "reach from -982560 to 0"),
        ([-40000.0, 40000.0], "values and ranges up to 65504"),
    ],
)
def test_what_leaves_fp16_is_refused(precision, values, reason):
    vectors = normal(3000, 8)
    vectors[2345, :2] = torch.tensor(values)
    vectors[2345, 2:] = values[0]
    with pytest.raises(ValueError, match=f"Row 2345 cannot be encoded as {precision}: its .*{reason}"):
        encode(vectors, precision)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_fp16s_largest_values_still_fit(precision):
    vectors = torch.tensor([[65504.0, 65504, 0, 1], [-65504, -65504, -1, 0]])
    assert torch.isfinite(decode(encode(vectors, precision), 4, precision)).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_with_row_and_element(precision, value):
    vectors = torch.zeros(50_000, 8)
    vectors[40_001, 5] = value
    vectors[49_999, 0] = value
    with pytest.raises(ValueError, match=f"Row 40001 cannot be encoded as {precision}: element 5 is {value}"):
        encode(vectors, precision)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_values_beyond_fp16_are_refused(precision):
    vectors = torch.full((2, 4), 65505.0)
    with pytest.raises(ValueError, match=r"Row 0 .* up to 65504"):
        encode(vectors, precision)
    assert decode(encode(vectors, "fp32"), 4, "fp32")[0, 0] == 65505.0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_strided_misaligned_and_trainable_tensors_are_taken(precision):
    vectors = normal(300, 32)
    expected = encode(vectors[::3, 4:20].contiguous(), precision)
    assert torch.equal(encode(vectors[::3, 4:20], precision), expected)
    assert torch.equal(encode(torch.nn.Parameter(vectors[::3, 4:20]), precision), expected)
    decoded = decode(expected, 16, precision)
    width = row_bytes(16, precision)
    padded = torch.zeros(100, width + 5, dtype=torch.uint8)
    padded[:, 3 : 3 + width] = expected
    assert torch.equal(decode(padded[:, 3 : 3 + width], 16, precision), decoded)
    buffer = torch.zeros(100 * width + 1, dtype=torch.uint8)
    buffer[1:] = expected.flatten()
    assert torch.equal(decode(buffer[1:].view(100, width), 16, precision), decoded)


def test_the_result_shares_no_memory_with_the_input():
    vectors = normal(4, 4)
    rows = encode(vectors, "fp32")
    rows.zero_()
    assert vectors.abs().sum() > 0
    rows = encode(vectors, "fp32")
    decode(rows, 4, "fp32").zero_()
    assert torch.equal(decode(rows, 4, "fp32"), vectors)


def test_wrong_tensors_are_refused():
    with pytest.raises(ValueError, match=r"vectors is torch.float64 \[2, 4\] on cpu; expected torch.float32"):
        encode(torch.zeros(2, 4, dtype=torch.float64), "int4")
    with pytest.raises(ValueError, match=r"vectors is torch.float32 \[4\]"):
        encode(torch.zeros(4), "int4")
    with pytest.raises(ValueError, match=r"rows is torch\.int32"):
        decode(torch.zeros(2, 36, dtype=torch.int32), 64, "int4")
    with pytest.raises(ValueError, match="rows have 48 bytes; int4 rows of dim 64 have 36"):
        decode(torch.zeros(2, 48, dtype=torch.uint8), 64, "int4")


@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize("dim", [4, 12, 64, 100])
def test_rows_of_any_bytes_are_decoded_as_fbgemm_does(precision, bits, dim):
    """Whatever scale and bias are: subnormal, huge, negative, zero, and even what encode never writes."""
    generator = np.random.default_rng(dim)
    rows = torch.from_numpy(generator.integers(0, 256, (3000, row_bytes(dim, precision)), np.uint8))
    expected = torch.ops.fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloat(rows, bits)
    decoded = decode(rows, dim, precision)
    assert torch.equal(decoded.isnan(), expected.isnan())
    finite = ~expected.isnan()
    assert torch.equal(decoded[finite].view(torch.int32), expected[finite].view(torch.int32))
    assert torch.equal(decode(rows[::3], dim, precision)[finite[::3]], expected[::3][finite[::3]])
    assert decode(rows[:0], dim, precision).shape == (0, dim)
