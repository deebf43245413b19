"""Reads a network and says what is wrong with it: after training, without any, or by training a copy."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import islice
from typing import Any

from torch import nn

from relume.errors import DataError
from relume.interventions import LONGEST_OF_SINGLES, Scene, SceneAt, first_batches, report_on
from relume.nested import arguments, call
from relume.randomness import isolated_rng, one_thread
from relume.recorder import Recorder
from relume.report import Report
from relume.snapshots import Snapshots
from relume.training import (
    Stream,
    Training,
    build,
    device_of,
    fresh,
    require_steps,
    split,
    to_device,
    train,
)
from relume.watch import watch

DIAGNOSING = 0.5  # share of the time that reading may take where reading is the purpose of the run
CHECKED_SAMPLES = 10_000  # a check-up reads no more: the firing rate of a silent unit is then below 0.03 %


def diagnose(training: Training, steps: int | None = None, seed: int = 0, *, replays: bool = True) -> Report:
    """Train a fresh network under a watch and say what is wrong with it, and why.

    `steps` defaults to the training's own. The run is the untreated control that `trial` trains with that seed.
    Ctrl-C ends the run early: the report is then on what was seen, and `report.recording.finished` is False.
    Raises TrainingError or DataError when the training cannot run.

        report = relume.diagnose(training)
        print(report)
    """
    steps = training.steps if steps is None else require_steps(steps)
    with isolated_rng(), one_thread():
        copied = fresh(training)
        model, optimizer = build(copied, seed)
        watching = watch(model, optimizer, budget=DIAGNOSING)
        watching.logs_alarms = False  # the report tells
        snapshots = Snapshots(model, optimizer, lambda: watching.latest)
        try:
            with watching:
                stream = Stream(copied.batches, seed)
                train(copied, model, optimizer, stream, steps, watch=watching, after_step=snapshots.look)
                watching.keep_more(to_device(split(batch)[0], device_of(model)) for batch in stream)
        except KeyboardInterrupt:
            replays = False
            if not watching.recording.readings:
                raise
        return report_on(watching.recording, scenes_of(training, seed, snapshots) if replays else None)


def scenes_of(training: Training, seed: int, snapshots: Snapshots) -> SceneAt:
    """The scenes of a training with this seed: the nearest snapshot, and the batches that followed it."""

    @cache
    def scene(step: int) -> Scene:
        stream = Stream(fresh(training).batches, seed)
        for _ in islice(stream, step):
            pass
        taken = snapshots.taken.get(step)
        start = taken.again if taken is not None else lambda: build(training, seed)
        device = device_of(start()[0])
        batches = [to_device(batch, device) for batch in first_batches(stream, LONGEST_OF_SINGLES)]
        return Scene(start=start, batches=batches, loss=training.loss, step=step)

    return lambda since, half, back: scene(snapshots.before(since, back))


def checkup(model: nn.Module, batches: Iterable[Any], loss: Any = None) -> Report:
    """Say what is wrong with a network as it is, without training it; it is left bit-identical.

    `batches` gives (input, target), or inputs alone; with `loss`, a function of (output, target), gradients are those
    of the loss, without it those of a random direction of the output, which serves to compare layers. Reads at most
    enough batches for a verdict on each unit. Raises DataError when there are no batches.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> nn.init.constant_(model[0].bias, -100.0).sum().item()
    -800.0
    >>> report = checkup(model, [torch.randn(1000, 4)])
    >>> report.healthy
    False
    """
    recorder = Recorder(model, None, trained=False)
    samples = 0
    for batch in batches:
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        input, target = (batch[0], batch[1]) if pair else (batch, None)
        input, target = to_device(input, device_of(model)), to_device(target, device_of(model))
        recorder.kept.add(*arguments(input))
        samples += recorder.read_batch(
            lambda input=input: call(model, input),
            input,
            None if loss is None else lambda output, target=target: loss(output, target),
        )
        if samples >= CHECKED_SAMPLES:
            break
    if not samples:
        raise DataError("batches yield nothing: a check-up needs at least one batch of inputs.")
    return report_on(recorder.recording(closing=False, proofs=True))
