"""Formulas that rows of the catalogue share.

They are written so that far ends neither overflow nor give inf * 0, that tails keep their digits, and that NaN stays
NaN.
"""

import math
from typing import Any

import numpy as np

SELU_SCALE = 1.0507009873554804934193349852946
SELU_ALPHA = 1.6732632423543772848170429916717


def expit(x: Any) -> Any:
    """The logistic function."""
    from scipy import special  # here, because it takes longer to load than all else in the catalogue

    return special.expit(x)


def ndtr(x: Any) -> Any:
    """The distribution function of the standard normal."""
    from scipy import special

    return special.ndtr(x)


def exp(x: Any) -> Any:
    """The exponential function, without a warning where it is too large for a float."""
    with np.errstate(over="ignore"):  # inf is the right answer beyond 709.78
        return np.exp(x)


def soft_relu(x: Any) -> Any:
    """ln(1 + e^x). Unlike `np.logaddexp` it takes NaN without a warning."""
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def near(x: Any) -> Any:
    """x, cut where every exponential term has long vanished."""
    return np.clip(x, -1e3, 1e3)


def cut_left(x: Any) -> Any:
    """x, cut on the left, for products whose other factor is exactly 0 there."""
    return np.maximum(x, -1e3)


def choose(x: Any, condition: Any, yes: Any, no: Any) -> Any:
    """`yes` where the condition holds and `no` elsewhere, but NaN where x is NaN."""
    return np.where(np.isnan(x), np.nan, np.where(condition, yes, no))


def leaky(x: Any, slope: float) -> Any:
    """x, times `slope` on the negative side."""
    return np.maximum(x, 0.0) + (slope * np.minimum(x, 0.0) if slope else 0.0)


def logistic_slope(x: Any) -> Any:
    """The derivative of the logistic function."""
    return expit(x) * expit(-x)


def gelu_slope(x: Any) -> Any:
    """The derivative of gelu."""
    x = near(x)
    return ndtr(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def tanh_argument(x: Any) -> Any:
    """Twice the argument of tanh in the approximation of gelu: 1/2 (1 + tanh(u)) is expit(2u)."""
    x = near(x)
    return 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)


def gelu_tanh_slope(x: Any) -> Any:
    """The derivative of gelu_tanh."""
    x, u = near(x), tanh_argument(x)
    return expit(u) + x * 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x) * logistic_slope(u)


def silu_slope(x: Any) -> Any:
    """The derivative of silu."""
    x = near(x)
    return expit(x) * (1 + x * expit(-x))


def mish_slope(x: Any) -> Any:
    """The derivative of mish."""
    x = near(x)
    soft = soft_relu(x)
    return np.tanh(soft) + 4 * x * logistic_slope(2 * soft) * expit(x)


def softsign(x: Any) -> Any:
    """x / (1 + |x|), with its limits at the ends."""
    x = np.clip(x, -1e300, 1e300)
    return x / (1 + np.abs(x))
