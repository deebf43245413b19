"""What each operation of a forward pass does to means, variances and gradients: one rule a family, in one table.

Values that meet or are averaged count as independent. Sources: Frey & Hinton 1999, Variational learning in nonlinear
Gaussian belief networks (means and variances, layer by layer); Schoenholz et al. 2017, arXiv:1611.01232 (gradients that
do not know of the signal's weights); Yang et al. 2019, arXiv:1902.08129 (normalisation).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from relume.forecast.moments import State, shown, spread, state_of
from relume.nested import tensors


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One call of the forward pass, with what came of it."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    state: Callable[[Any], State | None]  # what is foreseen of a tensor, None of a constant

    def known(self) -> list[State]:
        """The states of the arguments, in order."""
        return [state for t in tensors((self.args, self.kwargs)) if (state := self.state(t)) is not None]

    def given(self, *names: str) -> dict[str, Any]:
        """The arguments by the names that the function has for them."""
        return {**dict(zip(names, self.args, strict=False)), **self.kwargs}

    def replay(self, part: str, constant: Callable[[Tensor], Tensor] | None = None) -> Any:
        """Call it again on one part of the states ("mean", "variance", "probe")."""

        def swap(value: Any) -> Any:
            if isinstance(value, (tuple, list)):
                return type(value)(swap(v) for v in value)
            if not isinstance(value, Tensor):
                return value
            state = self.state(value)
            if state is not None:
                return getattr(state, part)
            value = value.detach().double() if value.is_floating_point() else value
            return constant(value) if constant else value

        return self.func(*(swap(a) for a in self.args), **{k: swap(v) for k, v in self.kwargs.items()})


def _drawn(value: Tensor | None, state: State, like: Tensor) -> Tensor:
    """The values of the samples that the probes stand for; of one sample, others like it."""
    return shown(value, like) if value is not None and len(value) > 1 else spread(state.mean, state.variance, like)


_TINY = 1e-300  # below every mean square, and above 0

# A rule gives the states of the results, or None where it does not speak of this call.
Rule = Callable[[Operation], "State | list[State] | None"]


# Layers -------------------------------------------------------------------------------------------------------------


def weighted(op: Operation) -> State | None:
    """A linear map with constant weights: means with the weights, variances with their squares."""
    known = op.known()
    if len(known) != 1:
        return None
    bias = op.args[0] if op.name in ("addmm", "baddbmm") else op.given("input", "weight", "bias").get("bias")
    state = known[0]

    def without_bias(part: str, bend: Callable[[Tensor], Tensor]) -> Tensor:
        if not isinstance(bias, Tensor) or op.state(bias) is not None:
            return op.replay(part, bend)
        zero = torch.zeros_like(bias)
        args = tuple(zero if a is bias else a for a in op.args)
        kwargs = {k: zero if v is bias else v for k, v in op.kwargs.items()}
        return replace(op, args=args, kwargs=kwargs).replay(part, bend)

    mean, probe = op.replay("mean"), without_bias("probe", lambda value: value)
    if state.raw or len(op.result) > 1:
        at_bias = mean - without_bias("mean", lambda value: value)
        return _seen(op, replace(state, mean=at_bias, probe=probe, raw=False, applied=None, draw=None))
    variance = without_bias("variance", torch.square)
    return replace(state, mean=mean, variance=variance, probe=probe, applied=None, draw=None)


def _seen(op: Operation, state: State) -> State:
    """Mean and variance as the example has them: how values hang together, squared weights cannot know."""
    seen = state_of(op.result, 1, around=state.mean)
    along = (op.result.detach().double() * seen.mean).flatten(1).sum(1) / seen.mean.square().sum().clamp_min(_TINY)
    stretch = float(along.var()) if len(along) > 1 else 0.0
    return replace(state, mean=seen.mean, variance=seen.variance, stretch=stretch)


# Normalisation ------------------------------------------------------------------------------------------------------


def _normalised(
    state: State,
    over: tuple[int, ...],
    *,
    count: int,
    eps: float,
    weight: Any,
    bias: Any,
    centred: bool = True,
    constants: tuple[Tensor, Tensor] | None = None,
    values: Tensor | None = None,
) -> State:
    """Divide by the root of what the dimensions `over` hold; `count` values go into each such number.

    `constants` are a mean and variance known beforehand, `values` the example's own where each sample has its own.
    """
    probe = state.probe
    if constants is not None:
        centre, power = constants
        sizes = power
    else:
        centre = state.mean.mean(over, keepdim=True) if centred else torch.zeros_like(state.mean)
        sizes = power = state.second.mean(over, keepdim=True) - centre.square()
        if values is not None and len(values) > 1:
            values = values.detach().double()
            each = values.var(over, correction=0, keepdim=True) if centred else values.square().mean(over, keepdim=True)
            # Samples differ in size, and it is the small ones that normalisation enlarges.
            power = 1 / (1 / (each + eps)).mean(0, keepdim=True) - eps
            sizes = shown(each, probe)
        probe = _projected(probe, state, over, count, centred, values)
    weight = 1.0 if weight is None else weight
    gain = weight / (power + eps).sqrt()
    return replace(
        state,
        mean=(state.mean - centre) * gain + (0.0 if bias is None else bias),
        variance=state.variance * gain**2,
        probe=probe * (weight / (sizes + eps).sqrt()),
        stretch=0.0,
        plain=False,
        applied=None,
        draw=None,
    )


def _projected(
    probe: Tensor, state: State, over: tuple[int, ...], count: int, centred: bool, values: Tensor | None
) -> Tensor:
    """What normalisation takes from the gradient: its parts along the mean and along the signal."""
    signal = _drawn(values, state, probe)
    seen = math.prod(probe.shape[d] for d in over)
    parts = 1
    if centred:
        signal, probe, parts = signal - signal.mean(over, keepdim=True), probe - probe.mean(over, keepdim=True), 2
    signal = signal / signal.square().mean(over, keepdim=True).sqrt().clamp_min(torch.finfo(signal.dtype).tiny)
    probe = probe - signal * (signal * probe).mean(over, keepdim=True)
    # Each part is one of `count` in the network, and one of `seen` here, where probes stand for the batch.
    return probe * math.sqrt(max(0.0, 1 - parts / count) / max(1 - parts / seen, 1 / seen))


def _per_channel(value: Any, dims: int) -> Any:
    return value.detach().double().reshape(1, -1, *[1] * (dims - 2)) if isinstance(value, Tensor) else None


def batch_norm(op: Operation) -> State | None:
    """By the batch in training, by the running statistics otherwise."""
    given = op.given("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    state, dims = op.state(given["input"]), op.result.dim()
    if state is None:
        return None
    running = [_per_channel(given.get(name), dims) for name in ("running_mean", "running_var")]
    fixed = not given.get("training", False)
    return _normalised(
        state,
        (0, *range(2, dims)),
        count=op.result.numel() // op.result.shape[1],
        eps=given.get("eps", 1e-5),
        weight=_per_channel(given.get("weight"), dims),
        bias=_per_channel(given.get("bias"), dims),
        constants=(running[0], running[1]) if fixed and running[0] is not None and running[1] is not None else None,
        values=given["input"],
    )


def layer_norm(op: Operation) -> State | None:
    """LayerNorm and RMSNorm: by the last dimensions of each sample."""
    centred = op.name == "layer_norm"
    names = ("input", "normalized_shape", "weight", *(("bias",) if centred else ()), "eps")
    given = op.given(*names)
    state, shape = op.state(given["input"]), given["normalized_shape"]
    if state is None:
        return None
    weight, bias = (None if (v := given.get(k)) is None else v.detach().double() for k in ("weight", "bias"))
    eps = given.get("eps") or (1e-5 if centred else torch.finfo(op.result.dtype).eps)
    over = tuple(range(-len(shape), 0))
    out = _normalised(
        state, over, count=math.prod(shape), eps=eps, weight=weight, bias=bias, centred=centred, values=op.args[0]
    )  # fmt: skip
    return _seen(op, out) if len(op.result) > 1 else out


def group_norm(op: Operation) -> State | None:
    """GroupNorm, and InstanceNorm by the sample: each channel is a group of its own."""
    if op.name == "instance_norm":
        given = op.given("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
        groups = op.result.shape[1]
        if not given.get("use_input_stats", True):
            return None
    else:
        given = op.given("input", "num_groups", "weight", "bias", "eps")
        groups = given["num_groups"]
    state = op.state(given["input"])
    if state is None:
        return None
    shape = state.mean.shape
    apart = _mapped(state, lambda x: x.reshape(len(x), groups, -1))
    eps = given.get("eps", 1e-5)
    out = _normalised(
        apart,
        (2,),
        count=apart.mean.shape[2],
        eps=eps,
        weight=None,
        bias=None,
        values=op.args[0].reshape(len(op.args[0]), groups, -1),
    )
    out = _mapped(out, lambda x: x.reshape(len(x), *shape[1:]))
    weight, bias = (_per_channel(given.get(k), len(shape)) for k in ("weight", "bias"))
    out = out if weight is None else _scaled(out, weight, 0.0 if bias is None else bias)
    return _seen(op, out) if len(op.result) > 1 else out


def severed(state: State) -> State:
    """The same signal, with a probe that nothing came before."""
    return replace(state, probe=torch.zeros_like(state.probe, requires_grad=True), applied=None)


# Arithmetic ---------------------------------------------------------------------------------------------------------


def _scaled(state: State, by: Any, shift: Any = 0.0) -> State:
    return replace(
        state,
        mean=state.mean * by + shift,
        variance=state.variance * by**2,
        probe=state.probe * by,
        applied=None,
        draw=None,
    )


def _constant(op: Operation, value: Any) -> Any:
    """A constant operand for tensors whose batch is 1; None where it differs from sample to sample."""
    if not isinstance(value, Tensor):
        return value if isinstance(value, (int, float)) else None
    value = value.detach().double()
    if value.dim() == op.result.dim() and value.shape[0] > 1:
        return value[:1] if bool((value == value[:1]).all()) else None
    return value


def add(op: Operation) -> State | None:
    """A sum or a difference: of branches, or with a constant."""
    a, b = op.given("input", "other").get("input"), op.given("input", "other").get("other")
    if op.kwargs.get("alpha", 1) != 1 or b is None:
        return None
    first, second = op.state(a), op.state(b)
    sign = -1.0 if "sub" in op.name else 1.0
    if op.name in ("__rsub__", "rsub"):
        first, second, a, b = second, first, b, a
    if first is not None and second is not None:
        last = first if first.layer >= second.layer else second
        added = replace(
            last,
            mean=first.mean + sign * second.mean,
            variance=first.variance + second.variance,
            probe=first.probe + sign * second.probe,
            raw=first.raw and second.raw,
            plain=False,
            applied=None,
            draw=None,
        )
        out = _seen(op, added) if len(op.result) > 1 else added
        if first.draw is None and second.draw is None:
            return out
        return replace(out, draw=first.drawn(added.probe) + sign * second.drawn(added.probe))
    state, other = (first, b) if first is not None else (second, a)
    constant = _constant(op, other)
    if state is None or constant is None:
        return None
    if first is not None:
        return _scaled(state, 1.0, sign * constant)
    return _scaled(state, sign, constant)


def multiply(op: Operation) -> State | None:
    """A product or a quotient with a constant, or the product of two signals."""
    a, b = op.given("input", "other").get("input"), op.given("input", "other").get("other")
    first, second = op.state(a), op.state(b)
    divides = "div" in op.name
    if first is not None and second is not None:
        if divides or a is b:
            return None
        last = first if first.layer >= second.layer else second
        return replace(
            last,
            mean=first.mean * second.mean,
            variance=first.second * second.second - (first.mean * second.mean).square(),
            probe=first.probe * _drawn(b, second, first.probe) + second.probe * _drawn(a, first, second.probe),
            raw=False,
            plain=False,
            applied=None,
            draw=None,
        )
    state, other = (first, b) if first is not None else (second, a)
    constant = _constant(op, other)
    if state is None or constant is None or (divides and first is None):
        return None
    return _scaled(state, 1 / constant if divides else constant)


def negate(op: Operation) -> State | None:
    return _scaled(op.known()[0], -1.0)


def dropout(op: Operation) -> State | None:
    """Inverted dropout: the mean stays, the mean square grows by 1 / (1 - p)."""
    given = op.given("input", "p", "training")
    state = op.known()[0]
    rate = given.get("p", 0.5)
    if not given.get("training", True) or rate == 0:
        return state
    if rate >= 1:
        return None
    kept = 1 / (1 - rate)
    probe = nn.functional.dropout(state.probe, rate)
    return replace(state, variance=state.second * kept - state.mean.square(), probe=probe, applied=None, draw=None)


# Moving and averaging -----------------------------------------------------------------------------------------------


def _mapped(state: State, move: Callable[[Tensor], Tensor]) -> State:
    return replace(
        state, mean=move(state.mean), variance=move(state.variance), probe=move(state.probe), applied=None, draw=None
    )


def moved(op: Operation) -> State | list[State] | None:
    """What moves, copies or drops elements and changes none."""
    known = op.known()
    parts = [op.replay(part) for part in ("mean", "variance", "probe")]
    last = max(known, key=lambda state: state.layer)
    plain = len(known) == 1 and last.plain
    raw = all(state.raw for state in known)

    def joined(mean: Tensor, variance: Tensor, probe: Tensor) -> State:
        return replace(last, mean=mean, variance=variance, probe=probe, raw=raw, plain=plain, applied=None, draw=None)

    if isinstance(parts[0], Tensor):
        return joined(*parts)
    return [joined(*pieces) for pieces in zip(*parts, strict=True)]


def padded(op: Operation) -> State | list[State] | None:
    """Padding with zeros, or with copies of what is there."""
    given = op.given("input", "pad", "mode", "value")
    return moved(op) if not given.get("value") else None


def reshaped(op: Operation) -> State | None:
    """Another shape whose first dimension is still that of the samples."""
    state = op.known()[0]
    shape = op.result.shape
    return _mapped(state, lambda x: x.reshape(len(x), *shape[1:])) if len(shape) else None


def expanded(op: Operation) -> State | None:
    """Copies along new dimensions: the gradient collects over them."""
    state = op.known()[0]
    return _mapped(state, lambda x: x.expand(len(x), *op.result.shape[1:]))


def same(op: Operation) -> State | None:
    """What leaves every value as it is."""
    return op.known()[0]


def cut(op: Operation) -> State | None:
    """`detach` lets no gradient back; what comes after it starts anew."""
    return severed(op.known()[0])


def averaged(op: Operation) -> State | None:
    """A mean over positions or features, by pooling or by `mean`; positions count as independent."""
    state = op.known()[0]
    mean = op.replay("mean")
    if op.name.startswith("avg_pool"):
        size = op.given("input", "kernel_size")["kernel_size"]
        dims = int(op.name[-2])
        count = math.prod(size) if isinstance(size, (tuple, list)) and len(size) > 1 else _first(size) ** dims
    else:
        count = state.mean.numel() / mean.numel()
    return replace(
        state, mean=mean, variance=op.replay("variance") / count, probe=op.replay("probe"), applied=None, draw=None
    )  # fmt: skip


def _first(value: Any) -> int:
    return value[0] if isinstance(value, (tuple, list)) else value


def summed(op: Operation) -> State | None:
    """A sum over positions or features."""
    return moved(op)  # type: ignore[return-value] - one tensor in, one out


# The table ----------------------------------------------------------------------------------------------------------

_FAMILIES: dict[Rule, str] = {
    weighted: """linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d matmul __matmul__ mm
        addmm""",
    batch_norm: "batch_norm",
    layer_norm: "layer_norm rms_norm",
    group_norm: "group_norm instance_norm",
    add: "add add_ __add__ __radd__ __iadd__ sub sub_ subtract __sub__ __rsub__ __isub__ rsub",
    multiply: "mul mul_ multiply __mul__ __rmul__ __imul__ div div_ divide true_divide __truediv__ __itruediv__",
    negate: "neg __neg__ negative",
    dropout: "dropout dropout_ dropout1d dropout2d dropout3d",
    moved: """permute transpose movedim swapaxes squeeze unsqueeze chunk split unbind cat concat concatenate stack
        __getitem__ narrow select flip roll pixel_shuffle pixel_unshuffle channel_shuffle clone contiguous""",
    padded: "pad",
    reshaped: "flatten reshape view unflatten reshape_as view_as ravel",
    expanded: "expand expand_as",
    same: "to float double half bfloat16 type type_as cpu cuda requires_grad_ identity",
    cut: "detach detach_",
    averaged: """avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean""",
    summed: "sum",
}

RULES: dict[str, Rule] = {name: rule for rule, names in _FAMILIES.items() for name in names.split()}
LAYERS = frozenset(_FAMILIES[weighted].split())
