"""Remedies that put a normalisation before the activation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relume.errors import RemedyError
from relume.grafts import graft
from relume.recording import Site
from relume.remedies.record import Edit, Network, by_unit, nothing_fits, producing_weight, targets_of, wiring_of
from relume.remedies.units import dead_units
from relume.surgery import (
    constants,
    cut_outgoing,
    register,
    why_not_constant,
    why_not_narrow,
)
from relume.wiring import Place, follow


def batch_norm(network: Network) -> Edit:
    """Between layer and activation. A trained network keeps its function in eval mode: gamma and beta undo the norm."""
    what, kinds = "batch_norm", {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
    if network.trained and not network.batches:
        raise RemedyError(
            "batch_norm on a trained network needs sample inputs, to set its statistics so that the function is kept.\n"
            "Pass example_input=..., a thousand samples or more."
        )

    def unfit(site: Site, place: Place) -> str:
        if site.normalised:
            return "already normalised"
        dims = len(place.shape)
        if dims < 2 or site.axis % dims != 1 or max(1, dims - 2) not in kinds:
            where = f"axis {site.axis % max(1, dims)} of {dims}"
            return f"its units are on {where}, where BatchNorm expects axis 1; use layer_norm"
        return ""

    def make(places: Sequence[Place]) -> nn.Module:
        return kinds[max(1, len(places[0].shape) - 2)](places[0].call.site.units)

    wiring = wiring_of(network, what)
    targets, _ = targets_of(network, wiring, unfit)
    moments = _pre_activations(network, targets) if network.trained else {}
    dead = dead_units(network, wiring) if network.trained else {}
    edit, grafts = _insert(network, what, make, unfit)
    if not network.trained:
        return edit
    changes, keeps = dict(edit.changes), True
    for index, norm in grafts.items():
        assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, var, count = moments[index]
        with torch.no_grad():
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)
            norm.weight.copy_((var + norm.eps).sqrt())
            norm.bias.copy_(mean)
        site = wiring.sites[index]
        changes[site.name] += f", statistics of {count} samples"
        units, layer = dead.get(site.name, ()), wiring.places[index].layer
        if units and layer is not None:
            gone = torch.tensor(units, device=norm.weight.device)
            reason = why_not_narrow(network.model, layer)
            ranges = constants(network.model, layer, network.batches) if not reason else []
            if not reason:
                stay = why_not_constant(network.model, layer, gone, ranges)
                gone, reason = gone[[u not in stay for u in units]], next(iter(stay.values()), "")
            if reason:
                stuck = len(units) - (len(gone) if ranges else 0)
                changes[site.name] += f"; {stuck} dead units stay as they are: {reason}"
            if not ranges or not len(gone):
                continue
            cut_outgoing(network.model, network.optimizer, layer, gone, ranges)
            with torch.no_grad():
                norm.weight[gone], norm.bias[gone] = 1.0, 0.0
            changes[site.name] += f"; {len(gone)} dead units start afresh, their outgoing weights at zero"
    return Edit(changes=changes, keeps_function=keeps)


def layer_norm(network: Network) -> Edit:
    def unfit(site: Site, place: Place) -> str:
        dims = len(place.shape)
        if site.normalised:
            return "already normalised"
        if dims < 2 or site.axis % dims not in (1, dims - 1):
            return f"its units are on axis {site.axis % max(1, dims)} of {dims}, neither the second nor the last"
        return ""

    def make(places: Sequence[Place]) -> nn.Module:
        site, dims = places[0].call.site, len(places[0].shape)
        return nn.LayerNorm(site.units) if site.axis % dims == dims - 1 else nn.GroupNorm(1, site.units)

    return _insert(network, "layer_norm", make, unfit)[0]


def _insert(
    network: Network,
    what: str,
    make: Callable[[Sequence[Place]], nn.Module],
    unfit: Callable[[Site, Place], str],
) -> tuple[Edit, dict[int, nn.Module]]:
    """Put a module before each activation it fits; also gives back the new modules by call."""
    wiring = wiring_of(network, what)
    targets, left = targets_of(network, wiring, unfit)

    def build(places: Sequence[Place]) -> nn.Module:
        return make(places).to(device=places[0].device, dtype=places[0].dtype)

    grafts, refused = graft(network.model, network.example, targets, build, before=True, separate=True)
    left |= {wiring.sites[i].name: f"left as it is: {reason}" for i, reason in refused.items()}
    if not grafts:
        raise nothing_fits(what, left, "Name the sites to treat with sites=..., or choose another remedy.")
    changes, modules = {}, {}
    for done in grafts:
        for index in done.calls:
            site = wiring.sites[index]
            changes[site.name] = f"{type(done.module).__name__}({site.units}) before {site.activation}"
            modules[index] = done.module
        new = {f"{done.path}.{name}": p for name, p in done.module.named_parameters()}
        register(network.optimizer, new, producing_weight(network.model, wiring.sites[done.calls[0]]))
    return Edit(changes={**changes, **left}), modules


def _pre_activations(network: Network, targets: Sequence[int]) -> dict[int, tuple[Tensor, Tensor, int]]:
    """Mean, variance and number of samples of each unit's pre-activation over the batches, in eval mode."""
    sums: dict[int, list[Any]] = {}

    def observe(call: Any, z: Tensor) -> Callable[[Tensor], None]:
        if call.index in targets:
            flat = by_unit(z, call.site.axis).double()
            total = sums.setdefault(call.index, [0.0, 0.0, 0])
            shift = total[3] if len(total) > 3 else flat.mean(0)
            if len(total) == 3:
                total.append(shift)
            total[0] = total[0] + (flat - shift).sum(0)
            total[1] = total[1] + (flat - shift).square().sum(0)
            total[2] += len(flat)
        return lambda result: None

    for inputs in network.batches:
        follow(network.model, inputs, observe)
    found = {}
    for index, (total, squares, count, shift) in sums.items():
        mean = total / count
        found[index] = (mean + shift, (squares / count - mean.square()).clamp_min(0), count)
    return found
