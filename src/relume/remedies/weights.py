"""Remedies that set weights and biases anew before training."""

from __future__ import annotations

import torch

from relume.errors import RemedyError
from relume.initialise import Draw, draw_he, draw_orthonormal, draw_xavier_as_tanh, redraw, scale_to_unit_variance
from relume.remedies.record import Edit, Network, nothing_fits, targets_of, wiring_of
from relume.surgery import forget


def _redrawn(network: Network, what: str, draw: Draw) -> dict[str, str]:
    """Draw the weights of every linear and convolutional layer anew; the optimizer forgets what it knew of them."""
    if network.trained:
        raise RemedyError(
            f"{what} draws all weights anew, and this network is partly trained: what it learned would be lost.\n"
            "Use recycle, which draws only dead units anew, or train from the start: treat(..., trained=False)."
        )
    changes = redraw(network.model, wiring_of(network, what), draw, network.sites)
    drawn = [path for path, words in changes.items() if not words.startswith("left")]
    if not drawn:
        raise nothing_fits(what, changes, "It draws the weights of nn.Linear and nn.Conv layers.")
    for path in drawn:
        for parameter in network.model.get_submodule(path).parameters(recurse=False):
            forget(network.optimizer, parameter)
    return changes


def he_init(network: Network) -> Edit:
    return Edit(changes=_redrawn(network, "he_init", draw_he))


def xavier_init(network: Network) -> Edit:
    return Edit(changes=_redrawn(network, "xavier_init", draw_xavier_as_tanh))


def lsuv_init(network: Network) -> Edit:
    """Orthonormal weights, then layer by layer divided by the standard deviation of the layer's output."""
    if not network.batches:
        raise RemedyError(
            "lsuv_init measures the output of each layer on sample inputs, and none were given.\n"
            "Pass example_input=..., a batch of real inputs."
        )
    changes = _redrawn(network, "lsuv_init", draw_orthonormal)
    return Edit(changes=scale_to_unit_variance(network.model, network.batches[0], changes))


def reset_bias(network: Network) -> Edit:
    """Biases of the layers before hidden activations become zero, as do the shifts of normalisations among them."""
    wiring = wiring_of(network, "reset_bias")
    targets, left = targets_of(network, wiring, lambda site, place: "" if site.bias else "its layer has no bias")
    parameters = dict(network.model.named_parameters(remove_duplicate=False))
    changes = {}
    for index in targets:
        site = wiring.sites[index]
        bias = parameters[site.bias]
        if not bias.requires_grad:
            left[site.name] = "left as it is: its bias is frozen"
        elif not bool(bias.detach().any()):
            left[site.name] = "left as it is: its bias is zero already"
        else:
            low, high = float(bias.detach().min()), float(bias.detach().max())
            with torch.no_grad():
                bias.zero_()
            forget(network.optimizer, bias)
            changes[site.name] = f"{site.bias} set to zero; it ran from {low:.3g} to {high:.3g}"
    if not changes:
        raise nothing_fits("reset_bias", left, "No bias stands before a hidden activation.")
    return Edit(changes={**changes, **left})
