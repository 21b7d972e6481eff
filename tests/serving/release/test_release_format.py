"""The reader of docs/release-format.md, which knows nothing of this code, reads what the lookup server sends."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from multifacet.artifacts.manifest import canonical_bytes
from multifacet.serving import Release, publish, publish_delta
from multifacet.serving.lookup.mapped_release import LookupHalf
from multifacet.serving.release.manifest import ReleaseBase, ReleaseManifest, ReleaseTable, TableDelta
from multifacet.serving.release.sharding.hashed_shard import HashedShard
from multifacet.serving.release.sharding.shards import SHARD_SEED, shard_of
from multifacet.tables import IdMap, decode

PAGE = (Path(__file__).parents[3] / "docs" / "release-format.md").read_text()
IDS = {
    "user": [1000, 1039, 5, -1],
    "pin": [-500, 200, 1593, 77, -(2**63)],
    "advertiser": ["brand-0é", "brand-11é", "nobody", ""],
}


@pytest.fixture(scope="module")
def reader():
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(block.splitlines()) < 180
    names: dict[str, object] = {}
    exec(compile(block, "docs/release-format.md", "exec"), names)  # noqa: S102
    return names


def _expected(release, shard, table, external_id):
    id_map = release.id_map(table.id_map)
    half = LookupHalf(release, max_ids=100)
    del half  # opens as a server does
    rows = release.map_rows(table)
    row = int(np.asarray(id_map.rows([external_id])).reshape(-1)[0])
    return decode(torch.from_numpy(rows[row].copy())[None], table.dim, table.precision)[0].numpy()


@pytest.mark.parametrize("layout", ["plain", "placed"])
@pytest.mark.parametrize("precision", ["int4", "int8", "fp16", "fp32"])
def test_the_page_s_reader_reads_what_is_served(model, tmp_path, reader, precision, layout):
    release = publish(model.path, tmp_path / "release", precision=precision, layout=layout)
    stranger = reader["ReleaseReader"](release.path)
    stranger.check()
    assert stranger.version == release.version
    for table in release.tables:
        for external_id in IDS[table.feature]:
            given = stranger.vector(table.name, external_id)
            np.testing.assert_allclose(given, _expected(release, None, table, external_id), rtol=1e-6)


@pytest.mark.parametrize("layout", ["plain", "placed"])
def test_it_reads_shards(model, tmp_path, reader, layout):
    published = publish(model.path, tmp_path / "release", shards=3, layout=layout)
    pins = np.arange(-500, 1593, 13)
    assert [reader["shard_of"](int(pin), 3) for pin in pins] == shard_of(pins, 3).tolist()
    for shard in range(3):
        release = Release.open(published.path, half="lookup", shard=shard)
        stranger = reader["ReleaseReader"](release.path, shard)
        assert stranger.version == release.version
        for table in release.tables:
            if table.feature != "pin":
                continue
            for pin in pins[shard_of(pins, 3) == shard].tolist():
                given = stranger.vector(table.name, pin)
                np.testing.assert_allclose(given, _expected(release, shard, table, pin), rtol=1e-6)


@pytest.mark.parametrize("layout", ["plain", "placed"])
def test_it_reads_deltas(model, change_model, tmp_path, reader, layout):
    first = change_model(model, tmp_path / "m1", seed=1, added=[10_001, 10_002], dropped=[-500])
    second = change_model(first, tmp_path / "m2", seed=2, added=[-500], dropped=[10_001, 200])
    publish(model.path, tmp_path / "r0", layout=layout)
    stranger = reader["ReleaseReader"](tmp_path / "r0")
    for number, changed in enumerate((first, second), 1):
        delta = publish_delta(changed.path, tmp_path / f"r{number}", tmp_path / f"r{number - 1}")
        stranger = reader["DeltaReader"](delta.path, stranger)
        stranger.check()
        assert stranger.version == delta.version
        whole = publish(changed.path, tmp_path / f"w{number}")
        for table in whole.tables:
            for external_id in (*IDS[table.feature], *([10_001, 10_002] if table.feature == "pin" else [])):
                given = stranger.vector(table.name, external_id)
                np.testing.assert_allclose(given, _expected(whole, None, table, external_id), rtol=1e-6)
    with pytest.raises(ValueError, match="lies over version"):
        reader["DeltaReader"](tmp_path / "r2", reader["ReleaseReader"](tmp_path / "r0"))


@pytest.mark.parametrize("num_rows", [3, 10, 64, 1_000_003, 450_000_000])
def test_it_finds_the_rows_of_a_hashed_table_s_shards(reader, num_rows):
    whole = IdMap.hashed(num_rows, id_type="int64", seed=SHARD_SEED)
    for num_shards in (1, 2, 3, 7):
        if num_rows < num_shards:
            continue
        for shard in range(num_shards):
            part = HashedShard(whole, shard, num_shards)
            assert reader["first_row"](shard, num_shards, num_rows) == part.first_row
        keys = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 50)
        seed = reader["mix"]((SHARD_SEED + reader["GOLDEN"]) & reader["MASK"])
        rows = [reader["hashed_row"](int(key), num_rows, seed) for key in keys]
        assert rows == np.asarray(whole.rows(keys)).reshape(-1).tolist()


def test_the_page_tells_every_field(release):
    described = set(re.findall(r"`([a-z_]+)`", PAGE))
    assert set(ReleaseManifest.model_fields) <= described
    assert set(ReleaseTable.model_fields) | set(TableDelta.model_fields) | set(ReleaseBase.model_fields) <= described
    raw = (release.path / "manifest.json").read_bytes()
    assert hashlib.sha256(raw).hexdigest() == release.version
    assert canonical_bytes(release._artifact.manifest) == raw
