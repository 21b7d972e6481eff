"""An artifact as a repository of Hugging Face's hub, or of any server that speaks its protocol (HF_ENDPOINT)."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from multifacet.artifacts import MANIFEST_NAME, ArtifactError
from multifacet.pipeline.sharing.manifest import named_files

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["HUB", "HubRemote"]

HUB: Final = "hf://"
_MISSING: Final = "the hub needs huggingface_hub: pip install 'multifacet[hub]', or pip install huggingface_hub"


class HubRemote:
    """A model repository. A push is one commit, so that a reader sees all of it or nothing.

    A pull reads one commit, whatever is pushed meanwhile. The token is that of huggingface_hub: HF_TOKEN, or `hf auth login`.

    Args:
        address: "hf://OWNER/NAME", or "hf://OWNER/NAME@REVISION".

    Raises:
        ImportError: if huggingface_hub is not installed.
        ValueError: if it is no such address.
    """

    def __init__(self, address: str):
        self.address = address
        repository, _, revision = address.removeprefix(HUB).partition("@")
        if repository.count("/") != 1 or not all(repository.split("/")):
            raise ValueError(f"{address!r} is no repository: expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
        try:
            import huggingface_hub  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ImportError(_MISSING) from error
        self._hub = huggingface_hub
        self._api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        self._repository = repository
        self._revision = revision or None
        self._commit: str | None = None
        self._cache = tempfile.TemporaryDirectory(prefix="multifacet-pull-")

    def read_manifest(self) -> bytes | None:
        """Give the manifest's bytes at the revision's commit, which is what is read from then on; None if there is none."""
        info = self._info()
        if info is None or MANIFEST_NAME not in {file.rfilename for file in info.siblings or ()}:
            return None
        self._commit = info.sha
        return Path(self._fetch(MANIFEST_NAME)).read_bytes()

    def download(self, name: str, to: Path) -> None:
        """Write one of its files to a path that does not exist.

        Raises:
            ArtifactError: if it is not there.
        """
        try:
            fetched = Path(self._fetch(name)).resolve()  # the cache's links lead to its blobs
        except self._hub.errors.EntryNotFoundError as error:
            raise ArtifactError(f"{self.address} has no file {name!r}, which its manifest names: push it again.") from error
        shutil.move(fetched, to)

    def upload(self, folder: Path, names: Sequence[str], *, card: str | None, replace: bool) -> None:
        """Commit files of a folder, with their manifest and their card.

        Raises:
            ArtifactError: if another artifact is there, and `replace` is false.
        """
        self._api.create_repo(self._repository, repo_type="model", exist_ok=True)
        info = self._info()
        held = {file.rfilename for file in (info.siblings if info is not None else None) or ()}
        if MANIFEST_NAME in held and not replace:
            raise ArtifactError(f"{self.address} holds another artifact. Give another address, or --replace it.")
        added: list[Any] = [
            self._hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name))
            for name in (*names, MANIFEST_NAME)
        ]
        if card is not None:
            added.append(self._hub.CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=card.encode()))
        # Others' files may lie in the repository: only what the older manifest names is deleted.
        replaced = named_files(self.read_manifest()) & held if MANIFEST_NAME in held else frozenset()
        kept = {operation.path_in_repo for operation in added}
        gone = [self._hub.CommitOperationDelete(path_in_repo=name) for name in sorted(replaced - kept)]
        with warnings.catch_warnings():
            # Ids belong to the vectors, and both make the model: no data set is meant.
            warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
            self._api.create_commit(
                self._repository,
                [*added, *gone],
                commit_message="multifacet push",
                revision=self._revision,
                parent_commit=info.sha if info is not None else None,
            )

    def close(self) -> None:
        """Remove what was fetched."""
        self._cache.cleanup()

    def _info(self) -> Any:
        try:
            return self._api.model_info(self._repository, revision=self._revision)
        except (self._hub.errors.RepositoryNotFoundError, self._hub.errors.RevisionNotFoundError):
            return None

    def _fetch(self, name: str) -> str:
        return str(
            self._api.hf_hub_download(
                self._repository, name, revision=self._commit or self._revision, cache_dir=self._cache.name
            )
        )
