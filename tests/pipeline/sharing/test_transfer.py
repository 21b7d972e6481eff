"""What is pushed comes back the same to the last bit, whole or not at all, over each protocol."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import fs

from multifacet.artifacts import ArtifactError
from multifacet.pipeline.sharing import filesystem
from multifacet.pipeline.sharing.card import make_card
from multifacet.pipeline.sharing.remote import open_remote
from multifacet.pipeline.sharing.transfer import pull, push
from multifacet.tables import Snapshot, SnapshotTable
from tests.pipeline.sharing.hub_server import HubServer, commit_id


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    return write(tmp_path / "snapshot", 1)


def write(path: Path, seed: int) -> Snapshot:
    vectors = torch.randn(60, 4, generator=torch.Generator().manual_seed(seed))
    trained = torch.ones(60, dtype=torch.bool)
    trained[:7] = False
    tables = {"pin": SnapshotTable(ids=pa.array([f"pin|{row}" for row in range(60)]), vectors=vectors, trained=trained)}
    return Snapshot.write(
        path,
        facet="kge",
        tables=tables,
        parents=["ab" * 32],
        window={"as_of": "2026-11-01", "relations": ["buys|now"]},
        metrics={"filtered_mrr": 0.25, "note": "none"},
        config={"model": "transe", "dim": 4},
    )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A hub of this machine, which huggingface_hub is told of as its users tell it: by environment variables."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: pip install 'multifacet[hub]'")
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(params=["folder", "uri", "s3", "memory", "hub"])
def address(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place over each protocol; s3:// is here Arrow's file system of a folder, as what goes over S3's HTTP is Arrow's own."""
    if request.param == "hub":
        request.getfixturevalue("hub")
        return "hf://shop/pins"
    if request.param == "memory":
        pytest.importorskip("fsspec")
        return f"memory://{tmp_path.name}/pins"
    if request.param == "s3":
        (tmp_path / "bucket").mkdir()
        store = fs.SubTreeFileSystem(str(tmp_path / "bucket"), fs.LocalFileSystem())
        monkeypatch.setattr(filesystem, "_open", lambda address: (store, address.removeprefix("s3://bucket/")))
        return "s3://bucket/models/pins"
    folder = tmp_path / "elsewhere" / "pins"
    return f"file://{folder}" if request.param == "uri" else str(folder)


def test_a_copy_is_the_same_to_the_last_bit(snapshot: Snapshot, address: str, tmp_path: Path) -> None:
    assert push(snapshot.path, address, card=make_card(snapshot, name="pins")) == snapshot.fingerprint
    assert push(snapshot.path, address) == snapshot.fingerprint  # it is there: nothing to do
    pulled = pull(address, tmp_path / "back", fingerprint=snapshot.fingerprint[:12])
    assert pulled.fingerprint == snapshot.fingerprint
    back = Snapshot.load(tmp_path / "back")
    assert torch.equal(back.vectors("pin"), snapshot.vectors("pin"))
    assert {path.name for path in (tmp_path / "back").iterdir()} == {path.name for path in snapshot.path.iterdir()}


def test_another_one_is_replaced_only_when_asked(snapshot: Snapshot, address: str, tmp_path: Path) -> None:
    push(snapshot.path, address)
    other = write(tmp_path / "other", 2)
    with pytest.raises(ArtifactError, match="holds another artifact"):
        push(other.path, address)
    assert pull(address, tmp_path / "before").fingerprint == snapshot.fingerprint
    push(other.path, address, replace=True)
    assert pull(address, tmp_path / "after").fingerprint == other.fingerprint
    with pytest.raises(ArtifactError, match="already exists"):
        pull(address, tmp_path / "after")
    assert pull(address, tmp_path / "before", replace=True).fingerprint == other.fingerprint


def two_tables(path: Path) -> Snapshot:
    """A snapshot of one file more than `write` gives."""
    table = SnapshotTable(ids=pa.array(range(5)), vectors=torch.ones(5, 4))
    return Snapshot.write(path, facet="kge", tables={"pin": table, "user": table})


def test_files_of_others_stay(snapshot: Snapshot, tmp_path: Path) -> None:
    there = tmp_path / "there"
    (there / "logs").mkdir(parents=True)
    (there / "logs" / "day.parquet").write_text("a year of work")
    (there / "LICENSE").write_text("ours")
    push(two_tables(tmp_path / "two").path, str(there))
    push(snapshot.path, str(there), replace=True)
    assert pull(str(there), tmp_path / "back").fingerprint == snapshot.fingerprint
    assert (there / "logs" / "day.parquet").read_text() == "a year of work"
    assert (there / "LICENSE").read_text() == "ours"
    assert not list(there.rglob("user.*"))  # what the replaced one had, and the new one has not, is gone


@pytest.mark.parametrize("manifest", [b"no JSON", b'{"files": 3}', b'{"files": {"../outside.txt": {}, "": {}}}'])
def test_a_hostile_manifest_that_is_replaced_deletes_nothing_outside(
    snapshot: Snapshot, tmp_path: Path, manifest: bytes
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "outside.txt").write_text("stays")
    (there / "manifest.json").write_bytes(manifest)
    push(snapshot.path, str(there), replace=True)
    assert (tmp_path / "outside.txt").read_text() == "stays"
    assert pull(str(there), tmp_path / "back").fingerprint == snapshot.fingerprint


def test_files_of_others_stay_on_the_hub(snapshot: Snapshot, hub: Any, tmp_path: Path) -> None:
    push(two_tables(tmp_path / "two").path, "hf://shop/pins")
    hub.repositories["shop/pins"][-1]["LICENSE"] = b"ours"
    push(snapshot.path, "hf://shop/pins", replace=True)
    files = hub.repositories["shop/pins"][-1]
    assert files["LICENSE"] == b"ours"
    assert not [name for name in files if "user." in name]
    assert pull("hf://shop/pins", tmp_path / "back").fingerprint == snapshot.fingerprint


def test_what_is_not_there_or_not_the_one_is_refused(snapshot: Snapshot, address: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="There is no artifact at"):
        pull(address, tmp_path / "back")
    push(snapshot.path, address)
    with pytest.raises(ArtifactError, match="was asked for"):
        pull(address, tmp_path / "back", fingerprint="0" * 64)
    assert not (tmp_path / "back").exists()


def test_a_damaged_copy_never_appears(snapshot: Snapshot, tmp_path: Path) -> None:
    push(snapshot.path, str(tmp_path / "there"))
    vectors = tmp_path / "there" / "vectors" / "pin.safetensors"
    content = bytearray(vectors.read_bytes())
    content[-1] ^= 1
    vectors.write_bytes(content)
    with pytest.raises(ArtifactError, match="Nothing was written"):
        pull(str(tmp_path / "there"), tmp_path / "back")
    vectors.unlink()
    with pytest.raises(ArtifactError, match=r"has no file 'vectors/pin\.safetensors'"):
        pull(str(tmp_path / "there"), tmp_path / "back")
    assert not list(tmp_path.glob("*back*"))


def test_a_hostile_manifest_writes_nothing_outside(snapshot: Snapshot, tmp_path: Path) -> None:
    push(snapshot.path, str(tmp_path / "there"))
    manifest = json.loads((tmp_path / "there" / "manifest.json").read_text())
    manifest["files"]["../../stolen"] = manifest["files"].pop("ids/pin.parquet")
    text = json.dumps(manifest, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    (tmp_path / "there" / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match="is refused"):
        pull(str(tmp_path / "there"), tmp_path / "deep" / "back")
    assert not (tmp_path / "stolen").exists()


def test_a_push_that_is_cut_off_leaves_no_artifact(snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(filesystem.shutil, "copyfileobj", cut)
        with pytest.raises(KeyboardInterrupt):
            push(snapshot.path, str(tmp_path / "there"))
    with pytest.raises(ArtifactError, match="There is no artifact at"):
        pull(str(tmp_path / "there"), tmp_path / "back")
    push(snapshot.path, str(tmp_path / "there"))
    assert pull(str(tmp_path / "there"), tmp_path / "back").fingerprint == snapshot.fingerprint


def test_a_hub_gets_one_commit_or_none(snapshot: Snapshot, hub: Any, tmp_path: Path) -> None:
    errors = importlib.import_module("huggingface_hub.errors")
    hub.fail_commits = True
    with pytest.raises(errors.HfHubHTTPError):
        push(snapshot.path, "hf://shop/pins")
    assert len(hub.repositories["shop/pins"]) == 1
    hub.fail_commits = False
    push(snapshot.path, "hf://shop/pins", card=make_card(snapshot, name="pins"))
    assert len(hub.repositories["shop/pins"]) == 2
    files = hub.repositories["shop/pins"][-1]
    assert files["README.md"].startswith(b"---\nlicense")
    assert any("/info/lfs/objects/batch" in request for request in hub.requests)
    other = write(tmp_path / "other", 2)
    push(other.path, "hf://shop/pins", replace=True)
    old = f"hf://shop/pins@{commit_id(1)}"
    assert pull(old, tmp_path / "old").fingerprint == snapshot.fingerprint
    assert pull("hf://shop/pins", tmp_path / "new").fingerprint == other.fingerprint


def test_a_card_is_what_the_hub_reads(snapshot: Snapshot) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: pip install 'multifacet[hub]'")
    card = hub.ModelCard(make_card(snapshot, name="pins", license="apache-2.0"))
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "multifacet"
    assert card.data.eval_results[0].metric_type == "filtered_mrr"
    assert card.data.eval_results[0].metric_value == 0.25
    for said in ("2026-11-01", snapshot.fingerprint, "| model | transe |", "7 rows of pin were never reached", "buys\\|now"):
        assert said in card.content, said
    assert "## Drift" not in card.content


def test_addresses_that_nobody_speaks_to_are_named(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="neither pyarrow nor fsspec speaks to it"):
        open_remote("carrier-pigeon://loft/3")
    with pytest.raises(ValueError, match="expected hf://OWNER/NAME"):
        open_remote("hf://alone")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"multifacet\[hub\]"):
        open_remote("hf://shop/pins")
