"""Laying batches out where the rows of all node types together are beyond int32."""

from __future__ import annotations

import numpy as np
import pytest

from multifacet.kge.batches.chunks import ChunkSampler
from multifacet.kge.batches.draws import SIDES, BatchDraws, Scratch
from multifacet.kge.batches.frequencies import count_positives
from multifacet.kge.batches.source import place_types

NUM_NODES = {"user": (1 << 31) - 10, "pin": 3000}


def test_rows_beyond_int32_are_named_where_tables_are_shared() -> None:
    with pytest.raises(ValueError, match="2147486638 nodes in all: rows are int32"):
        place_types(NUM_NODES)
    offsets = place_types(NUM_NODES, narrow=False)
    assert offsets == {"user": 0, "pin": (1 << 31) - 10}
    heads, tails = np.int32([0, 2999, 5]), np.int32([2999, 1500, 0])
    samplers = {
        # Of the users only the first ones are drawn: a scratch of all of them would be 8 GiB.
        side: ChunkSampler(count_positives(positives), 3000, chunk_size=4, num_uniform=7, num_degree=2)
        for side, positives in zip(SIDES, (tails, heads), strict=True)
    }
    draws = BatchDraws(
        chunk_size=4,
        mixes_relations=True,
        num_shares=8,
        weights=np.ones(1, np.float32),
        first_inverse=0,
        offsets={"head": offsets["user"], "tail": offsets["pin"]},
        samplers=samplers,
        group_of_relation=np.zeros(1, np.int32),
        scratch=Scratch(slot_of_row=np.full(3000, -1, np.int32), slot_of_key=np.full(2, -1, np.int32), tells_places=False),
    )
    columns = {"head": heads, "tail": tails}
    batch = draws.draw(columns, np.zeros(3, np.int32), np.arange(3), np.array([0, 3]), np.random.default_rng(0))
    of_tails, of_heads = batch.sides
    assert of_tails.rows.dtype == of_heads.rows.dtype == np.int64
    assert (of_tails.candidates.rows[0, :3] - offsets["pin"]).tolist() == tails.tolist()
    assert (of_heads.known[0, :3] - offsets["pin"]).tolist() == tails.tolist()
    assert of_heads.candidates.rows[0, :3].tolist() == of_tails.known[0, :3].tolist() == heads.tolist()
    assert of_tails.candidates.rows.min() >= offsets["pin"]
    assert np.iinfo(np.int32).max < of_tails.candidates.rows.max() < sum(NUM_NODES.values())
    assert len(batch.rows) == len(batch.keys) == 0
