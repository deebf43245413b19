"""The few numbers that a reader should take away."""

from __future__ import annotations

from dataclasses import dataclass

from relume.report import numerals
from relume.report.charts import gradients, losses
from relume.report.history import DEAD, SATURATED, histories, unit_count
from relume.report.results import Page, Report, Trial

MOST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One number with what it is."""

    number: str
    unit: str = ""
    label: str


def cards(page: Page) -> list[Card]:
    """At most three, the most telling first."""
    report, trial = page.report, page.trial
    last = _trial(trial) if trial is not None else []
    if report is None:
        return last[:MOST]
    return (_report(report)[: MOST - len(last[:1])] + last)[:MOST]


def _report(report: Report) -> list[Card]:
    kinds = {s.kind for d in report.diagnoses if d.severity != "note" for s in d.symptoms}
    every = histories(report)
    units = f"of {unit_count(report):,} units"
    dead = sum(h.count(DEAD) for h in every)
    found = []
    if "non_finite" in kinds:
        step = min(s.since for d in report.diagnoses for s in d.symptoms if s.kind == "non_finite")
        found.append(Card(number=f"step {step:,}", label="first numbers that are not finite"))
    if "dead" in kinds or not kinds:
        born = sum(h.born for h in every)
        some = f", {born:,} of them from the start" if 0 < born < dead else ""
        found.append(Card(number=f"{dead:,}", unit=units, label=f"dead at the end{some}"))
    if "dead" in kinds:
        died = [int(h.later.min()) for h in every if h.later.size]
        if died:
            found.append(Card(number=f"step {min(died):,}", label="first death"))
    if "saturated" in kinds:
        found.append(
            Card(number=f"{sum(h.count(SATURATED) for h in every):,}", unit=units, label="saturated at the end")
        )
    reach = _reach(report)
    if reach is not None and kinds & {"vanishing", "exploding"}:
        found.append(Card(number=f"{numerals.number(reach)}x", label="gradient at the first layer, beside the last"))
    loss = losses(report)
    if loss is not None:
        first, end = loss["points"][0][1], loss["points"][-1][1]
        found.append(Card(number=f"{numerals.number(first)} -> {numerals.number(end)}", label="loss, first and last"))
    if report.recording.watch_share is not None:
        found.append(
            Card(number=numerals.fine_percent(report.recording.watch_share), label="of the run's time spent watching")
        )
    return found


def _reach(report: Report) -> float | None:
    """Gradient norm of the first layer over that of the last, at the last reading."""
    data = gradients(report.recording)
    if data is None:
        return None
    last = [p["norm"] for p in data["points"] if p["when"] == len(data["steps"]) - 1]
    ends = [v for v in (last[0], last[-1]) if isinstance(v, float)]
    return ends[0] / ends[1] if len(ends) == 2 and ends[1] else None


def _trial(trial: Trial) -> list[Card]:
    tried = [arm for arm in trial.arms[1:] if not arm.failure]
    proven = [arm for arm in tried if arm.verdict in ("cured", "eased")]
    points = numerals.in_points(trial.score, [s for arm in trial.arms for s in arm.scores])
    found = []
    if trial.winner is not None:
        difference = trial.arm(trial.winner).difference
        if difference is not None:
            text = numerals.difference(difference, 100.0 if points else 1.0)
            mean, _, interval = text.partition(" (")
            label = f"{trial.score or 'score'}, 95 % interval {interval.rstrip(')')}"
            found.append(Card(number=mean, unit="points" if points else "", label=label))
    found.append(Card(number=f"{len(proven)} of {len(tried)}", label="arms cure or ease"))
    return found
