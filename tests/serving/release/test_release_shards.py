"""A release in shards: every id's row is in its shard and nowhere else, and each shard is checked and known by itself."""

from __future__ import annotations

import shutil
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multifacet.artifacts import ArtifactError
from multifacet.serving import LookupConfig, LookupServer, Release, connect_lookup, publish
from multifacet.serving.lookup.mapped_release import LookupHalf
from multifacet.serving.lookup.rows import SendBuffer
from multifacet.serving.release.sharding.hashed_shard import HashedShard
from multifacet.serving.release.sharding.shards import shard_of
from multifacet.serving.release.sharding.split import split_of
from multifacet.tables import IdMap, encode

SHARDS = 3
INT64 = st.integers(-(2**63), 2**63 - 1)


@pytest.fixture(scope="module")
def split(model, tmp_path_factory):
    return publish(model.path, tmp_path_factory.mktemp("split") / "release", shards=SHARDS)


def _copy_shard(release, shard, target):
    """What a lookup host is sent: the manifest and one shard, without the ranker half."""
    others = [f"shard-{other}-of-{SHARDS}" for other in range(SHARDS) if other != shard]
    shutil.copytree(release.path, target, ignore=shutil.ignore_patterns("ranker", *others))
    return target


def _ids(release):
    """Ids that are known, unknown, and neither number nor string near another."""
    pins = np.concatenate([7 * np.arange(300) - 500, np.arange(-20, 20), [2**63 - 1, -(2**63)]])
    brands = np.array([*(f"brand-{number}é" for number in range(14)), "", "x"], np.object_)
    return {"user": np.arange(990, 1050), "pin": pins, "advertiser": brands}


def test_an_id_has_its_row_in_its_shard_and_is_unknown_in_every_other(model, release, split, tmp_path):
    ids = _ids(split)
    whole = LookupHalf(release)
    send = SendBuffer()
    expected = {
        fetched.table.name: np.array(send.read(fetched.start, fetched.start + fetched.num_bytes)).reshape(fetched.num_rows, -1)
        for fetched in whole.fetch(ids, send)
    }
    for shard in range(SHARDS):
        opened = Release.open(_copy_shard(split, shard, tmp_path / f"{shard}"), half="lookup")
        assert (opened.shard, opened.num_shards, opened.version) == (shard, SHARDS, split.version)
        for fetched in LookupHalf(opened).fetch(ids, send):
            name, feature = fetched.table.name, fetched.table.feature
            rows = np.array(send.read(fetched.start, fetched.start + fetched.num_bytes)).reshape(fetched.num_rows, -1)
            owned = shard_of(ids[feature], SHARDS) == shard
            if name == "pin_contrastive":  # hashed with another seed than the shards: whole in each of them
                np.testing.assert_array_equal(rows, expected[name])
                assert fetched.num_unknown_ids == 0
                continue
            np.testing.assert_array_equal(rows[owned], expected[name][owned])
            oov = encode(model.weights[name][-1:], "int4").numpy()
            assert (rows[~owned] == oov).all()
            assert fetched.num_unknown_ids == np.count_nonzero((expected[name] == oov).all(1) | ~owned)


def test_all_shards_have_one_version_and_share_no_ids(release, split):
    assert split.version != release.version
    opened = [Release.open(split.path, half="lookup", shard=shard) for shard in range(SHARDS)]
    assert {part.version for part in opened} == {split.version}
    for name, count in (("pin", 300), ("user", 40), ("advertiser", 12)):
        sizes = [part.id_map(name).num_rows - 1 for part in opened]
        assert sum(sizes) == count
        assert all(sizes) or name == "advertiser"
    assert sum(part.lookup_bytes for part in opened) > release.lookup_bytes  # the table that is in each
    assert Release.open(split.path, half="ranker").version == split.version


def test_a_shard_is_checked_by_itself_to_its_last_byte(split, tmp_path):
    folder = _copy_shard(split, 1, tmp_path / "one")
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert any("shard-1-of-3/pin_kge.rows" in name for name in names)
    assert any("shard-1-of-3/id_maps/pin.safetensors" in name for name in names)
    for name in names:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
            Release.open(folder, half="lookup")
        (folder / name).write_bytes(content)
    assert Release.open(folder, half="lookup").shard == 1


def test_a_shard_does_not_pass_for_the_whole_nor_for_another(split, release, tmp_path):
    folder = _copy_shard(split, 1, tmp_path / "one")
    with pytest.raises(ArtifactError, match=r"shard-0-of-3/.*missing"):
        Release.open(folder)
    with pytest.raises(ArtifactError, match=r"shard-2-of-3/.*missing"):
        Release.open(folder, half="lookup", shard=2)
    with pytest.raises(ArtifactError, match=r"ranker/upper\.pt2: missing"):
        Release.open(folder, half="ranker")
    with pytest.raises(ArtifactError, match=r"3 shards, of which \[0, 1, 2\] are here: a lookup server holds one"):
        Release.open(split.path, half="lookup")
    with pytest.raises(ArtifactError, match="3 shards, 0 to 2: there is no shard 3"):
        Release.open(split.path, half="lookup", shard=3)
    with pytest.raises(ArtifactError, match="not split into shards: there is no shard 0"):
        Release.open(release.path, half="lookup", shard=0)
    (folder / "lookup/shard-1-of-3").rename(folder / "lookup/shard-2-of-3")
    with pytest.raises(ArtifactError, match=r"shard-2-of-3/\S+: (sha256|\d+ bytes)|missing"):
        Release.open(folder, half="lookup")


def test_a_table_of_a_release_opened_for_all_shards_is_not_read(split):
    whole = Release.open(split.path)
    assert whole.shard is None
    with pytest.raises(ArtifactError, match="'user_kge' is split into 3 shards: open one of them"):
        whole.map_rows(whole.tables[0])
    with pytest.raises(ArtifactError, match="is split into 3 shards"):
        whole.id_map("pin")


def test_a_server_says_which_shard_it_has_with_every_answer(split, transport):
    for shard in (0, 2):
        with (
            LookupServer(transport.config(releases=(split.path,), shard=shard)) as server,
            transport.connect(server, shard=(shard, SHARDS)) as client,
        ):
            (described,) = client.describe().versions
            assert (described.version, described.shard_index, described.num_shards) == (split.version, shard, SHARDS)
            pins = 7 * np.arange(300) - 500
            answer = client.lookup(split.version, {"pin": pins})
            assert answer.tables["pin_kge"].num_unknown_ids == np.count_nonzero(shard_of(pins, SHARDS) != shard)
            names = client.lookup(split.version, {"advertiser": ["brand-3é"]})  # strings: not answered by the kernel
            assert names.tables["advertiser_kge"].num_unknown_ids == int(shard_of(["brand-3é"], SHARDS)[0] != shard)


@given(num_rows=st.integers(1, 200), num_shards=st.integers(1, 40), ids=st.lists(INT64, max_size=60))
def test_the_shards_of_a_hashed_table_are_ranges_that_cover_it(num_rows, num_shards, ids):
    whole = IdMap.hashed(num_rows, id_type="int64")
    parts = [HashedShard(whole, shard, num_shards) for shard in range(num_shards)]
    assert parts[0].first_row == 0
    assert parts[-1].first_row + parts[-1].oov_row == num_rows
    for before, part in pairwise(parts):
        assert part.first_row - (before.first_row + before.oov_row) in {-1, 0}
    array = np.array(ids, np.int64)
    rows, shards = whole.rows(array), shard_of(array, num_shards)
    for part in parts:
        found = np.empty(len(array), np.int32)
        num_unknown = part.find(array, found)
        np.testing.assert_array_equal(found, part.rows(array))
        np.testing.assert_array_equal(found, np.where(shards == part.shard, rows - part.first_row, part.oov_row))
        assert num_unknown == np.count_nonzero(shards != part.shard)


class _File(list):
    def write(self, rows):
        self.append(bytes(rows))


@given(num_rows=st.integers(1, 40), num_shards=st.integers(2, 9), cuts=st.lists(st.integers(0, 40)), kind=st.sampled_from("eh"))
def test_a_table_is_split_alike_whatever_chunks_it_comes_in(num_rows, num_shards, cuts, kind):
    ids = 13 * np.arange(num_rows - 1, dtype=np.int64)
    whole = IdMap.exact(pa.array(ids)) if kind == "e" else IdMap.hashed(num_rows, id_type="int64")
    table = np.arange(num_rows * 4, dtype=np.uint8).reshape(num_rows, 4)
    split = split_of(whole, num_shards)
    streams = [_File() for _ in range(num_shards)]
    bounds = sorted({0, num_rows, *(cut for cut in cuts if cut < num_rows)})
    for first, stop in pairwise(bounds):
        split.write(table[first:stop], first, streams)
    for shard, stream in enumerate(streams):
        rows = np.frombuffer(b"".join(stream), np.uint8).reshape(-1, 4)
        assert len(rows) == split.shard_rows[shard]
        part = split.id_map(shard)
        part = HashedShard(part, shard, num_shards) if kind == "h" else part
        assert part.num_rows == len(rows)
        owned = ids[shard_of(ids, num_shards) == shard]
        np.testing.assert_array_equal(rows[part.rows(owned)], table[whole.rows(owned)])
        np.testing.assert_array_equal(rows[-1], table[-1] if kind == "e" else 0)


def test_a_release_of_which_nothing_can_be_split_is_not_published_in_shards(tmp_path):
    assert split_of(IdMap.hashed(10, id_type="int64", seed=1), 2) is None
    assert split_of(IdMap.hashed(10, id_type="int64", num_hashes=2), 2) is None


def test_a_shard_that_is_asked_for_must_be_of_a_release_in_shards(release):
    with pytest.raises(ArtifactError, match="not split into shards"):
        LookupServer(LookupConfig(releases=(release.path,), shard=1))


def test_clients_of_one_shard_see_its_own_ids_only(split, tmp_path):
    config = LookupConfig(releases=(_copy_shard(split, 2, tmp_path / "two"),), framed_listen=f"unix:{tmp_path / 'sock'}")
    with LookupServer(config) as server, connect_lookup(server.framed_address, timeout_s=10, shard=(2, 3)) as client:
        users = np.arange(1000, 1040)
        answer = client.lookup(split.version, {"user": users})
        assert answer.tables["user_kge"].num_unknown_ids == np.count_nonzero(shard_of(users, SHARDS) != 2)
