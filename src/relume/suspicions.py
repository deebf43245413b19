"""What the numbers of a recording speak for: rules that propose causes, each with its strength. No torch here.

A rule is a function from a recording and a complaint to a `Suspicion` or None; `SUSPICIONS` lists them. They propose;
replays on a copy decide (`diagnosis.diagnose`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from relume.activations import ACTIVATIONS
from relume.errors import RelumeError
from relume.recording import InitialWeight, InputReading, Recording, Site, layer_name
from relume.symptoms import GRADIENT_RATIO, STILL, Symptom, usual_update
from relume.theory import born_dead_chance, moments

Cause = Literal[
    "learning_rate_too_high", "learning_rate_too_low", "initial_scale", "bias", "unscaled_inputs", "unscaled_targets",
    "saturating_activation", "unbounded_activation", "narrow_and_deep", "output_activation", "no_gradient", "unknown",
]  # fmt: skip


CERTAIN = 1.0  # a fact rather than a clue
PLAIN = 0.5  # strong enough to name a cause without a replay
FAINT = 0.1  # worth a replay, and nothing by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """A cause that the numbers of a recording speak for."""

    cause: Cause
    strength: float  # 0..1
    because: str


# What the numbers say -----------------------------------------------------------------------------------------------


def suspect_inputs(recording: Recording, complaint: tuple[Symptom, ...]) -> Suspicion | None:
    """Inputs far from unit scale multiply the first layer's pre-activations and its gradients."""
    fed = _telling_input(recording)
    if fed is None:
        return None
    if fed.non_finite:
        return Suspicion(
            cause="unscaled_inputs", strength=1.0, because=f"{fed.non_finite} input values are NaN or infinite."
        )
    strength = _off(fed.rms, 1.0, tolerated=10.0)
    later = _later_input(recording, complaint)
    if later is not None and (changed := _off(later.rms, max(fed.rms, 1e-12), tolerated=10.0)) > strength:
        return Suspicion(
            cause="unscaled_inputs",
            strength=changed,
            because=f"The inputs have a root mean square of {number(later.rms)} since then; at first it was "
            f"{number(fed.rms)}.",
        )
    if strength <= 0:
        return None
    return Suspicion(
        cause="unscaled_inputs",
        strength=strength,
        because=f"The inputs have a root mean square of {number(fed.rms)} (mean {number(fed.mean)}, standard "
        f"deviation {number(fed.std)}); networks are initialised for inputs of about 1.",
    )


def suspect_bias(recording: Recording, complaint: tuple[Symptom, ...]) -> Suspicion | None:
    """Initial biases that outweigh what the weights contribute decide alone whether a unit fires."""
    best: Suspicion | None = None
    for site in _sites_of(recording, complaint):
        bias = recording.initial.get(site.bias)
        _, reads = recording.of_site(site.name)
        if bias is None or not reads or site.normalised:
            continue
        size = math.hypot(bias.mean, bias.std)
        spread = float(np.median(reads[0].pre_std))
        usual = 1 / math.sqrt(max(1, _fan_in(recording, site)))  # torch's default bound
        strength = _off(size / max(spread, usual, 1e-12), 1.0, tolerated=3.0, below=False)
        if strength > (best.strength if best else 0.0):
            best = Suspicion(
                cause="bias",
                strength=strength,
                because=f"The biases of {layer_name(site.layer)} start between {number(bias.low)} and "
                f"{number(bias.high)}, while its weighted inputs vary by {number(spread)}.",
            )
    return best


def suspect_scale(recording: Recording, complaint: tuple[Symptom, ...]) -> Suspicion | None:
    """Initial weights far from the scale that keeps signals alive in a network of these functions."""
    ratios = [(r, site) for site in recording.sites if (r := scale_ratio(recording, site)) is not None]
    if not ratios:
        return None
    logs = [math.log(r) for r, _ in ratios]
    middle = math.exp(float(np.median(logs)))
    worst, site = max(ratios, key=lambda pair: abs(math.log(pair[0])))
    ratio = middle if _off(middle, 1.0, tolerated=2.0, low=0.25) > 0 else worst
    strength = _off(ratio, 1.0, tolerated=2.0, low=0.25)
    over_all = _off(middle ** len(ratios), 1.0, tolerated=GRADIENT_RATIO)
    if strength <= 0 and over_all > 0:  # what one layer bears multiplies up over many
        shows = any(s.born and s.kind in ("vanishing", "exploding") for s in complaint)
        strength = over_all if shows else FAINT
    if strength <= 0:
        return None
    where = "The weights" if ratio == middle else f"The weights of {layer_name(site.layer)}"
    return Suspicion(
        cause="initial_scale",
        strength=strength,
        because=f"{where} start at {number(ratio)} times the standard deviation that keeps the signal's size in a "
        f"network of {site.activation}.",
    )


def scale_ratio(recording: Recording, site: Site) -> float | None:
    """Initial standard deviation of the site's weights over the one that keeps the signal: gain / sqrt(fan-in)."""
    weight = recording.initial.get(site.weight)
    if weight is None or site.normalised or weight.fan_in < 1:
        return None
    return max(weight.std, 1e-12) * math.sqrt(weight.fan_in) / sound_gain(site)


def sound_gain(site: Site) -> float:
    """The gain under which signals keep their size (He et al. 2015 for any function).

    For functions flat on both ends it is at least 1 (Glorot & Bengio 2010): a larger gain only saturates them.
    """
    row = ACTIVATIONS[site.activation]
    if row.saturates and all(tail.slope == 0 for tail in row.tails(**site.parameters)):
        return 1.0
    try:
        gain = moments(row, **site.parameters).gain_forward
    except RelumeError:
        return 1.0
    return gain if 0 < gain < math.inf else 1.0


def suspect_rate(recording: Recording, complaint: tuple[Symptom, ...]) -> Suspicion | None:
    """Steps that move weights by a large share of their own size throw units out of the data's reach."""
    structural = [s for s in complaint if s.kind in ("dead", "saturated", "vanishing", "exploding")]
    if structural and all(s.born for s in structural) and not any(s.kind == "not_learning" for s in complaint):
        return None  # what is so before the first step is not the learning rate's doing
    moved = [
        (w.update / w.norm, reading.step, name)
        for reading in recording.readings
        for name, w in reading.weights.items()
        if w.update is not None and w.norm > 0 and math.isfinite(w.update) and _is_matrix(recording, name)
    ]
    if not moved:
        return None
    largest, step, name = max(moved)
    rate = next((r.learning_rate for r in recording.readings if r.learning_rate is not None), None)
    # 1e-3 per step is the usual advice; at 0.1 ten steps replace the weights
    strength = min(1.0, max(0.0, math.log10(max(largest, 1e-12) / 0.02) / 1.5))
    raised = _raised_rate(recording, complaint)
    if raised is not None and raised.strength > strength:
        return raised
    if strength <= 0:
        return None
    return Suspicion(
        cause="learning_rate_too_high",
        strength=strength,
        because=f"Step {step} moved the weights of {layer_name(name.removesuffix('.weight'))} by {number(largest)} of "
        "their own size"
        + (f" at a learning rate of {number(rate)}" if rate is not None else "")
        + "; a thousandth is usual.",
    )


def _raised_rate(recording: Recording, complaint: tuple[Symptom, ...]) -> Suspicion | None:
    """A learning rate that is many times what it was before the complaint."""
    since = min((s.since for s in complaint if not s.born), default=0)
    rates = [(r.step, r.learning_rate) for r in recording.readings if r.learning_rate]
    before = [pair for pair in rates if pair[0] < since]
    after = [pair for pair in rates if pair[0] >= since]
    if not before or not after:
        return None
    (last, old), (first, new) = before[-1], after[0]
    strength = _off(new / old, 1.0, tolerated=10.0, below=False)
    return Suspicion(
        cause="learning_rate_too_high",
        strength=strength,
        because=f"The learning rate went from {number(old)} to {number(new)} between steps {last} and {first}.",
    )


def suspect_slow(recording: Recording, complaint: tuple[Symptom, ...]) -> Suspicion | None:
    """Steps too small to get anywhere within the run, though gradients are there."""
    kinds = {s.kind for s in complaint}
    if not recording.trained or "not_learning" not in kinds or not kinds <= {"not_learning", "dead"}:
        return None
    pace = usual_update(recording)
    if not pace:
        return None
    whole = pace * recording.steps
    strength = min(1.0, max(0.0, -math.log10(max(whole, 1e-12) / (10 * STILL)) / 2))
    if strength <= 0:
        return None
    return Suspicion(
        cause="learning_rate_too_low",
        strength=strength,
        because=f"A step moves the weights by {number(pace)} of their own size: "
        f"{number(whole)} in {recording.steps} steps.",
    )


def suspect_targets(recording: Recording, complaint: tuple[Symptom, ...]) -> Suspicion | None:
    """A first loss that dwarfs the network's own output speaks of targets on another scale."""
    first = next((r for r in recording.readings if r.loss is not None and r.output_rms is not None), None)
    if first is None or first.loss is None or first.output_rms is None or not math.isfinite(first.loss):
        return None
    ratio = math.sqrt(abs(first.loss)) / max(1.0, first.output_rms)
    strength = _off(ratio, 1.0, tolerated=10.0, below=False)
    if strength <= 0:
        return None
    return Suspicion(
        cause="unscaled_targets",
        strength=strength,
        because=f"The first loss is {number(first.loss)} while the network's outputs are of size "
        f"{number(first.output_rms)}: the targets are on another scale. "
        "Standardise them; no change to the network does.",
    )


def suspect_function(recording: Recording, complaint: tuple[Symptom, ...]) -> Suspicion | None:
    """Functions whose slope is small everywhere, or flat on both ends, lose the gradient layer by layer."""
    if not any(s.kind in ("vanishing", "saturated", "not_learning") for s in complaint):
        return None
    hidden = [s for s in recording.sites if not s.output]
    flat = [s for s in hidden if all(t.slope == 0 for t in ACTIVATIONS[s.activation].tails(**s.parameters))]
    if len(flat) < 2 or len(flat) < len(hidden) / 2:
        return None
    site = flat[0]
    if site.normalised:
        return None
    slope = moments(ACTIVATIONS[site.activation], **site.parameters).slope_second
    per_layer = next((s.evidence["per_layer"] for s in complaint if "per_layer" in s.evidence), None)
    strength = 0.6 if slope < 0.1 else 0.4  # sigmoid loses 95 % of the gradient's energy a layer, tanh half
    return Suspicion(
        cause="saturating_activation",
        strength=strength,
        because=f"{len(flat)} of {len(hidden)} hidden functions are {site.activation}, whose squared slope is "
        f"{number(slope)} on average"
        + (f"; the gradient keeps {number(per_layer)} of its size a layer." if per_layer is not None else "."),
    )


def suspect_growth(recording: Recording, complaint: tuple[Symptom, ...]) -> Suspicion | None:
    """Functions that grow faster than their input feed on themselves."""
    if not any(s.kind in ("exploding", "non_finite") for s in complaint):
        return None
    for site in recording.sites:
        if not math.isfinite(ACTIVATIONS[site.activation].steepest()):
            return Suspicion(
                cause="unbounded_activation",
                strength=0.7,
                because=f"{site.name} applies {site.activation}, whose slope has no bound.",
            )
    return None


def suspect_shape(recording: Recording, complaint: tuple[Symptom, ...]) -> Suspicion | None:
    """Narrow, deep ReLU networks are born dead by chance, whatever the scale of their weights."""
    if not any(s.born for s in complaint):
        return None
    widths = [s.units for s in recording.sites if s.activation == "relu" and not s.normalised and not s.output]
    if len(widths) < 2:
        return None
    chance = born_dead_chance(widths).chance
    if chance < 0.05:
        return None
    return Suspicion(
        cause="narrow_and_deep",
        strength=min(1.0, 0.5 + chance / 2),
        because=f"{len(widths)} ReLU layers of at most {max(widths)} units: {chance:.0%} of such networks "
        "are born with a closed layer, whatever the scale of their weights.",
    )


def suspect_output(recording: Recording, complaint: tuple[Symptom, ...]) -> Suspicion | None:
    """A function on the network's own output that is flat where the targets are, or never gets there."""
    apart = next((s for s in complaint if "least_loss" in s.evidence), None)
    if apart is not None and recording.reach is not None:
        least, without = apart.evidence["least_loss"], apart.evidence["least_loss_without"]
        return Suspicion(
            cause="output_activation",
            strength=PLAIN if recording.reach.classes else CERTAIN,
            because=f"No weights can bring the loss below {number(least)}: the function behind "
            f"{layer_name(recording.reach.layer)} cannot give the targets. Without it the least is {number(without)}.",
        )
    dead: dict[str, int] = {}
    for symptom in complaint:
        if symptom.kind == "dead":
            dead[symptom.site] = dead.get(symptom.site, 0) + len(symptom.units)
    for site in recording.sites:
        count = dead.get(site.name, 0)
        if site.output and count:
            return Suspicion(
                cause="output_activation",
                strength=0.9,  # what shut them may lie before it
                because=f"The network ends in {site.activation}, and {count} of its {site.units} outputs sit on "
                "the flat side of it.",
            )
    return None


def suspect_no_gradient(recording: Recording, complaint: tuple[Symptom, ...]) -> Suspicion | None:
    """Layers that run and could be trained, but that no gradient ever reaches (`symptoms.find_cut_off`), or moves.

    Those that the optimizer was not given may be so on purpose: they are a cause only where the loss does not fall.
    """
    cut = {s.site for s in complaint if "readings_without_gradient" in s.evidence}
    left = [name for name, start in recording.initial.items() if start.trainable and not start.driven]
    if not cut and left and any(s.kind == "not_learning" and not s.site for s in complaint):
        return Suspicion(
            cause="no_gradient",
            strength=PLAIN,
            because=f"{len(left)} of {len(recording.initial)} parameters want gradients, but the optimizer was not "
            f"given them, so they never move: {', '.join(left[:3])}{', ...' if len(left) > 3 else ''}.",
        )
    if not cut:
        return None
    names = [layer_name(site.weight) for site in recording.sites if site.name in cut]
    return Suspicion(
        cause="no_gradient",
        strength=CERTAIN,
        because=f"No gradient reached {', '.join(names[:3])}{', ...' if len(names) > 3 else ''} in any of the "
        f"{len(recording.readings)} readings: look for detach(), no_grad(), .data or .item() behind it.",
    )


SUSPICIONS: tuple[Callable[[Recording, tuple[Symptom, ...]], Suspicion | None], ...] = (
    suspect_no_gradient,
    suspect_inputs,
    suspect_bias,
    suspect_output,
    suspect_shape,
    suspect_scale,
    suspect_targets,
    suspect_growth,
    suspect_function,
    suspect_rate,
    suspect_slow,
)


def suspicions(recording: Recording, complaint: tuple[Symptom, ...]) -> list[Suspicion]:
    """What the recording speaks for, the strongest first."""
    found = [s for suspect in SUSPICIONS if (s := suspect(recording, complaint)) is not None]
    return sorted(found, key=lambda s: -s.strength)


# Shared -------------------------------------------------------------------------------------------------------------


def _off(value: float, usual: float, *, tolerated: float, low: float | None = None, below: bool = True) -> float:
    """How far a value lies beyond the tolerated factor: 0 within, 1 at a hundredfold of it."""
    if not value > 0 or not math.isfinite(value):
        return 1.0 if value > 0 else 0.0
    up = math.log(value / usual / tolerated)
    down = math.log(usual * (low if low is not None else 1 / tolerated) / value) if below else -1.0
    beyond = max(up, down)
    return 0.0 if beyond <= 0 else min(1.0, 0.3 + 0.7 * beyond / math.log(100))


def _telling_input(recording: Recording) -> InputReading | None:
    """The first batch with NaN in it, or else the first batch."""
    read = [r.input for r in recording.readings if r.input is not None]
    return next((batch for batch in read if batch.non_finite), read[0] if read else None)


def _later_input(recording: Recording, complaint: Iterable[Symptom]) -> InputReading | None:
    """The first batch read since the complaint holds; None where it held from the start."""
    since = min((s.since for s in complaint if not s.born), default=0)
    read = (r.input for r in recording.readings if r.step >= since > 0 and r.input is not None)
    return next(read, None)


def _sites_of(recording: Recording, complaint: Iterable[Symptom]) -> list[Site]:
    names = {s.site for s in complaint}
    return [site for site in recording.sites if site.name in names] or list(recording.sites)


def _fan_in(recording: Recording, site: Site) -> int:
    weight = recording.initial.get(site.weight)
    return weight.fan_in if weight is not None else 1


def _is_matrix(recording: Recording, name: str) -> bool:
    weight: InitialWeight | None = recording.initial.get(name)
    return weight is not None and weight.fan_in > 1


def number(value: float) -> str:
    """Two significant digits, without an exponent where a person would write none."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 1e-4 <= abs(value) < 1e6:
        return f"{float(f'{value:.2g}'):,.10g}".replace(",", "")
    return f"{value:.1e}"
