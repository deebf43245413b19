"""What a claim is, what an experiment finds, and how both are written down. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["supported", "refuted", "depends"]
Kind = Literal["dots", "lines"]

VERDICTS: tuple[Verdict, ...] = ("supported", "depends", "refuted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Numbers that belong together in a figure; `low` and `high` are the ends of 95 % intervals, or empty."""

    name: str
    x: tuple[str | float, ...]  # names of rows in a figure of dots, numbers in one of lines
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure as data: named rows with a value and its interval each (`dots`), or curves (`lines`)."""

    title: str
    kind: Kind
    x: str  # name and unit of the horizontal axis; in a figure of dots, of the values
    y: str = ""  # of the vertical axis; a figure of dots has names there
    series: tuple[Series, ...] = ()
    log_x: bool = False
    log_y: bool = False
    mark: float | None = None  # a value to compare with, drawn as a line across the axis of values
    mark_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What an experiment says of a claim: the verdict, its number with a 95 % interval, and a figure.

    An interval of a number that is exact, because nothing in it was drawn or timed, has no width.
    """

    verdict: Verdict
    because: str  # in sentences, with the numbers
    measured: str  # what the number is
    number: float
    low: float
    high: float
    unit: str = ""
    seeds: int = 1  # repetitions behind the interval: seeds, or rounds of a timing
    depends_on: str = ""  # what the verdict "depends" depends on
    figure: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A statement people make, and the experiment that can show it, or its opposite.

    The experiment takes a `Lab` and, as further arguments with defaults, the subject that it examines, so that the same
    experiment can be fed another subject, for which the verdict flips.
    """

    id: str
    statement: str
    experiment: Callable[..., Finding]
    source: str  # where the statement, or what it rests on, was published


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A claim with what was found."""

    id: str
    statement: str
    source: str
    finding: Finding
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All that one `relume claims` found, and where and when."""

    results: tuple[Result, ...]
    quick: bool
    seeds: int
    date: str  # ISO, UTC
    seconds: float
    finished: bool = True
    about: Mapping[str, str] = field(default_factory=dict)  # machine and versions

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values; numbers that JSON lacks are None."""
        return plain(asdict(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Results:
        """The results that `to_json` wrote."""
        return cls(**{**data, "results": tuple(_result(row) for row in data["results"])})


def plain(value: Any) -> Any:
    """Plain JSON values: tuples as lists, and None for a number that JSON lacks."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _result(row: Mapping[str, Any]) -> Result:
    found = row["finding"]
    numbers = {name: math.nan if found[name] is None else found[name] for name in ("number", "low", "high")}
    series = tuple(Series(**{k: _tuple(v) for k, v in each.items()}) for each in found["figure"]["series"])
    figure = Figure(**{**found["figure"], "series": series})
    return Result(**{**row, "finding": Finding(**{**found, **numbers, "figure": figure})})


def _tuple(value: Any) -> Any:
    return tuple(math.nan if v is None else v for v in value) if isinstance(value, list) else value
