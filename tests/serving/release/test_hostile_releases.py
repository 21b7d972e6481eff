"""Releases that somebody changed, so that every checksum fits: opened, or refused in our words within a second."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multifacet.artifacts import ArtifactError
from multifacet.artifacts.manifest import canonical_bytes
from multifacet.serving import LookupConfig, Release
from multifacet.serving.lookup.mapped_release import LookupHalf
from multifacet.serving.release.upper import UpperModel, load_program

SECONDS = 1.0
EXAMPLES = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory(prefix="multifacet-hostile-") as name:
        yield Path(name)


@contextlib.contextmanager
def forged(release, folder, name=None, content=None, manifest=None):
    """A copy of a release with another file, or another manifest, which fits it."""
    path = folder / "forged"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(release.path, path)
    found = json.loads((path / "manifest.json").read_bytes()) if manifest is None else manifest
    if name is not None:
        (path / name).chmod(0o644)
        (path / name).write_bytes(content)
        found["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (path / "manifest.json").chmod(0o644)
    (path / "manifest.json").write_bytes(canonical_bytes(found))
    yield path


def open_halves(path):
    """Open what a lookup server and a ranker open; whether it was refused."""
    began = time.monotonic()
    try:
        release = Release.open(path, half="lookup")
        half = LookupHalf(release, max_ids=1000)
        for table in half.release.tables:  # what opened answers, whatever it is asked
            strings = half.id_types[table.feature] == "string"
            half.release.id_map(table.id_map).rows(["a", ""] if strings else np.array([-1, 7, 2**62]))
        ranker = Release.open(path, half="ranker")
        program = load_program(ranker.upper_path)
        manifest = ranker.manifest
        UpperModel(program, num_dense=len(manifest.dense_features), num_slots=manifest.num_slots, dim=manifest.dim)
    except ArtifactError as error:
        assert len(str(error)) > 20  # noqa: PT017
        return True
    finally:
        assert time.monotonic() - began < SECONDS + 2 * _load()
    return False


def _load():
    """How much longer things take on a busy machine."""
    return max(0.0, os.getloadavg()[0] / (os.cpu_count() or 1) - 1)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


def _places(value, place=()):
    yield place
    if isinstance(value, dict):
        for key in value:
            yield from _places(value[key], (*place, key))
    elif isinstance(value, list):
        for key in range(len(value)):
            yield from _places(value[key], (*place, key))


@given(data=st.data())
@EXAMPLES
def test_a_manifest_with_another_value_anywhere(release, folder, data):
    manifest = json.loads((release.path / "manifest.json").read_bytes())
    places = [place for place in _places(manifest) if place]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places))
        within = manifest
        with contextlib.suppress(KeyError, IndexError, TypeError):  # an earlier change took the place away
            for key in place[:-1]:
                within = within[key]
            if data.draw(st.booleans()) and isinstance(within, dict):
                within.pop(place[-1], None)
            else:
                within[place[-1]] = data.draw(JSON | st.sampled_from([copy.deepcopy(value) for value in manifest.values()]))
    with forged(release, folder, manifest=manifest) as path:
        open_halves(path)


@given(data=st.data())
@EXAMPLES
@pytest.mark.parametrize(
    "name", ["lookup/id_maps/pin.safetensors", "lookup/id_maps/advertiser.safetensors", "lookup/id_maps/pin.json"]
)
def test_an_id_map_with_other_bytes(release, folder, name, data):
    content = bytearray((release.path / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert", "word"])):
            case "set":
                content[place] = data.draw(st.integers(0, 255))
            case "cut":
                del content[place : place + data.draw(st.integers(1, 16))]
            case "insert":
                content[place:place] = data.draw(st.binary(min_size=1, max_size=16))
            case _:
                content[place : place + 4] = data.draw(
                    st.sampled_from([b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\xff" * 4, b"9999"])
                )
        if not content:
            content = bytearray(b"x")
    with forged(release, folder, name, bytes(content)) as path:
        open_halves(path)


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_program_with_other_bytes(release, folder, data):
    """Members are changed, and packed again: a changed byte of the archive would only break its checksum."""
    marker = folder / "ran"
    with zipfile.ZipFile(release.upper_path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = data.draw(st.sampled_from(sorted(members)))
    content = bytearray(members[name])
    for _ in range(data.draw(st.integers(1, 3))):
        if not content:
            break
        place = data.draw(st.integers(0, len(content) - 1))
        code = f"__import__('pathlib').Path({str(marker)!r}).touch()".encode()
        replacement = data.draw(
            st.sampled_from([b"\xff", b"0", b'"', b"}", b"-1", code, b"9" * 40, b"(" * 500]) | st.binary(max_size=8)
        )
        content[place : place + data.draw(st.integers(0, 8))] = replacement
    members[name] = bytes(content)
    packed = folder / "program.pt2"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for member, inside in members.items():
            archive.writestr(member, inside)
    with forged(release, folder, "ranker/upper.pt2", packed.read_bytes()) as path:
        open_halves(path)
    assert not marker.exists()


def _fifo(path):
    path.unlink()
    os.mkfifo(path)


def _device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def _folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", ["manifest.json", "lookup/pin_kge.rows", "lookup/id_maps/pin.safetensors", "ranker/upper.pt2"])
@pytest.mark.parametrize("make", [_fifo, _device, _folder])
def test_a_file_that_is_none(release, folder, name, make):
    with forged(release, folder) as path:
        make(path / name)
        assert open_halves(path)


def test_a_server_that_is_started_on_a_pipe_ends_with_a_reason(release, tmp_path):
    shutil.copytree(release.path, tmp_path / "release")
    _fifo(tmp_path / "release" / "manifest.json")
    config = LookupConfig(releases=(tmp_path / "release",)).model_dump_json()
    ended = subprocess.run(
        [sys.executable, "-m", "serving", "lookup", "--config-json", config],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "plain file" in ended.stderr
    assert "Traceback" not in ended.stderr


_CUT = """
import os, sys, threading
from multifacet.serving import LookupConfig, connect_lookup, serve_lookup
from multifacet.serving.release import mapped_files
import numpy as np

mapped_files.MappedFiles.is_whole = lambda self: True  # the cut comes between the look and the copy
address = "unix:" + sys.argv[2]

def cut_and_ask():
    import time
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.05)
    with connect_lookup("framed:" + address, timeout_s=20) as client:
        version = client.describe().versions[0].version
        os.truncate(sys.argv[1] + "/lookup/pin_kge.rows", 0)
        client.lookup(version, {"pin": 7 * np.arange(300) - 500})

threading.Thread(target=cut_and_ask, daemon=True).start()
serve_lookup(LookupConfig(releases=(sys.argv[1],), framed_listen=address, populate=False))
"""


def test_a_cut_between_the_look_and_the_copy_ends_the_process_with_a_line(release, tmp_path):
    shutil.copytree(release.path, tmp_path / "release")
    (tmp_path / "release" / "lookup" / "pin_kge.rows").chmod(0o644)
    ended = subprocess.run(
        [sys.executable, "-c", _CUT, str(tmp_path / "release"), str(tmp_path / "f")],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == -7  # SIGBUS
    assert "Fatal Python error: Bus error" in ended.stderr
