"""Randomness kept apart: the order of the data, and everything else."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from relume.errors import DataError
from relume.randomness import isolated_rng, rng_state, seed_all, set_rng_state
from relume.training.memory import in_memory

STREAM_SALT = 0x5EED  # the order of the data must not be drawn from the same numbers as the weights


class Stream:
    """Batches without end (or of one pass, with `once`), in an order that nothing but the seed decides.

    It draws from generators of its own, swapped in around each step of the iteration: dropout and initialisation
    cannot change the order of the data, nor the data what they draw. Equal streams give equal batches.
    """

    def __init__(self, batches: Iterable[Any], seed: int, *, once: bool = False) -> None:
        self.index = -1  # of the batch given last, within its pass
        self._place = -1  # of the batch read last
        known = in_memory(batches)
        self._batches = batches if known is None else known
        self._draws_at_start = known is not None  # of a pass, and at no other time
        self._once = once
        self._iterator: Iterator[Any] | None = None
        self._ahead = deque[tuple[int, Any]]()
        with isolated_rng():
            seed_all(seed ^ STREAM_SALT)
            self._rng = rng_state()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        self.peek(1)
        self.index, batch = self._ahead.popleft()
        return batch

    def peek(self, count: int) -> list[Any]:
        """The batches that come next; they stay the next ones."""
        while len(self._ahead) < count:
            batch = self._read()
            self._ahead.append((self._place, batch))
        return [batch for _, batch in list(self._ahead)[:count]]

    def _read(self) -> Any:
        try:
            batch = next(self._iterator, _END) if self._iterator is not None and self._draws_at_start else _END
            if batch is not _END:
                self._place += 1
                return batch
            with isolated_rng():
                set_rng_state(self._rng)
                try:
                    batch = self._next()
                finally:
                    self._rng = rng_state()
        except Exception as error:
            raise DataError(
                f"batches failed at batch {self._place + 1}: {type(error).__name__}: {error}\n"
                "The traceback above is from the data set or its loader."
            ) from error
        if batch is not _END:
            return batch
        if self._place >= 0:
            raise StopIteration
        raise DataError(
            "batches yield nothing: iterating over them gave no batch.\n"
            "The data set may be empty, drop_last may leave no batch, or only the first pass may give any."
        )

    def _next(self) -> Any:
        if self._iterator is not None:
            batch = next(self._iterator, _END)
            if batch is not _END or self._once:
                self._place += batch is not _END
                return batch
        self._iterator = iter(self._batches)
        batch = next(self._iterator, _END)
        self._place = -1 if batch is _END else 0
        return batch


_END = object()
