"""Copies of a network in the middle of a run, trained with and without remedies on batches of that run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from relume.actions import Attempt
from relume.adoption import Twin
from relume.errors import NOTHING_TO_DO
from relume.remedies import Remedy
from relume.training import Several, Training
from relume.trial.arms import CONTROL, Job, Outcome
from relume.trial.engine import Sequential
from relume.trial.proof import collect, judged
from relume.verdicts import Arm, Run

TRIED = 8  # remedies tried on one seed
PROVEN = 3  # of them that are then proven
SEEDS = 3  # pairs of runs behind a proof
STEPS = 100  # of each copy: as many as a replay, enough for units killed by a high learning rate to show

Pair = tuple[Any, Any]


class Tryout:
    """Trains copies of the network as it is now on some batches, and scores them on others.

    Each step of a copy takes `passes` batches, as the loop does that accumulates gradients; they are averaged, or
    `summed`. `treatment(remedy, model, optimizer, inputs, targets)` applies a remedy to copies. Raises RemedyError
    where the network, its optimizer or its loss cannot be copied.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: Callable[[Any, Any], Tensor],
        learnt: Sequence[Pair],
        held_out: Sequence[Pair],
        treatment: Callable[..., Any],
        *,
        passes: int = 1,
        summed: bool = False,
    ) -> None:
        twins: list[Twin] = []  # the latest: one is trained and scored before the next is made

        def fresh() -> nn.Module:
            twins[:] = [Twin(model, optimizer, loss)]
            return twins[0].model

        def own_loss(output: Any, target: Any) -> Tensor:
            value = twins[0].loss(output, target)
            return value * passes if summed and torch.is_grad_enabled() else value  # `train` averages the gradients

        self._treatment = treatment
        training = Training(
            model=fresh,
            optimizer=lambda parameters: twins[0].optimizer,
            loss=own_loss,
            batches=_Shuffled(learnt, passes),
            validation=held_out,
            steps=STEPS,
        )
        self._runner = Sequential((training, STEPS))

    def run(
        self, remedies: Sequence[Remedy], *, wanted: bool = False
    ) -> tuple[list[Run], list[Arm], tuple[Attempt, ...], list[Remedy]]:
        """The control's runs, the arms that were worth a proof, what became of the remedies, and those looked at.

        Remedies that cannot be applied are not among those that are tried; they are told all the same, unless they
        have nothing to do here and were not `wanted`.
        """
        control = self._train((), [0])[CONTROL][0].run
        first: dict[str, Run] = {}
        looked_at: list[Remedy] = []
        for remedy in remedies:
            if sum(not run.lost for run in first.values()) == TRIED:
                break
            first[remedy.name] = self._train((remedy,), [0], control=False)[remedy.name][0].run
            looked_at.append(remedy)
        higher = [r for r in looked_at if score_of(first[r.name]) > score_of(control)]
        higher.sort(key=lambda r: -score_of(first[r.name]))
        proven = higher[:PROVEN]
        arms: dict[str, Arm] = {}
        controls = [control]
        if proven:
            outcomes = self._train(proven, range(1, SEEDS + 1))
            controls = [outcome.run for outcome in outcomes[CONTROL]]
            arms = {remedy.name: judged(controls, outcomes[remedy.name]) for remedy in proven}
        told = [r for r in looked_at if wanted or NOTHING_TO_DO not in first[r.name].failure]
        attempts = tuple(_attempt(first[r.name], arms.get(r.name), better=r in higher) for r in told)
        return controls, list(arms.values()), attempts, looked_at

    def _train(
        self, remedies: Sequence[Remedy], seeds: Iterable[int], *, control: bool = True
    ) -> dict[str, list[Outcome]]:
        treatments = {CONTROL: None} if control else {}
        treatments |= {remedy.name: partial(self._treatment, remedy) for remedy in remedies}
        return collect(self._runner, [Job(name, seed, act) for seed in seeds for name, act in treatments.items()])


class _Shuffled:
    """Batches in an order that the global generator draws afresh for each pass, so many to a step."""

    def __init__(self, pairs: Sequence[Pair], passes: int) -> None:
        self._pairs = pairs
        self._passes = min(passes, len(pairs))

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(len(self._pairs)).tolist()
        if self._passes == 1:
            return iter([self._pairs[i] for i in order])
        ends = range(self._passes, len(order) + 1, self._passes)
        return iter([Several(self._pairs[i] for i in order[end - self._passes : end]) for end in ends])


def score_of(run: Run) -> float:
    """The score of a run, minus infinity where it has none."""
    return run.score if run.score is not None and math.isfinite(run.score) else -math.inf


def mean_loss(scores: Sequence[float]) -> float | None:
    """The mean loss behind scores; None where there is none, or it is not finite."""
    mean = -fmean(scores) if scores else math.nan
    return mean if math.isfinite(mean) else None


def _attempt(first: Run, arm: Arm | None, *, better: bool) -> Attempt:
    """What became of a remedy, by its proof where it came to that, or else by its run with the first seed."""
    if arm is not None:
        scores = [score for score in arm.scores if score is not None]
        return Attempt(remedy=arm.name, verdict=arm.verdict, loss=mean_loss(scores), because=arm.because)
    judged_by = "Others did better on a first seed." if better else "No better than untreated on a first seed."
    scores = [] if first.score is None else [first.score]
    return Attempt(
        remedy=first.arm, verdict=None, loss=mean_loss(scores), because=" ".join(first.failure.split()) or judged_by
    )
