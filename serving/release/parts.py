"""Which files of a release a host needs: a half of it, and of the lookup half one shard.

A release in N shards has the files of shard s in ``lookup/shard-<s>-of-<N>/``, and what all lookup hosts need beside it, as an
unsplit release has it. The one manifest names all files of all parts, so that the version, which is its hash, covers every byte
of every shard, and each part can be checked where it alone was copied to.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal

from multifacet.artifacts import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Half = Literal["lookup", "ranker"]

_SHARD: Final = re.compile(r"lookup/shard-(\d+)-of-\d+/")


def shard_folder(shard: int, num_shards: int) -> str:
    """The folder of a shard's files within a release.

    Example:
        >>> shard_folder(1, 4)
        'lookup/shard-1-of-4'
    """
    return f"lookup/shard-{shard}-of-{num_shards}"


def files_of(names: Iterable[str], half: Half | None, shard: int | None) -> list[str]:
    """The files of a part.

    Args:
        names: Names of all of the release's files.
        half: The half; None for both.
        shard: The shard of the lookup half; None leaves out none.

    Example:
        >>> names = ["lookup/a.rows", "lookup/shard-0-of-2/b.rows", "lookup/shard-1-of-2/b.rows", "ranker/upper.pt2"]
        >>> files_of(names, "lookup", 1)
        ['lookup/a.rows', 'lookup/shard-1-of-2/b.rows']
    """
    chosen = []
    for name in names:
        owner = _SHARD.match(name)
        if (half is None or name.startswith(f"{half}/")) and (shard is None or owner is None or int(owner[1]) == shard):
            chosen.append(name)
    return chosen


def choose_shard(path: Path, num_shards: int, half: Half | None, wanted: int | None) -> int | None:
    """The shard that a host means.

    Args:
        path: The release.
        num_shards: How many shards it has; 1 if it is whole.
        half: The half that is opened.
        wanted: What was asked for; None takes the only shard whose folder is there.

    Returns:
        None for a release that is whole, and where no shard is needed.

    Raises:
        ArtifactError: There is no such shard, or none or several are there and none was asked for.
    """
    if wanted is not None and not (half == "lookup" and num_shards > 1 and 0 <= wanted < num_shards):
        has = f"has {num_shards} shards, 0 to {num_shards - 1}" if num_shards > 1 else "is not split into shards"
        raise ArtifactError(f"{path} {has}: there is no shard {wanted} of its {half or 'lookup and ranker'} half")
    if num_shards == 1 or half != "lookup" or wanted is not None:
        return wanted
    held = [shard for shard in range(num_shards) if (path / shard_folder(shard, num_shards)).is_dir()]
    if len(held) != 1:
        raise ArtifactError(
            f"{path} is split into {num_shards} shards, of which {held or 'none'} are here: a lookup server holds one. "
            "Say which (shard=0, 1, ...), or copy one shard's folder only."
        )
    return held[0]
