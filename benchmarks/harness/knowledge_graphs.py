"""Where the public knowledge graphs lie that benchmarks read: below $KGE_DATA, or ../shared/data."""

from __future__ import annotations

import os
from pathlib import Path

from multifacet.kge import TripleSplit

__all__ = ["data_folder", "load_split"]

_FILES = ("train", "valid", "test")


def data_folder() -> Path:
    """Give the folder that has one folder a dataset, each with train, valid and test .txt.gz."""
    return Path(os.environ.get("KGE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def load_split(name: str) -> TripleSplit | None:
    """Read a dataset, such as "fb15k-237"; None if it is not there."""
    paths = {part: data_folder() / name / f"{part}.txt.gz" for part in _FILES}
    if not all(path.exists() for path in paths.values()):
        return None
    return TripleSplit.from_files(train=paths["train"], valid=paths["valid"], test=paths["test"])
