"""Watches a training loop: decides which steps to read, within a cost budget, and never stands in its way."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from relume.actions import Action
from relume.autopilot import Autopilot
from relume.errors import RelumeError
from relume.interventions import report_on, scene_from
from relume.journal import Journal
from relume.nested import arguments
from relume.recorder import Recorder
from relume.recording import Reading, Recording
from relume.remedies import Remedy
from relume.report import Report

log = logging.getLogger("relume")

FIRST_STEPS = 3  # read without regard to cost: what is ill from the start shows here, and they measure the cost
FIRST_REST = 5  # ordinary steps after them, to know what a step costs without a reading
AIM = 0.8  # of the budget; the rest is left for the error of the cost's own measurement
SNAPSHOT_BYTES = 256 * 2**20  # of weights kept for replays, where a loss function is given
LONGEST_WAIT = 1000  # steps between probes, whatever one costs: a run of any length is read now and then


class watch:
    """Watch a training loop of your own; the parameters after it are bit-identical to those without.

    `model` and `optimizer` are the ones being trained, `loss` the loss function (with it, causes are replayed on
    copies), `budget` the share of the run's time that reading may take, `journal` the path of a file that keeps the
    recording. Call `step(loss)` once per optimizer step, while the gradients are there.

    With `heal`, a network that turns out critically ill is treated in place: remedies are tried on copies, what is
    proven is adopted, and taken back where the loss then falls behind; `actions` and the report tell what was done.
    This needs `loss` and `optimizer`. A list of remedies, names or records, restricts it to those.

        with relume.watch(model, optimizer) as watch:
            for x, y in batches:
                loss = loss_fn(model(x), y)
                optimizer.zero_grad(); loss.backward(); optimizer.step()
                watch.step(loss)
        print(watch.report())

    An error inside relume is logged once and ends the watch, not the training. Raises JournalError when the journal
    cannot be written, TypeError when `model` is not a module, and TrainingError or RemedyError where `heal` lacks what
    it needs.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        loss: Any = None,
        budget: float = 0.01,
        journal: str | Path | None = None,
        heal: bool | str | Remedy | Iterable[str | Remedy] = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"watch needs the torch.nn.Module that is trained; found {type(model).__name__}.")
        if not budget > 0:
            raise ValueError(f"budget is the share of the run's time that reading may take, above 0; found {budget!r}.")
        self._model = model
        self._optimizer = optimizer
        self._loss = loss
        self._budget = budget
        self._autopilot = None if heal is False else Autopilot(model, optimizer, loss, heal)
        self._done: Sequence[Action] = self._autopilot.actions if self._autopilot is not None else ()
        self._journal = Journal(journal) if journal is not None else None
        self._begin()
        self._finished = False
        self._retired = False
        self._ordinary: deque[float] = deque(maxlen=64)  # seconds of the latest steps that were not read
        self._cost = 0.0  # seconds one probe adds, smoothed
        self._spent = 0.0
        self._last = time.perf_counter()
        self._armed = self._due = False  # something is on for the next pass; it is to be read, not only kept
        self._arm()

    def _begin(self, *, resumed: bool = False) -> None:
        """Begin a recording of the network as it is now."""
        model, optimizer, loss = self._model, self._optimizer, self._loss
        self._recorder = Recorder(model, optimizer, loss, resumed=resumed)
        self._start = _snapshot(model) if loss is not None and optimizer is not None else None
        self._rates = [float(group.get("lr", 0.0)) for group in optimizer.param_groups] if optimizer else []
        self._written = self._next = 0

    def __enter__(self) -> watch:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else f"stopped by {type(error).__name__}"
            self._recorder.note = f"{stopped} at step {self._recorder.step}: {error}".rstrip(": ")
        self._guarded(self._close, error is None)

    def step(self, loss: Tensor | float | None = None) -> None:
        """Count one optimizer step; call it after `optimizer.step()`, before the gradients are cleared."""
        if self._retired:
            return
        now = time.perf_counter()
        spent, self._last = now - self._last, now
        if self._armed:
            self._guarded(self._collect, loss, spent, now)
            if self._autopilot is not None:
                self._guarded(self._heal, self._autopilot)
            self._guarded(self._arm)
            return
        self._recorder.count(loss)
        self._ordinary.append(spent)
        if self._recorder.step >= self._next:
            self._guarded(self._arm)

    def _collect(self, loss: Any, spent: float, started: float) -> None:
        if self._recorder.collect(loss) is None:
            if not self._due:
                self._ordinary.append(spent)
            return  # kept for the closing reading; or no pass in training mode, and the next step is tried
        own = time.perf_counter() - started
        usual = median(self._ordinary) if self._ordinary else 0.0
        extra = own + (max(0.0, spent - usual) if usual else 0.0)
        self._cost = extra if not self._cost else 0.7 * self._cost + 0.3 * min(extra, 4 * self._cost)
        self._spent += extra
        done = self._recorder.step
        if done < FIRST_STEPS:
            wait = 1
        elif not usual:
            wait = FIRST_REST
        else:
            wait = min(max(1, math.ceil(self._cost / (AIM * self._budget * usual))), LONGEST_WAIT)
        self._next = done - 1 + wait
        if self._journal is not None:
            self._write()
        self._last = time.perf_counter()

    def _arm(self) -> None:
        self._due = self._recorder.step >= self._next
        self._armed = self._due or not self._recorder.keeps_enough or self._recorder.window is not None
        if self._armed:
            self._recorder.arm(read=self._due)

    def _heal(self, autopilot: Autopilot) -> None:
        """Let the autopilot look; where it changed the network, what was read before is of another one."""
        try:
            changed = autopilot.look(self._recorder, self._report)
        except RelumeError as error:  # raised on purpose: nothing was changed, and the watch is in order
            self._autopilot, changed = None, False
            self._recorder.window = None
            log.warning("relume: the autopilot stopped at step %d: %s", self._recorder.step, error)
        if changed:
            self._begin(resumed=True)
            if self._journal is not None:
                self._journal.close()
                self._journal = Journal(self._journal.path)
        if self._autopilot is not None:
            self._next = min(self._next, max(self._autopilot.due, self._recorder.step))
        self._spent += time.perf_counter() - self._last
        self._last = time.perf_counter()

    # the recording ------------------------------------------------------------------------------------------------

    @property
    def actions(self) -> tuple[Action, ...]:
        """What was done about the network so far, with `heal`."""
        return tuple(self._done)

    @property
    def latest(self) -> Reading | None:
        """The newest reading."""
        return self._recorder.readings[-1] if self._recorder.readings else None

    def keep_more(self, inputs: Iterable[Any]) -> None:
        """Keep further inputs of the same data for the closing reading, until there are enough for a verdict."""
        for input in inputs:
            if self._retired or self._recorder.keeps_enough:
                break
            self._recorder.keep(*arguments(input))

    @property
    def recording(self) -> Recording:
        """All that was read so far, closed by a reading of the latest batches with the weights as they are now."""
        return self._recording(closing=not self._retired)

    def _recording(self, *, closing: bool) -> Recording:
        recording = self._recorder.recording(finished=self._finished, closing=closing, proofs=closing)
        return replace(recording, watch_share=self._spent / max(recording.seconds, 1e-9))

    def _write(self, *, closing: bool = False) -> None:
        if self._journal is not None:
            recording = self._recording(closing=closing)
            self._journal.add(recording, recording.readings[self._written :])
            self._written = len(self._recorder.readings)

    def _close(self, finished: bool) -> None:
        self._recorder.disarm()
        self._finished = finished
        if self._journal is not None:
            self._write(closing=True)
            self._journal.close()
            self._journal = None

    def report(self) -> Report:
        """What was found so far; may be asked at any time, also in mid-run.

        Given the loss function, the first steps are replayed on copies of the network to tell the causes apart. Where
        `heal` changed the network, the report is on the steps since then.
        """
        return replace(self._report(), actions=self.actions)

    def _report(self) -> Report:
        if self._start is None or self._optimizer is None or self._loss is None or not self._recorder.first:
            return report_on(self.recording)
        scene = scene_from(self._model, self._optimizer, self._start, self._rates, self._recorder.first, self._loss)
        return report_on(self.recording, lambda since: scene)

    def _guarded(self, act: Any, *args: Any) -> None:
        """Do it; an error is logged once and the watch retires, so that the user's training goes on."""
        if self._retired:
            return
        try:
            act(*args)
        except Exception as error:
            self._retired = True
            self._recorder.disarm()
            self._recorder.note = f"the watch stopped at step {self._recorder.step}: {type(error).__name__}: {error}"
            log.warning("relume: %s; training goes on unwatched", self._recorder.note, exc_info=True)


def _snapshot(model: nn.Module) -> dict[str, Tensor] | None:
    """The network's state before training, for replays; None where it is too large to keep twice."""
    state = model.state_dict()
    if sum(t.numel() * t.element_size() for t in state.values() if isinstance(t, Tensor)) > SNAPSHOT_BYTES:
        return None
    return {name: t.detach().clone() if isinstance(t, Tensor) else t for name, t in state.items()}
