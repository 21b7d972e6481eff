"""Rows that are decoded where the upper model runs are those that `tables.decode` gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multifacet.serving.ranker.device_rows import PinnedRows, decode_rows
from multifacet.serving.ranker.request_ids import RequestIds
from multifacet.serving.ranker.scorer import Scorer
from multifacet.serving.wire.answers import LookupAnswer, TableRows
from multifacet.tables import decode, encode

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
PRECISIONS = ("fp32", "fp16", "int8", "int4")


@given(
    precision=st.sampled_from(PRECISIONS),
    num_rows=st.integers(0, 9),
    dim=st.sampled_from((4, 16, 64)),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 100),
)
def test_torch_s_operators_decode_as_the_codec_does(precision, num_rows, dim, scale, seed):
    vectors = torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed)) * scale
    rows = encode(vectors, precision)
    torch.testing.assert_close(decode_rows(rows, precision), decode(rows, dim, precision), rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_reach_the_device_whole_request_after_request(precision):
    pinned = PinnedRows(torch.device("cuda"))
    for seed in range(20):
        vectors = [torch.randn(1 + 97 * seed, 64), torch.randn(3, 64)]
        rows = [encode(block, precision).numpy() for block in vectors]
        sent = decode_rows(pinned.send(rows), precision)
        expected = decode(torch.from_numpy(np.concatenate(rows)), 64, precision)
        torch.testing.assert_close(sent.cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@needs_cuda
def test_a_scorer_on_a_device_scores_as_one_on_the_cpu(release):
    scorers = [Scorer(release, device=device) for device in ("cpu", "cuda")]
    generator = np.random.default_rng(0)
    num_ids = {table.feature: 20 for table in release.tables}
    tables = {}
    for table in release.tables:
        rows = release.map_rows(table)[generator.integers(0, table.rows, 20)]
        tables[table.name] = TableRows(rows, table.dim, table.precision, 0)
    answer = LookupAnswer(release.version, tables, 0)
    positions = {feature: generator.integers(0, 20, 50) for feature in num_ids}
    ids = RequestIds(50, {feature: np.arange(20) for feature in num_ids}, positions)
    dense = torch.randn(50, 3)
    scores = [scorer.score(dense, scorer.embeddings(answer, ids)[0])[0] for scorer in scorers]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)
