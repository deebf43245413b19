"""What is true of a run, measured without relume: how far it gets, which units are closed, what gradients do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.illness.cases import fed, training, well
from benchmarks.illness.spec import Spec
from benchmarks.illness.tasks import floor
from relume.activations import activations
from relume.errors import DataError
from relume.nn import resolve
from relume.training import Stream, build, score, train

LEARNT = 0.5  # of the way from the best constant answer to the best there is: who gets there is well
BEHIND = 0.1  # of the same way: who ends so far behind the plain run, if that is well, is ill
CLOSED = 0.5  # of a hidden layer closed on every sample is ill, unless the network does as well as the plain one


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """One run, trained to its end without a watch."""

    score: float | None  # None: diverged
    floor: float
    dead: tuple[float, ...]  # share of units whose output is 0 for every training sample, by hidden layer
    gradients: tuple[float, ...]  # norm of the loss's gradient by layer's weights, at the end
    well: bool
    ill: bool


def measure(spec: Spec) -> Truth:
    """Train it, and for a planted run also the run it was made from."""
    score, model = _trained(spec)
    data = fed(spec)
    base = floor(spec.loss, data.y_held)
    dead, gradients = closed_shares(model, data.x), _gradients(spec, model)
    way = data.best - base

    def learnt(value: float | None) -> bool:
        return value is not None and value - base > LEARNT * way

    if not spec.planted:
        return Truth(score=score, floor=base, dead=dead, gradients=gradients, well=learnt(score), ill=False)
    twin, _ = _trained(untouched(spec))
    comparable = twin is not None and learnt(twin)
    behind = comparable and (score is None or (twin is not None and twin - score > BEHIND * way))
    closed = spec.activation == "relu" and max(dead, default=0.0) >= CLOSED
    ill = behind or (closed and not comparable)
    return Truth(score=score, floor=base, dead=dead, gradients=gradients, well=False, ill=bool(ill))


def untouched(spec: Spec) -> Spec:
    """The same task, loss, optimizer and steps with a plain network, and nothing planted."""
    base = well(spec.seed)
    return replace(
        base, task=spec.task, loss=spec.loss, activation="relu", kind="cnn" if spec.kind == "cnn" else "mlp",
        depth=min(base.depth, 3), width=max(base.width, 32), dropout=0.0, init="he", steps=spec.steps, schedule="",
        clip=0.0, weight_decay=0.0, target_scale=1.0, target_shift=0.0, fitted_output=False,
        smoothing=base.smoothing if spec.loss == "cross_entropy" else 0.0,
    )  # fmt: skip


def _trained(spec: Spec) -> tuple[float | None, nn.Module]:
    """The very run that `relume.diagnose` watches with the same seed, and its score; None where it diverges."""
    run = training(spec)
    model, optimizer = build(run, spec.seed)
    try:
        train(run, model, optimizer, Stream(run.batches, spec.seed), spec.steps)
    except DataError:  # a NaN in the data: the weights are NaN by now
        return None, model
    return score(run, model), model


def closed_shares(model: nn.Module, x: Tensor) -> tuple[float, ...]:
    """Share of each hidden layer's units whose output is 0 for every one of these samples, in eval mode."""
    functions = tuple({resolve(row.module) for row in activations()} - {nn.Identity})
    shares: list[float] = []

    def look(module: nn.Module, args: Any, output: Tensor) -> None:
        axis = 1 if isinstance(output, Tensor) and output.dim() == 4 else -1  # channels of images, else features
        units = output.detach().transpose(0, axis).flatten(1)
        shares.append(float((units == 0).all(1).float().mean()))

    hooks = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, functions)]
    training = model.training
    with torch.no_grad():
        model.eval()(x)
    model.train(training)
    for hook in hooks:
        hook.remove()
    return tuple(shares)


def _gradients(spec: Spec, model: nn.Module) -> tuple[float, ...]:
    data = fed(spec)
    model.zero_grad()
    training(spec).loss(model(data.x), data.y).backward()
    return tuple(
        float(m.weight.grad.norm()) if m.weight.grad is not None else 0.0
        for m in model.modules()
        if isinstance(m, (nn.Linear, nn.Conv2d))
    )
