"""Packages that an extra installs, imported when they are first needed."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["import_extra"]


def import_extra(module: str, extra: str) -> Any:
    """Imports a module that an extra installs.

    Args:
        module: Its name.
        extra: The extra.

    Raises:
        ImportError: It is not installed; the message says what installs it.

    Example:
        >>> import_extra("json", "none").dumps(1)
        '1'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        msg = f"{module.partition('.')[0]} is not installed: pip install 'multifacet[{extra}]'"
        raise ImportError(msg) from error
