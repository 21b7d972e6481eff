"""Rows that stand where their ids say: the same rows as by an index, to the byte, and never another id's."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.artifacts import ArtifactError
from multifacet.artifacts.manifest import canonical_bytes
from multifacet.serving import (
    DeltaWriter,
    LookupConfig,
    LookupServer,
    Release,
    connect_lookup,
    fold,
    publish,
    publish_delta,
    read_tables,
)
from multifacet.serving.delta.part import parts_of
from multifacet.serving.load.workload import _sources
from multifacet.serving.lookup.mapped_release import LookupHalf
from multifacet.serving.lookup.rows import SendBuffer
from multifacet.serving.release.placing.perfect_hash import PerfectHash
from multifacet.serving.release.placing.placed_ids import PlacedIds, save_places
from multifacet.serving.release.sharding.shards import shard_of
from multifacet.tables.codec import row_bytes

PINS = np.array([7 * place - 500 for place in range(300)], np.int64)
ASKED = {
    "pin": np.concatenate([PINS, [0, -1, 1, 2**63 - 1, -(2**63), 10_001, 10_002]]),
    "user": np.arange(990, 1050),
    "advertiser": np.array([*(f"brand-{n}é" for n in range(14)), "", "nobody"], np.object_),
}


def _rows(half: LookupHalf, ids):
    send = SendBuffer()
    return {
        each.table.name: (each.num_unknown_ids, bytes(send.read(each.start, each.start + each.num_bytes)))
        for each in half.fetch(ids, send)
    }


@pytest.fixture(scope="module", params=["int4", "int8", "fp16", "fp32"])
def both(request, model, tmp_path_factory):
    """The same model, its rows by an index and where their ids say."""
    folder = tmp_path_factory.mktemp(request.param)
    plain = publish(model.path, folder / "plain", precision=request.param)
    return plain, publish(model.path, folder / "placed", precision=request.param, layout="placed")


def test_every_id_has_the_row_that_an_index_gives_it(both):
    plain, placed = both
    tables = {table.name: table for table in placed.tables}
    assert tables["user_kge"].slot_bytes >= tables["user_kge"].row_bytes + 8
    assert not tables["user_contrastive"].slot_bytes  # of the same ids, which stand in the first table
    assert not tables["pin_contrastive"].slot_bytes  # hashed
    assert not tables["advertiser_kge"].slot_bytes  # strings
    for options in ({}, {"huge_pages": True}, {"populate": False}):
        assert _rows(LookupHalf(placed, **options), ASKED) == _rows(LookupHalf(plain, **options), ASKED)


def test_clients_of_both_transports_get_the_same_answers(both, tmp_path):
    plain, placed = both
    config = LookupConfig(releases=(plain.path, placed.path), framed_listen=f"unix:{tmp_path / 'frames.sock'}")
    with LookupServer(config) as server:
        for address in (server.address, server.framed_address):
            with connect_lookup(address, timeout_s=30) as client:
                few = {"pin": PINS[:1]}, {"pin": [], "user": ASKED["user"]}, {"pin": np.empty(0, np.int64)}, {"user": [5]}
                for ids in (ASKED, {"pin": ASKED["pin"], "user": ASKED["user"]}, *few):
                    answers = [client.lookup(release.version, ids) for release in (plain, placed)]
                    for table, rows in answers[0].tables.items():
                        assert np.array_equal(rows.rows, answers[1].tables[table].rows), table
                        assert rows.num_unknown_ids == answers[1].tables[table].num_unknown_ids


def test_a_version_is_its_content(model, both, tmp_path):
    again = publish(model.path, tmp_path / "again", precision=both[1].precision, layout="placed")
    assert again.version == both[1].version
    assert again.version != both[0].version
    with pytest.raises(ValueError, match="layout is 'spread'"):
        publish(model.path, tmp_path / "spread", layout="spread")  # type: ignore[arg-type]


@pytest.mark.parametrize("num_shards", [2, 5])
def test_each_shard_has_its_own_ids(model, tmp_path, num_shards):
    plain = publish(model.path, tmp_path / "plain", shards=num_shards)
    placed = publish(model.path, tmp_path / "placed", shards=num_shards, layout="placed")
    for shard in range(num_shards):
        halves = [LookupHalf(Release.open(each.path, half="lookup", shard=shard)) for each in (plain, placed)]
        assert isinstance(halves[1].id_maps["pin"], PlacedIds)
        assert _rows(halves[0], ASKED) == _rows(halves[1], ASKED)
        known = halves[1].id_maps["pin"].rows(PINS) != halves[1].id_maps["pin"].oov_row
        assert np.array_equal(known, shard_of(PINS, num_shards) == shard)


def test_deltas_lie_over_it_and_fold_into_it(model, change_model, tmp_path):
    base = publish(model.path, tmp_path / "base", layout="placed")
    first = change_model(model, tmp_path / "m1", seed=11, added=[10_001, 10_002], dropped=PINS[[5, 299]].tolist())
    second = change_model(first, tmp_path / "m2", seed=12, added=PINS[[5]].tolist(), dropped=[10_001])
    publish_delta(first.path, tmp_path / "d1", base.path)
    publish_delta(second.path, tmp_path / "d2", tmp_path / "d1")
    folded = fold(tmp_path / "d2", tmp_path / "folded")
    assert [bool(table.slot_bytes) for table in folded.tables] == [bool(table.slot_bytes) for table in base.tables]
    for trained, delta in ((first, "d1"), (second, "d2"), (second, "folded")):
        whole = publish(trained.path, tmp_path / f"whole-{delta}")
        (part,), (other,) = parts_of(tmp_path / delta)[1], parts_of(whole.path)[1]
        assert _rows(part.half, ASKED) == _rows(other.half, ASKED), delta
        part.half.plan.warm(SendBuffer())  # the kernel understands it too
    served = {table.table.name: table for table in read_tables(tmp_path / "d2")}
    assert set(served["pin_kge"].ids.tolist()) == {*PINS.tolist(), 10_002} - {int(PINS[299])}


def test_the_kernel_reads_changes_over_placed_rows(model, change_model, tmp_path):
    base = publish(model.path, tmp_path / "base", layout="placed")
    trained = change_model(model, tmp_path / "m1", seed=11, added=[10_001], dropped=PINS[[5]].tolist())
    delta = publish_delta(trained.path, tmp_path / "d1", base.path)
    whole = publish(trained.path, tmp_path / "whole")
    ids = {"pin": ASKED["pin"], "user": ASKED["user"]}
    config = LookupConfig(releases=(base.path, delta.path, whole.path), framed_listen=f"unix:{tmp_path / 'frames.sock'}")
    with LookupServer(config) as server, connect_lookup(server.framed_address, timeout_s=30) as client:
        over, expected = (client.lookup(version, ids) for version in (delta.version, whole.version))
        for table, rows in expected.tables.items():
            assert np.array_equal(rows.rows, over.tables[table].rows), table


def test_a_model_that_is_too_different_is_published_whole_and_placed(model, change_model, tmp_path, monkeypatch):
    base = publish(model.path, tmp_path / "base", layout="placed")
    monkeypatch.setattr("multifacet.serving.delta.publish.MOST_OF_BASE", 0.0)
    trained = change_model(model, tmp_path / "m1", seed=11, added=[10_001], dropped=[])
    whole = publish_delta(trained.path, tmp_path / "d1", base.path)
    assert not whole.base
    assert any(table.slot_bytes for table in whole.tables)


def test_rows_by_their_number_in_training_are_refused(model, tmp_path):
    base = publish(model.path, tmp_path / "base", layout="placed")
    with DeltaWriter(tmp_path / "delta", base.path, parents=("0" * 64,)) as writer:
        content = np.zeros((1, row_bytes(16, "int4")), np.uint8)
        with pytest.raises(ArtifactError, match="change it by ids"):
            writer.change_rows("pin_kge", [3], content)
        writer.change_vectors("pin_kge", PINS[:1], content)


def test_a_load_knows_the_ids(model, tmp_path):
    placed = publish(model.path, tmp_path / "placed", layout="placed")
    drawn = _sources(placed, 0.0)["pin"].draw(np.random.default_rng(0), 2000)
    assert set(drawn.tolist()) == set(PINS.tolist())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=300, unique=True),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=100),
)
def test_ids_have_a_place_each_and_all_others_none(ids, others):
    known = np.array(ids, np.int64)
    places = PerfectHash.build(known)
    numbers = places.numbers(known)
    assert sorted(numbers.tolist()) == list(range(len(ids)))
    keys = np.empty(len(ids), np.int64)
    keys[numbers] = known
    placed = PlacedIds(places, keys)
    assert np.array_equal(placed.rows(known), numbers)
    unknown = np.array([other for other in others if other not in set(ids)], np.int64)
    rows = np.empty(len(unknown), np.int32)
    assert placed.find(unknown, rows) == len(unknown)
    assert (rows == len(ids)).all()


def test_places_do_not_depend_on_the_order_of_ids():
    ids = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 20_000)
    one, other = PerfectHash.build(ids), PerfectHash.build(ids[::-1].copy())
    assert np.array_equal(one.pilots, other.pilots)
    assert np.array_equal(one.moved, other.moved)
    with pytest.raises(ValueError, match="an id occurs twice"):
        PerfectHash.build(np.array([5, 6, 5]))


def _mend(path, change):
    """Change a release's manifest, with its digests as they are on disk."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    change(manifest)
    for name in manifest["files"]:
        content = (path / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (path / "manifest.json").chmod(0o644)
    (path / "manifest.json").write_bytes(canonical_bytes(manifest))


@pytest.mark.parametrize(
    ("slot_bytes", "message"), [(8, "slots of 8 bytes"), (20, "slots of 20 bytes"), (64, "bytes: .* rows of 64 bytes")]
)
def test_slots_that_do_not_fit_are_refused(model, tmp_path, slot_bytes, message):
    path = publish(model.path, tmp_path / "placed", layout="placed").path

    def change(manifest):
        next(table for table in manifest["tables"] if table["name"] == "pin_kge")["slot_bytes"] = slot_bytes

    _mend(path, change)
    with pytest.raises(ArtifactError, match=message):
        Release.open(path)


def test_two_tables_with_the_ids_of_one_map_are_refused(model, tmp_path):
    path = publish(model.path, tmp_path / "placed", layout="placed").path

    def change(manifest):
        for table in manifest["tables"]:
            if table["id_map"] == "user":
                table["slot_bytes"] = 32

    _mend(path, change)
    with pytest.raises(ArtifactError, match="the ids of one map stand in several tables"):
        Release.open(path)


@pytest.mark.parametrize("what", ["rows", "length", "document"])
def test_places_beyond_the_table_are_refused(model, tmp_path, what):
    release = publish(model.path, tmp_path / "placed", layout="placed")
    folder = release.path / "lookup" / "id_maps"
    places = PerfectHash.build(PINS)
    for path in folder.iterdir():
        path.chmod(0o644)
    if what == "rows":
        save_places(places._replace(moved=places.moved + np.int32(len(PINS))), folder, "pin")
    elif what == "length":
        save_places(places._replace(pilots=places.pilots[1:]), folder, "pin")
    else:
        shutil.copyfile(folder / "pin_hashed.json", folder / "pin.json")
    _mend(release.path, lambda _: None)
    with pytest.raises(ArtifactError, match="cannot be read as placed ids"):
        LookupHalf(Release.open(release.path))


def test_ids_that_the_places_do_not_know_are_unknown(model, tmp_path):
    """A map of other ids gives no id another one's row."""
    release = publish(model.path, tmp_path / "placed", layout="placed")
    folder = release.path / "lookup" / "id_maps"
    for path in folder.iterdir():
        path.chmod(0o644)
    save_places(PerfectHash.build(PINS + 1), folder, "pin")
    _mend(release.path, lambda _: None)
    half = LookupHalf(Release.open(release.path))
    rows = half.id_maps["pin"].rows(PINS)
    known = rows != half.id_maps["pin"].oov_row
    assert np.array_equal(half.id_maps["pin"].known_ids(rows[known].astype(np.int64)), PINS[known])
    assert torch.from_numpy(known).float().mean() < 0.1
