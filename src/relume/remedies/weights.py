"""Remedies that set weights and biases anew before training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from relume.errors import RemedyError
from relume.recording import Site
from relume.remedies.record import Edit, Network, fans_of, gain_of, nothing_fits, site_of, targets_of, wiring_of
from relume.surgery import (
    forget,
    plain_layer,
)
from relume.wiring import outputs

LSUV_TOLERANCE, LSUV_TRIES = 0.1, 10  # Mishkin & Matas 2016 (arXiv:1511.06422), algorithm 1


def _redrawn(network: Network, what: str, draw: Callable[[Any, Site | None, Site | None], str]) -> Edit:
    """Draw the weights of every linear and convolutional layer anew, and set biases to zero."""
    if network.trained:
        raise RemedyError(
            f"{what} draws all weights anew, and this network is partly trained: what it learned would be lost.\n"
            "Use recycle, which draws only dead units anew, or train from the start: treat(..., trained=False)."
        )
    wiring = wiring_of(network, what)
    changes: dict[str, str] = {}
    embedded = {id(m.weight) for m in network.model.modules() if isinstance(m, nn.Embedding)}
    for layer in wiring.layers:
        if layer.path in changes:
            continue
        site = site_of(wiring, layer)
        if network.sites is not None and (site is None or site.name not in network.sites):
            continue
        if not layer.path or not layer.weight:
            changes[layer.weight or "a computed weight"] = "left as it is: not the weight of a plain layer"
            continue
        module = plain_layer(network.model, layer)
        if not module.weight.requires_grad:
            changes[layer.path] = "left as it is: frozen"
        elif id(module.weight) in embedded:
            changes[layer.path] = "left as it is: its weight is an embedding's"
        else:
            before = site_of(wiring, layer.source) if layer.source is not None else None
            with torch.no_grad():
                changes[layer.path] = draw(module, site, before)
            for p in (module.weight, module.bias):
                if p is not None:
                    forget(network.optimizer, p)
    if all(words.startswith("left") for words in changes.values()):
        raise nothing_fits(what, changes, "It draws the weights of nn.Linear and nn.Conv layers.")
    return Edit(changes=changes)


def he_init(network: Network) -> Edit:
    def draw(module: Any, site: Site | None, before: Site | None) -> str:
        gain = gain_of(site)
        std = gain / math.sqrt(fans_of(module.weight)[0])
        module.weight.normal_(0, std)
        if module.bias is not None:
            module.bias.zero_()
        return f"weights drawn with std {std:.3g} (gain {gain:.3g} for {site.activation if site else 'no activation'})"

    return _redrawn(network, "he_init", draw)


def xavier_init(network: Network) -> Edit:
    """Glorot & Bengio's variance 2 / (fan_in + fan_out). For a sigmoid, 1/2 + tanh(x/2)/2, twice that on either side
    of it, and a bias that centres its outputs, make it the tanh that the rule was derived for."""

    def draw(module: Any, site: Site | None, before: Site | None) -> str:
        own, fed = (s is not None and s.activation == "sigmoid" for s in (site, before))
        std = math.sqrt(2 / sum(fans_of(module.weight))) * (2 if own else 1) * (2 if fed else 1)
        module.weight.normal_(0, std)
        if module.bias is not None:
            module.bias.copy_(-module.weight.flatten(1).sum(1) / 2) if fed else module.bias.zero_()
        centred = ", biases centre the sigmoids before" if fed and module.bias is not None else ""
        return f"weights drawn with std {std:.3g}{centred}"

    return _redrawn(network, "xavier_init", draw)


def lsuv_init(network: Network) -> Edit:
    """Orthonormal weights, then layer by layer divided by the standard deviation of the layer's output."""
    if not network.batches:
        raise RemedyError(
            "lsuv_init measures the output of each layer on sample inputs, and none were given.\n"
            "Pass example_input=..., a batch of real inputs."
        )

    def draw(module: Any, site: Site | None, before: Site | None) -> str:
        nn.init.orthogonal_(module.weight)
        if module.bias is not None:
            module.bias.zero_()
        return "orthonormal weights"

    edit = _redrawn(network, "lsuv_init", draw)
    changes = dict(edit.changes)
    for path, words in edit.changes.items():
        if words.startswith("left"):
            continue
        module: Any = network.model.get_submodule(path)
        std, tries = _output_std(network, module), 0
        while tries < LSUV_TRIES and abs(std - 1) > LSUV_TOLERANCE and 0 < std < math.inf:
            with torch.no_grad():
                module.weight /= std
            std, tries = _output_std(network, module), tries + 1
        changes[path] = f"orthonormal weights, scaled to an output of standard deviation {std:.3g}"
    return Edit(changes=changes)


def _output_std(network: Network, module: nn.Module) -> float:
    seen: list[float] = []
    handle = module.register_forward_hook(lambda m, args, out: seen.append(float(out.detach().float().std())))
    try:
        outputs(network.model, network.batches[:1], training=False)
    finally:
        handle.remove()
    return seen[0]


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
