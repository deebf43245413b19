"""The processes that train one network together under DDP, so that there is one report: dead is what is so on each.

All ranks have the same weights and see different samples. Which units stand still is the same everywhere, since the
gradients are shared; which are silent is not. So each reading is put together: samples are added up, and a unit is
silent if it is so on every rank. All ranks must read the same steps; the first one decides which.

Where a rank is missing, one that crashed or one that does not watch, the others wait for `PATIENCE` and then go on
unwatched.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from relume.recording import Reading, SiteReading

PATIENCE = timedelta(seconds=60)  # for a rank that does not come: longer than a step, shorter than a user's patience


class Ranks:
    """What the ranks of one training put together, over a group of its own, on the CPU."""

    def __init__(self) -> None:
        self.first = dist.get_rank() == 0
        self._group: Any = dist.new_group(backend="gloo", timeout=PATIENCE)

    def leave(self) -> None:
        """End the group: one that is left to the end of the process may still have threads then, which abort it."""
        dist.destroy_process_group(self._group)

    def agreed(self, *numbers: int) -> tuple[int, ...]:
        """The numbers of the first rank."""
        said = torch.tensor(numbers, dtype=torch.int64)
        dist.broadcast(said, src=0, group=self._group)
        return tuple(said.tolist())

    def merged(self, readings: Sequence[Reading]) -> list[Reading] | None:
        """The ranks' readings of the same steps, put together; None where they did not read the same."""
        shape = [(name, len(read.silent)) for r in readings for name, read in sorted(r.sites.items())]
        code = zlib.crc32(repr(shape).encode())
        codes = torch.tensor([code, -code], dtype=torch.int64)
        dist.all_reduce(codes, op=dist.ReduceOp.MAX, group=self._group)
        if codes[0] != -codes[1]:
            return None
        parts = [part for r in readings for part in _columns(r)]
        if not parts:
            return list(readings)
        together = torch.cat(parts)
        dist.all_reduce(together, op=dist.ReduceOp.SUM, group=self._group)
        sums = iter(together.split([len(part) for part in parts]))
        return [_put_together(r, sums) for r in readings]


class Alone(nn.Module):
    """A network under DDP with the same parameters by the same names, run by this process alone.

    A pass through DDP waits for the other ranks; a report, with its proofs and replays, may be asked of one.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network under DDP gives."""
        return self.module(*args, **kwargs)


def alone(model: nn.Module) -> nn.Module:
    """The model without what torch.compile and DDP put around it, for passes that are not the loop's."""
    model = getattr(model, "_orig_mod", model)
    return Alone(model.module) if isinstance(model, DistributedDataParallel) else model


def ranks_of(model: nn.Module) -> Ranks | None:
    """The ranks that train this model together; None where one process does it alone."""
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, DistributedDataParallel) and dist.get_world_size() > 1:
        return Ranks()
    return None


def _columns(reading: Reading) -> list[Tensor]:
    """What is added up: of each site samples and bad values, then three numbers of each unit; and the batch."""
    found = [torch.tensor([float(reading.input.samples if reading.input is not None else 0)], dtype=torch.float64)]
    for _, read in sorted(reading.sites.items()):
        found.append(torch.tensor([read.samples, read.non_finite], dtype=torch.float64))
        values = read.idle_samples
        idle = torch.zeros(len(read.silent)) if values is None else torch.from_numpy(values)
        found += [
            torch.from_numpy(~read.silent).double(),
            torch.from_numpy(read.flat_share).double() * read.samples,
            idle.double(),
        ]
    return found


def _put_together(reading: Reading, sums: Iterator[Tensor]) -> Reading:
    batch = int(next(sums)[0])
    sites: dict[str, SiteReading] = dict(reading.sites)
    for name, read in sorted(reading.sites.items()):
        samples, bad = next(sums).tolist()
        firing, flat, idle = (next(sums).numpy() for _ in range(3))
        sites[name] = replace(
            read,
            samples=int(samples),
            non_finite=int(bad),
            silent=firing == 0,
            flat_share=(flat / max(samples, 1.0)).astype(np.float32),
            idle_samples=None if read.idle_samples is None else idle.astype(np.float32),
        )
    fed = reading.input
    return replace(reading, sites=sites, input=None if fed is None else replace(fed, samples=batch))
