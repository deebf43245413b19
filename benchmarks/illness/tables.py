"""What came of it, in words and numbers."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

from scipy.stats import beta

from benchmarks.illness.spec import ANSWERS

Found = list[dict[str, Any]]


def bounds(count: int, of: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share; all of 0 to 1 where nothing was counted."""
    low = float(beta.ppf(0.025, count, of - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, of - count)) if count < of else 1.0
    return low, high


def line(words: str, count: int, of: int) -> str:
    """A share with its interval."""
    low, high = bounds(count, of)
    return f"{words:<52} {count:4d} of {of:4d}   {count / of if of else 0:6.1%}   ({low:.1%} to {high:.1%})"


def told(found: Found, traps: Found) -> str:
    """All tables, one under the other."""
    wells = [f for f in found if f["truth"]["well"]]
    ills = [f for f in found if f["truth"]["ill"]]
    left = Counter(f["spec"]["planted"] or "(nothing)" for f in found if not (f["truth"]["well"] or f["truth"]["ill"]))
    parts = [
        [
            line("well runs flagged (false alarms)", sum(f["said"]["flagged"] for f in wells), len(wells)),
            line("ill runs flagged", sum(f["said"]["flagged"] for f in ills), len(ills)),
            line("ill runs of which a right kind is named", sum(map(_kind_right, ills)), len(ills)),
            line("ill runs of which the first cause is right", sum(map(_cause_right, ills)), len(ills)),
            f"{left.total()} of {len(found)} runs are neither: a plain one that did not learn, or a planted thing that "
            "did no harm.",
            *([f"Left out, by what was planted: {_listed(left)}"] if left else []),
        ],
        _by_kind(ills),
        _by_cause(ills),
        _delays(found),
        _trapped(traps),
        _wrong(found, traps),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _kind_right(f: dict[str, Any]) -> bool:
    return bool(ANSWERS[f["spec"]["planted"]].kinds & set(f["said"]["kinds"]))


def _cause_right(f: dict[str, Any]) -> bool:
    return f["said"]["cause"] in ANSWERS[f["spec"]["planted"]].causes


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.most_common()) or "-"


def _by_kind(ills: Found) -> list[str]:
    """Each planted thing, and in how many of its runs each kind was named; * marks a kind that is right."""
    lines = ["planted           runs  kinds named (* right)"]
    for planted in sorted({f["spec"]["planted"] for f in ills}):
        runs = [f for f in ills if f["spec"]["planted"] == planted]
        named = Counter(
            kind + ("*" if kind in ANSWERS[planted].kinds else "")
            for f in runs
            for kind in f["said"]["kinds"] or ["(healthy)"]
        )
        lines.append(f"  {planted:<15} {len(runs):4d}  {_listed(named)}")
    return lines


def _by_cause(ills: Found) -> list[str]:
    lines = ["planted           right   first cause named (* right)"]
    for planted in sorted({f["spec"]["planted"] for f in ills}):
        runs = [f for f in ills if f["spec"]["planted"] == planted]
        named = Counter(
            (f["said"]["cause"] or "(healthy)") + ("*" if f["said"]["cause"] in ANSWERS[planted].causes else "")
            for f in runs
        )
        lines.append(f"  {planted:<15} {sum(map(_cause_right, runs)):2d} of {len(runs):<2d}  {_listed(named)}")
    return lines


def _delays(found: Found) -> list[str]:
    """Steps from the planting, or the first harm measured, to the first report that says so."""
    followed = [f for f in found if "course" in f]
    wells = [f for f in followed if f["truth"]["well"]]
    ills = [f for f in followed if f["truth"]["ill"] and f["course"]["onset"] is not None]
    late = [f for f in ills if f["course"]["onset"]]
    lines = [
        "asked in mid-run, at steps a quarter apart, nothing replayed:",
        line("  well runs flagged at any moment", sum(f["course"]["early"] is not None for f in wells), len(wells)),
        line("  runs flagged before what comes late has come", sum(_early(f) for f in late), len(late)),
    ]
    for words, runs in (("ill from the start", [f for f in ills if f not in late]), ("ill from a later step", late)):
        delays = sorted(d for f in runs if (d := delay(f)) is not None)
        shown = f"median {median(delays):.0f}, longest {delays[-1]}" if delays else "-"
        lines.append(f"  {words}: delay in steps {shown}; never told in {len(runs) - len(delays)} of {len(runs)}")
    return lines


def _early(f: dict[str, Any]) -> bool:
    return f["course"]["early"] is not None


def delay(f: dict[str, Any]) -> int | None:
    """Steps from harm to word; None where it was never told. What is told before harm shows has no delay."""
    course = f["course"]
    return None if course["flagged"] is None else max(0, course["flagged"] - course["onset"])


def _trapped(traps: Found) -> list[str]:
    if not traps:
        return []
    wells = [t for t in traps if t["truth"]["well"]]
    lines = [
        line("healthy traps flagged (false alarms)", sum(t["said"]["flagged"] for t in wells), len(wells)),
        f"{len(traps) - len(wells)} of {len(traps)} did not come out as meant (score or dead share) and are left out.",
        "  trap               well  flagged",
    ]
    for name in dict.fromkeys(t["trap"] for t in traps):
        runs = [t for t in wells if t["trap"] == name]
        causes = Counter(t["said"]["cause"] for t in runs if t["said"]["flagged"])
        blind = [t["said"]["blind_told"] for t in runs if t["said"]["blind_told"] is not None]
        note = f"  {_listed(causes)}" if causes else ""
        note += f"  blind spot told in {sum(blind)} of {len(blind)}" if blind else ""
        lines.append(f"  {name:<17} {len(runs):5d}  {sum(t['said']['flagged'] for t in runs):7d}{note}")
    return lines


def _wrong(found: Found, traps: Found) -> list[str]:
    """The runs to look at: false alarms, misses and wrong causes, by seed."""
    lines: list[str] = []
    for f in found:
        spec, true = f["spec"], f["truth"]
        if "said" not in f:
            continue
        said = f["said"]
        words = (
            f"  seed {spec['seed']}: {spec['planted'] or 'well'}, {spec['kind']}, {spec['activation']}, {spec['loss']}"
        )
        if true["well"] and said["flagged"]:
            lines.append(f"{words}: false alarm, {'+'.join(said['kinds'])}, {said['cause']}")
        elif true["ill"] and not said["flagged"]:
            lines.append(f"{words}: missed")
        elif true["ill"] and not (_kind_right(f) and _cause_right(f)):
            lines.append(f"{words}: {'+'.join(said['kinds'])}, {said['cause']}")
    for t in traps:
        if t["truth"]["well"] and t["said"]["flagged"]:
            lines.append(f"  seed {t['seed']}: trap {t['trap']}: {'+'.join(t['said']['kinds'])}, {t['said']['cause']}")
    return ["wrong:", *lines] if lines else []
