"""`python -m benchmarks.illness`: the confusion tables, and the figures behind them in `benchmarks/results/`."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from loky import get_reusable_executor
from scipy.stats import beta

from benchmarks.illness import cases, truth
from relume import diagnose

RESULTS = Path(__file__).parents[1] / "results"
HALVES = {"tune": 0, "report": 1}  # by the seed's last bit: what is tuned on is never reported on


def examine(seed: int, planted: bool) -> dict[str, Any]:
    """One run: what is true of it, and what relume says."""
    torch.set_num_threads(1)
    spec = cases.ill(seed) if planted else cases.well(seed)
    began = time.perf_counter()
    true = truth.measure(spec)
    found: dict[str, Any] = {"spec": asdict(spec), "truth": asdict(true)}
    if true.well or true.ill:
        report = diagnose(cases.training(spec), seed=spec.seed)
        serious = [d for d in report.diagnoses if d.severity != "note"]
        found["said"] = {
            "flagged": not report.healthy,
            "kinds": sorted({s.kind for d in serious for s in d.symptoms if s.severity != "note"}),
            "cause": serious[0].cause if serious else "",
            "causes": [d.cause for d in serious],
            "because": list(serious[0].because) if serious else [],
            "since": min((d.since for d in serious), default=None),
        }
    found["seconds"] = round(time.perf_counter() - began, 1)
    return found


def bounds(count: int, of: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share."""
    low = float(beta.ppf(0.025, count, of - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, of - count)) if count < of else 1.0
    return low, high


def line(words: str, count: int, of: int) -> str:
    low, high = bounds(count, of)
    return f"{words:<44} {count:4d} of {of:4d}   {count / of if of else 0:6.1%}   ({low:.1%} to {high:.1%})"


def table(found: list[dict[str, Any]]) -> str:
    """What came of it, in words and numbers."""
    wells = [f for f in found if f["truth"]["well"]]
    ills = [f for f in found if f["truth"]["ill"]]
    left = len(found) - len(wells) - len(ills)
    kinds, causes, confusion = [], [], Counter[tuple[str, str]]()
    for f in ills:
        answer = cases.ANSWERS[f["spec"]["planted"]]
        kinds.append(bool(answer.kinds & set(f["said"]["kinds"])))
        causes.append(f["said"]["cause"] in answer.causes)
        confusion[f["spec"]["planted"], f["said"]["cause"] or "(healthy)"] += 1
    delays = sorted(f["said"]["since"] for f in ills if f["said"]["since"] is not None)
    lines = [
        line("well runs flagged (false alarms)", sum(f["said"]["flagged"] for f in wells), len(wells)),
        line("ill runs flagged", sum(f["said"]["flagged"] for f in ills), len(ills)),
        line("ill runs of which a right kind is named", sum(kinds), len(ills)),
        line("ill runs of which the first cause is right", sum(causes), len(ills)),
        f"{left} runs drawn are neither: a plain one that did not learn, or a planted thing that did no harm.",
        f"Symptoms since step (median): {delays[len(delays) // 2] if delays else '-'}",
        "",
        "planted, and the first cause named:",
        *(f"  {p:<16} {c:<28} {n}" for (p, c), n in sorted(confusion.items())),
    ]
    return "\n".join(lines)


@click.command()
@click.option("--half", type=click.Choice(list(HALVES)), default="report", show_default=True)
@click.option("--cases", "count", default=150, show_default=True, help="Runs drawn, half of them planted.")
@click.option("--workers", default=2, show_default=True)
def main(half: str, count: int, workers: int) -> None:
    """Draw runs, train them, ask relume, and count."""
    seeds = [2 * i + HALVES[half] for i in range(count // 2)]
    with get_reusable_executor(max_workers=workers) as pool:
        jobs = [pool.submit(examine, seed, planted) for seed in seeds for planted in (False, True)]
        found = []
        for job in jobs:
            found.append(job.result())
            print(f"\r{len(found)} of {len(jobs)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(table(found))
    RESULTS.mkdir(exist_ok=True)
    said = {
        "command": " ".join(["python -m benchmarks.illness", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {platform.system()}",
        "torch": torch.__version__,
        "cases": found,
    }
    path = RESULTS / f"illness-{half}.json"
    path.write_text(json.dumps(said, indent=1) + "\n")
    print(f"Figures: {path.relative_to(Path.cwd())}", file=sys.stderr)


if __name__ == "__main__":
    main()
