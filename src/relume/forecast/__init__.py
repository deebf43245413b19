"""Foresees what a network's initial weights do to signal and gradient, without any training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from relume.activations import ACTIVATIONS
from relume.errors import RelumeError
from relume.forecast.tape import Layer, Tape
from relume.nested import call, tensors
from relume.randomness import seed_all
from relume.recording import layer_name
from relume.report.forecast import Forecast, LayerForecast, because_of, hidden, is_off
from relume.report.history import function_name
from relume.sites import is_lazy, undisturbed
from relume.symptoms.record import GRADIENT_RATIO
from relume.theory import born_dead_chance, moments

# A probe is one random gradient, with the slopes of one sample. Their noise is that of a backward pass of as many.
FEWEST_PROBES, MOST_PROBES, PROBED_VALUES = 4, 256, 2**15

__all__ = ["Forecast", "LayerForecast", "forecast"]


def forecast(model: nn.Module, example_input: Any) -> Forecast:
    """Foresee gradients, dead and saturated units of a network as it is, from its weights; nothing is trained.

    `example_input` is what the model is called with: a tensor, a tuple or list of arguments, or a dict of keyword
    arguments. It is passed forward once; 64 samples or more tell best what the data are like, one is enough. The model
    runs in the mode it is in, and is left bit-identical. Gradients come from the network's own weights and from slopes
    that each unit has on average, for random gradients at the output; no backward pass of the model is made.
    Operations that the rules do not cover are measured where they stand, and listed. Where the model itself fails,
    what came before is foreseen, and `not_modelled` says where it stopped.
    Raises RelumeError where `model` is no module, where the example holds no samples, where it holds no floating point
    numbers and nothing could be followed, and where an image comes without a batch axis.

    Source: Poole et al. 2016, arXiv:1606.05340; Schoenholz et al. 2017, arXiv:1611.01232, with the network's own
    weights in the place of their distribution.

    >>> torch.manual_seed(0).initial_seed()
    0
    >>> layers = [part for _ in range(20) for part in (nn.Linear(64, 64), nn.Sigmoid())]
    >>> foreseen = forecast(nn.Sequential(*layers), torch.randn(64, 64))
    >>> foreseen.gradient_ratio < 1e-12
    True
    >>> print(str(foreseen).split("-fold")[1].splitlines()[0])
     over 20 layers: Sigmoid with weights of PyTorch's default scale.
    """
    if not isinstance(model, nn.Module):
        raise RelumeError(
            f"forecast: the model is of type {type(model).__name__}, which is no torch.nn.Module.\n"
            "Pass the network itself, then what it is called with: forecast(model, example_input)."
        )
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps, where calls can be seen
    example = _with_batch(example_input)
    if any(t.dim() and not len(t) for t in tensors(example)):
        raise RelumeError(
            "forecast: the example input holds no samples (its first dimension is 0).\nPass one sample or more."
        )
    broken = _not_finite(model, example)
    fast = torch.backends.mha.get_fastpath_enabled()
    output, failure, where = None, "", ""
    tape = Tape(model, _probes(example))
    torch.backends.mha.set_fastpath_enabled(False)  # one fused call would hide a whole transformer layer
    try:
        with undisturbed(model), _unchanged(example):
            seed_all(0)  # dropout and probes are drawn: two forecasts of one network are equal
            with torch.enable_grad(), tape:
                for tensor in tensors(example):
                    tape.begin(tensor)
                try:
                    output = call(model, example)
                except Exception as error:  # whatever the model raises: what came before is foreseen all the same
                    said = (str(error).strip().splitlines() or ["without a message"])[0]
                    where = tape.ended_without or "the model"
                    failure = f"{where}: the forward pass fails ({type(error).__name__}: {said})"
            squares = tape.gradients(output)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    if tape.error is not None:
        raise tape.error
    if not tape.layers and not any(t.is_floating_point() for t in tensors(example)):
        raise RelumeError(
            "forecast: the example input holds no floating point tensor, and no layer with weights was reached.\n"
            + (f"{failure}.\n" if failure else "")
            + "Pass what the model is called with: a tensor, a tuple of arguments or a dict of keyword arguments."
        )
    if output is not None and tape.layers and all(square is None for square in squares):
        tape.lost["the model's output: it could not be followed back to a layer, so no gradient is foreseen"] = None
    layers = _layers(tape.layers, squares)
    ratio = _ratio(layers)
    mends = _mends(tape.layers, layers, ratio)
    layers = tuple(replace(layer, scale=mends.scales.get(i, 1.0)) for i, layer in enumerate(layers))
    wrong = because_of(layers, ratio, tuple(tape.stopped), broken)
    if failure:
        wrong = (f"The forward pass fails in {layer_name(where)}: what lies behind is not foreseen.", *wrong)
    return Forecast(
        layers=layers,
        gradient_ratio=ratio,
        because=wrong,
        advice=_advice(tape.layers, layers, ratio, mends) if wrong else (),
        measured=tuple(tape.measured),
        not_modelled=tuple(tape.lost) + ((failure,) if failure else ()) + tuple(b for b in tape.blind),
        born_dead_chance=_born_dead(tape.layers),
    )


def _with_batch(example: Any) -> Any:
    """A lone vector is one sample."""
    return example[None] if isinstance(example, torch.Tensor) and example.dim() == 1 else example


@contextmanager
def _unchanged(example: Any) -> Iterator[None]:
    """Gives the example its values back, where the model works in place."""
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors(example)]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


def _not_finite(model: nn.Module, example: Any) -> str:
    """What is not finite before anything is computed, as a sentence."""
    if any(t.is_floating_point() and not bool(t.isfinite().all()) for t in tensors(example)):
        return "The example input holds NaN or infinite values."
    held = (*model.named_parameters(), *model.named_buffers())
    for name, value in held:
        if not is_lazy(value) and not value.is_meta and value.is_floating_point() and bool(value.isnan().any()):
            return f"{name} holds NaN."
    return ""


def _probes(example: Any) -> int:
    """Many for vectors, few for images, where each probe has many positions."""
    size = max((t[0].numel() for t in tensors(example) if t.dim() and len(t)), default=1)
    return max(FEWEST_PROBES, min(MOST_PROBES, PROBED_VALUES // max(1, size)))


def _layers(seen: Sequence[Layer], squares: Sequence[float | None]) -> tuple[LayerForecast, ...]:
    """The layers with their gradients, relative to the last that has one."""
    squares = [square if square is not None and math.isfinite(square) else None for square in squares]
    last = next((square for square in reversed(squares) if square), None)
    sizes = [square if not square else math.sqrt(square / (last or 1.0)) for square in squares]
    factors = [
        here / after if here is not None and after else None
        for here, after in zip(sizes, [*sizes, None][1:], strict=True)
    ]
    depth = sum(layer.activation is not None for layer in seen) or len(seen)
    return tuple(
        LayerForecast(
            name=layer.name,
            kind=layer.kind,
            activation=layer.activation,
            units=layer.units,
            gain=layer.gain,
            q=layer.q,
            gradient=size,
            factor=factor,
            dead_share=layer.dead_share,
            saturated_share=layer.saturated_share,
            off_critical=is_off(factor, depth),
            note="" if size is not None else "no gradient was foreseen here",
        )
        for layer, size, factor in zip(seen, sizes, factors, strict=True)
    )


def _ratio(layers: Sequence[LayerForecast]) -> float | None:
    known = [layer.gradient for layer in hidden(layers) if layer.gradient is not None]
    last = next((size for size in reversed(known) if size), 1.0)  # a branch that starts at 0 may come last
    return known[0] / last if known else None


def _born_dead(seen: Sequence[Layer]) -> float | None:
    inner = [layer for layer in seen if layer.activation]
    chain = all(layer.activation == "relu" and layer.plain and layer.kind == "linear" for layer in inner)
    return born_dead_chance([layer.units for layer in inner]).chance if inner and chain else None


# What would mend it ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mends:
    """Factors for the weights, by layer; `hopeless` names a function that no factors bring into bounds."""

    scales: dict[int, float]
    chain: bool
    hopeless: str = ""


def _mends(seen: Sequence[Layer], layers: Sequence[LayerForecast], ratio: float | None) -> _Mends:
    """Scale layer by layer, so that each passes the gradient on as it got it, and follow the signal through that.

    Speaks of chains alone: normalisation takes scales away, and sums of branches do not multiply.
    """
    chain = all(s.plain and not s.normalised and s.source == i - 1 for i, s in enumerate(seen))
    out_of_bounds = ratio is not None and not 1 / GRADIENT_RATIO <= ratio <= GRADIENT_RATIO
    if not chain or not out_of_bounds or ratio == 0 or not math.isfinite(seen[0].q):
        return _Mends(scales={}, chain=chain)
    scales: dict[int, float] = {}
    q = seen[0].q
    for i, (before, after) in enumerate(pairwise(seen)):
        factor = layers[i].factor
        if not factor or not after.activation or not before.q > 0 or not math.isfinite(after.q):
            break  # the last layer's own shape decides what arrives behind it
        slope, second = 1.0, q / before.q
        if before.activation:
            row, numbers = ACTIVATIONS[before.activation], before.parameters or {}
            was, now = moments(row, before.q, **numbers), moments(row, q, **numbers)
            slope, second = now.slope_second / was.slope_second, now.second / was.second
        scale2 = 1 / (factor**2 * slope)
        q = scale2 * max(0.0, after.q - after.bias) * second + after.bias
        if not 1 / GRADIENT_RATIO < q / seen[0].q < GRADIENT_RATIO:
            return _Mends(scales={}, chain=True, hopeless=before.activation or "")
        scales[i + 1] = math.sqrt(scale2)
    return _Mends(scales=scales, chain=True)


def _advice(
    seen: Sequence[Layer], layers: Sequence[LayerForecast], ratio: float | None, mends: _Mends
) -> tuple[str, ...]:
    advice = []
    if mends.scales:
        found = sorted(mends.scales.values())
        low, high = found[0], found[-1]
        by = f"{low:.3g}" if high < 1.05 * low else f"{low:.3g} to {high:.3g}"
        advice.append(
            f"Multiply the weights of {len(found)} layers by {by} (column scale) to keep the gradient's size."
        )
        advice.append('Or draw weights and biases anew for these functions: relume.init_(model, "critical").')
    elif mends.hopeless:
        advice.append(
            f"No scale of the weights mends this: values outgrow {function_name(mends.hopeless)} before gradients keep "
            'their size. Draw weights and biases anew, relume.init_(model, "critical"), change the function, or '
            "normalise by batch."
        )
    elif ratio is not None and ratio > GRADIENT_RATIO and not mends.chain:
        advice.append("Branches or normalisation make it grow: start each branch's last layer near 0.")
    if any((layer.dead_share or 0.0) >= 0.5 and layer.bias > 0 for layer in seen):
        advice.append("Set the biases of the closed layers to 0.")
    return tuple(advice)
