"""Who feeds whom: layers, the norms and activations that follow them, and the layers that read their units."""

from __future__ import annotations

import random
import re
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from relume.errors import RemedyError
from relume.nested import call, tensors
from relume.randomness import isolated_rng
from relume.sites import Call, Observer, Trace, is_activation_module, undisturbed

# Operations that treat every element alike: a unit stays where it is.
_ELEMENTWISE = set(
    # a list of forty quoted names would be harder to read
    """
    dropout dropout_ dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout contiguous clone to float double
    half bfloat16 detach neg abs square sqrt exp log1p pow nan_to_num clamp clip mul div add sub true_divide mul_ div_
    add_ sub_ __mul__ __rmul__ __truediv__ __add__ __radd__ __sub__ __pow__ __neg__
    """.split()  # noqa: SIM905
)
_RESHAPES = {"flatten", "reshape", "view", "squeeze", "unsqueeze", "reshape_as", "view_as", "unflatten", "ravel"}
_REDUCES = {"mean", "sum", "amax", "amin"}
_POOL = re.compile(r"_?(?:adaptive_)?(?:max|avg|lp)_pool([123])d(?:_with_indices)?$")
_CONV = re.compile(r"conv([123])d$")


@dataclass(slots=True, eq=False)
class Reader:
    """A layer that reads the units of another: unit u is columns u * block to (u + 1) * block of its weight."""

    path: str
    block: int
    padded: bool  # zero padding: a constant input is not a constant contribution at the border


@dataclass(slots=True, eq=False)
class Layer:
    """A linear or convolutional layer as one forward pass uses it, and what becomes of its units."""

    path: str  # of the module, "" where a function was called with parameters of another module
    weight: str  # name of the parameter, "" where it is computed
    bias: str
    units: int
    norms: list[tuple[str, int]] = field(default_factory=list)  # path of a BatchNorm on the way, and its block
    sites: list[int] = field(default_factory=list)  # activation calls on the way, by index
    readers: list[Reader] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)  # why its units cannot be left out without a trace
    shared: list[str] = field(default_factory=list)  # those of the stops that only share statistics among its units
    layer_norms: list[tuple[str, int]] = field(default_factory=list)  # as norms, where statistics run over the units
    source: Layer | None = None  # whose units it reads
    steps: Counter[str] = field(default_factory=Counter)  # names of the operations on the way


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the code an activation call happens."""

    call: Call
    frames: tuple[tuple[str, int], ...]  # modules that were running, outermost first, and calls made before each began
    own: bool  # the innermost of them is the activation's own module
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    in_place: bool
    layer: Layer | None
    func: Any  # what was called, and with what beside its input
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Link:
    """A tensor that carries a layer's units along one axis, counted from the end."""

    layer: Layer
    axis: int
    block: int


class Wiring(Trace):
    """Follows one forward pass and says which layer's units pass which norms and activations, and who reads them."""

    def __init__(self, model: nn.Module, observe: Observer | None = None) -> None:
        super().__init__(model, observe)
        self.layers: list[Layer] = []
        self.places: list[Place] = []
        self.uses: Counter[str] = Counter()  # how often the pass uses each parameter
        self.first_reads: list[tuple[str, Tensor]] = []  # layers reached before any other layer, and what they read
        self._links: dict[int, tuple[weakref.ref[Tensor], _Link]] = {}
        self._frames: list[tuple[nn.Module, str, int]] = []
        self._reached: dict[int, weakref.ref[Tensor]] = {}  # tensors that came through a layer

    def _module_begins(self, module: nn.Module, args: Any) -> None:
        super()._module_begins(module, args)
        name = self._modules.get(id(module))
        if name is not None:
            self._frames.append((module, name, len(self.calls)))

    def _module_ends(self, module: nn.Module, args: Any, output: Any) -> None:
        super()._module_ends(module, args, output)
        if id(module) in self._modules:
            while self._frames and self._frames.pop()[0] is not module:
                pass

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        taken = list(tensors((args, kwargs)))
        links = [(t, link) for t in taken if (link := self._link(t)) is not None]
        through = any(self._has_passed(t) for t in taken)
        shapes = [tuple(t.shape) for t, _ in links]
        made = len(self.calls)
        result = super().__torch_function__(func, types, args, kwargs)
        out = result[0] if isinstance(result, (tuple, list)) and result else result
        if not isinstance(out, Tensor):
            return result
        name = getattr(func, "__name__", "an operation")
        for t in taken:
            if (parameter := self._parameters.get(id(t))) is not None:
                self.uses[parameter] += 1
        if len(self.calls) > made:
            self._place(self.calls[made], func, args, kwargs, out, links)
            if links and len(taken) == 1 + sum(id(t) in self._parameters for t in taken):
                self._pass(out, links[0][1])
                return result
        if name == "linear" or _CONV.match(name):
            self._layer_called(name, args, kwargs, links, out, through)
            return result
        if through or any(id(t) in self._parameters for t in taken):
            self._reached[id(out)] = weakref.ref(out)
        if links:
            self._carry(name, args, kwargs, taken, links, shapes, out)
        return result

    # links ----------------------------------------------------------------------------------------------------------

    def _link(self, tensor: Tensor) -> _Link | None:
        ref, link = self._links.get(id(tensor), (None, None))
        return link if ref is not None and ref() is tensor else None

    def _has_passed(self, tensor: Tensor) -> bool:
        ref = self._reached.get(id(tensor))
        return ref is not None and ref() is tensor

    def _pass(self, out: Tensor, link: _Link) -> None:
        self._links[id(out)] = (weakref.ref(out), link)
        self._reached[id(out)] = weakref.ref(out)

    def _place(self, call: Call, func: Any, args: Any, kwargs: Any, out: Tensor, links: Any) -> None:
        link = next((link for t, link in links if t is args[0]), None)
        if link is not None:
            link.layer.sites.append(call.index)
        module = self._frames[-1][0] if self._frames else None
        own = is_activation_module(module)
        self.places.append(
            Place(
                call=call,
                frames=tuple((name, made) for _, name, made in self._frames),
                own=own,
                shape=tuple(out.shape),
                device=out.device,
                dtype=out.dtype,
                in_place=out is args[0],
                layer=link.layer if link else None,
                func=func,
                args=tuple(args[1:]),
                kwargs=dict(kwargs),
            )
        )

    def _layer_called(self, name: str, args: Any, kwargs: Any, links: Any, out: Tensor, through: bool) -> None:
        x, weight, bias, padding, groups = _layer_arguments(name, args, kwargs)
        path = self._frames[-1][1] if self._frames else ""
        module = self._frames[-1][0] if self._frames else None
        own = isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
        dims = 0 if name == "linear" else int(name[-2])
        layer = Layer(
            path=path if own else "",
            weight=self._parameters.get(id(weight), ""),
            bias=self._parameters.get(id(bias), "") if bias is not None else "",
            units=weight.shape[0],
        )
        if not own or not layer.weight:
            layer.stops.append(f"its weight is not that of a plain nn.Linear or nn.Conv module ({path or 'the model'})")
        self.layers.append(layer)
        if not through:
            self.first_reads.append((layer.path or path, x.detach()))
        for tensor, link in links:
            if tensor is not x or not layer.path or not layer.weight or groups != 1 or link.axis != -1 - dims:
                link.layer.stops.append(
                    f"{layer.path or name} reads it "
                    + ("in groups of channels" if groups != 1 else "in a way that does not keep units apart")
                )
            elif weight.shape[1] != link.layer.units * link.block:
                link.layer.stops.append(f"{layer.path} reads it together with other values")
            else:
                layer.source = link.layer
                padded = dims > 0 and (isinstance(padding, str) or any(_as_tuple(padding)))
                link.layer.readers.append(Reader(layer.path, link.block, padded and padding != "valid"))
        self._pass(out, _Link(layer, -1 - dims, 1))

    def _carry(
        self, name: str, args: Any, kwargs: Any, tensors: list[Tensor], links: Any, shapes: Any, out: Tensor
    ) -> None:
        (tensor, link), shape = links[0], shapes[0]
        others = [t for t in tensors if t is not tensor]
        carried = None
        if len(links) == 1:
            if name == "batch_norm":
                carried = self._normed(link)
            elif name == "layer_norm":
                carried = self._layer_normed(link)
            elif not others:
                carried = _moved(name, args, kwargs, shape, link, out)
        if carried is not None:
            link.layer.steps[name.rstrip("_")] += 1
            self._pass(out, carried)
            return
        for _, link in links:
            link.layer.steps[name.strip("_").removeprefix("r")] += 1
            how = "where it meets other values" if others or len(links) > 1 else "which does not keep its units apart"
            link.layer.stops.append(f"its output goes into {name.strip('_')}, {how}")
        self._links.pop(id(out), None)

    def _normed(self, link: _Link) -> _Link | None:
        module, path, _ = self._frames[-1] if self._frames else (None, "", 0)
        if not isinstance(module, _BatchNorm) or module.num_features != link.layer.units * link.block:
            return None
        link.layer.norms.append((path, link.block))
        return link

    def _layer_normed(self, link: _Link) -> _Link | None:
        """Units stay apart where they are all that is normalised, but each moves the mean and variance of the rest."""
        module, path, _ = self._frames[-1] if self._frames else (None, "", 0)
        width = link.layer.units * link.block
        if not isinstance(module, nn.LayerNorm) or link.axis != -1 or module.normalized_shape != (width,):
            return None
        link.layer.layer_norms.append((path, link.block))
        link.layer.shared.append(f"its output goes into {path}, whose mean and variance run over its units")
        link.layer.stops.append(link.layer.shared[-1])
        return link

    def finish(self, output: Any) -> None:
        """Say that `output` is what the model gave back."""
        for tensor in tensors(output):
            if (link := self._link(tensor)) is not None:
                link.layer.stops.append("its output is part of the network's output")
        for layer in self.layers:
            for name, what in ((layer.weight, "weight"), (layer.bias, "bias")):
                if name and self.uses[name] > 1:
                    layer.stops.append(f"its {what} is used {self.uses[name]} times in one pass")
            if not layer.readers and not layer.stops:
                layer.stops.append("no layer that reads its output was seen")
        weights = {layer.path: layer.weight for layer in self.layers}
        for layer in self.layers:
            for reader in layer.readers:
                if (times := self.uses[weights[reader.path]]) > 1:
                    layer.stops.append(f"{reader.path}, which reads it, is used {times} times in one pass")
        self._links.clear()
        self._reached.clear()


def _layer_arguments(name: str, args: Any, kwargs: Any) -> tuple[Tensor, Tensor, Tensor | None, Any, int]:
    """Input, weight, bias, padding and groups of a call of linear or conv."""
    names = ("input", "weight", "bias") + (() if name == "linear" else ("stride", "padding", "dilation", "groups"))
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return given["input"], given["weight"], given.get("bias"), given.get("padding", 0), given.get("groups", 1)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _moved(name: str, args: Any, kwargs: Any, shape: tuple[int, ...], link: _Link, out: Tensor) -> _Link | None:
    """Where the units are after an operation on one tensor; None where they can no longer be told apart."""
    dims, axis = len(shape), len(shape) + link.axis
    if name in _ELEMENTWISE:
        return link if tuple(out.shape) == shape else None
    pool = _POOL.match(name)
    if pool or name in {"interpolate", "upsample"}:
        return link if (axis == 1 or (pool and link.axis == -1 - int(pool[1]))) and out.dim() == dims else None
    if name in _RESHAPES:
        return _reshaped(shape, axis, link, tuple(out.shape))
    if name in _REDUCES:
        given = args[1] if len(args) > 1 else kwargs.get("dim")
        if given is None:
            return None
        gone = {d % dims for d in _as_tuple(given)}
        kept = out.dim() == dims
        after = dims - 1 - axis - (0 if kept else sum(d > axis for d in gone))
        return None if axis in gone else _Link(link.layer, -1 - after, link.block)
    if name in {"transpose", "swapaxes", "permute"}:
        given = args[1:] if len(args) > 1 else tuple(kwargs.values())
        order = [d % dims for d in (given[0] if isinstance(given[0], (tuple, list)) else given)]
        if name != "permute":
            first, second = order
            order = list(range(dims))
            order[first], order[second] = second, first
        return _Link(link.layer, order.index(axis) - dims, link.block)
    return None


def _reshaped(shape: tuple[int, ...], axis: int, link: _Link, out: tuple[int, ...]) -> _Link | None:
    """Units keep their axis, or the axes behind them are merged into it (channels of an image, flattened)."""
    size = torch.Size
    before, behind = size(shape[:axis]).numel(), size(shape[axis + 1 :]).numel()
    for at in range(len(out)):
        if size(out[:at]).numel() != before:
            continue
        if out[at] == shape[axis] and size(out[at + 1 :]).numel() == behind:
            return _Link(link.layer, at - len(out), link.block)
        if out[at] == shape[axis] * behind and size(out[at + 1 :]).numel() == 1:
            return _Link(link.layer, at - len(out), link.block * behind)
    return None


# running a network --------------------------------------------------------------------------------------------------


def follow(model: nn.Module, inputs: Any, observe: Observer | None = None, *, training: bool = False) -> Wiring:
    """Follow one forward pass; the model is left bit-identical."""
    with undisturbed(model), torch.no_grad():
        model.train(training)
        wiring = Wiring(model, observe)
        with wiring:
            output = call(model, inputs)
        wiring.finish(output)
    return wiring


def outputs(model: nn.Module, batches: Iterable[Any], *, training: bool = False) -> list[Tensor]:
    """The floating point outputs on each batch, with the same random numbers every time; nothing is changed."""
    found = []
    with isolated_rng(), undisturbed(model), torch.no_grad():
        model.train(training)
        for inputs in batches:
            torch.manual_seed(0)
            np.random.seed(0)
            random.seed(0)
            found += [t.detach().clone() for t in tensors(call(model, inputs)) if t.is_floating_point()]
    return found


def output_change(before: list[Tensor], after: list[Tensor]) -> float:
    """max |dy| over std(y); infinite where the outputs do not even have the same shapes."""
    if [t.shape for t in before] != [t.shape for t in after]:
        return float("inf")
    worst = 0.0
    for old, new in zip(before, after, strict=True):
        if not old.numel():
            continue
        both = torch.isfinite(old) & torch.isfinite(new)
        same = both | (old == new) | (torch.isnan(old) & torch.isnan(new))
        if not bool(same.all()):
            return float("inf")
        gap = float(torch.where(both, (new - old).abs(), 0.0).max())
        scale = float(old.std(correction=0)) or float(old.abs().max()) or 1.0
        worst = max(worst, gap / scale)
    return worst


def guess_input(model: nn.Module) -> Any:
    """An input the model accepts, guessed from its first layer; None where none was found."""
    for module in model.modules():
        candidates: list[tuple[int, ...]] = []
        if isinstance(module, nn.Linear):
            candidates = [(4, module.in_features), (4, 3, module.in_features)]
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            dims = len(module.kernel_size)
            candidates = [(4, module.in_channels, *[size] * dims) for size in (8, 16, 28, 32, 64, 96, 224)]
        elif isinstance(module, nn.Embedding):
            candidates = [(4, 8)]
        if not candidates:
            continue
        if any(map(is_lazy, module.parameters())):
            return None
        weight: Any = module.weight
        for shape in candidates:
            if isinstance(module, nn.Embedding):
                x = torch.zeros(shape, dtype=torch.long, device=weight.device)
            else:
                generator = torch.Generator().manual_seed(0)
                x = torch.randn(shape, generator=generator).to(weight)
            try:
                outputs(model, [(x,)])
            except Exception:  # a wrong guess can fail in any way; the next one is tried
                continue
            return (x,)
        return None
    return None


def require_runs(model: nn.Module, inputs: Any) -> None:
    """A RemedyError, with the model's own words, where it does not take `inputs`."""
    try:
        outputs(model, [inputs])
    except Exception as error:
        raise RemedyError(
            f"{type(model).__name__} does not run on the example input: {type(error).__name__}: {error}.\n"
            "Pass an example_input the model accepts; a tuple or a dict is passed on as its arguments."
        ) from None
