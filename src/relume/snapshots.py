"""The network as it was some steps ago, so that a replay can begin just before something went wrong."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from relume.adoption import settings_of
from relume.errors import RemedyError
from relume.kept import own
from relume.nested import tensors
from relume.pace import clock
from relume.recording import Reading
from relume.surgery import STEP_HOOKS, duplicate, require_own_hooks

SNAPSHOT_BYTES = 256 * 2**20  # for all of them together, weights and optimizer states
EVERY = 50  # steps between snapshots, at least: a replay of 100 steps reaches past the next
LATEST = 3  # kept while nothing happens, at most
FROZEN = 6  # kept for good, each from before an event; that of the start is one of them
SILENCED = 0.1  # of all units fell silent since the last event: something went wrong
JUMP = 3.0  # times the loss of the snapshot

Again = Callable[[], tuple[nn.Module, Optimizer]]  # a fresh copy at each call, the same every time


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One network and its optimizer, at one step."""

    again: Again
    loss: float


def pair(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
    """Copies of both, with the optimizer's step hooks, on which schedules and clipping may hang.

    Raises RemedyError where they cannot be copied, or where the copy would drive what is the loop's.
    """
    require_own_hooks(optimizer)
    model, copied = duplicate(model, optimizer)
    assert copied is not None
    return model, copied


def whole(model: nn.Module, optimizer: Optimizer) -> Again:
    """A snapshot of all there is. Raises RemedyError where they cannot be copied."""
    return partial(pair, *pair(model, optimizer))


def states(model: nn.Module, optimizer: Optimizer) -> Again:
    """A snapshot of the weights and the optimizer's state, in a tenth of the time; attributes are as they are later.

    An optimizer with step hooks, which may count steps, is copied as a whole where it can be. The snapshot raises
    RemedyError where the network cannot be copied, or is no longer the one that it is of.
    """
    if any(vars(optimizer).get(name) for name in STEP_HOOKS):
        with suppress(RemedyError):
            return whole(model, optimizer)
    weights = {name: own(tensor) for name, tensor in _named(model)}
    moments = [[own(optimizer.state.get(p, {})) for p in group["params"]] for group in optimizer.param_groups]
    settings = own(settings_of(optimizer))

    def again() -> tuple[nn.Module, Optimizer]:
        twin, copied = pair(model, optimizer)
        now = dict(_named(twin))
        groups = copied.param_groups
        fewer = [len(g["params"]) < len(s) for g, s in zip(groups, moments, strict=False)]
        reshaped = {n: t.shape for n, t in now.items()} != {n: t.shape for n, t in weights.items()}
        if reshaped or any(fewer) or len(groups) < len(moments):
            raise RemedyError(
                f"{type(model).__name__} has other parameters or buffers than when its weights were kept.\n"
                "Begin a new watch where you change the network, so that replays can be made."
            )
        with torch.no_grad():
            for name, tensor in now.items():
                tensor.copy_(weights[name])
        copied.state.clear()
        del copied.param_groups[len(settings) :]  # groups that were added since
        for group, known, states in zip(copied.param_groups, settings, moments, strict=True):
            group.update(own(known))
            del group["params"][len(states) :]  # and those in them
            copied.state.update({p: own(s) for p, s in zip(group["params"], states, strict=True) if s})
        return twin, copied

    return again


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


class Snapshots:
    """Takes a snapshot now and then, and freezes the last good one when units fall silent or the loss leaps.

    `look` is called between steps with the number of steps done and the loss. The oldest snapshots go unless they are
    frozen; together they stay within `SNAPSHOT_BYTES`: of a large network there are fewer, and none where three would
    not fit or where it cannot be copied. `copy` makes one; of the latest, `recent` are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        latest: Callable[[], Reading | None],
        copy: Callable[[nn.Module, Optimizer], Again] = whole,
        recent: int = LATEST,
    ) -> None:
        self.cost = 0.0  # seconds that the latest took, by `pace.clock`
        self._model, self._optimizer, self._latest, self._copy = model, optimizer, latest, copy
        self._recent: deque[tuple[int, Snapshot]] = deque()
        self._most_recent = recent
        self._frozen: dict[int, Snapshot] = {}
        self._over: set[int] = set()  # of the frozen, those whose loss was reached again
        self._level = math.inf  # the loss at the newest snapshot or event; infinite where that was not finite
        self._silent: float | None = None
        self._judged: Reading | None = None
        self._last = 0  # step at which one was taken
        self._copies = True

    @property
    def taken(self) -> Mapping[int, Snapshot]:
        """All there are, by the number of steps that were done."""
        return dict(sorted({**self._frozen, **dict(self._recent)}.items()))

    def before(self, step: int, back: int = 0) -> int:
        """The step of the nearest one at or before a step, or so many back from it; 0 where there is none."""
        steps = [0, *(at for at in self.taken if 0 < at <= step)]
        return steps[max(0, len(steps) - 1 - back)]

    def begin(self) -> None:
        """Take one of the start, which stays; also of a network that is too large for more."""
        if self._size() <= SNAPSHOT_BYTES:
            self._frozen[0] = self._snapshot(math.inf)

    def look(self, step: int, loss: float, every: int = EVERY) -> int | None:
        """Freeze a snapshot if something happened, and take one if it is time; the step of the one that was frozen."""
        frozen = self._freeze(loss) if self._happened(loss) else None
        self._over |= {at for at, snapshot in self._frozen.items() if at and loss <= snapshot.loss}
        if self._copies and step >= self._last + max(EVERY, every) and math.isfinite(loss):
            self._last, self._level = step, abs(loss)
            self._take(step, loss)
        return frozen

    def _take(self, step: int, loss: float) -> None:
        recent, _ = self._room()
        while self._recent and len(self._recent) >= recent:
            self._recent.popleft()
        if recent:
            try:
                self._recent.append((step, self._snapshot(loss)))
            except RemedyError:  # replays then begin from the first step
                self._copies = False

    def _snapshot(self, loss: float) -> Snapshot:
        started = clock()
        snapshot = Snapshot(self._copy(self._model, self._optimizer), loss)
        self.cost = clock() - started
        return snapshot

    def _freeze(self, loss: float) -> int | None:
        """Keep the oldest of the recent ones, which is surely from before the event."""
        self._level = abs(loss) if math.isfinite(loss) else math.inf
        if not self._recent:
            return None
        at, snapshot = self._recent[0]
        if at not in self._frozen and len(self._frozen) >= self._room()[1]:
            if not self._over:
                return None
            gone = min(self._over)
            self._over.remove(gone)
            del self._frozen[gone]
        self._frozen[at] = snapshot
        return at

    def _happened(self, loss: float) -> bool:
        if self._level < math.inf and not loss < JUMP * self._level:
            return True
        reading = self._latest()
        if reading is None or reading is self._judged or not reading.sites:
            return False
        self._judged = reading
        units = sum(len(read.silent) for read in reading.sites.values())
        silent = sum(int(read.silent.sum()) for read in reading.sites.values()) / max(1, units)
        if self._silent is None or silent < self._silent:
            self._silent = silent
        if silent < self._silent + SILENCED:
            return False
        self._silent = silent
        return True

    def _size(self) -> int:
        state: list[Any] = [dict(self._model.state_dict()), dict(self._optimizer.state)]
        return sum(t.numel() * t.element_size() for t in tensors(state) if isinstance(t, Tensor))

    def _room(self) -> tuple[int, int]:
        """How many there may be of the recent and of the frozen ones."""
        room = SNAPSHOT_BYTES // max(1, self._size())
        return min(self._most_recent, room // 3), min(FROZEN, room - room // 3)
