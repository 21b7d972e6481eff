"""Tables that collapsed, have a hub, or moved; and tables with which all is well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from multifacet.pipeline.diagnosis.diagnose import diagnose
from multifacet.pipeline.diagnosis.finding import Finding
from multifacet.pipeline.diagnosis.gates import GatesSection
from multifacet.pipeline.diagnosis.table_checks import (
    check_error,
    check_table,
    effective_rank,
    hub_share,
    information_abundance,
    singular_values,
)
from multifacet.tables import Snapshot, SnapshotTable, decode, encode

GATES = GatesSection()


def noise(num_rows: int = 600, dim: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed))


def find(findings: list[Finding], check: str) -> Finding:
    return next(found for found in findings if found.check == check)


def test_a_healthy_table_gives_no_alarm() -> None:
    findings = check_table("pin", noise(), None, GATES)
    assert [(found.check, found.level) for found in findings] == [("collapse", "ok"), ("hubs", "ok")]


@pytest.mark.parametrize(("directions", "level"), [(2, "warn"), (0, "stop")])
def test_a_collapsed_table(directions: int, level: str) -> None:
    basis = torch.zeros(32, 32)
    basis[:, : max(1, directions)] = noise(32, max(1, directions), seed=1)
    table = noise() @ basis if directions else noise()[:, :1] @ basis[:1]
    found = find(check_table("pin", table + 1e-4 * noise(seed=2), None, GATES), "collapse")
    assert found.level == (level if directions else found.level)
    assert found.level in {"warn", "stop"}
    assert "effective rank" in found.told
    assert "2310.04400" in found.cause


def test_one_row_near_everything() -> None:
    table = noise()
    mean = torch.randn(32, generator=torch.Generator().manual_seed(3)) * 1.0
    table = table + mean
    table[5] = mean
    found = find(check_table("user", table, None, GATES), "hubs")
    assert found.level == "warn"
    assert found.value is not None
    assert found.value > 0.5
    assert "min_degree" in found.mend
    assert hub_share(noise()) < 0.2


def test_numbers_agree_with_numpy() -> None:
    table = noise(seed=4) @ torch.diag(torch.linspace(0.1, 2.0, 32))
    values = np.linalg.svd(table.numpy().astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(singular_values(table).numpy(), values, rtol=1e-6)
    shares = values / values.sum()
    assert effective_rank(torch.from_numpy(values)) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
    assert information_abundance(torch.from_numpy(values)) == pytest.approx(values.sum() / values[0])


def test_small_tables_and_untrained_rows_are_passed_over() -> None:
    assert check_table("brand", noise(50), None, GATES) == []
    trained = torch.zeros(600, dtype=torch.bool)
    trained[:100] = True
    assert check_table("pin", noise(), trained, GATES) == []


def test_tables_in_another_basis(tmp_path: Path, run: Any) -> None:
    rotation = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).normal(size=(32, 32)))[0]).float()
    for name, vectors in (("old", noise()), ("same", noise() + 0.1 * noise(seed=1)), ("turned", noise() @ rotation)):
        table = SnapshotTable(ids=pa.array(range(600)), vectors=vectors)
        Snapshot.write(tmp_path / name, facet="kge", tables={"pin": table})
    calm = diagnose([str(tmp_path / "same")], against=tmp_path / "old")
    assert {found.level for found in calm} == {"ok"}
    found = find(diagnose([str(tmp_path / "turned")], against=tmp_path / "old"), "drift")
    assert found.level == "warn"
    assert "another basis" in found.cause
    assert "--align-to" in found.mend
    code, output, _ = run("diagnose", tmp_path / "turned", "--against", tmp_path / "old", "--set", "drift_stop=0.3")
    assert code == 1
    assert "--align-to SNAPSHOT" in output


def test_rows_with_one_long_number_lose_the_others() -> None:
    table = noise()
    served = decode(encode(table, "int4"), 32, "int4")
    assert check_error("pin", table, served, "int4", GATES).level == "ok"
    coarse = torch.round(table)
    found = check_error("pin", table, coarse, "int4", GATES)
    assert found.level == "warn"
    assert "int8" in found.mend
