"""What detectors read of a recording: units over time, and how the loss went."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from relume.activations import ACTIVATIONS
from relume.recording import Reading, Recording, Site, SiteReading
from relume.symptoms.record import (
    CLOSED_SAMPLES,
    ENOUGH_SAMPLES,
    FEWEST_BLOCKS,
    FEWEST_LOSSES,
    LEARNT,
    SATURATED_SAMPLES,
    SMOOTHED,
    UNLEARNT,
    Severity,
)


def sound(recording: Recording) -> Iterator[Reading]:
    """The readings before the first NaN: after it, counts of silent units mean nothing."""
    for reading in recording.readings:
        broken = any(read.non_finite for read in reading.sites.values())
        if broken or (reading.loss is not None and not math.isfinite(reading.loss)):
            return
        yield reading


def unit_sites(recording: Recording) -> Iterator[tuple[Site, NDArray[np.int64], list[SiteReading]]]:
    readings = list(sound(recording))
    for site in recording.sites:
        pairs = [(r.step, r.sites[site.name]) for r in readings if site.name in r.sites]
        pairs = [(step, read) for step, read in pairs if len(read.silent) == site.units]
        if pairs:
            yield site, np.array([step for step, _ in pairs], dtype=np.int64), [read for _, read in pairs]


def trailing(holds: NDArray[np.bool_], readings: list[SiteReading]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Per unit: the reading from which `holds` [readings, units] is true to the end, and the samples since."""
    broken = ~holds[::-1]
    length = np.where(broken.any(axis=0), broken.argmax(axis=0), len(holds))
    seen = np.concatenate([[0.0], np.cumsum([float(r.samples) for r in reversed(readings)])])
    return len(holds) - length, seen[length]


class Silence(NamedTuple):
    """How long the units of a site have been silent up to the last reading, one entry per unit."""

    start: NDArray[np.int64]  # the first reading of that silence; the number of readings where there is none
    since: NDArray[np.int64]  # the step from which it holds
    samples: NDArray[np.float64]  # on which the unit did not fire: those read, or those of the steps without gradient


def silence(steps: NDArray[np.int64], readings: list[SiteReading]) -> Silence:
    """What readings and standstill together say of units that are silent in the last of these readings.

    A unit that got a gradient between two readings was alive there, though it was silent in both. One that stood still
    was silent on all samples of those steps, as far back as it was not seen to fire: before that, no gradient came for
    another reason.
    """
    last = readings[-1]
    start, samples = trailing(np.array([read.silent for read in readings]), readings)
    alive = np.where(start > 0, steps[np.maximum(start, 1) - 1], -1)  # the last step known to be before the silence
    if last.moved is not None:
        moved = last.moved.astype(np.int64)
        start = np.maximum(start, np.searchsorted(steps, moved))
        alive = np.maximum(alive, moved - 1)
        read = np.concatenate([np.cumsum([float(r.samples) for r in reversed(readings)])[::-1], [0.0]])
        samples = read[start]
    first = steps[np.minimum(start, len(steps) - 1)]
    if last.idle is None or last.idle_samples is None:
        return Silence(start, first, samples)
    idle = last.idle.astype(np.int64)
    counted = last.idle_samples * np.minimum(1.0, (steps[-1] - alive) / np.maximum(idle, 1))
    stood = np.maximum(steps[-1] + 1 - idle, alive + 1)
    since = np.where((idle > 0) & (alive >= 0), np.minimum(stood, first), first)
    return Silence(start, since, np.where(last.silent, np.maximum(samples, counted), samples))


def flat_level(site: Site) -> float | None:
    """Share of flat samples from which a unit of this site is saturated; None where that is no illness."""
    row = ACTIVATIONS[site.activation]
    if not row.saturates or site.output:
        return None
    if any(tail.slope != 0 for tail in row.tails(**site.parameters)):
        return 1.0
    shut = row.flat_edges(0.0, **site.parameters)[0]
    off = math.isfinite(shut) and row.f(shut - 1.0, **row.arguments(**site.parameters)) == 0
    return 1.0 if off else SATURATED_SAMPLES  # ReLU6 and the like: off is no worse there than for a ReLU


def enough(samples: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Units seen to be so on enough samples; where all of a site are, together they need fewer."""
    return samples >= (CLOSED_SAMPLES if samples.min(initial=0) >= CLOSED_SAMPLES else ENOUGH_SAMPLES)


def from_birth(recording: Recording, steps: NDArray[np.int64]) -> bool:
    """Whether the first reading is of the weights before any training."""
    return bool(len(steps)) and (int(steps[0]) == 0 or not recording.trained)


def progress(recording: Recording) -> float | None:
    """Share of its first value that the loss has lost, from medians over the first and the last tenth of the run.

    A first loss worse than that of the best constant answer is won back by the output layer alone, and counts as that.
    None where the run is too short to say; negative where the loss has grown.
    """
    losses = np.asarray(recording.losses, dtype=float)
    losses = losses[np.isfinite(losses)]
    if len(losses) < FEWEST_LOSSES or not recording.trained:
        return None
    first = _first_loss(recording, losses)
    return (first - late_loss(losses)) / abs(first) if first else 0.0


def _first_loss(recording: Recording, losses: NDArray[np.float64]) -> float:
    some = min(_width(recording), len(losses) // 10)  # single samples say little
    early = losses[: max(3, len(losses) // 50, some)]  # a tenth is too late: many networks learn most at first
    constant = recording.reach.constant if recording.reach is not None else None
    return min(float(np.mean(early)), constant or math.inf)


def late_loss(losses: NDArray[np.float64]) -> float:
    """Mean over the last tenth of the run."""
    return float(np.mean(losses[-max(10, len(losses) // 10) :]))


def loss_unit(recording: Recording) -> float:
    """The loss of the best constant answer, which makes losses on other data comparable; 1 where it is not known."""
    return (recording.reach.constant if recording.reach is not None else None) or 1.0


def run_level(recording: Recording) -> float:
    """Where the run ended, in units of `loss_unit`."""
    return late_loss(np.asarray(recording.losses, dtype=float)) / loss_unit(recording)


def smoothed(recording: Recording) -> NDArray[np.float64]:
    """The losses, averaged over so many steps that each stands for `SMOOTHED` samples at least."""
    losses = np.asarray(recording.losses, dtype=float)
    width = min(_width(recording), max(1, len(losses) // FEWEST_BLOCKS))
    whole = len(losses) // width * width
    return losses[len(losses) - whole :].reshape(-1, width).mean(axis=1) if whole else losses


def relapse(recording: Recording) -> int | None:
    """The step from which a loss that had plainly fallen stayed off its lowest; None for one that had not fallen.

    From means over a twentieth of the run each, since a single low loss is no progress.
    """
    losses = np.asarray(recording.losses, dtype=float)
    some = max(10, len(losses) // 20)
    course = losses[len(losses) % some :].reshape(-1, some).mean(axis=1)
    lowest, first = float(np.min(course)), _first_loss(recording, losses)
    if not 0 <= lowest <= (1 - LEARNT) * first:
        return None
    near = np.flatnonzero(course <= lowest + UNLEARNT * (min(first, late_loss(losses)) - lowest))
    return len(losses) - (len(course) - 1 - int(near[-1])) * some


def _width(recording: Recording) -> int:
    samples = next((r.input.samples for r in recording.readings if r.input is not None), SMOOTHED)
    return math.ceil(SMOOTHED / max(1, samples))


def by_progress(recording: Recording) -> Severity:
    """What an uneven gradient means: little where the loss plainly falls all the same."""
    fallen = progress(recording)
    if fallen is None:
        return "warning"
    return "critical" if fallen < UNLEARNT else "warning" if fallen < LEARNT else "note"


def falls(losses: NDArray[np.float64]) -> bool:
    """Whether the straight line through the losses falls beyond chance (t-statistic of its slope below -2)."""
    x = np.arange(len(losses)) - (len(losses) - 1) / 2
    slope = float((x * losses).sum() / np.square(x).sum())
    residue = losses - losses.mean() - slope * x
    error = math.sqrt(float(np.square(residue).sum()) / (len(losses) - 2) / float(np.square(x).sum()))
    return slope < -2 * error


def usual_update(recording: Recording) -> float:
    """Share of their own size by which a step moves the weights, the median over layers and readings; 0 if unknown."""
    moved = [
        w.update / w.norm
        for reading in recording.readings
        for name, w in reading.weights.items()
        if w.update is not None and w.norm > 0 and (start := recording.initial.get(name)) and start.fan_in > 1
    ]
    return float(np.median(moved)) if moved else 0.0
