"""What the manifest of an artifact elsewhere names."""

from __future__ import annotations

import json

__all__ = ["named_files"]


def named_files(manifest: bytes | None) -> frozenset[str]:
    """Give the files that a manifest names; none where it cannot be read.

    Args:
        manifest: its bytes, as they lie elsewhere: nothing about them is believed.
    """
    try:
        files = json.loads(manifest or b"{}")["files"]
    except (ValueError, KeyError, TypeError):
        return frozenset()
    return frozenset(files) if isinstance(files, dict) else frozenset()
