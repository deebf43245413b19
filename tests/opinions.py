"""Each function of the catalogue as its paper writes it, for mpmath: the second opinion on every row, and where to ask.

A function of several numbers takes them all; CReLU gives both its outputs.
"""

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
from mpmath import mpf

from relume.activations import Activation

Number = Any  # mpmath has no types that a checker could follow


def clip(x: Number, low: float, high: float) -> Number:
    return min(max(x, mpf(low)), mpf(high))


def sigmoid(x: Number) -> Number:
    return 1 / (1 + mpmath.exp(-x))


def softplus(x: Number, beta: float = 1.0, threshold: float = float("inf")) -> Number:
    return x if x * beta > threshold else mpmath.log1p(mpmath.exp(x * beta)) / beta


def phi(x: Number) -> Number:
    """The distribution function of the standard normal."""
    return mpmath.erfc(-x / mpmath.sqrt(2)) / 2


def relu(x: Number) -> Number:
    return max(x, mpf(0))


def selu(x: Number) -> Number:
    alpha, scale = mpf("1.6732632423543772848170429916717"), mpf("1.0507009873554804934193349852946")
    return scale * (x if x > 0 else alpha * mpmath.expm1(x))


def gelu_tanh(x: Number) -> Number:
    return x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpf("0.044715") * x**3)))


def isru(x: Number, alpha: float) -> Number:
    return x / mpmath.sqrt(1 + alpha * x**2)


def srelu(x: Number, t_left: float, a_left: float, t_right: float, a_right: float) -> Number:
    if x >= t_right:
        return t_right + a_right * (x - t_right)
    t_left = min(t_left, t_right)  # the paper has them in order
    return x if x > t_left else t_left + a_left * (x - t_left)


def smelu(x: Number, beta: float) -> Number:
    if abs(x) <= beta:
        return (x + beta) ** 2 / (4 * mpf(beta))
    return relu(x)


def sqnl(x: Number) -> Number:
    if abs(x) > 2:
        return mpmath.sign(x)
    return x - x**2 / 4 if x >= 0 else x + x**2 / 4


def flatten_t_swish(x: Number, threshold: float) -> Number:
    return x * sigmoid(x) + threshold if x >= 0 else mpf(threshold)


def soft_clipping(x: Number, alpha: float) -> Number:
    return mpmath.log((1 + mpmath.exp(alpha * x)) / (1 + mpmath.exp(alpha * (x - 1)))) / alpha


SECOND_OPINIONS: dict[str, Callable[..., Number]] = {
    # bounded
    "sigmoid": sigmoid,
    "tanh": mpmath.tanh,
    "scaled_tanh": lambda x: mpf("1.7159") * mpmath.tanh(2 * x / 3),
    "penalized_tanh": lambda x, slope: mpmath.tanh(x) if x > 0 else slope * mpmath.tanh(x),
    "hardtanh": lambda x, min_val, max_val: clip(x, low=min_val, high=max_val),
    "hardsigmoid": lambda x: clip(x / 6 + mpf(1) / 2, 0, 1),
    "relu6": lambda x: clip(x, 0, 6),
    "soft_clipping": soft_clipping,
    "softsign": lambda x: x / (1 + abs(x)),
    "elliott": lambda x: x / 2 / (1 + abs(x)) + mpf(1) / 2,
    "arctan": mpmath.atan,
    "isru": isru,
    "sqnl": sqnl,
    "gaussian": lambda x: mpmath.exp(-(x**2)),
    "sine": lambda x, omega: mpmath.sin(omega * x),
    "dsilu": lambda x: sigmoid(x) * (1 + x * (1 - sigmoid(x))),
    # straight and squared pieces
    "relu": relu,
    "leaky_relu": lambda x, negative_slope: x if x > 0 else negative_slope * x,
    "prelu": lambda x, weight: x if x > 0 else weight * x,
    "rrelu": lambda x, lower, upper: x if x > 0 else (mpf(lower) + mpf(upper)) / 2 * x,
    "tailored_relu": lambda x, negative_slope: (
        mpmath.sqrt(2 / (1 + mpf(negative_slope) ** 2)) * (x if x > 0 else negative_slope * x)
    ),
    "threshold": lambda x, threshold, value: x if x > threshold else mpf(value),
    "shifted_relu": lambda x: max(mpf(-1), x),
    "srelu": srelu,
    "plu": lambda x, alpha, c: max(alpha * (x + c) - c, min(alpha * (x - c) + c, x)),
    "softshrink": lambda x, lambd: mpmath.sign(x) * max(abs(x) - lambd, mpf(0)),
    "hardshrink": lambda x, lambd: x if abs(x) > lambd else mpf(0),
    "identity": lambda x: x,
    "relu_squared": lambda x: relu(x) ** 2,
    "star_relu": lambda x, scale, bias: scale * relu(x) ** 2 + bias,
    "smelu": smelu,
    "nlrelu": lambda x, beta: mpmath.log(beta * relu(x) + 1),
    # linear on one side at most
    "elu": lambda x, alpha: x if x > 0 else alpha * mpmath.expm1(x),
    "celu": lambda x, alpha: x if x > 0 else alpha * mpmath.expm1(x / alpha),
    "selu": selu,
    "pelu": lambda x, a, b: mpf(a) / b * x if x >= 0 else a * (mpmath.exp(x / b) - 1),
    "isrlu": lambda x, alpha: x if x >= 0 else isru(x, alpha),
    "softplus": softplus,
    "shifted_softplus": lambda x: mpmath.log(mpmath.exp(x) / 2 + mpf(1) / 2),
    "squareplus": lambda x, b: (x + mpmath.sqrt(x**2 + b)) / 2,
    "bent_identity": lambda x: (mpmath.sqrt(x**2 + 1) - 1) / 2 + x,
    "exp": mpmath.exp,
    "logsigmoid": lambda x: -softplus(-x),
    "tanhshrink": lambda x: x - mpmath.tanh(x),
    "symlog": lambda x: mpmath.sign(x) * mpmath.log(1 + abs(x)),
    "snake": lambda x, a: x + mpmath.sin(a * x) ** 2 / a,
    # x times a gate
    "silu": lambda x: x * sigmoid(x),
    "swish": lambda x, beta: x * sigmoid(beta * x),
    "quick_gelu": lambda x: x * sigmoid(mpf(1.702) * x),
    "hardswish": lambda x: x * clip(x / 6 + mpf(1) / 2, 0, 1),
    "flatten_t_swish": flatten_t_swish,
    "aptx": lambda x, alpha, beta, gamma: (alpha + mpmath.tanh(beta * x)) * gamma * x,
    "logish": lambda x: x * mpmath.log(1 + sigmoid(x)),
    "smish": lambda x: x * mpmath.tanh(mpmath.log(1 + sigmoid(x))),
    "elish": lambda x: x * sigmoid(x) if x >= 0 else (mpmath.exp(x) - 1) * sigmoid(x),
    "hard_elish": lambda x: clip((x + 1) / 2, 0, 1) * (x if x >= 0 else mpmath.exp(x) - 1),
    "gelu": lambda x: x * phi(x),
    "gelu_tanh": gelu_tanh,
    "mish": lambda x: x * mpmath.tanh(softplus(x)),
    "serf": lambda x: x * mpmath.erf(softplus(x)),
    "telu": lambda x: x * mpmath.tanh(mpmath.exp(min(x, mpf(1000)))),
    "phish": lambda x: x * mpmath.tanh(x * phi(x)),
    "lisht": lambda x: x * mpmath.tanh(x),
    # several numbers
    "glu": lambda a, b: a * sigmoid(b),
    "bilinear_glu": lambda a, b: a * b,
    "reglu": lambda a, b: a * relu(b),
    "geglu": lambda a, b: a * b * phi(b),
    "swiglu": lambda a, b: a * b * sigmoid(b),
    "maxout": max,
    "crelu": lambda x: (relu(x), relu(-x)),
    "softmax": lambda a, b: mpmath.exp(a) / (mpmath.exp(a) + mpmath.exp(b)),
    "softmin": lambda a, b: mpmath.exp(-a) / (mpmath.exp(-a) + mpmath.exp(-b)),
    "log_softmax": lambda a, b: a - mpmath.log(mpmath.exp(a) + mpmath.exp(b)),
}


def outputs(row: Activation, *operands: Number, **parameters: float) -> tuple[Number, ...]:
    """All that the second opinion on a row makes of its operands."""
    found = SECOND_OPINIONS[row.name](*operands, **{**row.arguments(), **parameters})
    return found if isinstance(found, tuple) else (found,)


def section(row: Activation, x: Number, **parameters: float) -> Number:
    """The second opinion on `row.value`: along the last operand, the others at 1, the first output."""
    return outputs(row, *[mpf(1)] * (row.operands - 1), x, **parameters)[0]


def partials(row: Activation, *operands: Number, **parameters: float) -> list[Number]:
    """The partial derivatives, in the order of `row.partials`, by differences of 1e-20."""
    orders = [tuple(int(i == j) for j in range(row.operands)) for i in range(row.operands)]
    return [
        mpmath.diff(
            lambda *x, k=k: outputs(row, *x, **parameters)[k],
            operands if row.operands > 1 else operands[0],
            order if row.operands > 1 else 1,
            h=mpf(10) ** -20,
        )
        for k in range(row.outputs)
        for order in orders
    ]


# --- where rows are checked -------------------------------------------------------------------------------------------


def settings(row: Activation) -> list[dict[str, float]]:
    """The default parameters, and each parameter moved to half and to twice its default, or around 0 by a half."""
    moved = [
        {name: value}
        for name, p in row.parameters.items()
        for value in ((p.default * 0.5, p.default * 2.0) if p.default else (-0.5, 0.5))
    ]
    return [{}, *moved]


def across_ranges(row: Activation) -> list[dict[str, float]]:
    """The default parameters, and each one moved through all it may be: to both ends, and to points between.

    An open end counts as 1000. Learnt parameters are numbers of float32, as in a module.
    """
    found: list[dict[str, float]] = [{}]
    for name, p in row.parameters.items():
        low, high = max(p.low, -1e3), min(p.high, 1e3)
        inner = [v for v in (-2.0, -1.0, -0.3, 0.0, 0.3, 1.0, 2.0) if low < v < high]
        found += [{name: max(p.low, float(np.float32(v))) if p.init_argument else v} for v in (low, *inner, high)]
    return found


def limit(g: Callable[[Number], Number], side: float) -> float:
    """What g tends to at an infinite end, read off at 1e30 and 1e60; NaN where it does not settle."""
    near, far = g(side * mpf(10) ** 30), g(side * mpf(10) ** 60)
    if abs(far - near) <= abs(far) * mpf(10) ** -9 + mpf(10) ** -25:
        return float(far)
    return math.copysign(math.inf, far) if abs(far) > max(10, 1.5 * abs(near)) else math.nan


def away_from(points: tuple[float, ...], x: np.ndarray, distance: float = 1e-6) -> np.ndarray:
    return x[np.all([np.abs(x - point) > distance for point in points], axis=0)] if points else x


def wide_scan() -> np.ndarray:
    """Points over [-1e4, 1e4], dense where functions bend."""
    steps = np.concatenate([np.linspace(0, 30, 3001), np.geomspace(30, 1e4, 500)])
    return np.unique(np.concatenate([-steps, steps]))


def several(row: Activation, x: np.ndarray) -> list[tuple[Any, ...]]:
    """The operands of a row: x as the last, with a few numbers for the others."""
    return [(x,)] if row.operands == 1 else [(np.full_like(x, a), x) for a in (1.0, -0.7, 2.3)]


def both(found: Any) -> tuple[Any, ...]:
    return found if isinstance(found, tuple) else (found,)


def close(found: np.ndarray, expected: np.ndarray, rtol: float, atol: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)
