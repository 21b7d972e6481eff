"""A space that a user names, as a search takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from multifacet.inputs import expect_type
from multifacet.training.search.space import Choice, Family, Range, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

__all__ = ["family_of_space"]


def family_of_space(
    settings: Mapping[str, Any],
    space: Mapping[str, Range | Choice | Sequence[Any]],
    *,
    fixed: Collection[str],
    check: Callable[[Mapping[str, Any]], object],
) -> tuple[dict[str, Family], list[Recipe]]:
    """Make the one family of a space that was given, and the recipe in its middle.

    Args:
        settings: what all trials share, by dotted name.
        space: dotted name of a field -> range, choice or list of values.
        fixed: fields that trials can not differ in.
        check: makes a configuration of fields by dotted name, and refuses wrong ones.

    Returns:
        The families, of which there is one, "given"; and the recipes.

    Raises:
        TypeError: if the space, or a part of it, is none.
        ValueError: if it names what trials share, has no values for a field, or one that `check` refuses.
    """
    expect_type("space", space, Mapping)
    if shared := [name for name in space if name.split(".")[0] in fixed]:
        raise ValueError(f"the space names {shared}, which all trials share: leave them out")
    parts: dict[str, Range | Choice] = {}
    for name, part in space.items():
        expect_type(f"space[{name!r}]", part, Range, Choice, list, tuple, hint="a range, or the values to try")
        if not isinstance(part, Range | Choice) and not part:
            raise ValueError(f"the space has no values for {[name]}: give at least one")
        parts[name] = part if isinstance(part, Range | Choice) else Choice(tuple(part))
    family = Family(settings={name: value for name, value in settings.items() if name not in parts}, space=parts)
    first = {name: part.values[0] if isinstance(part, Choice) else _middle(part) for name, part in parts.items()}
    # A wrong name or value is refused before anything is trained.
    for name, part in parts.items():
        for value in part.values if isinstance(part, Choice) else (part.low, part.high):
            whole = isinstance(part, Range) and part.whole
            check({**family.settings, **first, name: round(value) if whole else value})
    return {"given": family}, [Recipe(family="given", values=first)]


def _middle(part: Range) -> float:
    value = (part.low * part.high) ** 0.5
    return round(value) if part.whole else float(f"{value:.3g}")
