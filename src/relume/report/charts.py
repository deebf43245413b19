"""What the page's script needs to draw its charts: plain values, thinned to what a screen can show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from relume.diagnosis import measure_named
from relume.recording import Reading, Recording
from relume.report import numerals, words
from relume.report.headline import ill_share
from relume.report.history import ALIVE, DEAD, LETTERS, NEVER, SPARSE, UNSEEN, SiteHistory, histories
from relume.report.results import Page, Report, Trial
from relume.verdicts import Arm

COLUMNS = 120  # readings of a map
ROWS = 192  # units of a map; many sites get fewer, so that fifty layers stay a small page
ROWS_OF_MANY = 96
MANY = 8  # sites that are all shown at once; of more, the ill ones are, and the rest is folded away
OPEN = 12  # maps shown at once where there are many
POINTS = 400  # of the loss curve
LAYERS = 80  # of the gradient chart


def charts(page: Page) -> dict[str, Any]:
    """Data by chart; a chart without data is left out."""
    data: dict[str, Any] = {"words": words.CHART}
    report, trial = page.report, page.trial
    if report is not None:
        data["maps"] = [unit_map(h, report.recording) for h in _in_page_order(report)]
        data["gradients"] = gradients(report.recording)
        data["loss"] = losses(report)
        data["replays"] = replays(report)
    if trial is not None:
        data["trial"] = differences(trial)
    return {name: value for name, value in data.items() if value}


def _in_page_order(report: Report) -> list[SiteHistory]:
    shown, folded = arranged(histories(report))
    return [*shown, *folded]


def arranged(every: Sequence[SiteHistory]) -> tuple[list[SiteHistory], list[SiteHistory]]:
    """Sites whose maps are shown, and those folded away: all in network order, or of many the ill, worst first."""
    if len(every) <= MANY:
        return list(every), []
    worst = sorted(every, key=lambda h: -h.ill / max(1, h.site.units))
    shown = [h for h in worst[:OPEN] if h.ill] or worst[:4]
    return shown, [h for h in every if h not in shown]


# Maps -----------------------------------------------------------------------------------------------------------------


def unit_map(history: SiteHistory, recording: Recording, rows: int | None = None) -> dict[str, Any]:
    """One site's units over time: rows sorted by death, run-length coded, with equal neighbours as one."""
    site = history.site
    rows = rows or (ROWS if len(recording.sites) <= MANY else ROWS_OF_MANY)
    columns = _evenly(len(history.steps), COLUMNS)
    died = np.where(history.died == NEVER, np.iinfo(np.int64).max, history.died)
    liveliness = (history.states == SPARSE).sum(axis=0) + 2 * (history.states > SPARSE).sum(axis=0)
    alive = (history.states != DEAD).all(axis=0)  # those that were dead for a while stand between the dead and these
    order = np.lexsort((-liveliness, alive, died))
    units = order[_evenly(site.units, rows)]
    states = history.states[np.ix_(columns, units)].T
    coded: list[list[Any]] = []
    for row in states:
        code = _run_lengths(row)
        if coded and coded[-1][1] == code:
            coded[-1][0] += 1
        else:
            coded.append([1, code])
    steps = history.steps[columns].tolist()
    return {
        "units": site.units,
        "dead": history.dead,
        "shown": len(units),
        "edges": _edges(steps, _end(recording, steps)),
        "steps": recording.steps,
        "rows": coded,
        "label": words.map_text(history),
    }


def _end(recording: Recording, steps: Sequence[int]) -> float:
    """Where the axis of a map ends; a reading after the last step is wide enough to be seen."""
    return max(float(recording.steps), steps[-1] + max(1.0, recording.steps / 80) if steps else 1.0)


def _evenly(n: int, most: int) -> np.ndarray:
    """Indices of at most `most` of `n`, the first and the last among them."""
    return (
        np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64)) if n else np.array([], dtype=np.int64)
    )


def _run_lengths(row: np.ndarray) -> str:
    """ "x12a3": twelve dead readings, then three alive."""
    starts = np.flatnonzero(np.diff(row, prepend=-1.0))
    lengths = np.diff(np.append(starts, len(row)))
    return "".join(f"{LETTERS[row[start]]}{length}" for start, length in zip(starts, lengths, strict=True))


def _edges(steps: list[int], end: float) -> list[float]:
    """Where each column begins and the last one ends: a reading stands until the next, the last as long as usual."""
    if not steps:
        return []
    usual = float(steps[-1] - steps[-2]) if len(steps) > 1 else float(end)
    return [*map(float, steps), float(min(end, steps[-1] + max(usual, 1.0)))]


# Curves ---------------------------------------------------------------------------------------------------------------


def gradients(recording: Recording) -> dict[str, Any] | None:
    """Gradient norms by layer, at the first reading that has them and at the last."""
    with_gradient = [r for r in recording.readings if _norms(recording, r)]
    if not with_gradient:
        return None
    ends = [with_gradient[0]] if len(with_gradient) == 1 else [with_gradient[0], with_gradient[-1]]
    names = list(_norms(recording, ends[0]))
    kept = [names[i] for i in _evenly(len(names), LAYERS)]
    points = [
        {"layer": name.removesuffix(".weight"), "depth": names.index(name) + 1, "norm": _plain(norm), "when": index}
        for index, reading in enumerate(ends)
        for name, norm in _norms(recording, reading).items()
        if name in kept
    ]
    finite = [p["norm"] for p in points if isinstance(p["norm"], float) and p["norm"] > 0]
    if not finite:
        return None
    return {
        "points": points,
        "steps": [r.step for r in ends],
        "layers": len(names),
        "low": min(finite),
        "high": max(finite),
    }


def _norms(recording: Recording, reading: Reading) -> dict[str, float]:
    """Gradient norm of each weight matrix in network order; where weights have none, that of the sites' outputs."""
    matrices = {
        name: weight.gradient
        for name, weight in reading.weights.items()
        if weight.gradient is not None
        and (len(recording.initial[name].shape) > 1 if name in recording.initial else name.endswith("weight"))
    }
    if matrices:
        return matrices
    return {
        site.name: float(np.sqrt(np.square(np.asarray(read.gradient, dtype=np.float64)).sum()))
        for site in sorted(recording.sites, key=lambda s: s.order)
        if (read := reading.sites.get(site.name)) is not None and read.gradient is not None
    }


def losses(report: Report) -> dict[str, Any] | None:
    """The loss by step, as means of equally many steps with their least and greatest; and since when what was wrong."""
    recording = report.recording
    values = np.asarray(recording.losses, dtype=np.float64)
    steps = np.arange(len(values))
    if not np.isfinite(values).any():
        read = [(r.step, r.loss) for r in recording.readings if r.loss is not None]
        steps, values = np.array([s for s, _ in read]), np.array([v for _, v in read], dtype=np.float64)
    finite = np.isfinite(values)
    if finite.sum() < 2:
        return None
    points = []
    for part in np.array_split(np.flatnonzero(finite), min(POINTS, int(finite.sum()))):
        chunk = values[part]
        points.append([float(steps[part].mean()), *(_short(v) for v in (chunk.mean(), chunk.min(), chunk.max()))])
    after = np.flatnonzero(~finite & (np.cumsum(finite) > 0))
    low, high = float(values[finite].min()), float(values[finite].max())
    marks: dict[int, list[str]] = {}
    for diagnosis in report.diagnoses:
        for symptom in diagnosis.symptoms:
            if diagnosis.severity != "note":
                marks.setdefault(symptom.since, []).append(words.kind(symptom))
    first = [{"step": step, "label": words.joined(list(dict.fromkeys(kinds)))} for step, kinds in sorted(marks.items())]
    return {
        "points": points,
        "steps": max(recording.steps, int(steps[-1]) + 1),
        "log": low > 0 and high / low > 30,
        "broken": int(steps[after[0]]) if after.size else None,
        "marks": _first_of_each(first)[:4],
    }


def _first_of_each(marks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    seen: set[str] = set()
    return [mark for mark in marks if not (mark["label"] in seen or seen.add(mark["label"]))]


def replays(report: Report) -> dict[str, Any] | None:
    """The experiments behind the first diagnosis that has any."""
    diagnosis = next((d for d in report.diagnoses if d.experiments), None)
    if diagnosis is None:
        return None
    measure = diagnosis.experiments[0].measure
    told = measure_named(measure).told
    shares = measure.startswith("share")
    losses = measure == "loss"  # its burden is relative, and the loss itself says more
    rows = [
        {
            "change": e.change,
            "burden": _plain((0.0 if e.loss is None else e.loss) if losses else e.burden),
            "share": numerals.percent(e.burden) if shares else told(e),
            "role": "control" if e.cause is None else "cause" if e.cause == diagnosis.cause else "other",
        }
        for e in diagnosis.experiments
    ]
    return {"rows": rows, "measure": measure.rstrip(":"), "shares": shares, "steps": diagnosis.experiments[0].steps}


# Trial ----------------------------------------------------------------------------------------------------------------


def differences(trial: Trial) -> dict[str, Any] | None:
    """Each arm's paired differences to the control, with the part of the axis worth showing."""
    points = numerals.in_points(trial.score, [s for arm in trial.arms for s in arm.scores])
    scale = 100.0 if points else 1.0
    rows = [_row(trial, arm, scale) for arm in trial.arms[1:] if arm.difference is not None]
    if not rows:
        return None
    ends = [abs(v) for row in rows for v in (row["low"], row["high"]) if isinstance(v, float)]
    dots = [abs(v) for row in rows for v in row["dots"]]
    every = ends + dots or [1.0]
    # One arm that ran wild must not squeeze the others to a line: beyond this, marks stand at the edge as arrows.
    reach = min(max(every), 4 * float(np.median(ends or every))) or max(every) or 1.0
    low = min([v for row in rows for v in (*row["dots"], row["low"]) if isinstance(v, float)] + [0.0])
    high = max([v for row in rows for v in (*row["dots"], row["high"]) if isinstance(v, float)] + [0.0])
    for row in rows:
        if isinstance(row["mean"], str) or abs(row["mean"]) > reach:  # not to be read off the axis
            row["label"] += f", {numerals.difference_mean(row['mean'])}"
    pad = 0.04 * (min(high, reach) - max(low, -reach)) or 1.0
    return {
        "rows": rows,
        "domain": [max(low - pad, -reach), min(high + pad, reach)],
        "axis": words.difference_axis(trial, points),
    }


def _row(trial: Trial, arm: Arm, scale: float) -> dict[str, Any]:
    assert arm.difference is not None
    assert arm.verdict is not None
    pairs = [(a, b) for a, b in zip(arm.scores, trial.control.scores, strict=False) if a is not None and b is not None]
    diverged = sum(score is None for score in arm.scores)
    ill, share = ill_share(trial, arm)
    label = f"{words.VERDICTS[arm.verdict]}, {numerals.percent(share)} {ill}" + (
        f", {diverged} diverged" if diverged else ""
    )
    return {
        "name": words.remedy(arm.name),
        "verdict": arm.verdict,
        "mark": words.VERDICT_MARKS[arm.verdict],
        "winner": arm.name == trial.winner,
        "label": label,
        "mean": _plain(scale * arm.difference.mean),
        "low": _plain(scale * arm.difference.low),
        "high": _plain(scale * arm.difference.high),
        "dots": [scale * (a - b) for a, b in pairs],
    }


def _plain(value: float) -> float | str:
    """A number JSON can hold; NaN and infinities as the strings that the numbers' file has too."""
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def states_present(report: Report, every: Sequence[SiteHistory]) -> list[str]:
    """Letters of the states that a legend must explain, in the order of the vocabulary."""
    found = {LETTERS[state] for history in every for state in np.unique(history.states)} | {LETTERS[ALIVE]}
    if not found & set("pe"):
        found.add(LETTERS[DEAD])  # also where there is none: that is the good news
    steps = [reading.step for reading in report.recording.readings]
    if steps and (steps[0] > 0 or _edges(steps, _end(report.recording, steps))[-1] < report.recording.steps):
        found.add(LETTERS[UNSEEN])
    return [letter for letter in words.STATES if letter in found]
