"""What is wrong: a recording in, symptoms out. No torch here.

A detector is a function from a recording to the symptoms of one kind; `DETECTORS` lists them. What normal networks do
is not a symptom: sparse units, logits that saturate because the task is solved, gradients that shrink as training
converges, and the dead units that every deep ReLU network is born with (`theory.expected_dead_share`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from relume.activations import ACTIVATIONS
from relume.recording import Reading, Recording, Site, SiteReading
from relume.theory import dead_unit_chance, relu_correlation

Kind = Literal["dead", "saturated", "vanishing", "exploding", "non_finite", "not_learning", "oscillating", "off_centre"]
Severity = Literal["note", "warning", "critical"]

# Evidence ----------------------------------------------------------------------------------------------------------
ENOUGH_SAMPLES = 1000  # rule of three: silent on n samples bounds the firing rate by 3/n with 95 % confidence
SATURATED_SAMPLES = 0.5  # of a unit's samples on a flat end, where both ends are flat: it learns from the minority
GRADIENT_RATIO = 1e3  # first to last site; float16's whole normal range is 1e4, and AutoTrainer (ICSE 2021) uses 1e3
ORDERS = 12  # of magnitude between a gradient that trains and one that is as good as none; a scale, not a test
FEWEST_SITES = 3  # below that a ratio of gradients says nothing about depth
FEWEST_READINGS = 3  # without a gradient: a branch that starts at zero gets its first one a step later
MOSTLY_CONSTANT = (
    0.5  # of the energy: the squared mean outweighs the variance; under N(0, 1) sigmoid has 0.85, ReLU 0.32
)
LEAPS = 3  # back above the first loss: once is a spike, twice a restart
FEWEST_LOSSES = 100  # to tell a loss that falls slowly from one that does not
# Severity ----------------------------------------------------------------------------------------------------------
BORN_EXCESS = 0.1  # of a site's units beyond what theory expects: initialisation does not do that by chance
DEAD_OF_SITE = 0.5  # as SageMaker Debugger's DeadRelu rule: half a layer
DEAD_OF_NETWORK = 0.25  # a quarter of all units that could fire: one layer's worth in a network of four
CLOSED_SITE = 0.98  # nothing gets through
LEARNT = 0.5  # share of its first value that a loss has lost, past which the network plainly learns
UNLEARNT = 0.1  # below that it plainly does not


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
    severity: Severity = "warning"  # what it means for the network


def find(recording: Recording) -> tuple[Symptom, ...]:
    """All symptoms of a recording, the gravest first."""
    found = [symptom for detector in DETECTORS for symptom in detector(recording)]
    return tuple(sorted(found, key=lambda s: (SEVERITIES.index(s.severity), -s.share, s.since), reverse=False))


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
        elif symptom.kind in ("not_learning", "oscillating"):
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


# Units --------------------------------------------------------------------------------------------------------------


def find_dead(recording: Recording) -> Iterator[Symptom]:
    """Units that never left a tail of slope zero since some step, over enough samples; born so, or died."""
    found: list[Symptom] = []
    counted = total = 0
    for site, steps, readings in _unit_sites(recording):
        total += site.units if ACTIVATIONS[site.activation].can_die else 0
        silent = np.array([r.silent for r in readings])
        start, samples = _trailing(silent, readings)
        dead = (samples >= ENOUGH_SAMPLES) & (start < len(readings))
        expected = _expected_share(recording, site, samples)
        born = dead & (start == 0) & _from_birth(recording, steps)
        counted += int((dead & ~born).sum())
        for units, is_born in ((born, True), (dead & ~born, False)):
            if not units.any():
                continue
            share = float(units.mean())
            since = steps[start[units]]
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
                        "rate_below": 3.0 / float(samples[units].min()),
                        "median_step": float(np.median(since)),
                        **({"expected_share": expected} if is_born else {}),
                    },
                    severity=_dead_severity(share, expected, is_born, site.units),
                )
            )
    worst: Severity = "critical" if counted >= DEAD_OF_SITE * total else "warning"
    if total and counted / total >= DEAD_OF_NETWORK:
        found = [s if s.born else _at_least(s, worst) for s in found]
    yield from found


def _dead_severity(share: float, expected: float, born: bool, units: int) -> Severity:
    if share >= CLOSED_SITE:
        return "critical"
    if not born:
        return "warning" if share >= DEAD_OF_SITE else "note"
    # narrow layers differ by chance: three standard errors of a share, and one unit is never an excess
    by_chance = max(3 * math.sqrt(expected * (1 - expected) / units), 1 / units)
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
    for site, steps, readings in _unit_sites(recording):
        row = ACTIVATIONS[site.activation]
        if not row.saturates or site.output:
            continue
        one_sided = any(tail.slope != 0 for tail in row.tails(**site.parameters))
        flat = np.array([r.flat_share for r in readings])
        silent = np.array([r.silent for r in readings])
        start, samples = _trailing(flat >= (1.0 if one_sided else SATURATED_SAMPLES), readings)
        dead, _ = _trailing(silent, readings)
        lost = (samples >= ENOUGH_SAMPLES) & (start < len(readings)) & (dead >= len(readings))
        if not lost.any():
            continue
        share = float(lost.mean())
        since = steps[start[lost]]
        born = bool(np.mean(start[lost] == 0) >= 0.5) and _from_birth(recording, steps)
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
    if share < DEAD_OF_SITE or (not born and _by_progress(recording) == "note"):
        return "note"
    return "critical" if share >= CLOSED_SITE else "warning"


def find_off_centre(recording: Recording) -> Iterator[Symptom]:
    """Sites of functions whose output is by nature mostly a constant, and is so here. A note, never an illness."""
    for site, steps, readings in _unit_sites(recording):
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


# Gradients ----------------------------------------------------------------------------------------------------------


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
    for reading in _sound(recording):
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
        severity=_by_progress(recording),
    )


def _by_progress(recording: Recording) -> Severity:
    """What an uneven gradient means: little where the loss plainly falls all the same."""
    fallen = progress(recording)
    if fallen is None:
        return "warning"
    return "critical" if fallen < UNLEARNT else "warning" if fallen < LEARNT else "note"


# The run ------------------------------------------------------------------------------------------------------------


def find_non_finite(recording: Recording) -> Iterator[Symptom]:
    """NaN or infinity in the loss, the input, an activation or a gradient; the first place it was seen."""
    losses = np.asarray(recording.losses, dtype=float)
    known = ~np.isfinite(losses) if recording.trained and np.isfinite(losses).any() else np.zeros(0, dtype=bool)
    first = int(np.argmax(known)) if known.any() else None
    for reading in recording.readings:
        if reading.input is not None and reading.input.non_finite:
            yield _non_finite("", reading.step, {"input_values": float(reading.input.non_finite)})
            return
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


def progress(recording: Recording) -> float | None:
    """Share of its first value that the loss has lost, from medians over the first and the last tenth of the run.

    None where the run is too short to say; negative where the loss has grown.
    """
    losses = np.asarray(recording.losses, dtype=float)
    losses = losses[np.isfinite(losses)]
    if len(losses) < FEWEST_LOSSES or not recording.trained:
        return None
    early = losses[: max(3, len(losses) // 50)]  # a tenth is too late: many networks learn most in their first steps
    late = losses[-max(10, len(losses) // 10) :]
    first = float(np.mean(early))
    return (first - float(np.mean(late))) / abs(first) if first else 0.0


def find_not_learning(recording: Recording) -> Iterator[Symptom]:
    """A loss that ends where it began, although gradients or updates say there was something to learn."""
    fallen = progress(recording)
    losses = np.asarray(recording.losses, dtype=float)
    if fallen is None or not np.isfinite(losses).all():
        return
    late = losses[len(losses) // 2 :]
    if fallen < UNLEARNT and not _falls(losses[len(losses) // 10 :]) and float(np.mean(late)) > 0:
        yield Symptom(
            kind="not_learning", site="", since=0, born=True,
            evidence={
                "progress": fallen,
                "first_loss": float(losses[:3].mean()),
                "last_loss": float(late[-10:].mean()),
            },
            severity="critical" if fallen <= 0.02 else "warning",
        )  # fmt: skip


def _falls(losses: NDArray[np.float64]) -> bool:
    """Whether the straight line through the losses falls beyond chance (t-statistic of its slope below -2)."""
    x = np.arange(len(losses)) - (len(losses) - 1) / 2
    slope = float((x * losses).sum() / np.square(x).sum())
    residue = losses - losses.mean() - slope * x
    error = math.sqrt(float(np.square(residue).sum()) / (len(losses) - 2) / float(np.square(x).sum()))
    return slope < -2 * error


def find_cut_off(recording: Recording) -> Iterator[Symptom]:
    """Layers that run, could be trained, and never get a gradient, though no closed or saturated layer blocks it."""
    readings = [r for r in _sound(recording) if any(w.gradient is not None for w in r.weights.values())]
    if len(readings) < FEWEST_READINGS:
        return
    reached = {name for reading in readings for name, weight in reading.weights.items() if weight.gradient}
    sites = [s for s in recording.sites if s.weight in readings[0].weights and s.weight not in reached]
    blocked = [s for s in (*find_dead(recording), *find_saturated(recording)) if s.share >= CLOSED_SITE]
    if blocked or any(find_vanishing(recording)):
        return
    for site in sites:
        yield Symptom(
            kind="not_learning", site=site.name, units=tuple(range(site.units)), born=True,
            evidence={"readings_without_gradient": float(len(readings))}, severity="warning",
        )  # fmt: skip


def find_oscillating(recording: Recording) -> Iterator[Symptom]:
    """A loss that falls well below its first value and leaps back above it, again and again in the second half."""
    losses = np.asarray(recording.losses, dtype=float)
    if len(losses) < FEWEST_LOSSES or not recording.trained or not np.isfinite(losses).all():
        return
    first = float(np.median(losses[:5]))
    late = losses[len(losses) // 2 :]
    above, below = late > first, late < first / 2
    states = np.where(above, 1, np.where(below, -1, 0))
    leaps = int(np.count_nonzero(np.diff(states[states != 0]) == 2))  # from well below to above, by whatever way
    if leaps >= LEAPS and above.mean() > 0.1 and below.mean() > 0.1:
        yield Symptom(
            kind="oscillating", site="", since=len(losses) // 2,
            evidence={"share_above_first_loss": float(above.mean()), "leaps": float(leaps), "first_loss": first},
            severity="warning",
        )  # fmt: skip


DETECTORS: tuple[Callable[[Recording], Iterator[Symptom]], ...] = (
    find_non_finite,
    find_dead,
    find_saturated,
    find_exploding,
    find_vanishing,
    find_not_learning,
    find_cut_off,
    find_oscillating,
    find_off_centre,
)
SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "note")


# Shared -------------------------------------------------------------------------------------------------------------


def _sound(recording: Recording) -> Iterator[Reading]:
    """The readings before the first NaN: after it, counts of silent units mean nothing."""
    for reading in recording.readings:
        broken = any(read.non_finite for read in reading.sites.values())
        if broken or (reading.loss is not None and not math.isfinite(reading.loss)):
            return
        yield reading


def _unit_sites(recording: Recording) -> Iterator[tuple[Site, NDArray[np.int64], list[SiteReading]]]:
    sound = list(_sound(recording))
    for site in recording.sites:
        pairs = [(r.step, r.sites[site.name]) for r in sound if site.name in r.sites]
        pairs = [(step, read) for step, read in pairs if len(read.silent) == site.units]
        if pairs:
            yield site, np.array([step for step, _ in pairs], dtype=np.int64), [read for _, read in pairs]


def _trailing(holds: NDArray[np.bool_], readings: list[SiteReading]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Per unit: the reading from which `holds` [readings, units] is true to the end, and the samples since."""
    broken = ~holds[::-1]
    length = np.where(broken.any(axis=0), broken.argmax(axis=0), len(holds))
    seen = np.concatenate([[0.0], np.cumsum([float(r.samples) for r in reversed(readings)])])
    return len(holds) - length, seen[length]


def _from_birth(recording: Recording, steps: NDArray[np.int64]) -> bool:
    """Whether the first reading is of the weights before any training."""
    return bool(len(steps)) and (int(steps[0]) == 0 or not recording.trained)


def gravest(severities: Iterable[Severity]) -> Severity:
    """The worst of some severities; a note where there are none."""
    worst: Severity = "note"
    for severity in severities:
        worst = severity if SEVERITIES.index(severity) < SEVERITIES.index(worst) else worst
    return worst


def _at_least(symptom: Symptom, severity: Severity) -> Symptom:
    return replace(symptom, severity=gravest((symptom.severity, severity)))
