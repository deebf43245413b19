"""The variance of the pre-activations and the size of the gradient, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from relume.activations import Activation, activation
from relume.errors import RelumeError
from relume.theory.moments import check_positive, check_variances, root, second_moments

# A variance that has shrunk out of the floats is as good as the smallest one: the function is linear there.
_SMALLEST = 1e-200

# Where the search for a fixed variance gives up: what is still falling there goes to 0, and what still rises is
# unbounded. Nearer to 0, the difference that decides drowns in rounding at critical points such as tanh's.
_ZERO, _UNBOUNDED = 1e-10, 1e12
_SAME = 1e-12  # relative: V(q) and q are equal


@dataclass(frozen=True, slots=True, kw_only=True)
class Propagation:
    """How a signal goes forward and its gradient back through a deep network; one number per layer, from the first."""

    q: tuple[float, ...]  # variance of the pre-activations
    chi: tuple[float, ...]  # mean square of the gradient at this layer over that at the next

    @property
    def gradient_ratio(self) -> float:
        """Size of the gradient at the first layer over that at the last (rms of pre-activation gradients)."""
        return math.prod(math.sqrt(chi) for chi in self.chi[:-1])


def propagate(
    rows: str | Activation | Sequence[str | Activation],
    depth: int,
    sigma_w2: float,
    sigma_b2: float = 0.0,
    q0: float = 1.0,
    **parameters: float,
) -> Propagation:
    """The variance of the pre-activations and the gradient factor at each of `depth` layers, without normalisation.

    `rows` is one function, or one for each layer; `q0` is the mean square of the inputs. Where q outgrows the floats it
    is inf, and chi NaN. Raises `ActivationError` for an unknown function or parameter, and `RelumeError` for numbers
    that describe no network.

    >>> deep = propagate("sigmoid", depth=30, sigma_w2=1.0)
    >>> deep.gradient_ratio < 1e-17
    True
    """
    layers = [rows] * depth if isinstance(rows, (str, Activation)) else list(rows)
    if len(layers) != depth or depth < 1:
        raise RelumeError(f"propagate: {len(layers)} activations for {depth} layers.\nGive one, or one for each layer.")
    check_variances(sigma_w2, sigma_b2)
    check_positive("q0", q0)

    variances, factors = [], []
    q = sigma_w2 * q0 + sigma_b2
    for layer in map(activation, layers):
        arguments = layer.arguments(**parameters)
        variances.append(q)
        if math.isinf(q):
            factors.append(math.nan)
            continue
        second, _, slope_second = second_moments(layer, max(q, _SMALLEST), arguments)
        factors.append(sigma_w2 * slope_second)
        q = sigma_w2 * second + sigma_b2
    return Propagation(q=tuple(variances), chi=tuple(factors))


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedVariance:
    """Where the variance of the pre-activations goes in a deep network.

    `kind` is "stable": it goes to q; "any": it stays where it is, at every q, and `q` is the start; "zero": it shrinks
    for ever; "unbounded": it grows for ever.
    """

    kind: Literal["stable", "any", "zero", "unbounded"]
    q: float
    slope: float  # V'(q): the factor a layer on a small deviation; NaN where q is infinite

    @property
    def depth(self) -> float:
        """The number of layers over which a deviation shrinks, or grows, by a factor e; inf where it does neither."""
        return depth_scale(self.slope)


def fixed_variance(
    row: str | Activation, sigma_w2: float, sigma_b2: float = 0.0, q0: float = 1.0, **parameters: float
) -> FixedVariance:
    """The variance q that pre-activations of variance q0 come to: the next fixed point of V on their way.

    V(q) = sigma_w2 E[f(z)^2] + sigma_b2 over z ~ N(0, q). Raises `ActivationError` for an unknown function or
    parameter, and `RelumeError` for numbers that are no variances.

    Source: Poole et al. 2016, arXiv:1606.05340.

    >>> fixed_variance("selu", 1.0).kind, round(fixed_variance("selu", 1.0).q, 6)
    ('stable', 1.0)
    >>> [fixed_variance("relu", sigma_w2).kind for sigma_w2 in (1.0, 2.0, 3.0)]
    ['zero', 'any', 'unbounded']
    """
    check_variances(sigma_w2, sigma_b2)
    check_positive("q0", q0)
    row = activation(row)
    arguments = row.arguments(**parameters)

    def growth(q: float) -> float:
        """ln V(q) - ln q, 0 within rounding."""
        v = sigma_w2 * second_moments(row, q, arguments)[0] + sigma_b2
        if v == 0:  # a function that is 0 around 0
            return -math.inf
        found = math.log(v / q) if v < math.inf else math.inf
        return 0.0 if abs(found) < _SAME else found

    def at(kind: Literal["stable", "any", "zero", "unbounded"], q: float) -> FixedVariance:
        slope = math.nan if math.isinf(q) else sigma_w2 * second_moments(row, max(q, _ZERO), arguments)[1]
        return FixedVariance(kind=kind, q=q, slope=slope)

    start = growth(q0)
    if start == 0:
        everywhere = growth(q0 / 2) == 0 and growth(2 * q0) == 0
        return at("any" if everywhere else "stable", q0)
    # Biases, or a function that is not 0 at 0, hold the variance above that of the smallest signal.
    floor = sigma_w2 * second_moments(row, _SMALLEST, arguments)[0] + sigma_b2
    lowest = math.log(floor / 2 if floor > math.sqrt(_SMALLEST) else _ZERO)
    step = math.copysign(math.log(2), start)
    here = math.log(q0)
    while lowest <= here <= math.log(_UNBOUNDED):
        ahead = here + step
        now = growth(math.exp(ahead))
        if now * start < 0:
            return at("stable", math.exp(root(lambda s: growth(math.exp(s)), *sorted((here, ahead)))))
        here = ahead
    if start < 0:
        return at("zero", 0.0)
    return at("unbounded", math.inf)


def depth_scale(factor: float) -> float:
    """1 / |ln |factor||: layers over which the size of something that goes with factor^layers changes by e."""
    if math.isnan(factor) or factor == 0:
        return 0.0 if factor == 0 else math.nan
    rate = abs(math.log(abs(factor)))
    return 1 / rate if rate > 1e-9 else math.inf  # below, the factor is 1 within rounding
