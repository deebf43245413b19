"""Batches of a run that are kept: for a reading of the last weights, for proofs, and for replays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from relume.nested import extent, tensors
from relume.symptoms import ENOUGH_SAMPLES

KEPT_BYTES = 64 * 2**20  # of training batches kept for the closing reading and for replays

Batch = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a forward pass


class Kept:
    """The newest batches that suffice for a verdict on each unit, as copies, within `KEPT_BYTES`."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []  # newest last
        self.full = False  # no room for more
        self._samples = self._bytes = 0

    @property
    def enough(self) -> bool:
        """Whether they suffice, or there is no room for more."""
        return self.full or self._samples >= ENOUGH_SAMPLES

    def add(self, args: Any, kwargs: Any) -> int:
        """Keep the arguments of a forward pass, and return its samples; the oldest go where there are enough."""
        samples, size = extent((args, kwargs))
        self.full = self.full or size + self._bytes > KEPT_BYTES
        if size > KEPT_BYTES or not samples:
            return samples
        self.batches.append(own((args, dict(kwargs))))
        self._samples += samples
        self._bytes += size
        while len(self.batches) > 1:
            oldest, _ = extent(self.batches[0])
            if self._samples - oldest < ENOUGH_SAMPLES and self._bytes <= KEPT_BYTES:
                break
            self._drop_oldest()
        return samples

    def trim(self, count: int) -> None:
        """Keep the newest `count` of them at most."""
        while len(self.batches) > count:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        samples, size = extent(self.batches.pop(0))
        self._samples -= samples
        self._bytes -= size

    def distinct(self) -> int:
        """How many different samples there are: passes over a small data set repeat them."""
        seen: set[int] = set()
        for batch in self.batches:
            samples, _ = extent(batch)
            parts = [
                t.detach().reshape(samples, -1).contiguous().view(torch.uint8).cpu().numpy()
                for t in tensors(batch)
                if t.dim() and t.shape[0] == samples > 0
            ]
            seen.update(hash(b"".join(part[row].tobytes() for part in parts)) for row in range(samples))
        return len(seen)


class Stretch:
    """The (input, target) of consecutive steps, and the learning rates of the first of them: what replays train on.

    It ends where the batches suffice for a verdict on each unit, where the next would take it beyond `room` bytes, and
    at the first step that is missing.
    """

    def __init__(self, start: int, rates: Sequence[float], room: int) -> None:
        self.start, self.rates = start, tuple(rates)  # steps done before it; of each parameter group
        self.pairs: list[tuple[Any, Any]] = []
        self._room = room
        self._samples = self._bytes = 0

    def wants(self, step: int) -> bool:
        """Whether the batch of this step is to be added."""
        return step == self.start + len(self.pairs) and self._samples < ENOUGH_SAMPLES

    def add(self, input: Any, target: Any) -> None:
        """Add the next batch, of which nobody else changes anything."""
        samples, size = extent((input, target))
        if self._bytes + size <= self._room:
            self.pairs.append((input, target))
            self._samples += samples
            self._bytes += size


def own(value: Any) -> Any:
    """Copies of the tensors in it: a loop may fill the same buffers with its next batch."""
    return tree_map_only(Tensor, lambda t: t.detach().clone(), value)
