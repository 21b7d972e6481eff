"""Tables that ranks share are encoded as whole ones are, however they are divided."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from multifacet.tables import gather_rows

RANK = Path(__file__).with_name("sharded_encode.py")
NUM_RANKS = 2


def test_ranks_encode_what_one_process_does_and_all_refuse_what_one_must(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(RANK), str(rank), str(NUM_RANKS), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(NUM_RANKS)
    ]
    outputs = [rank.communicate(timeout=200)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * NUM_RANKS, outputs
    assert all(output.splitlines()[-1] == "fine" for output in outputs), outputs


def test_a_plain_table_is_given_back_and_what_is_none_is_refused() -> None:
    table = torch.nn.Parameter(torch.ones(3, 4))
    assert torch.equal(gather_rows(table), table.detach())
    with pytest.raises(TypeError, match="table is a list; expected a tensor, ShardedTensor or DTensor"):
        gather_rows([[1.0]])
    with pytest.raises(ValueError, match=r"has the shape \[3\]; expected \[rows, columns\]"):
        gather_rows(torch.ones(3))
