"""Batches that are kept: enough of them, the newest, and copies."""

import torch

from relume.kept import Kept
from relume.symptoms import ENOUGH_SAMPLES


def batch(value: float, samples: int = 64) -> tuple[torch.Tensor]:
    return (torch.full((samples, 3), value),)


def test_the_newest_are_kept_and_no_more_than_suffice() -> None:
    """The oldest go once the others suffice for a verdict on each unit."""
    kept = Kept()
    for i in range(40):
        assert kept.add(batch(float(i)), {}) == 64
        assert kept.enough == (64 * (i + 1) >= ENOUGH_SAMPLES)
    values = [float(args[0][0, 0]) for args, _ in kept.batches]
    assert values == [float(i) for i in range(40 - len(values), 40)]
    assert ENOUGH_SAMPLES <= 64 * len(values) < ENOUGH_SAMPLES + 64
    assert kept.distinct() == len(values)


def test_what_is_trimmed_no_longer_counts() -> None:
    """After trimming, as ranks do to have equally many, more are wanted again and the newest stay."""
    kept = Kept()
    for i in range(20):
        kept.add(batch(float(i)), {})
    kept.trim(3)
    assert [float(args[0][0, 0]) for args, _ in kept.batches] == [17.0, 18.0, 19.0] and not kept.enough
    for i in range(20, 40):
        kept.add(batch(float(i)), {})
    assert kept.enough and float(kept.batches[-1][0][0][0, 0]) == 39.0
    assert ENOUGH_SAMPLES <= 64 * len(kept.batches) < ENOUGH_SAMPLES + 64


def test_what_is_kept_is_a_copy() -> None:
    """A loop may fill the same tensor with its next batch."""
    kept, x = Kept(), torch.zeros(8, 2)
    kept.add((), {"x": x})
    x.fill_(7.0)
    assert float(kept.batches[0][1]["x"].sum()) == 0.0
