"""Row-wise Adagrad against FBGEMM and plain torch, and the sum of gradients by row against index_add."""

import numpy as np
import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.tables.rowwise import RowwiseAdagrad, accumulate_rows


def int32(values: object) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.int32)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def plain_torch_step(
    table: torch.Tensor, state: torch.Tensor, rows: torch.Tensor, gradients: torch.Tensor, lr: float, eps: float
) -> None:
    """The formula in double precision."""
    index = rows.long()
    state[index] += gradients.double().square().mean(dim=1)
    table[index] -= lr / (state[index].sqrt() + eps)[:, None] * gradients.double()


class TestRowwiseAdagrad:
    @settings(max_examples=50, deadline=None)
    @given(
        st.integers(1, 40), st.integers(1, 70), st.floats(0, 1), st.sampled_from([0.0, 1e-10, 1e-2]),
        st.sampled_from([0.0, 0.1]), st.integers(0, 2**31),
    )  # fmt: skip
    def test_three_steps_follow_the_formula(self, num_rows, dim, lr, eps, initial, seed):
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(num_rows, dim, generator=generator)
        optimizer = RowwiseAdagrad(num_rows, lr, eps, initial)
        expected, state = table.double(), optimizer.state.double()
        for _ in range(3):
            count = int(torch.randint(0, num_rows + 1, (), generator=generator))
            rows = torch.randperm(num_rows, generator=generator)[:count].int()
            gradients = torch.randn(count, dim, generator=generator)
            plain_torch_step(expected, state, rows, gradients, lr, eps)
            optimizer.step(table, rows, gradients)
        assert torch.allclose(table.double(), expected, rtol=1e-5, atol=1e-5)
        assert torch.allclose(optimizer.state.double(), state, rtol=1e-5, atol=1e-6)

    def test_it_matches_fbgemms_exact_rowwise_adagrad(self):
        num_rows, dim, lr, eps = 50, 16, 0.1, 1e-8
        fbgemm = SplitTableBatchedEmbeddingBagsCodegen(
            [(num_rows, dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=lr,
            eps=eps,
            stochastic_rounding=False,
        )
        table = normal(num_rows, dim)
        with torch.no_grad():
            fbgemm.split_embedding_weights()[0].copy_(table)
        optimizer = RowwiseAdagrad(num_rows, lr, eps)
        for seed in range(1, 6):
            # Bags of one index each, with repeats: a bag's gradient is its index's.
            indices = torch.randint(0, num_rows, (40,), generator=torch.Generator().manual_seed(seed))
            gradients = normal(40, dim, seed=seed)
            fbgemm(indices, torch.arange(41)).backward(gradients)
            optimizer.step(table, *accumulate_rows(indices.int(), gradients))
        assert torch.allclose(table, fbgemm.split_embedding_weights()[0], rtol=1e-5, atol=1e-6)
        (momentum,) = fbgemm.split_optimizer_states()[0]
        assert torch.allclose(optimizer.state, momentum, rtol=1e-5)

    def test_rows_that_are_not_named_keep_their_bits(self):
        table = normal(1000, 8)
        table[3, 0] = float("nan")  # a payload that arithmetic would not keep
        optimizer = RowwiseAdagrad(1000, 0.1, initial=0.5)
        before, state = table.clone(), optimizer.state.clone()
        rows = int32(range(10, 1000, 7))
        optimizer.step(table, rows, normal(len(rows), 8))
        untouched = torch.ones(1000, dtype=torch.bool)
        untouched[rows.long()] = False
        assert torch.equal(table[untouched].view(torch.int32), before[untouched].view(torch.int32))
        assert torch.equal(optimizer.state[untouched], state[untouched])
        assert (table[~untouched] != before[~untouched]).any(dim=1).all()
        assert (optimizer.state[~untouched] > 0.5).all()

    def test_threads_and_the_order_of_rows_do_not_change_a_bit(self, threads):
        rows = torch.randperm(20_000, generator=torch.Generator().manual_seed(0))[:9000].int()
        gradients = normal(9000, 48)
        order = rows.argsort()
        results = []
        for num_threads, r, g in [(1, rows, gradients), (4, rows, gradients), (3, rows[order], gradients[order])]:
            threads(num_threads)
            table, optimizer = normal(20_000, 48, seed=5), RowwiseAdagrad(20_000, 0.1)
            optimizer.step(table, r, g)
            optimizer.step(table, r, g)
            results.append((table, optimizer.state))
        for table, state in results[1:]:
            assert torch.equal(table, results[0][0])
            assert torch.equal(state, results[0][1])

    def test_a_zero_gradient_moves_nothing_even_without_eps(self):
        table = torch.ones(2, 4)
        optimizer = RowwiseAdagrad(2, 0.1, eps=0.0)
        optimizer.step(table, int32([0]), torch.zeros(1, 4))
        assert torch.equal(table, torch.ones(2, 4))
        assert optimizer.state.tolist() == [0.0, 0.0]

    def test_the_learning_rate_can_follow_a_schedule(self):
        table, optimizer = torch.zeros(1, 2), RowwiseAdagrad(1, 1.0)
        optimizer.lr = 0.25
        optimizer.step(table, int32([0]), torch.ones(1, 2))
        assert table.tolist() == [[-0.25, -0.25]]

    def test_a_parameter_is_updated_in_place(self):
        table = torch.nn.Parameter(torch.zeros(2, 2))
        RowwiseAdagrad(2, 1.0).step(table, int32([1]), torch.ones(1, 2))
        assert table.tolist() == [[0.0, 0.0], [-1.0, -1.0]]

    def test_an_empty_step_is_fine(self):
        table, optimizer = torch.ones(3, 4), RowwiseAdagrad(3, 0.1)
        optimizer.step(table, int32([]), torch.zeros(0, 4))
        assert torch.equal(table, torch.ones(3, 4))

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([0, 4], r"rows\[1\] is 4; the table has rows 0 to 3"),
            ([-1, 2], r"rows\[0\] is -1"),
            ([2, 2], r"rows\[1\] names row 2 a second time.*accumulate_rows"),
            ([3, 1, 2, 1], r"rows\[3\] names row 1 a second time"),
        ],
    )
    def test_impossible_rows_are_refused_before_anything_changes(self, rows, message):
        table, optimizer = torch.ones(4, 2), RowwiseAdagrad(4, 0.1)
        for _ in range(2):
            with pytest.raises(ValueError, match=message):
                optimizer.step(table, int32(rows), torch.ones(len(rows), 2))
        assert torch.equal(table, torch.ones(4, 2))
        assert optimizer.state.tolist() == [0.0] * 4
        optimizer.step(table, int32([3, 1, 2]), torch.ones(3, 2))
        optimizer.step(table, int32([3, 1, 2]), torch.ones(3, 2))
        assert optimizer.state.tolist() == [0.0, 2.0, 2.0, 2.0]

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
    def test_an_unusable_gradient_is_refused_and_its_row_left_alone(self, value, threads):
        threads(2)
        table, optimizer = torch.ones(20_000, 8), RowwiseAdagrad(20_000, 0.1)
        gradients = torch.ones(20_000, 8)
        gradients[[15_000, 17_000], 3] = value
        rows = torch.arange(20_000).flip(0).int()
        with pytest.raises(ValueError, match=r"gradient of row 4999 \(gradients\[15000\]\)"):
            optimizer.step(table, rows, gradients)
        assert torch.isfinite(table).all()
        assert torch.equal(table[4999], torch.ones(8))
        assert optimizer.state[4999] == 0.0

    @pytest.mark.parametrize(
        ("table", "rows", "gradients", "message"),
        [
            (torch.zeros(3, 2), int32([0]), torch.zeros(1, 2), r"table is .*\[3, 2\].*expected torch.float32 \[4, any\]"),
            (torch.zeros(4, 2).double(), int32([0]), torch.zeros(1, 2), "table is torch.float64"),
            (torch.zeros(2, 4).T, int32([0]), torch.zeros(1, 2), "table is .*not contiguous"),
            (torch.zeros(4, 2), torch.tensor([0]), torch.zeros(1, 2), "rows is torch.int64"),
            (torch.zeros(4, 2), int32([0]), torch.zeros(2, 2), r"gradients is .*expected torch.float32 \[1, 2\]"),
            (torch.zeros(4, 2), int32([0]), torch.zeros(1, 3), r"gradients is .*expected torch.float32 \[1, 2\]"),
            (torch.zeros(4, 2), int32([0]), torch.zeros(1, 4)[:, ::2], None),
            (torch.zeros(4, 2), int32([0, 1]), torch.zeros(2, 4)[:, ::2], "gradients is .*not contiguous"),
        ],
    )
    def test_wrong_tensors_are_refused(self, table, rows, gradients, message):
        optimizer = RowwiseAdagrad(4, 0.1)
        if message is None:
            gradients, message = gradients.half(), "gradients is torch.float16"
        with pytest.raises(ValueError, match=message):
            optimizer.step(table, rows, gradients)

    @pytest.mark.parametrize(
        "arguments", [{"lr": -1}, {"lr": float("nan")}, {"eps": -1e-9}, {"initial": float("inf")}, {"num_rows": -1}]
    )
    def test_impossible_settings_are_refused(self, arguments):
        with pytest.raises(ValueError, match="not negative"):
            RowwiseAdagrad(**{"num_rows": 2, "lr": 0.1, **arguments})


class TestAccumulateRows:
    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.one_of(st.integers(0, 5), st.integers(0, 2**31 - 1)), max_size=60), st.integers(1, 20))
    def test_sums_follow_the_order_of_positions(self, indices, dim):
        gradients = normal(len(indices), dim) * 10 ** normal(len(indices), 1, seed=1)
        rows, sums = accumulate_rows(int32(indices), gradients)
        assert rows.dtype == torch.int32
        assert rows.tolist() == sorted(set(indices))
        for row, total in zip(rows.tolist(), sums, strict=True):
            expected = torch.zeros(dim)
            for position in range(len(indices)):
                if indices[position] == row:
                    expected = expected + gradients[position]
            assert torch.equal(total, expected)

    def test_it_agrees_with_index_add(self):
        indices = torch.randint(0, 5000, (60_000,), generator=torch.Generator().manual_seed(0)).int()
        gradients = normal(60_000, 24)
        rows, sums = accumulate_rows(indices, gradients)
        expected = torch.zeros(5000, 24, dtype=torch.float64).index_add_(0, indices.long(), gradients.double())
        assert torch.allclose(sums.double(), expected[rows.long()], rtol=1e-5, atol=1e-5)
        assert np.array_equal(rows.numpy(), np.unique(indices.numpy()))

    def test_threads_do_not_change_a_bit(self, threads):
        indices = torch.randint(0, 3000, (50_000,), generator=torch.Generator().manual_seed(1)).int()
        gradients = normal(50_000, 16)
        threads(1)
        rows, sums = accumulate_rows(indices, gradients)
        threads(5)
        again_rows, again_sums = accumulate_rows(indices, gradients)
        assert torch.equal(rows, again_rows)
        assert torch.equal(sums, again_sums)

    def test_wrong_input_is_refused(self):
        with pytest.raises(ValueError, match=r"indices\[2\] is -3; expected no negative index"):
            accumulate_rows(int32([1, 0, -3]), torch.zeros(3, 2))
        with pytest.raises(ValueError, match=r"gradients is .*expected torch.float32 \[3, any\]"):
            accumulate_rows(int32([1, 0, 3]), torch.zeros(2, 2))
        with pytest.raises(ValueError, match=r"indices is torch\.int64"):
            accumulate_rows(torch.tensor([1]), torch.zeros(1, 2))
