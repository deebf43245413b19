"""Experiments on gradients in deep networks before training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from relume.activations import activation
from relume.claims.judging import answer, below, exact, geometric, judge, said
from relume.claims.lab import Lab
from relume.claims.networks import Signal, Stack, factor, propagate_once
from relume.claims.record import Figure, Finding, Series
from relume.theory import propagate
from relume.verdicts import Difference

# Weight variance times fan_in, on square layers.
INITS = {"He": 2.0, "Xavier": 1.0, "torch default": 1 / 3}
VANISHES = 0.5  # of the gradient's mean square is left a layer back: over 30 layers 3e-5 of its size
FAR = 10.0  # an input that all call large; unit-variance inputs reach 4
NEARLY_ZERO = 0.01  # of the steepest slope
KEEPS = 0.1  # of the gradient's size, over all layers: ten times the learning rate makes up for it
VANISHED = 0.01  # of the gradient's size, over all layers


def sigmoid_vanishing(
    lab: Lab, name: str = "sigmoid", norm: str = "", inits: Sequence[str] = ("Xavier", "He")
) -> Finding:
    """Slopes far from zero, and the gradient's way back through 30 layers."""
    row = activation(name)
    tails = exact(max(abs(float(row.slope(x))) for x in (-FAR, FAR)) / row.max_slope)
    signals = {init: _signals(lab, name, init, norm) for init in inits}
    factors = {init: geometric([factor(s) for s in found]) for init, found in signals.items()}
    verdict, on = judge(
        {
            f"slope at {FAR:g}": below(tails, NEARLY_ZERO),
            **{f"{init} initialisation": below(value, VANISHES) for init, value in factors.items()},
        }
    )
    first = factors[inits[0]]
    rest = ", ".join(f"{said(value)} ({init})" for init, value in factors.items())
    predicted = f"; theory says {_predicted(name, inits[0]):.3g} ({inits[0]})" if not norm else ""
    with_norm = _signals(lab, name, inits[0], "batch_norm")
    return Finding(
        verdict=verdict,
        because=f"At {FAR:g} the slope is {tails.mean:.2g} of its greatest. A layer back, the gradient's mean square "
        f"is multiplied by {rest}{predicted}. With BatchNorm before the function the factor is "
        f"{said(geometric([factor(s) for s in with_norm]))}.",
        measured=f"factor a layer on the gradient's mean square, {name}, {inits[0]}",
        number=first.mean, low=first.low, high=first.high, unit="a layer", seeds=len(lab.seeds), depends_on=on,
        figure=_curves(f"{name}: the gradient on its way back", {
            **signals, f"{inits[0]} and BatchNorm": with_norm}),
    )  # fmt: skip


def relu_vanishes_less(
    lab: Lab, name: str = "relu", rival: str = "sigmoid", inits: Sequence[str] = tuple(INITS)
) -> Finding:
    """The gradient left after 30 layers, for both functions at each initialisation."""
    signals = {f"{f}, {init}": _signals(lab, f, init) for init in inits for f in (name, rival)}
    left = {key: _left(found) for key, found in signals.items()}
    verdict, on = judge({init: answer(left[f"{name}, {init}"], KEEPS) for init in inits})
    best = max((left[f"{name}, {init}"] for init in inits), key=lambda value: value.mean)
    rows = "; ".join(
        f"{init} {left[f'{name}, {init}'].mean:.2g} of it is left with {name}, "
        f"{left[f'{rival}, {init}'].mean:.2g} with {rival}"
        for init in inits
    )
    return Finding(
        verdict=verdict,
        because=f"Of the gradient's size, over {_DEPTH} layers: {rows}.",
        measured=f"gradient left over {_DEPTH} layers, {name}, at its best initialisation of these",
        number=best.mean, low=best.low, high=best.high, seeds=len(lab.seeds),
        depends_on=f"the initialisation ({on})" if on else "",
        figure=_curves("The gradient on its way back", signals),
    )  # fmt: skip


def tanh_vanishes(lab: Lab, name: str = "tanh", inits: Sequence[str] = tuple(INITS)) -> Finding:
    """The gradient left after 30 layers, at each initialisation."""
    signals = {init: _signals(lab, name, init) for init in inits}
    left = {init: _left(found) for init, found in signals.items()}
    verdict, on = judge({init: below(value, VANISHED) for init, value in left.items()})
    worst = min(left.values(), key=lambda value: value.mean)
    rows = "; ".join(
        f"{init} {said(value, 2)}, theory {propagate(name, _DEPTH, INITS[init]).gradient_ratio:.2g}"
        for init, value in left.items()
    )
    return Finding(
        verdict=verdict,
        because=f"Of the gradient's size, this is left over {_DEPTH} layers: {rows}.",
        measured=f"gradient left over {_DEPTH} layers, {name}, at its worst initialisation of these",
        number=worst.mean, low=worst.low, high=worst.high, seeds=len(lab.seeds),
        depends_on=f"the initialisation ({on})" if on else "",
        figure=_curves(f"{name}: the gradient on its way back", signals),
    )  # fmt: skip


_DEPTH = Stack(activations=(), weight_variance=1.0).depth


def _predicted(name: str, init: str) -> float:
    """What theory says `factor` is."""
    found = propagate(name, _DEPTH, INITS[init]).chi[_DEPTH // 6 : _DEPTH - _DEPTH // 6 - 1]
    return math.prod(found) ** (1 / len(found))


def _signals(lab: Lab, name: str, init: str, norm: str = "") -> list[Signal]:
    width = 128 if lab.setting.quick else 256
    stack = Stack(activations=(name,), weight_variance=INITS[init], norm=norm, width=width)
    return lab.map(propagate_once, [(stack, seed) for seed in lab.seeds])


def _left(signals: Sequence[Signal]) -> Difference:
    return geometric([s.gradients[0] / s.gradients[-1] for s in signals])


def _curves(title: str, signals: Mapping[str, Sequence[Signal]]) -> Figure:
    """Gradients by layer, over that of the last layer; seeds as a band."""
    series = []
    for name, found in signals.items():
        by_layer = list(zip(*[[g / s.gradients[-1] for g in s.gradients] for s in found], strict=True))
        series.append(
            Series(
                name=name,
                x=tuple(float(i) for i in range(1, len(by_layer) + 1)),
                y=tuple(fmean(values) for values in by_layer),
                low=tuple(min(values) for values in by_layer),
                high=tuple(max(values) for values in by_layer),
            )
        )
    return Figure(title=title, kind="lines", x="layer", y="gradient over that of the last layer (rms)",
                  series=tuple(series), log_y=True)  # fmt: skip
