"""What a row of the catalogue predicts for a deep network before it is trained.

Throughout, weights are normal with variance `sigma_w2` / fan_in, biases with variance `sigma_b2`, and layers wide, so
that a pre-activation is normal with variance `q`: a mean square, not a length. Nothing here imports torch.

Sources: Poole et al. 2016, arXiv:1606.05340, and Schoenholz et al. 2017, arXiv:1611.01232 (signal propagation); Yang et
al. 2019, arXiv:1902.08129 (batch normalisation); Lu, Shin, Su & Karniadakis 2019, arXiv:1903.06733 (death at
initialisation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from relume.activations import Activation, activation, normal_rule
from relume.errors import RelumeError

# --- signal propagation -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Means over z ~ N(0, q) of a function and its derivative, and the gains and factors that follow from them."""

    mean: float  # E[f(z)]
    second: float  # E[f(z)^2]
    slope_second: float  # E[f'(z)^2]
    slope_fourth: float  # E[f'(z)^4]
    gain_forward: float  # std of the weights, times sqrt(fan_in), that keeps q from layer to layer
    gain_backward: float  # the same for the mean square of the gradient, with fan_out
    chi_ln: float  # factor a layer on the mean square of the gradient, with LayerNorm before the function
    chi_bn: float  # the same with BatchNorm before the function
    isometry: float  # E[f'^4] / E[f'^2]^2 - 1: how unevenly gradients shrink; 0 for a linear function


@dataclass(frozen=True, slots=True, kw_only=True)
class Propagation:
    """How a signal goes forward and its gradient back through a deep network; one number per layer, from the first."""

    q: tuple[float, ...]  # variance of the pre-activations
    chi: tuple[float, ...]  # mean square of the gradient at this layer over that at the next

    @property
    def gradient_ratio(self) -> float:
        """Size of the gradient at the first layer over that at the last (rms of pre-activation gradients)."""
        return math.prod(math.sqrt(chi) for chi in self.chi[:-1])


def moments(row: str | Activation, q: float = 1.0, **parameters: float) -> Moments:
    """The moments of a function under normal pre-activations of variance q.

    Numbers too large for a float are inf, and ratios of such numbers NaN. Raises `ActivationError` for an unknown
    function or parameter, and `RelumeError` unless q is positive and finite.

    Source: LeCun et al. 1998, Glorot & Bengio 2010 and He et al. 2015 for the gains (q = 1); Pennington, Schoenholz &
    Ganguli 2017, arXiv:1711.04735, for the isometry.

    >>> round(moments("relu").gain_forward, 4)
    1.4142
    >>> round(moments("sigmoid").chi_ln, 4)
    0.1528
    """
    _check_positive("q", q)
    row = activation(row)
    arguments = row.arguments(**parameters)
    x, w = normal_rule(row.breaks(**arguments), q)
    with np.errstate(over="ignore", invalid="ignore"):  # exp ends in inf - inf
        y, slope2 = row.f(x, **arguments), row.df(x, **arguments) ** 2
        mean, second = float(w @ y), float(w @ y**2)
        variance = float(w @ (y - mean) ** 2)
        slope_second, slope_fourth = float(w @ slope2), float(w @ slope2**2)
    return Moments(
        mean=mean,
        second=second,
        slope_second=slope_second,
        slope_fourth=slope_fourth,
        gain_forward=math.sqrt(_over(q, second)),
        gain_backward=math.sqrt(_over(1.0, slope_second)),
        chi_ln=_over(q * slope_second, second),
        chi_bn=_over(q * slope_second, variance),
        isometry=_over(slope_fourth, slope_second**2) - 1,
    )


def chi(row: str | Activation, q: float, sigma_w2: float, **parameters: float) -> float:
    """The factor on the mean square of the gradient, a layer back, where pre-activations have variance q.

    Gradients vanish below 1 and explode above 1; their size goes with its square root. Raises as `moments` does.

    >>> round(chi("relu", q=1.0, sigma_w2=2.0), 12)
    1.0
    """
    return sigma_w2 * moments(row, q, **parameters).slope_second


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
    _check_positive("sigma_w2", sigma_w2)
    _check_positive("q0", q0)
    if not 0 <= sigma_b2 < math.inf:
        raise RelumeError(f"sigma_b2 is {sigma_b2!r}, but must be a finite variance, 0 or more.")

    variances, factors = [], []
    q = sigma_w2 * q0 + sigma_b2
    for layer in map(activation, layers):
        arguments = layer.arguments(**parameters)
        variances.append(q)
        if math.isinf(q):
            factors.append(math.nan)
            continue
        # A variance that has shrunk out of the floats is as good as the smallest one: the function is linear there.
        x, w = normal_rule(layer.breaks(**arguments), max(q, 1e-200))
        with np.errstate(over="ignore"):
            factors.append(sigma_w2 * float(w @ layer.df(x, **arguments) ** 2))
            q = sigma_w2 * float(w @ layer.f(x, **arguments) ** 2) + sigma_b2
    return Propagation(q=tuple(variances), chi=tuple(factors))


# --- death before training --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class BornDead:
    """The chance that a whole ReLU layer is closed before training, with what bounds it."""

    lower: float
    chance: float
    upper: float


def born_dead_chance(widths: Sequence[int], samples: int = 10_000, seed: int = 0) -> BornDead:
    """The chance that some hidden ReLU layer is closed for every input, so that the network is born constant.

    `widths` are those of the hidden layers; the input is one number; weights are symmetric (normal for `chance`) and
    biases zero. The chance does not depend on the scale of the weights: He, Xavier and torch's default agree.
    `upper` holds for inputs of any dimension: it is the chance that some layer is closed for one given input.
    `chance` comes from a simulation of at most `samples` networks, fewer where layers are wide; at the default its
    standard error is below .002 where all layers have the same width. Raises `RelumeError` unless there are widths and
    each is at least 1.

    Source: Lu, Shin, Su & Karniadakis 2019, arXiv:1903.06733, theorems on the probability of born-dead networks; the
    lower bound is their two-state chain, here with widths that may differ.

    >>> dead = born_dead_chance([2] * 9)
    >>> 0.85 < dead.chance < 0.9 and dead.lower < dead.chance < dead.upper
    True
    """
    if not widths or any(n < 1 for n in widths):
        raise RelumeError(
            f"born_dead_chance: widths are {list(widths)!r}, but every hidden layer needs a unit or more."
        )
    if samples < 1:
        raise RelumeError(f"born_dead_chance: samples is {samples!r}, but must be 1 or more.")
    upper = 1 - math.prod(1 - 2.0**-n for n in widths)

    # Two inputs decide, x = 1 and x = -1: with zero bias all others are multiples of one of them. After the first layer
    # their activations use different units. `both` is the chance that both signals still live and are not the same up
    # to scale, `one` that one lives, or that they are the same.
    both, one = 1 - 2.0 ** (1 - widths[0]), 2.0 ** (1 - widths[0])
    for n in widths[1:]:
        closed_for_both = 4.0**-n
        to_one = 2.0 ** (1 - n) + (n - 2) * closed_for_both
        one = one * (1 - 2.0**-n) + both * to_one
        both *= 1 - to_one - closed_for_both
    lower = max(0.0, 1 - one - both)
    if upper - lower < 1e-6:  # wide layers: nothing to simulate
        return BornDead(lower=lower, chance=upper, upper=upper)
    chance = _simulate_born_dead(widths, samples, np.random.default_rng(seed))
    return BornDead(lower=lower, chance=min(max(chance, lower), upper), upper=upper)


def _simulate_born_dead(widths: Sequence[int], samples: int, rng: np.random.Generator) -> float:
    """Push x = 1 and x = -1 through random networks that are kept alive, and multiply up the chances to die.

    Given the activations of one layer, the two pre-activations of each next unit are normal with their correlation, so
    that no weights are drawn, and the chance that the layer closes is known exactly.
    """
    samples = max(20, min(samples, 500_000 // sum(widths)))
    alive = np.ones(samples)  # the chance that this network has lived so far
    correlation = np.full(samples, -1.0)  # of the pre-activations for the two inputs; NaN once one signal is gone
    for n in widths:
        single = np.isnan(correlation)
        closed = np.where(single, 0.5, 0.25 + np.arcsin(np.where(single, 0, correlation)) / (2 * math.pi))
        alive *= 1 - closed**n
        todo = np.flatnonzero(~single)
        while len(todo):  # once, and again for those that closed, because these networks are kept alive
            c = correlation[todo, None]
            u = rng.standard_normal((len(todo), n))
            v = c * u + np.sqrt(1 - c * c) * rng.standard_normal((len(todo), n))
            u, v = np.maximum(u, 0), np.maximum(v, 0)
            u_length, v_length = np.linalg.norm(u, axis=1), np.linalg.norm(v, axis=1)
            with np.errstate(invalid="ignore"):  # 0 / 0 where a signal is gone: that is the NaN meant above
                cosine = np.minimum((u * v).sum(axis=1) / (u_length * v_length), 1.0)
            lives = (u_length > 0) | (v_length > 0)
            correlation[todo[lives]] = cosine[lives]
            todo = todo[~lives]
    return float(1 - alive.mean())


def dead_unit_chance(correlation: float, samples: int) -> float:
    """The chance that one ReLU unit at initialisation is closed on all of `samples` inputs.

    `correlation` is that of the unit's pre-activation between any two inputs, in [0, 1]; biases are zero. Width does
    not enter. Raises `RelumeError` for a correlation outside [0, 1] or fewer than 1 sample.

    Equation: the integral of Phi(t sqrt(c / (1 - c)))^n over t ~ N(0, 1).

    >>> round(dead_unit_chance(0.5, 1), 6)
    0.5
    >>> round(dead_unit_chance(0.0, 2), 6)
    0.25
    """
    if not 0 <= correlation <= 1 or samples < 1:
        raise RelumeError(
            f"dead_unit_chance: correlation {correlation!r} must lie in [0, 1], and samples {samples!r} be 1 or more."
        )
    if correlation == 1:
        return 0.5
    from scipy.special import log_ndtr, ndtri

    slope = math.sqrt(correlation / (1 - correlation))
    if slope == 0:
        return 2.0**-samples
    # The integrand rises from 0 to 1 around the middle, within a few 1 / slope.
    middle = float(ndtri(0.5 ** (1 / samples))) / slope
    t, w = normal_rule((middle,))
    return float(w @ np.exp(samples * log_ndtr(slope * t)))


def relu_correlation(depth: int, c0: float = 0.0) -> float:
    """The correlation of two signals after `depth` ReLU layers, from c0, at He's initialisation with zero bias.

    It climbs to 1: deep ReLU layers see all inputs alike. Raises `RelumeError` for c0 outside [-1, 1] or depth below 0.

    Source: Cho & Saul 2009, Kernel methods for deep learning (the arc-cosine kernel of order 1).

    >>> round(relu_correlation(1), 4)
    0.3183
    """
    if not -1 <= c0 <= 1 or depth < 0:
        raise RelumeError(f"relu_correlation: c0 {c0!r} must lie in [-1, 1], and depth {depth!r} be 0 or more.")
    c = c0
    for _ in range(depth):
        c = min(1.0, (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi)
    return c


def expected_dead_share(layer: int, samples: int, c0: float = 0.0) -> float:
    """The share of units at a hidden ReLU layer that are closed on all of `samples` inputs before any training.

    Layers count from 1; `c0` is the correlation of the inputs, 0 where they are near-orthogonal; zero bias, any scale
    of the weights. What a network shows beyond this share is worth a diagnosis. Raises `RelumeError` for a layer below
    1, and as `dead_unit_chance` does.

    >>> round(expected_dead_share(layer=10, samples=1000), 4)
    0.093
    """
    if layer < 1:
        raise RelumeError(f"expected_dead_share: layer is {layer!r}, but layers count from 1.")
    return dead_unit_chance(relu_correlation(layer - 1, c0), samples)


def _over(numerator: float, denominator: float) -> float:
    """The quotient, which is inf or NaN where floats end, not an error."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(numerator) / np.float64(denominator))


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise RelumeError(f"{name} is {value!r}, but must be positive and finite.")
