"""Remedies that change the optimizer, or how it sees the inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from relume.errors import RemedyError
from relume.remedies.record import Edit, Network, by_unit, nothing_fits, wiring_of
from relume.surgery import (
    forget,
)
from relume.wiring import follow

LR_FACTOR = 10.0  # one step of the usual log grid; Bengio 2012 (arXiv:1206.5533), section 3.1
CLIP_NORM = 1.0  # Pascanu, Mikolov & Bengio 2013 (arXiv:1211.5063); 1 is what language models have settled on


def _require_optimizer(network: Network, what: str) -> Optimizer:
    if network.optimizer is None:
        raise RemedyError(
            f"{what} changes the optimizer, and none was given.\nPass the optimizer that trains the model."
        )
    return network.optimizer


def lower_learning_rate(network: Network) -> Edit:
    return _times(_require_optimizer(network, "lower_learning_rate"), 1 / LR_FACTOR)


def raise_learning_rate(network: Network) -> Edit:
    return _times(_require_optimizer(network, "raise_learning_rate"), LR_FACTOR)


def _times(optimizer: Optimizer, factor: float) -> Edit:
    changes = {}
    for number, group in enumerate(optimizer.param_groups):
        before = float(group["lr"])
        for key in ("lr", "initial_lr"):  # a scheduler made for the copy starts from initial_lr
            if key in group:
                group[key] = group[key] * factor
        changes[f"parameter group {number}"] = f"learning rate {before:.3g} became {float(group['lr']):.3g}"
    return Edit(changes=changes, keeps_function=True)


class ClipGradients:
    """Before each optimizer step, scales the gradients, all together, down to a norm of at most `max_norm`."""

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """As a step pre-hook; a closure, which makes the gradients during the step, is wrapped."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self.clip(optimizer)
            return None

        def clipped() -> Any:
            loss = closure()
            self.clip(optimizer)
            return loss

        return (args[0], clipped), {k: v for k, v in kwargs.items() if k != "closure"}

    def clip(self, optimizer: Optimizer) -> None:
        clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], self.max_norm)


def clip_gradients(network: Network) -> Edit:
    optimizer = _require_optimizer(network, "clip_gradients")
    optimizer.register_step_pre_hook(ClipGradients(CLIP_NORM))
    return Edit(
        changes={"optimizer": f"gradients clipped to a norm of {CLIP_NORM:g} before each step"}, keeps_function=True
    )


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
