"""Ill runs, healed as a user would: is the healed network better than the untreated one on held-out data?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.illness import cases, truth
from relume import diagnose, heal


def healed(seed: int, longest: int) -> dict[str, Any] | None:
    """What became of one ill run; None where it is not ill, takes more steps than that, or its data hold NaN."""
    torch.set_num_threads(1)
    spec = cases.ill(seed)
    if spec.steps > longest or spec.planted == "nan_batch" or not truth.measure(spec).ill:
        return None
    began = time.perf_counter()
    training = cases.training(spec)
    result = heal(training, report=diagnose(training, seed=seed))  # of the very run that is ill
    before, after = result.score_before, result.score_after
    if after is None:
        outcome = "same" if before is None else "worse"
    else:
        outcome = "better" if before is None or after > before else "same" if after == before else "worse"
    trained = 0 if result.trial is None else len(result.trial.arms) * len(result.trial.seeds)
    return {
        "seed": seed,
        "planted": spec.planted,
        "steps": spec.steps,
        "causes": [d.cause for d in result.report_before.diagnoses if d.severity != "note"],
        "remedy": result.remedy,
        "before": before,
        "after": after,
        "outcome": outcome,
        "because": result.because,
        "in_trial": trained,
        "seconds": round(time.perf_counter() - began, 1),
    }


def told(results: Sequence[dict[str, Any]]) -> str:
    """The table of what was planted, and how the healed networks did."""
    lines = [f"{'planted':<16}{'runs':>5}{'better':>8}{'same':>6}{'worse':>7}  remedies chosen"]
    for planted in (*sorted({r["planted"] for r in results}), "all"):
        rows = [r for r in results if planted in ("all", r["planted"])]
        counts = [sum(r["outcome"] == word for r in rows) for word in ("better", "same", "worse")]
        names = ", ".join(sorted({str(r["remedy"]) for r in rows})) if planted != "all" else ""
        lines.append(f"{planted:<16}{len(rows):>5}{counts[0]:>8}{counts[1]:>6}{counts[2]:>7}  {names}")
    return "\n".join(lines)
