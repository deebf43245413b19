"""The record of a symptom, and every threshold that decides one, with its source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Kind = Literal["dead", "saturated", "vanishing", "exploding", "non_finite", "not_learning", "oscillating", "off_centre"]
Severity = Literal["note", "warning", "critical"]

SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "note")

# Evidence ----------------------------------------------------------------------------------------------------------
ENOUGH_SAMPLES = 1000  # rule of three: silent on n samples bounds the firing rate by 3/n with 95 % confidence
RATE_DOUBT = 0.05  # chance that a bound of the firing rate is wrong: the usual 95 % confidence
CLOSED_SAMPLES = 100  # where a whole layer is silent: the same rule says that it opens on less than 3 % of the samples
SATURATED_SAMPLES = 0.5  # of a unit's samples on a flat end, where both ends are flat: it learns from the minority
GRADIENT_RATIO = 1e3  # first to last site; float16's whole normal range is 1e4, and AutoTrainer (ICSE 2021) uses 1e3
ORDERS = 12  # of magnitude between a gradient that trains and one that is as good as none; a scale, not a test
FEWEST_SITES = 3  # below that a ratio of gradients says nothing about depth
FEWEST_READINGS = 3  # without a gradient: a branch that starts at zero gets its first one a step later
MOSTLY_CONSTANT = (
    0.5  # of the energy: the squared mean outweighs the variance; under N(0, 1) sigmoid has 0.85, ReLU 0.32
)
SWINGS = 0.25  # of the second half above the first loss, and as much below half of it
LEAPS = 3  # back above the first loss: once is a spike, twice a restart
FEWEST_LOSSES = 100  # to tell a loss that falls slowly from one that does not
FEWEST_BLOCKS = 20  # of averaged losses
SMOOTHED = 32  # samples, the usual smallest batch, that a loss is averaged over before its course is judged
# Severity ----------------------------------------------------------------------------------------------------------
BORN_EXCESS = 0.1  # of a site's units beyond what theory expects: initialisation does not do that by chance
DEAD_OF_SITE = 0.5  # as SageMaker Debugger's DeadRelu rule: half a layer
DEAD_OF_NETWORK = 0.25  # a quarter of all units that could fire: one layer's worth in a network of four
PULLED = 0.1  # of the greatest gradient among the outputs: a dead one with more would be moved if it could
CLOSED_SITE = 0.98  # nothing gets through
STILL = 0.01  # of its own size that a weight has moved in a whole run: a tenth of what a hundred usual steps do
LEARNT = 0.5  # share of its first value that a loss has lost, past which the network plainly learns
UNLEARNT = 0.1  # below that it plainly does not; also of what separates the best constant answer from the least loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """Units at one site, or a whole run, that misbehave in one way."""

    kind: Kind
    site: str  # "" for the whole run
    units: tuple[int, ...] = ()
    share: float = 1.0  # of the site's units, 0..1
    since: int = 0  # first step from which it holds until the end
    born: bool = False  # true from the first reading on
    evidence: Mapping[str, float] = field(default_factory=dict)  # the numbers that decided it, in report order
    severity: Severity = "warning"  # what it means for the network, as far as the numbers say
    at_worst: Severity | None = None  # where replays decide: what it is if a change learns plainly more, else a note


def gravest(severities: Iterable[Severity]) -> Severity:
    """The worst of some severities; a note where there are none."""
    worst: Severity = "note"
    for severity in severities:
        worst = severity if SEVERITIES.index(severity) < SEVERITIES.index(worst) else worst
    return worst


def at_least(symptom: Symptom, severity: Severity) -> Symptom:
    return replace(symptom, severity=gravest((symptom.severity, severity)))
