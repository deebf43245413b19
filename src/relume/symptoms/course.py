"""Detectors of how the run went: gradients over depth, values that break, a loss that does not fall."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from relume.recording import Reading, Recording, Site, alike
from relume.symptoms.evidence import by_progress, falls, late_loss, progress, relapse, smoothed, sound, usual_update
from relume.symptoms.record import (
    CLOSED_SITE,
    FEWEST_LOSSES,
    FEWEST_READINGS,
    FEWEST_SITES,
    GRADIENT_RATIO,
    LEAPS,
    LEARNT,
    STILL,
    SWINGS,
    UNLEARNT,
    Kind,
    Severity,
    Symptom,
)
from relume.symptoms.units import find_dead, find_saturated


def find_vanishing(recording: Recording) -> Iterator[Symptom]:
    """Gradients that shrink on their way from the last site to the first, by more than `GRADIENT_RATIO`."""
    yield from _gradient_symptom(recording, "vanishing", lambda ratio: ratio < 1 / GRADIENT_RATIO)


def find_exploding(recording: Recording) -> Iterator[Symptom]:
    """Gradients that grow on their way from the last site to the first, or a loss that leaves its first value behind.

    The loss counts as exploding when its last values are more than `GRADIENT_RATIO` times its first ones.
    """
    yield from _gradient_symptom(recording, "exploding", lambda ratio: ratio > GRADIENT_RATIO)
    losses = np.asarray(recording.losses, dtype=float)
    finite = losses[np.isfinite(losses)]
    if len(finite) >= 2 and recording.trained:
        first = max(abs(float(np.median(finite[:3]))), 1e-12)
        worst = int(np.argmax(np.abs(finite)))
        last = abs(float(np.median(finite[-3:])))
        if min(abs(float(finite[worst])), last) > GRADIENT_RATIO * first or (
            len(finite) < len(losses) and abs(float(finite[worst])) > GRADIENT_RATIO * first
        ):
            since = int(np.argmax(np.abs(losses) > GRADIENT_RATIO * first))
            yield Symptom(
                kind="exploding", site="", since=since, evidence={"first_loss": first, "last_loss": float(finite[-1])},
                severity="critical",
            )  # fmt: skip


def gradient_by_depth(recording: Recording, reading: Reading) -> list[tuple[Site, float]]:
    """Norm of the gradient at the output of each hidden site in one reading, in order of depth."""
    found = []
    for site in recording.sites:
        read = reading.sites.get(site.name)
        if read is not None and read.gradient is not None and not site.output:
            found.append((site, float(np.sqrt(np.square(read.gradient.astype(np.float64)).sum()))))
    return found


def _gradient_symptom(recording: Recording, kind: Kind, is_ill: Callable[[float], bool]) -> Iterator[Symptom]:
    steps, ratios, firsts, lasts = [], [], [], []
    for reading in sound(recording):
        norms = [norm for _, norm in gradient_by_depth(recording, reading)]
        if len(norms) >= FEWEST_SITES and norms[-1] > 0 and np.isfinite(norms).all():
            steps.append(reading.step)
            firsts.append(norms[0])
            lasts.append(norms[-1])
            ratios.append(norms[0] / norms[-1])
    if not ratios:
        return
    ill = [is_ill(ratio) for ratio in ratios]
    start = len(ill) - next((i for i, well in enumerate(reversed(ill)) if not well), len(ill))
    if start >= len(ill):
        return
    hidden = [site for site in recording.sites if not site.output]
    severity = by_progress(recording)
    if kind == "exploding" and severity == "note" and 2 * sum(site.normalised for site in hidden) <= len(hidden):
        severity = "warning"  # a loss of a million falls easily; behind normalisation growth is by design
    ratio = float(np.exp(np.mean(np.log(np.maximum(ratios[start:], 1e-45)))))
    yield Symptom(
        kind=kind,
        site=hidden[0].name,
        since=steps[start],
        born=start == 0,
        evidence={
            "gradient_ratio": ratio,
            "per_layer": ratio ** (1 / max(1, len(hidden) - 1)),
            "first_gradient": firsts[-1],
            "last_gradient": lasts[-1],
            "sites": float(len(hidden)),
        },
        severity=severity,
    )


def find_non_finite(recording: Recording) -> Iterator[Symptom]:
    """NaN or infinity in the loss, the input, an activation or a gradient; the first place it was seen."""
    losses = np.asarray(recording.losses, dtype=float)
    known = ~np.isfinite(losses) if recording.trained and np.isfinite(losses).any() else np.zeros(0, dtype=bool)
    first = int(np.argmax(known)) if known.any() else None
    for reading in recording.readings:  # the data first, at whatever step they were looked at: they are the cause
        if reading.input is not None and reading.input.non_finite:
            yield _non_finite("", reading.step, {"input_values": float(reading.input.non_finite)})
            return
    for reading in recording.readings:
        broken = [(name, read.non_finite) for name, read in reading.sites.items() if read.non_finite]
        if broken:
            yield _non_finite(broken[0][0], reading.step, {"values": float(broken[0][1])})
            return
        weight = next((n for n, w in reading.weights.items() if not np.isfinite(w.gradient or w.norm)), None)
        if weight is not None or (reading.loss is not None and not math.isfinite(reading.loss)):
            yield _non_finite("", reading.step, {"loss": reading.loss if reading.loss is not None else math.nan})
            return
    if first is not None:
        yield _non_finite("", first, {"loss": float(losses[first])})


def _non_finite(site: str, step: int, evidence: dict[str, float]) -> Symptom:
    return Symptom(
        kind="non_finite", site=site, since=step, born=step == 0, evidence=evidence, severity="critical"
    )  # fmt: skip


def find_not_learning(recording: Recording) -> Iterator[Symptom]:
    """A loss that ends where it began, or no better than the best constant answer (`Reach.constant`).

    One that had plainly fallen and rose again is ill since it rose. One that creeps down may be slow or may be near its
    floor: replays have to say which, unless the weights hardly moved in the whole run.
    """
    fallen = progress(recording)
    losses = np.asarray(recording.losses, dtype=float)
    if fallen is None or not np.isfinite(losses).all():
        return
    course, late = smoothed(recording), late_loss(losses)
    if abs(float(np.mean(course))) < 2 * float(np.std(course)) and float(np.min(course)) < 0:
        return  # a loss around zero, such as a policy gradient's, says nothing by its size
    reach = recording.reach
    constant = reach.constant if reach is not None else None
    beaten = constant is None or reach is None or late < constant - UNLEARNT * (constant - reach.floor)
    if late <= 0 or (fallen >= UNLEARNT and beaten):
        return
    creeps = falls(course[len(course) // 10 :])
    back = relapse(recording) if fallen < UNLEARNT else None
    # A network that was trained before may have arrived, and then has nowhere to go.
    stands = not recording.resumed and 0 < usual_update(recording) * recording.steps < STILL
    worst: Severity = "critical" if fallen <= 0.02 else "warning"
    yield Symptom(
        kind="not_learning", site="", since=back or 0, born=back is None,
        evidence={
            "progress": fallen,
            "first_loss": float(losses[:3].mean()),
            "last_loss": late,
            **({"constant_loss": constant} if constant is not None else {}),
        },
        severity=worst if fallen < UNLEARNT and (stands or not creeps) else "note",
        at_worst=worst,
    )  # fmt: skip


def find_out_of_reach(recording: Recording) -> Iterator[Symptom]:
    """Targets that the function behind the last layer cannot give, whatever the weights (`relume.reach`).

    Where targets are class numbers the right class may win all the same; then it is a note while the loss comes down
    at least half of the way that is left to it.
    """
    reach = recording.reach
    if reach is None or reach.first <= reach.free:
        return
    lost = (reach.floor - reach.free) / (reach.first - reach.free)
    if lost < UNLEARNT:
        return
    losses = np.asarray(recording.losses, dtype=float)
    came = reach.first - (late_loss(losses) if len(losses) else reach.first)
    # with nothing left to fall, as behind a softmax over one output, nothing is won
    wins = reach.classes and lost < 1 - UNLEARNT and came >= LEARNT * (reach.first - reach.floor)
    yield Symptom(
        kind="not_learning",
        site=next((site.name for site in recording.sites if site.output), ""),
        born=True,
        evidence={"least_loss": reach.floor, "least_loss_without": reach.free, "first_loss": reach.first},
        severity="note" if wins else "warning",
    )


def find_cut_off(recording: Recording) -> Iterator[Symptom]:
    """Layers that run, could be trained, and never get a gradient, though nothing blocks it.

    What blocks it is a closed or saturated layer, or weights that start at zero.
    """
    readings = [r for r in sound(recording) if any(w.gradient is not None for w in r.weights.values())]
    if len(readings) < FEWEST_READINGS:
        return
    readings = [r for r in readings if any(w.gradient for w in r.weights.values())]  # else they were cleared too early
    if len(readings) < FEWEST_READINGS:
        return
    reached = {name for reading in readings for name, weight in reading.weights.items() if weight.gradient}
    sites = [s for s in recording.sites if s.weight in readings[0].weights and s.weight not in reached]
    if not sites:
        return
    blocked = [s for s in (*find_dead(recording), *find_saturated(recording)) if s.share >= CLOSED_SITE]
    shut = [name for name, read in readings[-1].sites.items() if read.silent.all()]  # on however few samples
    matrices = {name for name, start in recording.initial.items() if start.fan_in > 1}
    zeros = [name for name, w in readings[-1].weights.items() if name in matrices and w.norm == 0]
    if blocked or shut or zeros or any(find_vanishing(recording)):
        return
    for site in sites:
        yield Symptom(
            kind="not_learning", site=site.name, units=tuple(range(site.units)), born=True,
            evidence={"readings_without_gradient": float(len(readings))}, severity="warning",
        )  # fmt: skip


def find_alike(recording: Recording) -> Iterator[Symptom]:
    """Layers whose units all start with the same weights: they get the same gradient, and stay one unit.

    A network may learn all the same, as where the other layers are drawn; so it is a doubt while the loss falls.
    """
    for site in recording.sites:
        weight, bias = recording.initial.get(site.weight), recording.initial.get(site.bias)
        if recording.resumed or weight is None or site.units < 2 or not weight.trainable:
            continue
        if not alike(weight) or not (bias is None or alike(bias)):
            continue
        learns = by_progress(recording) == "note"
        yield Symptom(
            kind="not_learning", site=site.name, units=tuple(range(site.units)), born=True,
            evidence={"initial_weight": weight.mean}, severity="note" if learns else "warning", at_worst="warning",
        )  # fmt: skip


def find_oscillating(recording: Recording) -> Iterator[Symptom]:
    """A loss that falls well below its first value and leaps back above it, again and again in the second half."""
    losses = np.asarray(recording.losses, dtype=float)
    if len(losses) < FEWEST_LOSSES or not recording.trained or not np.isfinite(losses).all() or losses.min() < 0:
        return
    course = smoothed(recording)
    first = float(np.median(course[: min(5, len(course) // 10)]))
    late = course[len(course) // 2 :]
    above, below = late > first, late < first / 2
    states = np.where(above, 1, np.where(below, -1, 0))
    leaps = int(np.count_nonzero(np.diff(states[states != 0]) == 2))  # from well below to above, by whatever way
    if leaps >= LEAPS and min(above.mean(), below.mean()) > SWINGS:
        yield Symptom(
            kind="oscillating", site="", since=len(losses) // 2,
            evidence={"share_above_first_loss": float(above.mean()), "leaps": float(leaps), "first_loss": first},
            severity="warning", at_worst="warning",
        )  # fmt: skip
