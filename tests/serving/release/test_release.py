"""A release holds exactly what was trained, and opens whole or not at all."""

from __future__ import annotations

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from multifacet import serving
from multifacet.artifacts import Artifact, ArtifactError, ArtifactWriter
from multifacet.serving import Release, publish
from multifacet.serving.release.publisher import publish as publish_function
from multifacet.serving.release.upper import check_archive, load_program
from multifacet.tables import decode, encode, row_bytes


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_files_of_rows_are_the_encoded_rows_back_to_back(model, tmp_path, precision):
    release = publish(model.path, tmp_path / "release", precision=precision)
    for table in release.tables:
        expected = encode(model.weights[table.name], precision).numpy()
        stored = (release.path / table.file()).read_bytes()
        assert len(stored) == table.rows * row_bytes(table.dim, precision) == table.rows * table.row_bytes
        assert stored == expected.tobytes()
        mapped = release.map_rows(table, populate=True)
        np.testing.assert_array_equal(mapped, expected)
        with pytest.raises(ValueError, match="read-only"):
            mapped[0, 0] = 1


def test_rows_written_in_chunks_are_those_written_at_once(model, release, tmp_path, monkeypatch):
    monkeypatch.setattr("multifacet.serving.release.publisher._CHUNK_BYTES", 7 * 4 * 16)  # seven rows, which divides no table
    assert publish(model.path, tmp_path / "release").version == release.version


def test_equal_content_has_an_equal_version_and_another_precision_another(release, other_release, model, tmp_path):
    again = publish(model.path, tmp_path / "somewhere" / "else")
    assert again.version == release.version
    assert other_release.version != release.version
    assert Release.open(again.path).version == release.version


def test_a_release_names_the_model_that_it_came_from(model, release):
    assert release.manifest.parents == (Artifact.open(model.path).fingerprint,)


def test_the_published_program_has_no_pickle_left(model, release):
    check_archive(release.upper_path)
    with pytest.raises(ArtifactError, match=r"sample_inputs/model\.pt is a pickle"):
        check_archive(model.path / "upper.pt2")
    with zipfile.ZipFile(release.upper_path) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert not content.startswith(b"\x80") or "/weights/weight_" in name  # a pickle's first byte
            assert not content.startswith(b"PK")  # torch.save's archive within the archive


class _Bomb:
    def __reduce__(self):
        return (open, ("multifacet-bomb", "w"))


@pytest.mark.parametrize("member", ["sample_inputs", "weights"])
def test_a_program_that_would_run_code_when_loaded_is_refused_unloaded(model, tmp_path, member, monkeypatch):
    monkeypatch.setattr(torch.export, "load", lambda _: pytest.fail("it was loaded"))
    bomb = io.BytesIO()
    torch.save((_Bomb(),), bomb)
    path = tmp_path / "upper.pt2"
    with zipfile.ZipFile(model.path / "upper.pt2") as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if member == "sample_inputs" and "sample_inputs" in name:
                content = bomb.getvalue()
            if member == "weights" and name.endswith("model_weights_config.json"):
                config = json.loads(content)
                next(iter(config["config"].values()))["use_pickle"] = True
                content = json.dumps(config).encode()
            target.writestr(name, content)
    with pytest.raises(ArtifactError, match=r"more than plain tensors|stored as a pickle"):
        load_program(path, allow_sample_inputs=True)


def test_a_file_that_is_no_program_is_refused(tmp_path):
    (tmp_path / "upper.pt2").write_bytes(b"garbage")
    with pytest.raises(ArtifactError, match=r"not a torch\.export archive"):
        load_program(tmp_path / "upper.pt2")


@pytest.fixture
def copy(release, tmp_path):
    shutil.copytree(release.path, tmp_path / "copy")
    return tmp_path / "copy"


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [_flip, _truncate, lambda path: path.unlink()], ids=["flip", "truncate", "remove"])
def test_any_damaged_file_is_refused_by_its_name(release, copy, damage, tmp_path):
    names = [
        str(path.relative_to(release.path))
        for path in release.path.rglob("*")
        if path.name != "manifest.json" and path.is_file()
    ]
    assert len(names) >= 10
    for name in names:
        shutil.rmtree(copy)
        shutil.copytree(release.path, copy)
        damage(copy / name)
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
            Release.open(copy)


def test_an_edited_manifest_is_refused_or_is_another_version(release, copy):
    manifest = copy / "manifest.json"
    original = manifest.read_bytes()
    for position in range(0, len(original), 41):
        manifest.write_bytes(original[:position] + bytes([original[position] ^ 1]) + original[position + 1 :])
        try:
            assert Release.open(copy).version != release.version
        except ArtifactError:
            continue
    manifest.write_bytes(original[:-2])
    with pytest.raises(ArtifactError):
        Release.open(copy)


def test_each_half_is_verified_for_itself(copy):
    _flip(copy / "lookup/pin_kge.rows")
    Release.open(copy, half="ranker")
    Release.open(copy, verify=False)
    with pytest.raises(ArtifactError, match=r"lookup/pin_kge\.rows: sha256"):
        Release.open(copy, half="lookup")


def _model_with(model, tmp_path, change):
    """A copy of the model artefact with a change of its manifest or files."""
    artifact = Artifact.open(model.path)
    with ArtifactWriter(tmp_path / "changed", kind="ranking-model") as writer:
        shutil.copytree(model.path, writer.directory, dirs_exist_ok=True)
        (writer.directory / "manifest.json").unlink()
        fields = {key: value for key, value in artifact.manifest.items() if key not in {"files", "kind", "schema_version"}}
        change(fields, writer.directory)
        writer.manifest.update(fields)
    return tmp_path / "changed"


def _poison(fields, directory):
    path = directory / "vectors/pin_kge.safetensors"
    weights = load_file(path)["weights"].clone()
    weights[123, 4] = torch.nan
    save_file({"weights": weights}, path)


def _fewer_rows(fields, directory):
    path = directory / "vectors/pin_kge.safetensors"
    save_file({"weights": load_file(path)["weights"][:-1].clone()}, path)


def _other_rows(fields, directory):
    _fewer_rows(fields, directory)
    fields["tables"][2]["rows"] -= 1


def _path_for_a_name(fields, directory):
    fields["tables"][0]["name"] = "../escape"


def _same_name(fields, directory):
    fields["tables"][0]["name"] = fields["tables"][1]["name"]


def _other_tasks(fields, directory):
    fields["tasks"] = ["cvr", "ctr"]


def _a_dense_feature_more(fields, directory):
    fields["dense_features"].append("unheard_of")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_poison, r"'pin_kge'.*Row 123.*nan"),
        (_fewer_rows, r"pin_kge\.safetensors holds F32 \[300, 16\]"),
        (_other_rows, r"'pin_kge' has 300 rows, but its id map 'pin' maps to 301"),
        (_path_for_a_name, r"tables\.0\.name"),
        (_same_name, r"repeat: \['user_contrastive'\]"),
        (_other_tasks, r"tasks"),
        (_a_dense_feature_more, r"upper model fails on dense \[1, 4\]"),
    ],
)
def test_a_model_that_contradicts_itself_is_not_published(model, tmp_path, change, message):
    changed = _model_with(model, tmp_path, change)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        publish(changed, tmp_path / "release")
    assert not (tmp_path / "release").exists()


def test_a_release_is_not_overwritten_unless_asked(model, release, tmp_path):
    publish(model.path, tmp_path / "release")
    with pytest.raises(ArtifactError, match="already exists"):
        publish(model.path, tmp_path / "release", precision="int8")
    assert Release.open(tmp_path / "release").version == release.version
    assert publish(model.path, tmp_path / "release", precision="int8", replace=True).precision == "int8"


def test_serving_names_are_those_that_it_lists():
    assert [name for name in serving.__all__ if not hasattr(serving, name)] == []
    assert serving.publish is publish_function
    with pytest.raises(AttributeError, match="unheard_of"):
        _ = serving.unheard_of


def test_decoded_rows_are_near_the_trained_ones(model, release):
    table = release.tables[0]
    decoded = decode(torch.from_numpy(release.map_rows(table).copy()), table.dim, table.precision)
    trained = model.weights[table.name]
    step = (trained.amax(1) - trained.amin(1)) / 15
    assert ((decoded - trained).abs().amax(1) <= 0.52 * step + 2e-3).all()
