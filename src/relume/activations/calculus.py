"""Formulas that rows of the catalogue share.

They are written so that far ends neither overflow nor give inf * 0, that tails keep their digits in float32 as in
float64, and that NaN stays NaN.
"""

import math
from typing import Any

from relume.activations.primitives import (
    FAR,
    above,
    absolute,
    below,
    capped_exp,
    choose,
    clip,
    erfc,
    exp,
    is_array,
    log1p,
    maximum,
    memory_is_reused,
    minimum,
    over,
    plus,
    rounded,
    square,
    tanh,
    times,
)

SELU_SCALE = 1.0507009873554804934193349852946
SELU_ALPHA = 1.6732632423543772848170429916717
SQRT_HALF = math.sqrt(0.5)
_COARSE_HALF = round(SQRT_HALF * 2**12) / 2**12  # the first bits of it, and the others
_FINE_HALF = SQRT_HALF - _COARSE_HALF
SILU_EXACT = 80.0
SQRT_TAU = math.sqrt(2 * math.pi)


# --- cutting off what no longer matters -------------------------------------------------------------------------------


def near(x: Any) -> Any:
    """x, cut where every exponential term has long vanished and no power overflows."""
    return clip(x, -1e3, 1e3)


def cut(x: Any) -> Any:
    """x, cut just before infinity, for quotients and for products with a factor that is exactly 0 there."""
    return clip(x, -FAR, FAR)


def cut_left(x: Any) -> Any:
    """x, cut just before -inf, for products whose other factor is exactly 0 there."""
    return maximum(x, -FAR)


def far_where(vanishes: Any) -> Any:
    """Where to cut x: just before infinity where its factor vanishes there, and nowhere else.

    The condition is on parameters: a truth value, or a tensor of them where they are learnt.
    """
    if is_array(vanishes):
        return FAR if vanishes else math.inf
    return FAR / vanishes.float()  # by 1, or by 0


# --- the logistic function and its kin --------------------------------------------------------------------------------


def gated(factor: Any, x: Any, rate: float = 1.0) -> Any:
    """The factor times the logistic function of rate x, with its digits as far left as the type has numbers."""
    if memory_is_reused(x):
        import torch  # here, because the catalogue works without torch

        # The backward of softplus is this product: factor * e / (1 + e), and the factor alone right of 80. There is no
        # other operator that has it; torch.sigmoid overflows at -88, where x times it is still a number.
        factor = x.new_full((), factor) if is_array(factor) else factor
        return torch.ops.aten.softplus_backward(factor, x, rate, 80.0)
    e = capped_exp(rate * x)
    return factor * (e / (1 + e))


def expit(x: Any) -> Any:
    """The logistic function."""
    return gated(1.0, x)


def logistic_slope(x: Any, factor: Any = 1.0) -> Any:
    """The derivative of the logistic function, times a factor."""
    return gated(gated(factor, x), x, -1.0)


def soft_relu(x: Any) -> Any:
    """ln(1 + e^x); from 40 on it is x, in float64 too."""
    return plus(log1p(exp(minimum(x, 40.0), own=True)), maximum(x - 40, 0.0))


def _is_near(x: Any) -> bool:
    """Whether torch's operators for silu are exact for all of the tensor: beyond -88 they overflow, and at infinity."""
    low, high = x.aminmax()
    return low.item() > -SILU_EXACT and high.item() < SILU_EXACT


def silu(x: Any) -> Any:
    """x times the logistic function of x."""
    if memory_is_reused(x) and _is_near(x):
        from torch.nn.functional import silu  # here, because the catalogue works without torch

        return silu(x)
    return gated(cut_left(x), x)


def silu_slope(x: Any) -> Any:
    """The derivative of silu."""
    if memory_is_reused(x) and _is_near(x):
        import torch  # here, because the catalogue works without torch

        return torch.ops.aten.silu_backward(x.new_ones(()), x)
    x = cut(x)
    return gated(plus(gated(x, x, -1.0), 1.0), x)


def tanh_slope(x: Any, factor: Any = 1.0) -> Any:
    """The derivative of tanh, times a factor."""
    if memory_is_reused(x):  # s (1 - s) is even in x, and left of 0 keeps its digits
        import torch  # here, because the catalogue works without torch

        s = gated(1.0, times(x.abs(), -2.0))
        factor = s.new_full((), 4 * factor) if is_array(factor) else 4 * factor
        return torch.ops.aten.sigmoid_backward(factor, s)
    return gated(gated(4 * factor, x, 2.0), x, -2.0)


def tanh_shrink(x: Any) -> Any:
    """x - tanh(x), near 0 by Lambert's continued fraction of tanh, where the difference would lose its digits."""
    z = square(clip(x, -1.0, 1.0))
    q = z / (3 + z / (5 + z / (7 + z / (9 + z / (11 + z / (13 + z / 15))))))
    return choose(x, absolute(x) < 1, x * (q / (1 + q)), x - tanh(x))


def tanh_soft_relu(x: Any) -> Any:
    """tanh(ln(1 + e^x)), the gate of mish: a rational function of e^x, here of p / n = e^x with neither above 1."""
    p, n = exp(below(x)), exp(-above(x))
    s = p * (p + 2 * n)
    return s / (s + 2 * n * n)


def mish_slope(x: Any) -> Any:
    """The derivative of mish."""
    p, n = exp(below(x)), exp(-above(x))
    s = p * (p + 2 * n)
    d = s + 2 * n * n
    return s / d + cut(x) * (4 * p * (p + n) * n * n / (d * d))


# --- the normal distribution and its kin ------------------------------------------------------------------------------


def bell(x: Any, rate: float = 0.5) -> Any:
    """e^(-rate x^2). The square of a coarse x is exact in float32, the rest is small, so that no digit is lost."""
    if memory_is_reused(x):  # on the CPU, where float64 costs less than to repair the rounding
        return exp(times(square(x.double(), own=True), -rate), own=True).to(x.dtype)
    x = clip(x, -40.0, 40.0)
    coarse = over(rounded(x * 64), 64.0)
    rest = times(coarse - x, coarse + x)
    return times(exp(times(square(coarse), -rate)), exp(times(rest, rate)))


def rough_ndtr(x: Any) -> Any:
    """The distribution function of the standard normal without the care of `ndtr`: left of 0 it has x^2 ULP."""
    return times(erfc(x * -SQRT_HALF, own=True), 0.5)


def ndtr(x: Any) -> Any:
    """The distribution function of the standard normal.

    On the left erfc(u) amplifies the rounding of u = -x / sqrt(2), by the factor e^(u^2 - x^2 / 2): taken out again.
    """
    if memory_is_reused(x):  # as in bell
        return times(erfc(times(x.double(), -SQRT_HALF), own=True), 0.5).to(x.dtype)
    x = clip(x, -40.0, 40.0)
    u = x * SQRT_HALF
    coarse = over(rounded(x * 64), 64.0)
    # what the rounding of u added to it: products with 12 bits each are exact, and so is their difference from u
    rest = plus(times(x - coarse, -_COARSE_HALF), -_FINE_HALF * x)
    added = plus(plus(times(coarse, -_COARSE_HALF), u), rest)
    return times(erfc(-u), plus(times(added, minimum(u, 0.0)), 0.5))


def gelu(x: Any) -> Any:
    """x times the normal distribution function of x."""
    return times(ndtr(x), cut_left(x))


def gelu_slope(x: Any) -> Any:
    """The derivative of gelu."""
    return plus(times(over(bell(x), SQRT_TAU), cut(x)), ndtr(x))


def tanh_argument(x: Any) -> Any:
    """Twice the argument of tanh in the approximation of gelu: 1/2 (1 + tanh(u)) is expit(2u)."""
    x = near(x)
    return 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))


def gelu_tanh_slope(x: Any) -> Any:
    """The derivative of gelu_tanh."""
    x, u = near(x), tanh_argument(x)
    return expit(u) + x * (1 + 3 * 0.044715 * x * x) * (2 * math.sqrt(2 / math.pi) * logistic_slope(u))


# --- piecewise --------------------------------------------------------------------------------------------------------


def leaky(x: Any, slope: Any) -> Any:
    """x, times `slope` on the negative side."""
    if isinstance(slope, float) and slope == 0:
        return maximum(x, 0.0)
    if isinstance(slope, float) and not is_array(x):
        from torch.nn.functional import leaky_relu  # here, because the catalogue works without torch

        return leaky_relu(x, slope)
    return maximum(x, 0.0) + slope * clip(x, -far_where(slope == 0), 0.0)  # 0 times -inf is no number


def softsign(x: Any) -> Any:
    """x / (1 + |x|), with its limits at the ends."""
    x = cut(x)
    return x / (1 + absolute(x))


def bent_ends(x: Any, left: Any, left_slope: Any, right: Any, right_slope: Any) -> Any:
    """What two outer lines add to x clipped to [left, right]."""
    below, above = clip(x - left, -far_where(left_slope == 0), 0.0), clip(x - right, 0.0, far_where(right_slope == 0))
    return left_slope * below + right_slope * above
