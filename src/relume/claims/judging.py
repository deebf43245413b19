"""How numbers with intervals become a verdict. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist, median
from typing import Literal

from relume.claims.record import Figure, Series, Verdict
from relume.verdicts import CONFIDENCE, Difference, mean_interval

Answer = Literal["yes", "no", "open"]


def answer(value: Difference, least: float) -> Answer:
    """Whether a number is above the least that matters: "open" where its interval holds that least number."""
    return "yes" if value.low > least else "no" if value.high <= least else "open"


def below(value: Difference, most: float) -> Answer:
    """Whether a number is below the most that is allowed."""
    return "yes" if value.high < most else "no" if value.low >= most else "open"


def fact(holds: bool) -> Answer:
    """The answer where nothing was drawn or timed."""
    return "yes" if holds else "no"


def judge(answers: Mapping[str, Answer]) -> tuple[Verdict, str]:
    """The verdict on a claim that was examined under several conditions, and what it depends on.

    Supported where it holds under each, refuted where it holds under none; else it depends. A condition whose interval
    leaves it open supports nothing and refutes nothing.
    """
    by_answer = {word: [name for name, given in answers.items() if given == word] for word in ("yes", "no", "open")}
    if len(by_answer["yes"]) == len(answers):
        return "supported", ""
    if len(by_answer["no"]) == len(answers):
        return "refuted", ""
    words = {"yes": "holds", "no": "does not hold", "open": "open"}
    return "depends", "; ".join(f"{words[word]}: {', '.join(names)}" for word, names in by_answer.items() if names)


def exact(value: float) -> Difference:
    """A number in which nothing was drawn: its interval has no width."""
    return Difference(mean=value, low=value, high=value)


def geometric(values: Sequence[float]) -> Difference:
    """The geometric mean of positive values, with its 95 % interval (Student's t on the logarithms)."""
    found = mean_interval([math.log(value) for value in values])
    return Difference(mean=math.exp(found.mean), low=_exp(found.low), high=_exp(found.high))


def median_interval(values: Sequence[float]) -> Difference:
    """The median with its distribution-free 95 % interval from order statistics.

    The ranks are those of the sign test, in its normal approximation.
    Source: Conover 1999, Practical Nonparametric Statistics, section 3.2.
    """
    ordered = sorted(values)
    n = len(ordered)
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(n) / 2
    low, high = math.floor(n / 2 - half), math.ceil(n / 2 + half)
    if low < 1:
        return Difference(mean=median(ordered), low=-math.inf, high=math.inf)
    return Difference(mean=median(ordered), low=ordered[low - 1], high=ordered[min(high, n - 1)])


def said(value: Difference, digits: int = 3) -> str:
    """ "2.1 (1.8 to 2.4)"."""
    if value.low == value.high:
        return f"{value.mean:.{digits}g}"
    return f"{value.mean:.{digits}g} ({value.low:.{digits}g} to {value.high:.{digits}g})"


def dots(
    title: str, axis: str, rows: Mapping[str, Difference], *, mark: float | None = None, mark_name: str = "",
    log: bool = False,
) -> Figure:  # fmt: skip
    """A figure of named numbers with their intervals."""
    values = list(rows.values())
    series = Series(
        name=title,
        x=tuple(rows),
        y=tuple(v.mean for v in values),
        low=tuple(v.low for v in values),
        high=tuple(v.high for v in values),
    )
    return Figure(title=title, kind="dots", x=axis, series=(series,), log_x=log, mark=mark, mark_name=mark_name)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
