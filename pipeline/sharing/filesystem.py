"""An artifact on any file system that pyarrow or fsspec speaks to: S3, GCS, HDFS, Azure, a mounted folder."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
from pyarrow import fs

from multifacet.artifacts import MANIFEST_NAME, ArtifactError
from multifacet.pipeline.sharing.manifest import named_files

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FileSystemRemote"]

_CHUNK_BYTES: Final = 8 << 20


class FileSystemRemote:
    """A folder of a file system.

    The manifest is written last and covers every file: before it is there, there is no artifact. So a copy that is cut off is
    none, on stores too that cannot rename.

    Args:
        address: the folder's URI, or a path.

    Raises:
        ValueError: if neither library speaks to such an address.
    """

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        self._files, self._folder = _open(self.address)

    def read_manifest(self) -> bytes | None:
        """Give the manifest's bytes; None if there is no artifact."""
        path = f"{self._folder}/{MANIFEST_NAME}"
        if self._files.get_file_info(path).type != fs.FileType.File:
            return None
        with self._files.open_input_stream(path) as stream:
            return bytes(stream.read())

    def download(self, name: str, to: Path) -> None:
        """Write one of its files to a path that does not exist.

        Raises:
            ArtifactError: if it is not there.
        """
        try:
            with self._files.open_input_stream(f"{self._folder}/{name}") as stream, to.open("xb") as file:
                shutil.copyfileobj(stream, file, _CHUNK_BYTES)
        except FileNotFoundError as error:
            raise ArtifactError(f"{self.address} has no file {name!r}, which its manifest names: push it again.") from error

    def upload(self, folder: Path, names: Sequence[str], *, card: str | None, replace: bool) -> None:
        """Copy files of a folder there, the manifest last; of what is there only files of an artifact that is replaced go.

        Raises:
            ArtifactError: if something is there, and `replace` is false.
        """
        found = self._files.get_file_info(fs.FileSelector(self._folder, recursive=True, allow_not_found=True))
        held = [info.path for info in found if info.type == fs.FileType.File]
        manifest = f"{self._folder}/{MANIFEST_NAME}"
        replaced: frozenset[str] = frozenset()
        if any(path == manifest for path in held):
            if not replace:
                raise ArtifactError(f"{self.address} holds another artifact. Give another address, or --replace it.")
            replaced = frozenset(f"{self._folder}/{name}" for name in named_files(self.read_manifest()))
            self._files.delete_file(manifest)  # from here on there is no artifact, until the new one is whole
        for name in names:
            target = f"{self._folder}/{name}"
            self._files.create_dir(target.rpartition("/")[0], recursive=True)
            with (folder / name).open("rb") as file, self._files.open_output_stream(target) as stream:
                shutil.copyfileobj(file, stream, _CHUNK_BYTES)
        if card is not None:
            with self._files.open_output_stream(f"{self._folder}/README.md") as stream:
                stream.write(card.encode())
        # Others' files may lie in the folder: only what the older manifest names is deleted, and only where it was listed.
        for path in replaced.intersection(held) - {f"{self._folder}/{name}" for name in names}:
            self._files.delete_file(path)
        with self._files.open_output_stream(manifest) as stream:
            stream.write((folder / MANIFEST_NAME).read_bytes())

    def close(self) -> None:
        """Nothing is open."""


def _open(address: str) -> tuple[fs.FileSystem, str]:
    try:
        opened, folder = fs.FileSystem.from_uri(address)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        if "://" not in address:
            return fs.LocalFileSystem(), str(Path(address).resolve())
        if find_spec("fsspec") is None:
            raise ValueError(f"{address}: pyarrow has no file system for it ({error}), and fsspec is not installed") from error
        import fsspec  # noqa: PLC0415 - optional

        try:
            spec, folder = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as unknown:
            raise ValueError(f"{address}: neither pyarrow nor fsspec speaks to it: {unknown}") from unknown
        opened = fs.PyFileSystem(fs.FSSpecHandler(spec))
    return opened, folder.rstrip("/")
