"""Artefacts: whole or absent, equal content to equal fingerprint, and every fault named."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from multifacet.artifacts import Artifact, ArtifactError, ArtifactWriter, remove_stale_temporaries
from multifacet.artifacts import files as filetree
from multifacet.artifacts.manifest import canonical_bytes


def write(path: Path, contents: dict[str, bytes] | None = None, *, replace: bool = False, **fields: object) -> Artifact:
    with ArtifactWriter(path, kind="note", replace=replace) as writer:
        for name, content in ({"a.txt": b"alpha", "deep/b.bin": b"beta" * 1000} if contents is None else contents).items():
            (writer.directory / name).parent.mkdir(parents=True, exist_ok=True)
            (writer.directory / name).write_bytes(content)
        writer.manifest.update(fields)
    return Artifact.open(path, kind="note")


def rewrite_manifest(path: Path, change) -> None:
    manifest = json.loads((path / "manifest.json").read_bytes())
    change(manifest)
    (path / "manifest.json").write_bytes(canonical_bytes(manifest))


def test_manifest_describes_every_file(tmp_path):
    artifact = write(tmp_path / "note", language="en")
    content = b"beta" * 1000
    assert artifact.manifest["files"]["deep/b.bin"] == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": 4000}
    assert artifact.manifest["language"] == "en"
    assert artifact.kind == "note"
    assert artifact.fingerprint == hashlib.sha256((tmp_path / "note/manifest.json").read_bytes()).hexdigest()
    assert artifact.file("deep/b.bin").read_bytes() == content
    assert "files=2, bytes=4005" in repr(artifact)
    assert [entry.name for entry in tmp_path.iterdir()] == ["note"]


def test_equal_content_has_an_equal_fingerprint_whatever_the_path_and_the_order(tmp_path):
    first = write(tmp_path / "one", {"a": b"1", "b": b"2"}, x=1, y={"p": 0.1, "q": [1, None, True]})
    second = write(tmp_path / "far" / "two", {"b": b"2", "a": b"1"}, y={"q": (1, None, True), "p": 0.1}, x=1)
    assert first.fingerprint == second.fingerprint
    assert write(tmp_path / "three", {"a": b"1", "b": b"3"}, x=1).fingerprint != first.fingerprint
    assert write(tmp_path / "four", {"a": b"1", "c": b"2"}, x=1).fingerprint != first.fingerprint


def test_an_artefact_may_have_no_files_and_empty_ones(tmp_path):
    assert write(tmp_path / "none", {}).manifest["files"] == {}
    assert write(tmp_path / "empty", {"e": b""}).manifest["files"]["e"]["bytes"] == 0


def test_a_file_longer_than_the_read_buffer_is_hashed_whole(tmp_path):
    content = os.urandom((4 << 20) + 17)
    artifact = write(tmp_path / "note", {"long": content})
    assert artifact.manifest["files"]["long"]["sha256"] == hashlib.sha256(content).hexdigest()


def test_an_error_in_the_block_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), ArtifactWriter(tmp_path / "note", kind="note") as writer:  # noqa: PT012
        (writer.directory / "a").write_bytes(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metrics": {"auc": float("nan")}}, r"manifest\.metrics\.auc is nan"),
        ({"metrics": [1.0, float("inf")]}, r"manifest\.metrics\[1\] is inf"),
        ({"metrics": {1: 2}}, "manifest.metrics has the key 1"),
        ({"source": Path("/somewhere")}, "manifest.source is a PosixPath"),
        ({"text": "\udc80"}, "manifest.text is '.udc80'"),
        ({"kind": "x", "schema_version": 3}, r"\['kind', 'schema_version'\] are written by ArtifactWriter"),
    ],
)
def test_fields_that_json_cannot_hold_are_refused_by_name_and_leave_nothing(tmp_path, fields, message):
    with pytest.raises(ArtifactError, match=message):
        write(tmp_path / "note", **fields)
    assert list(tmp_path.iterdir()) == []


def test_links_special_files_and_odd_names_are_not_written(tmp_path):
    for number, make in enumerate(
        [
            lambda directory: (directory / "link").symlink_to("/etc/passwd"),
            lambda directory: (directory / "links").symlink_to(directory),
            lambda directory: os.mkfifo(directory / "pipe"),
            lambda directory: (directory / "back\\slash").touch(),
            lambda directory: (directory / "new\nline").touch(),
            lambda directory: (directory / "manifest.json").touch(),
        ]
    ):
        with pytest.raises(ArtifactError), ArtifactWriter(tmp_path / str(number), kind="note") as writer:
            make(writer.directory)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_kind_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="kind"):
        ArtifactWriter(tmp_path / "note", kind="")


class TestOpeningRefuses:
    @pytest.fixture
    def path(self, tmp_path):
        return write(tmp_path / "note").path

    def test_an_absent_path_and_a_plain_directory(self, path, tmp_path):
        with pytest.raises(ArtifactError, match="no artefact at"):
            Artifact.open(tmp_path / "absent")
        with pytest.raises(ArtifactError, match="no artefact at"):
            Artifact.open(path / "a.txt")
        with pytest.raises(ArtifactError, match="no artefact at"):
            Artifact.open(tmp_path)

    def test_another_kind(self, path):
        with pytest.raises(ArtifactError, match="of kind 'note'; expected 'snapshot'"):
            Artifact.open(path, kind="snapshot")
        assert Artifact.open(path).kind == "note"

    @pytest.mark.parametrize("version", [0, 2, "1", True, None, 1.0])
    def test_another_schema_version(self, path, version):
        rewrite_manifest(path, lambda manifest: manifest.update(schema_version=version))
        with pytest.raises(ArtifactError, match="schema_version"):
            Artifact.open(path)

    @pytest.mark.parametrize("verify", [True, False])
    def test_a_missing_file(self, path, verify):
        (path / "deep/b.bin").unlink()
        with pytest.raises(ArtifactError, match=r"deep/b\.bin: missing"):
            Artifact.open(path, verify=verify)

    @pytest.mark.parametrize("verify", [True, False])
    def test_an_extra_file(self, path, verify):
        (path / "deep/extra").touch()
        with pytest.raises(ArtifactError, match="deep/extra: not in the manifest"):
            Artifact.open(path, verify=verify)

    @pytest.mark.parametrize("verify", [True, False])
    def test_a_truncated_file(self, path, verify):
        os.truncate(path / "deep/b.bin", 3999)
        with pytest.raises(ArtifactError, match=r"deep/b\.bin: 3999 bytes, expected 4000"):
            Artifact.open(path, verify=verify)

    def test_a_flipped_bit(self, path):
        content = bytearray((path / "deep/b.bin").read_bytes())
        content[2000] ^= 1
        (path / "deep/b.bin").write_bytes(content)
        with pytest.raises(ArtifactError, match=r"deep/b\.bin: sha256"):
            Artifact.open(path)
        assert Artifact.open(path, verify=False).kind == "note"

    def test_a_file_turned_into_a_link(self, path, tmp_path):
        (path / "a.txt").rename(tmp_path / "elsewhere")
        (path / "a.txt").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ArtifactError, match=r"a\.txt is a link"):
            Artifact.open(path)

    def test_a_directory_turned_into_a_link(self, path, tmp_path):
        (path / "deep").rename(tmp_path / "deep")
        (path / "deep").symlink_to(tmp_path / "deep")
        with pytest.raises(ArtifactError, match="deep is a link"):
            Artifact.open(path)

    def test_a_manifest_turned_into_a_link(self, path, tmp_path):
        (path / "manifest.json").rename(tmp_path / "manifest.json")
        (path / "manifest.json").symlink_to(tmp_path / "manifest.json")
        with pytest.raises(ArtifactError, match="cannot be opened as a plain file"):
            Artifact.open(path)

    @pytest.mark.parametrize(
        "name", ["/etc/passwd", "../note/a.txt", "deep/../a.txt", "./a.txt", "deep//b.bin", "", "a\\b", "manifest.json", "a\0"]
    )
    def test_names_that_lead_elsewhere(self, path, name):
        rewrite_manifest(path, lambda m: m["files"].update({name: {"sha256": "0" * 64, "bytes": 0}}))
        with pytest.raises(ArtifactError, match="is refused"):
            Artifact.open(path)

    @pytest.mark.parametrize(
        "entry", [None, {}, {"sha256": "0" * 64}, {"sha256": "x" * 64, "bytes": 1}, {"sha256": "0" * 64, "bytes": -1}]
    )
    def test_a_malformed_entry(self, path, entry):
        rewrite_manifest(path, lambda m: m["files"].update({"a.txt": entry}))
        with pytest.raises(ArtifactError, match=r"files\['a.txt'\]"):
            Artifact.open(path)

    @pytest.mark.parametrize(
        "raw", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"schema_version": 1, "kind": "note", "files": {}, "x": NaN}']
    )
    def test_a_manifest_that_is_no_plain_json_object(self, path, raw):
        (path / "manifest.json").write_bytes(raw)
        with pytest.raises(ArtifactError, match=r"manifest\.json"):
            Artifact.open(path)

    def test_an_edited_manifest(self, path):
        raw = (path / "manifest.json").read_bytes()
        (path / "manifest.json").write_bytes(raw.replace(b"\n", b" \n", 1))
        with pytest.raises(ArtifactError, match="edited"):
            Artifact.open(path)

    def test_a_file_that_the_manifest_lacks(self, path):
        with pytest.raises(ArtifactError, match=r"no file 'c'; it has \['a.txt', 'deep/b.bin'\]"):
            Artifact.open(path).file("c")


class TestReplacing:
    def test_an_existing_path_is_an_error_without_replace(self, tmp_path):
        first = write(tmp_path / "note")
        with pytest.raises(ArtifactError, match=r"already exists.*replace=True"):
            write(tmp_path / "note", {"c": b"other"})
        assert Artifact.open(tmp_path / "note").fingerprint == first.fingerprint

    def test_the_second_of_two_writers_gets_the_error_and_the_first_stays(self, tmp_path):
        slow = ArtifactWriter(tmp_path / "note", kind="note")
        with pytest.raises(ArtifactError, match="already exists"), slow:  # noqa: PT012
            (slow.directory / "a").write_bytes(b"slow")
            write(tmp_path / "note", {"a": b"fast"})
        assert Artifact.open(tmp_path / "note").file("a").read_bytes() == b"fast"
        assert [entry.name for entry in tmp_path.iterdir()] == ["note"]

    def test_replace_takes_the_old_ones_place(self, tmp_path):
        old = write(tmp_path / "note", {"a": b"old"})
        new = write(tmp_path / "note", {"a": b"new"}, replace=True)
        assert new.file("a").read_bytes() == b"new"
        with pytest.raises(ArtifactError, match="was replaced"):
            old.file("a")
        assert [entry.name for entry in tmp_path.iterdir()] == ["note"]

    def test_a_failed_replacement_keeps_the_old_one(self, tmp_path):
        old = write(tmp_path / "note", {"a": b"old"})
        with pytest.raises(ArtifactError, match="metric is nan"):
            write(tmp_path / "note", {"a": b"new"}, replace=True, metric=float("nan"))
        assert old.file("a").read_bytes() == b"old"

    def test_replace_refuses_what_is_no_artefact(self, tmp_path):
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter").write_text("years of work")
        write(tmp_path / "note")
        (tmp_path / "link").symlink_to(tmp_path / "note")
        for name in ("thesis", "link"):
            with pytest.raises(ArtifactError, match="is not an artefact"):
                write(tmp_path / name, replace=True)
        assert (tmp_path / "thesis" / "chapter").exists()

    def test_without_an_atomic_exchange_it_takes_two_renames(self, tmp_path, monkeypatch):
        # What a file system without renameat2's flags answers; none is at hand here.
        monkeypatch.setattr(filetree, "_renameat2", lambda *_: False)
        write(tmp_path / "note", {"a": b"old"})
        assert write(tmp_path / "note", {"a": b"new"}, replace=True).file("a").read_bytes() == b"new"
        with pytest.raises(ArtifactError, match="already exists"):
            write(tmp_path / "note")
        assert [entry.name for entry in tmp_path.iterdir()] == ["note"]

    def test_a_reader_never_sees_a_mixture(self, tmp_path):
        path = tmp_path / "note"
        names = [f"f{number}" for number in range(5)]
        write(path, dict.fromkeys(names, b"0"))
        done = threading.Event()

        def replace_often() -> None:
            try:
                for round_ in range(1, 40):
                    with ArtifactWriter(path, kind="note", replace=True) as writer:
                        for name in names:
                            (writer.directory / name).write_bytes(str(round_).encode())
            finally:
                done.set()

        thread = threading.Thread(target=replace_often)
        thread.start()
        num_read, seen = 0, set()
        while not done.is_set():
            try:
                artifact = Artifact.open(path)
                contents = {artifact.file(name).read_bytes() for name in names}
                artifact.check_unreplaced()
            except (ArtifactError, FileNotFoundError) as error:
                assert "replaced" in str(error) or isinstance(error, FileNotFoundError)  # noqa: PT017
                continue
            assert len(contents) == 1
            seen |= contents
            num_read += 1
        thread.join()
        assert num_read > 0
        assert Artifact.open(path).file("f0").read_bytes() == b"39"

    def test_opening_through_a_link_keeps_the_linked_artefact(self, tmp_path):
        write(tmp_path / "v1", {"a": b"1"})
        write(tmp_path / "v2", {"a": b"2"})
        (tmp_path / "current").symlink_to("v1")
        artifact = Artifact.open(tmp_path / "current")
        (tmp_path / "current").unlink()
        (tmp_path / "current").symlink_to("v2")
        assert artifact.file("a").read_bytes() == b"1"


KILLED_WRITER = """
import os, sys
from multifacet.artifacts import ArtifactWriter
with ArtifactWriter(sys.argv[1], kind="note") as writer:
    with open(writer.directory / "a", "wb") as stream:
        stream.write(b"x" * 1_000_000)
        stream.flush()
        print("writing", flush=True)
        sys.stdin.read()
"""

FULL_DISK_WRITER = """
import resource, sys
from multifacet.artifacts import ArtifactWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
with ArtifactWriter(sys.argv[1], kind="note") as writer:
    for number in range(200):
        (writer.directory / f"part-{number}").write_bytes(b"x" * int(sys.argv[3]))
"""


class TestInterruptedWriters:
    def start(self, path: Path) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen([sys.executable, "-c", KILLED_WRITER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        return process

    def stop(self, process: "subprocess.Popen[bytes]") -> None:
        process.kill()
        process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL

    def test_a_killed_writer_leaves_nothing_at_the_path_and_its_leftover_is_swept(self, tmp_path):
        process = self.start(tmp_path / "note")
        try:
            (leftover,) = tmp_path.iterdir()
            assert leftover.name.startswith(f".note.tmp-{process.pid}-")
            # The writer lives: its directory is not touched, neither by a sweep nor by a second writer.
            assert remove_stale_temporaries(tmp_path) == []
            write(tmp_path / "other")
        finally:
            self.stop(process)
        assert not (tmp_path / "note").exists()
        with pytest.raises(ArtifactError, match="no artefact"):
            Artifact.open(tmp_path / "note")
        assert remove_stale_temporaries(tmp_path) == [leftover]
        assert [entry.name for entry in tmp_path.iterdir()] == ["other"]

    def test_the_next_writer_of_the_same_path_sweeps_it_too(self, tmp_path):
        self.stop(self.start(tmp_path / "note"))
        assert len(list(tmp_path.iterdir())) == 1
        write(tmp_path / "note")
        assert [entry.name for entry in tmp_path.iterdir()] == ["note"]

    def test_a_lock_guards_a_writer_whose_process_id_means_nothing_here(self, tmp_path):
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait(timeout=30)
        with ArtifactWriter(tmp_path / "note", kind="note") as writer:
            foreign = tmp_path / f".note.tmp-{process.pid}-abc123"
            writer.directory.rename(foreign)
            assert remove_stale_temporaries(tmp_path) == []
            foreign.rename(writer.directory)
        assert Artifact.open(tmp_path / "note").kind == "note"

    def test_only_dead_writers_directories_are_swept(self, tmp_path):
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait(timeout=30)
        dead = process.pid
        kept = [f".note.tmp-{os.getpid()}-ab", f".note.tmp-{dead}", f"note.tmp-{dead}-ab", ".note.tmp-0-ab", ".note"]
        swept = [f".note.tmp-{dead}-ab", f".a.tmp-b.tmp-{dead}-0f", ".huge.tmp-9999999999-ab"]
        for name in kept + swept:
            (tmp_path / name).mkdir()
        (tmp_path / f".file.tmp-{dead}-ab").write_text("a file, not a writer's directory")
        (tmp_path / f".link.tmp-{dead}-ab").symlink_to(tmp_path / ".note")
        assert remove_stale_temporaries(tmp_path) == sorted(tmp_path / name for name in swept)
        assert all((tmp_path / name).is_dir() for name in kept)

    @pytest.mark.parametrize(
        ("limit", "size"),
        [
            pytest.param(4096, 5000, id="while a file is written"),
            pytest.param(4096, 10, id="while the manifest is written"),
        ],
    )
    def test_a_write_that_the_system_refuses_leaves_nothing(self, tmp_path, limit, size):
        result = subprocess.run(
            [sys.executable, "-c", FULL_DISK_WRITER, tmp_path / "note", str(limit), str(size)],
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert result.returncode == 1
        assert b"File too large" in result.stderr
        assert list(tmp_path.iterdir()) == []
