"""Reads one training step: statistics per unit, taken where the activations are called, moved to the CPU once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from relume.activations import ACTIVATIONS
from relume.nested import first_float
from relume.recording import InitialWeight, InputReading, Reading, Site, SiteReading, WeightReading
from relume.sites import Call, Trace

# A unit is flat on a sample where its slope is below this share of the function's greatest slope. At 1 % a gradient
# that passes two such units has lost four orders of magnitude, the range in which float32 sums lose it altogether.
FLAT_SLOPE = 0.01


class Probe:
    """One probed step: `with probe.forward(inputs): model(...)`, then the backward pass, then `probe.reading(...)`."""

    def __init__(self, model: nn.Module, step: int = 0) -> None:
        self.step = step
        self.samples = 0
        self._model = model
        self._trace = Trace(model, self._observe)
        self._columns: dict[int, list[Tensor]] = {}  # site index -> eight vectors, one entry per unit
        self._counts: dict[int, int] = {}
        self._squares: dict[int, list[Tensor]] = {}  # site index -> sums of squared output gradients
        self._input: tuple[int, Tensor] | None = None
        self._output: Tensor | None = None
        self._before: dict[str, Tensor] = {}

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
            self._before = {
                name: p.detach().clone()
                for name, p in self._model.named_parameters()
                if p.requires_grad and not is_lazy(p)
            }

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
        flat, silent = _flat(call, z, axis)
        columns = [_mean(flat.float(), rest), _all(silent, rest).float(), *_moments(z, rest)]

        def done(result: Tensor) -> None:
            y = result.detach()
            y = y if y.dtype in (torch.float32, torch.float64) else y.float()
            y = y[None] if y.dim() == 0 else y
            bad = (~torch.isfinite(y)).sum(rest) if rest else (~torch.isfinite(y)).float()
            self._columns[call.index] = [c.float() for c in (*columns, *_moments(y, rest), bad)]
            self._counts[call.index] = samples
            if result.requires_grad:
                squares = self._squares.setdefault(call.index, [])

                def read_gradient(gradient: Tensor) -> None:
                    g = gradient.detach().float()
                    g = g[None] if g.dim() == 0 else g
                    squares.append(g.square().sum(rest) if rest else g.square())

                result.register_hook(lambda gradient: self._trace.attempt(read_gradient, gradient))

        return done

    # after the step -----------------------------------------------------------------------------------------------

    def reading(self, loss: Any = None, optimizer: Optimizer | None = None) -> Reading:
        """All that was read, moved to the CPU in one transfer."""
        vectors: list[Tensor] = []

        def put(values: Iterable[Tensor]) -> slice:
            start = len(vectors)
            vectors.extend(v.reshape(-1).float() for v in values)
            return slice(start, len(vectors))

        sites = {i: put([*self._columns[i], *self._gradient(i)]) for i in self._columns}
        weights = {name: put(row) for name, row in self._weights().items()}
        outer = put([t for t in (self._input and self._input[1], self._output, _as_tensor(loss)) if t is not None])
        read = _to_numpy(vectors)

        tail = iter(read[outer])
        fed = None
        if self._input is not None:
            mean, std, rms, largest, bad = (float(v) for v in next(tail))
            fed = InputReading(
                samples=self._input[0], mean=mean, std=std, rms=rms, largest=largest, non_finite=int(bad)
            )
        output = float(next(tail)[0]) if self._output is not None else None
        value = float(next(tail)[0]) if _as_tensor(loss) is not None else None
        names = {site.order: site.name for site in self._trace.sites}
        return Reading(
            step=self.step,
            loss=value if value is not None else (float(loss) if isinstance(loss, (int, float)) else None),
            learning_rate=_learning_rate(optimizer),
            sites={names[i]: _site_reading(read[cut], self._counts[i]) for i, cut in sites.items()},
            weights={name: _weight_reading(read[cut][0]) for name, cut in weights.items()},
            input=fed,
            output_rms=output,
        )

    def _gradient(self, index: int) -> list[Tensor]:
        squares = self._squares.get(index)
        return [(torch.stack(squares).sum(0) / self._counts[index]).sqrt()] if squares else []

    def _weights(self) -> dict[str, list[Tensor]]:
        """Norms of every trainable parameter: value, gradient, update; NaN where there is none."""
        found = {}
        missing = torch.tensor(float("nan"))
        with torch.no_grad():
            for name, p in self._model.named_parameters():
                if not p.requires_grad or is_lazy(p):
                    continue
                gradient = p.grad
                before = self._before.get(name)
                norms = [
                    p.detach().float().norm(),
                    missing if gradient is None else gradient.detach().to_dense().float().norm(),
                    missing if before is None else (p.detach() - before).float().norm(),
                ]
                has = [gradient is not None, before is not None]
                found[name] = [torch.stack([*(n.to(p.device) for n in norms), *(p.new_tensor(h).float() for h in has)])]
        return found


def initial_weights(model: nn.Module) -> dict[str, InitialWeight]:
    """The parameters before training: shape, fan-in, mean and standard deviation."""
    found = {}
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
        )
    return found


def _flat(call: Call, z: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Where the slope is nearly zero, and where it is exactly zero, elementwise."""
    if "weight" in call.slopes:  # PReLU: a slope per unit, or one for all
        slope = call.slopes["weight"].to(z.device)
        if slope.numel() > 1:
            shape = [1] * z.dim()
            shape[axis] = -1
            slope = slope.reshape(shape) if slope.numel() == z.shape[axis] else slope.mean()
        left = z <= 0
        return left & (slope.abs() <= FLAT_SLOPE), left & (slope == 0)
    row = ACTIVATIONS[call.site.activation]
    low, high = row.flat_edges(FLAT_SLOPE, **call.site.parameters)
    dead_low, dead_high = row.flat_edges(0.0, **call.site.parameters)
    flat, dead = (z <= low) | (z >= high), (z <= dead_low) | (z >= dead_high)
    for start, end in row.dead_stretches(**call.site.parameters):
        if math.isfinite(start) and math.isfinite(end):  # between the ends, as softshrink's
            inside = (z >= start) & (z <= end)
            flat, dead = flat | inside, dead | inside
    return flat, dead


def _moments(x: Tensor, rest: list[int]) -> tuple[Tensor, Tensor]:
    if not rest:
        return x, torch.zeros_like(x)
    std, mean = torch.std_mean(x, dim=rest, correction=0)
    return mean, std


def _mean(x: Tensor, rest: list[int]) -> Tensor:
    return x.mean(rest) if rest else x


def _all(x: Tensor, rest: list[int]) -> Tensor:
    return x.float().amin(rest) > 0 if rest else x


def _as_tensor(loss: Any) -> Tensor | None:
    return loss.detach().float().reshape(-1)[:1] if isinstance(loss, Tensor) and loss.numel() else None


def _learning_rate(optimizer: Optimizer | None) -> float | None:
    rates = [float(group["lr"]) for group in optimizer.param_groups if "lr" in group] if optimizer else []
    return max(rates, default=None)


def _to_numpy(vectors: list[Tensor]) -> list[np.ndarray[Any, Any]]:
    if not vectors:
        return []
    device = vectors[0].device
    flat = torch.cat([v.to(device) for v in vectors]).cpu().numpy()
    return np.split(flat, np.cumsum([v.numel() for v in vectors])[:-1])


def _site_reading(rows: list[np.ndarray[Any, Any]], samples: int) -> SiteReading:
    flat, silent, pre_mean, pre_std, mean, std, bad, *gradient = map(_rounded, rows)
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


def _weight_reading(row: np.ndarray[Any, Any]) -> WeightReading:
    norm, gradient, update, has_gradient, has_update = (float(v) for v in row)
    return WeightReading(norm=norm, gradient=gradient if has_gradient else None, update=update if has_update else None)
