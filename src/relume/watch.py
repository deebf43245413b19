"""Watches a training loop: decides which steps to read, within a cost budget, and never stands in its way."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from relume.actions import Action
from relume.alarms import Alarm, closed, dead_layer, not_finite, told
from relume.autopilot import Autopilot
from relume.errors import RelumeError
from relume.interventions import report_on, scenes_from
from relume.journal import Journal
from relume.kept import KEPT_BYTES, Stretch
from relume.nested import arguments
from relume.pace import Pace, clock
from relume.ranks import alone
from relume.recorder import Recorder
from relume.recording import Reading, Recording
from relume.remedies import Remedy
from relume.report import Report
from relume.snapshots import FROZEN, Snapshots, states

log = logging.getLogger("relume")

TIMED = 2  # steps after the first reading whose time is taken; later it is one
AGAIN = 8  # steps read in a row, and as many looks after them, to make sure of a layer that seems dead
RECENT = 2  # snapshots: they are further apart than in a check-up, and the newest may be from after an event
LOSSES = 20  # whose median is the loss at a look: one batch tells little
FOLLOWING = 0.04  # of all steps, at most, whose batches are kept because something had happened; the first time is free


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
        self._plain = alone(model)  # what copies are made of
        self._optimizer = optimizer
        self._loss = loss
        self._budget = budget
        self._autopilot = None if heal is False else Autopilot(model, optimizer, loss, heal)
        self._done: Sequence[Action] = self._autopilot.actions if self._autopilot is not None else ()
        self._journal = None
        self._pace = Pace(budget)
        self._begin()
        if journal is not None and (self._recorder.ranks is None or self._recorder.ranks.first):
            self._journal = Journal(journal)
        self.logs_alarms = True  # on the logger "relume", as soon as there is one
        self._finished = False
        self._retired = False
        self._began, self._healing = clock(), 0.0
        self._arm()

    def _begin(self, *, resumed: bool = False) -> None:
        """Begin a recording of the network as it is now."""
        model, optimizer, loss = self._model, self._optimizer, self._loss
        self._recorder = Recorder(model, optimizer, loss, resumed=resumed)
        self._recorder.keep_inputs()
        self._snapshots = None
        lazy = any(map(is_lazy, self._plain.parameters()))  # it has no weights yet that could be kept
        if loss is not None and optimizer is not None and not lazy:
            self._snapshots = Snapshots(self._plain, optimizer, lambda: self.latest, states, RECENT)
            self._snapshots.begin()
        self._later: dict[int, Stretch] = {}  # what followed an event, by the step of the snapshot before it
        self._written = 0
        self._next_reading = self._next_look = 0
        self._look_steps = self._recorder.look_steps
        self._timed = 0  # up to here steps are timed, to know what one costs that is not read
        self._armed = self._reads = False  # something is on for the next pass; it is to be read
        self._suspects = False  # a layer was silent in the newest reading, and may be dead
        self._again = 0  # times in a row that a reading was asked for because of it
        self._alarms: dict[tuple[str, str], Alarm] = {}
        self._judged = 0  # losses that were looked at

    def __enter__(self) -> watch:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else f"stopped by {type(error).__name__}"
            self._recorder.note = f"{stopped} at step {self._recorder.step}: {error}".rstrip(": ")
        self._guarded(self._close, error is None)

    def step(self, loss: Tensor | float | None = None) -> None:
        """Count one optimizer step; call it after `optimizer.step()`, before the gradients are cleared."""
        self._left -= 1
        if self._left > 0:  # an ordinary step: all that it costs is here
            if self._direct:
                try:
                    self._pending.append(loss.item())  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
                    return
                except (AttributeError, RuntimeError):  # no tensor this time, or not one number
                    pass
            self._recorder.count(loss)
        elif not self._retired:
            self._guarded(self._read if self._armed else self._look, loss)

    def _read(self, loss: Any) -> None:
        """After a step for which something was on."""
        ended = clock()
        recorder, pace = self._recorder, self._pace
        spent = None if recorder.began is None else ended - recorder.began
        reading = recorder.collect(loss)
        if reading is not None:
            self._judge(recorder.look())
            if self._journal is not None:
                self._write()
            pace.read(spent or 0.0, clock() - ended)
            self._remember()
            self._look_steps = recorder.look_steps
            self._next_look = recorder.step + self._look_steps
            self._timed = recorder.step + (1 if pace.usual else TIMED)
            if not 0 < self._again <= AGAIN:
                self._next_reading = recorder.step - 1 + pace.wait(recorder.step)
            if recorder.ranks is not None:
                self._next_reading, self._look_steps = recorder.ranks.agreed(self._next_reading, self._look_steps)
                self._next_look = recorder.step + self._look_steps
        else:
            if spent is not None and not self._reads:
                pace.ordinary(spent)
            if self._look_if_due():
                self._remember()
        if self._autopilot is not None:
            before = clock()
            self._guarded(self._heal, self._autopilot)
            self._healing += clock() - before
        self._arm()

    def _look(self, loss: Any) -> None:
        """After an ordinary step, when it is time to see what stands still, or to have the next step read."""
        started = clock()
        recorder = self._recorder
        recorder.count(loss)
        self._pace.counted(clock() - started)
        looked = self._look_if_due()
        self._pace.look(clock() - started)
        if looked:
            self._remember()
        if recorder.step < self._next_reading and not recorder.wants_targets:
            self._left = min(self._next_reading, self._next_look) - recorder.step
        else:
            self._arm()

    def _look_if_due(self) -> bool:
        recorder = self._recorder
        if recorder.step < self._next_look:
            return False
        self._next_look = recorder.step + self._look_steps
        still = recorder.look()
        if still or self._suspects or recorder.lost:
            self._judge(still)
        return True

    def _remember(self) -> None:
        """Take a snapshot if it is time, and have the next batches kept where something happened."""
        recorder, snapshots = self._recorder, self._snapshots
        if snapshots is None or recorder.ranks is not None or not recorder.first:
            return
        started = clock()
        recorder.flush()
        newest = recorder.losses[-1]
        loss = median(recorder.losses[-LOSSES:]) if math.isfinite(newest) else newest
        before = snapshots.look(recorder.step, loss, self._pace.copies(recorder.step, snapshots.cost))
        if before is not None and recorder.followed <= FOLLOWING * recorder.step:
            self._later = {at: stretch for at, stretch in self._later.items() if at in snapshots.taken}
            self._later[before] = recorder.follow(KEPT_BYTES // FROZEN)
        self._pace.look(clock() - started)

    def _judge(self, still: bool) -> None:
        """Sound an alarm, or see to it that what may be one is read in the next step."""
        recorder = self._recorder
        recorder.flush()
        self._suspects = False
        before = len(self._alarms)
        for site in recorder.sites.values():
            if ("dead", site.name) not in self._alarms and closed(recorder.readings, site):
                alarm = dead_layer(recorder.readings, site, recorder.step)
                self._suspects |= alarm is None
                self._sound(alarm)
        if ("non_finite", "") not in self._alarms:
            self._sound(not_finite(recorder.losses[self._judged :], self._judged))
        if self.logs_alarms and (recorder.ranks is None or recorder.ranks.first):
            for line in told(list(self._alarms.values())[before:]):
                log.warning("relume: %s", line)
        self._judged = len(recorder.losses)
        self._again = self._again + 1 if still or self._suspects else 0
        if 0 < self._again <= AGAIN:
            self._next_reading = recorder.step

    def _sound(self, alarm: Alarm | None) -> None:
        if alarm is not None:
            self._alarms[alarm.kind, alarm.site] = alarm
            self._recorder.keep_inputs()  # the inputs may be what killed the layer: the closing reading wants new ones

    def _arm(self) -> None:
        recorder = self._recorder
        self._reads = recorder.step >= self._next_reading
        self._armed = self._reads or recorder.step < self._timed or recorder.wants_targets
        if self._armed:
            recorder.arm(read=self._reads)
        self._left = 1 if self._armed else max(1, min(self._next_reading, self._next_look) - recorder.step)
        self._pending, self._direct = recorder.pending, recorder.direct

    def _heal(self, autopilot: Autopilot) -> None:
        """Let the autopilot look; where it changed the network, what was read before is of another one."""
        try:
            changed = autopilot.look(self._recorder, self._report)
        except RelumeError as error:  # raised on purpose: nothing was changed, and the watch is in order
            self._autopilot, changed = None, False
            self._recorder.window = None
            log.warning("relume: the autopilot stopped at step %d: %s", self._recorder.step, error)
        except Exception as error:  # the network or the loss does not bear what a trial does with it
            self._autopilot, changed = None, False
            self._recorder.window = None
            kind = type(error).__name__
            log.warning(
                "relume: the autopilot stopped at step %d: %s: %s", self._recorder.step, kind, error, exc_info=True
            )
        if changed:
            self._begin(resumed=True)
            if self._journal is not None:
                self._journal.close()
                self._journal = Journal(self._journal.path)
        if self._autopilot is not None:
            self._next_reading = min(self._next_reading, max(self._autopilot.due, self._recorder.step))

    # the recording ------------------------------------------------------------------------------------------------

    @property
    def actions(self) -> tuple[Action, ...]:
        """What was done about the network so far, with `heal`."""
        return tuple(self._done)

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """Layers found dead while the run goes on, and a loss that is no longer finite; each was also logged, once."""
        return tuple(self._alarms.values())

    @property
    def latest(self) -> Reading | None:
        """The newest reading."""
        return self._recorder.readings[-1] if self._recorder.readings else None

    def keep_more(self, inputs: Iterable[Any]) -> None:
        """Keep further inputs of the same data for the closing reading, until there are enough for a verdict."""
        for input in inputs:
            if self._retired or self._recorder.kept.enough:
                break
            self._recorder.kept.add(*arguments(input))

    @property
    def recording(self) -> Recording:
        """All that was read so far, closed by a reading of the latest batches with the weights as they are now."""
        return self._recording(closing=not self._retired)

    def _recording(self, *, closing: bool) -> Recording:
        recording = self._recorder.recording(finished=self._finished, closing=closing, proofs=closing)
        spent = self._pace.spent + self._pace.counting * recording.steps + self._healing
        return replace(recording, watch_share=spent / max(clock() - self._began, 1e-9))

    def _write(self, *, closing: bool = False) -> None:
        if self._journal is not None:
            recording = self._recording(closing=closing)
            self._journal.add(recording, [r for r in recording.readings if r.step >= self._written])
            self._written = self._recorder.step

    def _close(self, finished: bool) -> None:
        self._recorder.stop()
        self._finished = finished
        if finished:
            self._recorder.close()
        if self._journal is not None:
            self._write(closing=True)
            self._journal.close()
            self._journal = None

    def report(self) -> Report:
        """What was found so far; may be asked at any time, also in mid-run.

        Given the loss function, steps are replayed on copies of the network, from the nearest snapshot before the
        illness, to tell the causes apart. Where `heal` changed the network, the report is on the steps since then.
        """
        return replace(self._report(), actions=self.actions)

    def _report(self) -> Report:
        snapshots, recorder = self._snapshots, self._recorder
        if snapshots is None or 0 not in snapshots.taken or not recorder.first:
            return report_on(self.recording)
        stretches = recorder.opening, *self._later.values()
        return report_on(self.recording, scenes_from(snapshots, stretches, self._loss))

    def _guarded(self, act: Any, *args: Any) -> None:
        """Do it; an error is logged once and the watch retires, so that the user's training goes on."""
        if self._retired:
            return
        try:
            act(*args)
        except Exception as error:
            self._retired = True
            self._recorder.stop()
            self._recorder.note = f"the watch stopped at step {self._recorder.step}: {type(error).__name__}: {error}"
            log.warning("relume: %s; training goes on unwatched", self._recorder.note, exc_info=True)
