"""How alike deep layers see two inputs: the correlation of their pre-activations, layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from relume.activations import Activation, activation
from relume.errors import RelumeError
from relume.theory.kernels import kernel
from relume.theory.moments import check_positive, check_variances, over, root, second_moments
from relume.theory.propagation import FixedVariance, depth_scale, fixed_variance, propagate

_CRITICAL = 1e-7  # chi within this of 1 is 1
_STRAIGHT = 1e-6  # a map that moves a correlation of 1/2 by less, at the smallest variance, moves none

# Where a variance is 0 or infinite, numbers are those in the limit, read off near it.
_SMALL, _LARGE = 1e-16, 1e8


def correlation_map(
    row: str | Activation,
    c: Any,
    q: float,
    sigma_w2: float,
    sigma_b2: float = 0.0,
    q2: float | None = None,
    **parameters: float,
) -> Any:
    """The correlation of the next layer's pre-activations for two inputs whose own have correlation c.

    C(c) = (sigma_w2 E[f(u1) f(u2)] + sigma_b2) / sqrt(V(q) V(q2)), with u1 and u2 normal, of variances q and q2 (the
    same unless given) and correlation c. At the fixed point of the variance, V(q) = q and C'(1) = chi. Takes and gives
    a number, or an array of any shape; exact to 1e-6. NaN where the next layer's pre-activations are all 0, as behind
    a softshrink of small numbers. Of several operands, each has correlation c, and the operands of one input none.
    Raises `ActivationError` for an unknown function or parameter, and `RelumeError` for numbers that are no variances
    or correlations, for a q at which the function turns too often or outgrows the floats, or where it mixes several
    numbers other than as a gate, or as a sum and a function of the difference.

    Source: Poole et al. 2016, arXiv:1606.05340.

    >>> round(correlation_map("relu", 0.0, q=1.0, sigma_w2=2.0), 6)
    0.31831
    """
    check_variances(sigma_w2, sigma_b2)
    other = q if q2 is None else q2
    check_positive("q", q)
    check_positive("q2", other)
    row = activation(row)
    arguments = row.arguments(**parameters)
    means = kernel(row, arguments)
    found = np.asarray(c, dtype=np.float64)
    if not (np.abs(found) <= 1).all():
        raise RelumeError(f"correlation_map: c is {c!r}, but correlations lie in [-1, 1].")
    finer = [means.resolution(v) for v in {q, other}]
    variances = [sigma_w2 * second_moments(row, v, arguments)[0] + sigma_b2 for v in (q, other)]
    if sigma_b2 == 0 and 0 in finer:
        result = np.full(found.size, np.nan)
    else:
        products = np.array([means.mean(v, q, other, max(1, *finer)) for v in found.ravel()])
        result = (sigma_w2 * products + sigma_b2) / (math.sqrt(variances[0]) * math.sqrt(variances[1]))
    result = np.clip(result, -1.0, 1.0).reshape(found.shape)
    return float(result) if found.ndim == 0 else result


def correlations(
    row: str | Activation,
    depth: int,
    sigma_w2: float,
    sigma_b2: float = 0.0,
    c0: float = 0.0,
    q0: float = 1.0,
    **parameters: float,
) -> tuple[float, ...]:
    """The correlation of the pre-activations at each of `depth` layers, for two inputs of correlation c0.

    `q0` is the mean square of the inputs. NaN from the layer on whose pre-activations are all 0. Raises as `propagate`
    and `correlation_map` do.

    >>> [round(c, 4) for c in correlations("relu", 3, sigma_w2=2.0)]
    [0.0, 0.3183, 0.4937]
    """
    if not -1 <= c0 <= 1:
        raise RelumeError(f"correlations: c0 is {c0!r}, but must lie in [-1, 1].")
    row = activation(row)
    variances = propagate(row, depth, sigma_w2, sigma_b2, q0, **parameters).q
    found = [(sigma_w2 * q0 * c0 + sigma_b2) / variances[0]]
    for q in variances[:-1]:
        if math.isnan(found[-1]):
            found.append(math.nan)
            continue
        near = min(max(q, _SMALL), _LARGE)
        found.append(correlation_map(row, found[-1], near, sigma_w2, sigma_b2, **parameters))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Depths:
    """How deep signals and gradients reach, in layers, where a network has come to its fixed point.

    In the "ordered" phase all inputs come to look alike and gradients vanish; in the "chaotic" one near inputs come
    apart and gradients explode; at the "critical" point both reach through any depth.
    """

    phase: Literal["ordered", "critical", "chaotic"]
    variance: FixedVariance
    c: float  # the correlation that any two inputs come to; NaN, as is xi_c, where they come to none in particular
    chi: float
    xi_q: float  # layers over which the variance forgets its start, by a factor e
    xi_c: float  # the same for the correlation of two inputs
    xi_gradient: float  # layers over which the mean square of the gradient shrinks or grows by a factor e


def signal_depth(
    row: str | Activation, sigma_w2: float, sigma_b2: float = 0.0, q0: float = 1.0, **parameters: float
) -> Depths:
    """The fixed point a deep network comes to, and how many layers signals and gradients reach.

    A network much deeper than `xi_c` cannot be trained. Two inputs come to no correlation in particular where the
    variance is unbounded, and where it shrinks until the function is a straight line, which keeps every correlation,
    or 0. Raises as `fixed_variance` and `correlation_map` do.

    Source: Schoenholz, Gilmer, Ganguli & Sohl-Dickstein 2017, arXiv:1611.01232.

    >>> deep = signal_depth("tanh", sigma_w2=1.5, sigma_b2=0.3)
    >>> deep.phase, round(deep.c, 6), deep.xi_gradient < 10
    ('ordered', 1.0, True)
    """
    row = activation(row)
    arguments = row.arguments(**parameters)
    variance = fixed_variance(row, sigma_w2, sigma_b2, q0, **parameters)
    q = {"zero": _SMALL, "unbounded": _LARGE}.get(variance.kind, variance.q)
    second, _, slope_second = second_moments(row, q, arguments)
    chi = sigma_w2 * slope_second
    scale = sigma_w2 * second + sigma_b2
    means = kernel(row, arguments)
    finer = 0 if variance.kind == "unbounded" else means.resolution(q)  # 0 where a constant or nothing passes

    def ahead(c: float) -> float:
        return (sigma_w2 * means.mean(c, q, q, max(1, finer)) + sigma_b2) / scale - c

    lost = variance.kind == "unbounded" or (variance.kind == "zero" and (not finer or abs(ahead(0.5)) < _STRAIGHT))
    c = math.nan if lost else 1.0
    slope_at_one = over(chi * q, scale)  # of C; chi itself where the variance is fixed
    if c == 1 and slope_at_one > 1 + _CRITICAL:
        # C is a power series without negative coefficients: beyond slope 1 at 1 it crosses the diagonal once below.
        near = 1 - 1e-3 * min(1.0, slope_at_one - 1) ** 2
        c = 0.0 if abs(ahead(0.0)) < 1e-12 else root(ahead, 0.0, near) if ahead(near) < 0 else 1.0
    slope = slope_at_one
    if c < 1:
        slope = sigma_w2 * means.slope(c, q, q, max(1, finer)) / scale
    return Depths(
        phase="critical" if abs(chi - 1) < _CRITICAL else "ordered" if chi < 1 else "chaotic",
        variance=variance,
        c=c,
        chi=chi,
        xi_q=variance.depth,
        xi_c=math.nan if math.isnan(c) else depth_scale(slope),
        xi_gradient=depth_scale(chi),
    )
