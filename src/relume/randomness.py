"""What makes two runs equal: the global random generators, and the number of threads."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def rng_state() -> tuple[Any, ...]:
    """The state of the global generators of torch, NumPy and Python."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    return torch.get_rng_state(), np.random.get_state(), random.getstate(), cuda


def set_rng_state(state: tuple[Any, ...]) -> None:
    """Put back what `rng_state` gave."""
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])
    random.setstate(state[2])
    if state[3] is not None:
        torch.cuda.set_rng_state_all(state[3])


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Leave the global generators of torch, NumPy and Python as they were."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread: sums then add in one order, and two runs agree bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
