"""Comparisons of activation functions, each with the learning rate that suits it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

from torch import nn
from torch.optim import Optimizer

from relume.activations import activation
from relume.errors import RemedyError, TrialError
from relume.report.results import Trial
from relume.training import Training, require_steps
from relume.trial.arms import CONTROL, Job, Outcome
from relume.trial.engine import Engine, opened
from relume.trial.proof import OnProgress, apply_remedy, collect, concluded, judged, rehearse, seed_list
from relume.verdicts import judge_control
from relume.wiring import follow

GRID = (0.1, 0.3, 1.0, 3.0)  # learning rates to try, as multiples of the training's own
BEYOND = {GRID[0]: 0.03, GRID[-1]: 10.0}  # tried once where the best is at the edge
TUNING_SEEDS = 2  # other seeds than those compared: a rate chosen on the compared ones would flatter its arm

Factors = dict[str, dict[float, list[Outcome]]]


def compare(
    training: Training,
    activations: Iterable[str],
    seeds: int | Iterable[int] = 5,
    steps: int | None = None,
    engine: str | Engine = "auto",
    *,
    on_progress: OnProgress | None = None,
) -> Trial:
    """Train the network with each activation function in all of its hidden layers, and judge them against its own.

    Functions want different learning rates. Each one, and the untreated network too, gets the best of 0.1, 0.3, 1 and 3
    times the training's own on two seeds that are not compared afterwards, and one rate more where the best is at the
    edge of these. An arm's `changes` names its rate.

        result = relume.compare(training, ["relu", "gelu", "silu"], seeds=5)

    Raises ActivationError for a function that the catalogue does not have, and what `trial` raises.
    """
    started = time.perf_counter()
    names = [activation(name).name for name in ([activations] if isinstance(activations, str) else activations)]
    if not names or len(set(names)) < len(names):
        raise TrialError(f"activations must be distinct names, at least one; found {names}.")
    chosen_seeds = seed_list(seeds)
    steps = training.steps if steps is None else require_steps(steps)
    seconds = rehearse(training, steps)
    tuning_seeds = [max(chosen_seeds) + 1 + i for i in range(TUNING_SEEDS)]
    arms = [CONTROL, *names]
    first = [_trying(name, factor, seed) for name in arms for factor in GRID for seed in tuning_seeds]
    later = len(arms) * len(chosen_seeds)

    with opened(training, steps, engine, len(first) + later, seconds * steps) as runner:
        tried = collect(runner, first, on_progress, ahead=later)
        found = {name: {factor: tried[_label(name, factor)] for factor in GRID} for name in arms}
        edges = {name: BEYOND[best] for name in arms if (best := best_factor(found[name])) in BEYOND}
        second = [_trying(name, factor, seed) for name, factor in edges.items() for seed in tuning_seeds]
        tried = collect(runner, second, on_progress, before=len(first), ahead=later)
        for name, factor in edges.items():
            found[name][factor] = tried[_label(name, factor)]
        factors = {name: best_factor(found[name]) for name in arms}
        jobs = [
            Job(name, seed, partial(use, None if name == CONTROL else name, factors[name]))
            for name in arms
            for seed in chosen_seeds
        ]
        outcomes = collect(runner, jobs, on_progress, before=len(first) + len(second))
        ran_in = runner.name

    control = [outcome.run for outcome in outcomes[CONTROL]]
    untreated = replace(judge_control(control), changes=_rate(factors[CONTROL]))
    judgements = [judged(control, outcomes[name]) for name in names]
    result = concluded(
        untreated, judgements, training, chosen_seeds, steps, ran_in, time.perf_counter() - started
    )  # fmt: skip
    return result if result.winner is None else replace(result, code=_code(result.winner, factors[result.winner]))


def use(
    name: str | None,
    factor: float,
    model: nn.Module,
    optimizer: Optimizer,
    inputs: Sequence[Any],
    targets: Sequence[Any],
) -> tuple[nn.Module, Optimizer, Mapping[str, str]]:
    """The treatment: that function in every hidden layer (None: as they are), and a multiple of the learning rate."""
    from relume.remedies import swap_to

    changes: Mapping[str, str] = {}
    if name is not None:
        try:
            model, optimizer, changes = apply_remedy(swap_to(name), model, optimizer, inputs, targets)
        except RemedyError:
            if {site.activation for site in follow(model, inputs[0]).sites if not site.output} != {name}:
                raise
            changes = {"activations": f"are {name} already"}
    for group in optimizer.param_groups:
        for key in ("lr", "initial_lr"):
            if key in group:
                group[key] = group[key] * factor
    return model, optimizer, {**changes, **_rate(factor)}


def best_factor(tried: Mapping[float, Sequence[Outcome]]) -> float:
    """The learning rate with the highest mean score, one that diverges in no more seeds than another; 1 if none ran."""

    def key(factor: float) -> tuple[float, float]:
        runs = [outcome.run for outcome in tried[factor] if not outcome.run.lost]
        scores = [run.score for run in runs if run.score is not None]
        return len(scores) / max(1, len(runs)), fmean(scores) if scores else -math.inf

    ran = [factor for factor in tried if any(not outcome.run.lost for outcome in tried[factor])]
    return max(sorted(ran, key=lambda factor: abs(math.log(factor))), key=key, default=1.0)


def _trying(name: str, factor: float, seed: int) -> Job:
    return Job(_label(name, factor), seed, partial(use, None if name == CONTROL else name, factor))


def _label(name: str, factor: float) -> str:
    return f"{name} at {factor:g} x the learning rate"


def _rate(factor: float) -> dict[str, str]:
    return {"learning rate": f"{factor:g} times the training's own"}


def _code(name: str, factor: float) -> str:
    lines = [
        "import relume",
        "from relume.remedies import swap_to",
        "",
        f'treated = relume.treat(model, optimizer, swap_to("{name}"), example_input=example_input)',
        "model, optimizer = treated.model, treated.optimizer",
    ]
    if factor != 1:
        lines += ["for group in optimizer.param_groups:", f'    group["lr"] *= {factor:g}']
    return "\n".join(lines)
