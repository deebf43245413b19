"""Batches taken from memory by their indices: the loader's own, to the last bit."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from relume.training import Stream, stream
from relume.training.memory import in_memory


def rows(count: int = 50) -> TensorDataset:
    """Samples that are all different, of three kinds of numbers."""
    x = torch.arange(count * 6, dtype=torch.float32).reshape(count, 2, 3)
    return TensorDataset(x, torch.arange(count), torch.arange(count, dtype=torch.float64).sqrt())


def loaders() -> dict[str, Callable[[], DataLoader[Any]]]:
    def own() -> torch.Generator:
        return torch.Generator().manual_seed(5)

    data, weights = rows(), torch.rand(50, generator=own())
    return {
        "in order": lambda: DataLoader(data, batch_size=8),
        "shuffled": lambda: DataLoader(data, batch_size=8, shuffle=True),
        "last one dropped": lambda: DataLoader(data, batch_size=8, shuffle=True, drop_last=True),
        "own generator": lambda: DataLoader(data, batch_size=8, shuffle=True, generator=own()),
        "subset": lambda: DataLoader(Subset(data, range(3, 41, 2)), batch_size=8, shuffle=True),
        "with replacement": lambda: DataLoader(data, batch_size=8, sampler=RandomSampler(data, True, 70)),
        "replacement, own generator": lambda: DataLoader(
            data, batch_size=8, sampler=RandomSampler(data, True, 70, own()), generator=own()
        ),
        "weighted": lambda: DataLoader(data, batch_size=8, sampler=WeightedRandomSampler(weights.tolist(), 60)),
        "random subset": lambda: DataLoader(data, batch_size=8, sampler=SubsetRandomSampler(range(0, 50, 3))),
    }


@pytest.mark.parametrize("name", loaders())
@pytest.mark.parametrize("once", [False, True])
def test_batches_taken_by_index_are_those_of_the_loader(name: str, once: bool, monkeypatch: pytest.MonkeyPatch):
    """Over three passes they are the same types, layouts and bits, and what others draw meanwhile changes nothing."""
    make = loaders()[name]
    assert in_memory(make()) is not None
    taken = []
    for batch in itertools.islice(Stream(make(), 3, once=once), 25):
        taken.append(batch)
        torch.rand(3)
    monkeypatch.setattr(stream, "in_memory", lambda batches: None)
    loaded = list(itertools.islice(Stream(make(), 3, once=once), 25))
    assert len(taken) == len(loaded) == (25 if not once else len(make()))
    for one, other in zip(taken, loaded, strict=True):
        assert type(one) is type(other)
        for a, b in zip(one, other, strict=True):
            assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
            assert torch.equal(a, b)


def test_a_loader_that_may_do_more_is_used_itself():
    """Transforms, collate functions, samplers and classes of the user's, workers and odd layouts keep their loader."""

    class Noisy(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            return tuple(t + 1 for t in super().__getitem__(index))

    class Odd(RandomSampler):
        def __iter__(self):
            return iter(range(0, 50, 2))

    class Mine(DataLoader[Any]):
        pass

    data = rows()
    pictures = torch.rand(50, 2, 4, 4).to(memory_format=torch.channels_last)
    for batches in (
        [(1, 2)],
        DataLoader(Noisy(*data.tensors), batch_size=8),
        DataLoader(Subset(Noisy(*data.tensors), [1, 2]), batch_size=8),
        DataLoader(TensorDataset(pictures), batch_size=8),
        DataLoader(data, batch_size=8, collate_fn=list),
        DataLoader(data, batch_size=8, sampler=Odd(data)),
        DataLoader(data, batch_size=8, num_workers=1),
        DataLoader(data, batch_size=None),
        Mine(data, batch_size=8),
    ):
        assert in_memory(batches) is None
