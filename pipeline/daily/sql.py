"""Names and texts as SQL writes them."""

from __future__ import annotations

__all__ = ["quote", "quote_text"]


def quote(name: str) -> str:
    """Gives a name in double quotes.

    Example:
        >>> print(quote("shown at"))
        "shown at"
    """
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def quote_text(text: str) -> str:
    """Gives a text in single quotes.

    Example:
        >>> quote_text("it's")
        "'it''s'"
    """
    escaped = text.replace("'", "''")
    return f"'{escaped}'"
