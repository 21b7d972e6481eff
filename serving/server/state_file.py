"""The file that remembers what a server was told to hold."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from multifacet.artifacts import ArtifactError
from multifacet.serving.core.holdings_events import Document, Entry


class _Held(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str = ""
    path: str


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    releases: tuple[_Held | str, ...]
    current: str


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there as before or as wanted, whenever the process or the machine stops, or the disk is full.

    Raises:
        OSError: It could not be written, and is as before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class StateFile:
    """One server's state file.

    Args:
        path: Where it is.
    """

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> Document | None:
        """What is remembered; None if there is no file.

        Raises:
            ArtifactError: It is none of a server's.
        """
        try:
            found = _File.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise ArtifactError(f"{self.path} is not a server's state: {error}. Remove it to start afresh.") from error
        # Of before versions were written down beside the paths: the current one was the last release, mostly.
        entries = [Entry("", held) if isinstance(held, str) else Entry(held.version, held.path) for held in found.releases]
        return Document(tuple(entries), found.current)

    def write(self, document: Document) -> None:
        """Remember this instead.

        Raises:
            OSError: It could not be written, and is as before.
        """
        held = [{"version": entry.version, "path": entry.path} for entry in document.releases]
        write_whole(self.path, json.dumps({"releases": held, "current": document.current}, indent=2) + "\n")
