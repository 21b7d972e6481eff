"""Two gloo ranks do what one process does."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from multifacet.ranking import Columns, Examples, arm_config, load_model, make_model
from multifacet.ranking.model.batchnorm import GlobalBatchNorm
from multifacet.ranking.training.objective import training_loss
from multifacet.tables import IdMap, Snapshot, SnapshotTable
from multifacet.tables.optim import write_rounded
from multifacet.training import Checkpoint
from tests.ranking import sharded_rank
from tests.ranking.conftest import Planted
from tests.ranking.sharded_rank import SMALL, TRAINED, fill_cases, train_case, with_recent

RANK = Path(sharded_rank.__file__)
NUM_RANKS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, planted: Planted) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    vectors = torch.randn(500, 8, generator=torch.Generator().manual_seed(1))
    table = SnapshotTable(ids=pa.array(range(0, 1000, 2)), vectors=vectors)
    Snapshot.write(folder / "snapshot", facet="kge", tables={"pin": table})
    generator = torch.Generator().manual_seed(2)
    tables = {
        name: SnapshotTable(ids=pa.array(range(first, first + count)), vectors=torch.randn(count, 8, generator=generator))
        for name, first, count in (("user", 0, 400), ("pin", 1000, 600), ("advertiser", 0, 5))
    }
    Snapshot.write(folder / "planted", facet="kge", tables=tables)
    # Odd numbers, so that ranks read unequal parts.
    planted.train.take(np.arange(1001)).save(folder / "train.parquet")
    planted.valid.take(np.arange(301)).save(folder / "valid.parquet")
    return folder


def start_ranks(folder: Path, what: str) -> list[tuple[int, str]]:
    """Run both ranks; return their exit codes and output."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(RANK), str(rank), str(NUM_RANKS), str(folder / what), str(folder), what],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(NUM_RANKS)
    ]
    outputs = [rank.communicate(timeout=200)[0] for rank in ranks]
    return [(rank.returncode, output) for rank, output in zip(ranks, outputs, strict=True)]


@pytest.fixture(scope="module")
def parts(folder: Path) -> list[dict[str, Any]]:
    killed = start_ranks(folder, "killed")
    assert killed[1][0] == -signal.SIGKILL
    assert killed[0][0] > 0, killed[0][1]  # its peer is gone: it fails, and does not wait
    position = Checkpoint.load(folder / "default.checkpoint").fields["position"]
    assert (position["epoch"], position["step"]) == (1, 1)
    ended = start_ranks(folder, "rest")
    assert [code for code, _ in ended] == [0] * NUM_RANKS, "\n".join(output for _, output in ended)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(NUM_RANKS)]


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Any]:
    return fill_cases(folder, sharded=False)


@pytest.mark.parametrize("case", ["exact", "hashed", "in_order", "projected"])
def test_two_ranks_fill_the_rows_that_one_process_fills(whole: dict[str, Any], parts: list[dict[str, Any]], case: str) -> None:
    expected = whole[case]
    found = torch.cat([part[case] for part in parts])
    assert found.dtype == expected.dtype
    if case in ("in_order", "exact"):
        assert torch.equal(found[:400], expected[:400])
    # A norm and a mean are sums of parts, so their last bit may differ.
    torch.testing.assert_close(found, expected, rtol=1e-3 if case == "hashed" else 1e-6, atol=1e-6)
    reports = [part[f"{case}_report"] for part in parts]
    assert reports[0] == reports[1]
    for name, value in whole[f"{case}_report"].items():
        assert reports[0][name] == (pytest.approx(value) if isinstance(value, float) else value), name


def step_of_11_digits(
    table: Tensor, state: Tensor, rows: Tensor, gradients: Tensor, *, lr: float, seed: int, shares: Tensor | None
) -> None:
    """Take the step of `step_rounded`, with the step itself rounded to FP16's digits first."""
    index, share = rows.long(), torch.ones(len(rows)) if shares is None else shares
    state[index] += gradients.square().mean(1)
    steps = (2.0**16 * lr / (state[index].sqrt() + 1e-10)[:, None] * gradients).half().float() / 2.0**16
    write_rounded(table, rows, table[index].float() - share[:, None] * steps, seed=seed)


@pytest.mark.parametrize("case", list(TRAINED))
def test_two_ranks_train_the_model_that_one_process_trains(
    parts: list[dict[str, Any]], folder: Path, tmp_path: Path, case: str
) -> None:
    for name in ("train.parquet", "valid.parquet", "planted"):
        (tmp_path / name).symlink_to(folder / name)
    # Ranks' half-precision rows get steps of 11 digits; a last place that differs by chance is another one for all that follow.
    with mock.patch("multifacet.ranking.training.optimizers.step_rounded", step_of_11_digits):
        whole, result = train_case(tmp_path, case)
    first, second = (part[case] for part in parts)
    assert first["history"] == second["history"]
    assert len(whole["history"]) == len(first["history"])
    for expected, row in zip(whole["history"], first["history"], strict=True):
        # Sums in another order, each step scaled by the root of a row's squares.
        assert row == pytest.approx(expected, rel=1e-4), case
    assert set(first["weights"]) == set(whole["weights"])
    for name, expected in whole["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(
            first["weights"][name], expected, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )
    examples = with_recent(Examples.load(folder / "valid.parquet"))
    exported = load_model(folder / f"{case}.model").score(examples)
    np.testing.assert_allclose(exported, result.score(examples), atol=1e-3)


def test_fp16_tables_of_two_ranks_are_as_good_as_those_of_one_process(
    parts: list[dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    for name in ("train.parquet", "valid.parquet", "planted"):
        (tmp_path / name).symlink_to(folder / name)
    whole, _ = train_case(tmp_path, "half")
    for expected, row in zip(whole["history"], parts[0]["half"]["history"], strict=True):
        # An area counts 1,092 pairs.
        assert row == pytest.approx(expected, rel=5e-3)


def test_a_run_whose_rank_was_killed_goes_on_to_the_same_bits(parts: list[dict[str, Any]]) -> None:
    for part in parts:
        assert part["resumed"]["history"] == part["default"]["history"]
        for name, value in part["default"]["weights"].items():
            assert torch.equal(part["resumed"]["weights"][name], value), name


def test_a_run_with_fp16_tables_that_was_stopped_goes_on_to_the_same_bits(parts: list[dict[str, Any]]) -> None:
    for part in parts:
        assert part["half_resumed"]["history"] == part["half"]["history"]
        for name, value in part["half"]["weights"].items():
            assert value.dtype == (torch.float16 if name.startswith("tables.") else value.dtype)
            assert torch.equal(part["half_resumed"]["weights"][name], value), name


def test_ranks_with_examples_of_their_own_are_refused(parts: list[dict[str, Any]]) -> None:
    for part in parts:
        assert "ranks 0 and 1 were given different examples" in part["refused"]


@pytest.mark.parametrize("case", [case for case in TRAINED if case != "no_ids"])
def test_a_rank_without_examples_takes_part(case: str, planted: Planted) -> None:
    """The last step of an epoch may have fewer examples than there are ranks."""
    arm, fields = TRAINED[case]
    config = arm_config(arm, **SMALL, **fields)
    maps = {name: IdMap.exact(range(40)) for name in config.features}
    model = make_model(config, maps, num_dense=3, num_recent=2).train()
    GlobalBatchNorm.convert(model)
    none = Columns.of(with_recent(planted.train).take(np.arange(2)), model, maps).take(slice(0))
    with mock.patch("multifacet.ranking.model.batchnorm.all_reduce", lambda part: part + 4.0):
        logits = model(none.dense, none.rows, none.num_recent)
        loss = training_loss(
            logits, none.ctr, none.cvr, none.cvr_known, heads=config.heads, cvr_weight=0.5, num_examples=2.0, num_counted=1.0
        )
        loss.backward()
    assert float(loss.detach()) == 0.0
    for name, weights in model.upper.named_parameters():
        assert weights.grad is not None, name
        assert float(weights.grad.abs().sum()) == 0.0, name
