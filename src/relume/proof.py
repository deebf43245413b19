"""Proves that silent units stay silent: on the convex hull of the inputs seen, and on their whole box.

What a unit receives is affine in what its layer reads. So if all inputs seen leave it in one stretch of slope zero, so
does every input between them; and interval bounds say whether the whole box does. Both hold for the network's own
rounded arithmetic: what it may be off is added to the bounds (`_rounding`).
"""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relume.activations import ACTIVATIONS
from relume.nested import call
from relume.probe import Probe
from relume.recording import Proof, Reading
from relume.sites import Call, Trace, undisturbed

__all__ = ["Proof", "prove", "prove_runs", "silent_units"]

ROWS = 512  # inputs of a layer whose distances from their mean give its radius: a scale, not part of the proof
NORM_ROUNDINGS = 8  # of a term on its way through a normalisation: add, root, quotient, three products, sum; one spare
DOUBLE = torch.finfo(torch.float64).eps / 2

_LAYER = re.compile(r"linear$|conv[123]d$")
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_NORM_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_UNCHANGED = {"contiguous", "detach", "clone"}


def prove(
    model: nn.Module, batches: Iterable[Any], dead: Mapping[str, Sequence[int]] | None = None
) -> tuple[Proof, ...]:
    """Prove that units stay closed for inputs that were not seen; the model runs in its present mode, bit-identical.

    `batches` are inputs: a tuple is the model's arguments, a dict its keyword arguments. `dead` names units by site;
    without it, those that are silent on all of the batches. What a unit receives must be affine in what its layer
    reads: `reasons` says where it is not. The bounds allow for the rounding of sums in any order (Higham 2002,
    Accuracy and Stability of Numerical Algorithms, section 3.1); they do not speak of TF32, nor of convolutions by
    Winograd's method.
    Raises whatever the model itself raises.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> nn.init.constant_(model[0].bias, -100.0).sum().item()
    -800.0
    >>> [proof] = prove(model, [torch.randn(1000, 4)])
    >>> proof.site, int(proof.hull.sum()), int(proof.box.sum())
    ('1', 8, 8)
    """
    runs = [partial(call, model, batch) for batch in batches]
    if dead is None:
        dead = silent_units([_read(model, run) for run in runs])
    return prove_runs(model, runs, dead)


def silent_units(readings: Iterable[Reading]) -> dict[str, tuple[int, ...]]:
    """Units by site that are silent in all readings of it; sites without any are left out."""
    silent: dict[str, Any] = {}
    for reading in readings:
        for name, read in reading.sites.items():
            before = silent.get(name, read.silent)
            silent[name] = before & read.silent if len(before) == len(read.silent) else np.zeros(0, dtype=np.bool_)
    return {name: tuple(map(int, np.flatnonzero(units))) for name, units in silent.items() if units.any()}


def prove_runs(
    model: nn.Module, runs: Iterable[Callable[[], Any]], dead: Mapping[str, Sequence[int]]
) -> tuple[Proof, ...]:
    """`prove` for passes that are called; each run calls the model on one batch."""
    asked = {name: tuple(units) for name, units in dead.items() if len(units)}
    seen: dict[str, _Seen] = {}
    for run in runs if asked else ():
        with undisturbed(model), torch.no_grad():
            torch.manual_seed(0)
            trace = _Affine(model, asked, seen)
            with trace:
                run()
        if trace.error is not None:
            raise trace.error
    return tuple(_proof(name, site) for name, site in seen.items())


def _read(model: nn.Module, run: Callable[[], Any]) -> Reading:
    probe = Probe(model)
    with undisturbed(model), torch.no_grad():
        torch.manual_seed(0)
        with probe.trace:
            run()
    if probe.trace.error is not None:
        raise probe.trace.error
    return probe.reading()


# What a unit receives -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Norm:
    """A BatchNorm with fixed statistics: y = scale * x + shift; `size` bounds what is added to the product."""

    scale: Tensor
    shift: Tensor
    size: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Link:
    """How a tensor comes from what a layer reads; or, with `stop`, why that is not known to be affine."""

    func: Any = None
    given: Mapping[str, Any] = field(default_factory=dict)  # arguments of the layer's call
    norms: tuple[_Norm, ...] = ()
    layer_norm: tuple[Tensor, Tensor] | None = None  # weight and bias of a LayerNorm, which bounds what comes out
    read: int = 0  # version of the input when the layer read it
    stop: str = ""


@dataclass(slots=True, eq=False)
class _Range:
    """Per unit, least and greatest values, and a bound on the absolute sum of the terms."""

    low: Tensor
    high: Tensor
    size: Tensor

    def joined(self, other: _Range) -> _Range:
        return _Range(
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
            torch.maximum(self.size, other.size),
        )


@dataclass(slots=True, eq=False)
class _Seen:
    """All that was seen of one site, over the batches."""

    units: tuple[int, ...]
    stretches: tuple[tuple[float, float], ...]
    link: _Link
    roundoff: float
    seen: _Range | None = None  # of the layer's sums, exactly computed
    inputs: _Range | None = None  # of the features that the layer reads
    rows: list[Tensor] = field(default_factory=list)  # [rows, groups, features]
    samples: int = 0
    stop: str = ""


class _Affine(Trace):
    """Follows one pass and adds what the layers of the asked sites read to `seen`."""

    def __init__(self, model: nn.Module, asked: Mapping[str, tuple[int, ...]], seen: dict[str, _Seen]) -> None:
        super().__init__(model, self._look)
        self._asked = asked
        self._seen = seen
        self._links: dict[int, tuple[weakref.ref[Tensor], int, _Link]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        if isinstance(result, Tensor):
            self.attempt(self._note, func, args, kwargs or {}, result)
        return result

    def _link(self, tensor: Any) -> _Link | None:
        """How a tensor came about, unless it was overwritten since."""
        ref, version, link = self._links.get(id(tensor), (None, 0, None))
        return link if ref is not None and ref() is tensor and version == _version(tensor) else None

    def _note(self, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
        name = getattr(func, "__name__", "an operation")
        if _LAYER.match(name):
            given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
            link = _Link(func=func, given=given, read=_version(given["input"]))
        else:
            taken = [*args, *kwargs.values()]
            before = next((link for value in taken if (link := self._link(value)) is not None), None)
            if before is None or any(result is value for value in taken):
                return
            link = self._after(name, before, args, kwargs)
        # what a dead tensor came from need not be kept alive
        self._links = {key: entry for key, entry in self._links.items() if entry[0]() is not None}
        self._links[id(result)] = (weakref.ref(result), _version(result), link)

    def _after(self, name: str, before: _Link, args: Any, kwargs: Any) -> _Link:
        """The link of what an operation made of a linked tensor."""
        if before.stop or name in _UNCHANGED:
            return before
        if name == "batch_norm" and before.layer_norm is None:
            given = {**dict(zip(_NORM_ARGUMENTS, args, strict=False)), **kwargs}
            if given.get("training") or given.get("running_mean") is None:
                return _Link(stop="a BatchNorm in training mode takes its statistics from each batch: no affine map")
            return replace(before, norms=(*before.norms, _folded(given)))
        if name == "layer_norm":
            given = {**dict(zip(("input", "shape", "weight", "bias"), args, strict=False)), **kwargs}
            weight, bias = given.get("weight"), given.get("bias")
            if weight is not None and weight.dim() == 1:
                shift = torch.zeros_like(weight) if bias is None else bias
                return _Link(layer_norm=(weight.detach().double(), shift.detach().double()))
        return _Link(stop=f"{name.strip('_')} stands between the layer and the function: no affine map that is known")

    # at a site ------------------------------------------------------------------------------------------------------

    def _look(self, call: Call, pre: Tensor) -> Callable[[Tensor], None]:
        units = self._asked.get(call.site.name)
        if units and pre.numel():
            link = self._link(pre) or _Link(stop="no linear or convolutional layer was seen to feed it")
            stop = link.stop or _unfit(call, pre, link, units)
            site = self._seen.get(call.site.name)
            if site is None:
                stretches = (
                    () if call.slopes else ACTIVATIONS[call.site.activation].dead_stretches(**call.site.parameters)
                )
                site = self._seen[call.site.name] = _Seen(units, stretches, link, _roundoff(pre, link))
            site.stop = site.stop or stop
            if not site.stop:
                _add(site, link, pre.numel() // call.site.units)
        return lambda result: None


def _unfit(call: Call, pre: Tensor, link: _Link, units: tuple[int, ...]) -> str:
    """Why nothing can be proven of a site, though its input is affine in something; "" where it can."""
    if max(units) >= call.site.units or min(units) < 0:
        return f"it has {call.site.units} units: there is no unit {max(units) if min(units) >= 0 else min(units)}"
    if link.func is not None and _version(link.given["input"]) != link.read:
        return "what its layer read was overwritten"
    if call.slopes:
        return "its slope is learnt"
    width = link.layer_norm[0].shape[0] if link.layer_norm else link.given["weight"].shape[0]
    axis = -1 if link.layer_norm or link.given["weight"].dim() == 2 else 1 - link.given["weight"].dim()
    if width != call.site.units or call.site.axis != axis:
        return "its units are not those of the layer"
    return ""


def _version(tensor: Tensor) -> int:
    """Grows with every write; inference mode does not count, nor does it train."""
    return 0 if tensor.is_inference() else tensor._version


def _roundoff(pre: Tensor, link: _Link) -> float:
    """Half an ulp at 1 of the coarsest type on the way: under autocast a layer computes in less than it is given."""
    types = [pre.dtype, *(link.given[key].dtype for key in ("input", "weight") if key in link.given)]
    return max(torch.finfo(t).eps for t in types) / 2


def _folded(given: Mapping[str, Any]) -> _Norm:
    mean, variance = given["running_mean"].double(), given["running_var"].double()
    weight, bias = given.get("weight"), given.get("bias")
    root = (variance + float(given.get("eps", 1e-5))).rsqrt()
    scale = root if weight is None else root * weight.detach().double()
    beta = torch.zeros_like(mean) if bias is None else bias.detach().double()
    return _Norm(scale, beta - mean * scale, (mean * scale).abs() + beta.abs())


# Bounds -------------------------------------------------------------------------------------------------------------


def _add(site: _Seen, link: _Link, samples: int) -> None:
    """Add what one call of the layer read, in double precision."""
    site.link, site.samples = link, site.samples + samples
    if link.layer_norm is not None:
        return
    x = link.given["input"].detach().double()
    weight, bias = _rows(site)
    dims = weight.dim() - 2
    x = x.reshape(-1, x.shape[-1]) if dims == 0 else x.reshape(-1, *x.shape[-1 - dims :])
    z = _apply(site, x, weight, bias)
    # one input with the largest sizes of all bounds each of them, for the price of one
    size = _apply(site, x.abs().amax(0, keepdim=True), weight.abs(), bias.abs())
    new = _Range(z.amin(0), z.amax(0), size.amax(0))
    site.seen = new if site.seen is None else site.seen.joined(new)
    rest = [d for d in range(x.dim()) if d != 1]
    low, high = x.amin(rest), x.amax(rest)
    padding = link.given.get("padding", 0)
    if dims and padding != "valid" and (isinstance(padding, str) or bool(np.any(padding))):
        low, high = low.clamp(max=0), high.clamp(min=0)  # zeros at the border
    fed = _Range(low, high, torch.maximum(low.abs(), high.abs()))
    site.inputs = fed if site.inputs is None else site.inputs.joined(fed)
    if sum(map(len, site.rows)) < ROWS:
        site.rows.append(_patches(link, x))


def _rows(site: _Seen) -> tuple[Tensor, Tensor]:
    """Weight and bias of the units asked about, in double precision; of all units where channels are in groups."""
    weight, bias = (link := site.link).given["weight"].detach().double(), link.given.get("bias")
    bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().double()
    if link.given.get("groups", 1) != 1:
        return weight, bias
    index = list(site.units)
    return weight[index], bias[index]


def _apply(site: _Seen, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The layer's sums on x, [samples and positions, units asked about]."""
    z = site.link.func(**{**site.link.given, "input": x, "weight": weight, "bias": bias})
    z = z.movedim(1, -1).reshape(-1, z.shape[1])
    return z if z.shape[1] == len(site.units) else z[:, list(site.units)]


def _patches(link: _Link, x: Tensor) -> Tensor:
    """Some of what the layer's units read, evenly from all: [rows, groups of channels, features]."""
    dims = x.dim() - 2
    if dims <= 0:
        return x[:: max(1, len(x) // ROWS)][:ROWS, None]
    images = x[:: max(1, len(x) // 16)][:16]
    kernel = link.given["weight"].shape[2:]
    groups, taps = link.given.get("groups", 1), math.prod(kernel)
    each = images.reshape(-1, 1, *images.shape[2:])  # a kernel with a single 1 picks one tap of the patch
    pick = torch.eye(taps, dtype=x.dtype, device=x.device).reshape(taps, 1, *kernel)
    found = link.func(**{**link.given, "input": each, "weight": pick, "bias": None, "groups": 1})
    rows = found.reshape(len(images), groups, -1, found[0, 0].numel()).permute(0, 3, 1, 2).flatten(0, 1)
    return rows[:: max(1, len(rows) // ROWS)][:ROWS]


def _box(site: _Seen) -> _Range:
    """Interval bounds of the layer's sums over the box of its inputs."""
    assert site.inputs is not None
    weight, bias = _rows(site)
    low, high, size = site.inputs.low, site.inputs.high, site.inputs.size
    groups = site.link.given.get("groups", 1)
    plus, minus = (w.clamp(min=0).flatten(2).sum(2) if w.dim() > 2 else w.clamp(min=0) for w in (weight, -weight))
    if groups == 1:
        ends = [plus @ low - minus @ high, plus @ high - minus @ low, (plus + minus) @ size]
    else:
        low, high, size = (v.reshape(groups, -1).repeat_interleave(len(weight) // groups, 0) for v in (low, high, size))
        terms = (plus * low - minus * high, plus * high - minus * low, (plus + minus) * size)
        ends = [term.sum(1)[list(site.units)] for term in terms]
        bias = bias[list(site.units)]
    return _Range(ends[0] + bias, ends[1] + bias, ends[2] + bias.abs())


def _rounding(terms: int, roundoff: float) -> float:
    """Error of a sum of products over the sum of their absolute values, in any order of summation.

    Higham 2002, Accuracy and Stability of Numerical Algorithms, eq. (3.5): n u / (1 - n u). Four roundings more are
    for the bias and for factors that autocast rounds. The same in double precision for the bounds' own computation.
    """
    n = terms + 4
    return n * roundoff / (1 - n * roundoff) + 2 * n * DOUBLE if n * roundoff < 1 else math.inf


def _final(site: _Seen, sums: _Range) -> _Range:
    """Bounds of what the function receives, in the network's arithmetic, from exact bounds of the layer's sums."""
    terms = site.link.given["weight"][0].numel()
    low, high, size = sums.low, sums.high, sums.size
    tiny = terms * torch.finfo(torch.float32).tiny * (size > 0)  # products that underflow
    slack = _rounding(terms, site.roundoff) * size + tiny
    for norm in site.link.norms:
        scale, shift, more = (v[list(site.units)] for v in (norm.scale, norm.shift, norm.size))
        ends = low * scale + shift, high * scale + shift
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        size = (size + slack) * scale.abs() + more
        slack = slack * scale.abs() + _rounding(NORM_ROUNDINGS, site.roundoff) * size
    return _Range(low - slack, high + slack, size)


def _bounded(site: _Seen, layer_norm: tuple[Tensor, Tensor]) -> _Range:
    """Bounds after a LayerNorm: of d numbers with mean square 1 at most, none is beyond sqrt(d)."""
    weight, bias = (v[list(site.units)] for v in layer_norm)
    width = len(layer_norm[0])
    reach = weight.abs() * math.sqrt(width)
    slack = _rounding(width + NORM_ROUNDINGS, site.roundoff) * (reach + bias.abs())
    return _Range(bias - reach - slack, bias + reach + slack, reach + bias.abs())


# Proofs -------------------------------------------------------------------------------------------------------------


def _proof(name: str, site: _Seen) -> Proof:
    none = np.zeros(len(site.units), dtype=np.bool_)
    unknown = Proof(
        site=name, units=site.units, hull=none, margin=np.full(len(none), np.nan, dtype=np.float32), box=none,
        samples=site.samples, reasons=(site.stop,),
    )  # fmt: skip
    if site.stop:
        return unknown
    if not site.stretches:
        return replace(unknown, reasons=("its function has no stretch of slope zero",))
    if (norm := site.link.layer_norm) is not None:
        hull = box = _bounded(site, norm)
        length, radius = norm[0][list(site.units)].abs(), torch.full_like(hull.low, math.sqrt(len(norm[0])))
        if not _closed(site, hull).any():
            return replace(unknown, reasons=("a LayerNorm stands between the layer and the function: no affine map",))
    else:
        assert site.seen is not None
        hull, box = _final(site, site.seen), _final(site, _box(site))
        length, radius = _length(site), _radius(site)
    distance = torch.stack(
        [torch.minimum(end - hull.high, hull.low - start) for start, end in site.stretches]
    ).amax(0)  # fmt: skip
    margin = (distance / (length * radius)).nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)
    return replace(
        unknown,
        hull=_closed(site, hull).cpu().numpy(),
        margin=margin.float().cpu().numpy(),
        box=_closed(site, box).cpu().numpy(),
        reasons=(),
    )


def _closed(site: _Seen, found: _Range) -> Tensor:
    """Units whose bounds lie in one stretch of slope zero."""
    inside = [(found.low >= start) & (found.high <= end) for start, end in site.stretches]
    return torch.stack(inside).any(0)


def _length(site: _Seen) -> Tensor:
    """Norms of the weights, with the scale of a BatchNorm."""
    index = list(site.units)
    length = site.link.given["weight"].detach().double()[index].flatten(1).norm(dim=1)
    for norm in site.link.norms:
        length = length * norm.scale[index].abs()
    return length


def _radius(site: _Seen) -> Tensor:
    """Median distance of the layer's inputs from their mean, for the group of channels that each unit reads."""
    rows = torch.cat(site.rows)
    radius = (rows - rows.mean(0)).norm(dim=2).median(0).values
    units = site.link.given["weight"].shape[0]
    return radius.repeat_interleave(units // len(radius))[list(site.units)]
