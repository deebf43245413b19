"""Fresh weights and biases for every linear and convolutional layer, drawn to suit the functions around it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from relume import theory
from relume.activations import ACTIVATIONS
from relume.errors import RemedyError
from relume.recording import Site
from relume.theory import Critical
from relume.wiring import Layer, Wiring, follow, guess_input, outputs, require_runs

LSUV_TOLERANCE, LSUV_TRIES = 0.1, 10  # Mishkin & Matas 2016 (arXiv:1511.06422), algorithm 1
RAI_STD = 0.6007  # Lu, Shin, Su & Karniadakis 2019 (arXiv:1903.06733)
SIGMOID_SIGMA_W = 4.0  # 1/2 + tanh(x/2)/2: tanh's critical sigma_w of 1, for the halves inside and outside
HOLDS = 1 + 1e-6  # V'(q) up to this: the variance does not run away from a critical point
REACH = (1.5, 2.0, 4.0)  # times its q, where that is looked for again: layers of 64 units stray so far in 30 layers
ALIASES = {"kaiming": "he", "glorot": "xavier"}  # what torch.nn.init and Keras call them


# --- layers and what stands around them -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """A layer to be drawn, and the functions on either side of it."""

    module: Any  # nn.Linear or a convolution
    site: Site | None  # the activation it leads to; None where there is none, or a bounded one is the network's output
    before: Site | None  # the activation whose outputs it reads; None where that is not known
    first: bool  # it reads the network's input
    after: str = "no activation follows"  # why there is no site, where there is none


Draw = Callable[[Spot], str]  # sets weights and bias, and says what it did


def redraw(model: nn.Module, wiring: Wiring, draw: Draw, sites: Collection[str] | None = None) -> dict[str, str]:
    """Draw every layer that the pass went through; path -> what was done there, or why it was left.

    `sites` are the names of activations whose layers to draw; None: all.
    """
    changes: dict[str, str] = {}
    drawn: dict[int, str] = {}  # of the weights, by identity: some are tied
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    first = {path for path, _ in wiring.first_reads}
    transposed = [
        Layer(path=path, weight=f"{path}.weight", bias=f"{path}.bias", units=module.out_channels)
        for path, module in model.named_modules()
        if isinstance(module, _ConvTransposeNd) and wiring.uses[f"{path}.weight"]
    ]
    for layer in [*wiring.layers, *transposed]:
        if layer.path in changes:
            continue
        site = site_of(wiring, layer)
        if sites is not None and (site is None or site.name not in sites):
            continue
        module: Any = model.get_submodule(layer.path)
        if not layer.weight or not isinstance(module, (nn.Linear, _ConvNd)):
            changes[layer.weight or "a computed weight"] = "left as it is: not the weight of a plain layer"
            continue
        if not module.weight.requires_grad:
            changes[layer.path] = "left as it is: frozen"
        elif id(module.weight) in embedded:
            changes[layer.path] = "left as it is: its weight is an embedding's"
        elif id(module.weight) in drawn:
            changes[layer.path] = f"left as it is: its weight is that of {drawn[id(module.weight)]}"
        else:
            ends_here = site is not None and site.output and ACTIVATIONS[site.activation].bounded
            met = next((stop for stop in layer.stops if stop.startswith("its output goes into")), "")
            spot = Spot(
                module=module,
                site=None if ends_here else site,
                before=site_of(wiring, layer.source) if layer.source is not None else None,
                first=layer.path in first,
                after="a bounded output follows" if ends_here else met or "no activation follows",
            )
            drawn[id(module.weight)] = layer.path
            with torch.no_grad():
                changes[layer.path] = draw(spot)
            if met and spot.site is not None:
                changes[layer.path] += f"; {met}, which this scale leaves out"
    return changes


def site_of(wiring: Wiring, layer: Layer) -> Site | None:
    """The activation a layer leads to."""
    if layer.sites:
        return wiring.sites[layer.sites[0]]
    return next((site for site in wiring.sites if layer.weight and site.weight == layer.weight), None)


def fans_of(module: Any) -> tuple[float, float]:
    """How many numbers a unit of the layer adds up, and how many units each of its inputs reaches.

    As torch counts them, but for transposed convolutions, where torch takes one for the other and leaves out the
    stride: only every stride-th weight meets an input.
    """
    weight: Tensor = module.weight
    size = weight[0, 0].numel() if weight.dim() > 2 else 1
    if isinstance(module, _ConvTransposeNd):
        return weight.shape[0] / module.groups * size / math.prod(module.stride), weight.shape[1] * size
    return weight.shape[1] * size, weight.shape[0] * size


def gain_of(site: Site | None) -> float:
    """1 / sqrt(E[f'(z)^2]) for z ~ N(0, 1): sqrt(2) for a ReLU; 1 where no activation follows."""
    if site is None or ACTIVATIONS[site.activation].operands > 2:  # means over more operands are not known
        return 1.0
    gain = theory.moments(site.activation, **_parameters(site)).gain_backward
    return gain if math.isfinite(gain) and gain > 0 else 1.0


def _parameters(site: Site) -> dict[str, float]:
    return {k: v for k, v in site.parameters.items() if k in ACTIVATIONS[site.activation].parameters}


def _unit_sums(module: Any) -> Tensor:
    """The sum of the weights that each unit applies to its inputs."""
    weight: Tensor = module.weight
    if not isinstance(module, _ConvTransposeNd):
        return weight.flatten(1).sum(1)
    groups = weight.reshape(module.groups, -1, *weight.shape[1:]).sum(1)
    return groups.flatten(2).sum(2).reshape(-1) / math.prod(module.stride)


def _zero_bias(module: Any) -> None:
    if module.bias is not None:
        module.bias.zero_()


# --- schemes ----------------------------------------------------------------------------------------------------------


def draw_he(spot: Spot) -> str:
    """Variance gain^2 / fan_in, with the gain of the function that follows."""
    gain = gain_of(spot.site)
    std = gain / math.sqrt(fans_of(spot.module)[0])
    spot.module.weight.normal_(0, std)
    _zero_bias(spot.module)
    after = f"for {spot.site.activation}" if spot.site else f"as {spot.after}"
    return f"weights drawn with std {std:.3g} (gain {gain:.3g} {after})"


def draw_xavier(spot: Spot) -> str:
    """Glorot & Bengio's variance 2 / (fan_in + fan_out)."""
    return _draw_xavier(spot, 1.0)


def draw_xavier_as_tanh(spot: Spot) -> str:
    """As `draw_xavier`, but a sigmoid, 1/2 + tanh(x/2)/2, becomes the tanh that the rule was derived for: twice the
    weights on either side of it, and a bias that centres its outputs."""
    own, fed = (s is not None and s.activation == "sigmoid" for s in (spot.site, spot.before))
    words = _draw_xavier(spot, (2.0 if own else 1.0) * (2.0 if fed else 1.0))
    if fed and spot.module.bias is not None:
        spot.module.bias.copy_(-_unit_sums(spot.module) / 2)
        words += ", biases centre the sigmoids before"
    return words


def _draw_xavier(spot: Spot, factor: float) -> str:
    std = factor * math.sqrt(2 / sum(fans_of(spot.module)))
    spot.module.weight.normal_(0, std)
    _zero_bias(spot.module)
    return f"weights drawn with std {std:.3g}"


def draw_lecun(spot: Spot) -> str:
    """Variance 1 / fan_in."""
    std = 1 / math.sqrt(fans_of(spot.module)[0])
    spot.module.weight.normal_(0, std)
    _zero_bias(spot.module)
    return f"weights drawn with std {std:.3g}"


def draw_critical(spot: Spot) -> str:
    """The critical point of the function that feeds the layer, which both passes meet its weights with."""
    if spot.first or spot.site is None:
        # Inputs are taken as standardised, and outputs are left at the scale of what they read.
        mean = _critical_point(spot.before).mean if spot.before is not None else 0.0
        return _draw_normal(spot, 1.0, 0.0, mean, "its input" if spot.first else spot.after)
    fed = spot.before if spot.before is not None else spot.site
    point = _critical_point(fed)
    note = f"critical for {fed.activation}" if not point.why_not else f"{point.why_not} He's scale instead"
    if point.slope > HOLDS:
        note += f", where a deviation of the variance grows by {point.slope:.3g} a layer"
    elif _runs_away(fed, point):
        note += ", where a variance well above 1 does not come back: finite layers may drift"
    if spot.before is None:
        note += ", the function after it"
        return _draw_normal(spot, point.sigma_w2, point.sigma_b2, 0.0, note)
    return _draw_normal(spot, point.sigma_w2, point.sigma_b2, point.mean, note)


def draw_sigmoid_centred(spot: Spot) -> str:
    """sigma_w = 4 and biases of -1/2 the sum of the weights, after a sigmoid; else as `draw_critical`."""
    before, own = (s is not None and s.activation == "sigmoid" for s in (spot.before, spot.site))
    if before and spot.site is not None:
        return _draw_normal(spot, SIGMOID_SIGMA_W**2, 0.0, 0.5, "tanh's critical point, written for a sigmoid")
    if before:
        return _draw_normal(spot, 1.0, 0.0, 0.5, spot.after)
    if own and spot.first:
        return _draw_normal(spot, SIGMOID_SIGMA_W, 0.0, 0.0, "its input, and tanh's scale, written for a sigmoid")
    return draw_critical(spot)


def draw_rai(spot: Spot) -> str:
    """Rows of normal weights with the bias among them, one number of each row from Beta(2, 1)."""
    module = spot.module
    if spot.site is None or not ACTIVATIONS[spot.site.activation].can_die or isinstance(module, _ConvTransposeNd):
        return draw_he(spot) + ", as He: RAI is meant for layers before units that can die"
    rows = module.weight.flatten(1)
    units, fan_in = rows.shape
    drawn = torch.randn(units, fan_in + (module.bias is not None), device=rows.device, dtype=rows.dtype)
    drawn *= RAI_STD / math.sqrt(fan_in)
    column = torch.randint(drawn.shape[1], (units, 1), device=rows.device)
    drawn.scatter_(1, column, torch.rand(units, 1, device=rows.device, dtype=rows.dtype).sqrt())  # Beta(2, 1)
    module.weight.copy_(drawn[:, :fan_in].reshape(module.weight.shape))
    if module.bias is not None:
        module.bias.copy_(drawn[:, fan_in])
    return f"weights and biases drawn with std {RAI_STD / math.sqrt(fan_in):.3g}, one of each unit's from Beta(2, 1)"


def draw_orthonormal(spot: Spot) -> str:
    """The start of LSUV: see `scale_to_unit_variance`."""
    nn.init.orthogonal_(spot.module.weight)
    _zero_bias(spot.module)
    return "orthonormal weights"


def scale_to_unit_variance(model: nn.Module, inputs: Any, changes: Mapping[str, str]) -> dict[str, str]:
    """Layer by layer, divide the weights that were drawn by the standard deviation of the layer's output."""
    done = dict(changes)
    for path, words in changes.items():
        if words.startswith("left"):
            continue
        module: Any = model.get_submodule(path)
        std, tries = _output_std(model, inputs, module), 0
        while tries < LSUV_TRIES and abs(std - 1) > LSUV_TOLERANCE and 0 < std < math.inf:
            with torch.no_grad():
                module.weight /= std
            std, tries = _output_std(model, inputs, module), tries + 1
        done[path] = f"orthonormal weights, scaled to an output of standard deviation {std:.3g}"
    return done


SCHEMES: Mapping[str, Draw] = {
    "critical": draw_critical,
    "he": draw_he,
    "lecun": draw_lecun,
    "lsuv": draw_orthonormal,
    "rai": draw_rai,
    "sigmoid_centred": draw_sigmoid_centred,
    "xavier": draw_xavier,
}


def _critical_point(site: Site) -> Critical:
    """A critical point at q = 1 that holds itself: with centred biases where there is none without."""
    row, parameters = ACTIVATIONS[site.activation], _parameters(site)
    why = f"{row.name} reads {row.operands} numbers, for which no critical point is known."
    if row.operands <= 2:
        plain = theory.critical(row, centred=False, **parameters)
        if not plain.why_not and plain.slope <= HOLDS and not _runs_away(site, plain):
            return plain
        centred = theory.critical(row, centred=True, **parameters)
        if not centred.why_not and (plain.why_not or centred.slope < plain.slope):
            return centred
        if not plain.why_not:
            return plain
        why = plain.why_not
    sigma_w2 = gain_of(site) ** 2
    return Critical(q=1.0, sigma_w2=sigma_w2, sigma_b2=0.0, mean=0.0, slope=math.nan, why_not=why)


def _runs_away(site: Site, point: Critical) -> bool:
    """Whether, above the point and within the reach of finite layers, a variance grows from layer to layer."""
    if point.why_not:
        return False

    def passed_on(q: float) -> float:
        found = theory.moments(site.activation, q, **_parameters(site))
        # With centred biases the deviation from the mean at the point is what the weights see.
        return point.sigma_w2 * (found.second - 2 * point.mean * found.mean + point.mean**2) + point.sigma_b2

    return any(passed_on(q * point.q) > HOLDS * q * point.q for q in REACH)


def _draw_normal(spot: Spot, sigma_w2: float, sigma_b2: float, mean: float, note: str) -> str:
    """Normal weights, and normal biases that take the mean of what the layer reads away."""
    module = spot.module
    std = math.sqrt(sigma_w2 / fans_of(module)[0])
    module.weight.normal_(0, std)
    words = f"weights drawn with std {std:.3g}"
    if module.bias is not None:
        module.bias.normal_(0, math.sqrt(sigma_b2)) if sigma_b2 else module.bias.zero_()
        words += f", biases with std {math.sqrt(sigma_b2):.3g}" if sigma_b2 else ""
        if mean:
            module.bias -= mean * _unit_sums(module)
            words += f" around what takes the mean {mean:.3g} of its inputs away"
    elif sigma_b2 or mean:
        note += "; it has no bias, which belongs to that point"
    return f"{words} ({note})"


def _output_std(model: nn.Module, inputs: Any, module: nn.Module) -> float:
    seen: list[float] = []
    handle = module.register_forward_hook(lambda m, args, out: seen.append(float(out.detach().float().std())))
    try:
        outputs(model, [inputs], training=False)
    finally:
        handle.remove()
    return seen[0]


# --- a whole network --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialised:
    """What an initialisation did, layer by layer."""

    scheme: str
    changes: Mapping[str, str]  # path of a layer -> what was done there, or why it was left

    def __str__(self) -> str:
        drawn = sum(not words.startswith("left") for words in self.changes.values())
        lines = [f"{self.scheme}: {drawn} of {len(self.changes)} layers drawn"]
        return "\n".join(lines + [f"  {path or 'the model'}: {words}" for path, words in self.changes.items()])


def init_(model: nn.Module, scheme: str = "critical", *, example_input: Any = None) -> Initialised:
    """Draw the weights and biases of every linear and convolutional layer anew, each for the functions around it.

    Changes the model itself, with torch's global random generator, as `torch.nn.init` does; gives back what was done. A
    forward pass shows which function follows and feeds each layer: `example_input` is an input of the model (a tuple or
    a dict is passed on as its arguments), and is guessed from the first layer where none is given.

    - "critical": gradients keep their size through any depth, where layers follow one another and the input has mean
      square 1. Where a function has no critical point that holds itself, biases also take away the mean of its outputs.
      Sums of branches and gates are not counted with; the line of a layer that leads to one says so.
    - "he", "xavier", "lecun": the variances gain^2 / fan_in, 2 / (fan_in + fan_out), 1 / fan_in. He's gain is that of
      any function.
    - "lsuv": orthonormal, then scaled to outputs of variance 1 on `example_input`, which must be given.
    - "rai": few units are born dead. "sigmoid_centred": sigmoids as tanh at its critical point.

    Layers without a function behind them, and those before a bounded output, have gain 1. Frozen weights, embeddings,
    norms and fused layers such as LSTM and attention are left as they are. Raises `RemedyError` for an unknown scheme,
    an input the model does not take, or where there is none and none could be guessed.

    Source: Schoenholz et al. 2017, arXiv:1611.01232 (critical); He et al. 2015, arXiv:1502.01852; Glorot & Bengio 2010;
    LeCun et al. 1998; Mishkin & Matas 2016, arXiv:1511.06422 (LSUV); Lu et al. 2019, arXiv:1903.06733 (RAI).

    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> print(init_(model, "he"))
    he: 2 of 2 layers drawn
      0: weights drawn with std 0.177 (gain 1.41 for relu)
      2: weights drawn with std 0.125 (gain 1 as no activation follows)
    """
    if not isinstance(model, nn.Module):
        raise RemedyError(f"init_ needs a torch.nn.Module; found {type(model).__name__}.")
    scheme = str(scheme).casefold()
    scheme = ALIASES.get(scheme, scheme)
    if scheme not in SCHEMES:
        close = difflib.get_close_matches(scheme, SCHEMES, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else f"Schemes: {', '.join(SCHEMES)}."
        raise RemedyError(f"no initialisation named {scheme!r}.\n{hint}")
    if example_input is None:
        if scheme == "lsuv":
            raise RemedyError(
                "lsuv measures the output of each layer on sample inputs, and none were given.\n"
                "Pass example_input=..., a batch of real inputs."
            )
        example_input = guess_input(model)
        if example_input is None:
            raise RemedyError(
                f"init_ has to follow one forward pass of {type(model).__name__}, and no input could be guessed.\n"
                "Pass example_input; a tuple or a dict is passed on as the model's arguments."
            )
    else:
        require_runs(model, example_input)
    wiring = follow(model, example_input)
    changes = redraw(model, wiring, SCHEMES[scheme])
    if scheme == "lsuv":
        changes = scale_to_unit_variance(model, example_input, changes)
    return Initialised(scheme=scheme, changes={**changes, **_left_alone(model, wiring)})


def _left_alone(model: nn.Module, wiring: Wiring) -> dict[str, str]:
    """Layers that no scheme knows how to draw, or that the pass did not go through."""
    left = {}
    first_name = {id(p): name for name, p in model.named_parameters()}  # of tied parameters, the one that is counted
    for path, module in model.named_modules():
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)):
            left[path or "the model"] = f"left as it is: {type(module).__name__} keeps torch's own initialisation"
        elif isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and not any(
            wiring.uses[first_name[id(p)]] for p in module.parameters()
        ):
            left[path] = "left as it is: the forward pass did not use it"
    return left
