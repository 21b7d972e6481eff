"""How a world comes to disk: reproducibly, whole or not at all, in bounded memory."""

from __future__ import annotations

import fcntl
import gc
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from multifacet.graphdb import GraphError
from multifacet.graphdb.world import World, WorldConfig

from .conftest import SMALL


def _assert_same(left: Path, right: Path) -> None:
    files = {path.relative_to(left) for path in left.rglob("*") if path.is_file()}
    assert files == {path.relative_to(right) for path in right.rglob("*") if path.is_file()}
    assert len(files) > 30
    for name in files:
        if name.suffix == ".parquet":
            assert pq.read_table(left / name).equals(pq.read_table(right / name)), name
        elif name.suffix == ".safetensors":
            ours, theirs = load_file(left / name), load_file(right / name)
            assert ours.keys() == theirs.keys()
            for key in ours:
                np.testing.assert_array_equal(ours[key], theirs[key], err_msg=f"{name} {key}")


@pytest.mark.slow
@pytest.mark.parametrize(("num_threads", "chunk_size"), [(1, 997), (3, 4096)])
def test_neither_threads_nor_chunks_change_the_world(small: World, tmp_path: Path, num_threads: int, chunk_size: int) -> None:
    other = World.generate(SMALL, tmp_path / "other", num_threads=num_threads, chunk_size=chunk_size)
    _assert_same(small.folder, other.folder)


@pytest.mark.slow
def test_another_seed_gives_another_world(small: World, tmp_path: Path) -> None:
    other = World.generate(SMALL.model_copy(update={"seed": 4}), tmp_path / "other")
    for relation in ("clicks", "converts", "made_by", "in"):
        ours, theirs = (pq.read_table(world.edge_files(relation)) for world in (small, other))
        assert not ours["dst"].equals(theirs["dst"])
    assert not np.array_equal(small.interests(0)[:10], other.interests(0)[:10])


def test_an_interrupted_run_is_taken_up_where_it_ended(small: World, tmp_path: Path) -> None:
    def interrupt(_: str, share: float) -> None:
        if share >= 0.5:
            raise KeyboardInterrupt

    folder = tmp_path / "world"
    with pytest.raises(KeyboardInterrupt):
        World.generate(SMALL, folder, progress=interrupt)
    assert not folder.exists()
    (work,) = tmp_path.iterdir()
    finished = work / "edges" / "clicks" / "month-001.parquet"
    inode = finished.stat().st_ino
    (work / "edges" / "clicks" / ".month-002.parquet.unfinished-1").write_bytes(b"cut off")

    shares: list[float] = []
    World.generate(SMALL, folder, progress=lambda _, share: shares.append(share))
    assert shares == [0.25, 0.5, 0.75, 1.0]
    assert (folder / "edges" / "clicks" / "month-001.parquet").stat().st_ino == inode
    assert list(tmp_path.iterdir()) == [folder]
    _assert_same(small.folder, folder)


def test_the_same_settings_open_what_is_there_and_others_are_refused(small: World) -> None:
    before = (small.folder / "world.json").stat().st_mtime_ns
    again = World.generate(SMALL, small.folder)
    assert again.config == SMALL
    assert (small.folder / "world.json").stat().st_mtime_ns == before
    with pytest.raises(GraphError, match=r"other settings \(days, noise_share\)"):
        World.generate(SMALL.model_copy(update={"noise_share": 0.5, "days": 28}), small.folder)


def test_two_processes_do_not_generate_the_same_world_at_once(tmp_path: Path) -> None:
    work = tmp_path / f".world.unfinished-{SMALL.fingerprint[:16]}"
    work.mkdir()
    with (work / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(GraphError, match="another process is generating"):
            World.generate(SMALL, tmp_path / "world")


def test_damage_is_found_when_a_world_is_opened(tmp_path: Path) -> None:
    config = WorldConfig(num_users=5, num_pins=5, num_edges=50, days=10, num_visits=3)
    folder = World.generate(config, tmp_path / "world").folder
    file = folder / "edges" / "clicks" / "month-000.parquet"
    os.truncate(file, 10)
    with pytest.raises(GraphError, match=r"month-000.parquet has 10 bytes, not \d+"):
        World.open(folder)
    file.unlink()
    with pytest.raises(GraphError, match=r"month-000.parquet is missing"):
        World.open(folder)
    with pytest.raises(GraphError, match="holds no world"):
        World.open(tmp_path)


@pytest.mark.parametrize("arguments", [{"num_threads": 0}, {"chunk_size": 0}])
def test_senseless_arguments_are_refused(tmp_path: Path, arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        World.generate(SMALL, tmp_path / "world", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is reset through Linux's /proc")
def test_memory_does_not_grow_with_the_edges(tmp_path: Path) -> None:
    # Two million edges of one month are 100 MB as arrays and Arrow columns; a chunk is 1 MB.
    config = WorldConfig(num_users=1000, num_pins=1000, num_edges=2_000_000, days=28, num_visits=0, click_rate=0.5)
    World.generate(config.model_copy(update={"num_edges": 1000}), tmp_path / "warm")
    gc.collect()
    before = _memory_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    World.generate(config, tmp_path / "world", num_threads=2, chunk_size=1 << 15)
    assert _memory_bytes("VmHWM") - before < 40e6


def _memory_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
