"""A place for one artifact outside of this machine, and which class speaks to which address."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from multifacet.pipeline.sharing.filesystem import FileSystemRemote
from multifacet.pipeline.sharing.hub import HUB, HubRemote

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Remote", "open_remote"]


class Remote(Protocol):
    """One place that holds one artifact, or none."""

    address: str

    def read_manifest(self) -> bytes | None:
        """Give the manifest's bytes; None if there is no artifact."""

    def download(self, name: str, to: Path) -> None:
        """Write one of its files to a path that does not exist."""

    def upload(self, folder: Path, names: Sequence[str], *, card: str | None, replace: bool) -> None:
        """Copy files of a folder there so that a reader sees all of them with their manifest, or none."""

    def close(self) -> None:
        """Let go of what was opened."""


def open_remote(address: str) -> Remote:
    """Open a place by its address.

    Args:
        address: "hf://OWNER/NAME" or "hf://OWNER/NAME@REVISION", or the URI of a folder: s3://, gs://, hdfs://, file://, a
            path, and whatever fsspec has a driver for.

    Raises:
        ImportError: if the library that it needs is not installed.
        ValueError: if nothing speaks to such an address.
    """
    return HubRemote(address) if address.startswith(HUB) else FileSystemRemote(address)
