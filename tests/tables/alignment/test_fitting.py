"""The nearest change of basis of those that are allowed: planted ones are found, in the presence of noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.tables import fit_alignment


def rows(seed: int, size: int = 200, dim: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, dim, generator=generator, dtype=torch.float64) * torch.linspace(0.5, 2.0, dim).double()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_rotation_is_found_in_noise(seed: int) -> None:
    rotation = torch.from_numpy(np.linalg.qr(np.random.default_rng(seed).normal(size=(8, 8)))[0])
    old = {"user": rows(seed), "pin": rows(seed + 1)}
    pairs = {name: (table, table @ rotation + 0.01 * rows(seed + 2)) for name, table in old.items()}
    found = fit_alignment("rotation", pairs)
    torch.testing.assert_close(found.matrix("pin"), rotation.t(), rtol=0.0, atol=0.02)
    assert torch.equal(found.matrix("pin"), found.matrix("user"))  # products of two tables are kept by one rotation only
    torch.testing.assert_close(found.matrix("pin") @ found.matrix("pin").t(), torch.eye(8).double())


def test_signs_may_differ_between_tables() -> None:
    order, signs = torch.eye(8).double()[[3, 1, 0, 2, 7, 6, 5, 4]], torch.tensor([1, -1, 1, 1, -1, -1, 1, -1]).double()
    old = {"user": rows(0), "pin": rows(1)}
    pairs = {"user": (old["user"], old["user"] @ order), "pin": (old["pin"], old["pin"] @ (order * signs))}
    found = fit_alignment("signs", pairs)
    for name, (before, after) in pairs.items():
        torch.testing.assert_close(found.apply(name, after).double(), before, rtol=0.0, atol=1e-6)
    # Where one sign is to do for all tables, it cannot.
    common = fit_alignment("shifted_signs", pairs)
    assert any(float((common.apply(name, after) - before).abs().max()) > 1.0 for name, (before, after) in pairs.items())


def test_each_table_has_its_own_shift() -> None:
    old = {"user": rows(0), "pin": rows(1)}
    pairs = {"user": (old["user"], old["user"] + 3.0), "pin": (old["pin"], old["pin"] - 2.0)}
    found = fit_alignment("shifted_rotation", pairs)
    torch.testing.assert_close(found.shift("user"), torch.full((8,), -3.0).double(), rtol=0.0, atol=1e-9)
    torch.testing.assert_close(found.shift("pin"), torch.full((8,), 2.0).double(), rtol=0.0, atol=1e-9)


def test_a_table_without_rows_goes_with_the_others() -> None:
    old = rows(0)
    rotation = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0])
    empty = torch.empty(0, 8, dtype=torch.float64)
    found = fit_alignment("rotation", {"pin": (old, old @ rotation), "brand": (empty, empty)})
    torch.testing.assert_close(found.matrix("brand"), rotation.t())


def test_complex_numbers_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="the rows have 7: expected an even width"):
        fit_alignment("phases", {"pin": (rows(0)[:, :7], rows(1)[:, :7])})


def test_what_is_given_out_is_of_the_tables_type() -> None:
    found = fit_alignment("rotation", {"pin": (rows(0), rows(1))})
    assert found.apply("pin", rows(0).half()).dtype == torch.float32
    assert found.to_tensors()["alignment/pin"].dtype == torch.float64
