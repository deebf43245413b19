"""Remedies that change what stands between the last layer and the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relume.errors import NOTHING_TO_DO, RemedyError
from relume.grafts import graft
from relume.remedies.record import Edit, Network, nothing_fits, wiring_of
from relume.wiring import outputs


def in_target_units(module: Any, args: Any, output: Tensor) -> Tensor:
    """Forward hook of a network that learns standardised targets: gives its outputs back in the targets' units.

    The gradient that comes back is divided by the variance. For the squared error that makes it the very gradient of
    standardised targets, so that the training's own learning rate fits, whatever the units.
    """
    result = module.target_mean + module.target_std * output
    if result.requires_grad:
        variance = module.target_std.square()
        result.register_hook(lambda gradient: gradient / variance)
    return result


def scale_targets(network: Network) -> Edit:
    """The network learns standardised targets, and answers in the targets' own units."""
    model: Any = network.model
    if not network.targets:
        raise RemedyError(
            "scale_targets measures mean and standard deviation of the targets, and none were given.\n"
            "Pass targets=[...], the targets of some batches."
        )
    if network.trained:
        raise RemedyError(
            "scale_targets changes every output, and this network is partly trained: what it learned would be lost.\n"
            "Train from the start: treat(..., trained=False)."
        )
    if hasattr(model, "target_std"):
        raise RemedyError("scale_targets was applied before.\nThe network answers in the targets' units already.")
    shapes = {tuple(output.shape[1:]) for output in outputs(model, network.batches or (network.example,))}
    numbers = all(isinstance(y, Tensor) and y.is_floating_point() and y.dim() for y in network.targets)
    if not numbers or {tuple(y.shape[1:]) for y in network.targets} != shapes:
        raise RemedyError(
            "scale_targets is for targets that are numbers, one for each output, and these are not.\n"
            f"The network's outputs have shape {(..., *next(iter(shapes), ()))} for each sample."
        )
    y = torch.cat([target.detach().double() for target in network.targets])
    mean, std = y.mean(0), y.std(0, correction=0)
    std = torch.where(std > 1e-6 * (mean.abs() + y.abs().amax(0)), std, 1.0)
    if bool(((mean.abs() < 0.5) & (std > 0.5) & (std < 2)).all()):
        raise RemedyError(
            f"scale_targets {NOTHING_TO_DO}: every target has a mean near 0 and a standard deviation near 1.\n"
            "Targets in units of their own are what it is for."
        )
    like = next(model.parameters())
    # buffers of the network itself: a further module in an nn.Sequential would be run as one of its layers
    model.register_buffer("target_mean", mean.to(like))
    model.register_buffer("target_std", std.to(like))
    model.register_forward_hook(in_target_units)
    low, high = float(std.min()), float(std.max())
    spread = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    return Edit(changes={"output": f"learnt in standard deviations of the targets ({spread}), given in their units"})


def linear_output(network: Network) -> Edit:
    """The activation on the network's own output goes; what the loss needs beside it stays with the loss."""
    wiring = wiring_of(network, "linear_output")
    targets = [
        index
        for index, site in enumerate(wiring.sites)
        if (site.output if network.sites is None else site.name in network.sites)
    ]
    if not targets:
        raise nothing_fits("linear_output", {}, "No activation stands on the network's output.")

    def nothing(places: Sequence[Any]) -> nn.Module:
        return nn.Identity()

    grafts, refused = graft(network.model, network.example, targets, nothing)
    left = {wiring.sites[i].name: f"left as it is: {reason}" for i, reason in refused.items()}
    if not grafts:
        raise nothing_fits("linear_output", left, "Remove the activation in the code of the network.")
    changes = {wiring.sites[i].name: f"{wiring.sites[i].activation} removed" for done in grafts for i in done.calls}
    return Edit(changes={**changes, **left})
