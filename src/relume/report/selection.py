"""Which functions of the catalogue have the properties that a reader asks for, and that in one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from relume.activations import Activation, activation
from relume.errors import ActivationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """A property to ask for: the name of its option, when it holds, and how a sentence says it."""

    option: str
    holds: Callable[[Activation], bool]
    words: str  # after "is" and "are", or a verb phrase where `verb` is set
    verb: bool = False


FILTERS = (
    Filter(option="zero-centred", holds=lambda row: row.zero_centred, words="zero-centred"),
    Filter(option="smooth", holds=lambda row: row.smooth, words="smooth"),
    Filter(option="monotone", holds=lambda row: row.monotone, words="monotone"),
    Filter(option="bounded", holds=lambda row: row.bounded, words="bounded"),
    Filter(option="gated", holds=lambda row: row.gated, words="gated"),
    Filter(option="learnable", holds=lambda row: row.learnable, words="learnable"),
    Filter(option="cannot-die", holds=lambda row: not row.can_die, words="cannot die", verb=True),
    Filter(option="cannot-saturate", holds=lambda row: not row.saturates, words="cannot saturate", verb=True),
)


def cheaper_than(name: str) -> Filter:
    """The filter for functions whose measured cost is below that of another.

    Raises `ActivationError` for an unknown function, and for one whose cost was not measured.
    """
    limit = activation(name).cost
    if math.isnan(limit):
        raise ActivationError(
            f"the cost of {name} was not measured, so nothing can be cheaper than it.\n"
            "Compare with one that has a cost: relume activations lists them."
        )
    return Filter(option=f"cheaper-than {name}", holds=lambda row: row.cost < limit, words=f"cheaper than {name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Rows that pass all filters, out of `total`; `left` counts those that are left after each filter in turn."""

    rows: tuple[Activation, ...]
    filters: tuple[Filter, ...]
    left: tuple[int, ...]
    total: int


def select(rows: Iterable[Activation], filters: Sequence[Filter]) -> Selection:
    """The rows that every filter holds for."""
    kept = tuple(rows)
    total, left = len(kept), []
    for one in filters:
        kept = tuple(row for row in kept if one.holds(row))
        left.append(len(kept))
    return Selection(rows=kept, filters=tuple(filters), left=tuple(left), total=total)


def sentence(selection: Selection) -> str:
    """How many functions there are of which kind; where there is none, which filter took the last.

    >>> from relume.activations import activations
    >>> sentence(select(activations()[:2], FILTERS[3:4]))
    '1 of 2 functions is bounded.'
    """
    n, total = len(selection.rows), selection.total
    if not selection.filters:
        return f"{total} activation functions."
    adjectives = _and([f.words for f in selection.filters if not f.verb])
    verbs = _and([f.words for f in selection.filters if f.verb])
    parts = [f"{'is' if n < 2 else 'are'} {adjectives}"] * bool(adjectives) + [verbs] * bool(verbs)
    what = ", and ".join(parts)
    if n:
        return f"{n} of {total} function{'s' * (total != 1)} {what}."
    steps = []
    for one, count in zip(selection.filters, selection.left, strict=True):
        steps.append(f"--{one.option} leaves {count or 'none'}")
        if not count:
            break
    return f"None of {total} functions {what}: {', then '.join(steps)}."


def _and(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
