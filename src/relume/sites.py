"""Where a model applies an activation: modules and function calls alike, found by following one forward pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from relume import nn as catalogue
from relume.activations import ACTIVATIONS, Activation
from relume.attributes import Attributes
from relume.randomness import isolated_rng
from relume.recording import Site

# Rows of the catalogue that are no sites: a call of torch.exp is arithmetic far more often than an activation.
NOT_SITES = ("exp", "identity")

_LAST = {nn.functional.linear, nn.functional.layer_norm, nn.functional.bilinear, nn.functional.embedding}
_MATMUL = {
    torch.matmul, torch.mm, torch.addmm, torch.bmm, torch.baddbmm, torch.einsum, Tensor.matmul, Tensor.mm,
    Tensor.__matmul__, Tensor.__rmatmul__, Tensor.addmm, Tensor.bmm,
}  # fmt: skip
_CONVOLUTION = {
    nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d, nn.functional.conv_transpose1d,
    nn.functional.conv_transpose2d, nn.functional.conv_transpose3d,
}  # fmt: skip
_NORM = {nn.functional.batch_norm, nn.functional.group_norm, nn.functional.instance_norm, torch.batch_norm}
_NORMALISING = {*_NORM, nn.functional.layer_norm, getattr(nn.functional, "rms_norm", nn.functional.layer_norm)}
_LAYERS = _LAST | _CONVOLUTION | _NORMALISING
_MOVES_AXES = {
    torch.transpose, torch.permute, torch.movedim, torch.t, Tensor.transpose, Tensor.permute, Tensor.movedim, Tensor.t,
    torch.swapaxes, Tensor.swapaxes,
    *(getattr(getattr(Tensor, name), "__get__") for name in ("T", "mT")),  # noqa: B009 - properties, as calls see them
}  # fmt: skip
_CLAMP = {torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_, torch.clip, Tensor.clip}
_CLAMP_MIN = {torch.clamp_min, torch.clamp_min_, Tensor.clamp_min, Tensor.clamp_min_}
_MAXIMUM = {torch.maximum, torch.max, Tensor.maximum, Tensor.max, torch.fmax, Tensor.fmax}
_THRESHOLD = {nn.functional.threshold, torch.threshold, torch.threshold_}
_CASTS = {Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.to, Tensor.type, Tensor.type_as, Tensor.int}
# Curves that the catalogue does not have as activations; on a layer's output they are likely part of one.
_CURVES = {
    getattr(home, name)
    for home in (torch, Tensor)
    for name in ("exp", "expm1", "sin", "cos", "atan", "erf", "sinh", "cosh")
}
_COMPARE = {torch.gt, torch.ge, Tensor.gt, Tensor.ge, Tensor.__gt__, Tensor.__ge__}
_MULTIPLY = {torch.mul, torch.where, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__rmul__, Tensor.where}


@lru_cache(maxsize=1)
def _rows_of() -> Mapping[Any, list[Activation]]:
    """Callable of torch -> the rows of the catalogue that it may be, torch's default first."""
    found: dict[Any, list[Activation]] = {}
    for row in ACTIVATIONS.values():
        if not is_site(row):
            continue
        for dotted in row.functions:
            target: Any = torch
            for part in dotted.split(".")[1:]:
                target = getattr(target, part, None)
            if target is not None:
                found.setdefault(target, []).append(row)
    return found


def is_site(row: Activation) -> bool:
    """Whether a call of the row's function is a site: one number in, one number out, and more than arithmetic."""
    return row.layout == "elementwise" and row.name not in NOT_SITES


def is_activation_module(module: nn.Module | None) -> bool:
    """Whether the module is there to apply a function of the catalogue, so that a site bears its name."""
    return module is not None and type(module).__module__.startswith(
        ("torch.nn.modules.activation", catalogue.__name__)
    )


def _activation_of(func: Any, args: Any, kwargs: Any) -> str | None:
    """The catalogue's name for what this call applies, or None."""
    if func is catalogue.apply:  # relume's own module is there as an activation, whatever the function
        return kwargs["row"] if ACTIVATIONS[kwargs["row"]].layout == "elementwise" else None
    relu = _as_relu(func, args, kwargs)
    rows = _rows_of().get(func, ())
    named = (row.name for row in rows if all(kwargs.get(key, value) == value for key, value in row.fixed.items()))
    return relu or next(named, None)


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known of a tensor: the layers it came through, and the sites since the last of them."""

    layers: tuple[str, ...] = ()
    weight: str = ""
    bias: str = ""
    normalised: bool = False
    axis: int | None = None  # of the units, counted from the end
    sites: frozenset[int] = frozenset()  # whose output this carries
    mask: bool = False  # the outcome of a comparison


@dataclass(frozen=True, slots=True)
class Call:
    """One activation call as it happens."""

    index: int
    site: Site
    slopes: Mapping[str, Tensor] = field(default_factory=dict)  # learnable parameters that are tensors (PReLU)


Observer = Callable[[Call, Tensor], Callable[[Tensor], None]]


class Trace(TorchFunctionMode):
    """Follows one forward pass; on leaving, `sites` and `blind` say what was called and what could not be seen.

    `observe(call, pre_activation)` is called before each activation and gives back what to do with its output:
    before, since an in-place activation overwrites its input.
    """

    def __init__(self, model: nn.Module, observe: Observer | None = None) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.blind: dict[str, None] = {}
        self.error: Exception | None = None  # what went wrong in here; from then on calls pass through unseen
        self._observe = observe
        self._modules = {id(module): name for name, module in model.named_modules()}
        self._parameters = {id(p): name for name, p in model.named_parameters()}
        self._path: list[tuple[str, nn.Module]] = []
        self._count: dict[str, int] = {}
        self._origins: dict[int, tuple[weakref.ref[Tensor], Origin]] = {}
        self._inner: set[int] = set()  # sites that feed a layer
        self._hooks = ExitStack()

    # the modules that are running ---------------------------------------------------------------------------------

    def __enter__(self) -> Trace:
        enter = register_module_forward_pre_hook(self._module_begins)
        self._hooks.callback(enter.remove)
        leave = register_module_forward_hook(self._module_ends, always_call=True)
        self._hooks.callback(leave.remove)
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        self._hooks.close()
        self._origins.clear()

    def _module_begins(self, module: nn.Module, args: Any) -> None:
        name = self._modules.get(id(module))
        if name is not None:
            self._path.append((name, module))

    def _module_ends(self, module: nn.Module, args: Any, output: Any) -> None:
        name = self._modules.get(id(module))
        if name is None:
            return
        while self._path and self._path.pop()[1] is not module:
            pass
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            kind = type(module).__name__
            self.blind[f"{name or kind}: {kind} applies its activations inside one fused kernel"] = None
        elif isinstance(module, torch.jit.ScriptModule):
            self.blind[f"{name or 'the model'}: compiled TorchScript does not show its activation calls"] = None

    # the functions that are called --------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        finish = self.attempt(self._before, func, args, kwargs)
        result = func(*args, **kwargs)  # outside `_attempt`: what the user's own call raises is the user's
        if finish:
            self.attempt(finish, result)
        return result

    def attempt(self, act: Callable[..., Any], *args: Any) -> Any:
        """Do it, unless something of ours went wrong in this pass: the model must run on whatever happens here."""
        if self.error is None:
            try:
                return act(*args)
            except Exception as error:
                self.error = error
        return None

    def _before(self, func: Any, args: Any, kwargs: Any) -> Callable[[Any], None]:
        """Look at a call before it is made; gives back what to do with its result."""
        name = _activation_of(func, args, kwargs)
        if name is None or not args or not isinstance(args[0], Tensor):
            return lambda result: self._follow(func, args, kwargs, result)
        call = self._begin(func, name, args, kwargs)
        done = self._observe(call, args[0]) if self._observe else None
        origin = self._origin(args[0]) or Origin()

        def finish(result: Tensor) -> None:
            self._remember(result, replace(origin, axis=call.site.axis, sites=origin.sites | {call.index}))
            if done:
                done(result)

        return finish

    def _begin(self, func: Any, name: str, args: Any, kwargs: Any) -> Call:
        path, module = self._path[-1] if self._path else ("", None)
        own = is_activation_module(module)
        spelled = name if func is catalogue.apply else getattr(func, "__name__", name).rstrip("_")
        base = path if own and path else f"{path}.{spelled}".lstrip(".")
        self._count[base] = self._count.get(base, 0) + 1
        label = base if self._count[base] == 1 else f"{base}#{self._count[base]}"
        x, origin = args[0], self._origin(args[0]) or Origin()
        axis = _guess_axis(x, origin.axis)
        numbers, slopes = _parameters_of(name, args, kwargs)
        index = len(self.calls)
        site = Site(
            name=label,
            activation=name,
            parameters=numbers,
            units=x.shape[axis] if x.dim() else 1,
            axis=axis,
            order=index,
            layers=origin.layers,
            weight=origin.weight,
            bias=origin.bias,
            normalised=origin.normalised,
        )
        call = Call(index, site, slopes)
        self.calls.append(call)
        return call

    # where tensors come from --------------------------------------------------------------------------------------

    def _origin(self, tensor: Any) -> Origin | None:
        ref, origin = self._origins.get(id(tensor), (None, None))
        return origin if ref is not None and ref() is tensor else None

    def _remember(self, result: Any, origin: Origin) -> None:
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self._origins[id(tensor)] = (weakref.ref(tensor), origin)

    def _follow(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        first = result[0] if isinstance(result, (tuple, list)) and result else result
        if not isinstance(first, Tensor):
            return
        tensors = [t for t in _tensors((*args, *kwargs.values()))]
        names = [name for t in tensors if (name := self._parameters.get(id(t))) is not None]
        origins = [(t, origin) for t in tensors if (origin := self._origin(t)) is not None]
        sites = frozenset[int]().union(*(origin.sites for _, origin in origins))
        if (
            func in _LAST
            or func in _CONVOLUTION
            or func in _NORM
            or func in _NORMALISING
            or (names and func in _MATMUL)
        ):
            self._inner |= sites
            self._remember(result, self._layer(func, names, first, origins))
        elif func in _MATMUL or (names and not origins and _is_fused(func)):
            self._inner |= sites
            path = self._path[-1][0] if self._path else ""
            self._remember(result, Origin(layers=(path,) if path else (), axis=-1))
        elif origins:
            source, origin = max(origins, key=lambda pair: pair[0].numel())
            if origin.layers and (func in _CURVES or (func in _CLAMP and not sites)):
                called = getattr(func, "__name__", "a function")
                self.blind[f"after {origin.layers[0]}: {called}(), perhaps an activation, or part of one"] = None
            if origin.layers and (gate := _gate_of(func, kwargs)):
                self.blind[f"after {origin.layers[0]}: {gate}() gates one half by the other, which is no site"] = None
            if func in _MULTIPLY and any(o.mask for _, o in origins) and origin.layers:
                sentence = f"after {origin.layers[0]}: an activation written out as arithmetic (such as z * (z > 0))"
                self.blind[sentence] = None
            self._remember(result, _carried(func, source, origin, first, sites))

    def _layer(self, func: Any, names: list[str], result: Tensor, origins: list[tuple[Tensor, Origin]]) -> Origin:
        path = self._path[-1][0] if self._path else ""
        weight = next((n for n in names if "bias" not in n.rsplit(".", 1)[-1]), "")
        bias = next((n for n in names if n != weight), "")
        layer = path if path and (not names or weight.startswith(path + ".")) else weight.removesuffix(".weight")
        layer = layer or path or getattr(func, "__name__", "layer")
        if func in _NORMALISING:
            before = origins[0][1] if origins else Origin()
            axis = -1 if func not in _NORM or result.dim() < 3 else 1 - result.dim()
            return replace(
                before, layers=(layer, *before.layers), bias=bias or before.bias, normalised=True, axis=axis,
                sites=frozenset(), mask=False,
            )  # fmt: skip
        rows = weight if func in _CONVOLUTION or func is nn.functional.linear else ""
        axis = -1 if func not in _CONVOLUTION else -int(getattr(func, "__name__", "conv2d")[-2]) - 1
        return Origin(layers=(layer,), weight=rows, bias=bias if rows else "", axis=axis)

    # what came of it ----------------------------------------------------------------------------------------------

    @property
    def sites(self) -> tuple[Site, ...]:
        """The activation calls in the order they were made."""
        return tuple(replace(call.site, output=call.index not in self._inner) for call in self.calls)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from (v for v in value if isinstance(v, Tensor))


def _is_fused(func: Any) -> bool:
    return getattr(func, "__name__", "") in {"multi_head_attention_forward", "lstm", "gru", "rnn_tanh", "rnn_relu"}


def _carried(func: Any, source: Tensor, origin: Origin, result: Tensor, sites: frozenset[int]) -> Origin:
    """The origin of a tensor that an operation without parameters made of `source`."""
    if func in _COMPARE or (origin.mask and func in _CASTS):
        return replace(origin, sites=sites, mask=True)
    axis = origin.axis
    if axis is not None and (func in _MOVES_AXES or result.dim() != source.dim()):
        axis = None
    same_units = axis is not None and -axis <= result.dim() and result.shape[axis] == source.shape[axis]
    if same_units or (axis is None and result.shape == source.shape):
        return replace(origin, axis=axis, sites=sites, mask=False)
    return replace(origin, axis=axis, weight="", bias="", sites=sites, mask=False)


def _gate_of(func: Any, kwargs: Any) -> str:
    """The name of the function that gates one half of its input by the other, or nothing."""
    if func is catalogue.apply and ACTIVATIONS[kwargs["row"]].layout == "halves":
        return kwargs["row"]
    return "glu" if func is nn.functional.glu else ""


def _guess_axis(x: Tensor, known: int | None) -> int:
    if known is not None and -known <= x.dim():
        return known
    return 1 - x.dim() if x.dim() >= 4 else -1  # images keep their channels second, all else its features last


def _as_relu(func: Any, args: Any, kwargs: Any) -> str | None:
    """`clamp` at zero from below, the maximum with zero and the threshold at zero are ReLUs."""
    if func in _CLAMP:
        low = args[1] if len(args) > 1 else kwargs.get("min")
        high = args[2] if len(args) > 2 else kwargs.get("max")
        return "relu" if high is None and isinstance(low, (int, float)) and low == 0 else None
    if func in _MAXIMUM and len(args) > 1 and isinstance(args[1], Tensor):
        return "relu" if not bool(args[1].any()) else None
    if func in _THRESHOLD:
        return "relu" if tuple(args[1:3]) == (0, 0) else None
    if func in _CLAMP_MIN:
        low = args[1] if len(args) > 1 else kwargs.get("min")
        return "relu" if isinstance(low, (int, float)) and low == 0 else None
    return None


def _parameters_of(name: str, args: Any, kwargs: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The function's own parameters in this call: numbers, and tensors where they are learnt."""
    numbers: dict[str, float] = {}
    tensors: dict[str, Tensor] = {}
    for position, key in enumerate(ACTIVATIONS[name].parameters, start=1):
        value = args[position] if len(args) > position else kwargs.get(key)
        if isinstance(value, Tensor):
            tensors[key] = value.detach()
            numbers[key] = float(value.detach().float().mean())
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers[key] = float(value)
    return numbers, tensors


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Leaves the model and the global random generators as they were, bit-identical.

    Buffers, modes, gradients and plain attributes are put back, such as a counter that `forward` moves on.
    """
    kept: list[tuple[dict[str, Any], str, Tensor | None, Tensor | None]] = [
        (store, name, tensor, None if tensor is None else tensor.detach().clone())
        for module in model.modules()
        for store in (module._parameters, module._buffers)
        for name, tensor in store.items()
        if tensor is None or not is_lazy(tensor)
    ]
    attributes = Attributes(model.modules())
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(p, p.grad) for p in model.parameters()]
    try:
        with isolated_rng():
            yield
    finally:
        with torch.no_grad():
            for store, name, tensor, value in kept:
                if tensor is not None and value is not None and not (tensor.is_meta or torch.equal(tensor, value)):
                    tensor.copy_(value)
                store[name] = tensor  # the same tensor again, also where forward replaced it
        for module, mode in modes:
            module.training = mode
        for parameter, gradient in gradients:
            parameter.grad = gradient
        attributes.put_back()


def find_sites(model: nn.Module, *inputs: Any) -> tuple[Site, ...]:
    """List the places where `model` applies an activation, in call order; the model is left bit-identical.

    `inputs` are what the model is called with. Raises whatever the model itself raises.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> [(site.name, site.activation, site.layer, site.units) for site in find_sites(model, torch.zeros(3, 4))]
    [('1', 'relu', '0', 8)]
    """
    with undisturbed(model), Trace(model) as trace:
        model(*inputs)
    if trace.error is not None:
        raise trace.error
    return trace.sites
