"""Initialisations at which gradients keep their size through any depth."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from relume.activations import Activation, activation
from relume.errors import RelumeError
from relume.theory.moments import check_positive, moments, root, second_moments

_SMALLEST = 1e-16  # a variance at which a function is linear on either side of 0, and its mean square no underflow
_SMALL = 1e-12  # a larger one: a slope that is 0 at 0 shows as one that falls from here on
_ROUNDING = 1e-9  # of q: a bias variance this small is 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Critical:
    """A point at which chi is 1 and q stays where it is; where `why_not` is not empty, there is none at this q.

    With centred biases, every bias is `-mean` times the sum of its unit's weights, plus a draw of variance `sigma_b2`:
    the weights then act on outputs of mean 0. Such biases belong to the layer that reads the function's outputs, and so
    do `sigma_w2` and `sigma_b2`.
    """

    q: float
    sigma_w2: float  # NaN where there is no such point
    sigma_b2: float
    mean: float  # of the function's outputs, where biases are centred; else 0
    slope: float  # V'(q): the factor a layer on a deviation from q; above 1 the point does not hold itself
    why_not: str = ""


def critical(row: str | Activation, q: float = 1.0, *, centred: bool = False, **parameters: float) -> Critical:
    """The variances of weights and biases with chi = 1 and V(q) = q, on the critical curve of a function.

    sigma_w2 = 1 / E[f'(z)^2] and sigma_b2 = q - sigma_w2 E[f(z)^2] over z ~ N(0, q), which exists where that is not
    negative. With `centred` biases the variance of f stands for its mean square, and every continuous function has such
    a point: Var f <= q E[f'^2] (Poincaré). The limit at q -> 0 is `small_signal`. Raises `ActivationError` for an
    unknown function or parameter, and `RelumeError` unless q is positive and finite.

    Source: Poole et al. 2016, arXiv:1606.05340, and Schoenholz et al. 2017, arXiv:1611.01232; centred biases follow
    from 1/2 + tanh(x/2)/2, the sigmoid, which they make a tanh.

    >>> point = critical("tanh", q=0.5)
    >>> round(math.sqrt(point.sigma_w2), 3), round(point.sigma_b2, 3)
    (1.299, 0.038)
    >>> critical("softplus").why_not
    'softplus has no critical point at q = 1: the biases would need the variance -2.14.'
    """
    check_positive("q", q)
    row = activation(row)
    arguments = row.arguments(**parameters)
    mean = moments(row, q, **parameters).mean if centred else 0.0
    signal, slope, slope_second = second_moments(_shifted(row, mean), q, arguments)
    if not (0 < slope_second < math.inf and signal < math.inf):
        why = f"{row.name} has no critical point at q = {q:g}: its mean squared slope there is {slope_second:g}."
        return Critical(q=q, sigma_w2=math.nan, sigma_b2=math.nan, mean=mean, slope=math.nan, why_not=why)
    sigma_w2 = 1 / slope_second
    sigma_b2 = q - sigma_w2 * signal
    if abs(sigma_b2) < _ROUNDING * q:
        sigma_b2 = 0.0
    if sigma_b2 < 0:
        why = f"{row.name} has no critical point at q = {q:g}: the biases would need the variance {sigma_b2:.3g}."
        return Critical(q=q, sigma_w2=math.nan, sigma_b2=math.nan, mean=mean, slope=math.nan, why_not=why)
    return Critical(q=q, sigma_w2=sigma_w2, sigma_b2=sigma_b2, mean=mean, slope=sigma_w2 * slope)


def small_signal(row: str | Activation, *, centred: bool = False, **parameters: float) -> Critical:
    """The critical point in the limit of small pre-activations, q -> 0: sigma_w2 is 1 over the squared slope at 0.

    It exists where f(0) is 0, or with `centred` biases, which take f(0) away, and the slope at 0 is not 0. Its
    `sigma_b2` is 0, and its `slope`, of the variance, 1: signals neither grow nor shrink as long as they are small.
    Raises `ActivationError` for an unknown function or parameter.

    >>> round(small_signal("gelu").sigma_w2, 6), round(small_signal("mish").sigma_w2, 4)
    (4.0, 2.7778)
    >>> round(small_signal("sigmoid", centred=True).sigma_w2, 6)
    16.0
    """
    row = activation(row)
    found = moments(row, _SMALLEST, **parameters)
    slope_second = found.slope_second
    if slope_second < moments(row, _SMALL, **parameters).slope_second / 2:
        slope_second = 0.0  # it goes to 0 with q
    mean = found.mean if abs(found.mean) > math.sqrt(_SMALLEST) else 0.0
    why = ""
    if mean and not centred:
        why = f"{row.name} has no critical point at q -> 0: it gives {mean:.3g} at 0, which centred biases take away."
    elif not 0 < slope_second < math.inf:
        why = f"{row.name} has no critical point at q -> 0: its slope there is {math.sqrt(slope_second):g}."
    sigma_w2 = math.nan if why else 1 / slope_second
    rest = math.nan if why else 0.0
    return Critical(
        q=0.0, sigma_w2=sigma_w2, sigma_b2=rest, mean=mean if centred else 0.0, slope=math.nan if why else 1.0,
        why_not=why,
    )  # fmt: skip


def tat_slope(depth: int, target: float = 0.9) -> float:
    """The slope of a leaky ReLU with which a plain network of `depth` layers maps orthogonal inputs to correlation
    `target`, instead of to 1.

    The network is at He's initialisation for that slope, with zero biases. Raises `RelumeError` for a depth below 1 or
    a target outside (0, 1), and where even a ReLU stays below the target.

    Source: Zhang, Botev & Martens 2022, Deep learning without shortcuts (Tailored Activation Transformation),
    arXiv:2203.08120; the correlation map is that of leaky ReLUs.

    >>> round(tat_slope(50), 4)
    0.4305
    """
    if not isinstance(depth, Integral) or depth < 1 or not 0 < target < 1:
        raise RelumeError(
            f"tat_slope: depth {depth!r} must be a whole number, 1 or more, and target {target!r} lie between 0 and 1."
        )

    def excess(slope: float) -> float:
        c = 0.0
        for _ in range(depth):
            relu = (math.sqrt(max(0.0, 1 - c * c)) + (math.pi - math.acos(c)) * c) / math.pi
            c = min(1.0, ((1 - slope) ** 2 * relu + 2 * slope * c) / (1 + slope**2))
        return c - target

    if excess(0.0) < 0:
        raise RelumeError(
            f"tat_slope: {depth} ReLU layers bring orthogonal inputs to a correlation of {excess(0.0) + target:.3g}, "
            f"below the target {target:g}.\nNo slope is needed at this depth; or lower the target."
        )
    return root(excess, 0.0, 1.0)


def _shifted(row: Activation, mean: float) -> Activation:
    """The function less its mean, as layers with centred biases see it."""

    def f(*operands: Any, **arguments: float) -> Any:
        found = row.f(*operands, **arguments)
        return tuple(y - mean for y in found) if isinstance(found, tuple) else found - mean

    return replace(row, f=f) if mean else row
