"""Asks "would this be so if ...?": replays steps on a copy of the network with one thing changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from relume.changes import BY_THE_BOOK, CHANGES, PLAIN_NETWORK, USUAL_UPDATE, Batch, Change, changed
from relume.diagnosis import MENDED, Experiment, burden_of, complaints, is_of_the_loss, measure_of
from relume.errors import RemedyError
from relume.kept import KEPT_BYTES, Stretch
from relume.nested import call, tensors
from relume.randomness import isolated_rng, one_thread
from relume.reach import reach
from relume.recorder import Recorder
from relume.recording import Reach, Recording
from relume.report import Report
from relume.snapshots import Snapshots
from relume.surgery import copied_loss
from relume.suspicions import Cause, suspicions
from relume.symptoms import LEARNT, UNLEARNT, Symptom, find, loss_unit, run_level, usual_update
from relume.training import split

REPLAY_STEPS = 100  # enough for units killed by a high learning rate to show; 80-140 ms on a small network
LONGEST_REPLAY = 300
LONGEST_OF_SINGLES = 1000  # where batches are so small that `REPLAY_SAMPLES` take more steps
REPLAY_SAMPLES = 10_000
READINGS = 20  # per replay
EARLIER = 2  # scenes before the nearest that are gone back to, where no change mends anything from there
RATES: tuple[Cause, ...] = ("learning_rate_too_high", "learning_rate_too_low")  # tried where nothing else helps
SURE = 2.0  # standard errors by which a loss must be lower
WORTH = 0.01  # of the loss of the best constant answer: what less is won is not missed, as one point of R^2 is not


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """What a replay starts from: the network at some step, and the batches that followed."""

    start: Callable[[], tuple[nn.Module, Optimizer]]  # a fresh copy at each call, the same every time
    batches: Sequence[Batch]  # (input, target), in order; used again from the first when there are too few
    loss: Callable[[Any, Any], Tensor]
    step: int = 0  # optimizer steps done before it
    usual: Sequence[Batch] = ()  # of the run's first steps, where the batches may have changed since


# The nearest scene before an illness that began at one step and was half done at another; so many scenes back from it.
SceneAt = Callable[[int, int, int], Scene]


@dataclass(frozen=True, slots=True)
class _Replayed:
    recording: Recording
    symptoms: tuple[Symptom, ...]
    losses: np.ndarray[Any, np.dtype[np.float64]]  # over those of the best constant answer where that is known


def experiments(
    scene_at: SceneAt, recording: Recording, symptoms: tuple[Symptom, ...]
) -> dict[int, tuple[Experiment, ...]]:
    """Replays for each complaint, the unchanged one first, by the complaint's index.

    The global random generators and the network are left as they are.
    """
    done: dict[tuple[Scene, str, int], _Replayed | None] = {}
    found: dict[int, tuple[Experiment, ...]] = {}
    for index, group in enumerate(complaints(recording, symptoms)):
        since = half = 0
        if not any(s.born for s in group):
            since = min(s.since for s in group)
            half = min(int(s.evidence.get("median_step", s.since)) for s in group)
        scene = scene_at(since, half, 0)
        tried = _tried(done, scene, recording, group)
        for back in range(1, EARLIER + 1):
            if scene.step == 0 or not tried or any(_mends(e, tried[0]) for e in _named(tried)):
                break
            scene = scene_at(since, half, back)  # what went wrong may have done so before that one
            tried = _tried(done, scene, recording, group)
        if tried:
            found[index] = tried
    return found


def _tried(
    done: dict[tuple[Scene, str, int], _Replayed | None],
    scene: Scene,
    recording: Recording,
    group: tuple[Symptom, ...],
) -> tuple[Experiment, ...]:
    """The replays from one scene; none where the illness does not show in them, so that none can be seen to mend it."""
    if not scene.batches:
        return ()
    steps = _steps(recording, scene, group)
    strength: dict[Cause, float] = {s.cause: s.strength for s in suspicions(recording, group)}
    of_the_loss = is_of_the_loss(group)
    run = partial(_once, done, scene, recording, steps)
    control = run(None)
    if control is None or not _shows(recording, group, control):
        return ()
    tried = [c for c in CHANGES if c.fits(recording, strength)] + ([BY_THE_BOOK] if of_the_loss else [])
    outcomes = [(None, control), *((c, r) for c in tried if (r := run(c)) is not None)]
    found = tuple(_compared(recording, group, outcomes, steps))
    if not any(e.better if of_the_loss else _mends(e, found[0]) for e in _named(found)):
        rates = _rates(recording, of_the_loss)
        outcomes += [(c, r) for c in rates if c not in tried and (r := run(c)) is not None]
        found = tuple(_compared(recording, group, outcomes, steps))
    if of_the_loss and not any(e.better for e in found) and (r := run(PLAIN_NETWORK)) is not None:
        found = tuple(_compared(recording, group, [*outcomes, (PLAIN_NETWORK, r)], steps))
    return found


def _shows(recording: Recording, group: tuple[Symptom, ...], control: _Replayed) -> bool:
    """Whether the unchanged replay is as ill as the run: its loss no lower, or its units and gradients burdened."""
    if is_of_the_loss(group):
        relapses = [s for s in group if s.kind == "not_learning" and not s.born]
        lost = [s.evidence["first_loss"] / loss_unit(recording) for s in relapses]
        return _level(control.losses) >= (1 - UNLEARNT) * min(run_level(recording), *lost) if lost else True
    outputs = {site.name for site in recording.sites if site.output}
    return burden_of(group, control.recording, control.symptoms, outputs) > 0


def _named(experiments: Iterable[Experiment]) -> list[Experiment]:
    """Those with a change that stands for one cause."""
    return [e for e in experiments if e.cause not in (None, "unknown")]


def _mends(experiment: Experiment, control: Experiment) -> bool:
    return experiment.burden <= (1 - MENDED) * control.burden


def _rates(recording: Recording, of_the_loss: bool) -> list[Change]:
    """Other learning rates; higher ones only for a loss that is stuck, where steps are smaller than is usual."""
    higher = of_the_loss and usual_update(recording) < USUAL_UPDATE
    return [c for c in CHANGES if c.cause in RATES and (higher or c.cause == "learning_rate_too_high")]


def _once(
    done: dict[tuple[Scene, str, int], _Replayed | None],
    scene: Scene,
    recording: Recording,
    steps: int,
    change: Change | None,
) -> _Replayed | None:
    """A replay, made once for all complaints; None where the change cannot be made."""
    key = scene, change.words if change else "", steps
    if key not in done:
        try:
            done[key] = _replayed(scene, recording, change, steps)
        except Exception:  # the user's network or loss may refuse a change, as BCELoss does outputs beyond 0 to 1
            if change is None:
                raise
            done[key] = None
    return done[key]


def _compared(
    recording: Recording,
    group: tuple[Symptom, ...],
    outcomes: list[tuple[Change | None, _Replayed]],
    steps: int,
) -> Iterator[Experiment]:
    """What each replay shows of this complaint; a stuck loss is measured by the furthest that any brought it."""
    control = outcomes[0][1]
    outputs = {site.name for site in recording.sites if site.output}
    judged = any(s.at_worst is not None or (s.kind == "not_learning" and not s.site) for s in group)
    bar = run_level(recording) if judged else math.inf
    worth = WORTH if recording.reach is not None and recording.reach.constant else 0.0  # losses are in other units
    better = [change is not None and _is_lower(r.losses, control.losses, bar, worth) for change, r in outcomes]
    levels = [_level(r.losses) for _, r in outcomes]
    lower = [(level, c) for level, is_better, (c, _) in zip(levels, better, outcomes, strict=True) if is_better]
    named = [level for level, c in lower if c is not None and c.cause != "unknown"]  # one change, not all at once
    least = min(named or [level for level, _ in lower], default=levels[0])
    if not any(better) and (rest := tuple(s for s in group if not is_of_the_loss((s,)))):
        group = rest  # no loss falls within a replay: what happens to units and gradients still tells
    for (change, r), is_better, level in zip(outcomes, better, levels, strict=True):
        if is_of_the_loss(group):
            span = levels[0] - least
            burden = min(1.0, max(0.0, (level - least) / span)) if span > 0 and math.isfinite(level) else 1.0
        else:
            burden = burden_of(group, r.recording, r.symptoms, outputs)
        yield Experiment(
            change=change.words if change else "as it was",
            cause=change.cause if change else None,
            steps=steps,
            burden=burden,
            measure=measure_of(group).words,
            covers=change.covers if change else (),
            loss=level if math.isfinite(level) else None,
            better=is_better,
        )


def _replayed(scene: Scene, recording: Recording, change: Change | None, steps: int) -> _Replayed:
    again = replay(scene, recording, change, steps)
    return _Replayed(again, find(again), np.asarray(again.losses, dtype=float) / loss_unit(again))


def _tail(losses: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return losses[-max(10, len(losses) // 5) :]


def _level(losses: np.ndarray[Any, Any]) -> float:
    """Where a replay ends; infinite where it broke off."""
    return float(np.mean(_tail(losses))) if len(losses) and np.isfinite(losses).all() else math.inf


def _is_lower(losses: np.ndarray[Any, Any], control: np.ndarray[Any, Any], bar: float, worth: float) -> bool:
    """Whether a replay ends plainly lower than the unchanged one, batch by batch, and than the whole run."""
    level, other = _level(losses), _level(control)
    if not math.isfinite(level) or level < 0:
        return False
    if not level < min((1 - UNLEARNT) * min(other, bar), min(other, bar) - worth):
        return False
    if not math.isfinite(other) or len(losses) != len(control):
        return True
    gains = _tail(control) - _tail(losses)
    return float(gains.mean()) > SURE * float(gains.std(ddof=1)) / math.sqrt(len(gains))


def replay(scene: Scene, recording: Recording, change: Change | None, steps: int) -> Recording:
    """Train a fresh copy for some steps with one thing changed, and read it."""
    with isolated_rng(), one_thread():
        torch.manual_seed(0)  # what dropout draws is the same in every replay
        model, optimizer = scene.start()
        optimizer, batches = changed(change, recording, model, optimizer, scene.batches, scene.usual)
        own_loss = copied_loss(scene.loss)
        recorder = Recorder(model, optimizer)
        every = max(1, steps // READINGS)
        for step, batch in enumerate(islice(cycle(batches), steps)):
            if step % every == 0 or not recorder.kept.enough:
                recorder.arm(read=step % every == 0)
            input, target = split(batch)
            loss = own_loss(call(model, input), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.collect(loss)
            if not bool(torch.isfinite(loss)):
                break
        recorder.disarm()
        known = recording.reach if batches is scene.batches else reach_of(model, batches, scene.loss)
        return replace(recorder.recording(), reach=known)


def reach_of(model: nn.Module, batches: Sequence[Batch], loss: Callable[[Any, Any], Tensor]) -> Reach | None:
    """What the loss could reach on these batches; see `relume.reach`."""
    return reach(model, [split(batch) for batch in batches], copied_loss(loss)) if batches else None


def _steps(recording: Recording, scene: Scene, symptoms: tuple[Symptom, ...]) -> int:
    """Long enough to reach past the moment when half of what is ill had become so, and for a loss to fall."""
    input = split(scene.batches[0])[0]
    size = next((len(t) for t in tensors(input) if t.dim()), 1)
    longest = min(LONGEST_OF_SINGLES, max(LONGEST_REPLAY, REPLAY_SAMPLES // max(1, size)))
    missed = any(s.at_worst is not None and s.severity != "note" for s in symptoms)  # if a loss falls further without
    if missed or is_of_the_loss(symptoms):
        return min(longest, max(REPLAY_STEPS, recording.steps))
    seen = [s.evidence.get("median_step", float(s.since)) - scene.step for s in symptoms if s.severity != "note"]
    wanted = max(REPLAY_STEPS, int(1.2 * max(seen, default=0.0)) + 20)
    return min(wanted, longest, max(REPLAY_STEPS, recording.steps))


def scenes_from(snapshots: Snapshots, stretches: Sequence[Stretch], loss: Callable[[Any, Any], Tensor]) -> SceneAt:
    """The scenes of a loop of the user's own: the nearest snapshot, with the batches and learning rates of a stretch.

    The first stretch is that of the run's first steps; the others were kept where something happened. What happened
    some time after a snapshot was taken is put to the network as it was then. Needs a snapshot of step 0.
    """

    @cache
    def scene(step: int, index: int) -> Scene:
        stretch, taken = stretches[index], snapshots.taken[step]
        rates = stretch.rates if stretch.start >= step else ()  # else those of the snapshot

        def start() -> tuple[nn.Module, Optimizer]:
            model, optimizer = taken.again()
            model.train()
            for group, rate in zip(optimizer.param_groups, rates, strict=False):
                group["lr"] = rate or group.get("initial_lr", group["lr"])  # a warm-up starts from 0: nothing moves
            return model, optimizer

        usual = stretches[0].pairs if index else ()
        return Scene(start=start, batches=stretch.pairs, loss=loss, step=step, usual=usual)

    def scene_at(since: int, half: int, back: int) -> Scene:
        step = snapshots.before(half, back)  # few units that died early on are no reason to begin there
        known = [i for i, s in enumerate(stretches) if i == 0 or (s.pairs and s.start >= step)]
        return scene(step, min(known, key=lambda i: abs(stretches[i].start - half)))

    return scene_at


def report_on(recording: Recording, scene_at: SceneAt | None = None) -> Report:
    """The report on a recording; with scenes to replay from, causes are tried out on copies."""
    if scene_at is None:
        return Report.of(recording)
    first = scene_at(0, 0, 0)
    try:
        with isolated_rng(), one_thread():
            known = reach_of(first.start()[0], first.batches, first.loss)
        recording = replace(recording, reach=known, resumed=recording.resumed or _arrived(known))
        return Report.of(recording, experiments(scene_at, recording, find(recording)))
    except Exception as error:  # the network, optimizer or loss of a loop of the user's own may not bear to be copied
        kind = "" if isinstance(error, RemedyError) else f"{type(error).__name__}: "
        why = f"nothing was replayed: {kind}{(str(error) or 'no reason given').splitlines()[0]}"
        return Report.of(replace(recording, blind=(*recording.blind, why)))


def _arrived(reach: Reach | None) -> bool:
    """Whether the network had plainly learnt before the first step: it beats every constant answer."""
    return reach is not None and reach.constant is not None and reach.first < (1 - LEARNT) * reach.constant


def first_batches(stream: Iterator[Any], count: int) -> list[Batch]:
    """The next batches of a stream, as pairs; fewer where they would take more than `KEPT_BYTES`."""
    found: list[Batch] = []
    size = 0
    for batch in islice(stream, count):
        found.append(split(batch))
        size += sum(t.numel() * t.element_size() for t in tensors(batch))
        if size > KEPT_BYTES:
            break
    return found
