"""A delta serves what the whole release of the same model serves, row for row, and moves only what changed."""

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
from multifacet.serving import (
    DeltaWriter,
    LookupConfig,
    LookupServer,
    RankerClient,
    RankerConfig,
    RankerServer,
    Release,
    ServingError,
    VersionNotLoadedError,
    connect_lookup,
    fold,
    publish,
    publish_delta,
    read_tables,
)
from multifacet.serving.delta.part import parts_of
from multifacet.serving.delta.writer import MAX_DEPTH
from multifacet.serving.load.workload import _sources
from multifacet.serving.lookup.rows import SendBuffer
from multifacet.tables import decode, encode
from multifacet.tables.ids import IdMap

PIN_STEP, FIRST_PIN = 7, -500
NEW_PINS = [10_001, 10_002, 10_003]


def _pins(places):
    return [PIN_STEP * place + FIRST_PIN for place in places]


def _halves(path, num_shards=1):
    return [part.half for part in parts_of(path)[1]]


def _assert_same_rows(delta_path, whole_path, ids):
    """Every table's rows and unknown ids, of each part."""
    for over, whole in zip(_halves(delta_path), _halves(whole_path), strict=True):
        sends = SendBuffer(), SendBuffer()
        fetched = [half.fetch(ids, send) for half, send in zip((over, whole), sends, strict=True)]
        for both in zip(*fetched, strict=True):
            mine, theirs = both
            assert (mine.table.name, mine.num_rows) == (theirs.table.name, theirs.num_rows)
            assert mine.num_unknown_ids == theirs.num_unknown_ids
            rows = [
                send.read(part.start, part.start + part.num_bytes) for part, send in zip((mine, theirs), sends, strict=True)
            ]
            assert bytes(rows[0]) == bytes(rows[1]), mine.table.name


def _everything(*more_pins):
    pins = np.array([*_pins(range(-3, 310)), *NEW_PINS, *more_pins], np.int64)
    brands = [*(f"brand-{n}é" for n in range(14)), "", "nobody"]
    return {"pin": pins, "user": np.arange(990, 1050), "advertiser": np.array(brands, np.object_)}


@pytest.fixture(scope="module")
def day(model, release, change_model, tmp_path_factory):
    """Releases over the session's one, and the models they are of: one delta over it, and one over that."""
    folder = tmp_path_factory.mktemp("days")
    shutil.copytree(release.path, folder / "base")
    first = change_model(model, folder / "m1", seed=11, added=NEW_PINS[:2], dropped=_pins([5, 299]))
    second = change_model(first, folder / "m2", seed=12, added=[NEW_PINS[2], *_pins([5])], dropped=[NEW_PINS[0], *_pins([7])])
    publish_delta(first.path, folder / "d1", folder / "base")
    publish_delta(second.path, folder / "d2", folder / "d1")
    return folder


@pytest.mark.parametrize("number", [1, 2])
def test_a_delta_serves_what_the_whole_release_serves(day, number, tmp_path):
    whole = publish(day / f"m{number}", tmp_path / "whole")
    delta = Release.open(day / f"d{number}")
    assert delta.manifest.base.depth == number
    assert delta.version != whole.version
    assert delta.lookup_bytes < whole.lookup_bytes / 2
    _assert_same_rows(delta.path, whole.path, _everything())


def test_folding_gives_the_same_rows_and_forgets_dropped_ids(day, tmp_path):
    folded = fold(day / "d2", tmp_path / "folded")
    assert (folded.base, folded.manifest.parents) == ("", Release.open(day / "d2").manifest.parents)
    _assert_same_rows(folded.path, day / "d2", _everything())
    ids = folded.id_map("pin").known_ids(np.arange(folded.id_map("pin").num_rows - 1))
    assert not np.isin([NEW_PINS[0], *_pins([7])], ids).any()
    assert np.isin(_pins([5]), ids).all()


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_days_one_after_the_other_are_one_release(model, release, change_model, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    shutil.copytree(release.path, folder / "r0")
    current, known = model, set(_pins(range(300)))
    for number in range(1, data.draw(st.integers(1, 3)) + 1):
        added = data.draw(st.sets(st.sampled_from([*NEW_PINS, *_pins(range(8))]))) - known
        dropped = data.draw(st.sets(st.sampled_from(sorted(known)), max_size=5))
        share = data.draw(st.sampled_from([0.0, 0.02, 0.15]))
        known = known - dropped | added
        current = change_model(
            current, folder / f"m{number}", seed=number, share=share, added=sorted(added), dropped=sorted(dropped)
        )
        publish_delta(current.path, folder / f"r{number}", folder / f"r{number - 1}")
        publish(current.path, folder / f"w{number}")
        _assert_same_rows(folder / f"r{number}", folder / f"w{number}", _everything())


@pytest.mark.parametrize("shards", [2, 3])
def test_each_shard_has_its_own_changes(model, change_model, tmp_path, shards):
    publish(model.path, tmp_path / "base", shards=shards)
    changed = change_model(model, tmp_path / "m", seed=5, added=NEW_PINS, dropped=_pins([1, 2, 3]))
    delta = publish_delta(changed.path, tmp_path / "delta", tmp_path / "base")
    assert delta.num_shards == shards
    publish(changed.path, tmp_path / "whole", shards=shards)
    _assert_same_rows(delta.path, tmp_path / "whole", _everything())
    _assert_same_rows(fold(delta.path, tmp_path / "folded").path, delta.path, _everything())


def test_a_hashed_table_in_shards_changes_by_its_rows(tmp_path, change_model, model):
    id_maps = model.id_maps | {"pin_hashed": IdMap.hashed(64, id_type="int64", seed=0)}
    other = type(model)(model.path, model.upper, model.weights, id_maps)
    before = change_model(other, tmp_path / "m0", seed=3, share=0.0)
    after = change_model(before, tmp_path / "m1", seed=4)
    publish(before.path, tmp_path / "base", shards=2)
    delta = publish_delta(after.path, tmp_path / "delta", tmp_path / "base")
    assert any(len(table.delta.changed) == 2 for table in delta.tables if table.name == "pin_contrastive")
    publish(after.path, tmp_path / "whole", shards=2)
    _assert_same_rows(delta.path, tmp_path / "whole", _everything())
    _assert_same_rows(fold(delta.path, tmp_path / "folded").path, delta.path, _everything())


def test_a_day_on_which_nothing_changed_is_a_release(model, release, change_model, tmp_path):
    shutil.copytree(release.path, tmp_path / "base")
    same = change_model(model, tmp_path / "m", seed=1, share=0.0)
    delta = publish_delta(same.path, tmp_path / "delta", tmp_path / "base")
    assert delta.lookup_bytes == 0
    _assert_same_rows(delta.path, tmp_path / "base", _everything())


def test_rows_within_the_tolerance_stay_as_they_are_served(model, release, tmp_path, change_model):
    shutil.copytree(release.path, tmp_path / "base")
    moved = change_model(model, tmp_path / "m", seed=2, share=1.0)
    near = {name: table + 0.02 * (moved.weights[name] - table) for name, table in model.weights.items()}
    nearer = change_model(type(model)(model.path, model.upper, near, model.id_maps), tmp_path / "near", seed=2, share=0.0)
    sizes = []
    for tolerance in (0.01, 0.1, 1.0):
        delta = publish_delta(nearer.path, tmp_path / f"delta-{tolerance}", tmp_path / "base", tolerance=tolerance)
        sizes.append(delta.lookup_bytes)
        if not delta.base:
            continue
        for half, base in zip(_halves(delta.path), _halves(tmp_path / "base"), strict=True):
            rows = np.arange(300, dtype=np.int32)
            told = []
            for held in (half, base):
                send = SendBuffer()
                held.rows["pin_kge"].gather(rows, send.take(12 * 304), 0)
                told.append(decode(_tensor(send.read(0, 12 * 300)), 16, "int4"))
            wanted = decode(encode(near["pin_kge"][:300], "int4"), 16, "int4")
            assert ((told[0] - wanted).norm(dim=1) <= tolerance * told[1].norm(dim=1) + 1e-6).all()
    assert sizes[0] > sizes[1] > sizes[2] == 0


def _tensor(rows):
    return torch.from_numpy(np.frombuffer(bytes(rows), np.uint8).reshape(300, 12).copy())


def test_tables_that_turned_as_a_whole_are_published_whole(model, release, change_model, tmp_path, caplog):
    shutil.copytree(release.path, tmp_path / "base")
    turned = change_model(model, tmp_path / "m", seed=9, share=1.0)
    written = publish_delta(turned.path, tmp_path / "out", tmp_path / "base")
    assert written.base == ""
    assert "published whole" in caplog.text
    assert written.version == publish(turned.path, tmp_path / "whole").version


def test_a_chain_ends_in_a_whole_release(model, release, tmp_path):
    shutil.copytree(release.path, tmp_path / "r0")
    for number in range(1, MAX_DEPTH + 1):
        with DeltaWriter(tmp_path / f"r{number}", tmp_path / f"r{number - 1}", parents=("0" * 64,)) as writer:
            writer.change_vectors("pin_kge", _pins([number]), np.full((1, 12), number, np.uint8))
    with pytest.raises(ArtifactError, match="fold it"):
        DeltaWriter(tmp_path / "more", tmp_path / f"r{MAX_DEPTH}", parents=("0" * 64,))
    assert publish_delta(model.path, tmp_path / "next", tmp_path / f"r{MAX_DEPTH}").base == ""
    (half,) = _halves(fold(tmp_path / f"r{MAX_DEPTH}", tmp_path / "folded").path)
    send = SendBuffer()
    (kge, _) = half.fetch({"pin": np.array(_pins(range(1, MAX_DEPTH + 1)), np.int64)}, send)
    rows = np.frombuffer(send.read(kge.start, kge.start + kge.num_bytes), np.uint8).reshape(-1, 12)
    assert rows[:, 0].tolist() == list(range(1, MAX_DEPTH + 1))


def test_a_tracker_s_rows_make_a_delta(model, release, tmp_path):
    shutil.copytree(release.path, tmp_path / "base")
    vectors = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    rows = encode(torch.from_numpy(vectors), "int4")
    with DeltaWriter(tmp_path / "delta", tmp_path / "base", parents=("1" * 64,)) as writer:
        writer.change_ids("pin", added=NEW_PINS[:1])
        writer.change_rows("pin_kge", [300, 3, 301], rows[[0, 0, 1]])  # 300 is the row of unknown ids
        writer.change_rows("pin_kge", np.array([3]), rows[[2]])  # the last one counts
        writer.change_rows("pin_contrastive", [63], rows[[3]])
    (half,) = _halves(tmp_path / "delta")
    send = SendBuffer()
    (kge, _) = half.fetch({"pin": np.array([123_456, *_pins([3]), NEW_PINS[0]], np.int64)}, send)
    got = np.frombuffer(send.read(kge.start, kge.start + kge.num_bytes), np.uint8).reshape(3, 12)
    np.testing.assert_array_equal(got, rows[[0, 2, 1]].numpy())
    assert kge.num_unknown_ids == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w.change_rows("pin_kge", [301], np.zeros((1, 12), np.uint8)), "it has 301"),
        (lambda w: w.change_rows("pin_kge", [-1], np.zeros((1, 12), np.uint8)), "it has 301"),
        (lambda w: w.change_rows("pin_kge", [0.5], np.zeros((1, 12), np.uint8)), "expected integers"),
        (lambda w: w.change_rows("pin_kge", [0], np.zeros((1, 11), np.uint8)), r"expected uint8 \[1, 12\]"),
        (lambda w: w.change_rows("pin_kge", [0], np.zeros((1, 12), np.int8)), "expected uint8"),
        (lambda w: w.change_rows("pins", [0], np.zeros((1, 12), np.uint8)), "no table 'pins'"),
        (lambda w: w.change_vectors("pin_kge", [1], np.zeros((1, 12), np.uint8)), "is unknown"),
        (lambda w: w.change_ids("pin", added=_pins([3])), "knows it"),
        (lambda w: w.change_ids("pin", dropped=[1]), "does not know it"),
        (lambda w: w.change_ids("pin_hashed", added=[1]), "is hashed"),
        (lambda w: w.change_ids("pins", added=[1]), "no id map 'pins'"),
        (lambda w: w.change_ids("pin", added=[1]), "1 new ids, and rows of 0"),
        (lambda w: w.change_unknown("pin_contrastive", np.zeros((1, 12), np.uint8)), "no row of unknown ids"),
    ],
)
def test_what_does_not_fit_the_base_is_refused_and_nothing_is_written(release, tmp_path, spoil, message):
    with pytest.raises(ArtifactError, match=message), DeltaWriter(tmp_path / "d", release.path, parents=("0" * 64,)) as writer:
        spoil(writer)
    assert not (tmp_path / "d").exists()


def test_another_model_is_no_delta(model, release, tmp_path, change_model):
    id_maps = model.id_maps | {"pin_hashed": IdMap.hashed(32, id_type="int64")}
    weights = model.weights | {"pin_contrastive": model.weights["pin_contrastive"][:32]}
    other = change_model(type(model)(model.path, model.upper, weights, id_maps), tmp_path / "m", seed=1)
    with pytest.raises(ArtifactError, match="hashed to 32 rows"):
        publish_delta(other.path, tmp_path / "out", release.path)
    with pytest.raises(ValueError, match="tolerance is nan"):
        publish_delta(model.path, tmp_path / "out", release.path, tolerance=float("nan"))


def test_ids_that_are_hashed_by_another_seed_are_no_delta(model, release, tmp_path, change_model):
    """Rows of the same numbers would be other ids'."""
    shutil.copytree(release.path, tmp_path / "base")
    for number, ids in enumerate((IdMap.hashed(64, id_type="int64", seed=4), IdMap.exact(list(range(63))))):
        id_maps = model.id_maps | {"pin_hashed": ids}
        other = type(model)(model.path, model.upper, model.weights, id_maps)
        other = change_model(other, tmp_path / f"m{number}", seed=1, share=0.0)
        with pytest.raises(ArtifactError, match="publish it whole"):
            publish_delta(other.path, tmp_path / "out", tmp_path / "base")
        whole = publish_delta(other.path, tmp_path / f"out{number}", tmp_path / "base", other="whole")
        assert (whole.base, whole.version) == ("", publish(other.path, tmp_path / f"whole{number}").version)


def test_a_load_of_a_delta_asks_for_the_whole_release_s_ids(day):
    ids = _sources(Release.open(day / "d2", verify=False), 1.0)["pin"].draw(np.random.default_rng(0), 50)
    assert np.isin(ids, _pins(range(300))).all()


@pytest.mark.parametrize("shards", [1, 3])
def test_tables_are_read_as_they_are_served(model, change_model, tmp_path, shards):
    publish(model.path, tmp_path / "base", shards=shards)
    changed = change_model(model, tmp_path / "m", seed=6, added=NEW_PINS, dropped=_pins([1]))
    publish_delta(changed.path, tmp_path / "delta", tmp_path / "base")
    for table, ids, rows in read_tables(tmp_path / "delta"):
        expected = encode(changed.weights[table.name], "int4")
        if ids is not None:
            known = changed.id_maps[table.id_map]
            expected = expected[torch.from_numpy(np.append(known.rows(ids), known.num_rows - 1)).long()]
        assert torch.equal(rows, expected), table.name


# --- served -----------------------------------------------------------------------------------------------------------------


def test_a_server_holds_both_versions_and_answers_from_each(day, tmp_path):
    frames = f"unix:{tmp_path / 'frames'}"
    config = LookupConfig(releases=(day / "base",), listen="127.0.0.1:0", framed_listen=frames)
    ids = {"pin": _everything()["pin"], "user": _everything()["user"]}
    versions = [Release.open(day / name).version for name in ("base", "d1", "d2")]
    with LookupServer(config) as server:
        for name in ("d1", "d2"):
            server.load(day / name)
        wholes = {version: publish_once(day, name) for version, name in zip(versions[1:], ("m1", "m2"), strict=True)}
        with LookupServer(LookupConfig(releases=tuple(wholes.values()), listen="127.0.0.1:0")) as peer:
            for address in (server.address, server.framed_address):
                with connect_lookup(address) as client, connect_lookup(peer.address) as other:
                    for version, whole in wholes.items():
                        answer, expected = client.lookup(version, ids), other.lookup(Release.open(whole).version, ids)
                        assert answer.version == version
                        for name, table in answer.tables.items():
                            np.testing.assert_array_equal(table.rows, expected.tables[name].rows)
                            assert table.num_unknown_ids == expected.tables[name].num_unknown_ids
        server.retire(versions[0])
        server.retire(versions[1])
        with connect_lookup(server.framed_address) as client:
            assert client.lookup(versions[2], ids).version == versions[2]
            with pytest.raises(VersionNotLoadedError):
                client.lookup(versions[0], ids)


def publish_once(day, name):
    path = day / f"whole-{name}"
    if not path.exists():
        publish(day / name, path)
    return path


def test_a_server_that_starts_with_a_delta_finds_its_bases_beside_it(day, tmp_path):
    with LookupServer(LookupConfig(releases=(day / "d2",), listen="127.0.0.1:0")) as server:
        assert server.versions == (Release.open(day / "d2").version,)
    shutil.copytree(day / "d2", tmp_path / "d2")
    with pytest.raises(ArtifactError, match="not beside it"):
        LookupServer(LookupConfig(releases=(tmp_path / "d2",)))
    shutil.copytree(day / "d1", tmp_path / "d1")
    shutil.copytree(day / "base", tmp_path / "elsewhere")
    LookupServer(LookupConfig(releases=(tmp_path / "d2",)))
    rows = tmp_path / "elsewhere" / "lookup" / "pin_kge.rows"
    rows.chmod(0o644)
    content = bytearray(rows.read_bytes())
    content[5] ^= 1
    rows.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"pin_kge\.rows"):
        LookupServer(LookupConfig(releases=(tmp_path / "d2",)))


def test_the_base_s_files_are_the_delta_s_too(day, tmp_path):
    shutil.copytree(day / "base", tmp_path / "base")
    shutil.copytree(day / "d1", tmp_path / "d1")
    version = Release.open(tmp_path / "d1").version
    with LookupServer(LookupConfig(releases=(tmp_path / "base", tmp_path / "d1"), listen="127.0.0.1:0")) as server:
        shutil.rmtree(tmp_path / "d1")  # its own files were read whole
        with connect_lookup(server.address) as client:
            assert client.lookup(version, {"pin": [1]}).version == version
            rows = tmp_path / "base" / "lookup" / "user_kge.rows"
            rows.chmod(0o644)
            rows.write_bytes(rows.read_bytes()[:-1] + b"\x55")
            with pytest.raises(ServingError, match="changed under the server"):
                client.lookup(version, {"pin": [1]})


def test_the_memory_of_a_base_is_counted_once(day):
    base, deltas = Release.open(day / "base"), [Release.open(day / name) for name in ("d1", "d2")]
    budget = base.lookup_bytes + 4 * sum(delta.lookup_bytes for delta in deltas)
    assert budget < 2 * base.lookup_bytes + sum(delta.lookup_bytes for delta in deltas)
    config = LookupConfig(releases=(day / "base",), listen="127.0.0.1:0", memory_budget_bytes=budget)
    with LookupServer(config) as server:
        server.load(day / "d1")
        server.load(day / "d2")
        server.retire(base.version)  # its memory stays: the deltas lie over it
        with pytest.raises(ServingError, match="memory_budget_bytes"):
            server.load(publish_once(day, "m2"))


def test_a_score_over_a_delta_is_the_offline_score(day, change_model, model, request_of, all_ids, tmp_path):
    changed = change_model(model, tmp_path / "m", seed=21, added=NEW_PINS[:1], dropped=_pins([5]))
    delta = publish_delta(changed.path, day / "scored", day / "base")
    request_ids, candidates, dense = request_of(40, seed=3)
    candidates["pin"][:2] = [NEW_PINS[0], _pins([5])[0]]
    with (
        LookupServer(LookupConfig(releases=(delta.path,), listen="127.0.0.1:0")) as lookup,
        RankerServer(RankerConfig(releases=(delta.path,), listen="127.0.0.1:0", lookup=lookup.address)) as ranker,
        RankerClient(ranker.address) as client,
    ):
        answer = client.rank(request_ids, candidates, dense=dense)
    assert answer.version == delta.version
    expected = changed.score(all_ids(request_ids, candidates, 40), dense)
    np.testing.assert_allclose(np.stack([answer.ctr, answer.cvr], axis=1), expected, atol=1e-6)


# --- spoiled ----------------------------------------------------------------------------------------------------------------


def _spoiled(day, tmp_path, change):
    """The first delta beside its base, changed and signed anew."""
    shutil.copytree(day / "base", tmp_path / "base")
    shutil.copytree(day / "d1", tmp_path / "d1")
    for path in (tmp_path / "d1").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    manifest_path = tmp_path / "d1" / "manifest.json"
    manifest = json.loads(manifest_path.read_bytes())
    change(tmp_path / "d1", manifest)
    for name, entry in manifest["files"].items():
        content = (tmp_path / "d1" / name).read_bytes()
        entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    manifest_path.write_text(json.dumps(manifest, sort_keys=True, indent=2, ensure_ascii=False) + "\n")
    return tmp_path / "d1"


def _write_numbers(values):
    def change(path, manifest):
        count = manifest["tables"][2]["delta"]["changed"][0]
        (path / "lookup" / "pin_kge.changed").write_bytes(np.array((values * count)[:count], "<i4").tobytes())

    return change


def _set(path_to, value):
    def change(_path, manifest):
        *parents, last = path_to
        for key in parents:
            manifest = manifest[key]
        manifest[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_write_numbers([2**31 - 1]), id="rows beyond the base"),
        pytest.param(_write_numbers([-5]), id="rows before the base"),
        pytest.param(_write_numbers([9, 3]), id="rows out of order"),
        pytest.param(_set(["base", "version"], "a" * 64), id="another base"),
        pytest.param(_set(["base", "version"], "../../etc"), id="no version"),
        pytest.param(_set(["base", "depth"], 2), id="another depth"),
        pytest.param(_set(["base"], None), id="no base"),
        pytest.param(_set(["tables", 2, "delta", "added"], [0]), id="fewer added"),
        pytest.param(_set(["tables", 2, "delta", "changed"], [10**9]), id="more changed"),
        pytest.param(_set(["tables", 2, "delta"], None), id="a whole table"),
        pytest.param(_set(["tables", 2, "rows"], 10**6), id="more rows"),
        pytest.param(_set(["tables", 2, "feature"], "user"), id="another feature"),
        pytest.param(_set(["tables", 2, "row_bytes"], 24), id="longer rows"),
    ],
)
def test_a_spoiled_delta_is_refused(day, tmp_path, change):
    path = _spoiled(day, tmp_path, change)
    with pytest.raises(ArtifactError):
        LookupServer(LookupConfig(releases=(path,)))
