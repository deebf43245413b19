"""Remedies that put another activation function in the place of what is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from relume.activations import ACTIVATIONS, activation
from relume.errors import SiteError
from relume.grafts import graft, put_everywhere, standing_activations
from relume.nn import module as catalogue_module
from relume.recording import Site
from relume.remedies.record import Edit, Network, Remedy, nothing_fits, producing_weight, snippet, targets_of, wiring_of
from relume.surgery import (
    norms_of,
    plain_layer,
    register,
)
from relume.wiring import Layer, Place

# Xu, Wang, Chen & Li 2015 (arXiv:1505.00853): of the fixed slopes 1/100 and 1/5.5 the second did better on every data
# set they tried. torch's default of .01 hardly differs from a ReLU in a few hundred steps.
LEAKY_SLOPE = 1 / 5.5
PRELU_SLOPE = 0.25  # He, Zhang, Ren & Sun 2015 (arXiv:1502.01852), section 2.1, which also spares slopes weight decay


def _swap(
    network: Network,
    what: str,
    make: Callable[[Sequence[Place]], nn.Module],
    unfit: Callable[[Site, Place], str],
    pick: Callable[[list[int]], list[int]] = list,
    keeps: Callable[[Site], bool] = lambda site: False,
) -> Edit:
    """Put another function in the place of the activations it is meant for."""
    if network.example is None:
        return _swap_modules(network, what, make, unfit, pick, keeps)
    wiring = wiring_of(network, what)
    fit, left = targets_of(network, wiring, unfit)
    targets = pick(fit)
    left |= {wiring.sites[i].name: f"stays {wiring.sites[i].activation}" for i in fit if i not in targets}

    def build(places: Sequence[Place]) -> nn.Module:
        return make(places).to(device=places[0].device, dtype=places[0].dtype)

    grafts, refused = graft(network.model, network.example, targets, build)
    left |= {wiring.sites[i].name: f"left as it is: {reason}" for i, reason in refused.items()}
    if not grafts:
        raise nothing_fits(what, left, "Name the sites to treat with sites=..., or choose another remedy.")
    changes = {}
    for done in grafts:
        sites = [wiring.sites[i] for i in done.calls]
        for site in sites:
            shared = f", one module for {len(sites)} calls" if len(sites) > 1 else ""
            changes[site.name] = f"{site.activation} became {_in_words(done.module)}{shared}"
        new = {f"{done.path}.{name}": p for name, p in done.module.named_parameters()}
        register(network.optimizer, new, producing_weight(network.model, sites[0]), decay=False)
    kept = all(keeps(wiring.sites[i]) for done in grafts for i in done.calls)
    return Edit(changes={**changes, **left}, keeps_function=kept)


def _swap_modules(
    network: Network,
    what: str,
    make: Callable[[Sequence[Place]], nn.Module],
    unfit: Callable[[Site, Place], str],
    pick: Callable[[list[int]], list[int]],
    keeps: Callable[[Site], bool],
) -> Edit:
    """The same where no forward pass can be followed: the activation modules, in the order of registration."""
    found = standing_activations(network.model)
    names = [place.call.site.name for place in found]
    for name in network.sites or ():
        if name not in names:
            raise SiteError(
                f"no activation module named {name!r} in {type(network.model).__name__}.\n"
                f"Found without running it: {', '.join(names) or 'none'}.\n"
                "Pass example_input, so that function calls are found as well."
            )
    fit, changes, kept = [], {}, True
    for index, place in enumerate(found):
        site = place.call.site
        if network.sites is not None and site.name not in network.sites:
            continue
        reason = "the last module" if site.output and network.sites is None else unfit(site, place)
        if reason:
            changes[site.name] = f"left as it is: {reason}"
        else:
            fit.append(index)
    chosen = pick(fit)
    if not chosen:
        raise nothing_fits(
            what, changes, "Pass example_input, so that function calls such as F.relu are found as well."
        )
    for index in chosen:
        place, site = found[index], found[index].call.site
        module = make([place]).to(device=place.device, dtype=place.dtype)
        put_everywhere(network.model, network.model.get_submodule(site.name), module)
        new = {f"{site.name}.{name}": p for name, p in module.named_parameters()}
        register(network.optimizer, new, producing_weight(network.model, site), decay=False)
        changes[site.name] = f"{site.activation} became {_in_words(module)}"
        kept = kept and keeps(site)
    return Edit(changes=changes, keeps_function=kept)


def _in_words(module: nn.Module) -> str:
    if isinstance(module, nn.PReLU):
        slopes = "one slope" if module.num_parameters == 1 else f"{module.num_parameters} slopes"
        return f"PReLU with {slopes}, learnt from {float(module.weight.detach()[0]):.3g}"
    return str(module)


def _unfit_for(name: str) -> Callable[[Site, Place], str]:
    """Replacements are meant for functions with a flat end; the same function again would change nothing."""

    def unfit(site: Site, place: Place) -> str:
        if site.activation == name:
            return f"is {name} already"
        row = ACTIVATIONS[site.activation]
        if not row.can_die and not row.saturates:
            return f"no end of {site.activation} is flat"
        return ""

    return unfit


def swap_to(name: str, **parameters: float) -> Remedy:
    """A remedy that puts one function of the catalogue in the place of every hidden activation.

    Unlike the remedies of the table it questions nothing but the output layer: it serves to compare functions.
    """
    row = activation(name)
    row.arguments(**parameters)

    def apply(network: Network) -> Edit:
        def unfit(site: Site, place: Place) -> str:
            return f"is {row.name} already" if site.activation == row.name and not parameters else ""

        return _swap(network, row.name, lambda places: catalogue_module(row, **parameters), unfit)

    return Remedy(
        name=row.name,
        title=f"{row.name} in every hidden layer",
        family="activation",
        apply=apply,
        when="To compare activation functions.",
        code=snippet(row.name),
        paper=row.paper,
    )


def leaky_relu(network: Network) -> Edit:
    return _swap(network, "leaky_relu", lambda places: nn.LeakyReLU(LEAKY_SLOPE), _unfit_for("leaky_relu"))


def elu(network: Network) -> Edit:
    return _swap(network, "elu", lambda places: nn.ELU(), _unfit_for("elu"))


def softplus(network: Network) -> Edit:
    return _swap(network, "softplus", lambda places: nn.Softplus(), _unfit_for("softplus"))


def prelu(network: Network) -> Edit:
    """On a trained network the slopes start where the function is kept: 0 for a ReLU, its own for a leaky ReLU."""

    def slope(site: Site) -> float:
        if not network.trained or site.activation not in ("relu", "leaky_relu"):
            return PRELU_SLOPE
        return 0.0 if site.activation == "relu" else site.parameters.get("negative_slope", 0.01)

    def make(places: Sequence[Place]) -> nn.Module:
        site, shape = places[0].call.site, places[0].shape
        per_unit = len(places) == 1 and len(shape) > 1 and site.axis % len(shape) == 1
        return nn.PReLU(site.units if per_unit else 1, init=slope(site))

    def keeps(site: Site) -> bool:
        return network.trained and site.activation in ("relu", "leaky_relu")

    return _swap(network, "prelu", make, _unfit_for("prelu"), keeps=keeps)


def mixed_activations(network: Network) -> Edit:
    """Every second hidden site changes: a function with a free end to tanh, a bounded one to leaky ReLU."""

    def pick(targets: list[int]) -> list[int]:
        return targets[1::2]

    def make(places: Sequence[Place]) -> nn.Module:
        return nn.LeakyReLU(LEAKY_SLOPE) if ACTIVATIONS[places[0].call.site.activation].bounded else nn.Tanh()

    return _swap(network, "mixed_activations, for every second hidden site,", make, lambda site, place: "", pick)


def tanh(network: Network) -> Edit:
    """Fresh: tanh for sigmoid. Trained: sigmoid(x) = 1/2 + tanh(x/2)/2, so the weights take up the difference."""

    def unfit(site: Site, place: Place) -> str:
        if site.activation != "sigmoid":
            return f"is {site.activation}, not sigmoid"
        return _why_not_half(network.model, place.layer) if network.trained else ""

    wiring = wiring_of(network, "tanh")
    layers = {place.call.site.name: place.layer for place in wiring.places}
    edit = _swap(network, "tanh", lambda places: nn.Tanh(), unfit, keeps=lambda site: network.trained)
    if not network.trained:
        return edit
    with torch.no_grad():
        for name, words in edit.changes.items():
            layer = layers.get(name)
            if layer is None or words.startswith("left"):
                continue
            norms = norms_of(network.model, layer)
            rows: Any = norms[-1][0] if norms else plain_layer(network.model, layer)
            rows.weight /= 2
            if rows.bias is not None:
                rows.bias /= 2
            for reader in layer.readers:
                module: Any = network.model.get_submodule(reader.path)
                module.bias += (module.weight.double().flatten(1).sum(1) / 2).to(module.bias)
                module.weight /= 2
    return edit


def _why_not_half(model: nn.Module, layer: Layer | None) -> str:
    if layer is None:
        return "the layer before it could not be told"
    if layer.stops or len(layer.sites) != 1:
        return layer.stops[0] if layer.stops else "several activations share its layer"
    if any(not norm.affine for norm, _ in norms_of(model, layer)):
        return "the normalisation before it has no scale"
    for reader in layer.readers:
        module: Any = model.get_submodule(reader.path)
        if module.bias is None or reader.padded:
            return f"{reader.path} {'pads its input with zeros' if reader.padded else 'has no bias'}"
    return ""
