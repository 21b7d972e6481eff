"""An id map that leads beyond its table, or beyond its own arrays, is refused when its release is opened."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from multifacet.artifacts import ArtifactError
from multifacet.artifacts.manifest import canonical_bytes
from multifacet.serving import LookupConfig, LookupServer, Release
from multifacet.serving.lookup.mapped_release import LookupHalf
from multifacet.serving.release.index_check import check_index
from multifacet.tables import IdMap


def _forge(release, path, id_map, change):
    """A copy whose manifest fits the changed map: somebody wrote it so."""
    shutil.copytree(release.path, path)
    name = f"lookup/id_maps/{id_map}.safetensors"
    arrays = {key: array.copy() for key, array in load_file(path / name).items()}
    change(arrays)
    (path / name).chmod(0o644)
    save_file(arrays, path / name)
    manifest = json.loads((path / "manifest.json").read_bytes())
    content = (path / name).read_bytes()
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (path / "manifest.json").chmod(0o644)
    (path / "manifest.json").write_bytes(canonical_bytes(manifest))
    return path


def _set(array, place, value):
    def change(arrays):
        arrays[array][place] = value

    return change


CHANGES = [
    _set("rows", 3, 301),
    _set("rows", 3, -1),
    _set("rows", -1, 2**31 - 1),
    _set("rows", 0, -(2**31)),
    _set("starts", 5, 2**31 - 1),
    _set("starts", 5, -7),
    _set("starts", 0, -1),
    _set("starts", 0, 2),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("id_map", ["pin", "advertiser"])
def test_a_map_that_leads_beyond_its_table_is_refused_at_the_start(release, tmp_path, id_map, change):
    path = _forge(release, tmp_path / "forged", id_map, change)
    with pytest.raises(ArtifactError, match=rf"{id_map}.*Publish the model again"):
        LookupServer(LookupConfig(releases=(path,)))


@pytest.mark.parametrize(("place", "value"), [(4, 2**40), (4, -1), (0, 1), (-2, 2**62)])
def test_so_are_strings_beyond_the_text(release, tmp_path, place, value):
    path = _forge(release, tmp_path / "forged", "advertiser", _set("offsets", place, value))
    with pytest.raises(ArtifactError, match="offsets"):
        LookupHalf(Release.open(path))


def test_a_map_of_another_type_is_refused(release, tmp_path):
    path = tmp_path / "forged"
    shutil.copytree(release.path, path)
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["id_types"]["user"] = "string"
    (path / "manifest.json").chmod(0o644)
    (path / "manifest.json").write_bytes(canonical_bytes(manifest))
    with pytest.raises(ArtifactError, match="int64 ids, the manifest says string"):
        LookupHalf(Release.open(path))


@settings(max_examples=200)
@given(ids=st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=60), data=st.data())
def test_what_passes_stays_within_its_arrays(ids, data):
    id_map = IdMap.exact(ids)
    arrays = {name: array.copy() for name, array in id_map.index.arrays.items()}
    check_index(arrays, id_map.num_rows, "the map")
    name = data.draw(st.sampled_from([name for name in ("rows", "starts") if len(arrays[name])]))
    place = data.draw(st.integers(0, len(arrays[name]) - 1))
    arrays[name][place] = data.draw(st.integers(-(2**31), 2**31 - 1) | st.integers(-2, len(ids) + 2))
    starts, rows = arrays["starts"].astype(np.int64), arrays["rows"]
    within = (
        (len(rows) == 0 or (rows.min() >= 0 and rows.max() < id_map.num_rows))
        and (np.diff(starts) >= 0).all()
        and starts[0] == 0
        and starts[-1] == len(ids)
    )
    try:
        check_index(arrays, id_map.num_rows, "the map")
    except ArtifactError:
        assert not within
    else:
        assert within
