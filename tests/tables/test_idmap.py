"""Id maps: the same rows everywhere, and a name for whatever is refused."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from multifacet.tables.hashing import seed_stream
from multifacet.tables.idcolumn import IdColumn
from multifacet.tables.idmap import IdMap

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(max_size=80)
MASK = (1 << 64) - 1


def mix64_oracle(value: int) -> int:
    """SplitMix64's finaliser in Python's integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def hashed_rows_oracle(keys: list[int], num_rows: int, num_hashes: int, seed: int) -> list[list[int]]:
    seeds = [mix64_oracle((seed + 0x9E3779B97F4A7C15 * (k + 1)) & MASK) for k in range(num_hashes)]
    return [[mix64_oracle((mix64_oracle(key & MASK) + s) & MASK) * num_rows >> 64 for s in seeds] for key in keys]


class TestExact:
    @given(st.lists(INT64, unique=True), st.lists(INT64))
    def test_known_ids_get_their_position_and_others_the_last_row(self, ids, others):
        rows = IdMap.exact(pa.array(ids, pa.int64())).rows(pa.array(ids + others, pa.int64()))
        expected = {id_: position for position, id_ in enumerate(ids)}
        assert rows.dtype == np.int32
        assert rows.tolist() == [expected.get(id_, len(ids)) for id_ in ids + others]

    @given(st.lists(TEXT, unique=True), st.lists(TEXT))
    def test_strings_too(self, ids, others):
        rows = IdMap.exact(pa.array(ids, pa.string())).rows(pa.array(ids + others, pa.string()))
        expected = {id_: position for position, id_ in enumerate(ids)}
        assert rows.tolist() == [expected.get(id_, len(ids)) for id_ in ids + others]

    def test_a_large_map_agrees_with_a_dictionary(self):
        rng = np.random.default_rng(0)
        ids = np.unique(rng.integers(-(2**63), 2**63 - 1, 200_000))
        rng.shuffle(ids)
        queries = np.concatenate([ids, rng.integers(-(2**63), 2**63 - 1, 100_000)])
        position = {int(id_): row for row, id_ in enumerate(ids)}
        id_map = IdMap.exact(ids)
        assert id_map.rows(queries).tolist() == [position.get(int(id_), len(ids)) for id_ in queries]
        assert (id_map.num_rows, id_map.oov_row) == (len(ids) + 1, len(ids))

    @given(ids=st.sets(INT64, max_size=60), others=st.lists(INT64, max_size=30), hashed=st.booleans())
    def test_find_gives_what_rows_gives(self, ids, others, hashed):
        id_map = IdMap.hashed(7, id_type="int64", seed=3) if hashed else IdMap.exact(np.array(sorted(ids), np.int64))
        asked = np.frombuffer(np.array([*others, *ids, *others], np.int64).tobytes(), np.int64)
        found = np.full(len(asked), -5, np.int32)
        num_missing = id_map.find(asked, found)
        expected = id_map.rows(asked)
        assert found.tolist() == expected.tolist()
        assert num_missing == (0 if hashed else np.count_nonzero(expected == id_map.oov_row))

    def test_find_sees_full_buckets(self):
        # Buckets hold one or two ids on average; among so many some hold more than are compared at once.
        ids = np.random.default_rng(0).integers(-(2**62), 2**62, 20_000)
        id_map = IdMap.exact(ids)
        lengths = np.diff(id_map._index.arrays["starts"])
        assert lengths.max() > 5
        asked = np.frombuffer(ids.tobytes(), np.int64)
        found = np.empty(len(ids), np.int32)
        assert id_map.find(asked, found) == 0
        assert found.tolist() == list(range(len(ids)))

    def test_find_refuses_strings_and_several_hashes(self):
        ids, rows = np.frombuffer(bytes(8), np.int64), np.empty(1, np.int32)
        with pytest.raises(TypeError, match="maps strings"):
            IdMap.exact(["a"]).find(ids, rows)
        with pytest.raises(ValueError, match="has 2"):
            IdMap.hashed(9, id_type="int64", num_hashes=2).find(ids, rows)

    def test_one_thread_and_many_give_the_same_rows(self):
        ids = pa.array([f"user-{number}" for number in range(100_000)])
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            alone = IdMap.exact(ids).rows(ids)
            torch.set_num_threads(4)
            together = IdMap.exact(ids).rows(ids)
        finally:
            torch.set_num_threads(threads)
        assert np.array_equal(alone, np.arange(100_000))
        assert np.array_equal(together, alone)

    def test_an_empty_map_sends_every_id_out_of_vocabulary(self):
        assert IdMap.exact([]).rows([5, 6]).tolist() == [0, 0]
        assert IdMap.exact(pa.array([], pa.string())).rows(["", "a"]).tolist() == [0, 0]

    def test_a_prefix_or_an_empty_string_is_another_id(self):
        id_map = IdMap.exact(["abc", "ab", ""])
        assert id_map.rows(["ab", "", "abc", "abcd", "a\0"]).tolist() == [1, 2, 0, 3, 3]

    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            ([7, 8, 9, 8], "The id 8 occurs twice, at positions 1 and 3"),
            (["a", "b", "a", "b"], "The id 'a' occurs twice, at positions 0 and 2"),
        ],
    )
    def test_duplicates_are_refused_by_name(self, ids, message):
        with pytest.raises(ValueError, match=message):
            IdMap.exact(ids)


class TestHashed:
    @given(st.lists(INT64, max_size=50), st.integers(1, 2**31 - 1), st.integers(1, 4), st.integers(-(2**70), 2**70))
    def test_int64_rows_follow_the_published_mixer(self, ids, num_rows, num_hashes, seed):
        id_map = IdMap.hashed(num_rows, id_type="int64", num_hashes=num_hashes, seed=seed)
        rows = id_map.rows(pa.array(ids, pa.int64())).reshape(len(ids), num_hashes)
        assert rows.dtype == np.int32
        assert rows.tolist() == hashed_rows_oracle(ids, num_rows, num_hashes, seed)

    @given(st.lists(TEXT, max_size=50), st.integers(1, 2**31 - 1), st.integers(1, 3))
    def test_string_rows_follow_xxh64(self, ids, num_rows, num_hashes):
        id_map = IdMap.hashed(num_rows, id_type="string", num_hashes=num_hashes, seed=3)
        rows = id_map.rows(pa.array(ids, pa.string())).reshape(len(ids), num_hashes)
        keys = [xxhash.xxh64_intdigest(id_.encode()) for id_ in ids]
        assert rows.tolist() == hashed_rows_oracle(keys, num_rows, num_hashes, 3)

    def test_the_seed_stream_is_splitmix64(self):
        # The first outputs for seed 1234567, as in Rosetta Code's "Pseudo-random numbers/Splitmix64".
        published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
        assert seed_stream(1234567, 4).tolist() == published

    def test_sequential_ids_spread_evenly(self):
        num_rows, num_ids = 1000, 200_000
        for seed in range(3):
            rows = IdMap.hashed(num_rows, id_type="int64", seed=seed).rows(np.arange(num_ids))
            expected = num_ids / num_rows
            chi_squared = float(((np.bincount(rows, minlength=num_rows) - expected) ** 2 / expected).sum())
            # Mean 999, standard deviation 45: five of them on either side.
            assert abs(chi_squared - (num_rows - 1)) < 5 * np.sqrt(2 * (num_rows - 1))

    def test_the_hash_functions_are_independent(self):
        rows = IdMap.hashed(1 << 20, id_type="int64", num_hashes=2).rows(np.arange(100_000))
        assert (rows[:, 0] == rows[:, 1]).mean() < 1e-4
        assert abs(np.corrcoef(rows[:, 0], rows[:, 1])[0, 1]) < 0.02
        other_seed = IdMap.hashed(1 << 20, id_type="int64", seed=1).rows(np.arange(100_000))
        assert abs(np.corrcoef(rows[:, 0], other_seed)[0, 1]) < 0.02

    def test_every_row_of_a_large_table_can_be_reached(self):
        # Ids drawn as float32 reach only 16.8M of a larger table's rows: the low bits must vary.
        rows = IdMap.hashed(2**31 - 1, id_type="int64").rows(np.arange(100_000))
        assert len(np.unique(rows % 1024)) == 1024
        assert rows.max() > 2**30

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_rows": 0}, "num_rows is 0; expected 1 to 2147483647"),
            ({"num_rows": 2**31}, "num_rows is 2147483648"),
            ({"num_rows": 5, "num_hashes": 0}, "num_hashes is 0"),
            ({"num_rows": 5, "id_type": "int32"}, "id_type is 'int32'; expected one of int64, string"),
        ],
    )
    def test_impossible_settings_are_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            IdMap.hashed(**{"id_type": "int64", **arguments})


class TestIdContainers:
    @pytest.mark.parametrize(
        "ids",
        [
            [30, 10, 20],
            (30, 10, 20),
            np.array([30, 10, 20]),
            np.array([30, 0, 10, 0, 20])[::2],
            torch.tensor([30, 10, 20]),
            pa.array([30, 10, 20]),
            pa.array([0, 30, 10, 20, 0])[1:4],
            pa.chunked_array([[30], [10, 20]]),
            pa.chunked_array([pa.array([], pa.int64()), pa.array([30, 10, 20])]),
        ],
        ids=lambda ids: type(ids).__name__,
    )
    def test_int64_ids_in_any_container(self, ids):
        assert IdColumn.of(ids).keys.tolist() == [30, 10, 20]
        assert IdMap.exact([20, 10, 30]).rows(ids).tolist() == [2, 1, 0]

    @pytest.mark.parametrize(
        "ids",
        [
            ["é", "", "abc"],
            np.array(["é", "", "abc"]),
            np.array(["é", "", "abc"], dtype=object),
            pa.array(["é", "", "abc"]),
            pa.array(["x", "é", "", "abc", "y"])[1:4],
            pa.array(["é", "", "abc"], pa.large_string()),
            pa.array(["é", "", "abc"], pa.string_view()),
            pa.chunked_array([["é"], ["", "abc"]]),
        ],
        ids=str,
    )
    def test_strings_in_any_container(self, ids):
        column = IdColumn.of(ids)
        assert [column[position] for position in range(3)] == ["é", "", "abc"]
        assert IdMap.exact(["abc", "é", ""]).rows(ids).tolist() == [1, 2, 0]

    @pytest.mark.parametrize(
        "ids",
        [
            [1.0, 2.0],
            [True, False],
            [b"a"],
            np.array([1, 2], dtype=np.int32),
            np.array([1, 2], dtype=np.uint64),
            torch.tensor([1, 2], dtype=torch.int32),
            pa.array([1, 2], pa.int32()),
            pa.array(["a"]).dictionary_encode(),
            [1, "a"],
            [2**63],
        ],
        ids=lambda ids: repr(ids) if isinstance(ids, list) else f"{type(ids).__name__} {getattr(ids, 'dtype', '') or ids.type}",
    )
    def test_other_types_are_refused(self, ids):
        with pytest.raises(TypeError, match="int64 or string"):
            IdMap.exact(ids)

    def test_ids_of_the_other_type_are_refused(self):
        with pytest.raises(TypeError, match="ids are string; expected int64"):
            IdMap.exact([1]).rows(["1"])
        with pytest.raises(TypeError, match="ids are int64; expected string"):
            IdMap.hashed(5, id_type="string").rows([1])
        assert IdMap.hashed(5, id_type="string").rows([]).tolist() == []

    @pytest.mark.parametrize("ids", [[1, None, None], ["a", None, None], pa.array([0, 1, None, None])[1:]], ids=str)
    def test_nulls_are_refused_by_position(self, ids):
        for look_up in (IdMap.exact, IdMap.hashed(9, id_type=IdColumn.of(ids[:1]).id_type).rows):
            with pytest.raises(ValueError, match="2 nulls, the first at position 1"):
                look_up(ids)

    def test_two_dimensions_are_refused(self):
        with pytest.raises(ValueError, match=r"shape \[2, 2\]"):
            IdMap.exact(np.zeros((2, 2), np.int64))


class TestSaving:
    @settings(max_examples=25, deadline=None)
    @given(st.one_of(st.lists(INT64, unique=True), st.lists(TEXT, unique=True, min_size=1)))
    def test_a_loaded_exact_map_gives_the_same_rows(self, tmp_path_factory, ids):
        directory = tmp_path_factory.mktemp("map")
        saved = IdMap.exact(ids)
        saved.save(directory, "ids")
        loaded = IdMap.load(directory, "ids")
        assert (loaded.num_rows, loaded.oov_row, loaded.id_type) == (saved.num_rows, saved.oov_row, saved.id_type)
        others = [12345] if saved.id_type == "int64" else ["something else"]
        assert loaded.rows(ids + others).tolist() == saved.rows(ids + others).tolist()

    def test_a_loaded_hashed_map_gives_the_same_rows(self, tmp_path):
        saved = IdMap.hashed(1000, id_type="string", num_hashes=3, seed=11)
        saved.save(tmp_path, "pins")
        loaded = IdMap.load(tmp_path, "pins")
        assert loaded.oov_row is None
        assert np.array_equal(loaded.rows(["a", "b"]), saved.rows(["a", "b"]))
        assert repr(loaded) == "IdMap(hashed, id_type=string, num_rows=1000, num_hashes=3)"

    @pytest.mark.parametrize("make", [lambda: IdMap.exact(["b", "a"]), lambda: IdMap.hashed(9, id_type="int64")])
    def test_equal_maps_are_equal_bytes_without_pickle(self, tmp_path, make):
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            make().save(tmp_path / name, "ids")
        files = sorted(path.name for path in (tmp_path / "one").iterdir())
        assert files in (["ids.json"], ["ids.json", "ids.safetensors"])
        for file in files:
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()

    def test_another_process_finds_the_same_rows(self, tmp_path):
        maps = {
            "exact": IdMap.exact(["x", "y", "z"]),
            "hashed": IdMap.hashed(450_000_000, id_type="string", num_hashes=2, seed=7),
        }
        for name, id_map in maps.items():
            id_map.save(tmp_path, name)
        script = (
            "import json, sys; from multifacet.tables import IdMap;"
            "print(json.dumps({name: IdMap.load(sys.argv[1], name).rows(['z', 'q', 'x']).tolist() for name in sys.argv[2:]}))"
        )
        output = subprocess.run(
            [sys.executable, "-c", script, tmp_path, *maps], capture_output=True, check=True, timeout=120
        ).stdout
        assert json.loads(output) == {name: id_map.rows(["z", "q", "x"]).tolist() for name, id_map in maps.items()}

    def test_a_loaded_map_reads_from_the_file_and_not_from_a_copy(self, tmp_path):
        IdMap.exact(np.arange(1_000_000)).save(tmp_path, "ids")
        before = anonymous_bytes()
        loaded = IdMap.load(tmp_path, "ids")
        assert loaded.rows(np.arange(0, 1_000_000, 1000)).tolist() == list(range(0, 1_000_000, 1000))
        assert anonymous_bytes() - before < 4_000_000  # the arrays have 14 million bytes

    @pytest.mark.parametrize("name", ["", "../ids", "a/b", ".hidden", "a b"])
    def test_names_that_lead_elsewhere_are_refused(self, tmp_path, name):
        with pytest.raises(ValueError, match="is refused"):
            IdMap.exact([1]).save(tmp_path, name)
        with pytest.raises(ValueError, match="is refused"):
            IdMap.load(tmp_path, name)

    @pytest.mark.parametrize(
        "change",
        [{"version": 2}, {"format": "other"}, {"kind": "fuzzy"}, {"num_rows": "4"}, {"extra": 1}, {"id_type": "int32"}],
    )
    def test_a_document_of_another_kind_is_refused(self, tmp_path, change):
        IdMap.exact([1, 2, 3]).save(tmp_path, "ids")
        document = json.loads((tmp_path / "ids.json").read_text())
        (tmp_path / "ids.json").write_text(json.dumps(document | change))
        with pytest.raises(ValueError, match=r"ids\.json is not an id map that this version"):
            IdMap.load(tmp_path, "ids")

    def test_an_index_that_does_not_fit_is_refused(self, tmp_path):
        IdMap.exact([1, 2, 3]).save(tmp_path, "ids")
        IdMap.exact([1, 2]).save(tmp_path, "fewer")
        IdMap.exact(["1", "2", "3"]).save(tmp_path, "strings")
        good = (tmp_path / "ids.safetensors").read_bytes()
        for content, message in [
            ((tmp_path / "fewer.safetensors").read_bytes(), "4 rows, its index 2 ids"),
            ((tmp_path / "strings.safetensors").read_bytes(), "an index of int64 ids holds"),
            (good[:-1], "not a safetensors file"),
            (b"", "not a safetensors file"),
        ]:
            (tmp_path / "ids.safetensors").write_bytes(content)
            with pytest.raises(ValueError, match=message):
                IdMap.load(tmp_path, "ids")


class TestCollisionReport:
    def test_an_exact_map_has_no_collisions_among_known_ids(self):
        report = IdMap.exact([5, 6, 7]).collision_report([7, 5, 5, 6])
        assert dataclasses.asdict(report) == {
            "num_ids": 3,
            "num_rows": 4,
            "num_hashes": 1,
            "rows_used": 3,
            "colliding_ids": 0,
            "collision_rate": 0.0,
            "expected_collision_rate": 0.0,
            "max_ids_per_row": 1,
            "oov_ids": 0,
        }

    def test_unknown_ids_share_the_out_of_vocabulary_row(self):
        report = IdMap.exact(["a"]).collision_report(["a", "b", "c"])
        assert (report.oov_ids, report.colliding_ids, report.max_ids_per_row) == (2, 2, 2)

    @given(st.lists(INT64, max_size=60), st.integers(1, 20), st.integers(1, 3))
    def test_a_hashed_map_agrees_with_a_count_by_hand(self, ids, num_rows, num_hashes):
        id_map = IdMap.hashed(num_rows, id_type="int64", num_hashes=num_hashes)
        places = {id_: tuple(row) for id_, row in zip(ids, hashed_rows_oracle(ids, num_rows, num_hashes, 0), strict=True)}
        report = id_map.collision_report(pa.array(ids, pa.int64()))
        taken = list(places.values())
        readers = [sum(row in place for place in taken) for row in range(num_rows)]
        assert report.num_ids == len(places)
        assert report.colliding_ids == sum(taken.count(place) > 1 for place in taken)
        assert report.rows_used == sum(count > 0 for count in readers)
        assert report.max_ids_per_row == max(readers)

    @pytest.mark.parametrize(("num_rows", "num_hashes"), [(30_000, 1), (150, 2), (1, 1)])
    def test_the_rate_is_what_a_uniform_hash_expects(self, num_rows, num_hashes):
        id_map = IdMap.hashed(num_rows, id_type="int64", num_hashes=num_hashes)
        report = id_map.collision_report(np.arange(20_000))
        assert report.collision_rate == pytest.approx(report.expected_collision_rate, abs=0.02)
        assert id_map.collision_report([]).expected_collision_rate == 0.0


def anonymous_bytes() -> int:
    """Memory of this process that is not backed by a file."""
    with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))
