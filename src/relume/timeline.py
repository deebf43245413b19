"""What became of every unit: alive, born dead, died, flickering, revived, saturated, and what happened then. No torch.

A death lies between two readings: the last one in which the unit fired, and the first of those in which it is silent.
What holds to the end is judged as `symptoms.find_dead` and `symptoms.find_saturated` judge it, so that both name the
same units. What came and went again needs more: a unit that fires on 0.5 % of its samples is silent on a thousand of
them once in 150 times, and there are many units and many thousands. So a silence that ended counts only where what was
seen before and after it says that it was no chance (`CHANCE`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from relume.recording import Reading, Recording, Site
from relume.symptoms.evidence import (
    enough,
    flat_level,
    from_birth,
    silence,
    sound,
    trailing,
    unit_sites,
)
from relume.symptoms.record import ENOUGH_SAMPLES, FEWEST_READINGS

Kind = Literal["alive", "born_dead", "died", "flickering", "revived", "saturated"]

CHANCE = 0.01  # that a whole network of units, none of which ever died, shows one that was dead for a while


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitHistory:
    """One unit's life. A unit that flickers or was revived is dated by its latest death."""

    site: str
    unit: int
    kind: Kind
    since: int | None = None  # step of the first reading in which it is dead or saturated; None: alive throughout
    before: int | None = None  # step of the reading before it, when it was not; None: there is none
    revivals: int = 0  # times it was dead and fired again
    dead: tuple[tuple[int, int | None], ...] = ()  # first step dead, first step firing again; None: to the end
    samples: int = 0  # on which it was silent, or flat, since
    loss_before: float | None = None  # at the step `before`
    loss: float | None = None  # the greatest after that, up to `since`
    learning_rate: float | None = None  # at the step `before`
    update_ratio: float | None = None  # share of its size by which a step from `before` on moved the layer
    update_step: int | None = None  # that step, the largest that was read: what was not read may have been larger
    usual_ratio: float | None = None  # median of that share over the steps read before; of all, where these are few

    @property
    def dead_at_end(self) -> bool:
        """Whether it is dead in the last readings."""
        return bool(self.dead) and self.dead[-1][1] is None


def timeline(recording: Recording) -> tuple[UnitHistory, ...]:
    """The history of every unit of every site that was read, in the recording's order.

        report = relume.diagnose(training)
        [unit for unit in report.timeline if unit.kind == "revived"]

    `report.timeline` is this of the report's own recording. Readings after the first NaN are left out.
    """
    found: list[UnitHistory] = []
    sites = list(unit_sites(recording))
    units = sum(site.units for site, _, _ in sites)
    inputs = {reading.step: reading.input.samples for reading in sound(recording) if reading.input is not None}
    for site, steps, readings in sites:
        silent = np.array([read.silent for read in readings])
        samples = np.array([read.samples for read in readings], dtype=np.float64)
        # Positions of one image, or words of one text, are silent together: what counts is how many came in.
        batch = np.minimum(
            samples, [inputs.get(int(step), read.samples) for step, read in zip(steps, readings, strict=True)]
        )
        start, dates, since = silence(steps, readings)
        ends_dead = enough(since) & (start < len(readings))
        at = _Moments(recording, site, steps)
        level = flat_level(site)
        flat = np.array([read.flat_share for read in readings])
        held, flat_since = trailing(flat >= (math.inf if level is None else level), readings)
        saturated = enough(flat_since) & (held < len(readings)) & ~silent[-1]
        dark = np.where(silent, samples[:, None], 0.0).sum(axis=0)
        for unit in range(site.units):
            gone = _gone(silent[:, unit], flat[:, unit], samples, batch, units) if dark[unit] >= ENOUGH_SAMPLES else []
            dead = [(int(steps[first]), int(steps[last])) for first, last in gone]
            if ends_dead[unit]:
                first, seen = int(start[unit]), int(since[unit])
                born = first == 0 and from_birth(recording, steps)
                kind: Kind = "flickering" if gone else "born_dead" if born else "died"
            elif gone:
                first, seen = gone[-1][0], int(samples[slice(*gone[-1])].sum())
                kind = "revived" if len(gone) == 1 else "flickering"
            elif saturated[unit]:
                first, seen, kind = int(held[unit]), int(flat_since[unit]), "saturated"
            else:
                found.append(UnitHistory(site=site.name, unit=unit, kind="alive"))
                continue
            moment = at.reading(first, int(dates[unit]) if ends_dead[unit] else None)
            found.append(
                UnitHistory(
                    site=site.name, unit=unit, kind=kind,
                    since=moment.since, before=moment.before, revivals=len(dead),
                    dead=(*dead, (moment.since, None)) if ends_dead[unit] else tuple(dead),
                    samples=seen,
                    loss_before=moment.loss_before, loss=moment.loss, learning_rate=moment.learning_rate,
                    update_ratio=moment.update_ratio, update_step=moment.update_step, usual_ratio=moment.usual_ratio,
                )
            )  # fmt: skip
    return tuple(found)


def together(histories: Iterable[UnitHistory]) -> list[tuple[UnitHistory, ...]]:
    """Units that died for good, by site and by the readings between which they did; the most first, then by step."""
    groups: dict[tuple[str, int | None, int | None], list[UnitHistory]] = {}
    for history in histories:
        if history.kind == "died":
            groups.setdefault((history.site, history.before, history.since), []).append(history)
    return [tuple(group) for group in sorted(groups.values(), key=lambda g: (-len(g), g[0].since))]


# What came and went again -------------------------------------------------------------------------------------------


def _gone(
    silent: NDArray[np.bool_],
    flat: NDArray[np.float32],
    samples: NDArray[np.float64],
    batch: NDArray[np.float64],
    units: int,
) -> list[tuple[int, int]]:
    """The silences of one unit that ended and were no chance: their first reading, and the first after them.

    Were the unit the same throughout, its F firing samples would lie anywhere among all n. Then the chance that one of
    the gaps between its K firing readings takes up m samples is at most (K + 1) (1 - m/n)^F. That is asked of what lies
    after each silence and, where it was not silent from the start, of what lies before it.
    """
    edges = np.flatnonzero(np.diff(silent, prepend=False, append=False))
    runs = [(int(a), int(b)) for a, b in edges.reshape(-1, 2) if samples[a:b].sum() >= ENOUGH_SAMPLES]
    fired = np.where(silent, 0.0, np.maximum(1.0, (1.0 - np.clip(flat, 0.0, 1.0)) * batch))
    gaps = 1 + int((~silent).sum())
    bound = math.log(CHANCE / (units * gaps))

    def differs(run: tuple[int, int], beside: slice) -> bool:
        gap, around = batch[slice(*run)].sum(), batch[beside].sum()
        return bool(fired[beside].sum() * math.log(around / (gap + around)) < bound) if around else False

    found = []
    for index, run in enumerate(runs):
        left = runs[index - 1][1] if index else 0
        right = runs[index + 1][0] if index + 1 < len(runs) else len(silent)
        if run[1] == len(silent) or not differs(run, slice(run[1], right)):
            continue
        if run[0] == 0 or differs(run, slice(left, run[0])):
            found.append(run)
    return found


# What happened then -------------------------------------------------------------------------------------------------


class _Moment(NamedTuple):
    """The steps between two readings."""

    since: int
    before: int | None
    loss_before: float | None
    loss: float | None
    learning_rate: float | None
    update_ratio: float | None
    update_step: int | None
    usual_ratio: float | None


class _Moments:
    """What happened between one site's readings; many units die between the same two."""

    def __init__(self, recording: Recording, site: Site, steps: Sequence[int] | NDArray[np.int64]) -> None:
        self.reading = cache(self._reading)
        self._recording = recording
        self._layer = [name for name in (site.weight, site.bias) if name]
        self._moved = [(ratio, r.step) for r in recording.readings if (ratio := self._ratio(r)) is not None]
        self._steps = [int(step) for step in steps]

    def _reading(self, index: int, since: int | None = None) -> _Moment:
        """What happened between the reading before that index and it, or the step `since` where that is known."""
        since = self._steps[index] if since is None else since
        before = self._steps[index - 1] if index else None
        start = since if before is None else before
        within = [r for r in self._recording.readings if start <= r.step < max(since, start + 1)]
        moved = [(ratio, step) for ratio, step in self._moved if start <= step < since]
        ratio, step = max(moved, default=(None, None))
        # After a step that killed units the layer may be another size, or get no gradient: that is not the usual.
        earlier = [ratio for ratio, step in self._moved if step < start]
        usual = earlier if len(earlier) >= FEWEST_READINGS else [ratio for ratio, _ in self._moved]
        losses = [self._loss(s) for s in range(since if before is None else before + 1, since + 1)]
        return _Moment(
            since=since,
            before=before,
            loss_before=None if before is None else self._loss(before),
            loss=max((loss for loss in losses if loss is not None), default=None),
            learning_rate=next((r.learning_rate for r in within if r.learning_rate is not None), None),
            update_ratio=ratio,
            update_step=step,
            usual_ratio=float(np.median(usual)) if usual else None,
        )

    def _ratio(self, reading: Reading) -> float | None:
        """Share of their own size by which the step moved the layer's weights and biases together."""
        read = [w for name in self._layer if (w := reading.weights.get(name)) is not None and w.update is not None]
        norm = math.hypot(*(w.norm for w in read))
        update = math.hypot(*(w.update for w in read if w.update is not None))
        return update / norm if norm > 0 and math.isfinite(update / norm) else None

    def _loss(self, step: int) -> float | None:
        losses = self._recording.losses
        if step < len(losses):
            return losses[step] if math.isfinite(losses[step]) else None
        return next((r.loss for r in self._recording.readings if r.step == step and r.loss is not None), None)
