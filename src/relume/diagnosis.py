"""Why: symptoms and a recording in, ranked causes out. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from relume.symptoms import Symptom

Severity = Literal["note", "warning", "critical"]
Cause = Literal[
    "learning_rate_too_high", "learning_rate_too_low", "initial_scale", "bias", "unscaled_inputs", "unscaled_targets",
    "saturating_activation", "unbounded_activation", "narrow_and_deep", "output_activation", "no_gradient", "unknown",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """The same steps replayed on a copy with one thing changed."""

    change: str  # in words: "learning rate / 10"
    cause: (
        Cause | None
    )  # the cause this change would take away; None for the replay as it was
    steps: int
    burden: float  # how ill the copy was at the end, 0..1, in the measure named by `measure`
    measure: str  # "share of units dead", "share of units saturated", ...
    loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """A cause, with its evidence."""

    cause: Cause
    severity: Severity
    since: int
    symptoms: tuple[Symptom, ...]
    because: tuple[str, ...]  # sentences with numbers
    remedies: tuple[str, ...]  # names, best first
    experiments: tuple[
        Experiment, ...
    ] = ()  # the replays behind it, the unchanged one first


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Which activation calls the watch could see."""

    sites: tuple[str, ...]  # every activation call found, by name
    watched: tuple[str, ...]  # those of them that were read
    blind: tuple[str, ...] = ()  # what could not be seen, and why, one sentence each
