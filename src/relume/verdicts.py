"""What a trial says of an arm: runs in, verdicts out. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["cured", "eased", "no_effect", "harmed", "unproven"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One arm trained with one seed."""

    arm: str
    seed: int
    score: (
        float | None
    )  # higher is better; None when the run diverged or could not be scored
    burden: float  # how ill the network was at the end, 0..1; see `symptoms.burden`
    kinds: tuple[str, ...] = ()  # symptoms that made it ill, such as ("dead",)
    dead_share: float = 0.0  # of all units of all sites
    saturated_share: float = 0.0
    losses: tuple[float, ...] = ()  # thinned to at most 200, evenly over the run
    steps: int = 0
    seconds: float = 0.0
    parameters: int = 0
    failure: str = (
        ""  # "diverged: loss is NaN at step 12", or why the remedy could not be applied
    )
    engine: str = ""  # where it ran: "process 4711"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Mean paired difference of the score to the control, with its 95 % interval (Student's t over seeds)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the arm costs beside the control, as ratios: 1.0 is the same."""

    time: float
    parameters: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One variant in a trial, judged against the untreated control."""

    name: str  # "untreated", or the remedy's name
    verdict: Verdict | None  # None for the control
    symptoms: tuple[str, ...]  # kinds still seen in at least half of the seeds
    scores: tuple[float | None, ...]  # per seed; None: diverged
    difference: (
        Difference | None
    )  # None for the control, and where no seed could be compared
    cost: Cost | None
    dead_share: float = 0.0  # mean over seeds
    saturated_share: float = 0.0
    because: str = ""  # the verdict in one sentence, with its numbers
    failure: str = ""  # why the remedy could not be applied; then there are no scores
    changes: Mapping[str, str] = field(
        default_factory=dict
    )  # what the remedy did, by place
    runs: tuple[Run, ...] = ()
