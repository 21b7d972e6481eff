"""Triples from files and views: vocabularies, splits, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multifacet.graphdb import GraphView
from multifacet.kge import KgeValidation, TripleSet, TripleSplit


def write(path: Path, *lines: str) -> Path:
    text = "".join(f"{line}\n" for line in lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def names(triples: TripleSet) -> list[tuple[str, str, str]]:
    ids = triples.ids["entity"].to_pylist()
    return [
        (ids[head], triples.relation_names[relation], ids[tail])
        for head, relation, tail in zip(triples.heads, triples.relations, triples.tails, strict=True)
    ]


def make(triples: list[tuple[int, int, int]], times: list[int] | None = None) -> TripleSet:
    columns = np.array(triples, dtype=np.int32).reshape(-1, 3)
    return TripleSet(
        heads=columns[:, 0],
        relations=columns[:, 1],
        tails=columns[:, 2],
        relation_names=("a", "b"),
        ends={"a": ("user", "pin"), "b": ("pin", "pin")},
        num_nodes={"user": 4, "pin": 4},
        times=None if times is None else np.array(times, dtype=np.int64),
    )


def test_files_share_one_vocabulary_and_may_be_compressed(tmp_path: Path) -> None:
    split = TripleSplit.from_files(
        train=write(tmp_path / "train.txt.gz", "x\tr\ty", 'y\ts\t"z'),
        valid=write(tmp_path / "valid.txt", "x\ts\ty"),
        test=write(tmp_path / "test.txt", "new\tr\tx"),
    )
    assert names(split.train) == [("x", "r", "y"), ("y", "s", '"z')]
    assert names(split.valid) == [("x", "s", "y")]
    assert names(split.test) == [("new", "r", "x")]
    assert split.train.num_nodes == split.test.num_nodes == {"entity": 4}


def test_a_file_that_is_not_given_is_an_empty_set(tmp_path: Path) -> None:
    split = TripleSplit.from_files(train=write(tmp_path / "t", "x\tr\ty"), test=write(tmp_path / "u", "y\tr\tx"))
    assert (len(split.train), len(split.valid), len(split.test)) == (1, 0, 1)


@pytest.mark.parametrize("line", ["x\tr", "x\tr\ty\tz", "", "x r y"])
def test_a_malformed_line_is_refused_by_file_and_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(ValueError, match=r"train\.txt, line 2"):
        TripleSplit.from_files(train=write(tmp_path / "train.txt", "x\tr\ty", line, "y\tr\tx"))


def test_an_empty_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.txt, line 2: the tail is empty"):
        TripleSplit.from_files(train=write(tmp_path / "train.txt", "x\tr\ty", "x\tr\t"))


def test_a_duplicate_is_refused_by_both_places(tmp_path: Path) -> None:
    train = write(tmp_path / "train.txt", "x\tr\ty", "y\tr\tx")
    with pytest.raises(ValueError, match=r"valid\.txt, line 2: the triple stands already in .*train\.txt, line 1"):
        TripleSplit.from_files(train=train, valid=write(tmp_path / "valid.txt", "x\tr\tx", "x\tr\ty"))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.txt"):
        TripleSplit.from_files(train=write(tmp_path / "train.txt"))


def test_a_view_gives_every_edge_by_name(view: GraphView) -> None:
    triples = TripleSet.from_view(view, ids=True)
    assert {name: len(edges) for name, edges in triples.edges().items()} == dict(view.num_edges)
    clicks = view.edges("clicks")
    assert np.array_equal(triples.edges()["clicks"].heads, clicks.src.numpy())
    assert triples.ids["advertiser"].to_pylist() == view.node_ids("advertiser").to_pylist()
    assert triples.times is not None
    made_by = triples.relation_names.index("made_by")
    assert (triples.times[triples.relations == made_by] == TripleSet.NO_TIME).all()
    assert TripleSet.from_view(view, relations=["alike"]).relation_names == ("alike",)
    with pytest.raises(ValueError, match="likes"):
        TripleSet.from_view(view, relations=["likes"])


def test_numbers_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tails\[1\] is 4"):
        make([(0, 0, 1), (0, 1, 4)])
    with pytest.raises(ValueError, match="relations"):
        make([(0, 2, 1)])


triple_lists = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 3)), max_size=40)


@given(triples=triple_lists, quota=st.integers(0, 20), fraction=st.floats(0.1, 0.9), seed=st.integers(0, 5))
def test_no_held_out_triple_is_trained_on(triples: list[tuple[int, int, int]], quota: int, fraction: float, seed: int) -> None:
    validation = KgeValidation(num_edges=quota, max_fraction=fraction)
    split = make(triples).hold_out(validation, np.random.default_rng(seed))
    train, valid = (
        list(zip(part.heads.tolist(), part.relations.tolist(), part.tails.tolist(), strict=True))
        for part in (split.train, split.valid)
    )
    assert len(set(valid)) == len(valid) <= quota
    assert not set(valid) & set(train)
    # Of a held-out pair nothing is left, by any relation and in either direction.
    ends = [split.train.ends[name] for name in split.train.relation_names]

    def pair(triple: tuple[int, int, int]) -> frozenset[tuple[str, int]]:
        src, dst = ends[triple[1]]
        return frozenset({(src, triple[0]), (dst, triple[2])})

    held = {pair(triple) for triple in valid}
    assert [triple for triple in triples if pair(triple) not in held] == train


def test_the_latest_are_chosen_by_their_first_time() -> None:
    # (0, a, 0) is seen again at 9, but was there at 1 already.
    triples = make([(0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 2), (0, 0, 3)], times=[1, 5, 9, 4, 2])
    split = triples.hold_out(KgeValidation(num_edges=4, choose="latest", max_fraction=0.5), np.random.default_rng(0))
    assert sorted(split.valid.tails.tolist()) == [1, 2]


@given(triples=triple_lists)
def test_distinct_keeps_first_positions(triples: list[tuple[int, int, int]]) -> None:
    distinct = make(triples).distinct()
    assert list(zip(distinct.heads.tolist(), distinct.relations.tolist(), distinct.tails.tolist(), strict=True)) == list(
        dict.fromkeys(triples)
    )
