"""Numbers as people read them, with no more digits than they deserve."""

from __future__ import annotations

import math
from collections.abc import Sequence

from relume.verdicts import Difference


def number(value: float | None, digits: int = 2) -> str:
    """A number with as many digits as it deserves, and words for what is none."""
    if value is None:
        return "none"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    if abs(value) >= 1000:
        return f"{float(f'{value:.{digits - 1}e}'):,.0f}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(share: float) -> str:
    """A share as a whole per cent; never 0 or 100 where it is not."""
    if not math.isfinite(share):
        return number(share)
    if 0 < share < 0.005:
        return "under 1 %"
    if 0.995 < share < 1:
        return "over 99 %"
    return f"{100 * share:.0f} %"


def count(n: int, noun: str) -> str:
    """ "1 unit", "2 units", "no unit"."""
    if n == 0:
        return f"no {noun}"
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def seconds(value: float) -> str:
    """A duration: "12 s", "3 min", "2.5 h"."""
    if value < 100:
        return f"{number(value, 2)} s"
    return f"{value / 60:.0f} min" if value < 6000 else f"{number(value / 3600)} h"


def signed(value: float, decimals: int) -> str:
    """A difference with its sign: "+3.3"."""
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text


def decimals_of(difference: Difference) -> int:
    """Decimals that the width of the interval leaves meaning to."""
    width = (difference.high - difference.low) / 2
    if not math.isfinite(width) or width <= 0:
        width = abs(difference.mean)
    return max(0, min(6, 1 - math.floor(math.log10(width)))) if width > 0 and math.isfinite(width) else 0


def in_points(score: str, scores: Sequence[float | None]) -> bool:
    """Whether scores are shares that people read as points of 100, such as an accuracy."""
    known = [s for s in scores if s is not None]
    return "accuracy" in score.lower() and all(0 <= s <= 1 for s in known)


def difference(value: Difference | None, scale: float = 1.0) -> str:
    """ "+3.3 (1.2 to 5.4)": the mean and its 95 % interval."""
    if value is None:
        return ""
    scaled = Difference(mean=scale * value.mean, low=scale * value.low, high=scale * value.high)
    decimals = decimals_of(scaled)
    low, high = (number(v) if not math.isfinite(v) else f"{v:.{decimals}f}" for v in (scaled.low, scaled.high))
    return f"{signed(scaled.mean, decimals)} ({low} to {high})"


def difference_mean(value: float | str) -> str:
    """The mean alone, for a mark that stands at the edge of the axis."""
    return value if isinstance(value, str) else f"{'+' if value > 0 else ''}{number(value)}"


def ratio(value: float) -> str:
    """A cost beside the control: "same", "1.3x"."""
    if abs(value - 1) < 0.05:
        return "same"
    return f"{value:.1f}x" if 0.5 < value < 10 else f"{number(value)}x"


def fine_percent(share: float) -> str:
    """A small share with one decimal: "0.6 %"."""
    return f"{number(100 * share, 1 if share < 0.01 else 2)} %"
