"""The inputs that pruning looks at: those given, and held-out ones drawn between and around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relume.checkup import CHECKED_SAMPLES
from relume.errors import DataError
from relume.nested import tensors
from relume.training import batch_size, device_of, to_device


def inputs_of(model: nn.Module, batches: Iterable[Any]) -> tuple[Any, ...]:
    """The inputs of (input, target) pairs, or the batches themselves, on the model's device; enough of them."""
    found, samples = [], 0
    for batch in batches:
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        found.append(to_device(batch[0] if pair else batch, device_of(model)))
        samples += batch_size(found[-1])
        if samples >= CHECKED_SAMPLES:
            break
    if not found:
        raise DataError("batches yield nothing: to prune, relume needs at least one batch of inputs.")
    return tuple(found)


def drawn_between(batch: Any, seed: int) -> Any:
    """Held-out inputs: each a random point between two samples of the batch; what is not a float stays as it is."""

    def mix(x: Tensor) -> Tensor:
        if not x.is_floating_point() or not x.dim():
            return x
        generator = torch.Generator().manual_seed(seed)  # the same partner and share for all that a sample is made of
        other = torch.randperm(len(x), generator=generator).to(x.device)
        share = torch.rand(len(x), generator=generator).to(x).reshape(-1, *[1] * (x.dim() - 1))
        return share * x + (1 - share) * x[other]

    return _mapped(batch, mix)


def drawn_within(batches: Sequence[Any]) -> tuple[Any, ...]:
    """A batch of noise, each value uniform between the least and the greatest seen there; none for integer inputs."""
    parts = list(zip(*(list(tensors(batch)) for batch in batches), strict=True))
    if not parts or not any(part[0].is_floating_point() for part in parts):
        return ()
    if any(x.dim() == 0 or x.shape[1:] != part[0].shape[1:] for part in parts for x in part):
        return ()
    edges = iter([(torch.cat(part).amin(0), torch.cat(part).amax(0)) for part in parts])
    generator = torch.Generator().manual_seed(len(batches))

    def draw(x: Tensor) -> Tensor:
        low, high = next(edges)
        if not x.is_floating_point():
            return x
        return low + (high - low) * torch.rand(x.shape, generator=generator).to(x)

    return (_mapped(batches[0], draw),)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(part, change) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_mapped(part, change) for part in value)
    return value
