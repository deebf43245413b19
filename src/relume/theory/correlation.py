"""How alike deep layers see two inputs: the correlation of their pre-activations, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from relume.activations import Activation, activation
from relume.activations.row import panels
from relume.errors import RelumeError
from relume.theory.moments import check_positive, check_variances, root, second_moments
from relume.theory.propagation import FixedVariance, depth_scale, fixed_variance, propagate

_REACH = 9.0  # standard deviations; beyond, the normal density is below 1e-18
_NODES = 8  # a panel, which is at most one standard deviation wide
_FINEST = 10  # panels shrink to 2^-10 around kinks, where close inputs make a step of the inner mean
_CRITICAL = 1e-7  # chi within this of 1 is 1

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
    a number, or an array of any shape; exact to 1e-6. Raises `ActivationError` for an unknown function or parameter,
    and `RelumeError` for numbers that are no variances or correlations, or a function of several numbers.

    Source: Poole et al. 2016, arXiv:1606.05340.

    >>> round(correlation_map("relu", 0.0, q=1.0, sigma_w2=2.0), 6)
    0.31831
    """
    check_variances(sigma_w2, sigma_b2)
    other = q if q2 is None else q2
    check_positive("q", q)
    check_positive("q2", other)
    row = _of_one_number(row)
    arguments = row.arguments(**parameters)
    found = np.asarray(c, dtype=np.float64)
    if not (np.abs(found) <= 1).all():
        raise RelumeError(f"correlation_map: c is {c!r}, but correlations lie in [-1, 1].")
    variances = [sigma_w2 * second_moments(row, v, arguments)[0] + sigma_b2 for v in (q, other)]
    products = np.array([_product_mean(row.f, row, arguments, v, q, other) for v in found.ravel()])
    result = (sigma_w2 * products + sigma_b2) / math.sqrt(variances[0] * variances[1])
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

    `q0` is the mean square of the inputs. Raises as `propagate` and `correlation_map` do.

    >>> [round(c, 4) for c in correlations("relu", 3, sigma_w2=2.0)]
    [0.0, 0.3183, 0.4937]
    """
    if not -1 <= c0 <= 1:
        raise RelumeError(f"correlations: c0 is {c0!r}, but must lie in [-1, 1].")
    row = _of_one_number(row)
    variances = propagate(row, depth, sigma_w2, sigma_b2, q0, **parameters).q
    found = [(sigma_w2 * q0 * c0 + sigma_b2) / variances[0]]
    for q in variances[:-1]:
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
    c: float  # the correlation that any two inputs come to; NaN, as is xi_c, where the variance is unbounded
    chi: float
    xi_q: float  # layers over which the variance forgets its start, by a factor e
    xi_c: float  # the same for the correlation of two inputs
    xi_gradient: float  # layers over which the mean square of the gradient shrinks or grows by a factor e


def signal_depth(
    row: str | Activation, sigma_w2: float, sigma_b2: float = 0.0, q0: float = 1.0, **parameters: float
) -> Depths:
    """The fixed point a deep network comes to, and how many layers signals and gradients reach.

    A network much deeper than `xi_c` cannot be trained. Raises as `fixed_variance` does, and `RelumeError` for a
    function of several numbers.

    Source: Schoenholz, Gilmer, Ganguli & Sohl-Dickstein 2017, arXiv:1611.01232.

    >>> deep = signal_depth("tanh", sigma_w2=1.5, sigma_b2=0.3)
    >>> deep.phase, round(deep.c, 6), deep.xi_gradient < 10
    ('ordered', 1.0, True)
    """
    row = _of_one_number(row)
    arguments = row.arguments(**parameters)
    variance = fixed_variance(row, sigma_w2, sigma_b2, q0, **parameters)
    q = {"zero": _SMALL, "unbounded": _LARGE}.get(variance.kind, variance.q)
    second, _, slope_second = second_moments(row, q, arguments)
    chi = sigma_w2 * slope_second
    scale = sigma_w2 * second + sigma_b2
    slope_at_one = chi * q / scale  # of C; chi itself where the variance is fixed

    def ahead(c: float) -> float:
        return (sigma_w2 * _product_mean(row.f, row, arguments, c, q, q) + sigma_b2) / scale - c

    c = math.nan if variance.kind == "unbounded" else 1.0
    if c == 1 and slope_at_one > 1 + _CRITICAL:
        # C is a power series without negative coefficients: beyond slope 1 at 1 it crosses the diagonal once below.
        near = 1 - 1e-3 * min(1.0, slope_at_one - 1) ** 2
        c = 0.0 if abs(ahead(0.0)) < 1e-12 else root(ahead, 0.0, near) if ahead(near) < 0 else 1.0
    slope = slope_at_one
    if c < 1:
        slope = sigma_w2 * _product_mean(row.df, row, arguments, c, q, q) * q / scale
    return Depths(
        phase="critical" if abs(chi - 1) < _CRITICAL else "ordered" if chi < 1 else "chaotic",
        variance=variance,
        c=c,
        chi=chi,
        xi_q=variance.depth,
        xi_c=math.nan if math.isnan(c) else depth_scale(slope),
        xi_gradient=depth_scale(chi),
    )


def _of_one_number(row: str | Activation) -> Activation:
    row = activation(row)
    if (row.operands, row.outputs) != (1, 1):
        raise RelumeError(
            f"{row.name} reads {row.operands} numbers and gives {row.outputs}; correlations are known only for "
            "functions of one number.\nmoments, chi and propagate take it."
        )
    return row


def _product_mean(g: Any, row: Activation, arguments: Mapping[str, float], c: float, q1: float, q2: float) -> float:
    """E[g(u1) g(u2)] for normal u1 and u2 of variances q1 and q2 and correlation c; g has its breaks where row has.

    u2 is c u1 and something independent. The mean over that is taken piece by piece between the breaks, and so is, on
    panels that shrink towards the breaks, the mean over u1: there the inner mean turns as quickly as u2 - c u1 is
    narrow.
    """
    rest = math.sqrt(max(0.0, (1 - c) * (1 + c)))
    width1, width2 = math.sqrt(q1), math.sqrt(q2)
    kinks = row.breaks(**arguments)
    turns = [k / width1 for k in kinks] + ([k / (c * width2) for k in kinks] if c else [])
    away = 2.0 ** -np.arange(_FINEST + 1)
    wide = _shrinking(max(width1, width2))
    outer = [np.arange(-_REACH, _REACH + 1), wide, -wide, *(m + s * away for m in turns for s in (-1, 1)), turns]
    edges = np.unique(np.clip(np.concatenate(outer), -_REACH, _REACH))
    z, w = (part.ravel() for part in panels(edges[None, :], _NODES))
    first = g(width1 * z, **arguments)
    if rest == 0:
        return float(w @ (first * g(math.copysign(width2, c) * z, **arguments)))

    centres = np.unique([0.0, *(k / width2 for k in kinks)])
    points = np.unique(np.concatenate([centres, *(m + s * wide for m in centres for s in (-1, 1))]))
    moving = (points[None, :] - c * z[:, None]) / rest
    fixed = np.broadcast_to(np.arange(-_REACH, _REACH + 1), (z.size, int(2 * _REACH) + 1))
    inner = np.sort(np.clip(np.concatenate([fixed, moving], axis=1), -_REACH, _REACH), axis=1)
    y, v = panels(inner, _NODES)
    second = (g(width2 * (c * z[:, None] + rest * y), **arguments) * v).sum(axis=1)
    return float(w @ (first * second))


def _shrinking(width: float) -> np.ndarray:
    """Distances from a centre, in standard deviations, down to where a function of unit scale is smooth."""
    return 2.0 ** -np.arange(max(0, math.ceil(math.log2(width))) + 1) if width > 1 else np.array([])
