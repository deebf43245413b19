"""What a watch tells at once: a layer of which every unit is dead, a loss that is no longer finite. No torch.

All else waits for the report. These two are past doubt, and no step that follows them is of any use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from relume.recording import Reading, Site, layer_name
from relume.symptoms import CLOSED_SAMPLES, CLOSED_SITE, ENOUGH_SAMPLES
from relume.symptoms.evidence import silence

TOGETHER = 32  # readings looked back on
SHOWN = 4  # names of layers in one line


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Something that makes the steps after it useless."""

    kind: Literal["dead", "non_finite"]
    step: int  # optimizer steps done when it was found
    since: int  # the step from which it holds
    site: str = ""
    layer: str = ""
    units: int = 0  # that are dead
    of: int = 0

    def __str__(self) -> str:
        if self.kind == "non_finite":
            return f"step {self.step}: the loss is NaN or infinite since step {self.since}"
        which = f"all {self.of}" if self.units == self.of else f"{self.units} of {self.of}"
        since = f"since step {self.since}" if self.since else "from the start"
        return f"step {self.step}: {which} units of {layer_name(self.layer)} are dead {since}"


def told(alarms: Sequence[Alarm]) -> list[str]:
    """What was found at one step, one line for all dead layers."""
    dead = [alarm for alarm in alarms if alarm.kind == "dead"]
    lines = [str(alarm) for alarm in alarms if alarm.kind != "dead" or len(dead) == 1]
    if len(dead) > 1:
        names = [layer_name(alarm.layer) for alarm in dead]
        rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        since = min(alarm.since for alarm in dead)
        since = f"since step {since}" if since else "from the start"
        which = "all" if all(alarm.units == alarm.of for alarm in dead) else "nearly all"
        lines.append(f"step {dead[0].step}: {which} units of {', '.join(names[:SHOWN])}{rest} are dead {since}")
    return lines


def closed(readings: Sequence[Reading], site: Site) -> bool:
    """Whether next to no unit of the site fired in the newest reading."""
    read = readings[-1].sites.get(site.name) if readings else None
    return read is not None and len(read.silent) > 0 and float(read.silent.mean()) >= CLOSED_SITE


def dead_layer(readings: Sequence[Reading], site: Site, step: int) -> Alarm | None:
    """The alarm for a site that is closed, where the samples suffice to say so for all its units together."""
    if not closed(readings, site) or any(read.non_finite for read in readings[-1].sites.values()):
        return None
    pairs = [(r.step, r.sites[site.name]) for r in readings[-TOGETHER:] if site.name in r.sites]
    pairs = [(at, read) for at, read in pairs if len(read.silent) == site.units]
    reads = [read for _, read in pairs]
    steps = np.array([at for at, _ in pairs], dtype=np.int64)
    _, dates, samples = silence(steps, reads)
    dead = reads[-1].silent & (samples >= max(CLOSED_SAMPLES, ENOUGH_SAMPLES / site.units))
    if dead.mean() < CLOSED_SITE:
        return None
    since = int(dates[dead].max())
    return Alarm(
        kind="dead", step=step, since=since, site=site.name, layer=site.layer, units=int(dead.sum()), of=site.units
    )


def not_finite(losses: Sequence[float], start: int) -> Alarm | None:
    """The alarm for the first of these losses, those of the steps from `start` on, that is NaN or infinite."""
    bad = (step for step, loss in enumerate(losses, start) if not math.isfinite(loss))
    since = next(bad, None)
    return None if since is None else Alarm(kind="non_finite", step=start + len(losses), since=since)
