"""Detectors of units that stopped learning: dead, saturated, off centre."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from relume.activations import ACTIVATIONS
from relume.recording import Recording, Site, SiteReading
from relume.symptoms.evidence import (
    by_progress,
    enough,
    flat_level,
    from_birth,
    silence,
    trailing,
    unit_sites,
)
from relume.symptoms.record import (
    BORN_EXCESS,
    CLOSED_SITE,
    DEAD_OF_NETWORK,
    DEAD_OF_SITE,
    MOSTLY_CONSTANT,
    PULLED,
    RATE_DOUBT,
    Severity,
    Symptom,
    at_least,
)
from relume.theory import dead_unit_chance, relu_correlation


def find_dead(recording: Recording) -> Iterator[Symptom]:
    """Units that never left a tail of slope zero since some step, over enough samples; born so, or died."""
    found: list[Symptom] = []
    sites = list(unit_sites(recording))
    total = sum(site.units for site, _, _ in sites if ACTIVATIONS[site.activation].can_die)
    counted = gone = 0
    for site, steps, readings in sites:
        start, dates, samples = silence(steps, readings)
        dead = enough(samples) & (start < len(readings))
        expected = _expected_share(recording, site, samples)
        born = dead & (start == 0) & from_birth(recording, steps)
        counted += int((dead & ~born).sum())
        gone += int(dead.sum())
        for units, is_born in ((born, True), (dead & ~born, False)):
            if not units.any():
                continue
            share = float(units.mean())
            all_dead = float(dead.mean())
            since = dates[units]
            found.append(
                Symptom(
                    kind="dead",
                    site=site.name,
                    units=tuple(int(u) for u in np.flatnonzero(units)),
                    share=share,
                    since=int(since.min()),
                    born=is_born,
                    evidence={
                        "units": float(units.sum()),
                        "of": float(site.units),
                        "samples": float(samples[units].min()),
                        **_rates(recording, float(samples[units].min()), total),
                        "median_step": float(np.median(since)),
                        **_proven(recording, site, units),
                        **({"expected_share": expected} if is_born else {}),
                    },
                    severity=_dead_severity(
                        share, all_dead, expected, is_born and not recording.resumed, site, _pulled(dead, readings)
                    ),
                )
            )
    worst: Severity = "critical" if counted >= DEAD_OF_SITE * total else "warning"
    if total and counted / total >= DEAD_OF_NETWORK:
        found = [s if s.born else at_least(s, worst) for s in found]
    learns, most = by_progress(recording) == "note", gone >= DEAD_OF_SITE * total
    outputs = {site.name for site in recording.sites if site.output}
    yield from (_doubted(s, most=most) if learns and s.site not in outputs else s for s in found)


def _rates(recording: Recording, samples: float, units: int) -> dict[str, float]:
    """Bounds of the rate at which silent units fire, with 95 % confidence: of each unit, and of all at once.

    A unit that fires at rate p is silent on n samples with chance (1 - p)^n. That any of U such units is, has at most U
    times that chance. Set equal to 5 %, this gives p = 1 - (0.05 / U)^(1 / n), about ln(U / 0.05) / n; for one unit it
    is about 3 / n. A sample seen again says nothing new: n counts the different ones, where they are known.
    """
    distinct = recording.distinct_samples
    n = samples if distinct is None else min(samples, float(max(1, distinct)))
    return {
        **({} if distinct is None else {"distinct_samples": n}),
        "rate_below": 3.0 / n,
        "rate_below_all_units": -math.expm1(math.log(RATE_DOUBT / max(1, units)) / n),
    }


def _proven(recording: Recording, site: Site, units: NDArray[np.bool_]) -> dict[str, float]:
    """How many of these units are proven closed, on the hull and on the box of the inputs seen, and the margin."""
    proof = next((p for p in recording.proofs if p.site == site.name and not p.reasons), None)
    if proof is None:
        return {}
    asked = np.array([unit < site.units and bool(units[unit]) for unit in proof.units], dtype=np.bool_)
    margins = proof.margin[asked & proof.hull]
    found = {"proven_on_hull": float((asked & proof.hull).sum()), "proven_on_box": float((asked & proof.box).sum())}
    if margins.size:
        found |= {"smallest_margin": float(margins.min()), "median_margin": float(np.median(margins))}
    return found


def _doubted(symptom: Symptom, *, most: bool) -> Symptom:
    """Dead units of a network that plainly learns with its others: replays have to say whether it misses them.

    Half a layer that was born dead is an illness unless the replays find nothing behind it, for no chance does that;
    and so is the loss of most units of the network, for it is not as large as it was made.
    """
    if symptom.severity == "note" or symptom.share >= CLOSED_SITE:
        return symptom
    grave = most or (symptom.born and symptom.share >= DEAD_OF_SITE)
    return replace(symptom, severity=symptom.severity if grave else "note", at_worst=symptom.severity)


def _pulled(dead: NDArray[np.bool_], readings: list[SiteReading]) -> bool:
    """Whether the loss still pulls at the output of a dead unit, which cannot follow."""
    gradient = next((r.gradient for r in reversed(readings) if r.gradient is not None), None)
    return gradient is not None and bool((gradient[dead] > PULLED * gradient.max(initial=0.0)).any())


def _dead_severity(share: float, all_dead: float, expected: float, born: bool, site: Site, pulled: bool) -> Severity:
    if share >= CLOSED_SITE:
        return "critical"
    one = 1 / site.units  # one unit is never an excess
    if site.output and (pulled or all_dead >= DEAD_OF_SITE):
        return "critical" if all_dead >= CLOSED_SITE else "warning"  # no other unit can stand in for an output
    if not born:
        return "warning" if share >= DEAD_OF_SITE + one else "note"
    by_chance = max(3 * math.sqrt(expected * (1 - expected) / site.units), one)  # three standard errors of a share
    return "warning" if share >= expected + BORN_EXCESS + by_chance else "note"


def _expected_share(recording: Recording, site: Site, samples: NDArray[np.float64]) -> float:
    """Dead units that initialisation gives this site by chance; 0 where the theory does not speak of it.

    Two inputs look more alike the deeper they get, and more so where biases outweigh the weights, as with torch's
    default; a unit is born dead when all of them look like one that it does not fire for. Biases beyond torch's own
    bound are left out, since they are no chance: what they kill is excess. For a plain chain of ReLU layers.
    """
    chain = [s for s in recording.sites if s.order <= site.order]
    if any(s.activation != "relu" or s.normalised for s in chain):
        return 0.0
    _, reads = recording.of_site(chain[0].name)
    if not reads:
        return 0.0
    mean2 = float(np.mean(reads[0].pre_mean.astype(float) ** 2))
    own = recording.initial.get(chain[0].bias)
    mean2 = max(0.0, mean2 - (own.mean**2 + own.std**2 if own is not None else 0.0)) + _usual_bias(recording, chain[0])
    q = mean2 + float(np.mean(reads[0].pre_std.astype(float) ** 2))
    c = mean2 / q if q > 0 else 0.0
    for nxt in chain[1:]:
        weight = recording.initial.get(nxt.weight)
        scale = weight.std**2 * weight.fan_in if weight is not None else 2.0
        passed, bias2 = scale * q / 2, _usual_bias(recording, nxt)
        if passed + bias2 <= 0:
            return 0.0
        c = (passed * relu_correlation(1, min(1.0, c)) + bias2) / (passed + bias2)
        q = passed + bias2
    return dead_unit_chance(min(1.0, c), int(max(1, samples.max(initial=1))))


def _usual_bias(recording: Recording, site: Site) -> float:
    """Mean square of the site's initial biases, at most that of torch's default, 1 / (3 fan-in)."""
    bias, weight = recording.initial.get(site.bias), recording.initial.get(site.weight)
    if bias is None or weight is None:
        return 0.0
    return min(bias.mean**2 + bias.std**2, 1 / (3 * max(1, weight.fan_in)))


def find_saturated(recording: Recording) -> Iterator[Symptom]:
    """Units whose slope stays below 1 % of the function's greatest, on nearly all samples.

    A function with one live side (ELU, GELU) may well rest on the other for most samples, as a sparse unit does;
    only a unit that rests there on all of them is lost. Output sites are left to `not_learning`: logits saturate
    when the task is solved.
    """
    for site, steps, readings in unit_sites(recording):
        level = flat_level(site)
        if level is None:
            continue
        flat = np.array([r.flat_share for r in readings])
        silent = np.array([r.silent for r in readings])
        start, samples = trailing(flat >= level, readings)
        dead, _ = trailing(silent, readings)
        lost = enough(samples) & (start < len(readings)) & (dead >= len(readings))
        if not lost.any():
            continue
        share = float(lost.mean())
        since = steps[start[lost]]
        born = bool(np.mean(start[lost] == 0) >= 0.5) and from_birth(recording, steps)
        yield Symptom(
            kind="saturated",
            site=site.name,
            units=tuple(int(u) for u in np.flatnonzero(lost)),
            share=share,
            since=int(since.min()),
            born=born,
            evidence={
                "units": float(lost.sum()),
                "of": float(site.units),
                "flat_share": float(flat[-1][lost].mean()),
                "median_pre_activation": float(np.median(np.abs(readings[-1].pre_mean[lost]))),
                "samples": float(samples[lost].min()),
            },
            severity=_saturated_severity(recording, share, born),
        )


def _saturated_severity(recording: Recording, share: float, born: bool) -> Severity:
    """Grave where it was so from the start; units that saturate while the loss falls are features that are settled."""
    if share < DEAD_OF_SITE or (not born and by_progress(recording) == "note"):
        return "note"
    return "critical" if share >= CLOSED_SITE else "warning"


def find_off_centre(recording: Recording) -> Iterator[Symptom]:
    """Sites of functions whose output is by nature mostly a constant, and is so here. A note, never an illness."""
    for site, steps, readings in unit_sites(recording):
        row = ACTIVATIONS[site.activation]
        if site.output or row.mean**2 <= MOSTLY_CONSTANT * row.second_moment:
            continue
        last = readings[-1]
        squares = last.mean.astype(float) ** 2
        energy = squares + last.std.astype(float) ** 2
        if not energy.sum() > 0:
            continue
        share = float(squares.sum() / energy.sum())
        if share > MOSTLY_CONSTANT:
            yield Symptom(
                kind="off_centre", site=site.name, since=int(steps[0]), born=True,
                evidence={"constant_share_of_energy": share}, severity="note",
            )  # fmt: skip
