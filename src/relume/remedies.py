"""The table of remedies, and how one is applied: to copies, with what was done, and how far the outputs moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from relume import theory
from relume.activations import ACTIVATIONS, activation
from relume.errors import RemedyError, SiteError
from relume.grafts import graft
from relume.nn import module as catalogue_module
from relume.recording import Site
from relume.sites import undisturbed
from relume.surgery import (
    KEEPS_FUNCTION,
    constants,
    cut_outgoing,
    duplicate,
    forget,
    narrow,
    narrow_slopes,
    norms_of,
    plain_layer,
    register,
    same_dice,
    why_not_constant,
    why_not_narrow,
)
from relume.wiring import Layer, Place, Wiring, follow, guess_input, output_change, outputs, require_runs, run

# Xu, Wang, Chen & Li 2015 (arXiv:1505.00853): of the fixed slopes 1/100 and 1/5.5 the second did better on every data
# set they tried. torch's default of .01 hardly differs from a ReLU in a few hundred steps.
LEAKY_SLOPE = 1 / 5.5
PRELU_SLOPE = 0.25  # He, Zhang, Ren & Sun 2015 (arXiv:1502.01852), section 2.1, which also spares slopes weight decay
LR_DIVISOR = 10.0  # one step of the usual log grid; Bengio 2012 (arXiv:1206.5533), section 3.1
CLIP_NORM = 1.0  # Pascanu, Mikolov & Bengio 2013 (arXiv:1211.5063); 1 is what language models have settled on
LSUV_TOLERANCE, LSUV_TRIES = 0.1, 10  # Mishkin & Matas 2016 (arXiv:1511.06422), algorithm 1
FIRES = (0.2, 0.8)  # share of samples on which a recycled unit should fire
ENOUGH_SAMPLES = 1000  # a unit silent on so many fires on less than 0.3 % of samples, with 95 % confidence
FAR = 4.0  # with fewer samples, the tail's edge must be so many standard deviations away from the mean pre-activation


# records ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What a remedy is given: a copy it may change, and what is known of it."""

    model: nn.Module
    optimizer: Optimizer | None = None
    batches: tuple[Any, ...] = ()  # sample inputs; a tuple or a dict among them is passed on as the model's arguments
    example: Any = None  # an input to follow the network with; not meant for statistics
    sites: tuple[str, ...] | None = None  # names of the sites to treat; None: all that the remedy is meant for
    trained: bool = False
    dead: Mapping[str, Sequence[int]] | None = None  # site -> units known to be dead; None: to be found on the batches


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """What a remedy did."""

    changes: Mapping[str, str]  # place -> what was done there, or why it was left
    keeps_function: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """A change to the network, its optimizer or its inputs that treats a cause."""

    name: str
    title: str
    family: str  # "activation", "normalisation", "initialisation", "optimizer", "size", "revival", "inputs"
    apply: Callable[[Network], Edit]  # changes the network it is given; RemedyError where it cannot
    when: str
    code: str  # Python that does it, given `model`, `optimizer` and, where sample inputs are needed, `example_input`
    paper: str = ""
    needs_batches: bool = False  # True: sample inputs are needed even for a fresh network


@dataclass(frozen=True, slots=True, kw_only=True)
class Treated:
    """Treated copies, and what was done to them."""

    model: nn.Module
    optimizer: Optimizer | None
    remedy: str
    changes: Mapping[str, str]
    keeps_function: bool
    output_change: float | None = None  # max |dy| / std(y) in eval mode on the sample inputs; None without any

    def __str__(self) -> str:
        lines = [f"{self.remedy}: {len(self.changes)} places"]
        lines += [f"  {place}: {words}" for place, words in self.changes.items()]
        if self.output_change is not None:
            kept = "the function is kept" if self.keeps_function else "the function changes"
            lines.append(f"  {kept}: outputs move by at most {self.output_change:.2g} of their standard deviation")
        return "\n".join(lines)


# applying one -----------------------------------------------------------------------------------------------------------


def treat(
    model: nn.Module,
    optimizer: Optimizer | None,
    remedy: str | Remedy,
    sites: Sequence[str | Site] | str | None = None,
    *,
    example_input: Any = None,
    batches: Sequence[Any] = (),
    trained: bool | None = None,
    dead: Mapping[str, Sequence[int]] | None = None,
) -> Treated:
    """Apply a remedy to copies of a model and its optimizer; the originals and the random generators are untouched.

    `sites` are names as `relume.sites` gives them (default: all that the remedy is meant for). `example_input` is one
    input of the model, `batches` are more of them, for statistics; a tuple or a dict is passed on as the model's
    arguments. Without any, an input is guessed from the first layer. `trained` defaults to whether the optimizer has a
    state; `dead` names the units known to be dead, which else are found on the sample inputs.

    Raises RemedyError where the remedy is unknown or cannot be applied, SiteError for a site that is not there.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> treated = treat(model, optimizer, "prelu")
    >>> treated.model[1], len(treated.optimizer.param_groups[0]["params"])
    (PReLU(num_parameters=8), 5)
    """
    chosen = remedy if isinstance(remedy, Remedy) else _named(remedy)
    samples = (*(() if example_input is None else (example_input,)), *batches)
    if isinstance(sites, (str, Site)):
        sites = (sites,)
    names = None if sites is None else tuple(s.name if isinstance(s, Site) else s for s in sites)
    with same_dice():
        new_model, new_optimizer = duplicate(model, optimizer)
        if trained is None:
            trained = optimizer is not None and bool(optimizer.state)
        network = Network(
            model=new_model, optimizer=new_optimizer, batches=samples, sites=names, trained=trained, dead=dead
        )
        return operate(network, chosen)


def operate(network: Network, remedy: Remedy) -> Treated:
    """Apply a remedy to the network itself, and measure what that did to its outputs.

    Raises RemedyError where an edit that claims to keep the function does not, or leaves a network that does not run.
    """
    example = network.example
    if network.batches:
        example = network.batches[0]
        require_runs(network.model, example)
    elif example is None:
        with same_dice():
            example = guess_input(network.model)
    network = replace(network, example=example)
    before = None if example is None else outputs(network.model, network.batches or (example,))
    edit = remedy.apply(network)
    change = None
    if before is not None:
        try:
            after = outputs(network.model, network.batches or (example,))
        except Exception as error:
            raise RemedyError(
                f"{remedy.name}: the treated {type(network.model).__name__} no longer runs: {error}.\n"
                "Its code seems to rely on sizes or attributes that the remedy changed; treat fewer sites, by name."
            ) from None
        change = output_change(before, after)
        if edit.keeps_function and not change <= KEEPS_FUNCTION:
            raise RemedyError(
                f"{remedy.name} should keep the function, but moved the outputs by {change:.2g} of their standard "
                f"deviation.\nThe network reads the treated units in a way that was not seen; treat fewer sites, by name."
            )
    return Treated(
        model=network.model,
        optimizer=network.optimizer,
        remedy=remedy.name,
        changes=dict(edit.changes),
        keeps_function=edit.keeps_function,
        output_change=change if network.batches else None,
    )


def _named(name: str) -> Remedy:
    if name in REMEDIES:
        return REMEDIES[name]
    raise RemedyError(f"no remedy named {name!r}.\nThere are: {', '.join(REMEDIES)}.")


def _nothing(what: str, reasons: Mapping[str, str], advice: str) -> RemedyError:
    found = "\n".join(f"  {place}: {reason}" for place, reason in reasons.items()) or "  no activation was found"
    return RemedyError(f"{what} cannot be applied.\n{found}\n{advice}")


def _wiring(network: Network, what: str) -> Wiring:
    if network.example is None:
        raise RemedyError(
            f"{what} has to follow one forward pass of {type(network.model).__name__}, and no input could be guessed.\n"
            "Pass example_input; a tuple or a dict is passed on as the model's arguments."
        )
    wiring = follow(network.model, network.example)
    known = [site.name for site in wiring.sites]
    for name in network.sites or ():
        if name not in known:
            raise SiteError(
                f"no site named {name!r} in {type(network.model).__name__}.\n"
                f"Sites: {', '.join(known) or 'none'}.\n"
                "List them with relume.sites(model, example_input)."
            )
    return wiring


def _targets(
    network: Network, wiring: Wiring, unfit: Callable[[Site, Place], str]
) -> tuple[list[int], dict[str, str]]:
    """Calls to treat, and why the others are left; sites that were named are not questioned for being the output."""
    chosen, left = [], {}
    for index, site in enumerate(wiring.sites):
        if network.sites is not None and site.name not in network.sites:
            continue
        place = wiring.places[index]
        reason = unfit(site, place)
        if network.sites is None and not reason:
            layer = place.layer
            if site.output:
                reason = "the network's own output"
            elif layer is not None and layer.steps["mul"] and any("goes into mul" in stop for stop in layer.stops):
                reason = "a gate: its output multiplies other values"
        if reason:
            left[site.name] = f"left as it is: {reason}"
        else:
            chosen.append(index)
    return chosen, left


# activation functions -----------------------------------------------------------------------------------------------------


def _swap(
    network: Network,
    what: str,
    make: Callable[[Sequence[Place]], nn.Module],
    unfit: Callable[[Site, Place], str],
    pick: Callable[[list[int]], list[int]] = list,
    keeps: Callable[[Site], bool] = lambda site: False,
) -> Edit:
    """Put another function in the place of the activations it is meant for."""
    wiring = _wiring(network, what)
    targets, left = _targets(network, wiring, unfit)
    targets = pick(targets)

    def build(places: Sequence[Place]) -> nn.Module:
        return make(places).to(device=places[0].device, dtype=places[0].dtype)

    grafts, refused = graft(network.model, network.example, targets, build)
    left |= {wiring.sites[i].name: f"left as it is: {reason}" for i, reason in refused.items()}
    if not grafts:
        raise _nothing(what, left, "Name the sites to treat with sites=..., or choose another remedy.")
    changes = {}
    for done in grafts:
        sites = [wiring.sites[i] for i in done.calls]
        for site in sites:
            shared = f", one module for {len(sites)} calls" if len(sites) > 1 else ""
            changes[site.name] = f"{site.activation} became {_in_words(done.module)}{shared}"
        new = {f"{done.path}.{name}": p for name, p in done.module.named_parameters()}
        register(network.optimizer, new, _near(network.model, sites[0]), decay=False)
    kept = all(keeps(wiring.sites[i]) for done in grafts for i in done.calls)
    return Edit(changes={**changes, **left}, keeps_function=kept)


def _in_words(module: nn.Module) -> str:
    if isinstance(module, nn.PReLU):
        slopes = "one slope" if module.num_parameters == 1 else f"{module.num_parameters} slopes"
        return f"PReLU with {slopes}, learnt from {float(module.weight.detach()[0]):.3g}"
    return str(module)


def _near(model: nn.Module, site: Site) -> Tensor | None:
    return dict(model.named_parameters(remove_duplicate=False)).get(site.weight)


def _unfit_for(name: str) -> Callable[[Site, Place], str]:
    """Replacements are meant for functions with a flat end; the same function again would change nothing."""

    def unfit(site: Site, place: Place) -> str:
        if site.activation == name:
            return f"is {name} already"
        row = ACTIVATIONS[site.activation]
        if not row.can_die and (row.left, row.right) and not row.saturates:
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
        code=_snippet(row.name),
        paper=row.paper,
    )


def _leaky_relu(network: Network) -> Edit:
    return _swap(network, "leaky_relu", lambda places: nn.LeakyReLU(LEAKY_SLOPE), _unfit_for("leaky_relu"))


def _elu(network: Network) -> Edit:
    return _swap(network, "elu", lambda places: nn.ELU(), _unfit_for("elu"))


def _softplus(network: Network) -> Edit:
    return _swap(network, "softplus", lambda places: nn.Softplus(), _unfit_for("softplus"))


def _prelu(network: Network) -> Edit:
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


def _mixed_activations(network: Network) -> Edit:
    """Every second hidden site changes: a function with a free end to tanh, a bounded one to leaky ReLU."""

    def pick(targets: list[int]) -> list[int]:
        return targets[1::2]

    def make(places: Sequence[Place]) -> nn.Module:
        return nn.LeakyReLU(LEAKY_SLOPE) if ACTIVATIONS[places[0].call.site.activation].bounded else nn.Tanh()

    return _swap(network, "mixed_activations (every second hidden site)", make, lambda site, place: "", pick)


def _tanh(network: Network) -> Edit:
    """Fresh: tanh for sigmoid. Trained: sigmoid(x) = 1/2 + tanh(x/2)/2, so the weights take up the difference."""

    def unfit(site: Site, place: Place) -> str:
        if site.activation != "sigmoid":
            return f"is {site.activation}, not sigmoid"
        return _why_not_half(network.model, place.layer) if network.trained else ""

    wiring = _wiring(network, "tanh")
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
            for p in (rows.weight, rows.bias):
                if p is not None:
                    p /= 2
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


# normalisation --------------------------------------------------------------------------------------------------------------


def _batch_norm(network: Network) -> Edit:
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
            return f"its units are on axis {site.axis % max(1, dims)} of {dims}, where BatchNorm expects axis 1; use layer_norm"
        return ""

    def make(places: Sequence[Place]) -> nn.Module:
        return kinds[max(1, len(places[0].shape) - 2)](places[0].call.site.units)

    wiring = _wiring(network, what)
    targets, _ = _targets(network, wiring, unfit)
    moments = _pre_activations(network, targets) if network.trained else {}
    dead = _dead_units(network, wiring) if network.trained else {}
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
            reason = reason or why_not_constant(network.model, layer, gone, ranges)
            if reason:
                changes[site.name] += f"; {len(units)} dead units stay as they are: {reason}"
                continue
            cut_outgoing(network.model, network.optimizer, layer, gone, ranges)
            with torch.no_grad():
                norm.weight[gone], norm.bias[gone] = 1.0, 0.0
            changes[site.name] += f"; {len(units)} dead units start afresh, their outgoing weights at zero"
    return Edit(changes=changes, keeps_function=keeps)


def _layer_norm(network: Network) -> Edit:
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
    wiring = _wiring(network, what)
    targets, left = _targets(network, wiring, unfit)

    def build(places: Sequence[Place]) -> nn.Module:
        return make(places).to(device=places[0].device, dtype=places[0].dtype)

    grafts, refused = graft(network.model, network.example, targets, build, before=True, separate=True)
    left |= {wiring.sites[i].name: f"left as it is: {reason}" for i, reason in refused.items()}
    if not grafts:
        raise _nothing(what, left, "Name the sites to treat with sites=..., or choose another remedy.")
    changes, modules = {}, {}
    for done in grafts:
        for index in done.calls:
            site = wiring.sites[index]
            changes[site.name] = f"{type(done.module).__name__}({site.units}) before {site.activation}"
            modules[index] = done.module
        new = {f"{done.path}.{name}": p for name, p in done.module.named_parameters()}
        register(network.optimizer, new, _near(network.model, wiring.sites[done.calls[0]]))
    return Edit(changes={**changes, **left}), modules


def _pre_activations(network: Network, targets: Sequence[int]) -> dict[int, tuple[Tensor, Tensor, int]]:
    """Mean, variance and number of samples of each unit's pre-activation over the batches, in eval mode."""
    sums: dict[int, list[Any]] = {}

    def observe(call: Any, z: Tensor) -> Callable[[Tensor], None]:
        if call.index in targets:
            flat = _by_unit(z, call.site.axis).double()
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


def _by_unit(x: Tensor, axis: int) -> Tensor:
    """Samples by units."""
    return x.detach().movedim(axis, -1).reshape(-1, x.shape[axis])


# initialisation -------------------------------------------------------------------------------------------------------------


def _redrawn(network: Network, what: str, draw: Callable[[Any, Site | None, Site | None], str]) -> Edit:
    """Draw the weights of every linear and convolutional layer anew, and set biases to zero."""
    if network.trained:
        raise RemedyError(
            f"{what} draws all weights anew, and this network is partly trained: what it learned would be lost.\n"
            "Use recycle, which draws only dead units anew, or train from the start: treat(..., trained=False)."
        )
    wiring = _wiring(network, what)
    changes: dict[str, str] = {}
    embedded = {id(m.weight) for m in network.model.modules() if isinstance(m, nn.Embedding)}
    for layer in wiring.layers:
        if layer.path in changes:
            continue
        site = _site_of(wiring, layer)
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
            before = _site_of(wiring, layer.source) if layer.source is not None else None
            with torch.no_grad():
                changes[layer.path] = draw(module, site, before)
            for p in (module.weight, module.bias):
                if p is not None:
                    forget(network.optimizer, p)
    if all(words.startswith("left") for words in changes.values()):
        raise _nothing(what, changes, "It draws the weights of nn.Linear and nn.Conv layers.")
    return Edit(changes=changes)


def _site_of(wiring: Wiring, layer: Layer) -> Site | None:
    """The activation a layer leads to."""
    if layer.sites:
        return wiring.sites[layer.sites[0]]
    return next((site for site in wiring.sites if layer.weight and site.weight == layer.weight), None)


def _fans(weight: Tensor) -> tuple[int, int]:
    field_size = weight[0, 0].numel() if weight.dim() > 2 else 1
    return weight.shape[1] * field_size, weight.shape[0] * field_size


def _gain(site: Site | None) -> float:
    """1 / sqrt(E[f'(z)^2]) for z ~ N(0, 1): sqrt(2) for a ReLU; 1 where no activation follows."""
    if site is None:
        return 1.0
    parameters = {k: v for k, v in site.parameters.items() if k in ACTIVATIONS[site.activation].parameters}
    gain = theory.moments(site.activation, **parameters).gain_backward
    return gain if math.isfinite(gain) and gain > 0 else 1.0


def _he_init(network: Network) -> Edit:
    def draw(module: Any, site: Site | None, before: Site | None) -> str:
        gain = _gain(site)
        std = gain / math.sqrt(_fans(module.weight)[0])
        module.weight.normal_(0, std)
        if module.bias is not None:
            module.bias.zero_()
        return f"weights drawn with std {std:.3g} (gain {gain:.3g} for {site.activation if site else 'no activation'})"

    return _redrawn(network, "he_init", draw)


def _xavier_init(network: Network) -> Edit:
    """Glorot & Bengio's variance 2 / (fan_in + fan_out). For a sigmoid, 1/2 + tanh(x/2)/2, twice that on either side
    of it, and a bias that centres its outputs, make it the tanh that the rule was derived for."""

    def draw(module: Any, site: Site | None, before: Site | None) -> str:
        own, fed = (s is not None and s.activation == "sigmoid" for s in (site, before))
        std = math.sqrt(2 / sum(_fans(module.weight))) * (2 if own else 1) * (2 if fed else 1)
        module.weight.normal_(0, std)
        if module.bias is not None:
            module.bias.copy_(-module.weight.flatten(1).sum(1) / 2) if fed else module.bias.zero_()
        centred = ", biases centre the sigmoids before" if fed and module.bias is not None else ""
        return f"weights drawn with std {std:.3g}{centred}"

    return _redrawn(network, "xavier_init", draw)


def _lsuv_init(network: Network) -> Edit:
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


def _reset_bias(network: Network) -> Edit:
    """Biases of the layers before hidden activations become zero, as do the shifts of normalisations among them."""
    wiring = _wiring(network, "reset_bias")
    targets, left = _targets(network, wiring, lambda site, place: "" if site.bias else "its layer has no bias")
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
        raise _nothing("reset_bias", left, "No bias stands before a hidden activation.")
    return Edit(changes={**changes, **left})


# optimizer --------------------------------------------------------------------------------------------------------------------


def _require_optimizer(network: Network, what: str) -> Optimizer:
    if network.optimizer is None:
        raise RemedyError(f"{what} changes the optimizer, and none was given.\nPass the optimizer that trains the model.")
    return network.optimizer


def _lower_learning_rate(network: Network) -> Edit:
    optimizer = _require_optimizer(network, "lower_learning_rate")
    changes = {}
    for number, group in enumerate(optimizer.param_groups):
        before = float(group["lr"])
        for key in ("lr", "initial_lr"):  # a scheduler made for the copy starts from initial_lr
            if key in group:
                group[key] = group[key] / LR_DIVISOR
        changes[f"parameter group {number}"] = f"learning rate {before:.3g} became {float(group['lr']):.3g}"
    return Edit(changes=changes, keeps_function=True)


class ClipGradients:
    """Before each optimizer step, scales the gradients down to a norm of at most `max_norm`, all parameters together."""

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], self.max_norm)


def _clip_gradients(network: Network) -> Edit:
    optimizer = _require_optimizer(network, "clip_gradients")
    optimizer.register_step_pre_hook(ClipGradients(CLIP_NORM))
    return Edit(changes={"optimizer": f"gradients clipped to a norm of {CLIP_NORM:g} before each step"}, keeps_function=True)


# units ------------------------------------------------------------------------------------------------------------------------


def _dead_units(network: Network, wiring: Wiring) -> dict[str, tuple[int, ...]]:
    """Units that are known to be dead, or never left a tail of slope zero on any of the sample inputs."""
    if network.dead is not None:
        return {name: tuple(units) for name, units in network.dead.items() if len(units)}
    if not network.batches:
        return {}
    seen: dict[int, dict[str, Any]] = {}

    def observe(call: Any, z: Tensor) -> Callable[[Tensor], None]:
        row = ACTIVATIONS[call.site.activation]
        known = {k: v for k, v in call.site.parameters.items() if k in row.parameters}
        low, high = row.flat_edges(0.0, **known)
        flat = _by_unit(z, call.site.axis).double()
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
        follow(network.model, inputs, observe)
    found = {}
    for index, now in seen.items():
        mean = now["sum"] / now["n"]
        std = (now["squares"] / now["n"] - mean.square()).clamp_min(0).sqrt()
        low, high = now["edges"]
        left, right = now["left"], now["right"]
        if now["n"] < ENOUGH_SAMPLES:
            left, right = left & (mean + FAR * std < low), right & (mean - FAR * std > high)
        units = torch.nonzero(left | right).flatten().tolist()
        if units:
            found[wiring.sites[index].name] = tuple(units)
    return found


def _no_dead_units(network: Network, what: str) -> RemedyError:
    if network.dead is None and not network.batches:
        return RemedyError(
            f"{what} needs to know which units are dead, and neither dead= nor sample inputs were given.\n"
            "Pass example_input=..., a thousand samples or more, or dead={site: units} from a report."
        )
    how = "none were named" if network.dead is not None else "no unit is dead on the sample inputs"
    return RemedyError(
        f"{what} has nothing to do: {how}.\n"
        f"With fewer than {ENOUGH_SAMPLES} samples only units far from firing count as dead."
    )


def _dead_layers(network: Network, wiring: Wiring, what: str) -> tuple[list[tuple[Layer, Site, Tensor]], dict[str, str]]:
    """Layers with dead units that can be cut off without a trace, and why the others cannot."""
    dead = _dead_units(network, wiring)
    if network.sites is not None:
        dead = {name: units for name, units in dead.items() if name in network.sites}
    if not dead:
        raise _no_dead_units(network, what)
    found, left = [], {}
    by_name = {site.name: index for index, site in enumerate(wiring.sites)}
    for name, units in dead.items():
        if name not in by_name:
            raise SiteError(f"no site named {name!r} in {type(network.model).__name__}.\nSites: {', '.join(by_name)}.")
        layer = wiring.places[by_name[name]].layer
        gone = torch.tensor(sorted(set(units)))
        if layer is None:
            reason = "the layer before it could not be told"
        elif len(layer.sites) > 1:
            reason = "several activations share its layer"
        elif not (reason := why_not_narrow(network.model, layer)):
            gone = gone.to(plain_layer(network.model, layer).weight.device)
            if network.batches:
                ranges = constants(network.model, layer, network.batches)
                reason = why_not_constant(network.model, layer, gone, ranges)
        if reason or layer is None:
            left[name] = f"{len(units)} dead units left as they are: {reason}"
        else:
            found.append((layer, wiring.sites[by_name[name]], gone))
    if not found:
        raise _nothing(what, left, "Use prelu or leaky_relu instead, which need not know who reads the units.")
    return found, left


def _recycle(network: Network) -> Edit:
    """Redraw the incoming weights of dead units and zero their outgoing ones (ReDo, Sokar et al. 2023)."""
    wiring = _wiring(network, "recycle")
    found, left = _dead_layers(network, wiring, "recycle")
    changes = {}
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
    if not changes:
        raise _nothing("recycle", left, "Unfreeze the layer, or leave its dead units.")
    return Edit(changes={**changes, **left}, keeps_function=True)


def _revive(network: Network, layer: Layer, site: Site, units: Tensor) -> float | None:
    """Fresh incoming weights for units that nobody reads now; gives back on what share of samples they fire."""
    module, norms = plain_layer(network.model, layer), norms_of(network.model, layer)
    std = _gain(site) / math.sqrt(_fans(module.weight)[0])
    for p in (module.weight, module.bias):
        if p is not None:
            forget(network.optimizer, p, 0, units)
    if module.bias is not None:
        module.bias[units] = 0.0
    for norm, block in norms:
        columns = (units[:, None] * block + torch.arange(block, device=units.device)).reshape(-1)
        if norm.affine:
            norm.weight[columns], norm.bias[columns] = 1.0, 0.0
            forget(network.optimizer, norm.weight, 0, columns)
            forget(network.optimizer, norm.bias, 0, columns)
    waiting = units
    for _ in range(20 if network.batches else 1):
        module.weight[waiting] = torch.randn_like(module.weight[waiting]) * std
        if not network.batches:
            return None
        if norms:
            _restart_statistics(network, norms)
        z = _pre_activation_values(network, site)
        if module.bias is not None and not norms:
            module.bias[waiting] = -z[:, waiting].median(0).values
            z[:, waiting] += module.bias[waiting]
        fires = (z > 0).double().mean(0)
        waiting = waiting[(fires[waiting] < FIRES[0]) | (fires[waiting] > FIRES[1])]
        if not len(waiting):
            break
        if module.bias is not None:
            module.bias[waiting] = 0.0
    return float((_pre_activation_values(network, site)[:, units] > 0).double().mean())


def _restart_statistics(network: Network, norms: Sequence[tuple[Any, int]]) -> None:
    """Running statistics of features whose gamma is 1 and beta 0, as restarted, follow the sample inputs."""
    for norm, _ in norms:
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
        fresh = (norm.weight == 1) & (norm.bias == 0) if norm.affine else torch.ones_like(norm.running_mean).bool()
        norm.running_mean[fresh] = x.mean(1)[fresh].to(norm.running_mean)
        norm.running_var[fresh] = x.var(1, correction=0)[fresh].to(norm.running_var)


def _pre_activation_values(network: Network, site: Site) -> Tensor:
    found: list[Tensor] = []

    def observe(call: Any, z: Tensor) -> Callable[[Tensor], None]:
        if call.index == site.order:
            found.append(_by_unit(z, site.axis).clone())
        return lambda result: None

    for inputs in network.batches:
        follow(network.model, inputs, observe)
    return torch.cat(found)


def _smaller_network(network: Network) -> Edit:
    """Trained: without its dead units. Fresh: hidden layers half as wide, columns rescaled to the smaller fan-in."""
    wiring = _wiring(network, "smaller_network")
    if network.trained:
        found, left = _dead_layers(network, wiring, "smaller_network")
        changes = {}
        for layer, site, units in found:
            keep = torch.tensor([u for u in range(layer.units) if u not in set(units.tolist())], device=units.device)
            if not len(keep):
                keep, units = units[:1], units[1:]
            if network.batches and len(units):
                ranges = constants(network.model, layer, network.batches)
                cut_outgoing(network.model, network.optimizer, layer, units, ranges)
            _narrow(network, wiring, layer, keep)
            changes[layer.path] = f"{layer.units} units became {len(keep)}: the dead ones of {site.name} are gone"
        return Edit(changes={**changes, **left}, keeps_function=True)
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
        _narrow(network, wiring, layer, keep)
        with torch.no_grad():
            for reader in layer.readers:
                weight: Any = network.model.get_submodule(reader.path).weight
                weight *= math.sqrt(layer.units / len(keep))
        changes[layer.path] = f"{layer.units} units became {len(keep)}"
    if not changes:
        raise _nothing("smaller_network", left, "Layers whose units are added to others' cannot shrink alone.")
    return Edit(changes={**changes, **left})


def _narrow(network: Network, wiring: Wiring, layer: Layer, keep: Tensor) -> None:
    units = layer.units
    narrow(network.model, network.optimizer, layer, keep)
    for index in layer.sites:
        place = wiring.places[index]
        if place.own:
            narrow_slopes(network.optimizer, network.model.get_submodule(place.frames[-1][0]), units, keep)


# inputs -----------------------------------------------------------------------------------------------------------------------


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


def _scale_inputs(network: Network) -> Edit:
    """The layers that read the inputs see them standardised; a trained layer's weights take up the difference."""
    if not network.batches:
        raise RemedyError(
            "scale_inputs measures mean and standard deviation on sample inputs, and none were given.\n"
            "Pass example_input=..., a batch of real inputs."
        )
    _wiring(network, "scale_inputs")
    seen: dict[str, list[Tensor]] = {}
    for inputs in network.batches:
        for path, x in follow(network.model, inputs).first_reads:
            seen.setdefault(path, []).append(x)
    changes, left = {}, {}
    for path, values in seen.items():
        module: Any = network.model.get_submodule(path)
        if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) or hasattr(module, "standardise"):
            left[path] = "left as it is: not a plain nn.Linear or nn.Conv layer"
            continue
        linear = isinstance(module, nn.Linear)
        dims = 0 if linear else len(module.kernel_size)
        x = torch.cat([_by_unit(v, -1 - dims) for v in values]).double()
        mean, std = x.mean(0), x.std(0, correction=0)
        std = torch.where(std > 1e-6 * (mean.abs() + x.abs().max()), std, 1.0)
        if bool(((mean.abs() < 0.5) & (std > 0.5) & (std < 2)).all()):
            left[path] = "left as it is: every feature it reads has a mean near 0 and a standard deviation near 1"
            continue
        padded = not linear and (isinstance(module.padding, str) or any(module.padding))
        if network.trained and (padded or module.bias is None):
            left[path] = f"left as it is: trained, and it {'pads its input' if padded else 'has no bias'}"
            continue
        shape = (-1, *[1] * dims)
        if network.trained:
            with torch.no_grad():
                weight = module.weight.double()
                bias = weight.flatten(2).sum(2) @ mean if dims else weight @ mean
                module.bias += bias.to(module.bias)
                module.weight.copy_(weight * std.reshape(1, *shape)[:, :, ...] if dims else weight * std)
            forget(network.optimizer, module.weight)
        module.standardise = Standardise(
            mean.reshape(shape).to(module.weight), std.reshape(shape).to(module.weight)
        )
        module.register_forward_pre_hook(standardise_input)
        low, high = float(std.min()), float(std.max())
        changes[path] = f"reads standardised inputs; their standard deviations ran from {low:.3g} to {high:.3g}"
    if not changes:
        raise _nothing("scale_inputs", left, "The inputs need no scaling where a layer reads them.")
    return Edit(changes={**changes, **left}, keeps_function=network.trained)


# the table --------------------------------------------------------------------------------------------------------------------


def _snippet(name: str, *, example: bool = False, by_hand: str = "") -> str:
    """Python that a user can paste."""
    given = ", example_input=example_input" if example else ""
    lines = [
        "import relume",
        "",
        f'treated = relume.treat(model, optimizer, "{name}"{given})',
        "model, optimizer = treated.model, treated.optimizer",
    ]
    return "\n".join([*([f"# by hand: {by_hand}"] if by_hand else []), *lines])


_TABLE = (
    Remedy(
        name="leaky_relu",
        title="Leaky ReLU",
        family="activation",
        apply=_leaky_relu,
        when="Units die: a leak of 0.18 on the negative side lets every unit learn its way back.",
        code=_snippet("leaky_relu", by_hand="nn.LeakyReLU(1 / 5.5) in the place of nn.ReLU()"),
        paper="Maas, Hannun & Ng 2013; slope from Xu, Wang, Chen & Li 2015, arXiv:1505.00853",
    ),
    Remedy(
        name="prelu",
        title="PReLU, a leak that is learnt",
        family="activation",
        apply=_prelu,
        when="Units die. On a trained ReLU network it starts at slope 0 and keeps the function exactly.",
        code=_snippet("prelu", by_hand="nn.PReLU(width) in the place of nn.ReLU(), without weight decay on its slopes"),
        paper="He, Zhang, Ren & Sun 2015, arXiv:1502.01852",
    ),
    Remedy(
        name="elu",
        title="ELU",
        family="activation",
        apply=_elu,
        when="Units die, or means drift: negative values pull the mean towards zero.",
        code=_snippet("elu", by_hand="nn.ELU() in the place of nn.ReLU()"),
        paper="Clevert, Unterthiner & Hochreiter 2016, arXiv:1511.07289",
    ),
    Remedy(
        name="softplus",
        title="Softplus",
        family="activation",
        apply=_softplus,
        when="Units die in a shallow network; in a deep one its gradients shrink faster than a ReLU's.",
        code=_snippet("softplus", by_hand="nn.Softplus() in the place of nn.ReLU()"),
        paper="Dugas, Bengio, Belisle, Nadeau & Garcia 2001, NIPS 13",
    ),
    Remedy(
        name="tanh",
        title="tanh for sigmoid",
        family="activation",
        apply=_tanh,
        when="Sigmoids saturate: tanh is zero-centred and four times as steep. A trained network keeps its function.",
        code=_snippet("tanh", by_hand="nn.Tanh() in the place of nn.Sigmoid()"),
        paper="LeCun, Bottou, Orr & Mueller 1998, Efficient BackProp, section 4.4",
    ),
    Remedy(
        name="mixed_activations",
        title="Different functions in different layers",
        family="activation",
        apply=_mixed_activations,
        when="Whole layers die: every second hidden layer gets tanh (leaky ReLU where it was bounded), which passes some "
        "gradient for every sample.",
        code=_snippet("mixed_activations", by_hand="nn.Tanh() in every second hidden layer"),
        paper="Harmon & Klabjan 2017, Activation ensembles for deep neural networks, arXiv:1702.07790",
    ),
    Remedy(
        name="batch_norm",
        title="BatchNorm before the activation",
        family="normalisation",
        apply=_batch_norm,
        when="Pre-activations drift or explode: each unit fires on about half of every batch. Needs batches, not single "
        "samples.",
        code=_snippet("batch_norm", example=True, by_hand="nn.BatchNorm1d(width) between nn.Linear and nn.ReLU"),
        paper="Ioffe & Szegedy 2015, arXiv:1502.03167",
    ),
    Remedy(
        name="layer_norm",
        title="LayerNorm before the activation",
        family="normalisation",
        apply=_layer_norm,
        when="As batch_norm, for sequences and small batches. It does not help stacks of sigmoids.",
        code=_snippet("layer_norm", by_hand="nn.LayerNorm(width) between nn.Linear and nn.ReLU"),
        paper="Ba, Kiros & Hinton 2016, arXiv:1607.06450",
    ),
    Remedy(
        name="he_init",
        title="He initialisation",
        family="initialisation",
        apply=_he_init,
        when="Signals shrink or explode from the first step in a network of ReLU or a relative. Before training only.",
        code=_snippet("he_init", by_hand='nn.init.kaiming_normal_(layer.weight, nonlinearity="relu"), biases zero'),
        paper="He, Zhang, Ren & Sun 2015, arXiv:1502.01852",
    ),
    Remedy(
        name="xavier_init",
        title="Xavier initialisation",
        family="initialisation",
        apply=_xavier_init,
        when="Signals shrink or explode from the first step in a network of tanh or sigmoid. Before training only.",
        code=_snippet("xavier_init", by_hand="nn.init.xavier_normal_(layer.weight), biases zero"),
        paper="Glorot & Bengio 2010, AISTATS, equation 12",
    ),
    Remedy(
        name="lsuv_init",
        title="Layer-sequential unit-variance initialisation",
        family="initialisation",
        apply=_lsuv_init,
        when="As he_init, where no formula fits: the scale is measured on real inputs. Before training only.",
        code=_snippet("lsuv_init", example=True),
        paper="Mishkin & Matas 2016, All you need is a good init, arXiv:1511.06422",
        needs_batches=True,
    ),
    Remedy(
        name="reset_bias",
        title="Biases back to zero",
        family="initialisation",
        apply=_reset_bias,
        when="Biases hold units shut, whether set so at the start or driven there by one large step.",
        code=_snippet("reset_bias", by_hand="nn.init.zeros_(layer.bias)"),
        paper="He, Zhang, Ren & Sun 2015, arXiv:1502.01852, section 2.2",
    ),
    Remedy(
        name="lower_learning_rate",
        title="A tenth of the learning rate",
        family="optimizer",
        apply=_lower_learning_rate,
        when="Steps are so large that they knock units out. It prevents death and revives nothing.",
        code='for group in optimizer.param_groups:\n    group["lr"] = group["lr"] / 10',
        paper="Bengio 2012, Practical recommendations for gradient-based training, arXiv:1206.5533",
    ),
    Remedy(
        name="clip_gradients",
        title="Gradients clipped to norm 1",
        family="optimizer",
        apply=_clip_gradients,
        when="Single batches give huge gradients. It prevents death and revives nothing.",
        code=_snippet("clip_gradients", by_hand="nn.utils.clip_grad_norm_(model.parameters(), 1.0) before each step"),
        paper="Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063",
    ),
    Remedy(
        name="smaller_network",
        title="A smaller network",
        family="size",
        apply=_smaller_network,
        when="Units are dead and not missed: removing them keeps the function and saves time. Before training: hidden "
        "layers half as wide.",
        code=_snippet("smaller_network", example=True),
        paper="Hu, Peng, Tai & Tang 2016, Network trimming, arXiv:1607.03250",
    ),
    Remedy(
        name="recycle",
        title="Dead units redrawn",
        family="revival",
        apply=_recycle,
        when="Units died once, the cause is gone, and the rest of the network is worth keeping. Units that die again point "
        "to the learning rate.",
        code=_snippet("recycle", example=True),
        paper="Sokar, Agarwal, Castro & Evci 2023, The dormant neuron phenomenon in deep RL, arXiv:2302.12902",
    ),
    Remedy(
        name="scale_inputs",
        title="Standardised inputs",
        family="inputs",
        apply=_scale_inputs,
        when="Inputs come in raw units, far from mean 0 and standard deviation 1.",
        code=_snippet("scale_inputs", example=True, by_hand="x = (x - x_train.mean(0)) / x_train.std(0)"),
        paper="LeCun, Bottou, Orr & Mueller 1998, Efficient BackProp, section 4.3",
        needs_batches=True,
    ),
)  # fmt: skip

REMEDIES: dict[str, Remedy] = {remedy.name: remedy for remedy in _TABLE}
