"""The network as it was some steps ago, so that a replay can begin just before something went wrong."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from relume.errors import RemedyError
from relume.nested import tensors
from relume.recording import Reading
from relume.surgery import duplicate, require_own_hooks

SNAPSHOT_BYTES = 256 * 2**20  # for all of them together, weights and optimizer states
EVERY = 50  # steps between snapshots: a replay of 100 steps reaches past the next
LATEST = 3  # kept while nothing happens
FROZEN = 6  # kept for good, each from before an event
SILENCED = 0.1  # of all units fell silent since the last event: something went wrong
JUMP = 3.0  # times the loss of the snapshot


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One network and its optimizer, at one step."""

    model: nn.Module
    optimizer: Optimizer
    loss: float

    def again(self) -> tuple[nn.Module, Optimizer]:
        """A fresh copy of both."""
        return pair(self.model, self.optimizer)


def pair(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
    """Copies of both, with the optimizer's step hooks, on which schedules and clipping may hang.

    Raises RemedyError where they cannot be copied, or where the copy would drive what is the loop's.
    """
    require_own_hooks(optimizer)
    model, copied = duplicate(model, optimizer)
    assert copied is not None
    return model, copied


class Snapshots:
    """Takes a snapshot now and then, and freezes the last good one when units fall silent or the loss leaps.

    `look` is called after every step with the number of steps done and the loss. The oldest snapshots go unless they
    are frozen; together they stay within `SNAPSHOT_BYTES`. There are none of a network too large for that, or that
    cannot be copied.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, latest: Callable[[], Reading | None]) -> None:
        self._model, self._optimizer, self._latest = model, optimizer, latest
        self._recent: deque[tuple[int, Snapshot]] = deque(maxlen=LATEST)
        self._frozen: dict[int, Snapshot] = {}
        self._silent: float | None = None
        self._copies = True

    @property
    def taken(self) -> Mapping[int, Snapshot]:
        """All there are, by the number of steps that were done."""
        return dict(sorted({**self._frozen, **dict(self._recent)}.items()))

    def look(self, step: int, loss: float) -> None:
        """Freeze a snapshot if something happened, and take one if it is time."""
        if self._happened(loss) and self._recent and len(self._frozen) < FROZEN:
            at, snapshot = self._recent[0]
            self._frozen[at] = snapshot
        if self._copies and step % EVERY == 0 and math.isfinite(loss) and self._fits():
            try:
                self._recent.append((step, Snapshot(*pair(self._model, self._optimizer), loss)))
            except RemedyError:  # replays then begin from the first step
                self._copies = False

    def _happened(self, loss: float) -> bool:
        if self._recent and not loss < JUMP * abs(self._recent[-1][1].loss):
            return True
        reading = self._latest()
        if reading is None or not reading.sites:
            return False
        units = sum(len(read.silent) for read in reading.sites.values())
        silent = sum(int(read.silent.sum()) for read in reading.sites.values()) / max(1, units)
        if self._silent is None or silent < self._silent:
            self._silent = silent
        if silent < self._silent + SILENCED:
            return False
        self._silent = silent
        return True

    def _fits(self) -> bool:
        state: list[Any] = [dict(self._model.state_dict()), dict(self._optimizer.state)]
        size = sum(t.numel() * t.element_size() for t in tensors(state) if isinstance(t, Tensor))
        return size * (LATEST + FROZEN) <= SNAPSHOT_BYTES
