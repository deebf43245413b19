"""The verdict in words: the first line of every output."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from relume.diagnosis import Diagnosis
from relume.report import numerals, words
from relume.report.history import SiteHistory, histories, labels, unit_count
from relume.report.results import Healed, Page, Report, Trial
from relume.symptoms import Symptom
from relume.verdicts import Arm

# Which symptom of a diagnosis a reader must hear of first.
FIRST = ("non_finite", "dead", "saturated", "exploding", "vanishing", "oscillating", "not_learning", "off_centre")
SOON = 0.4  # of the run; deaths that mostly came earlier than this are said to come "within so many steps"


def headline(page: Page) -> str:
    """One or two sentences: what is wrong and why, and what cures it."""
    sentences = []
    if page.report is not None:
        sentences.append(_finding(page.report))
    if page.trial is not None and not (page.report is not None and page.report.healthy):
        sentences.append(_outcome(page.trial, alone=page.report is None))
    return " ".join(sentences) or page.title or "Nothing to report."


def subtitle(page: Page) -> str:
    """What the headline had no room for: why this remedy, and what else is wrong."""
    sentences = []
    if page.trial is not None and page.trial.winner is not None:
        sentences += _won(page.trial)
    elif page.trial is not None and page.trial.because:
        sentences.append(_sentence(page.trial.because))
    elif page.healed is not None and page.healed.because:
        sentences.append(_sentence(page.healed.because))
    report = page.report
    if report is not None:
        if not report.recording.finished:
            note = report.recording.note
            sentences.append(f"The run was not finished{': ' + _sentence(note) if note else '.'}")
        others = [d for d in report.diagnoses[1:] if d.severity != "note"]
        if others:
            sentences.append(f"Also found: {words.joined([words.CAUSES[d.cause] for d in others])}.")
    return " ".join(sentences)


def _won(trial: Trial) -> list[str]:
    """What the winner does, in the units of the table, and who else helps."""
    arm = trial.arm(trial.winner or "")
    points = numerals.in_points(trial.score, [s for a in trial.arms for s in a.scores])
    unit = f"{trial.score}, points" if points else trial.score
    sentences = [] if trial.finished else [f"Interrupted after {numerals.count(len(trial.seeds), 'seed')}."]
    if arm.difference is not None:
        told = numerals.difference(arm.difference, 100.0 if points else 1.0)
        sentences.append(f"{_upper(unit)}: {told}; {_change(trial, arm)}.")
    for verdict, says in (("cured", "Also cured by"), ("eased", "Eased by")):
        others = [words.remedy(a.name) for a in trial.arms[1:] if a.verdict == verdict and a.name != arm.name]
        if others:
            sentences.append(f"{says} {words.joined(others)}.")
    return sentences


def coverage(report: Report) -> str:
    """How much of the network was seen, and what was not."""
    seen, all_ = len(report.coverage.watched), len(report.coverage.sites)
    blind = [_sentence(text) for text in dict.fromkeys((*report.coverage.blind, *report.recording.blind))]
    calls = "call" if all_ == 1 else "calls"
    return f"{seen} of {all_} activation {calls} watched" + (f". {' '.join(blind)}" if blind else "; no blind spot.")


def healed_line(healed: Healed) -> str:
    """What healing came to, with the score before and after."""
    trial = healed.trial
    before, after = healed.score_before, healed.score_after
    scores = [s for s in (before, after) if s is not None]
    points = trial is not None and numerals.in_points(trial.score, scores)
    show = numerals.percent if points and _apart(before, after) else lambda v: numerals.number(v, 3)
    name = trial.score if trial is not None and trial.score else "score"
    if healed.remedy is None:
        end = "" if after is None else f" {_upper(name)} {show(after)}."
        return f"Nothing was changed.{end}"
    first = "diverged" if before is None else show(before)
    last = "diverged" if after is None else show(after)
    return f"Healed by {words.remedy(healed.remedy)}: {name} {first} -> {last}."


def cured_seeds(trial: Trial, arm: Arm) -> tuple[int, int]:
    """In how many seeds the arm ended free of what the control suffers from, of how many."""
    ills = set(trial.control.symptoms) or {kind for run in trial.control.runs for kind in run.kinds}
    free = [run for run in arm.runs if not run.failure and not ills.intersection(run.kinds)]
    return len(free), len(arm.runs) or len(trial.seeds)


# What was found -------------------------------------------------------------------------------------------------------


def _finding(report: Report) -> str:
    if report.healthy:
        return _healthy(report)
    diagnosis = next(d for d in report.diagnoses if d.severity != "note")
    for kind in FIRST:
        symptoms = [s for s in diagnosis.symptoms if s.kind == kind]
        if symptoms:
            return _SENTENCES[kind](report, diagnosis, symptoms)
    return f"{_upper(words.CAUSES[diagnosis.cause])}{_from(diagnosis.since)}."


def _healthy(report: Report) -> str:
    seen, all_ = len(report.coverage.watched), len(report.coverage.sites)
    steps = report.recording.steps
    when = f" over {numerals.count(steps, 'step')}" if report.recording.trained and steps else ", before any training"
    dead = sum(history.dead for history in histories(report))
    units = "no unit dead" if not dead else f"only {dead:,} of {unit_count(report):,} units dead"
    calls = "call" if all_ == 1 else "calls"
    if not all_:
        return f"No activation call was seen{when}, so no unit could be judged."
    if not seen:
        return f"Nothing could be judged: none of {numerals.count(all_, 'activation call')} could be watched."
    word = "Healthy" if seen == all_ else "No fault where relume could look"
    return f"{word}: {seen} of {all_} activation {calls} watched{when}, {units}."


def _dead(report: Report, diagnosis: Diagnosis, symptoms: Sequence[Symptom]) -> str:
    dead = sum(len(s.units) for s in symptoms)
    names = {s.site for s in symptoms}
    sites = [h for h in histories(report) if h.site.name in names]
    if len(sites) <= 2 and len(sites) < len(report.recording.sites):
        where = words.joined([h.label for h in sites])
        who = f"{dead:,} of {sum(h.site.units for h in sites):,} units of {where}"
    else:
        who = f"{dead:,} of {unit_count(report):,} units"
        if len(sites) < len(report.recording.sites):
            who += f" in {len(sites)} of {len(report.recording.sites)} layers"
    if all(s.born for s in symptoms):
        return f"{who} were born dead{_because(report, diagnosis, symptoms)}."
    born = sum(len(s.units) for s in symptoms if s.born)
    if born:
        why = _after_comma(_because(report, diagnosis, symptoms))
        return f"{who} are dead, {born:,} of them born so{why}."
    died = _when(report, sites)
    because = _because(report, diagnosis, symptoms)
    return f"{who} died{died}{_after_comma(because) if died else because}."


def _when(report: Report, sites: Sequence[SiteHistory]) -> str:
    steps = np.concatenate([h.later for h in sites]) if sites else np.array([])
    run = report.recording.steps
    if not steps.size or not run:
        return ""
    most = float(np.quantile(steps, 0.75))
    if most > SOON * run:
        return ""
    unit = 10 ** max(0, math.floor(math.log10(max(most, 1)))) // 2 or 1
    rounded = max(1, math.ceil(most / unit) * unit)
    return f", most within {numerals.count(int(rounded), 'step')}"


def _saturated(report: Report, diagnosis: Diagnosis, symptoms: Sequence[Symptom]) -> str:
    sites = {s.site for s in symptoms}
    units = sum(len(s.units) for s in symptoms)
    known = {site.name: site for site in report.recording.sites}
    total = sum(known[name].units for name in sites if name in known)
    where = f" of {labels(report.recording)[next(iter(sites))]}" if len(sites) == 1 and sites <= known.keys() else ""
    born = " from the start" if all(s.born for s in symptoms) else ""
    if not units or not total:
        return f"Units{where} are saturated{born}{_because(report, diagnosis, symptoms)}."
    return f"{units:,} of {total:,} units{where} are saturated{born}{_because(report, diagnosis, symptoms)}."


def _vanishing(report: Report, diagnosis: Diagnosis, symptoms: Sequence[Symptom]) -> str:
    where = _place(report, symptoms)
    return f"Gradients vanish on the way to {where or 'the first layers'}{_because(report, diagnosis, symptoms)}."


def _exploding(report: Report, diagnosis: Diagnosis, symptoms: Sequence[Symptom]) -> str:
    where = _place(report, symptoms)
    since = _from(min(s.since for s in symptoms))
    why = _after_comma(_because(report, diagnosis, symptoms))
    return f"Values explode{f' in {where}' if where else ''}{since}{why}."


def _non_finite(report: Report, diagnosis: Diagnosis, symptoms: Sequence[Symptom]) -> str:
    where = _place(report, symptoms)
    since = _from(min(s.since for s in symptoms))
    what = f"Numbers in {where} are" if where else "The loss is"
    why = _after_comma(_because(report, diagnosis, symptoms))
    return f"{what} not finite{since}{why}."


def _oscillating(report: Report, diagnosis: Diagnosis, symptoms: Sequence[Symptom]) -> str:
    why = _after_comma(_because(report, diagnosis, symptoms))
    return f"The loss oscillates{_from(min(s.since for s in symptoms))}{why}."


def _not_learning(report: Report, diagnosis: Diagnosis, symptoms: Sequence[Symptom]) -> str:
    steps = report.recording.steps
    over = f" in {numerals.count(steps, 'step')}" if steps else ""
    what = words.kind(max(symptoms, key=lambda s: s.evidence.get("progress", 0.0)))
    return f"The network {what}{over}{_because(report, diagnosis, symptoms)}."


def _off_centre(report: Report, diagnosis: Diagnosis, symptoms: Sequence[Symptom]) -> str:
    return f"Outputs are off centre{_because(report, diagnosis, symptoms)}."


_SENTENCES = {
    "dead": _dead,
    "saturated": _saturated,
    "vanishing": _vanishing,
    "exploding": _exploding,
    "non_finite": _non_finite,
    "oscillating": _oscillating,
    "not_learning": _not_learning,
    "off_centre": _off_centre,
}


def _because(report: Report, diagnosis: Diagnosis, symptoms: Sequence[Symptom]) -> str:
    if diagnosis.cause == "bias":
        names = {site.name: site.bias for site in report.recording.sites}
        biases = [report.recording.initial.get(names.get(symptom.site, "")) for symptom in symptoms]
        lowest = min((bias.mean for bias in biases if bias is not None), key=abs, default=0.0)
        if lowest and all(bias is not None for bias in biases):
            return f": bias at {numerals.number(lowest)}"
    return words.BECAUSE[diagnosis.cause]


def _after_comma(because: str) -> str:
    return because if because[:1] in ":;" else f",{because}"


def _place(report: Report, symptoms: Sequence[Symptom]) -> str:
    names = labels(report.recording)
    return words.joined(list(dict.fromkeys(names.get(s.site, s.site) for s in symptoms if s.site)))


def _from(step: int) -> str:
    return f" from step {step:,} on" if step else " from the start"


# What the trial says --------------------------------------------------------------------------------------------------


def _outcome(trial: Trial, alone: bool) -> str:
    tried = [arm for arm in trial.arms[1:] if not arm.failure]
    if trial.winner is None:
        if not tried:
            return "No remedy could be tried."
        return f"None of the {len(tried)} tried {_better(trial)}."
    arm = trial.arm(trial.winner)
    name = words.remedy(arm.name)
    free, seeds = cured_seeds(trial, arm)
    what = f"{_upper(trial.symptom)}: " if alone and trial.symptom else ""
    if arm.verdict == "cured":
        return f"{what}{_case('Cured', what)} by {name} in {free} of {seeds} seeds."
    if arm.verdict == "eased":
        return f"{what}{_case('Eased', what)} by {name}, {_change(trial, arm)}."
    return f"{_upper(name)} does best, {numerals.difference(arm.difference)} beside {words.remedy(trial.control.name)}."


def _better(trial: Trial) -> str:
    return "was proven to help" if trial.control.symptoms else "is reliably better"


def _change(trial: Trial, arm: Arm) -> str:
    name, before = ill_share(trial, trial.control)
    return f"{name} {numerals.percent(before)} -> {numerals.percent(ill_share(trial, arm)[1])}"


def ill_share(trial: Trial, arm: Arm) -> tuple[str, float]:
    """How ill an arm ended, in the measure that fits what the control suffers from; and that measure's name."""
    kinds = trial.control.symptoms
    if "saturated" in kinds and "dead" not in kinds:
        return "saturated", arm.saturated_share
    if not kinds or "dead" in kinds:
        return "dead", arm.dead_share
    burdens = [run.burden for run in arm.runs if not run.failure]
    return "ill", sum(burdens) / len(burdens) if burdens else 1.0


def _apart(before: float | None, after: float | None) -> bool:
    return before is None or after is None or numerals.percent(before) != numerals.percent(after)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _case(word: str, before: str) -> str:
    return word.lower() if before else word


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
