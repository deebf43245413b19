"""How soon relume tells: a run under `relume.watch`, asked for its report again and again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.illness.runs import fed, training
from benchmarks.illness.spec import Spec
from benchmarks.illness.tasks import floor
from benchmarks.illness.truth import BEHIND, CLOSED, closed_shares
from relume import Report, Training, watch
from relume.training import Stream, build, score

GROWTH = 1.25  # from one moment of asking to the next: a delay is known to a quarter of itself
BUDGET = 0.5  # share of the time that reading may take, as `relume.diagnose` has it
AFTER_NAN = 50  # steps that a run goes on with NaN before its user gives up


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What was true, and what was said, in the course of one run; steps are optimizer steps done."""

    onset: int | None  # planted at, or for what comes by and by the first time it was measured; None: no harm was seen
    flagged: int | None  # the first report with a warning at or after the planting; None: never
    early: int | None  # the first report with a warning before it, or in a well run at all
    asked: int


def watched(run: Training, seed: int, after_step: Callable[[int, watch, nn.Module], None] | None = None) -> Report:
    """The run in a plain loop of a user's own, which goes on when the loss is NaN; the report at its end.

    No loss function is given to the watch, so that nothing is replayed and a report costs little.
    """
    model, optimizer = build(run, seed)
    stream, left = Stream(run.batches, seed), AFTER_NAN
    model.train()
    with watch(model, optimizer, budget=BUDGET) as watching:
        for step in range(1, run.steps + 1):
            x, y = next(stream)
            loss = run.loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watching.step(loss)
            if after_step is not None:
                after_step(step, watching, model)
            left -= not bool(torch.isfinite(loss))
            if left <= 0:
                break
    return watching.report()


def moments(spec: Spec) -> set[int]:
    """Steps at which the report is asked for: closer together at the start and after what was planted."""
    grown = {round(GROWTH**k) for k in range(3, 1 + math.ceil(math.log(spec.steps, GROWTH)))}
    return {m for start in (0, spec.planted_at) for g in grown if (m := start + g) <= spec.steps} | {spec.steps}


def follow(spec: Spec) -> Course:
    """Train under a watch, and compare when the harm begins with when it is told."""
    run, data, asked = training(spec), fed(spec), moments(spec)
    way = data.best - floor(spec.loss, data.y_held)
    flags: list[int] = []
    harmed: list[int] = []
    best = -math.inf

    def ask(step: int, watching: watch, model: nn.Module) -> None:
        nonlocal best
        if step not in asked:
            return
        if not watching.report().healthy:
            flags.append(step)
        if spec.rate_ramp != 1:  # this alone begins at no known step
            value = score(run, model)
            closed = max(closed_shares(model, data.x), default=0.0) >= CLOSED
            if closed or value is None or value < best - BEHIND * way:
                harmed.append(step)
            best = max(best, -math.inf if value is None else value)

    watched(run, spec.seed, ask)
    return course(spec, flags, harmed, len(asked))


def course(spec: Spec, flags: list[int], harmed: list[int], asked: int) -> Course:
    """The course of a run that was flagged, and measured as harmed, at these of the steps asked at."""
    onset = spec.planted_at if spec.planted and spec.rate_ramp == 1 else min(harmed, default=None)
    from_then = [f for f in flags if spec.planted and f > spec.planted_at]
    before = [f for f in flags if f not in from_then]
    return Course(onset=onset, flagged=min(from_then, default=None), early=min(before, default=None), asked=asked)
