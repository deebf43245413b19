"""Every name and sentence of a report, in one place, so that a second language is a second set of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from relume.actions import told
from relume.diagnosis import Diagnosis
from relume.recording import Recording
from relume.report.history import SiteHistory, function_name, labels
from relume.report.numerals import count, fine_percent, number, percent, seconds
from relume.report.results import Report, Trial
from relume.symptoms import UNLEARNT, Symptom
from relume.timeline import UnitHistory, together
from relume.verdicts import Arm

KINDS = {
    "dead": "dead",
    "saturated": "saturated",
    "vanishing": "gradients vanish",
    "exploding": "values explode",
    "non_finite": "not finite",
    "not_learning": "does not learn",
    "oscillating": "loss oscillates",
    "off_centre": "off centre",
}
LEARNS_LITTLE = "learns less than it could"
CAUSES = {
    "learning_rate_too_high": "learning rate too high",
    "learning_rate_too_low": "learning rate too low",
    "initial_scale": "initial weights of the wrong scale",
    "bias": "biases that hold units shut",
    "unscaled_inputs": "inputs not scaled",
    "unscaled_targets": "targets not scaled",
    "saturating_activation": "activation function saturates",
    "unbounded_activation": "activation function without an upper bound",
    "narrow_and_deep": "network narrow and deep",
    "output_activation": "activation after the last layer",
    "no_gradient": "no gradient moves the weights",
    "unknown": "cause unknown",
}
BECAUSE = {
    "learning_rate_too_high": " because the learning rate is too high",
    "learning_rate_too_low": " because the learning rate is too low",
    "initial_scale": " because the initial weights have the wrong scale",
    "bias": " because of their biases",
    "unscaled_inputs": " because the inputs are not scaled",
    "unscaled_targets": " because the targets are not scaled",
    "saturating_activation": " because the activation function saturates",
    "unbounded_activation": " because the activation function has no upper bound",
    "narrow_and_deep": " because the network is narrow and deep",
    "output_activation": " because of the activation after the last layer",
    "no_gradient": " because no gradient moves its weights",
    "unknown": "; no cause was proven",
}
REMEDIES = {
    "untreated": "untreated",
    "leaky_relu": "leaky ReLU",
    "batch_norm": "BatchNorm",
    "layer_norm": "LayerNorm",
    "he_init": "He initialisation",
    "xavier_init": "Xavier initialisation",
    "lsuv_init": "LSUV initialisation",
    "reset_bias": "biases at zero",
    "tanh": "tanh for sigmoid",
    "lower_learning_rate": "lower learning rate",
    "lower_learning_rate_100x": "learning rate / 100",
    "lower_learning_rate_1000x": "learning rate / 1000",
    "raise_learning_rate": "higher learning rate",
    "raise_learning_rate_100x": "learning rate x 100",
    "raise_learning_rate_1000x": "learning rate x 1000",
    "raise_learning_rate_10000x": "learning rate x 10000",
    "smaller_network": "smaller network",
    "mixed_activations": "mixed activations",
    "recycle": "recycle",
    "clip_gradients": "clipped gradients",
    "skip_non_finite": "no step where a gradient is not finite",
    "no_weight_decay": "no weight decay",
    "train_all": "all parameters trained",
    "keep_gradient": "detach undone",
    "warm_up": "warm-up",
    "scale_inputs": "scaled inputs",
    "scale_targets": "scaled targets",
    "linear_output": "no activation on the output",
    "residual": "residual connections",
}
VERDICTS = {
    "cured": "cured",
    "eased": "eased",
    "no_effect": "no effect",
    "harmed": "harmed",
    "unproven": "unproven",
}
VERDICT_MARKS = {"cured": "+", "eased": "~", "no_effect": "=", "harmed": "-", "unproven": "?"}
SEVERITY_MARKS = {"critical": "!!", "warning": "!", "note": "i"}
STATES = {
    "a": "alive",
    "p": "saturated",
    "s": "sparse",
    "x": "dead",
    "e": "not finite",
    "-": "not seen",
}
STATES_LONG = {
    "a": "alive",
    "s": "sparse: fires on under 5 % of samples, or silent for a while",
    "p": "saturated: on a flat end for most samples",
    "x": "dead: silent on 1,000 samples or more",
    "e": "not finite",
    "-": "not seen",
}
# Of a unit in the terminal, one sign each.
STATE_SIGNS = {"a": "o", "s": ".", "p": "~", "x": "x", "e": "!", "-": " "}


def actions(report: Report) -> list[str]:
    """What was done about the network while it was watched, one sentence each."""
    lines = [sentence_case(told(action)) for action in report.actions]
    if any(action.adopted is not None for action in report.actions):
        lines.append("What is said of units and losses here is of the steps after the network was last changed.")
    return lines


# Names ----------------------------------------------------------------------------------------------------------------


def remedy(name: str) -> str:
    """A remedy, several of them, or the activation function that a comparison swaps in."""
    if "+" in name:
        return " + ".join(remedy(part) for part in name.split("+"))
    if name in REMEDIES:
        return REMEDIES[name]
    shown = function_name(name)
    return shown if shown != name else name.replace("_", " ")


def joined(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and 3 more"."""
    if len(names) <= 1:
        return "".join(names)
    if len(names) <= 3:
        return f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{', '.join(names[:2])} and {len(names) - 2} more"


def evidence_name(name: str) -> str:
    """A detector's number, by the name it gave."""
    return name.replace("_", " ")


# What dead means ------------------------------------------------------------------------------------------------------


def dead_means(samples: int, distinct: int | None = None) -> str:
    """What the word dead rests on, in this run; of samples that were seen again, only the `distinct` ones count."""
    if not samples:
        return "a unit silent on at least 1,000 samples to the end of the run, without any gradient; none was here"
    counted = samples if distinct is None else max(1, min(samples, distinct))
    bound = 1 - 0.05 ** (1 / counted)
    seen = "" if counted == samples else f" ({counted:,} of them different)"
    return (
        f"silent on at least {samples:,} of {samples:,} samples{seen} to the end of the run, without any gradient: "
        f"with 95 % confidence it fires on under {number(100 * bound, 1)} % of them"
    )


def proven(recording: Recording, symptoms: Sequence[Symptom]) -> str:
    """How many dead units are proven closed, and how well; nothing where no proof was tried or possible."""
    told = [s for s in symptoms if "proven_on_hull" in s.evidence]
    if not told:
        return ""
    units = sum(len(s.units) for s in told)
    hull, box = (int(sum(s.evidence[key] for s in told)) for key in ("proven_on_hull", "proven_on_box"))
    if not hull:
        return f"None of {count(units, 'dead unit')} is proven closed"
    dead = {(s.site, unit) for s in told for unit in s.units}
    margins = [
        float(margin)
        for proof in recording.proofs
        for unit, closed, margin in zip(proof.units, proof.hull, proof.margin, strict=True)
        if closed and (proof.site, unit) in dead
    ]
    return (
        f"{count(units, 'dead unit')}: {hull:,} proven closed for every input of their layer between those seen "
        f"(margin {_margin(float(np.median(margins)))} their radius, median), {box:,} for every one in their range"
    )


def _margin(share: float) -> str:
    """Beyond ten radii a number says no more than that."""
    return f"{percent(share)} of" if share <= 10 else "more than ten times"


# Sentences ------------------------------------------------------------------------------------------------------------


def since(step: int, born: bool = False) -> str:
    """From when on something holds."""
    return "from the start" if born or not step else f"since step {step:,}"


def title(diagnosis: Diagnosis) -> str:
    """What a diagnosis is called: its cause, or where none was found, what is wrong."""
    if diagnosis.cause != "unknown":
        return CAUSES[diagnosis.cause]
    kinds = list(dict.fromkeys(kind(symptom) for symptom in diagnosis.symptoms))
    if not kinds:
        return CAUSES["unknown"]
    return joined(kinds) if diagnosis.severity == "note" else f"{joined(kinds)}, {CAUSES['unknown']}"


def kind(symptom: Symptom) -> str:
    """What is wrong; of a loss that falls all the same, that it could fall further."""
    learns = symptom.kind == "not_learning" and symptom.evidence.get("progress", 0.0) >= UNLEARNT
    return LEARNS_LITTLE if learns else KINDS[symptom.kind]


def symptom_head(symptoms: Sequence[Symptom]) -> str:
    """Symptoms of one kind, and from when on they hold."""
    step, born = min(s.since for s in symptoms), symptoms[0].born
    if symptoms[0].kind == "dead":
        return "Born dead" if born else f"Died, the first at step {step:,}"
    return sentence_case(f"{kind(symptoms[0])} {since(step, born)}")


def place(symptom: Symptom, label: str, units: int) -> str:
    """Where a symptom sits, and on how many units."""
    if symptom.units and units:
        return f"{label} ({len(symptom.units):,} of {units:,})"
    return label


# What happened when units died --------------------------------------------------------------------------------------

TIMELINE = "Timeline"
MOMENTS = 3  # at which units died that are told one by one; of more, the rest is counted


def timeline(report: Report) -> list[str]:
    """When units died and what happened then, the most at once first; which came back, and which flicker.

    Nothing where no dead units are found that matter: those of a healthy network are no news.
    """
    told = [s for d in report.diagnoses for s in d.symptoms if d.severity != "note" or s.at_worst is not None]
    if not any(s.kind == "dead" for s in told):
        return []
    names, units = labels(report.recording), report.timeline
    groups = together(units)
    lines = [f"{_who(group, names)} died {_when(group[0])}{_meanwhile(group[0])}" for group in groups[:MOMENTS]]
    if rest := groups[MOMENTS:]:
        steps = [group[0].since for group in rest if group[0].since is not None]
        amount = sum(len(group) for group in rest)
        lines.append(f"{amount:,} more died in {count(len(rest), 'smaller group')}, the last by step {max(steps):,}")
    for kind, told in (("revived", "were dead and fire again"), ("flickering", "flicker: dead, firing, dead again")):
        places = Counter(names[unit.site] for unit in units if unit.kind == kind)
        if places:
            where = joined([f"{n:,} of {place}" for place, n in places.most_common()])
            lines.append(f"Units that {told}: {where}")
    return lines


def _who(group: Sequence[UnitHistory], names: Mapping[str, str]) -> str:
    return f"{count(len(group), 'unit')} of {names[group[0].site]}"


def _when(unit: UnitHistory) -> str:
    if unit.before is None:
        return f"before step {unit.since:,}, the first that was read"
    return (
        f"between steps {unit.before:,} and {unit.since:,}" if unit.before != unit.since else f"at step {unit.since:,}"
    )


def _meanwhile(unit: UnitHistory) -> str:
    """Loss, learning rate and size of the step, those that are known: ": loss 3.1 -> 9.8, learning rate 0.5"."""
    parts = []
    if unit.loss is not None:
        known = [number(loss) for loss in (unit.loss_before, unit.loss) if loss is not None]
        parts.append(f"loss {' -> '.join(dict.fromkeys(known))}")
    if unit.learning_rate is not None:
        parts.append(f"learning rate {number(unit.learning_rate)}")
    if unit.update_ratio is not None:
        usual = f" (usual {number(unit.usual_ratio)})" if unit.usual_ratio is not None else ""
        parts.append(f"step {unit.update_step:,} moved the layer by {number(unit.update_ratio)} of its size{usual}")
    return f": {', '.join(parts)}" if parts else ""


def trial_terms(trial: Trial) -> str:
    """Under which terms the arms were compared."""
    terms = [
        count(len(trial.arms), "arm"),
        count(len(trial.seeds), "paired seed"),
        count(trial.steps, "step"),
        trial.engine,
        seconds(trial.seconds) if trial.seconds else "",
    ]
    return ", ".join(term for term in terms if term)


def difference_means(trial: Trial, points: bool) -> str:
    """What the differences are differences of."""
    return f"difference: {trial.score or 'score'}{', points' if points else ''}, to {remedy(trial.control.name)}"


# Charts ---------------------------------------------------------------------------------------------------------------

CHART = {
    "step": "step",
    "units": "units",
    "depth": "layer, input to output",
    "gradient": "gradient norm",
    "zero": "exactly 0",
    "broken": "not finite",
    "loss": "loss",
    "at": "step",
    "start": "start",
    "copy": "Copy",
    "copied": "Copied",
}


def map_text(history: SiteHistory) -> str:
    """A map in words, for who cannot see it."""
    site = history.site
    born = f", {history.born:,} of them at the first reading" if history.born else ""
    steps = history.later
    when = (
        f"; the first at step {int(steps.min()):,}, half of them by step {int(np.median(steps)):,}"
        if steps.size
        else ""
    )
    back = "".join(
        f"; {n:,} {told}" for n, told in ((history.revived, "revived"), (history.flickering, "flickering")) if n
    )
    return (
        f"{history.label}, {function_name(site.activation)}: {history.dead:,} of {site.units:,} units dead"
        f"{born}{when}{back}."
    )


def difference_axis(trial: Trial, points: bool) -> str:
    """The axis of the differences, with its unit."""
    return f"difference in {trial.score or 'score'} to {remedy(trial.control.name)}{', points' if points else ''}"


# The page -------------------------------------------------------------------------------------------------------------

LANGUAGE = "en"
HEADINGS = {
    "actions": "What the autopilot did",
    "units": "What happened to the units",
    "why": "Why",
    "course": "Loss and gradients",
    "helps": "What helps",
    "try": "What to try",
    "do": "Do this",
    "healed": "Afterwards",
    "how": "How this was seen",
}
SEVERITIES = {"critical": "critical", "warning": "warning", "note": "note"}
MAP_INTRO = "Each row is one unit, sorted by the step at which it fell silent; each column is a reading."
SITE_TABLE = "Units at each site at the end of the run"
SITE_COLUMNS = ("site", "layer", "function", "units", "dead", "saturated", "gradient (RMS)", "first death")
SAME_TABLE = "The same as a table"
REPLAY_CHANGE = "changed"
WHOLE_RUN = "whole run"
EVIDENCE = "The numbers behind it"
EVIDENCE_COLUMNS = ("symptom", "site", "number", "value")
LOSS = "Loss"
GRADIENTS = "Gradient norm of each layer"
ARM_COLUMNS = ("arm", "verdict", "difference (95 % interval)", "time", "parameters", "because")
CONTROL = "control"
NOT_TRIED = "not tried"
NOT_IN_CHART = "Not in the chart:"
TO_TRY = "Not tried yet. relume.trial(training) trains each beside the untreated network and says which helps."
HEALED = "Before and after"
HEALED_COLUMNS = ("", "before", "after")
DEAD_UNITS = "dead units"
FINDINGS = "findings"
FACTS = {
    "watched": "Watched",
    "dead": "Dead means",
    "cost": "Cost of watching",
    "run": "Run",
    "trial": "Trial",
    "versions": "Versions",
}


def sentence_case(text: str) -> str:
    """The first letter in capitals, the others as they are."""
    return text[:1].upper() + text[1:]


def watched(seen: int, every: int) -> str:
    """ "4 of 4 activation calls watched"."""
    return f"{seen} of {every} activation {'call' if every == 1 else 'calls'} watched"


def as_table(sites: int) -> str:
    """What opens the table of sites."""
    return f"{'The site' if sites == 1 else f'All {sites} sites'} as a table"


def more_sites(sites: int, ill: int) -> str:
    """What opens the maps that are folded away."""
    return f"{count(sites, 'more site')}, {'all alive' if not ill else count(ill, 'ill unit')}"


def map_amount(history: SiteHistory) -> str:
    """The number beside a map's name."""
    last = history.last.tolist()
    units = history.site.units
    back = f", {history.revived:,} revived" if history.revived else ""
    for state, letter in ((5, "e"), (4, "x"), (3, "p")):
        if last.count(state) > 0:
            return f"{last.count(state):,} of {units:,} {STATES[letter]}{back}"
    return f"{last.count(1) + last.count(2):,} of {units:,} alive{back}"


def first_death(history: SiteHistory) -> str:
    """The step of the first death at a site."""
    if history.later.size:
        return f"step {int(history.later.min()):,}"
    return "born" if history.born else ""


def replay_intro(steps: int) -> str:
    """What the replays are."""
    return (
        f"The same {count(steps, 'step')} were replayed on a copy with one thing changed. "
        "The shorter the bar, the closer to the cause."
    )


def replay_text(rows: Sequence[tuple[str, str]], measure: str) -> str:
    """The replays in words."""
    return f"Bars: {measure}. " + "; ".join(f"{change}: {share}" for change, share in rows) + "."


def loss_text(first: float, last: float, broken: int | None) -> str:
    """The loss curve in words."""
    end = f"; not finite from step {broken:,} on" if broken is not None else ""
    return f"Line: the loss by step, from {number(first, 3)} to {number(last, 3)}{end}."


def gradient_text(data: Mapping[str, Any]) -> str:
    """The gradients in words."""
    return (
        f"Lines: gradient norm of {count(data['layers'], 'layer')} on a logarithmic axis, "
        f"at {' and '.join(f'step {step:,}' for step in data['steps'])}, "
        f"between {number(data['low'])} and {number(data['high'])}."
    )


def trial_intro(trial: Trial, chart: bool = True) -> str:
    """What a trial is, above its chart."""
    seeds = count(len(trial.seeds), "seed")
    control = "the untreated network" if trial.control.name == "untreated" else remedy(trial.control.name)
    terms = f"Every arm was trained beside {control} on the same batches, {seeds}, {count(trial.steps, 'step')}."
    return f"{terms} Small dots are seeds; lines are 95 % intervals of the mean difference." if chart else terms


def trial_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The trial's chart in words."""
    return "; ".join(f"{row['name']}: {row['label']}" for row in rows) + "."


def left_out(arm: Arm) -> str:
    """Why an arm is not in the chart."""
    if arm.failure:
        return f"not tried. {arm.failure}"
    failures = sorted({run.failure for run in arm.runs if run.failure})
    diverged = sum(score is None for score in arm.scores)
    text = f"{VERDICTS[arm.verdict]}, " if arm.verdict else ""
    text += f"no score in {diverged} of {len(arm.scores)} seeds"
    return f"{text} ({failures[0]})." if failures else f"{text}."


def findings(report: Report) -> str:
    """How many diagnoses count."""
    n = sum(d.severity != "note" for d in report.diagnoses)
    return "none" if not n else "; ".join(title(d) for d in report.diagnoses if d.severity != "note")


def watch_cost(share: float) -> str:
    """What watching cost."""
    return f"{fine_percent(share)} of the run's time, measured."


def run_facts(recording: Recording) -> str:
    """What was run."""
    terms = [
        recording.model,
        recording.optimizer,
        count(recording.steps, "step") if recording.trained else "a check-up, nothing was trained",
        count(len(recording.readings), "reading"),
        "finished" if recording.finished else "not finished",
    ]
    return ", ".join(term for term in terms if term) + "."
