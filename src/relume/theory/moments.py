"""Means of a function and its slope under normal pre-activations, and what follows from them for one layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from relume.activations import Activation, activation, normal_points, normal_rule
from relume.errors import RelumeError

# Panels, halves of halves as they are, are cut in three until two rules agree to `_EXACT`. At the finest, where a
# function turns hundreds of times within a standard deviation, nodes hit its phase evenly: a mean over so many of them
# is right to `_ROUGH`.
_EXACT, _ROUGH, _FINEST = 1e-9, 0.05, 81


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Means over z ~ N(0, q) of a function and its derivative, and the gains and factors that follow from them.

    A function of several numbers reads independent ones, each N(0, q), and J is the matrix of its partial derivatives,
    outputs by operands; means are then per output, and fan_in counts outputs of the layer before.
    """

    mean: float  # E[f(z)]
    second: float  # E[f(z)^2]
    slope_second: float  # E[f'(z)^2], or E of the sum of squares of J over the number of outputs
    slope_fourth: float  # E[f'(z)^4], or E[trace (J J^T)^2] over the number of outputs
    gain_forward: float  # std of the weights, times sqrt(fan_in), that keeps q from layer to layer
    gain_backward: float  # the same for the mean square of the gradient, with fan_out
    chi_ln: float  # factor a layer on the mean square of the gradient, with LayerNorm before the function
    chi_bn: float  # the same with BatchNorm; NaN where f outgrows lines: samples then differ too much in size
    isometry: float  # E[f'^4] / E[f'^2]^2 - 1: how unevenly gradients shrink; 0 for a linear function


def moments(row: str | Activation, q: float = 1.0, **parameters: float) -> Moments:
    """The moments of a function under normal pre-activations of variance q.

    Numbers too large for a float are inf, and ratios of such numbers NaN. `chi_bn` holds for functions that grow no
    faster than linearly, and is NaN for others: batch normalisation fixes each unit over the batch, not the size of
    each sample, and a square or an exponential makes most of the largest. Means are exact to 1e-9; of a function that
    turns hundreds of times within a standard deviation, to .05. Raises `ActivationError` for an unknown function or
    parameter, and `RelumeError` unless q is positive and finite, or for a function that turns too often for that.

    Source: LeCun et al. 1998, Glorot & Bengio 2010 and He et al. 2015 for the gains (q = 1); Pennington, Schoenholz &
    Ganguli 2017, arXiv:1711.04735, for the isometry.

    >>> round(moments("relu").gain_forward, 4)
    1.4142
    >>> round(moments("sigmoid").chi_ln, 4)
    0.1528
    """
    check_positive("q", q)
    row = activation(row)
    arguments = row.arguments(**parameters)

    def means(points: tuple[np.ndarray, ...], w: np.ndarray) -> tuple[float, ...]:
        outputs = _outputs(row, points, arguments)
        centres = outputs @ w
        jacobian = _jacobian(row, points, arguments)
        products = np.einsum("aip,bip->abp", jacobian, jacobian)
        return (
            float((outputs**2 @ w).mean()),
            float((jacobian**2).sum(axis=(0, 1)) @ w) / row.outputs,
            float((products**2).sum(axis=(0, 1)) @ w) / row.outputs,
            float(centres.mean()),
            float(((outputs - centres[:, None]) ** 2 @ w).mean()),
        )

    second, slope_second, slope_fourth, mean, variance = _converged(means, 3, row, q, arguments, strict=True)
    steep = any(math.isinf(tail.slope) for tail in row.tails(**arguments))
    # As many directions pass a layer as the smaller side of J has: CReLU, which keeps every length, is an isometry.
    share = min(row.operands, row.outputs) / row.outputs
    return Moments(
        mean=mean,
        second=second,
        slope_second=slope_second,
        slope_fourth=slope_fourth,
        gain_forward=math.sqrt(over(q, second)),
        gain_backward=math.sqrt(over(1.0, slope_second)),
        chi_ln=over(q * slope_second, second),
        chi_bn=math.nan if steep else over(q * slope_second, variance),
        isometry=over(slope_fourth * share, slope_second**2) - 1,
    )


def chi(row: str | Activation, q: float, sigma_w2: float, **parameters: float) -> float:
    """The factor on the mean square of the gradient, a layer back, where pre-activations have variance q.

    Gradients vanish below 1 and explode above 1; their size goes with its square root. Raises as `moments` does, and
    `RelumeError` unless sigma_w2 is positive and finite.

    >>> round(chi("relu", q=1.0, sigma_w2=2.0), 12)
    1.0
    """
    check_positive("sigma_w2", sigma_w2)
    return sigma_w2 * moments(row, q, **parameters).slope_second


def second_moments(row: Activation, q: float, arguments: Mapping[str, float]) -> tuple[float, float, float]:
    """E[f^2], its derivative by q, and E[f'^2]; inf where they outgrow the floats, and the derivative NaN there.

    The derivative is that of the normal density, E[f^2 (z^2 - operands)] / 2q, so that f may jump.
    """

    def means(points: tuple[np.ndarray, ...], w: np.ndarray) -> tuple[float, ...]:
        squares = (_outputs(row, points, arguments) ** 2).mean(axis=0)
        score = (np.sum([x * x / q for x in points], axis=0) - row.operands) / (2 * q)
        slopes = (_jacobian(row, points, arguments) ** 2).sum(axis=(0, 1)) / row.outputs
        return float(w @ squares), float(w @ slopes), float(w @ (squares * score))

    second, slope_second, slope = _converged(means, 2, row, q, arguments, strict=False)
    return second, slope, slope_second


def _converged(
    means: Callable[[tuple[np.ndarray, ...], np.ndarray], tuple[float, ...]],
    positive: int,
    row: Activation,
    q: float,
    arguments: Mapping[str, float],
    *,
    strict: bool,
) -> tuple[float, ...]:
    """What `means` makes of points and weights fine enough for the function.

    Where none is fine enough `strict` is a `RelumeError`, and otherwise the finest has to do: deep networks whose
    variance grows without end pass through there.

    The first `positive` numbers, means of squares, decide: the others may be 0 but for rounding. Functions of two
    numbers have parameters neither to squeeze nor to turn them, and their rule is fine enough.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # exp ends in inf - inf
        finer = 1
        found = means(*normal_points(row.operands, row.breaks(**arguments), q))
        while row.operands == 1:
            before, finer = found, 3 * finer
            x, w = normal_rule(row.breaks(**arguments), q, finer)
            found = means((x,), w)
            tolerance = _EXACT if finer < _FINEST else _ROUGH
            beyond = not all(map(math.isfinite, found))  # the floats: no rule helps
            if beyond or np.allclose(found[:positive], before[:positive], rtol=tolerance, atol=0):
                break
            if finer >= _FINEST and not strict:
                break
            if finer >= _FINEST:
                raise RelumeError(
                    f"{row.name} turns too often at q = {q:g}: its means do not settle, even on panels of "
                    f"1 / {_FINEST} standard deviation.\nGive a smaller q, or a parameter that turns it more slowly."
                )
    return found


def over(numerator: float, denominator: float) -> float:
    """The quotient, which is inf or NaN where floats end, not an error."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return float(np.float64(numerator) / np.float64(denominator))


def root(f: Callable[[float], float], low: float, high: float) -> float:
    """Where f is 0, between two points at which it has different signs."""
    from scipy.optimize import brentq  # here, because it takes longer to load than all else

    return cast(float, brentq(f, low, high, xtol=1e-13))


def check_positive(name: str, value: float) -> None:
    """A RelumeError unless it is positive and finite."""
    if not 0 < value < math.inf:
        raise RelumeError(f"{name} is {value!r}, but must be positive and finite.")


def check_variances(sigma_w2: float, sigma_b2: float) -> None:
    """A RelumeError unless they are variances of weights and biases."""
    check_positive("sigma_w2", sigma_w2)
    if not 0 <= sigma_b2 < math.inf:
        raise RelumeError(f"sigma_b2 is {sigma_b2!r}, but must be a finite variance, 0 or more.")


def _outputs(row: Activation, points: tuple[np.ndarray, ...], arguments: Mapping[str, float]) -> np.ndarray:
    """Outputs by points."""
    found = row.f(*points, **arguments)
    return np.stack(found if isinstance(found, tuple) else (found,))


def _jacobian(row: Activation, points: tuple[np.ndarray, ...], arguments: Mapping[str, float]) -> np.ndarray:
    """Outputs by operands by points."""
    partials = [np.broadcast_to(p, points[0].shape) for p in row.partials(*points, **arguments)]
    return np.stack(partials).reshape(row.outputs, row.operands, -1)
