"""Readings take their share of the run's time, and are spread so that any length of run has some."""

from __future__ import annotations

from itertools import pairwise

import pytest

from relume.pace import FIRST_READINGS, LONGEST_WAIT, Pace


def readings(
    budget: float, step: float, cost: float, look: float, steps: int, counting: float = 0.0
) -> tuple[list[int], float]:
    """Steps that are read in a run with these costs in seconds, and what all took over the run's time."""
    pace, due, read = Pace(budget), 0, []
    spent = counting * steps
    for done in range(1, steps + 1):
        if done > due:
            pace.read(step + cost, 0.0)
            spent += cost
            read.append(done - 1)
            if len(read) == 1:
                pace.ordinary(step)
            due = done - 1 + pace.wait(done)
        elif done % 50 == 0:
            pace.counted(counting)
            pace.look(look + counting)
            spent += look
    return read, spent / (steps * step)


@pytest.mark.parametrize("steps", [2000, 20_000])
@pytest.mark.parametrize("cost", [0.1, 0.5, 1.0, 3.0])
def test_the_budget_is_held_over_the_first_two_thousand_steps_and_later(cost: float, steps: int) -> None:
    """Whatever a reading costs beside a step, all of them stay within the budget, the early ones included."""
    read, share = readings(0.01, 1e-3, cost * 1e-3, 5e-5, steps)
    assert share <= 0.01 and len(read) >= FIRST_READINGS and read[0] == 0


def test_what_counting_takes_is_not_spent_on_readings() -> None:
    """Steps so short that to count them takes half of the budget leave the other half, and are still read."""
    read, share = readings(0.01, 4e-4, 4e-4, 2e-5, 20_000, counting=2e-6)
    assert share <= 0.01 and len(read) > 10


def test_early_readings_are_spread() -> None:
    """A run that ends early has been read at growing distances, and a long one is read to its end."""
    read, _ = readings(0.01, 1e-3, 1e-3, 0.0, 10_000)
    assert len([s for s in read if s < 100]) >= 3
    assert max(b - a for a, b in pairwise(read)) <= LONGEST_WAIT and read[-1] > 9_000


def test_a_large_budget_reads_every_step() -> None:
    """Where cost does not matter every step is read, until readings are closer together than they can tell apart."""
    read, _ = readings(10.0, 1e-3, 1e-3, 0.0, 400)
    assert len(read) > 390
    late, _ = readings(10.0, 1e-3, 1e-3, 0.0, 5000)
    assert late[-1] - late[-2] >= 9
