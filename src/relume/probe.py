"""Reads one training step: statistics per unit, taken where the activations are called, moved to the CPU once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from relume.activations import ACTIVATIONS
from relume.nested import first_float
from relume.recording import Floats, InitialWeight, InputReading, Reading, Site, SiteReading, WeightReading
from relume.sites import Call, Trace

# A unit is flat on a sample where its slope is below this share of the function's greatest slope. At 1 % a gradient
# that passes two such units has lost four orders of magnitude, the range in which float32 sums lose it altogether.
FLAT_SLOPE = 0.01
MOMENT_VALUES = 4096  # of each unit that means and deviations are taken from: 1.6 % of a deviation is their error


class Probe:
    """One probed step: `with probe.forward(inputs): model(...)`, then the backward pass, then `probe.reading(...)`."""

    def __init__(self, model: nn.Module, step: int = 0, pulls: Iterable[str] = ()) -> None:
        self.step = step
        self.pulled: dict[str, Floats] = {}  # by site, how many of each unit's values have a gradient at their output
        self._pulls = frozenset(pulls)  # sites of which that is counted
        self.samples = 0
        self._model = model
        self._trace = Trace(model, self._observe)
        self._columns: dict[int, list[Tensor]] = {}  # site index -> eight vectors, one entry per unit
        self._counts: dict[int, int] = {}
        self._squares: dict[int, list[Tensor]] = {}  # site index -> sums of squared output gradients
        self._reached: dict[int, Tensor] = {}  # site index -> values whose gradient is not zero, per unit
        self._input: tuple[int, Tensor] | None = None
        self._output: Tensor | None = None
        self._trained: list[tuple[str, nn.Parameter]] = []
        self._before: list[Tensor] = []

    @property
    def trace(self) -> Trace:
        """The pass through the network that this probe follows; enter it around the forward pass."""
        return self._trace

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites this step came by."""
        return self._trace.sites

    @property
    def blind(self) -> tuple[str, ...]:
        """What this step could not see."""
        return tuple(self._trace.blind)

    # during the step ----------------------------------------------------------------------------------------------

    def keep_weights(self) -> None:
        """Remember the parameters, so that `reading` can say how far the optimizer moved them."""
        with torch.no_grad():
            self._trained = _trained(self._model)
            self._before = [p.detach().clone() for _, p in self._trained]

    def read_input(self, args: Any) -> None:
        """Read the batch that goes in: the first floating point tensor among the arguments."""
        tensor = first_float(args)
        if tensor is not None:
            x = tensor.detach().float()
            bad = ~torch.isfinite(x)
            x = torch.where(bad, 0.0, x)
            row = [x.mean(), x.std(correction=0), x.square().mean().sqrt(), x.abs().amax(), bad.sum().float()]
            self._input = (tensor.shape[0] if tensor.dim() else 1, torch.stack(row))

    def read_output(self, output: Any) -> None:
        """Read what the network gives back."""
        tensor = first_float(output)
        if tensor is not None:
            self._output = tensor.detach().float().square().mean().sqrt()

    def _observe(self, call: Call, pre_activation: Tensor) -> Callable[[Tensor], None]:
        z = pre_activation.detach()
        z = z if z.dtype in (torch.float32, torch.float64) else z.float()
        if z.dim() == 0:
            z = z[None]
        axis = call.site.axis % z.dim()
        rest = [d for d in range(z.dim()) if d != axis]
        samples = max(1, z.numel() // max(1, z.shape[axis]))
        columns = [*_flat(call, z, axis, rest), *_moments(z, rest)]

        def done(result: Tensor) -> None:
            y = result.detach()
            y = y if y.dtype in (torch.float32, torch.float64) else y.float()
            y = y[None] if y.dim() == 0 else y
            self._columns[call.index] = [c.float() for c in (*columns, *_moments(y, rest), _non_finite(y, axis, rest))]
            self._counts[call.index] = samples
            if result.requires_grad:
                squares = self._squares.setdefault(call.index, [])

                def read_gradient(gradient: Tensor) -> None:
                    g = gradient.detach().float()
                    g = g[None] if g.dim() == 0 else g
                    squares.append(g.square().sum(rest) if rest else g.square())
                    if call.site.name in self._pulls:
                        self._reached[call.index] = (g != 0).sum(rest) if rest else (g != 0)

                result.register_hook(lambda gradient: self._trace.attempt(read_gradient, gradient))

        return done

    # after the step -----------------------------------------------------------------------------------------------

    def reading(self, loss: Any = None, optimizer: Optimizer | None = None) -> Reading:
        """All that was read, moved to the CPU in one transfer."""
        vectors: list[Tensor] = []
        length = 0

        def put(values: Iterable[Tensor]) -> list[slice]:
            nonlocal length
            cuts = []
            for v in values:
                vectors.append(v.reshape(-1).float())
                cuts.append(slice(length, length := length + v.numel()))
            return cuts

        sites = {i: put([*self._columns[i], *self._gradient(i)]) for i in self._columns}
        units = length
        reached = dict(zip(self._reached, put(self._reached.values()), strict=True))
        norms = self._norms()
        cuts = put(values for _, values in norms.values())
        value = _as_tensor(loss)
        outer = put([t for t in (self._input and self._input[1], self._output, value) if t is not None])
        read = _to_numpy(vectors)
        read[:units] = _rounded(read[:units])

        tail = iter(outer)
        fed = None
        if self._input is not None:
            mean, std, rms, largest, bad = map(float, read[next(tail)])
            fed = InputReading(
                samples=self._input[0], mean=mean, std=std, rms=rms, largest=largest, non_finite=int(bad)
            )
        output = float(read[next(tail)][0]) if self._output is not None else None
        number = float(read[next(tail)][0]) if value is not None else None
        called = {site.order: site.name for site in self._trace.sites}
        self.pulled = {called[i]: read[cut] for i, cut in reached.items()}
        return Reading(
            step=self.step,
            loss=number if number is not None else (float(loss) if isinstance(loss, (int, float)) else None),
            learning_rate=_learning_rate(optimizer),
            sites={called[i]: _site_reading([read[cut] for cut in at], self._counts[i]) for i, at in sites.items()},
            weights=_weight_readings(
                {which: (names, read[cut]) for (which, (names, _)), cut in zip(norms.items(), cuts, strict=True)}
            ),
            input=fed,
            output_rms=output,
        )

    def _gradient(self, index: int) -> list[Tensor]:
        squares = self._squares.get(index)
        if not squares:
            return []
        total = squares[0] if len(squares) == 1 else torch.stack(squares).sum(0)
        return [(total / self._counts[index]).sqrt_()]

    def _norms(self) -> dict[str, tuple[list[str], Tensor]]:
        """Euclidean norms of the trainable parameters, of the gradients there are, and of what the step changed."""
        trained = self._trained or _trained(self._model)
        with torch.no_grad():
            of = {
                "norm": {name: p.detach().float() for name, p in trained},
                "gradient": {name: p.grad.detach().to_dense().float() for name, p in trained if p.grad is not None},
                "update": {name: (p.detach() - b).float() for (name, p), b in zip(trained, self._before, strict=False)},
            }
            return {which: (list(tensors), _stacked_norms(list(tensors.values()))) for which, tensors in of.items()}


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad and not is_lazy(p)]


def _stacked_norms(tensors: list[Tensor]) -> Tensor:
    if not tensors:
        return torch.zeros(0)
    # one call for all, as torch.optim makes it: fifty layers have a hundred parameters
    norms = torch._foreach_norm(tensors)  # pyright: ignore[reportPrivateImportUsage] - torch has no public name for it
    return torch.stack([norm.to(norms[0].device) for norm in norms])


def initial_weights(model: nn.Module, optimizer: Optimizer | None) -> dict[str, InitialWeight]:
    """The parameters before training: shape, fan-in, mean and standard deviation."""
    found = {}
    driven = {id(p) for group in optimizer.param_groups for p in group["params"]} if optimizer else None
    for name, p in model.named_parameters():
        if is_lazy(p) or p.is_meta or not p.numel():
            continue
        value = p.detach().float()
        fan_in = value[0].numel() if value.dim() > 1 and value.shape[0] else 0
        found[name] = InitialWeight(
            shape=tuple(p.shape),
            fan_in=fan_in,
            mean=float(value.mean()) if value.numel() else 0.0,
            std=float(value.std(correction=0)) if value.numel() else 0.0,
            low=float(value.min()) if value.numel() else 0.0,
            high=float(value.max()) if value.numel() else 0.0,
            trainable=p.requires_grad,
            driven=driven is None or id(p) in driven,
        )
    return found


def _flat(call: Call, z: Tensor, axis: int, rest: list[int]) -> tuple[Tensor, Tensor]:
    """Per unit: the share of values where the slope is nearly zero, and whether it is exactly zero at all of them."""
    if "weight" in call.slopes:  # PReLU: a slope per unit, or one for all
        slope = call.slopes["weight"].to(z.device)
        if slope.numel() > 1:
            slope = slope if slope.numel() == z.shape[axis] else slope.mean()
        share, silent = _share_below(z, 0.0, rest), _largest(z, rest) <= 0
        return share * (slope.abs() <= FLAT_SLOPE), silent & (slope == 0)
    row = ACTIVATIONS[call.site.activation]
    low, high = row.flat_edges(FLAT_SLOPE, **call.site.parameters)
    dead_low, dead_high = row.flat_edges(0.0, **call.site.parameters)
    inner = [
        (start, end)
        for start, end in row.dead_stretches(**call.site.parameters)
        if math.isfinite(start) and math.isfinite(end)  # between the ends, as softshrink's
    ]
    if inner or (math.isfinite(dead_low) and math.isfinite(dead_high)):
        flat, dead = (z <= low) | (z >= high), (z <= dead_low) | (z >= dead_high)
        for start, end in inner:
            inside = (z >= start) & (z <= end)
            flat, dead = flat | inside, dead | inside
        return _mean(flat.float(), rest), _mean(dead.float(), rest) >= 1
    share = _share_below(z, low, rest)
    if math.isfinite(high):
        share = share + _share_below(-z, -high, rest)
    if math.isfinite(dead_high):
        return share, _largest(-z, rest) <= -dead_high
    return share, _largest(z, rest) <= dead_low  # the greatest value decides: a tenth of the cost of looking at each


def _share_below(z: Tensor, edge: float, rest: list[int]) -> Tensor:
    """Share of each unit's values at or below `edge`; as numbers, not truth values, which takes a fifth of the time."""
    return _mean(torch.le(z, edge, out=torch.empty_like(z)), rest)


def _largest(z: Tensor, rest: list[int]) -> Tensor:
    return z.amax(rest) if rest else z


def _moments(x: Tensor, rest: list[int]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each unit, from `MOMENT_VALUES` of its values where there are more."""
    if not rest:
        return x, torch.zeros_like(x)
    x = _thinned(x, rest)
    mean = x.mean(rest, keepdim=True)
    deviation = x.sub(mean).square_().mean(rest).sqrt_()  # a tenth of the cost of torch.std_mean along a first axis
    return mean.reshape(-1), deviation


def _thinned(x: Tensor, rest: list[int]) -> Tensor:
    """Evenly spaced values of each unit; positions are left out before samples are."""
    size = math.prod(x.shape[d] for d in rest)
    for d in reversed(rest):
        stride = min(x.shape[d], -(-size // MOMENT_VALUES))
        if stride > 1:
            size = size // x.shape[d] * -(-x.shape[d] // stride)
            x = x[(slice(None),) * d + (slice(None, None, stride),)]
    return x


def _non_finite(y: Tensor, axis: int, rest: list[int]) -> Tensor:
    """How many of each unit's values are NaN or infinite."""
    if y.is_cpu and math.isfinite(y.sum().item()):  # the usual case costs a fiftieth; elsewhere it would wait
        return torch.zeros(y.shape[axis])
    bad = ~torch.isfinite(y)
    return bad.sum(rest) if rest else bad.float()


def _mean(x: Tensor, rest: list[int]) -> Tensor:
    return x.mean(rest) if rest else x


def _as_tensor(loss: Any) -> Tensor | None:
    return loss.detach().float().reshape(-1)[:1] if isinstance(loss, Tensor) and loss.numel() else None


def _learning_rate(optimizer: Optimizer | None) -> float | None:
    rates = [float(group["lr"]) for group in optimizer.param_groups if "lr" in group] if optimizer else []
    return max(rates, default=None)


def _to_numpy(vectors: list[Tensor]) -> np.ndarray[Any, Any]:
    if not vectors:
        return np.empty(0, dtype=np.float32)
    device = vectors[0].device
    return torch.cat([v if v.device == device else v.to(device) for v in vectors]).cpu().numpy()


def _site_reading(rows: list[np.ndarray[Any, Any]], samples: int) -> SiteReading:
    flat, silent, pre_mean, pre_std, mean, std, bad, *gradient = rows
    return SiteReading(
        samples=samples,
        flat_share=flat,
        silent=silent > 0,
        pre_mean=pre_mean,
        pre_std=pre_std,
        mean=mean,
        std=std,
        gradient=gradient[0] if gradient else None,
        non_finite=int(bad.sum()),
    )


def _rounded(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Four significant digits: statistics of a batch hold no more, and journals and reports are half the size."""
    exact = (values == 0) | ~np.isfinite(values)
    scale = 10.0 ** (3 - np.floor(np.log10(np.abs(np.where(exact, 1.0, values.astype(np.float64))))))
    return np.where(exact, values, np.round(values * scale) / scale).astype(np.float32)


def _weight_readings(norms: Mapping[str, tuple[list[str], np.ndarray[Any, Any]]]) -> dict[str, WeightReading]:
    by_name = {which: dict(zip(names, map(float, values), strict=True)) for which, (names, values) in norms.items()}
    return {
        name: WeightReading(norm=norm, gradient=by_name["gradient"].get(name), update=by_name["update"].get(name))
        for name, norm in by_name["norm"].items()
    }
