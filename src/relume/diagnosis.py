"""Why: symptoms and a recording in, ranked causes out. No torch here.

Rules propose causes (`SUSPICIONS`), each with a strength and the numbers behind it; replays on a copy decide
(`Experiment`). Where nothing could be replayed the rules decide alone, and the diagnosis says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from relume.activations import ACTIVATIONS
from relume.recording import Recording, layer_name
from relume.suspicions import CERTAIN, PLAIN, Cause, Suspicion, number, suspicions
from relume.symptoms import (
    DEAD_OF_SITE,
    GRADIENT_RATIO,
    ORDERS,
    SEVERITIES,
    UNLEARNT,
    Kind,
    Severity,
    Symptom,
    burden,
    gravest,
    late_loss,
    progress,
)
from relume.timeline import timeline, together

MENDED = 0.5  # a change names the cause when it takes away at least half of the burden
# A cause seen in the numbers themselves may mend so much less than a lower learning rate, which helps against
# everything, and still come first.
SPECIFIC = 0.25
RULED_OUT = 0.1  # of the burden: a change that takes away no more speaks against its cause
OF_THE_START: tuple[Cause, ...] = ("unscaled_inputs", "unscaled_targets", "initial_scale", "bias")  # seen at once
UNUSUAL_STEP = 10  # times the usual share of its size that a step moves a layer: an order of magnitude


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """The same steps replayed on a copy with one thing changed."""

    change: str  # in words: "learning rate / 10"
    cause: Cause | None  # the cause this change would take away; None for the replay as it was
    steps: int
    burden: float  # how ill the copy was at the end, 0..1; see `symptoms.burden`
    measure: str  # what the burden measures, in words: "share of units dead"
    loss: float | None = None  # at the end, over that of the best constant answer where this is known
    better: bool = False  # its loss ended plainly below that of the unchanged replay, and of the run
    covers: tuple[Cause, ...] = ()  # other causes that this change would take away too


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """A cause, with its evidence."""

    cause: Cause
    severity: Severity
    since: int
    symptoms: tuple[Symptom, ...]
    because: tuple[str, ...]  # sentences with numbers
    remedies: tuple[str, ...]  # names, best first
    experiments: tuple[Experiment, ...] = ()  # the replays behind it, the unchanged one first


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Which activation calls the watch could see."""

    sites: tuple[str, ...]  # every activation call found, by name
    watched: tuple[str, ...]  # those of them that were read
    blind: tuple[str, ...] = ()  # what could not be seen, and why, one sentence each


# Best first; "a+b" is both, one after the other, where one is not enough. Recycling wants the cause gone before.
REMEDIES_FOR: Mapping[Cause, tuple[str, ...]] = {
    "learning_rate_too_high": (
        "lower_learning_rate", "lower_learning_rate_100x", "lower_learning_rate_1000x", "lower_learning_rate+recycle",
        "clip_gradients", "batch_norm", "no_weight_decay", "leaky_relu",
    ),
    "learning_rate_too_low": (
        "raise_learning_rate", "raise_learning_rate_100x", "raise_learning_rate_1000x", "raise_learning_rate_10000x",
        "batch_norm",
    ),
    "initial_scale": ("he_init", "xavier_init", "lsuv_init", "he_init+batch_norm", "batch_norm"),
    "bias": ("reset_bias", "reset_bias+he_init", "he_init", "reset_bias+recycle", "batch_norm", "leaky_relu"),
    "unscaled_inputs": (
        "scale_inputs", "batch_norm", "scale_inputs+he_init", "lower_learning_rate", "clip_gradients",
        "skip_non_finite",
    ),
    "unscaled_targets": (
        "scale_targets", "scale_targets+he_init", "clip_gradients", "lower_learning_rate", "raise_learning_rate",
    ),
    "saturating_activation": (
        "leaky_relu+he_init", "xavier_init+batch_norm", "elu", "batch_norm", "leaky_relu", "tanh", "xavier_init",
    ),
    "unbounded_activation": ("elu", "softplus", "batch_norm", "elu+he_init", "clip_gradients"),
    "narrow_and_deep": (
        "residual", "layer_norm+leaky_relu", "batch_norm+leaky_relu", "elu+xavier_init", "batch_norm", "prelu",
    ),
    "output_activation": ("linear_output", "linear_output+lower_learning_rate", "lower_learning_rate"),
    "no_gradient": ("keep_gradient", "train_all"),
    "unknown": (
        "batch_norm", "lower_learning_rate", "leaky_relu", "he_init+batch_norm", "no_weight_decay", "train_all",
        "clip_gradients", "skip_non_finite",
    ),
}  # fmt: skip


# One complaint at a time --------------------------------------------------------------------------------------------


def complaints(recording: Recording, symptoms: Iterable[Symptom]) -> list[tuple[Symptom, ...]]:
    """Serious symptoms that want one explanation each: what was there from the start, and what came later.

    Symptoms of the whole run (a loss that does not fall, gradients that vanish) follow from the units where there are
    such, and go with them, as do outputs that died with those that were born so. A loss that had fallen and rose again
    goes with what died later. Where there is nothing serious, a network that learns
    may still learn slowly: see `_slow`.
    """
    serious = [s for s in symptoms if s.severity != "note" or s.at_worst is not None]
    of_units = [s for s in serious if s.kind in ("dead", "saturated")]
    outputs = {site.name for site in recording.sites if site.output}
    at_birth = {s.site for s in of_units if s.born}
    born = [s for s in of_units if s.born or (s.site in outputs and s.site in at_birth)]
    later = [s for s in of_units if s not in born]
    rest = [s for s in serious if s not in of_units]
    if not serious and (slow := _slow(recording)) is not None:
        rest.append(slow)
    relapses = [s for s in rest if s.kind == "not_learning" and not s.born]
    groups = [g for g in (born, later) if g] or [[]]
    groups[0] = groups[0] + [s for s in rest if s not in relapses]
    groups[-1] = groups[-1] + relapses
    return [tuple(g) for g in groups if g]


def _slow(recording: Recording) -> Symptom | None:
    """The doubt whether a network that learns would learn plainly more, where its start is plainly out of scale.

    Only for a loss that is well above the least it could be.
    """
    reach, fallen = recording.reach, progress(recording)
    if reach is None or reach.constant is None or fallen is None or recording.resumed:
        return None
    late = late_loss(np.asarray(recording.losses, dtype=float))
    if not late > reach.floor + UNLEARNT * (reach.constant - reach.floor):
        return None
    slow = Symptom(
        kind="not_learning", site="", born=True, severity="note", at_worst="warning",
        evidence={"progress": fallen, "last_loss": late, "constant_loss": reach.constant},
    )  # fmt: skip
    return (
        slow if any(s.strength >= PLAIN and s.cause in OF_THE_START for s in suspicions(recording, (slow,))) else None
    )


def _halves(experiments: Sequence[Experiment], causes: Collection[Cause]) -> bool:
    """Whether without one of these causes as many steps lead to at most half of the loss, and below that of the run."""
    high = next((e.loss for e in experiments if e.cause is None and e.loss is not None), math.inf)
    without = [e.loss for e in experiments if e.better and e.cause in causes and e.loss is not None]
    return bool(without) and min(without) <= (1 - MENDED) * high


@dataclass(frozen=True, slots=True)
class Measure:
    """What is compared between replays of one complaint."""

    words: str
    kinds: frozenset[Kind]
    told: Callable[[Experiment], str]  # an outcome in words


def _percent(e: Experiment) -> str:
    return f"{e.burden:.0%}"


def _yes_no(e: Experiment) -> str:
    return "yes" if e.burden > 0 else "no"


def _orders(e: Experiment) -> str:
    return (
        f"{e.burden * ORDERS:.0f} orders of magnitude"
        if e.burden > 0
        else f"less than {math.log10(GRADIENT_RATIO):.0f} orders of magnitude"
    )


def _loss(e: Experiment) -> str:
    return "not finite" if e.loss is None else number(e.loss)


_RUINED: frozenset[Kind] = frozenset({"non_finite", "exploding"})  # a change that ruins the run mends nothing
_OF_THE_LOSS: frozenset[Kind] = frozenset({"not_learning", "oscillating"})
MEASURES = (
    Measure("loss", _OF_THE_LOSS, _loss),
    Measure("share of units dead", frozenset[Kind]({"dead", *_RUINED}), _percent),
    Measure("share of units saturated", frozenset[Kind]({"saturated", *_RUINED}), _percent),
    Measure("loss or gradients out of bounds:", _RUINED, _yes_no),
    Measure("gradient lost over depth:", frozenset[Kind]({"vanishing", *_RUINED}), _orders),
)


def measure_named(words: str) -> Measure:
    """The measure of an experiment."""
    return next(m for m in MEASURES if m.words == words)


def is_of_the_loss(complaint: Iterable[Symptom]) -> bool:
    """Whether the run does not learn, so that its loss is what a change must mend, whatever its units do."""
    return any(s.kind in _OF_THE_LOSS for s in complaint)


def measure_of(complaint: Iterable[Symptom]) -> Measure:
    """What stands for a complaint: its loss where that is stuck, else its units, else its gradients."""
    kinds = {s.kind for s in complaint}
    return next(m for m in MEASURES if kinds & (m.kinds - _RUINED or m.kinds))


def burden_of(
    complaint: Iterable[Symptom], recording: Recording, symptoms: tuple[Symptom, ...], outputs: Collection[str] = ()
) -> float:
    """How much of this complaint another recording of the same network shows; `outputs` are its own output sites."""
    complaint = tuple(complaint)
    born_only = all(s.born for s in complaint if s.kind in ("dead", "saturated"))
    counted = tuple(s for s in symptoms if s.kind not in ("dead", "saturated") or s.born or not born_only)
    sites = {s.site for s in complaint if s.kind in ("dead", "saturated")}
    if sites <= set(outputs):  # those inside are another matter
        counted = tuple(s for s in counted if s.kind not in ("dead", "saturated") or s.site in outputs)
    return burden(recording, counted, tuple(measure_of(complaint).kinds))


def settled(
    complaint: tuple[Symptom, ...], experiments: tuple[Experiment, ...], plain: Collection[Cause] = ()
) -> tuple[Symptom, ...]:
    """The complaint with its doubts resolved: what is doubtful counts if a change that takes it away learns more.

    What no change lowers is at its floor, as far as anyone can tell; units that nobody misses are no illness. For half
    a layer that was born dead it is enough that a change keeps it alive, and where the numbers name a cause plainly,
    that the network learns more without it.
    """
    if not experiments:
        return complaint
    mending = [e for e in experiments[1:] if e.burden <= (1 - MENDED) * experiments[0].burden]
    missed = any(e.better for e in mending) or any(e.better and e.cause in plain for e in experiments)

    def settle(s: Symptom) -> Symptom:
        if s.at_worst is None:
            return s
        ill = missed or (bool(mending) and s.kind == "dead" and s.born and s.share >= DEAD_OF_SITE)
        return replace(s, severity=s.at_worst if ill else "note", at_worst=None)

    return tuple(settle(s) for s in complaint)


# The verdict --------------------------------------------------------------------------------------------------------


def diagnose(
    recording: Recording,
    symptoms: tuple[Symptom, ...],
    experiments: Mapping[int, tuple[Experiment, ...]] | None = None,
) -> tuple[Diagnosis, ...]:
    """One diagnosis per cause, the gravest first.

    `experiments` holds replays by the complaint's index, and is None where nothing could be replayed.
    """
    found: list[Diagnosis] = []
    notes = [s for s in symptoms if s.severity == "note" and s.at_worst is None]
    for index, doubtful in enumerate(complaints(recording, symptoms)):
        tried = (experiments or {}).get(index, ())
        plain: set[Cause] = {s.cause for s in suspicions(recording, doubtful) if s.strength >= PLAIN}
        if not any(s in symptoms for s in doubtful) and not _halves(tried, plain):  # that doubt is `_slow`'s
            continue
        complaint = settled(doubtful, tried, plain)
        if any(s.severity != "note" for s in complaint):
            found.append(_explain(recording, complaint, tried, replayed=experiments is not None))
        else:
            notes += complaint
    found = _folded(sorted(found, key=lambda d: (SEVERITIES.index(d.severity), d.cause == "unknown")))
    if notes:
        found.append(_note(recording, tuple(notes), alone=not found))
    return tuple(found)


def _folded(ranked: list[Diagnosis]) -> list[Diagnosis]:
    """One diagnosis for each cause; what began no sooner, and has no cause of its own, follows from the first."""
    found: list[Diagnosis] = []
    for d in ranked:
        i = next(
            (i for i, f in enumerate(found) if f.cause == d.cause or (d.cause == "unknown" and f.since <= d.since)),
            None,
        )
        if i is None:
            found.append(d)
        else:
            first = found[i]
            found[i] = replace(first, since=min(first.since, d.since), symptoms=(*first.symptoms, *d.symptoms))
    return found


def _explain(
    recording: Recording, complaint: tuple[Symptom, ...], experiments: tuple[Experiment, ...], *, replayed: bool
) -> Diagnosis:
    found = suspicions(recording, complaint)
    control = next((e for e in experiments if e.cause is None), None)
    cause = likeliest_cause(found, experiments)
    because = [s.because for s in found if s.cause == cause]
    because += _at_death(recording, complaint)
    if control is not None:
        because += _in_words(control, experiments, cause, measure_named(control.measure))
        if measure_named(control.measure).kinds == _OF_THE_LOSS and recording.reach and recording.reach.constant:
            because.append("These losses are told as multiples of that of the best constant answer, 1.")
        if cause == "unknown":
            several = any(e.cause == "unknown" and e.burden <= (1 - MENDED) * control.burden for e in experiments)
            because.append(
                "Only several changes at once take half of it away: which of them it is, is not identified."
                if several
                else "None of the changes tried takes half of it away: the cause is not identified."
            )
    elif recording.trained and cause != "unknown":
        shown = "the illness does not show within a replay" if replayed else "nothing was replayed"
        because.append(f"By the numbers alone: {shown}.")
    if not because:
        because.append("Nothing in the recording stands out as its cause.")
    return Diagnosis(
        cause=cause,
        severity=gravest(s.severity for s in complaint),
        since=min(s.since for s in complaint),
        symptoms=complaint,
        because=tuple(because),
        remedies=_remedies(recording, cause),
        experiments=experiments,
    )


def likeliest_cause(found: list[Suspicion], experiments: tuple[Experiment, ...]) -> Cause:
    """The cause that replays and suspicions, the strongest first, speak for together.

    A change that takes away several causes at once cannot tell them apart: what it mends is put down to the one that
    the numbers speak for the most, and clears none of them of what another change could not mend.
    """
    strength: dict[Cause, float] = {s.cause: s.strength for s in found}
    mended: dict[Cause, float] = {}
    together: list[Cause] = []  # by changes that take away more than this
    control = next((e for e in experiments if e.cause is None), None)
    for e in experiments:
        if e.cause is None or control is None or control.burden <= 0:
            continue
        share = 1 - e.burden / control.burden
        facts: list[Cause] = [c for c in e.covers if strength.get(c, 0.0) >= max(PLAIN, strength.get(e.cause, 0.0))]
        if share >= MENDED and facts:
            together.append(max(facts, key=lambda c: strength[c]))
        else:
            mended[e.cause] = max(mended.get(e.cause, -math.inf), share)
    proven: list[Cause] = [c for c, share in mended.items() if share >= MENDED and c != "unknown"]
    if "initial_scale" in proven and "saturating_activation" in proven:
        proven.remove("saturating_activation")  # its replay has sound weights too, and these alone do
    learning = {e.cause for e in experiments if e.better}
    if not learning & set(proven):  # units that live on and do not help to learn prove less
        proven = [c for c in mended if c in learning and strength.get(c, 0.0) >= PLAIN] or proven
    if not any(strength.get(c, 0.0) > 0 for c in proven) and together:
        return max(together, key=lambda c: strength[c])
    untested: list[Cause] = [s.cause for s in found if s.cause not in mended and s.strength >= PLAIN]
    specific = {c: s for c, s in strength.items() if c != "learning_rate_too_high"}
    if proven:

        def merit(c: Cause) -> tuple[float, float]:
            lowest = min((e.loss for e in experiments if e.cause == c and e.loss is not None), default=math.inf)
            return mended[c] + SPECIFIC * specific.get(c, 0.0), -lowest

        cause = max(proven, key=merit)
        rivals: list[Cause] = [c for c in untested if strength[c] >= CERTAIN or strength[c] > SPECIFIC + mended[cause]]
        return rivals[0] if rivals else cause
    if untested:
        return untested[0]  # the strongest: suspicions come sorted
    if left := [s for s in found if mended.get(s.cause, 1.0) > RULED_OUT]:  # by the replays
        likeliest = max(left, key=lambda s: s.strength + mended.get(s.cause, 0.0))
        if not experiments or likeliest.strength >= PLAIN:
            return likeliest.cause  # plain in the numbers, though no replay took it away
    return "unknown"


def _at_death(recording: Recording, complaint: tuple[Symptom, ...]) -> list[str]:
    """What happened when the most units died at once, where that step was out of the ordinary."""
    sites = {s.site for s in complaint if s.kind == "dead" and not s.born}
    group = next(iter(together(unit for unit in timeline(recording) if unit.site in sites)), ()) if sites else ()
    if not group:
        return []
    unit, units = group[0], "1 unit" if len(group) == 1 else f"{len(group)} units"
    ratio, usual, old, new = unit.update_ratio, unit.usual_ratio, unit.loss_before, unit.loss
    if ratio is None or not usual or ratio < UNUSUAL_STEP * usual:
        return []
    loss = f", and the loss went from {number(old)} to {number(new)}" if old is not None and new is not None else ""
    return [
        f"{units} of {layer_name(recording.site(unit.site).layer)} died between steps {unit.before} and {unit.since}: "
        f"step {unit.update_step} moved the layer by {number(ratio)} of its size, {number(ratio / usual)} times the "
        f"usual{loss}."
    ]


def _remedies(recording: Recording, cause: Cause) -> tuple[str, ...]:
    """The remedies for a cause, best first: each initialisation is made for one family of functions."""
    names = REMEDIES_FOR[cause]
    bounded = [ACTIVATIONS[site.activation].bounded for site in recording.sites if not site.output]
    if cause == "initial_scale" and 2 * sum(bounded) > len(bounded):
        return tuple(sorted(names, key=lambda name: name != "xavier_init"))
    return names


def _in_words(control: Experiment, experiments: Iterable[Experiment], cause: Cause, measure: Measure) -> list[str]:
    told = sorted((e for e in experiments if e.cause == cause), key=lambda e: (not e.better, e.burden))
    if not told or told[0].burden > (1 - MENDED) * control.burden:  # what mends takes away this and more
        told = sorted((e for e in experiments if cause in (e.cause, *e.covers)), key=lambda e: e.burden)
    others = [e for e in experiments if e.cause is not None and e not in told[:1]]
    sentences = [
        f"Replayed for {e.steps} steps with {e.change}: {measure.words} {measure.told(e)}, "
        f"as it was {measure.told(control)}."
        for e in told[:1]
    ]
    if others:
        start = (
            "Other changes replayed"
            if told
            else f"Changes replayed ({measure.words} {measure.told(control)} as it was)"
        )
        sentences.append(f"{start}: {'; '.join(f'{e.change}: {measure.told(e)}' for e in others)}.")
    return sentences


def _note(recording: Recording, notes: tuple[Symptom, ...], *, alone: bool) -> Diagnosis:
    because = []
    dead = [s for s in notes if s.kind == "dead"]
    if dead:
        units = sum(len(s.units) for s in dead)
        total = sum(site.units for site in recording.sites if ACTIVATIONS[site.activation].can_die)
        judged = "few enough for a network of this kind to learn all the same" if alone else "by themselves no illness"
        if units >= DEAD_OF_SITE * total:
            judged = (
                "the network is larger than its task needs, for no replay that kept more alive learned plainly more"
            )
        because.append(f"{units} of {total} units are dead: {judged}.")
        because += _at_death(recording, tuple(s for s in dead if s.at_worst is not None))
    saturated = [s for s in notes if s.kind == "saturated"]
    if saturated:
        few = ", fewer than half at each site" if all(s.share < DEAD_OF_SITE for s in saturated) else ""
        because.append(f"{sum(len(s.units) for s in saturated)} units are saturated{few}.")
    centred = [s for s in notes if s.kind == "off_centre"]
    if centred:
        because.append(f"The output of {len(centred)} of {len(recording.sites)} sites is mostly a constant.")
    stuck = [s for s in notes if s.kind in _OF_THE_LOSS and not s.site]
    if any(s.at_worst is None for s in stuck):
        because.append("No replay with a change brought the loss plainly lower: it may be at its floor.")
    elif stuck:
        because.append("Whether the loss could be lower, only replays could say, which need the loss function.")
    others = [s for s in notes if s.kind in ("vanishing", "exploding")]
    because += [f"Gradients are uneven over depth ({s.kind}), and the loss falls all the same." for s in others]
    return Diagnosis(
        cause="unknown",
        severity="note",
        since=min(s.since for s in notes),
        symptoms=notes,
        because=tuple(because),
        remedies=(),
    )
