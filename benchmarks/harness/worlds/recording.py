"""What a writer of the library does to files, step by step: recorded from the real one, to be done again on a disk of a world.

Names, links, removals and syncs are taken down as they happen. What was written between two of them is seen by looking at the
folder, so that it does not matter who writes: Python, numpy or a library in C.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from multifacet.artifacts import files


@dataclass(frozen=True, slots=True)
class FileStep:
    """One thing that was done to files.

    Attributes:
        kind: ``write``, ``sync_file``, ``sync_folder``, ``rename``, ``exchange``, ``link`` or ``remove``.
        path: What it was done to, relative to the recorded folder; empty for that folder.
        target: The other name, of those that have two.
        content: What was written.
    """

    kind: str
    path: str
    target: str = ""
    content: bytes = field(default=b"", repr=False)


@contextlib.contextmanager
def recorded(root: Path) -> Iterator[list[FileStep]]:  # noqa: C901  (a closure for each kind of step)
    """Take down what is done to files below a folder within the ``with`` block.

    Yields:
        The steps, in order.
    """
    steps: list[FileStep] = []
    seen: dict[str, bytes] = _look(root)
    lock = threading.Lock()

    def see_writes() -> None:
        found = _look(root)
        for path, content in found.items():
            if seen.get(path) != content:
                steps.append(FileStep("write", path, content=content))
                seen[path] = content

    def note(kind: str, path: str | None, target: str | None = None) -> None:
        if path is not None and (target is not None or kind not in {"rename", "exchange", "link"}):
            steps.append(FileStep(kind, path, target or ""))

    def wrap(kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with lock:
                see_writes()
                result = real(*args, **kwargs)
                given = [_inside(root, _path(argument)) for argument in args[:2]]
                if kind == "sync":
                    note("sync_folder" if os.path.isdir(_path(args[0])) else "sync_file", given[0])  # noqa: PTH112
                else:
                    note(kind, *given[: 1 if kind == "remove" else 2])
                seen.clear()
                seen.update(_look(root))
                return result

        return call

    def rename_at(source: Path, target: Path, flags: int) -> bool:
        with lock:
            see_writes()
            done = real_rename_at(source, target, flags)
            if done:
                note("exchange" if flags & 2 else "rename", _inside(root, str(source)), _inside(root, str(target)))
                seen.clear()
                seen.update(_look(root))
            return done

    real_rename_at = files._renameat2
    patched = {"fsync": "sync", "rename": "rename", "replace": "rename", "link": "link", "unlink": "remove", "remove": "remove"}
    with contextlib.ExitStack() as stack:
        for name, kind in patched.items():
            stack.enter_context(mock.patch.object(os, name, wrap(kind, getattr(os, name))))
        stack.enter_context(mock.patch.object(files, "_renameat2", rename_at))
        yield steps
        with lock:
            see_writes()


def _path(argument: Any) -> str:
    return os.readlink(f"/proc/self/fd/{argument}") if isinstance(argument, int) else os.path.abspath(argument)  # noqa: PTH100, PTH115


def _inside(root: Path, path: str) -> str | None:
    """A path relative to the folder; None if it is elsewhere."""
    base = str(root)
    if path == base:
        return ""
    return path[len(base) + 1 :] if path.startswith(f"{base}/") else None


def _look(root: Path) -> dict[str, bytes]:
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(FileNotFoundError):
                found[_inside(root, str(path)) or ""] = path.read_bytes()
    return found
