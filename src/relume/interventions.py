"""Asks "would this be so if ...?": replays the first steps on a copy of the network with one thing changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from relume.diagnosis import PLAIN, Experiment, burden_of, complaints, measure_of
from relume.nested import call, first_float, tensors
from relume.randomness import isolated_rng, one_thread
from relume.recorder import KEPT_BYTES, Recorder
from relume.recording import Recording
from relume.report import Report
from relume.suspicions import Cause, sound_gain, suspicions
from relume.symptoms import Symptom, find, usual_update
from relume.training import split

REPLAY_STEPS = 100  # enough for units killed by a high learning rate to show; 80-140 ms on a small network
LONGEST_REPLAY = 300
READINGS = 20  # per replay
USUAL_UPDATE = 1e-3  # of a weight's size per step: the rule of thumb for a sound learning rate

Batch = tuple[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a replay starts from: the network at its first step, and the batches that followed."""

    start: Callable[[], tuple[nn.Module, Optimizer]]  # a fresh copy at each call, the same every time
    batches: Sequence[Batch]  # (input, target), in order; used again from the first when there are too few
    loss: Callable[[Any, Any], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing to change before a replay."""

    words: str
    cause: Cause
    fits: Callable[[Recording, Mapping[Cause, float]], bool]  # whether it is worth a replay; given the suspicions
    network: Callable[[Recording, nn.Module, Optimizer], None] | None = None
    data: Callable[[Sequence[Batch]], Sequence[Batch]] | None = None


def experiments(scene: Scene, recording: Recording, symptoms: tuple[Symptom, ...]) -> dict[int, tuple[Experiment, ...]]:
    """Replays for each complaint, the unchanged one first, by the complaint's index.

    The global random generators and the network are left as they are.
    """
    groups = complaints(symptoms)
    if not groups or not scene.batches:
        return {}
    steps = _steps(recording, symptoms)
    done: dict[str, tuple[Recording, tuple[Symptom, ...]]] = {}

    def outcome(change: Change | None, group: tuple[Symptom, ...]) -> Experiment:
        words = change.words if change else "as it was"
        if words not in done:
            replayed = replay(scene, recording, change, steps)
            done[words] = replayed, find(replayed)
        replayed, seen = done[words]
        losses = [loss for loss in replayed.losses if math.isfinite(loss)]
        return Experiment(
            change=words,
            cause=change.cause if change else None,
            steps=steps,
            burden=burden_of(group, replayed, seen),
            measure=measure_of(group).words,
            loss=float(np.mean(losses[-10:])) if losses else None,
        )

    found: dict[int, tuple[Experiment, ...]] = {}
    for index, group in enumerate(groups):
        strength: dict[Cause, float] = {s.cause: s.strength for s in suspicions(recording, group)}
        control = outcome(None, group)
        if control.burden <= 0:
            continue  # the illness does not show within a replay, so no change can be seen to mend it
        found[index] = (
            control,
            *(outcome(change, group) for change in CHANGES if change.fits(recording, strength)),
        )
    return found


def replay(scene: Scene, recording: Recording, change: Change | None, steps: int) -> Recording:
    """Train a fresh copy for some steps with one thing changed, and read it."""
    with isolated_rng(), one_thread():
        torch.manual_seed(0)  # what dropout draws is the same in every replay
        model, optimizer = scene.start()
        batches = change.data(scene.batches) if change and change.data else scene.batches
        if change and change.network:
            change.network(recording, model, optimizer)
        recorder = Recorder(model, optimizer)
        every = max(1, steps // READINGS)
        for step, batch in enumerate(islice(cycle(batches), steps)):
            if step % every == 0 or not recorder.keeps_enough:
                recorder.arm(read=step % every == 0)
            input, target = split(batch)
            loss = scene.loss(call(model, input), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.collect(loss)
            if not bool(torch.isfinite(loss)):
                break
        recorder.disarm()
        return recorder.recording()


def _steps(recording: Recording, symptoms: tuple[Symptom, ...]) -> int:
    """Long enough to reach past the moment when half of what is ill had become so."""
    seen = [s.evidence.get("median_step", float(s.since)) for s in symptoms if s.severity != "note"]
    wanted = max(REPLAY_STEPS, int(1.2 * max(seen, default=0.0)) + 20)
    return min(wanted, LONGEST_REPLAY, max(REPLAY_STEPS, recording.steps))


# The changes --------------------------------------------------------------------------------------------------------


def _times(factor: float) -> Callable[[Recording, nn.Module, Optimizer], None]:
    def change(recording: Recording, model: nn.Module, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor

    return change


def _usual_pace(recording: Recording, model: nn.Module, optimizer: Optimizer) -> None:
    """The learning rate under which the first steps move the weights by a thousandth of their size."""
    _times(USUAL_UPDATE / max(usual_update(recording), 1e-12))(recording, model, optimizer)


def _zero_biases(recording: Recording, model: nn.Module, optimizer: Optimizer) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for site in recording.sites:
            if site.bias in parameters and not site.normalised:
                parameters[site.bias].zero_()


def _sound_scale(recording: Recording, model: nn.Module, optimizer: Optimizer) -> None:
    """Rescale every layer before an activation to the standard deviation that keeps the signal; the draw stays."""
    gains = {site.weight: sound_gain(site) for site in recording.sites if site.weight}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() < 2 or not p.requires_grad:
                continue
            fan_in = p[0].numel()
            std = float(p.std(correction=0))
            if name in gains and std > 0:
                p.sub_(p.mean()).mul_(gains[name] / math.sqrt(fan_in) / std)
            elif std * math.sqrt(fan_in) > 2:  # a layer without an activation, such as the last
                p.mul_(1 / (math.sqrt(fan_in) * std))


def _standardise(batches: Sequence[Batch], place: int) -> Sequence[Batch]:
    firsts = [t for batch in batches if (t := first_float(batch[place])) is not None]
    if not firsts:
        return batches
    values = torch.cat([t.detach().float().reshape(-1) for t in firsts])
    values = values[torch.isfinite(values)]
    mean, std = (float(values.mean()), max(float(values.std(correction=0)), 1e-12)) if len(values) else (0.0, 1.0)

    def scaled(value: Any) -> Any:
        if isinstance(value, Tensor):
            return ((value - mean) / std).nan_to_num(0.0, 0.0, 0.0) if value.is_floating_point() else value
        if isinstance(value, (tuple, list)):
            return type(value)(scaled(v) for v in value)
        return {k: scaled(v) for k, v in value.items()} if isinstance(value, dict) else value

    return [tuple(scaled(part) if i == place else part for i, part in enumerate(batch)) for batch in batches]  # type: ignore[misc]


def _relu_instead(recording: Recording, model: nn.Module, optimizer: Optimizer) -> None:
    """ReLU with He's gain at every hidden site that is an activation module of its own."""
    for site in recording.sites:
        if site.output or site.normalised:
            continue
        parent, _, leaf = site.name.partition("#")[0].rpartition(".")
        try:
            owner = model.get_submodule(parent)
        except AttributeError:
            continue
        if isinstance(getattr(owner, leaf, None), nn.Module):
            setattr(owner, leaf, nn.ReLU())
    sites = tuple(replace(site, activation="relu", parameters={}) for site in recording.sites)
    _sound_scale(replace(recording, sites=sites), model, optimizer)


def _suspected(*causes: Cause) -> Callable[[Recording, Mapping[Cause, float]], bool]:
    return lambda recording, strength: any(strength.get(cause, 0.0) > 0 for cause in causes)


CHANGES: tuple[Change, ...] = (
    Change(
        words="the learning rate divided by 10",
        cause="learning_rate_too_high",
        fits=lambda recording, strength: True,  # tried always: it is what people try first
        network=_times(0.1),
    ),
    Change(
        words="the learning rate divided by 100",
        cause="learning_rate_too_high",
        fits=lambda recording, strength: strength.get("learning_rate_too_high", 0.0) >= PLAIN,
        network=_times(0.01),
    ),
    Change(
        words="inputs at mean 0 and standard deviation 1",
        cause="unscaled_inputs",
        fits=_suspected("unscaled_inputs"),
        data=lambda batches: _standardise(batches, 0),
    ),
    Change(words="biases at zero", cause="bias", fits=_suspected("bias"), network=_zero_biases),
    Change(
        words="initial weights at the scale that keeps signals",
        cause="initial_scale",
        fits=_suspected("initial_scale"),
        network=_sound_scale,
    ),
    Change(
        words="targets at mean 0 and standard deviation 1",
        cause="unscaled_targets",
        fits=_suspected("unscaled_targets"),
        data=lambda batches: _standardise(batches, 1),
    ),
    *(
        Change(words="ReLU at He's scale as the activation", cause=cause, fits=_suspected(cause), network=_relu_instead)
        for cause in ("saturating_activation", "unbounded_activation")
    ),
    Change(
        words="a learning rate that moves weights by a thousandth of their size a step",
        cause="learning_rate_too_low",
        fits=_suspected("learning_rate_too_low"),
        network=_usual_pace,
    ),
)


def scene_from(
    model: nn.Module,
    optimizer: Optimizer,
    weights: Mapping[str, Tensor],
    rates: Sequence[float],
    batches: Sequence[Batch],
    loss: Callable[[Any, Any], Tensor],
) -> Scene:
    """A scene from a network in training: its weights and learning rates as they were at the start."""

    def start() -> tuple[nn.Module, Optimizer]:
        fresh, again = copy.deepcopy((model, optimizer))
        fresh.load_state_dict(dict(weights))
        fresh.train()
        again.state.clear()
        for group, rate in zip(again.param_groups, rates, strict=True):
            group["lr"] = rate
        return fresh, again

    return Scene(start=start, batches=batches, loss=loss)


def report_on(recording: Recording, scene: Scene | None = None) -> Report:
    """The report on a recording; with a scene to replay from, causes are tried out on copies."""
    symptoms = find(recording)
    return Report.of(recording, experiments(scene, recording, symptoms) if scene is not None else {})


def first_batches(stream: Iterator[Any], count: int) -> list[Batch]:
    """The first batches of a stream, as pairs; fewer where they would take more than `KEPT_BYTES`."""
    found: list[Batch] = []
    size = 0
    for batch in islice(stream, count):
        found.append(split(batch))
        size += sum(t.numel() * t.element_size() for t in tensors(batch))
        if size > KEPT_BYTES:
            break
    return found
