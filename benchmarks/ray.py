"""What Ray costs on one machine, beside worker processes: to start, for each run, and for a whole trial.

    ./dev bench ray

opens each engine in turn and carries out runs of one step, so that nearly all of the time is what the engine adds; then
a trial of the handwritten digits, whose verdicts must be those of this process. Prints a table and writes
benchmarks/results/ray.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from torch import nn

import relume
from benchmarks.machine import about
from benchmarks.trial import training
from relume.trial.arms import CONTROL, Job
from relume.trial.engine import opened

RESULTS = Path(__file__).parent / "results" / "ray.json"
ENGINES = ("processes", "ray")
TASKS, ARMS = 200, ("prelu", "batch_norm", "he_init")


def tiny() -> relume.Training:
    """A run of one step of a small network."""
    return relume.Training(
        model=lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        loss=nn.functional.mse_loss,
        batches=[(torch.ones(8, 4), torch.ones(8, 1))],
        score=lambda model: 0.0,
        steps=1,
    )


def overhead(engine: str, tasks: int) -> dict[str, float]:
    """Seconds until the first run is back, and milliseconds that each of many more takes, workers being warm."""
    times: list[float] = []
    start = time.perf_counter()
    with opened(tiny(), 1, engine, tasks, 1.0) as runner:
        note: Callable[[Any], None] = lambda outcome: times.append(time.perf_counter())  # noqa: E731
        runner.run([Job(CONTROL, seed) for seed in range(8)], note)  # every worker has begun
        warm = time.perf_counter()
        runner.run([Job(CONTROL, seed) for seed in range(tasks)], note)
        each = (time.perf_counter() - warm) / tasks
    return {"start_seconds": round(times[0] - start, 2), "milliseconds_per_run": round(1e3 * each, 2)}


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--rounds", default=3, show_default=True)
@click.option("--quick", is_flag=True, help="One round of fewer and shorter runs; nothing is written.")
def main(rounds: int, quick: bool) -> None:
    rounds, tasks, seeds, steps = (1, 20, 2, 50) if quick else (rounds, TASKS, 5, 600)
    found: dict[str, list[dict[str, Any]]] = {engine: [] for engine in ENGINES}
    verdicts: dict[str, dict[str, str]] = {}
    for turn in range(rounds):
        for engine in ENGINES[:: -1 if turn % 2 else 1]:
            row: dict[str, Any] = {"load_before": round(os.getloadavg()[0], 2), **overhead(engine, tasks)}
            start = time.perf_counter()
            trial = relume.trial(training("mlp", 0.01, steps), ARMS, seeds=seeds, engine=engine)
            found[engine].append({**row, "trial_seconds": round(time.perf_counter() - start, 2)})
            verdicts[engine] = {arm.name: f"{arm.verdict}, {arm.scores}" for arm in trial.arms}
    reference = relume.trial(training("mlp", 0.01, steps), ARMS, seeds=seeds, engine="sequential")
    expected = {arm.name: f"{arm.verdict}, {arm.scores}" for arm in reference.arms}
    equal = all(verdicts[engine] == expected for engine in ENGINES)

    print(f"{'median of ' + str(rounds):14}{'start, s':>10}{'a run, ms':>11}{'trial, s':>10}")
    for engine, rows in found.items():
        start, each, whole = (
            median(row[key] for row in rows) for key in ("start_seconds", "milliseconds_per_run", "trial_seconds")
        )
        print(f"{engine:14}{start:10.2f}{each:11.2f}{whole:10.2f}")
    print(f"verdicts and scores equal those of this process: {equal}")
    if not quick:
        where = {**about(" ".join(["./dev bench ray", *sys.argv[1:]])), "ray_version": version("ray")}
        kept = {
            **where,
            "load_at_end": os.getloadavg(),
            "tasks": tasks,
            "arms": ARMS,
            "seeds": seeds,
            "steps": steps,
            "equal": equal,
            **found,
        }
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
