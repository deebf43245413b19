"""What `relume.watch` costs a training step, measured as single steps that take turns with those of an unwatched twin.

    python benchmarks/watch.py             # about six minutes; prints a table, writes results/watch.json
    python benchmarks/watch.py --quick     # to see that it runs; nothing is written
    python benchmarks/watch.py --peers     # beside other tools, each in an environment of its own

Three copies of one training take turns in the order A B C C B A: two unwatched, whose ratio is the noise of the
measurement, and one watched. The processor's time of each step is summed up over the run, the watch's start included. A
second figure needs no twin: the time that steps which were read took beyond what the others did, over the time of all.
"""

from __future__ import annotations

import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relume
from relume import watch
from benchmarks.machine import about

RESULTS = Path(__file__).parent / "results" / "watch.json"
SEED = 0


# What is trained ------------------------------------------------------------------------------------------------------


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
    for fan_in, fan_out in zip(widths, widths[1:], strict=False):
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
    Work(name="CNN + BatchNorm 3-32-64-64, 32x32, batch 64", model=cnn, inputs=(3, 32, 32), batch=64, steps=400),
    Work(name="2-block GELU transformer, batch 32", model=Transformer, inputs=(32, 64), batch=32),
    Work(name="50-layer MLP, width 64, batch 64", model=deep, inputs=(64,), batch=64),
)


class Run:
    """One copy of a training; `step` gives the processor's seconds that it took."""

    def __init__(self, work: Work, watched: bool) -> None:
        torch.manual_seed(SEED)
        self.model = work.model()
        self.optimizer = work.optimizer(self.model.parameters())
        rng = torch.Generator().manual_seed(SEED)
        self.x = torch.randn(2048, *work.inputs, generator=rng)
        self.y = torch.randint(0, work.classes, (2048,), generator=rng)
        self.order = torch.Generator().manual_seed(SEED)
        self.batch = work.batch
        self.seconds: list[float] = []
        started = time.process_time()
        self.watch = watch(self.model, self.optimizer) if watched else None
        self.start = time.process_time() - started
        self.was_read: list[bool] = []

    def step(self) -> None:
        chosen = torch.randint(0, len(self.x), (self.batch,), generator=self.order)
        x, y = self.x[chosen], self.y[chosen]
        read = self.watch._armed if self.watch is not None else False
        started = time.process_time()
        loss = F.cross_entropy(self.model(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.watch is not None:
            self.watch.step(loss)
        self.seconds.append(time.process_time() - started)
        self.was_read.append(read)
