"""An answer that does not fit what was asked is refused."""

from __future__ import annotations

import numpy as np
import pytest

from multifacet.serving import BrokenAnswerError, VersionNotLoadedError
from multifacet.serving.protocol import lookup_pb2
from multifacet.serving.wire.answers import WHOLE, Asked, Shard, read_framed_lookup, read_lookup

IDS = {"pin": [1, 2, 3], "user": [7]}


def _read(answer, shard=WHOLE):
    asked = Asked.of("v1", shard, IDS)
    read_lookup(answer, asked, "the server")
    table = answer.tables[0]
    framed = lookup_pb2.LookupAnswer.FromString(answer.SerializeToString())
    framed.tables[0].num_rows = len(table.rows) // table.row_bytes
    framed.tables[0].rows = b""
    return read_framed_lookup(framed, np.frombuffer(table.rows, np.uint8), asked, "the server")


def _answer(**fields):
    rows = fields.pop("num_rows", 3)
    table = lookup_pb2.TableRows(table="t", rows=bytes(8 * rows), row_bytes=8, dim=8, precision="int8")
    return lookup_pb2.LookupAnswer(**{"version": "v1", "tables": [table], **fields})


@pytest.mark.parametrize("fields", [{}, {"num_rows": 1}, {"num_shards": 1}])
def test_what_fits_is_read(fields):
    assert "t" in _read(_answer(**fields)).tables
    assert "t" in _read(_answer(num_shards=4, shard_index=2), Shard(2, 4)).tables


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"version": "v2"}, VersionNotLoadedError, "v2, asked for was v1"),
        ({"num_shards": 2}, BrokenAnswerError, "shard 0 of 2, expected was a release that is not split"),
        ({"num_shards": 2, "shard_index": 1}, BrokenAnswerError, "shard 1 of 2"),
        ({"num_rows": 2}, BrokenAnswerError, r"2 rows of table 't'; the features have \[1, 3\] ids"),
        ({"num_rows": 4}, BrokenAnswerError, "4 rows"),
    ],
)
def test_what_does_not_fit_is_refused(fields, error, says):
    with pytest.raises(error, match=says):
        _read(_answer(**fields))


@pytest.mark.parametrize("given", [{}, {"num_shards": 4, "shard_index": 1}, {"num_shards": 3, "shard_index": 2}])
def test_a_shard_is_the_one_that_was_asked(given):
    with pytest.raises(BrokenAnswerError, match="expected was shard 2 of 4"):
        _read(_answer(**given), Shard(2, 4))
