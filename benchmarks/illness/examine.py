"""One run: what is true of it, and what relume says."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.illness import cases, truth
from benchmarks.illness.delay import follow, watched
from benchmarks.illness.traps import TRAPS
from relume import Report, diagnose
from relume.training import Stream, build, score, train

FOLLOWED = 4  # one in so many runs is also asked in mid-run, and every one whose planted thing comes late


def examine(seed: int, planted: bool) -> dict[str, Any]:
    """A drawn run. Only what is plainly well or plainly ill is asked about."""
    torch.set_num_threads(1)
    spec = cases.ill(seed) if planted else cases.well(seed)
    began = time.perf_counter()
    true = truth.measure(spec)
    found: dict[str, Any] = {"spec": asdict(spec), "truth": asdict(true)}
    if true.well or true.ill:
        # NaN in the data is an error in `relume.diagnose`; in a loop of one's own it is an illness
        by_hand = spec.planted == "nan_batch"
        training = cases.training(spec)
        found["said"] = said(watched(training, seed) if by_hand else diagnose(training, seed=seed))
        if spec.planted_at or spec.rate_ramp != 1 or seed // 2 % FOLLOWED == 0:
            found["course"] = asdict(follow(spec))
    found["seconds"] = round(time.perf_counter() - began, 1)
    return found


def examine_trap(name: str, seed: int) -> dict[str, Any]:
    """A healthy trap, if its score bears out that it is healthy."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    run = next(trap for trap in TRAPS if trap.name == name).build(seed)
    model, optimizer = build(run.training, seed)
    losses = train(run.training, model, optimizer, Stream(run.training.batches, seed), run.training.steps)
    value = score(run.training, model)
    batches: Any = run.training.batches
    dead = truth.closed_shares(model, batches.x)
    low, high = run.dead
    well = value is not None and value >= run.enough and low <= max(dead, default=0.0) <= high
    true = {"score": value, "enough": run.enough, "loss": losses[-1], "dead": dead, "well": well}
    found: dict[str, Any] = {"trap": name, "seed": seed, "truth": true}
    if well:
        report = diagnose(run.training, seed=seed)
        blind = " ".join(report.coverage.blind)
        found["said"] = said(report) | {"blind_told": all(word in blind for word in run.blind) if run.blind else None}
    found["seconds"] = round(time.perf_counter() - began, 1)
    return found


def said(report: Report) -> dict[str, Any]:
    """What a report says, as far as it counts here."""
    serious = [d for d in report.diagnoses if d.severity != "note"]
    return {
        "flagged": not report.healthy,
        "kinds": sorted({s.kind for d in serious for s in d.symptoms if s.severity != "note"}),
        "cause": serious[0].cause if serious else "",
        "causes": [d.cause for d in serious],
        "because": list(serious[0].because) if serious else [],
        "since": min((d.since for d in serious), default=None),
    }
