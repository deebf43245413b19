"""Remedies that change the optimizer, or how it sees the inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from relume.errors import NOTHING_TO_DO, RemedyError
from relume.remedies.record import Edit, Network, by_unit, nothing_fits, require_optimizer, wiring_of
from relume.surgery import forget
from relume.wiring import follow

LR_FACTOR = 10.0  # one step of the usual log grid; Bengio 2012 (arXiv:1206.5533), section 3.1


def rate_times(factor: float) -> Callable[[Network], Edit]:
    """A remedy's function that multiplies the learning rate of every parameter group."""

    def apply(network: Network) -> Edit:
        optimizer = require_optimizer(network, "lower_learning_rate" if factor < 1 else "raise_learning_rate")
        return _times(optimizer, factor)

    return apply


def _times(optimizer: Optimizer, factor: float) -> Edit:
    changes = {}
    for number, group in enumerate(optimizer.param_groups):
        before = float(group["lr"])
        for key in ("lr", "initial_lr"):  # a scheduler made for the copy starts from initial_lr
            if key in group:
                group[key] = group[key] * factor
        changes[f"parameter group {number}"] = f"learning rate {before:.3g} became {float(group['lr']):.3g}"
    return Edit(changes=changes, keeps_function=True)


def no_weight_decay(network: Network) -> Edit:
    optimizer = require_optimizer(network, "no_weight_decay")
    changes = {}
    for number, group in enumerate(optimizer.param_groups):
        if group.get("weight_decay"):
            changes[f"parameter group {number}"] = f"weight decay {float(group['weight_decay']):.3g} became 0"
            group["weight_decay"] = 0.0
    if not changes:
        raise RemedyError(
            f"no_weight_decay {NOTHING_TO_DO}: no parameter group has weight decay.\n"
            "A penalty that is part of the loss is out of its reach."
        )
    return Edit(changes=changes, keeps_function=True)


class Standardise(nn.Module):
    """Subtracts a mean and divides by a standard deviation, one for each feature or channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def standardise_input(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook of a layer that has a `standardise` module: its input goes through that first."""
    return (module.standardise(args[0]), *args[1:])


def scale_inputs(network: Network) -> Edit:
    """The layers that read the inputs see them standardised; a trained layer's weights take up the difference."""
    if not network.batches:
        raise RemedyError(
            "scale_inputs measures mean and standard deviation on sample inputs, and none were given.\n"
            "Pass example_input=..., a batch of real inputs."
        )
    wiring_of(network, "scale_inputs")
    seen: dict[str, list[Tensor]] = {}
    for inputs in network.batches:
        for path, x in follow(network.model, inputs).first_reads:
            seen.setdefault(path, []).append(x)
    changes, left = {}, {}
    for path, values in seen.items():
        found = network.model.get_submodule(path)
        if not isinstance(found, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) or hasattr(found, "standardise"):
            left[path] = "left as it is: not a plain nn.Linear or nn.Conv layer"
            continue
        module: Any = found
        linear = isinstance(found, nn.Linear)
        dims = 0 if linear else len(module.kernel_size)
        shape = (-1, *[1] * dims)
        x = torch.cat([by_unit(v, -1 - dims) for v in values]).double()
        mean, std = x.mean(0), x.std(0, correction=0)
        std = torch.where(std > 1e-6 * (mean.abs() + x.abs().max()), std, 1.0)
        if bool(((mean.abs() < 0.5) & (std > 0.5) & (std < 2)).all()):
            left[path] = "left as it is: every feature it reads has a mean near 0 and a standard deviation near 1"
            continue
        padded = not linear and (isinstance(module.padding, str) or any(module.padding))
        if network.trained and (padded or module.bias is None):
            left[path] = f"left as it is: trained, and it {'pads its input' if padded else 'has no bias'}"
            continue
        if network.trained:
            with torch.no_grad():
                weight = module.weight.double()
                bias = weight.flatten(2).sum(2) @ mean if dims else weight @ mean
                module.bias += bias.to(module.bias)
                module.weight.copy_(weight * std.reshape(1, *shape) if dims else weight * std)
            forget(network.optimizer, module.weight)
        module.standardise = Standardise(mean.reshape(shape).to(module.weight), std.reshape(shape).to(module.weight))
        module.register_forward_pre_hook(standardise_input)
        low, high = float(std.min()), float(std.max())
        changes[path] = f"reads standardised inputs; their standard deviations ran from {low:.3g} to {high:.3g}"
    if not changes:
        raise nothing_fits("scale_inputs", left, "The inputs need no scaling where a layer reads them.")
    return Edit(changes={**changes, **left}, keeps_function=network.trained)
