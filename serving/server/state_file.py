"""The file that remembers what a server was told to hold."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from multifacet.artifacts import ArtifactError, write_file
from multifacet.serving.core.holdings_events import Document, Entry


class _Held(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str = ""
    path: str


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    releases: tuple[_Held | str, ...]
    current: str


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
        content = json.dumps({"releases": held, "current": document.current}, indent=2) + "\n"
        write_file(self.path, content, durable=True)
