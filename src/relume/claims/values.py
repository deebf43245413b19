"""Experiments on values and slopes of single functions."""

from __future__ import annotations

import math

import numpy as np
import torch

from relume.activations import activation
from relume.claims.cost import MATTERS, SIZES, elementwise, rounds
from relume.claims.judging import answer, below, dots, exact, fact, judge, said
from relume.claims.lab import Lab
from relume.claims.networks import Stack, function, propagate_once
from relume.claims.record import Figure, Finding, Series
from relume.verdicts import Difference, mean_interval

CENTRED = 0.05  # |mean| over rms of the outputs; the mean of 400 draws of a centred function is as large
BESIDE = 1e-6  # how far beside a point its left and right slopes are taken
SAME_SLOPE = 1e-3
LIKE_RELU = 1e-3  # the most by which a smooth ReLU may differ where |x| >= 10
EXACT = 1e-4  # of the spread of the outputs: what float32 leaves of an exact translation, with room
WIDE = 15.0  # tanh is 1 in float64 from 19 on; the strict statement can be seen up to here


def relu_zero_centred(lab: Lab, name: str = "relu") -> Finding:
    """The mean output over a layer of a real network, beside its rms."""
    shown = {each: off_centre(lab, each) for each in dict.fromkeys((name, "relu", "sigmoid", "gelu", "tanh"))}
    found = shown[name]
    verdict, on = judge({"zero-centred": below(found, CENTRED)})
    return Finding(
        verdict=verdict,
        because=f"Its outputs in a layer with normal inputs have a mean of {said(found)} of their rms "
        f"(centred: below {CENTRED:g}); for standard normal inputs the mean is {activation(name).mean:.3g}.",
        measured=f"|mean| over rms of the outputs, {name}",
        number=found.mean, low=found.low, high=found.high, seeds=len(lab.seeds), depends_on=on,
        figure=dots("How far off centre outputs are", "|mean| over rms", shown, mark=CENTRED, mark_name="centred"),
    )  # fmt: skip


def off_centre(lab: Lab, name: str) -> Difference:
    """|Mean| over rms of a layer's outputs, with its interval over networks."""
    stack = Stack(activations=(name,), weight_variance=1.0, depth=1, width=256, samples=512)
    return mean_interval([abs(s.means[0]) for s in lab.map(propagate_once, [(stack, seed) for seed in lab.seeds])])


def relu_gradient_one(lab: Lab, name: str = "relu") -> Finding:
    """Autograd's slope at positive float32 numbers of every size."""
    x = torch.cat([2.0 ** torch.arange(-126, 128), torch.linspace(1e-3, 10, 1000)])
    worst = exact(float((_slope(name, x) - 1).abs().max()))
    at = torch.logspace(-2, 1, 60)
    verdict, on = judge({"1 everywhere": fact(worst.mean == 0)})
    return Finding(
        verdict=verdict,
        because=f"Over {len(x):,} positive numbers from 1e-38 to 1e38 its slope differs from 1 by {worst.mean:.2g} at "
        "most.",
        measured=f"largest |slope - 1| for x > 0, {name}",
        number=worst.mean, low=worst.low, high=worst.high, depends_on=on,
        figure=_lines("Slope for positive inputs", "x", "slope", {
            each: (at, _slope(each, at)) for each in dict.fromkeys((name, "relu", "sigmoid", "gelu"))}, log_x=True),
    )  # fmt: skip


def elu_smooth_at_zero(lab: Lab, name: str = "elu", alphas: tuple[float, ...] = (0.5, 1.0, 2.0)) -> Finding:
    """Slopes just left and right of zero, by autograd, for several alphas."""
    beside = torch.tensor([-BESIDE, BESIDE], dtype=torch.float64)
    slopes = {alpha: _slope(name, beside, alpha=alpha).tolist() for alpha in alphas}
    verdict, on = judge(
        {f"alpha {a:g}": fact(all(abs(s - 1) < SAME_SLOPE for s in both)) for a, both in slopes.items()}
    )
    default = activation(name).parameters["alpha"].default
    chosen = default if default in slopes else alphas[0]
    rows = ", ".join(f"{left:.3g} and {right:.3g} at alpha {a:g}" for a, (left, right) in slopes.items())
    x = torch.linspace(-2, 1, 301, dtype=torch.float64)
    return Finding(
        verdict=verdict,
        because=f"Left and right of zero its slope is {rows}. torch's default alpha is {default:g}.",
        measured=f"slope just left of zero, {name}, alpha {chosen:g}",
        number=slopes[chosen][0], low=slopes[chosen][0], high=slopes[chosen][0],
        depends_on=f"alpha ({on})" if on else "",
        figure=_lines(f"Slope of {name}", "x", "slope", {
            f"alpha {a:g}": (x, _slope(name, x, alpha=a)) for a in alphas}),
    )  # fmt: skip


def softplus_smooth(lab: Lab, name: str = "softplus", rival: str = "relu") -> Finding:
    """Slopes around zero, the distance from ReLU far away, and the time beside ReLU's."""
    beside = torch.tensor([-1e-4, 1e-4], dtype=torch.float64)
    jump = float(_slope(name, beside).diff().abs())
    far = np.concatenate([np.linspace(-50, -10, 100), np.linspace(10, 50, 100)])
    apart = float(np.abs(activation(name).value(far) - np.maximum(far, 0)).max())
    smooth = activation(name).smooth and jump < SAME_SLOPE
    costs = {place: elementwise(lab, name, rival, place) for place in SIZES}
    cost = next(iter(costs.values()))
    verdict, on = judge(
        {
            "a smooth ReLU": fact(smooth and apart < LIKE_RELU),
            **{f"costs more than {rival} {place}": answer(value, MATTERS) for place, value in costs.items()},
        }
    )
    x = torch.linspace(-4, 4, 201, dtype=torch.float64)
    return Finding(
        verdict=verdict,
        because=f"Across zero its slope changes by {jump:.2g} ({'no' if smooth else 'a'} corner); beyond 10 it is "
        f"within {apart:.2g} of ReLU. Forward and backward it takes as long as {rival} "
        + " and ".join(f"{said(value)} times {place}" for place, value in costs.items()) + ".",
        measured=f"ratio of time, {name} over {rival}, forward and backward, {next(iter(costs))}",
        number=cost.mean, low=cost.low, high=cost.high, unit="times", seeds=rounds(lab), depends_on=on,
        figure=_lines("Slopes around zero", "x", "slope", {
            each: (x, _slope(each, x)) for each in dict.fromkeys((name, "relu"))}),
    )  # fmt: skip


def tanh_range(lab: Lab, name: str = "tanh") -> Finding:
    """Values far out and on a fine grid, and the mean output over a layer of a real network."""
    x = np.linspace(-WIDE, WIDE, 20_001)
    y = activation(name).value(x)
    far = activation(name).value(np.array([-1e6, -100.0, 100.0, 1e6]))
    inside = bool(np.all(np.abs(y) < 1) and np.all(np.abs(far) <= 1))
    rising = bool(np.all(np.diff(y) > 0))
    mean = off_centre(lab, name)
    verdict, on = judge(
        {
            "values in (-1, 1)": fact(inside),
            "zero-centred": below(mean, CENTRED),
            "strictly increasing": fact(rising),
        }
    )
    at = torch.linspace(-5, 5, 201, dtype=torch.float64)
    return Finding(
        verdict=verdict,
        because=f"For |x| up to {WIDE:g} its values run from {y.min():.4g} to {y.max():.4g}, "
        f"{'each above the one before' if rising else 'not all rising'}; beyond, float64 rounds to the ends. Over a "
        f"layer the mean output is {said(mean, 2)} of the rms (centred: below {CENTRED:g}).",
        measured=f"|mean| over rms of the outputs, {name}",
        number=mean.mean, low=mean.low, high=mean.high, seeds=len(lab.seeds), depends_on=on,
        figure=_lines("Values", "x", "value", {
            each: (at, function(each).double()(at)) for each in dict.fromkeys((name, "tanh", "sigmoid"))}),
    )  # fmt: skip


def tanh_more_expressive(lab: Lab, name: str = "tanh", rival: str = "sigmoid") -> Finding:
    """Networks of one function, translated into the other by the best affine change of its input and output."""
    from scipy.optimize import least_squares

    x = np.linspace(-6, 6, 601)
    wanted, other = activation(name).value(x), activation(rival)
    fit = least_squares(lambda p: p[0] + p[1] * other.value(p[2] * x + p[3]) - wanted, (0.0, 1.0, 1.0, 0.0),
                        xtol=1e-15, ftol=1e-15, gtol=1e-15).x.round(9) + 0.0  # fmt: skip
    found = mean_interval([_translated(name, rival, tuple(fit), seed) for seed in lab.seeds])
    verdict, on = judge({"beyond the other's reach": answer(found, EXACT)})
    at = torch.tensor(x)
    moved = fit[0] + fit[1] * other.value(fit[2] * x + fit[3])
    return Finding(
        verdict=verdict,
        because=f"{name}(x) is {fit[0]:.3g} {fit[1]:+.3g} {rival}({fit[2]:.3g} x {fit[3]:+.3g}) at best. Random "
        f"networks of three hidden layers, so translated by their weights alone, differ by {said(found, 2)} of "
        f"the spread of their outputs (the same function: below {EXACT:g}). How well either trains is another "
        "matter: see tanh-centred-faster.",
        measured=f"largest difference between a {name} network and its translation, over the outputs' spread",
        number=found.mean, low=found.low, high=found.high, seeds=len(lab.seeds), depends_on=on,
        figure=_lines(f"{name}, and {rival} moved and stretched", "x", "value", {
            name: (at, torch.tensor(wanted)), f"{rival}, moved": (at, torch.tensor(moved)),
            rival: (at, torch.tensor(other.value(x)))}),
    )  # fmt: skip


def _translated(name: str, rival: str, fit: tuple[float, ...], seed: int, width: int = 64) -> float:
    """Largest output difference of a random network and its translation, over the spread of the outputs."""
    add, times, stretch, shift = fit
    draw = torch.Generator().manual_seed(seed)
    h = g = torch.randn(500, width, generator=draw, dtype=torch.float64)
    one, two = function(name).double(), function(rival).double()
    for layer in range(3):
        weight = torch.randn(width, width, generator=draw, dtype=torch.float64) / math.sqrt(width)
        # What the function before gave is an affine image of what its rival gave: the weights take that up.
        incoming = g @ weight if layer == 0 else g @ (times * weight) + add * weight.sum(0)
        h, g = one(h @ weight), two(stretch * incoming + shift)
    last = torch.randn(width, 1, generator=draw, dtype=torch.float64)
    wanted, got = h @ last, g @ (times * last) + add * last.sum(0)
    return float((wanted - got).abs().max() / wanted.std())


def _slope(name: str, x: torch.Tensor, **parameters: float) -> torch.Tensor:
    """The slope of torch's own function, by autograd."""
    x = x.detach().clone().requires_grad_()
    y = function(name, tuple(parameters.items())).to(x.dtype)(x)
    return torch.autograd.grad(y.sum(), x)[0]


def _lines(
    title: str, x: str, y: str, curves: dict[str, tuple[torch.Tensor, torch.Tensor]], log_x: bool = False
) -> Figure:
    series = tuple(
        Series(name=name, x=tuple(at.tolist()), y=tuple(round(v, 6) for v in value.detach().tolist()))
        for name, (at, value) in curves.items()
    )
    return Figure(title=title, kind="lines", x=x, y=y, series=series, log_x=log_x)
