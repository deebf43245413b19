"""A run as a user would hand it over: data in the units that were planted, optimizer, schedule, clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.illness.networks import network
from benchmarks.illness.spec import Spec
from benchmarks.illness.tasks import HEADS, Task, score, task
from relume import Training

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "momentum": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


class Batches:
    """Batches of a task in memory, in a new order each time, drawn from torch's global generator."""

    def __init__(self, x: Tensor, y: Tensor, size: int, corrupt_at: int = -1, corrupt: float = 1.0) -> None:
        self.x, self.y, self.size = x, y, min(size or len(x), len(x))
        self.corrupt_at, self.corrupt, self.drawn = corrupt_at, corrupt, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.randperm(len(self.x)).split(self.size):
            if len(index) == self.size:
                x = self.x[index]
                yield x * self.corrupt if self.drawn == self.corrupt_at else x, self.y[index]
                self.drawn += 1


def fed(spec: Spec) -> Task:
    """The task as this run sees it: its inputs and targets in the units that were planted."""
    data = task(spec.task)
    scale = torch.full((data.features,), spec.input_scale)
    scale[data.x.std(0).argmax()] *= spec.feature_scale  # not one that is constant

    def seen(x: Tensor) -> Tensor:
        return x * scale + spec.input_shift

    seen_as = replace(data, x=seen(data.x), x_held=seen(data.x_held))
    if spec.target_scale == 1 and spec.target_shift == 0:
        return seen_as
    return replace(
        seen_as,
        y=data.y * spec.target_scale + spec.target_shift,
        y_held=data.y_held * spec.target_scale + spec.target_shift,
    )


@dataclass
class Pacing:
    """Before each of the optimizer's steps: the learning rate of that step, and clipped gradients."""

    spec: Spec
    done: int = 0

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:  # a factor of the rate that the group came with, whoever set that
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * pace(self.spec, self.done)
        if self.spec.clip:
            nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], self.spec.clip)
        self.done += 1


def pace(spec: Spec, step: int) -> float:
    """Factor of the learning rate at that step."""
    factor = spec.rate_ramp ** (step / spec.steps)
    if step >= spec.planted_at:
        factor *= spec.rate_factor
    if spec.schedule == "cosine":
        factor *= 0.5 * (1 + math.cos(math.pi * min(1.0, step / spec.steps)))
    elif spec.schedule == "step" and step >= spec.steps // 2:
        factor *= 0.1
    return factor


def _optimizer(spec: Spec, parameters: Any) -> Optimizer:
    parameters = list(parameters)
    settings: dict[str, float] = {"lr": spec.learning_rate, "weight_decay": spec.weight_decay}
    if spec.optimizer == "momentum":
        settings["momentum"] = spec.momentum
    optimizer = OPTIMIZERS[spec.optimizer](parameters[-1:] if spec.trained == "output_bias" else parameters, **settings)
    if spec.schedule or spec.clip or spec.rate_factor != 1 or spec.rate_ramp != 1:
        optimizer.register_step_pre_hook(Pacing(spec))
    return optimizer


def training(spec: Spec) -> Training:
    """The run as a user would hand it over."""
    data, loss = fed(spec), HEADS[spec.loss][1]
    if spec.smoothing:
        loss = nn.CrossEntropyLoss(label_smoothing=spec.smoothing)

    def held_out_score(model: nn.Module) -> float:
        return score(spec.loss, model(data.x_held), data.y_held)

    return Training(
        model=lambda: network(spec, data),
        optimizer=lambda parameters: _optimizer(spec, parameters),
        loss=loss,
        batches=Batches(
            data.x, data.y, spec.batch,
            corrupt_at=-1 if spec.corrupt is None else spec.planted_at, corrupt=spec.corrupt or 1.0,
        ),
        score=held_out_score,
        steps=spec.steps,
    )  # fmt: skip
