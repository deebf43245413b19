"""Follows one forward pass and foresees, operation by operation, what signal and gradient do there."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relume.activations import ACTIVATIONS
from relume.forecast.moments import State, normal_means, share_beyond, state_of
from relume.forecast.rules import LAYERS, RULES, Operation
from relume.nested import tensors
from relume.probe import FLAT_SLOPE
from relume.sites import Call, Trace
from relume.symptoms.record import ENOUGH_SAMPLES

ELEMENTS = 4096  # of one sample: maps with more are averaged over each unit's positions before they meet an activation

_UNTOUCHED = ("__get__", "__set__", "__setitem__", "size", "dim", "numel", "zero_", "copy_")


@dataclass(slots=True, eq=False)
class Layer:
    """One call of a layer with weights, and the activation that follows it."""

    name: str
    kind: str
    units: int
    gain: float  # root of fan-in times the mean square of the weights
    bias: float  # mean square of the biases
    state: State  # of its output
    source: int  # the layer before it, -1 for the input
    plain: bool  # nothing but activations, pooling and moves lies between the two
    q: float
    normalised: bool = False
    activation: str | None = None
    parameters: Mapping[str, float] | None = None
    dead_share: float | None = None
    saturated_share: float | None = None


class Tape(Trace):
    """A trace that carries means, variances and probes of the gradient along; `layers` says what came of it."""

    def __init__(self, model: nn.Module, probes: int) -> None:
        super().__init__(model)
        self.probes = probes
        self.layers: list[Layer] = []
        self.measured: dict[str, None] = {}  # operations without a rule
        self.lost: dict[str, None] = {}  # where the chain of tensors breaks
        self.ended_without = ""  # the innermost of the modules that ended last, if they gave nothing: where it failed
        self._states: dict[int, tuple[weakref.ref[Tensor], State]] = {}
        self._names: dict[str, int] = {}

    # tensors and their states ---------------------------------------------------------------------------------------

    def state(self, tensor: Any) -> State | None:
        """What is foreseen of a tensor of the pass; None for a constant, or one that could not be followed."""
        ref, state = self._states.get(id(tensor), (None, None))
        return state if ref is not None and ref() is tensor else None

    def begin(self, tensor: Tensor) -> None:
        """Take a tensor as input of the network."""
        if tensor.is_floating_point() and tensor.dim():
            self._keep(tensor, state_of(tensor, self.probes, raw=True))

    def _keep(self, tensor: Tensor, state: State) -> None:
        key = id(tensor)

        def forget(gone: weakref.ref[Tensor]) -> None:  # a state may hold the input of an activation alive
            if self._states.get(key, (None,))[0] is gone:
                del self._states[key]

        self._states[key] = (weakref.ref(tensor, forget), state)

    def _place(self) -> str:
        return self._path[-1][0] or "the model" if self._path else "the model"

    def _module_begins(self, module: nn.Module, args: Any) -> None:
        super()._module_begins(module, args)
        self.ended_without = ""

    def _module_ends(self, module: nn.Module, args: Any, output: Any) -> None:
        if output is None and not self.ended_without:  # hooks run also where the module raised
            self.ended_without = self._modules.get(id(module)) or "the model"
        super()._module_ends(module, args, output)

    # operations -----------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = len(self.calls)
        reads = any(self.state(t) is not None for t in tensors((args, kwargs)))
        result = super().__torch_function__(func, types, args, kwargs)
        call = self.calls[made] if len(self.calls) > made else None
        name = getattr(func, "__name__", "an operation")
        if (reads or name in LAYERS or name == "embedding") and any(True for _ in tensors(result)):
            self.attempt(self._foresee, Operation(name, func, args, kwargs, result, self.state), call)
        elif reads and name in ("numpy", "tolist", "__array__"):
            self.lost[f"{self._place()}: its values leave torch ({name}); no gradient comes back"] = None
        return result

    def _foresee(self, op: Operation, call: Call | None) -> None:
        # Replays of the user's own call on states can fail in as many ways as there are calls: then it is measured.
        with torch.enable_grad():
            outcome = None
            if op.name in LAYERS and not op.known():
                op = self._unseen_input(op)
            known = op.known()
            try:
                if call is not None:
                    outcome = self._activate(op, call)
                elif known and op.name in RULES:
                    outcome = RULES[op.name](op)
            except (RuntimeError, TypeError, ValueError, IndexError, KeyError, NotImplementedError):
                outcome = None
            results = list(tensors(op.result))
            states = outcome if isinstance(outcome, list) else [outcome] if outcome is not None else []
            if len(states) != len(results) or not all(map(_fits, results, states)):
                states = self._measure(op, results)
            for result, state in zip(results, states, strict=True):
                if state is None:
                    continue
                is_layer = op.name in LAYERS and call is None
                self._keep(result, self._weigh(op, known, state) if is_layer else state)

    def _unseen_input(self, op: Operation) -> Operation:
        """A layer reads what was not followed: take it as a new input."""
        reads = next((t for t in tensors((op.args, op.kwargs))), None)
        weight = op.given("input", "weight").get("weight")
        if reads is None or not reads.is_floating_point() or not reads.dim() or id(reads) in self._parameters:
            return op
        if op.name not in ("matmul", "__matmul__", "mm", "addmm") and isinstance(weight, Tensor):
            self.lost[f"{self._place()}: where its input comes from could not be followed; no gradient goes back"] = (
                None
            )
            self.begin(reads)
        return op

    def _weigh(self, op: Operation, known: list[State], state: State) -> State:
        constants = [t for t in tensors((op.args, op.kwargs)) if self.state(t) is None and t.dim() > 1]
        weight = constants[-1] if op.name == "addmm" and constants else constants[0] if constants else None
        if weight is None or len(known) != 1:
            return state
        bias = next((t for t in tensors((op.args, op.kwargs)) if self.state(t) is None and t.dim() == 1), None)
        parameter = self._parameters.get(id(weight), "")
        path = self._path[-1][0] if self._path else ""
        base = parameter.removesuffix(".weight") or path or op.name
        self._names[base] = self._names.get(base, 0) + 1
        name = base if self._names[base] == 1 else f"{base}#{self._names[base]}"
        fan_in = (
            weight.numel() / weight.shape[0] if op.name not in ("matmul", "__matmul__", "mm", "addmm") else len(weight)
        )
        axis = 1 if op.name.startswith("conv") else -1
        self.layers.append(
            Layer(
                name=name,
                kind=op.name,
                units=op.result.shape[axis],
                gain=math.sqrt(fan_in * float(weight.detach().double().square().mean())),
                bias=0.0 if bias is None else float(bias.detach().double().square().mean()),
                state=state,
                source=known[0].layer,
                plain=known[0].plain,
                q=float(state.second.mean()),
            )
        )
        return replace(state, layer=len(self.layers) - 1, open=True, plain=True)

    # activations ----------------------------------------------------------------------------------------------------

    def _activate(self, op: Operation, call: Call) -> State | None:
        state = self.state(op.args[0]) if op.args else None
        site, row = call.site, ACTIVATIONS[call.site.activation]
        if state is None or row.layout != "elementwise":
            return None
        shape, axis = state.mean.shape, site.axis % state.mean.dim()
        mean, variance = state.mean.detach(), state.variance.detach()
        others = tuple(d for d in range(len(shape)) if d != axis)
        if mean.numel() > ELEMENTS:
            centre = mean.mean(others, keepdim=True)
            variance = (variance + mean.square()).mean(others, keepdim=True) - centre.square()
            mean = centre
        flat_mean, flat_variance = mean.reshape(-1).cpu().numpy(), variance.reshape(-1).cpu().numpy()
        parts = normal_means(row, site.parameters, flat_mean, flat_variance)
        first, second = (torch.as_tensor(p, device=mean.device).reshape(mean.shape) for p in parts)
        if state.open:
            layer = self.layers[state.layer]
            layer.activation, layer.parameters, layer.normalised = site.activation, site.parameters, site.normalised
            layer.q = float(state.second.mean())

            # Samples that are longer or shorter than the mean lie on the same side of 0 as it does.
            across = np.maximum(flat_variance - state.stretch * flat_mean**2, 0.0)

            def by_unit(edges: tuple[float, float], variance: Any) -> Any:
                share = share_beyond(edges, flat_mean, variance).reshape(tuple(mean.shape))
                return np.moveaxis(share, axis, 0).reshape(mean.shape[axis], -1).mean(1)

            if row.can_die:
                share = by_unit(row.flat_edges(0.0, **site.parameters), across)
                for start, end in row.dead_stretches(**site.parameters):
                    if math.isfinite(start) and math.isfinite(end):
                        share = share + 1 - by_unit((start, end), across)
                layer.dead_share = float((share**ENOUGH_SAMPLES).mean())
            if all(tail.slope == 0 for tail in row.tails(**site.parameters)):
                layer.saturated_share = float(
                    by_unit(row.flat_edges(FLAT_SLOPE, **site.parameters), flat_variance).mean()
                )
        # Where a branch was added to what an activation let through, its values are still in the sum.
        drawn = replace(state, mean=mean, variance=variance) if state.draw is None else state
        z = drawn.drawn(state.probe).detach()
        points = z.reshape(-1).cpu().numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            value, slope = (
                torch.as_tensor(g(points, **site.parameters), device=z.device).reshape(z.shape)
                for g in (row.value, row.slope)
            )
        return replace(
            state,
            mean=first.expand(shape),
            variance=(second - first.square()).clamp_min(0.0).expand(shape),
            probe=state.probe * slope,
            draw=value,
            raw=False,
            open=False,
            applied=(op.func, op.args, dict(op.kwargs), state),
        )

    # what has no rule -----------------------------------------------------------------------------------------------

    def _measure(self, op: Operation, results: list[Tensor]) -> list[State | None]:
        """Take mean and variance from the example, and the gradient from passes back through this call alone."""
        called = op.name.strip("_")
        if op.name == "embedding":
            return [state_of(r, self.probes) if _carries(r) else None for r in results]
        known = op.known()
        if not known or op.name in _UNTOUCHED or not any(map(_carries, results)):
            return [None] * len(results)
        inputs = [t for t in tensors((op.args, op.kwargs)) if self.state(t) is not None]
        # Max-pooling picks what an activation lets through: the two are taken together.
        behind = known[0].applied if "max_pool" in op.name and len(inputs) == 1 else None
        sources = [behind[3]] if behind else known
        last = max(sources, key=lambda state: state.layer)
        seen = [
            replace(state_of(r, self.probes), layer=last.layer, plain=last.plain and "pool" in op.name)
            if _carries(r)
            else None
            for r in results
        ]
        back = _Back(op, [behind[1][0]] if behind else inputs, behind, results)
        try:
            back(
                [
                    torch.zeros((self.probes, *r.shape[1:]), dtype=torch.float64) if _carries(r) else None
                    for r in results
                ]
            )
        except (RuntimeError, TypeError, ValueError, IndexError):
            self.lost[f"{self._place()}: {called} has no gradient that could be followed; none goes back"] = None
            return list(seen)
        self.measured[f"{self._place()}: {called} has no rule; its effect was measured on the example"] = None
        carriers = [state for state in seen if state is not None]
        shapes = [state.probe.shape for state in carriers]
        probes = _Through.apply(back, shapes, [r is not None for r in seen], *(source.probe for source in sources))
        through = iter(probes)
        return [state and replace(state, probe=next(through)) for state in seen]

    # the gradient ---------------------------------------------------------------------------------------------------

    def gradients(self, output: Any) -> list[float | None]:
        """Mean square of the gradient at the output of each layer, for random gradients of size 1 at the model's.

        None where no gradient arrives.
        """
        ends = [state.probe for t in tensors(output) if (state := self.state(t)) is not None]
        ends = [end for end in ends if end.requires_grad]
        if not ends or not self.layers:
            return [None] * len(self.layers)
        at = [layer.state.probe for layer in self.layers]
        back = torch.autograd.grad(ends, at, [_directions(e) for e in ends], allow_unused=True)
        return [None if g is None else float(g.square().mean()) for g in back]


def _carries(value: Tensor) -> bool:
    return value.is_floating_point() and value.dim() > 0 and value.numel() > 0


def _fits(result: Tensor, state: State | None) -> bool:
    return state is not None and result.dim() > 0 and tuple(state.mean.shape) == (1, *result.shape[1:])


def _directions(like: Tensor) -> Tensor:
    """Random gradients, a row a probe; where there are few outputs, orthogonal ones, which leave less to chance."""
    outputs = like[0].numel()
    if outputs > len(like):
        return torch.randn_like(like)
    sets = [
        torch.linalg.qr(torch.randn(outputs, outputs, dtype=like.dtype))[0] * math.sqrt(outputs)
        for _ in range(math.ceil(len(like) / outputs))
    ]
    return torch.cat(sets)[: len(like)].reshape(like.shape).to(like.device)


@dataclass(frozen=True, slots=True, eq=False)
class _Back:
    """The gradient of one call at the values of the example, for a gradient at its results."""

    op: Operation
    inputs: list[Tensor]
    behind: tuple[Any, ...] | None  # an activation to go back through as well
    results: list[Tensor]

    def __call__(self, sent: list[Tensor | None]) -> list[Tensor]:
        """The gradients, a row a probe: probes take the samples in turn."""
        probes = next(len(s) for s in sent if s is not None)
        fresh = {id(t): t.detach().clone().requires_grad_() for t in self.inputs}

        def swap(value: Any) -> Any:
            if isinstance(value, (tuple, list)):
                return type(value)(swap(v) for v in value)
            return fresh.get(id(value), value) if isinstance(value, Tensor) else value

        op = self.op
        with torch.enable_grad():
            if self.behind:
                func, args, kwargs, _ = self.behind
                inner = func(fresh[id(self.inputs[0])].clone(), *args[1:], **kwargs)  # it may work in place
                out = op.func(inner, *op.args[1:], **op.kwargs)
            else:
                args = tuple(swap(a) for a in op.args)
                args = (args[0].clone(), *args[1:]) if args and isinstance(args[0], Tensor) else args
                out = op.func(*args, **{k: swap(v) for k, v in op.kwargs.items()})
        outs = [
            (t, s)
            for t, s in zip(tensors(out), sent, strict=True)
            if s is not None and t.requires_grad and t.is_floating_point()
        ]
        samples = len(self.inputs[0])
        # A result that does not have the samples first (the last states of an LSTM) sends nothing back.
        outs = [(t, s) for t, s in outs if len(t) == samples]
        if not outs:
            raise ValueError("no result depends on the inputs")
        parts: list[list[Tensor]] = []
        for start in range(0, probes, samples):
            rows = min(samples, probes - start)
            cotangents = []
            for t, s in outs:
                # The gradient's size may lie far outside float32: it is taken out, and put back.
                cotangent = torch.zeros_like(t)
                cotangent[:rows] = (s[start : start + rows] / _size(s)).to(t)
                cotangents.append(cotangent * (_size(s) / _size(outs[0][1])))
            back = torch.autograd.grad(
                [t for t, _ in outs], list(fresh.values()), cotangents, allow_unused=True, retain_graph=True
            )
            parts.append(
                [
                    torch.zeros_like(x[:rows], dtype=torch.float64)
                    if g is None
                    else g[:rows].double() * _size(outs[0][1])
                    for g, x in zip(back, fresh.values(), strict=True)
                ]
            )
        return [torch.cat(rows) for rows in zip(*parts, strict=True)]


def _size(value: Tensor) -> float:
    return float(value.abs().max()) or 1.0


class _Through(torch.autograd.Function):
    """Stands for a call without a rule: nothing goes forward, and `back` takes the gradient back."""

    @staticmethod
    def forward(ctx: Any, back: _Back, shapes: Any, carries: Any, *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.back, ctx.carries = back, carries
        return tuple(torch.zeros(shape, dtype=torch.float64, device=sources[0].device) for shape in shapes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # type: ignore[override] - torch's own is untyped
        sent = iter(gradients)
        return None, None, None, *ctx.back([next(sent) if carries else None for carries in ctx.carries])
