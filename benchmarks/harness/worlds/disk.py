"""A disk that forgets what was not synced: files and names are lost, torn or reordered when its power goes."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

TORN: Final = object()
"""The content of a file of which a part is there."""


@dataclass(slots=True)
class Inode:
    """A file's content: what a reader sees, and what the disk has for sure."""

    content: Any = None
    synced: Any = TORN


@dataclass(frozen=True, slots=True)
class NameChange:
    """A change of names that the folders have not been synced since."""

    kind: str
    source: str
    target: str = ""
    inode: Inode | None = None


def tear(_content: Any, _chooser: random.Random) -> Any:
    """A part of a content that is no text."""
    return TORN


def tear_bytes(content: bytes, chooser: random.Random) -> bytes:
    """The beginning of a content, of any length."""
    return content[: chooser.randrange(len(content) + 1)] if content else b""


class Disk:
    """Files by path, folders by what is in them.

    What POSIX promises and no more: a file's content is safe once the file was synced, a name once its folder was. Whatever
    was not may be there after a power cut, or not, in any combination.

    Args:
        torn: Gives what is left of a content that is half written.
    """

    def __init__(self, torn: Callable[[Any, random.Random], Any] = tear) -> None:
        self.names: dict[str, Inode] = {}
        self.durable: dict[str, Inode] = {}
        self.pending: list[NameChange] = []
        self.is_full = False
        self._tear = torn

    def read(self, path: str) -> Any:
        """A file's content; None if there is none."""
        inode = self.names.get(path)
        return None if inode is None else inode.content

    def write(self, path: str, content: Any) -> None:
        """Write a file, in place if it is there.

        Raises:
            OSError: The disk is full.
        """
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        inode = self.names.get(path)
        if inode is None:
            inode = self.names[path] = Inode()
            self.pending.append(NameChange("create", path, inode=inode))
        inode.content = content

    def sync_file(self, path: str) -> None:
        """Make a file's content safe."""
        inode = self.names[path]
        inode.synced = inode.content

    def sync_folder(self, folder: str) -> None:
        """Make the names in a folder safe."""
        left = []
        for change in self.pending:
            if folder in {os.path.dirname(change.source), os.path.dirname(change.target)}:  # noqa: PTH120
                _apply(self.durable, change)
            else:
                left.append(change)
        self.pending = left

    def rename(self, source: str, target: str) -> None:
        """Give a file or a folder another name, in place of whatever has it."""
        self._change(NameChange("rename", source, target, self.names.get(source)))

    def exchange(self, source: str, target: str) -> None:
        """Swap two folders."""
        self._change(NameChange("exchange", source, target))

    def link(self, source: str, target: str) -> None:
        """Give a file a second name."""
        self._change(NameChange("link", source, target, self.names[source]))

    def remove(self, path: str) -> None:
        """Take a file's name away; nothing if it has none."""
        if path in self.names:
            self._change(NameChange("remove", path))

    def cut_power(self, chooser: random.Random) -> None:
        """Forget what was not synced, or a part of it."""
        odds = chooser.random()
        for change in self.pending:
            if chooser.random() < odds:
                _apply(self.durable, change)
        for inode in self.durable.values():
            if inode.content is not inode.synced:
                inode.content = chooser.choice((inode.synced, inode.content, self._tear(inode.content, chooser)))
                inode.synced = inode.content
        self.names = dict(self.durable)
        self.pending = []

    def copy(self) -> Disk:
        """The same disk once more, which changes on its own."""
        other = Disk(self._tear)
        inodes = {id(inode): Inode(inode.content, inode.synced) for inode in (*self.names.values(), *self.durable.values())}
        inodes |= {
            id(change.inode): Inode(change.inode.content, change.inode.synced)
            for change in self.pending
            if change.inode is not None and id(change.inode) not in inodes
        }
        other.names = {path: inodes[id(inode)] for path, inode in self.names.items()}
        other.durable = {path: inodes[id(inode)] for path, inode in self.durable.items()}
        other.pending = [
            NameChange(
                change.kind, change.source, change.target, inodes[id(change.inode)] if change.inode is not None else None
            )
            for change in self.pending
        ]
        return other

    def _change(self, change: NameChange) -> None:
        _apply(self.names, change)
        self.pending.append(change)


def _apply(names: dict[str, Inode], change: NameChange) -> None:
    source, target, inode = change.source, change.target, change.inode
    if change.kind in {"create", "link"}:
        if inode is not None:
            names[target or source] = inode
    elif change.kind == "remove":
        names.pop(source, None)
    elif inode is not None:
        names.pop(source, None)
        names[target] = inode
    else:
        moved = {target + path[len(source) :]: names.pop(path) for path in list(names) if path.startswith(f"{source}/")}
        replaced = {source + path[len(target) :]: names.pop(path) for path in list(names) if path.startswith(f"{target}/")}
        names.update(moved)
        if change.kind == "exchange":
            names.update(replaced)
