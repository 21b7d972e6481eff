"""Artifacts to and from elsewhere: whole or not at all, and the same to the last bit."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from multifacet.artifacts import MANIFEST_NAME, RESERVED_FIELDS, Artifact, ArtifactError, ArtifactWriter, read_manifest
from multifacet.pipeline.sharing.remote import open_remote

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from multifacet.pipeline.sharing.remote import Remote

__all__ = ["pull", "push"]

_CHUNK_BYTES: Final = 8 << 20


def push(path: str | Path, address: str, *, card: str | None = None, replace: bool = False) -> str:
    """Copy an artifact elsewhere; what is there already and the same is left as it is.

    Args:
        path: a snapshot, a release, or another artifact; every file is checked first.
        address: see `open_remote`.
        card: text to put beside it, as README.md.
        replace: whether another artifact that is there is replaced.

    Returns:
        The fingerprint.

    Raises:
        ArtifactError: if the artifact is damaged, or another one is there.
        ImportError: if a library is not installed.
    """
    artifact = Artifact.open(path, verify=True)
    remote = open_remote(address)
    try:
        there = remote.read_manifest()
        if there is not None and hashlib.sha256(there).hexdigest() == artifact.fingerprint:
            return artifact.fingerprint
        remote.upload(artifact.path, sorted(artifact.manifest["files"]), card=card, replace=replace)
        artifact.check_unreplaced()
    finally:
        remote.close()
    return artifact.fingerprint


def pull(address: str, path: str | Path, *, fingerprint: str | None = None, replace: bool = False) -> Artifact:
    """Copy an artifact from elsewhere; it appears at the path when every file has the sha256 of its manifest.

    Args:
        address: see `open_remote`.
        path: folder to write; it must not exist, unless `replace`.
        fingerprint: what it must be, or its first characters; None takes what is there.
        replace: whether an artifact that is there is replaced, in one step.

    Returns:
        The artifact, opened.

    Raises:
        ArtifactError: if there is none, it is not what its manifest says, or it is another one.
        ImportError: if a library is not installed.
    """
    remote = open_remote(address)
    try:
        raw = remote.read_manifest()
        if raw is None:
            raise ArtifactError(f"There is no artifact at {address}: {MANIFEST_NAME} is missing.")
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, MANIFEST_NAME).write_bytes(raw)
            _, manifest = read_manifest(Path(folder))  # hostile names and edited manifests end here
        found = hashlib.sha256(raw).hexdigest()
        if fingerprint is not None and not (fingerprint and found.startswith(fingerprint)):
            raise ArtifactError(f"{address} is {found}; {fingerprint} was asked for.")
        with ArtifactWriter(path, kind=manifest["kind"], replace=replace) as writer:
            for name, entry in manifest["files"].items():
                _download(remote, name, entry, writer.directory)
            writer.manifest |= {key: value for key, value in manifest.items() if key not in RESERVED_FIELDS}
    finally:
        remote.close()
    artifact = Artifact.open(path, verify=False)
    if artifact.fingerprint != found:
        raise ArtifactError(
            f"{path} is {artifact.fingerprint} after the copy, {address} was {found}: somebody wrote in between."
        )
    return artifact


def _download(remote: Remote, name: str, entry: Mapping[str, Any], folder: Path) -> None:
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    remote.download(name, target)
    digest = hashlib.sha256()
    with target.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != entry["sha256"] or target.stat().st_size != entry["bytes"]:
        raise ArtifactError(
            f"{remote.address}: {name} has sha256 {digest.hexdigest()} and {target.stat().st_size} bytes, its manifest says "
            f"{entry['sha256']} and {entry['bytes']}. Nothing was written; pull again, or push an intact copy."
        )
