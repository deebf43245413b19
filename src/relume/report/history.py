"""What became of every unit, from reading to reading: the numbers behind the maps and the tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relume.activations import activation
from relume.errors import ActivationError
from relume.recording import Recording, Site, layer_name
from relume.report.results import Report
from relume.symptoms import SATURATED_SAMPLES, Symptom
from relume.timeline import UnitHistory

# States of one unit in one reading; a map is drawn from these numbers.
UNSEEN, ALIVE, SPARSE, SATURATED, DEAD, BROKEN = range(6)
LETTERS = "-aspxe"  # of the states, in the page's data
NEVER = -1

SPARSE_SAMPLES = 0.95  # share of samples on the flat side from which a unit that can fall silent counts as sparse


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteHistory:
    """One site over all readings of a run."""

    site: Site
    label: str  # what readers know the site by
    steps: NDArray[np.int64]  # of the readings, one column each
    states: NDArray[np.uint8]  # (readings, units)
    died: NDArray[np.int64]  # per unit, the step since which it is dead; NEVER for the others
    gradient: float | None  # root mean square over the units, at the last reading with one
    silent_samples: int  # the fewest samples on which a dead unit was silent to the end; 0 where none is dead
    revived: int = 0  # units that were dead and fire again
    flickering: int = 0  # units that were dead more than once

    @property
    def last(self) -> NDArray[np.uint8]:
        """States at the last reading of this site; all unseen where there is none."""
        seen = np.flatnonzero((self.states != UNSEEN).any(axis=1))
        return self.states[seen[-1]] if seen.size else np.full(self.site.units, UNSEEN, dtype=np.uint8)

    def count(self, state: int) -> int:
        """Units in that state at the end."""
        return int((self.last == state).sum())

    @property
    def dead(self) -> int:
        """Units dead at the end."""
        return int((self.died != NEVER).sum())

    @property
    def born(self) -> int:
        """Units that were dead at the first reading already, and stayed so."""
        first = self.steps[0] if self.steps.size else 0
        return int((self.died == first).sum())

    @property
    def later(self) -> NDArray[np.int64]:
        """Steps at which units died after the first reading."""
        return self.died[self.died > (self.steps[0] if self.steps.size else 0)]

    @property
    def ill(self) -> int:
        """Units dead, saturated or broken at the end."""
        return sum(self.count(state) for state in (DEAD, SATURATED, BROKEN))


def function_name(name: str) -> str:
    """How people write that activation function: "ReLU" for "relu"."""
    try:
        return activation(name).module.rpartition(".")[2]
    except ActivationError:
        return name.replace("_", " ")


def labels(recording: Recording) -> dict[str, str]:
    """What readers know each site by: its layer, or its own name where two share a layer."""
    layers = [site.layer for site in recording.sites]
    names = {site.name: site.layer if layers.count(site.layer) == 1 else site.name for site in recording.sites}
    return {site: layer_name(name) for site, name in names.items()}


def histories(report: Report) -> tuple[SiteHistory, ...]:
    """Every site's history, in the order of the forward pass."""
    found = {id(s): s for s in (*report.symptoms, *(s for d in report.diagnoses for s in d.symptoms))}.values()
    sites = sorted(report.recording.sites, key=lambda site: site.order)
    lives: defaultdict[str, list[UnitHistory]] = defaultdict(list)
    for unit in report.timeline:
        lives[unit.site].append(unit)
    return tuple(_history(report, site, [s for s in found if s.site == site.name], lives[site.name]) for site in sites)


def _bounded(name: str) -> bool:
    try:
        return activation(name).bounded
    except ActivationError:
        return False


def _history(report: Report, site: Site, symptoms: Iterable[Symptom], units: Sequence[UnitHistory]) -> SiteHistory:
    readings = report.recording.readings
    shape = (len(readings), site.units)
    states = np.full(shape, UNSEEN, dtype=np.uint8)
    flat, rare = (SATURATED, SATURATED_SAMPLES) if _bounded(site.activation) else (SPARSE, SPARSE_SAMPLES)
    gradient = None
    for row, reading in enumerate(readings):
        read = reading.sites.get(site.name)
        if read is None or len(read.flat_share) != site.units:
            continue
        states[row] = np.where(read.flat_share >= rare, flat, ALIVE)
        states[row][read.silent] = SPARSE
        broken = ~(np.isfinite(read.pre_mean) & np.isfinite(read.mean))
        states[row][broken] = BROKEN
        if read.gradient is not None:
            squares = np.square(np.asarray(read.gradient, dtype=np.float64))
            gradient = float(np.sqrt(squares.mean())) if squares.size else None

    steps = np.array([reading.step for reading in readings], dtype=np.int64)
    died = np.full(site.units, NEVER, dtype=np.int64)
    for unit in units:
        if unit.dead_at_end and unit.since is not None:
            died[unit.unit] = unit.since
    for symptom in symptoms:
        if symptom.kind == "dead":  # what the detector decided stands, also where the timeline has too few samples
            named = np.array([unit for unit in symptom.units if unit < site.units], dtype=np.int64)
            died[named[died[named] == NEVER]] = symptom.since
    gone = [(unit.unit, since, until) for unit in units for since, until in unit.dead if until is not None]
    for unit, since, until in [*gone, *((unit, died[unit], None) for unit in np.flatnonzero(died != NEVER))]:
        column = states[:, unit]
        during = (steps >= since) & (steps < until if until is not None else True)
        column[during & (column != UNSEEN) & (column != BROKEN)] = DEAD
    return SiteHistory(
        site=site,
        label=labels(report.recording)[site.name],
        steps=steps,
        states=states,
        died=died,
        gradient=gradient,
        silent_samples=min((unit.samples for unit in units if unit.dead_at_end), default=0),
        revived=sum(unit.kind == "revived" for unit in units),
        flickering=sum(unit.kind == "flickering" for unit in units),
    )


def unit_count(report: Report) -> int:
    """Units of all sites."""
    return sum(site.units for site in report.recording.sites)
