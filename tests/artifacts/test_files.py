"""Files that take their place whole or not at all."""

import errno
import os
import threading
from pathlib import Path

import pytest

from multifacet.artifacts import replacing, write_file


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_process_without_descriptors_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "note.txt"
    write_file(path, "before", durable=True)
    opened = os.open

    def refuse(target, flags, *args, **kwargs):
        if flags & os.O_DIRECTORY:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(target, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        write_file(path, "after", durable=True)
    assert path.read_text(encoding="utf-8") == "before"
    assert [found.name for found in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_there_with_its_whole_text(tmp_path: Path, durable: bool):
    path = tmp_path / "note.txt"
    write_file(path, "first", durable=durable)
    write_file(path, "zweites: ä", durable=durable)
    assert path.read_text(encoding="utf-8") == "zweites: ä"
    assert names(tmp_path) == ["note.txt"]


def test_an_error_leaves_what_stood_there_and_nothing_beside_it(tmp_path: Path):
    path = tmp_path / "note.txt"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path, durable=True) as unfinished:
            unfinished.write_text("half")
            assert path.read_text() == "old"
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["note.txt"]


def test_what_was_not_written_takes_no_place(tmp_path: Path):
    path = tmp_path / "note.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path, durable=False):
        pass
    assert path.read_text() == "old"


def test_a_durable_file_is_on_disk_before_it_gets_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor: int) -> None:
        calls.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def record_rename(self: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_rename)
    write_file(tmp_path / "note.txt", "text", durable=True)
    assert calls == [f".note.txt.unfinished-{os.getpid()}-{threading.get_ident()}", "rename", tmp_path.name]
