"""Remedies for dead units: find them, redraw them, or leave them out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relume.activations import ACTIVATIONS
from relume.errors import NOTHING_TO_DO, RemedyError, SiteError
from relume.initialise import fans_of, gain_of
from relume.recording import Site
from relume.remedies.record import Edit, Network, by_unit, nothing_fits, wiring_of
from relume.surgery import (
    columns_of,
    constants,
    cut_outgoing,
    forget,
    layer_norms_of,
    norms_of,
    plain_layer,
    remove,
    shrink,
    why_not_constant,
    why_not_cut,
    why_not_narrow,
)
from relume.symptoms import ENOUGH_SAMPLES
from relume.wiring import Layer, Wiring, follow, outputs

FIRES = (0.2, 0.8)  # share of samples on which a recycled unit should fire
FAR = 4.0  # with fewer samples, the tail's edge must be so many standard deviations away from the mean pre-activation


def dead_units(network: Network, wiring: Wiring) -> dict[str, tuple[int, ...]]:
    """Units that are known to be dead, or never left a tail of slope zero on any of the sample inputs.

    In training and in eval mode: BatchNorm shifts them apart, and one alone would call living units dead.
    """
    if network.dead is not None:
        return {name: tuple(units) for name, units in network.dead.items() if len(units)}
    if not network.batches:
        return {}
    silent = _silent(network, training=False)
    try:
        too = _silent(network, training=True)
    except ValueError:  # BatchNorm refuses a single sample in training
        too = silent
    found = {}
    for index, units in silent.items():
        if both := sorted(units & too.get(index, set())):
            found[wiring.sites[index].name] = tuple(both)
    return found


def _silent(network: Network, *, training: bool) -> dict[int, set[int]]:
    """Activation call -> units that stayed in a tail of slope zero in this mode."""
    seen: dict[int, dict[str, Any]] = {}

    def observe(call: Any, z: Tensor) -> Callable[[Tensor], None]:
        row = ACTIVATIONS[call.site.activation]
        known = {k: v for k, v in call.site.parameters.items() if k in row.parameters}
        low, high = row.flat_edges(0.0, **known)
        flat = by_unit(z, call.site.axis).double()
        now = {
            "left": (flat <= low).all(0), "right": (flat >= high).all(0), "n": len(flat),
            "sum": flat.sum(0), "squares": flat.square().sum(0), "edges": (low, high),
        }  # fmt: skip
        old = seen.get(call.index)
        if old is not None:
            now |= {key: old[key] & now[key] for key in ("left", "right")}
            now |= {key: old[key] + now[key] for key in ("n", "sum", "squares")}
        seen[call.index] = now
        return lambda result: None

    for inputs in network.batches:
        follow(network.model, inputs, observe, training=training)
    found = {}
    for index, now in seen.items():
        mean = now["sum"] / now["n"]
        std = (now["squares"] / now["n"] - mean.square()).clamp_min(0).sqrt()
        low, high = now["edges"]
        left, right = now["left"], now["right"]
        if now["n"] < ENOUGH_SAMPLES:
            left, right = left & (mean + FAR * std < low), right & (mean - FAR * std > high)
        found[index] = set(torch.nonzero(left | right).flatten().tolist())
    return found


def _no_dead_units(network: Network, what: str) -> RemedyError:
    if network.dead is None and not network.batches:
        return RemedyError(
            f"{what} needs to know which units are dead, and neither dead= nor sample inputs were given.\n"
            "Pass example_input=..., a thousand samples or more, or dead={site: units} from a report."
        )
    how = "none were named" if network.dead is not None else "no unit is dead on the sample inputs"
    return RemedyError(
        f"{what} {NOTHING_TO_DO}: {how}.\n"
        f"With fewer than {ENOUGH_SAMPLES} samples only units far from firing count as dead."
    )


def _dead_layers(
    network: Network, wiring: Wiring, what: str, why_not: Callable[[nn.Module, Layer], str]
) -> tuple[list[tuple[Layer, Site, Tensor]], dict[str, str]]:
    """Layers with dead units that can be cut off without a trace, and why the others cannot."""
    dead = dead_units(network, wiring)
    if network.sites is not None:
        dead = {name: units for name, units in dead.items() if name in network.sites}
    if not dead:
        raise _no_dead_units(network, what)
    found, left = [], {}
    for name, units in dead.items():
        layer, gone, stay = separable(network.model, wiring, name, units, network.batches, why_not)
        for reason, stuck in grouped(stay).items():
            left[name] = f"{left.get(name, '')}; {len(stuck)} dead units left as they are: {reason}".lstrip("; ")
        if layer is not None and len(gone):
            found.append((layer, next(site for site in wiring.sites if site.name == name), gone))
    if not found:
        raise nothing_fits(what, left, "Use prelu or leaky_relu instead, which need not know who reads the units.")
    return found, left


def separable(
    model: nn.Module,
    wiring: Wiring,
    name: str,
    units: Sequence[int],
    batches: Sequence[Any],
    why_not: Callable[[nn.Module, Layer], str] = why_not_narrow,
) -> tuple[Layer | None, Tensor, dict[int, str]]:
    """The layer of a site, those of the dead units that can leave it without a trace, and why the others cannot.

    Raises SiteError where there is no site of that name, or no such unit.
    """
    place = next((place for place in wiring.places if place.call.site.name == name), None)
    if place is None:
        names = ", ".join(site.name for site in wiring.sites)
        raise SiteError(f"no site named {name!r} in {type(model).__name__}.\nSites: {names}.")
    layer, site, gone = place.layer, place.call.site, torch.tensor(sorted(set(units)), dtype=torch.long)
    if wrong := [unit for unit in gone.tolist() if not 0 <= unit < site.units]:
        raise SiteError(f"no unit {wrong[0]} at {name!r}, which has {site.units}.\nUnits are counted from 0.")
    reason = "the layer before it could not be told"
    if layer is not None and layer.units != site.units:
        reason = f"its {site.units} units are positions of the {layer.units} units of {layer.path or 'a layer'}"
    elif layer is not None:
        reason = "several activations share its layer" if len(layer.sites) > 1 else why_not(model, layer)
    if layer is None or reason:
        return None, gone[:0], dict.fromkeys(gone.tolist(), reason)
    gone = gone.to(plain_layer(model, layer).weight.device)
    stay = why_not_constant(model, layer, gone, constants(model, layer, batches)) if batches else {}
    return layer, gone[[unit not in stay for unit in gone.tolist()]], stay


def grouped(reasons: Mapping[int, str]) -> dict[str, list[int]]:
    """Reason -> units."""
    found: dict[str, list[int]] = {}
    for unit, reason in reasons.items():
        found.setdefault(reason, []).append(unit)
    return found


def recycle(network: Network) -> Edit:
    """Redraw the incoming weights of dead units and zero their outgoing ones (ReDo, Sokar et al. 2023).

    Behind a LayerNorm the function is not kept: the mean and variance of the other units move with the new weights.
    """
    wiring = wiring_of(network, "recycle")
    found, left = _dead_layers(network, wiring, "recycle", why_not_cut)
    changes, keeps = {}, True
    with torch.no_grad():
        for layer, site, units in found:
            module = plain_layer(network.model, layer)
            if not module.weight.requires_grad:
                left[site.name] = f"{len(units)} dead units left as they are: {layer.path} is frozen"
                continue
            ranges = constants(network.model, layer, network.batches) if network.batches else None
            cut_outgoing(network.model, network.optimizer, layer, units, ranges)
            share = _revive(network, layer, site, units)
            fires = f", firing on {share:.0%} of samples" if share is not None else ""
            changes[site.name] = f"{len(units)} dead units of {layer.path} redrawn{fires}, outgoing weights at zero"
            if layer.shared:
                changes[site.name] += f"; {layer.shared[0]}, so that the other units move a little"
                keeps = False
    if not changes:
        raise nothing_fits("recycle", left, "Unfreeze the layer, or leave its dead units.")
    return Edit(changes=_both(changes, left), keeps_function=keeps)


def _both(changes: Mapping[str, str], left: Mapping[str, str]) -> dict[str, str]:
    """What was done and what was left; a place may have both."""
    return {name: "; ".join(d[name] for d in (changes, left) if name in d) for name in {**changes, **left}}


def _revive(network: Network, layer: Layer, site: Site, units: Tensor) -> float | None:
    """Fresh incoming weights for units that nobody reads now; gives back on what share of samples they fire."""
    module, norms = plain_layer(network.model, layer), norms_of(network.model, layer)
    layer_norms = layer_norms_of(network.model, layer)
    shift: Any = layer_norms[-1][0] if layer_norms else module  # its bias makes a unit fire on half of the samples
    if norms or shift.bias is None:
        shift = None
    std = gain_of(site) / math.sqrt(fans_of(module)[0])
    for p in (module.weight, module.bias):
        if p is not None:
            forget(network.optimizer, p, 0, units)
    if module.bias is not None:
        module.bias[units] = 0.0
    for norm, block in [*norms, *layer_norms]:
        columns = columns_of(units, block)
        for p, start in ((norm.weight, 1.0), (norm.bias, 0.0)):
            if p is not None:
                p[columns] = start
                forget(network.optimizer, p, 0, columns)
    waiting = units
    for _ in range(20 if network.batches else 1):
        module.weight[waiting] = torch.randn_like(module.weight[waiting]) * std
        if not network.batches:
            return None
        if norms:
            _restart_statistics(network, norms, units)
        z = _pre_activation_values(network, site)
        if shift is not None:
            shift.bias[waiting] = -z[:, waiting].median(0).values
            z[:, waiting] += shift.bias[waiting]
        fires = (z > 0).double().mean(0)
        waiting = waiting[(fires[waiting] < FIRES[0]) | (fires[waiting] > FIRES[1])]
        if not len(waiting):
            break
        if shift is not None:
            shift.bias[waiting] = 0.0
    return float((_pre_activation_values(network, site)[:, units] > 0).double().mean())


def _restart_statistics(network: Network, norms: Sequence[tuple[Any, int]], units: Tensor) -> None:
    """The running statistics of these units become those of the sample inputs."""
    for norm, block in norms:
        if norm.running_mean is None:
            continue
        seen: list[Tensor] = []
        handle = norm.register_forward_pre_hook(
            lambda m, args, seen=seen: seen.append(args[0].detach().transpose(0, 1).flatten(1))
        )
        try:
            outputs(network.model, network.batches)
        finally:
            handle.remove()
        x = torch.cat(seen, 1)
        columns = columns_of(units, block)
        norm.running_mean[columns] = x.mean(1)[columns].to(norm.running_mean)
        norm.running_var[columns] = x.var(1, correction=0)[columns].to(norm.running_var)


def _pre_activation_values(network: Network, site: Site) -> Tensor:
    found: list[Tensor] = []

    def observe(call: Any, z: Tensor) -> Callable[[Tensor], None]:
        if call.index == site.order:
            found.append(by_unit(z, site.axis).clone())
        return lambda result: None

    for inputs in network.batches:
        follow(network.model, inputs, observe)
    return torch.cat(found)


def smaller_network(network: Network) -> Edit:
    """Trained: without its dead units. Fresh: hidden layers half as wide, columns rescaled to the smaller fan-in."""
    wiring = wiring_of(network, "smaller_network")
    if network.trained:
        found, left = _dead_layers(network, wiring, "smaller_network", why_not_narrow)
        changes = {}
        for layer, site, units in found:
            gone = remove(network.model, network.optimizer, wiring, layer, units, network.batches)
            stay = layer.units - len(gone)
            changes[layer.path] = f"{layer.units} units became {stay}: the dead ones of {site.name} are gone"
        return Edit(changes=_both(changes, left), keeps_function=True)
    changes, left = {}, {}
    for layer in wiring.layers:
        names = [wiring.sites[i].name for i in layer.sites]
        if not names or (network.sites is not None and not set(names) & set(network.sites)):
            continue
        reason = why_not_narrow(network.model, layer) or ("it has one unit" if layer.units < 2 else "")
        if reason:
            left[layer.path or names[0]] = f"left as it is: {reason}"
            continue
        keep = torch.arange(-(-layer.units // 2), device=plain_layer(network.model, layer).weight.device)
        shrink(network.model, network.optimizer, wiring, layer, keep)
        with torch.no_grad():
            for reader in layer.readers:
                weight: Any = network.model.get_submodule(reader.path).weight
                weight *= math.sqrt(layer.units / len(keep))
        changes[layer.path] = f"{layer.units} units became {len(keep)}"
    if not changes:
        raise nothing_fits("smaller_network", left, "Layers whose units are added to others' cannot shrink alone.")
    return Edit(changes={**changes, **left})
