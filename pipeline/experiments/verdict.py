"""What an effect says of a claim: reproduced, not reproduced, or not decidable with this data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Verdict = Literal["reproduced", "not reproduced", "not decidable here"]

LEVEL = 0.05


def judge(effect: Mapping[str, Any], expectation: str, *, margin: float) -> tuple[Verdict, str]:
    """Judges one comparison by the rule that was declared before it ran.

    A claimed difference is reproduced when it has the claimed sign at an adjusted p-value below 0.05, not reproduced when
    the interval rules out a difference of `margin` or more in the claimed direction, and otherwise not decidable. A claim
    of no difference is reproduced when the interval lies within the margin on both sides, however surely the rest differs
    from 0, and not reproduced when a larger difference is significant.

    Args:
        effect: Fields of `Effect`.
        expectation: "higher", "lower" or "no difference".
        margin: ROC-AUC below which a difference counts as none.

    Returns:
        The verdict and the reason in a sentence.
    """
    low, high = effect["low"], effect["high"]
    significant = effect["adjusted_p_value"] < LEVEL
    interval = f"{effect['difference']:+.4f} ({low:+.4f} to {high:+.4f})"
    if expectation == "no difference":
        if -margin <= low and high <= margin:
            return "reproduced", f"{interval} lies within {margin:g} on both sides"
        if significant:
            return "not reproduced", f"there is a difference, {interval}"
        return "not decidable here", f"{interval} holds 0, but also differences beyond {margin:g}"
    sign = 1.0 if expectation == "higher" else -1.0
    best = max(sign * low, sign * high)
    if significant:
        if sign * effect["difference"] > 0:
            return "reproduced", f"{interval}, adjusted p {_p(effect)}"
        return "not reproduced", f"the opposite holds: {interval}, adjusted p {_p(effect)}"
    if best < margin:
        return "not reproduced", f"{interval} rules out a difference of {margin:g}"
    return (
        "not decidable here",
        f"{interval}; a true difference of {effect['detectable']:.4f} would have shown with 80% power",
    )


def _p(effect: Mapping[str, Any]) -> str:
    value = effect["adjusted_p_value"]
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
