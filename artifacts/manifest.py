"""The manifest of an artefact: its canonical bytes, and the checks that a hostile or damaged one fails."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA_VERSION: Final = 1
MANIFEST_NAME: Final = "manifest.json"
RESERVED_FIELDS: Final = frozenset({"schema_version", "kind", "files"})

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class ArtifactError(ValueError):
    """An artefact that cannot be written, or that is not what its manifest says."""


def canonical_bytes(document: dict[str, Any]) -> bytes:
    """Gives the one form in which a manifest is written: sorted keys, two spaces, UTF-8, a final newline."""
    text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def check_json(value: object, where: str) -> None:
    """Refuses what JSON cannot hold exactly.

    Args:
        value: A manifest's field, or a part of one.
        where: Its place, for the error, e.g. "manifest.metrics".

    Raises:
        ArtifactError: A key that is not a string, NaN, Inf, text that UTF-8 cannot hold, or a type that JSON lacks.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ArtifactError(f"{where} has the key {key!r}; JSON takes strings only.")
            check_json(key, f"a key of {where}")
            check_json(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            check_json(item, f"{where}[{position}]")
    else:
        _check_scalar(value, where)


def _check_scalar(value: object, where: str) -> None:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ArtifactError(f"{where} is {value!r}, which UTF-8 cannot hold.") from None
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ArtifactError(f"{where} is {value}, which JSON cannot hold; leave it out or write None.")
    elif value is not None and not isinstance(value, int):
        raise ArtifactError(
            f"{where} is a {type(value).__qualname__}, which JSON cannot hold; convert it to a plain number, string, "
            "list or dict."
        )


def check_file_name(name: str, where: Path) -> None:
    """Refuses a file name that could leave the artefact, or that two systems could read differently."""
    plain = name.isprintable() and "\\" not in name and name != MANIFEST_NAME
    parts = name.split("/")
    if not plain or PurePosixPath(name).is_absolute() or not {"", ".", ".."}.isdisjoint(parts):
        raise ArtifactError(
            f"{where}: the file name {name!r} is refused; names are relative, printable, with '/', and stay inside."
        )


def read_manifest(root: Path) -> tuple[bytes, dict[str, Any]]:
    """Reads and checks the manifest of an artefact, but not its files.

    Args:
        root: The artefact's directory.

    Returns:
        The manifest's bytes and its fields.

    Raises:
        ArtifactError: There is none; or it is a link, not canonical JSON, of another schema version, or names a file
            outside of the artefact.
    """
    path = root / MANIFEST_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"There is no artefact at {root}: {MANIFEST_NAME} is missing.") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be opened as a plain file: {error.strerror}.") from error
    with os.fdopen(descriptor, "rb") as stream:
        raw = stream.read()
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not JSON: {error}.") from error
    if not isinstance(manifest, dict):
        raise ArtifactError(f"{path} holds a {type(manifest).__name__}; expected an object.")
    version = manifest.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema_version {version!r}; this version of multifacet reads {SCHEMA_VERSION}. "
            "Use the version that wrote it, or write it again."
        )
    if not isinstance(manifest.get("kind"), str):
        raise ArtifactError(f"{path}: the field 'kind' must be a string.")
    _check_file_entries(manifest.get("files"), path)
    check_json(manifest, str(path))
    if canonical_bytes(manifest) != raw:
        raise ArtifactError(f"{path} is not in canonical form, so it was edited after it was written.")
    return raw, manifest


def _check_file_entries(files: object, manifest_path: Path) -> None:
    if not isinstance(files, dict):
        raise ArtifactError(f"{manifest_path}: the field 'files' must be an object.")
    for name, entry in files.items():
        check_file_name(name, manifest_path)
        described = (
            isinstance(entry, dict)
            and entry.keys() == {"sha256", "bytes"}
            and isinstance(entry["sha256"], str)
            and _SHA256.fullmatch(entry["sha256"]) is not None
            and type(entry["bytes"]) is int
            and entry["bytes"] >= 0
        )
        if not described:
            raise ArtifactError(f"{manifest_path}: files[{name!r}] must be {{'sha256': hex, 'bytes': count}}.")
