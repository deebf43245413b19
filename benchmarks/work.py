"""What the benchmarks of watching train. Torch alone is needed here: other tools train the same, without relume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

SEED = 0
SAMPLES = 2048
WARM_UP = 20  # steps of a copy that is thrown away, before any that count


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One kind of training."""

    name: str
    model: Callable[[], nn.Module]
    inputs: tuple[int, ...]  # of one sample
    batch: int
    classes: int = 10
    optimizer: Callable[[Any], torch.optim.Optimizer] = field(default=lambda p: torch.optim.Adam(p, lr=1e-3))
    steps: int = 2000


def mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


def cnn() -> nn.Module:
    layers: list[nn.Module] = []
    for fan_in, fan_out in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if fan_in > 3 else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Transformer(nn.Module):
    """Two blocks of width 64 on 32 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, activation="gelu", batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def deep() -> nn.Module:
    return mlp(64, *[64] * 49, 10)


WORKS = (
    Work(name="tiny MLP 64-64-64-10, batch 32", model=lambda: mlp(64, 64, 64, 10), inputs=(64,), batch=32),
    Work(name="MLP 784-512x4-10, batch 128", model=lambda: mlp(784, *[512] * 4, 10), inputs=(784,), batch=128),
    Work(name="CNN + BatchNorm 3-32-64-64, 32x32, batch 64", model=cnn, inputs=(3, 32, 32), batch=64, steps=300),
    Work(name="2-block GELU transformer, batch 32", model=Transformer, inputs=(32, 64), batch=32),
    Work(name="50-layer MLP, width 64, batch 64", model=deep, inputs=(64,), batch=64),
)


def named(name: str) -> Work:
    """The work of that name."""
    return next(work for work in WORKS if work.name == name)


class Copy:
    """One copy of a training: its network, its optimizer and its batches, which are the same for every copy."""

    def __init__(self, work: Work) -> None:
        torch.manual_seed(SEED)
        self.model = work.model()
        self.optimizer = work.optimizer(self.model.parameters())
        rng = torch.Generator().manual_seed(SEED)
        self._x = torch.randn(SAMPLES, *work.inputs, generator=rng)
        self._y = torch.randint(0, work.classes, (SAMPLES,), generator=rng)
        self._order = torch.Generator().manual_seed(SEED)
        self._size = work.batch

    def batch(self) -> tuple[Tensor, Tensor]:
        """The next inputs and classes."""
        chosen = torch.randint(0, len(self._x), (self._size,), generator=self._order)
        return self._x[chosen], self._y[chosen]
