"""One arm with one seed: build, treat, train, score, read."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer

from relume.interventions import reach_of
from relume.randomness import isolated_rng, one_thread
from relume.recorder import Recorder
from relume.recording import Recording
from relume.symptoms import burden, dead_share, find, saturated_share
from relume.training import Stream, Training, batch_size, build, device_of, parts, score, split, to_device, train
from relume.verdicts import Run

CONTROL = "untreated"
READINGS = 24  # over a run, evenly: enough to date a symptom to 4 % of it, and cheap beside the steps between
FIRST_READINGS = 3  # what is ill from the start shows here
LOSSES_KEPT = 200

EXAMPLES = 1000  # samples that a remedy may look at: the rule of three for a dead unit, and a mean to 3 %
MOST_BATCHES = 32  # that they may take

# (model, optimizer, batches of inputs, their targets) -> the treated model, its optimizer, and what was done, by place
Treatment = Callable[
    [nn.Module, Optimizer, Sequence[Any], Sequence[Any]], tuple[nn.Module, Optimizer, Mapping[str, str]]
]


@dataclass(frozen=True, slots=True)
class Job:
    """One arm to be trained with one seed; no treatment makes it the control."""

    arm: str
    seed: int
    treatment: Treatment | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A job's run, what the treatment changed, and the traceback where it could not be run."""

    run: Run
    changes: Mapping[str, str] = field(default_factory=dict)
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A network at the end of a run, and what was read on the way."""

    model: nn.Module
    optimizer: Optimizer
    losses: Sequence[float]
    score: float | None
    recording: Recording
    changes: Mapping[str, str]
    seconds: float

    @property
    def failure(self) -> str:
        """Why there is no score; empty where there is one."""
        if self.score is not None:
            return ""
        last = self.losses[-1]
        word = "NaN" if math.isnan(last) else "infinite"
        return (
            "diverged: the score is not finite"
            if math.isfinite(last)
            else f"diverged: loss is {word} at step {len(self.losses)}"
        )


class SteadyWatch:
    """Reads fixed steps of a run, so that equal runs give equal recordings; `relume.watch` goes by the clock."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, steps: int) -> None:
        self._recorder = Recorder(model, optimizer)
        even = np.linspace(0, steps - 1, READINGS).round().astype(int).tolist()
        self._due = {*even, *range(FIRST_READINGS)}
        self._arm()

    def _arm(self) -> None:
        due = self._recorder.step in self._due
        if due or not self._recorder.kept.enough:
            self._recorder.arm(read=due)

    def step(self, loss: Any = None) -> None:
        """Count one optimizer step, and read it when it is due."""
        self._recorder.collect(loss)
        self._arm()

    def recording(self) -> Recording:
        """All that was read, closed by a reading of the network as it is now."""
        self._recorder.disarm()
        return self._recorder.recording()


def carry_out(training: Training, steps: int, seed: int, treatment: Treatment | None = None) -> Trained:
    """Train a fresh network, treated or not; the order of its data and its dropout depend on the seed alone."""
    with isolated_rng(), one_thread():
        model, optimizer = build(training, seed)
        stream = Stream(training.batches, seed)
        # the control looks ahead too: a loader with a state of its own must be asked the same in every arm
        batches = first_batches(stream, steps)
        changes: Mapping[str, str] = {}
        if treatment is not None:
            with isolated_rng():
                inputs, targets = zip(*to_device(batches, device_of(model)), strict=True)
                model, optimizer, changes = treatment(model, optimizer, inputs, targets)
        known = reach_of(model, to_device(batches, device_of(model)), training.loss)
        watch = SteadyWatch(model, optimizer, steps)
        started = time.perf_counter()
        losses = train(training, model, optimizer, stream, steps, watch=watch)
        seconds = time.perf_counter() - started
        value = score(training, model) if math.isfinite(losses[-1]) else None
        recording = replace(watch.recording(), reach=known)
    return Trained(
        model=model,
        optimizer=optimizer,
        losses=losses,
        score=value,
        recording=recording,
        changes=changes,
        seconds=seconds,
    )


def first_batches(stream: Stream, steps: int) -> list[tuple[Any, Any]]:
    """Copies of inputs and targets of the first batches, about a thousand samples; the batches are still to come."""
    size = batch_size(stream.peek(1)[0])
    batches = stream.peek(min(steps, MOST_BATCHES, -(-EXAMPLES // max(1, size))))
    return [copy.deepcopy(split(part)) for batch in batches for part in parts(batch)]


def summarise(trained: Trained, arm: str, seed: int, engine: str) -> Run:
    """What a trial keeps of a trained network."""
    found = find(trained.recording)
    # What is doubtful counts: beside the other arms it shows by itself whether it was an illness.
    found = tuple(replace(s, severity=s.at_worst or s.severity, at_worst=None) for s in found)
    # Notes do not make a network ill. Dead and saturated units count all the same: an arm that slips below a threshold
    # must not look as if it had none.
    counted = tuple(s for s in found if s.severity != "note" or s.kind in ("dead", "saturated"))
    kinds = tuple(dict.fromkeys(symptom.kind for symptom in found if symptom.severity != "note"))
    diverged = trained.score is None
    if diverged and "non_finite" not in kinds:
        kinds = ("non_finite", *kinds)
    return Run(
        arm=arm,
        seed=seed,
        score=trained.score,
        burden=1.0 if diverged else burden(trained.recording, counted),
        kinds=kinds,
        dead_share=dead_share(trained.recording, found),
        saturated_share=saturated_share(trained.recording, found),
        losses=thinned(trained.losses),
        steps=len(trained.losses),
        seconds=trained.seconds,
        parameters=sum(parameter.numel() for parameter in trained.model.parameters()),
        failure=trained.failure,
        engine=engine,
    )


def thinned(losses: Sequence[float]) -> tuple[float, ...]:
    """At most 200 of the losses, evenly over the run, the first and the last among them."""
    if len(losses) <= LOSSES_KEPT:
        return tuple(losses)
    return tuple(losses[i] for i in np.linspace(0, len(losses) - 1, LOSSES_KEPT).round().astype(int))
