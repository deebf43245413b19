"""What is wrong: a recording in, symptoms out. No torch here.

A detector is a function from a recording to the symptoms of one kind; `DETECTORS` lists them. What normal networks do
is not a symptom: sparse units, logits that saturate because the task is solved, gradients that shrink as training
converges, and the dead units that every deep ReLU network is born with (`theory.expected_dead_share`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from relume.activations import ACTIVATIONS
from relume.recording import Recording, Site
from relume.symptoms.course import (
    find_alike,
    find_cut_off,
    find_exploding,
    find_non_finite,
    find_not_learning,
    find_oscillating,
    find_out_of_reach,
    find_vanishing,
    gradient_by_depth,
)
from relume.symptoms.evidence import late_loss, loss_unit, progress, run_level, usual_update
from relume.symptoms.record import (
    BORN_EXCESS,
    CLOSED_SAMPLES,
    CLOSED_SITE,
    DEAD_OF_NETWORK,
    DEAD_OF_SITE,
    ENOUGH_SAMPLES,
    FEWEST_BLOCKS,
    FEWEST_LOSSES,
    FEWEST_READINGS,
    FEWEST_SITES,
    GRADIENT_RATIO,
    LEAPS,
    LEARNT,
    MOSTLY_CONSTANT,
    ORDERS,
    PULLED,
    RATE_DOUBT,
    SATURATED_SAMPLES,
    SEVERITIES,
    SMOOTHED,
    STILL,
    SWINGS,
    UNLEARNT,
    Kind,
    Severity,
    Symptom,
    gravest,
)
from relume.symptoms.units import find_dead, find_off_centre, find_saturated

__all__ = [
    "BORN_EXCESS",
    "CLOSED_SAMPLES",
    "CLOSED_SITE",
    "DEAD_OF_NETWORK",
    "DEAD_OF_SITE",
    "DETECTORS",
    "ENOUGH_SAMPLES",
    "FEWEST_BLOCKS",
    "FEWEST_LOSSES",
    "FEWEST_READINGS",
    "FEWEST_SITES",
    "GRADIENT_RATIO",
    "LEAPS",
    "LEARNT",
    "MOSTLY_CONSTANT",
    "ORDERS",
    "PULLED",
    "RATE_DOUBT",
    "SATURATED_SAMPLES",
    "SEVERITIES",
    "SMOOTHED",
    "STILL",
    "SWINGS",
    "UNLEARNT",
    "Kind",
    "Severity",
    "Symptom",
    "burden",
    "dead_share",
    "find",
    "find_alike",
    "find_cut_off",
    "find_dead",
    "find_exploding",
    "find_non_finite",
    "find_not_learning",
    "find_off_centre",
    "find_oscillating",
    "find_out_of_reach",
    "find_saturated",
    "find_vanishing",
    "gradient_by_depth",
    "gravest",
    "late_loss",
    "loss_unit",
    "progress",
    "run_level",
    "saturated_share",
    "usual_update",
]  # fmt: skip

DETECTORS: tuple[Callable[[Recording], Iterator[Symptom]], ...] = (
    find_non_finite,
    find_dead,
    find_saturated,
    find_exploding,
    find_vanishing,
    find_not_learning,
    find_out_of_reach,
    find_cut_off,
    find_alike,
    find_oscillating,
    find_off_centre,
)


def find(recording: Recording) -> tuple[Symptom, ...]:
    """All symptoms of a recording, the gravest first."""
    found = [symptom for detector in DETECTORS for symptom in detector(recording)]
    return tuple(sorted(found, key=lambda s: (SEVERITIES.index(s.severity), -s.share, s.since)))


def burden(recording: Recording, symptoms: tuple[Symptom, ...], kinds: tuple[Kind, ...] | None = None) -> float:
    """How ill the network is, 0 (well) to 1, as the worst of its symptoms.

    Dead and saturated units count by their share of all units that could be so, gradients by the orders of magnitude
    they lose or gain from the last site to the first (`ORDERS` of them is 1), a run that does not learn
    half, one that ends in NaN whole. `kinds` restricts it.
    """
    shares = {"dead": dead_share(recording, symptoms), "saturated": saturated_share(recording, symptoms)}
    worst = 0.0
    for symptom in symptoms:
        if kinds is not None and symptom.kind not in kinds:
            continue
        if symptom.kind in shares:
            worst = max(worst, shares[symptom.kind])
        elif symptom.kind in ("vanishing", "exploding"):
            ratio = symptom.evidence.get("gradient_ratio", 0.0)
            lost = abs(math.log10(ratio)) / ORDERS if ratio > 0 and math.isfinite(ratio) else 1.0
            worst = max(worst, min(1.0, lost))
        elif symptom.kind == "non_finite":
            worst = 1.0
        elif symptom.kind in ("not_learning", "oscillating") and symptom.severity != "note":
            worst = max(worst, 0.5)
    return worst


def dead_share(recording: Recording, symptoms: tuple[Symptom, ...]) -> float:
    """Dead units as a share of all units at sites whose function can die."""
    return _unit_share(recording, symptoms, "dead", lambda site: ACTIVATIONS[site.activation].can_die)


def saturated_share(recording: Recording, symptoms: tuple[Symptom, ...]) -> float:
    """Saturated units as a share of all units at sites whose function saturates."""
    return _unit_share(recording, symptoms, "saturated", lambda site: ACTIVATIONS[site.activation].saturates)


def _unit_share(
    recording: Recording, symptoms: tuple[Symptom, ...], kind: Kind, counts: Callable[[Site], bool]
) -> float:
    units = sum(site.units for site in recording.sites if counts(site))
    return sum(len(s.units) for s in symptoms if s.kind == kind) / units if units else 0.0
