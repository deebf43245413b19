"""Residual connections around the layers of a network that has none."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from relume.grafts import function_module, graft
from relume.recording import Site
from relume.remedies.record import Edit, Network, nothing_fits, targets_of, wiring_of
from relume.wiring import Place


class Skip(nn.Module):
    """The activation behind a layer, whose result is scaled and added to what the layer read."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.scale = 1.0
        self._read: Tensor | None = None

    def remember(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook of the layer."""
        self._read = args[0]

    def forward(self, z: Tensor) -> Tensor:
        result = self.function(z)
        read, self._read = self._read, None
        return result if read is None else read + self.scale * result

    def extra_repr(self) -> str:
        return f"scale={self.scale:.3g}"


def residual(network: Network) -> Edit:
    """Each hidden layer that gives as many values as it reads adds 1/sqrt(depth) of its result to what it read."""
    model = network.model
    wiring = wiring_of(network, "residual")

    def unfit(site: Site, place: Place) -> str:
        layer = place.layer
        if layer is None or not layer.path:
            return "the layer before it could not be told"
        if len(layer.sites) > 1 or layer.steps["add"] or layer.steps["add_"] or layer.steps["__add__"]:
            return "its layer has several activations, or is added to something already"
        return "" if _keeps_shape(model.get_submodule(layer.path)) else f"{layer.path} changes the number of values"

    targets, left = targets_of(network, wiring, unfit)
    grafts, refused = graft(
        model, network.example, targets, lambda places: Skip(function_module(places[0])), separate=True
    )
    left |= {wiring.sites[i].name: f"left as it is: {reason}" for i, reason in refused.items()}
    if not grafts:
        raise nothing_fits("residual", left, "It wants hidden layers that are as wide as what they read.")
    changes = {}
    for done in grafts:
        skip: Any = done.module
        layer = wiring.places[done.calls[0]].layer
        assert layer is not None  # `unfit` has seen to it
        skip.scale = 1 / math.sqrt(len(grafts))
        model.get_submodule(layer.path).register_forward_pre_hook(skip.remember)
        changes[wiring.sites[done.calls[0]].name] = f"{skip.scale:.3g} of it is added to what {layer.path} reads"
    return Edit(changes={**changes, **left})


def _keeps_shape(module: Any) -> bool:
    if isinstance(module, nn.Linear):
        return module.in_features == module.out_features
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) or module.in_channels != module.out_channels:
        return False
    if set(module.stride) != {1} or module.padding == "same":
        return set(module.stride) == {1}
    sides = zip(module.kernel_size, module.dilation, module.padding, strict=True)
    return all(2 * padding == dilation * (kernel - 1) for kernel, dilation, padding in sides)
