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
from relume.errors import RelumeError
from relume.forecast.moments import State, normal_means, share_beyond, shown, state_of
from relume.forecast.rules import LAYERS, RULES, Operation, cut, severed
from relume.nested import tensors
from relume.probe import FLAT_SLOPE
from relume.recording import layer_name
from relume.sites import Call, Trace
from relume.symptoms.record import ENOUGH_SAMPLES

ELEMENTS = 4096  # of one sample: maps with more are averaged over each unit's positions before they meet an activation

_UNTOUCHED = ("__get__", "__set__", "__setitem__", "size", "dim", "numel", "zero_", "copy_")

# To apply these twice is to apply them once, with the same slopes: what they wrote in place can stand for the input.
_IDEMPOTENT = ("relu", "relu6", "hardtanh")


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
        self.stopped: dict[str, None] = {}  # where the model itself lets no gradient back
        self.ended_without = ""  # the innermost of the modules that ended last, if they gave nothing: where it failed
        self._states: dict[int, tuple[weakref.ref[Tensor], State]] = {}
        self._names: dict[str, int] = {}
        self._model = model
        self._whole: nn.Module | None = None  # running, and measured as one call
        self._no_grad = False  # the model has switched gradients off

    def __enter__(self) -> Tape:
        super().__enter__()
        # Inside, samples are no longer the first axis: attention is one call.
        for module in self._model.modules():
            if isinstance(module, nn.MultiheadAttention):
                begins = module.register_forward_pre_hook(self._whole_begins)
                ends = module.register_forward_hook(self._whole_ends, with_kwargs=True, always_call=True)
                self._hooks.callback(begins.remove)
                self._hooks.callback(ends.remove)
        return self

    def _whole_begins(self, module: nn.Module, args: Any) -> None:
        self._whole = module

    def _whole_ends(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._whole = None
        if output is None:
            return
        op = Operation(type(module).__name__, module.forward, args, kwargs, output, self.state)
        self._path.append((self._modules[id(module)], module))
        with torch.no_grad(), torch._C.DisableTorchFunction():
            self.attempt(self._foresee, op, None)
        self._path.pop()

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
        name = getattr(func, "__name__", "an operation")
        if name == "_set_grad_enabled":
            # Forward of an autograd.Function runs without gradients too, and sends one back: that is no such switch.
            self._no_grad = not args[0] and (self._no_grad or torch.is_grad_enabled())
            return func(*args, **kwargs)
        self._no_grad = stops = self._no_grad and not torch.is_grad_enabled()
        made = len(self.calls)
        reads = any(self.state(t) is not None for t in tensors((args, kwargs)))
        with torch.no_grad():  # the model believes that it trains, and keeps no graph
            result = super().__torch_function__(func, types, args, kwargs)
        if self._whole is not None:
            return result
        call = self.calls[made] if len(self.calls) > made else None
        if (reads or name in LAYERS or name == "embedding") and any(True for _ in tensors(result)):
            self.attempt(self._foresee, Operation(name, func, args, kwargs, result, self.state), call, stops)
        elif reads and name in ("numpy", "tolist", "__array__"):
            self.lost[f"{self._place()}: its values leave torch ({name}); no gradient comes back"] = None
        elif name == "__setitem__" and self.state(args[-1]) is not None:
            self.lost[f"{self._place()}: values written into another tensor are not followed"] = None
        return result

    def _foresee(self, op: Operation, call: Call | None, stops: bool = False) -> None:
        self._ask_for_batch(op)
        # Replays of the user's own call on states can fail in as many ways as there are calls: then it is measured.
        # What is not finite is named by the forecast, once. Checkpointing packs away what is saved: not in here.
        kept_as_is = torch.autograd.graph.saved_tensors_hooks(_as_is, _as_is)
        with torch.enable_grad(), kept_as_is, np.errstate(all="ignore"):
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
            for result, found in zip(results, states, strict=True):
                if found is None:
                    continue
                is_layer = op.name in LAYERS and call is None
                state = self._weigh(op, known, found) if is_layer else found
                if known and (stops or RULES.get(op.name) is cut):
                    self.stopped[f"{'no_grad' if stops else op.name} in {layer_name(self._place())}"] = None
                self._keep(result, severed(state) if known and stops else state)

    def _ask_for_batch(self, op: Operation) -> None:
        """An image without a batch axis runs, with its channels in the place of samples."""
        known = op.known()
        if op.name in ("conv1d", "conv2d", "conv3d") and known and known[0].mean.dim() == int(op.name[-2]) + 1:
            found = tuple(op.given("input")["input"].shape)
            raise RelumeError(
                f"forecast: {op.name} in {layer_name(self._place())} was given one sample of shape {found}.\n"
                "Samples come first: pass a batch, such as example_input[None]."
            )

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
                return np.moveaxis(share, axis, 0).reshape(mean.shape[axis], -1)

            finite = math.isfinite(layer.q)  # no unit of a layer that is not is open or closed
            if finite and row.can_die:
                closed = by_unit(row.flat_edges(0.0, **site.parameters), across)
                for start, end in row.dead_stretches(**site.parameters):
                    if math.isfinite(start) and math.isfinite(end):
                        closed = closed + 1 - by_unit((start, end), across)
                # Each position of a map is a chance to open.
                positions = math.prod(shape) // mean.numel() * ENOUGH_SAMPLES
                layer.dead_share = float((closed.prod(1) ** positions).mean())
            if finite and all(tail.slope == 0 for tail in row.tails(**site.parameters)):
                layer.saturated_share = float(
                    by_unit(row.flat_edges(FLAT_SLOPE, **site.parameters), flat_variance).mean()
                )
        # Slopes of one sample hang together: some samples carry most of a deep network's gradient. So each probe stands
        # for a sample, and has its slopes. One sample stands for others like it, and what worked in place is gone.
        read = op.args[0]
        is_there = read.data_ptr() != op.result.data_ptr() or site.activation in _IDEMPOTENT
        if len(read) > 1 and is_there and bool(variance.isfinite().all()):
            z = shown(read, state.probe)
        else:
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
            applied=(op.func, op.args, dict(op.kwargs), state, site.activation),
        )

    # what has no rule -----------------------------------------------------------------------------------------------

    def _measure(self, op: Operation, results: list[Tensor]) -> list[State | None]:
        """Take mean and variance from the example, and the gradient from passes back through this call alone."""
        called = op.name.strip("_")
        if op.name == "embedding":
            return [state_of(r, self.probes) if _carries(r) else None for r in results]
        # A tensor may be given twice, as in self-attention: it has one gradient.
        read = {id(t): (t, state) for t in tensors((op.args, op.kwargs)) if (state := self.state(t)) is not None}
        inputs, known = [t for t, _ in read.values()], [state for _, state in read.values()]
        if not known or op.name in _UNTOUCHED or not any(map(_carries, results)):
            return [None] * len(results)
        # What it does goes with the slopes of an activation before it: max-pooling picks what is open.
        behind = known[0].applied if len(inputs) == 1 else None
        if behind and behind[1][0] is inputs[0] and behind[4] not in _IDEMPOTENT:
            behind = None  # it worked in place: what it read is gone
        sources = [behind[3]] if behind else known
        last = max(sources, key=lambda state: state.layer)
        seen = [
            replace(state_of(r, self.probes), layer=last.layer, plain=last.plain and "pool" in op.name)
            if _carries(r)
            else None
            for r in results
        ]
        back = _Back(op, [behind[1][0]] if behind else inputs, inputs[0], behind, self._place())
        try:
            back(
                [
                    torch.zeros((self.probes, *r.shape[1:]), dtype=torch.float64) if _carries(r) else None
                    for r in results
                ]
            )
        except Exception:  # the model's own call, once more: it may fail in any way
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

        0 where no gradient arrives, None where it could not be followed.
        """
        ends = [state.probe for t in tensors(output) if (state := self.state(t)) is not None]
        ends = [end for end in ends if end.requires_grad]
        if not ends or not self.layers:
            return [None] * len(self.layers)
        at = [layer.state.probe for layer in self.layers]
        try:
            back = torch.autograd.grad(ends, at, [_directions(e) for e in ends], allow_unused=True)
        except Exception as error:  # a call that was measured fails where its gradient is taken
            self.lost[str(error).strip().splitlines()[0]] = None
            return [None] * len(self.layers)
        none = None if self.lost else 0.0
        return [none if g is None else float(g.square().mean()) for g in back]


def _as_is(value: Tensor) -> Tensor:
    return value


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
    inner: Tensor  # what the call reads first
    behind: tuple[Any, ...] | None  # an activation to go back through as well
    place: str

    def __call__(self, sent: list[Tensor | None]) -> list[Tensor]:
        """The gradients, a row a probe: probes take the samples in turn."""
        probes = next(len(s) for s in sent if s is not None)
        fresh = {id(t): t.detach().clone().requires_grad_() for t in self.inputs}
        read = dict(fresh)

        def swap(value: Any) -> Any:
            if isinstance(value, (tuple, list)):
                return type(value)(swap(v) for v in value)
            return read.get(id(value), value) if isinstance(value, Tensor) else value

        op = self.op
        with torch.enable_grad():
            if self.behind:
                func, args, kwargs, *_ = self.behind
                read[id(self.inner)] = func(fresh[id(self.inputs[0])].clone(), *args[1:], **kwargs)
            args = tuple(swap(a) for a in op.args)
            args = (args[0].clone(), *args[1:]) if args and isinstance(args[0], Tensor) else args  # in place, perhaps
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
            # Samples may act on one another, so that all are sent something. Where they outnumber the probes, these go
            # round with the signs of Walsh's functions: sums over samples are then as large as if all were drawn.
            rounds = [divmod(start + sample, probes) for sample in range(samples)]
            turn = torch.tensor([probe for _, probe in rounds])
            sign = torch.tensor([1 - 2 * ((number & probe).bit_count() % 2) for number, probe in rounds])
            cotangents = []
            for t, s in outs:
                # The gradient's size may lie far outside float32: it is taken out, and put back.
                cotangent = (s[turn] * sign.to(s).reshape(-1, *[1] * (s.dim() - 1)) / _size(s)).to(t)
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
        try:
            back = ctx.back([next(sent) if carries else None for carries in ctx.carries])
        except Exception as error:
            said = (str(error).strip().splitlines() or ["without a message"])[0]
            name = ctx.back.op.name.strip("_")
            raise RelumeError(
                f"{ctx.back.place}: the gradient of {name} fails ({type(error).__name__}: {said})"
            ) from error
        return None, None, None, *back
