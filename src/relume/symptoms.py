"""What is wrong: a recording in, symptoms out. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal[
    "dead",
    "saturated",
    "vanishing",
    "exploding",
    "non_finite",
    "not_learning",
    "oscillating",
    "off_centre",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """Units at one site, or a whole run, that misbehave in one way."""

    kind: Kind
    site: str  # "" for the whole run
    units: tuple[int, ...] = ()
    share: float = 1.0  # of the site's units, 0..1
    since: int = 0  # first step from which it holds until the end
    born: bool = False  # true from the first reading on
    evidence: Mapping[str, float] = field(
        default_factory=dict
    )  # the numbers that decided it, in report order
