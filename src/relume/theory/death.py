"""The chance that layers or units of a network are closed before any training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np

from relume.activations import Activation, activation, normal_rule
from relume.errors import RelumeError
from relume.theory.correlation import correlations
from relume.theory.kernels import kernel
from relume.theory.moments import check_positive, check_variances
from relume.theory.propagation import propagate


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
    if not widths or any(not isinstance(n, Integral) or n < 1 for n in widths):
        raise RelumeError(
            f"born_dead_chance: widths are {list(widths)!r}, but every hidden layer needs a "
            "whole number of units, 1 or more."
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


def dead_unit_chance(
    correlation: float, samples: int, row: str | Activation = "relu", q: float = 1.0, **parameters: float
) -> float:
    """The chance that one unit at initialisation lies on one exactly flat stretch on all of `samples` inputs.

    `correlation` is that of the unit's pre-activation between any two inputs, in [0, 1], and `q` its variance, which
    does not matter where a flat end begins at 0, as a ReLU's. Width does not enter. A function that is flat nowhere
    gives 0. Raises `RelumeError` for a correlation outside [0, 1], fewer than 1 sample, a variance that is none, or a
    function of several numbers that is no gate; units of gates die by them, and `q` is then that of the gate.

    Equation: the integral of Phi((k / sqrt(q) - sqrt(c) t) / sqrt(1 - c))^n over t ~ N(0, 1), for a function that is
    flat below k; one that is flat at both ends, or inside as softshrink, dies on either stretch.

    >>> round(dead_unit_chance(0.5, 1), 6)
    0.5
    >>> round(dead_unit_chance(0.0, 2), 6)
    0.25
    >>> dead_unit_chance(0.5, 1, "gelu")
    0.0
    """
    if not 0 <= correlation <= 1 or samples < 1:
        raise RelumeError(
            f"dead_unit_chance: correlation {correlation!r} must lie in [0, 1], and samples {samples!r} be 1 or more."
        )
    check_positive("q", q)
    row = activation(row)
    width = math.sqrt(q)
    stretches = _stretches(row, **parameters)
    return sum((_within(low / width, high / width, correlation, samples) for low, high in stretches), 0.0)


def _stretches(row: Activation, **parameters: float) -> tuple[tuple[float, float], ...]:
    """Where a unit gets no gradient: its pre-activation, or that of the gate that closes it, whatever passes."""
    if row.operands > 1 and not kernel(row, row.arguments(**parameters)).gate and row.can_die:
        raise RelumeError(
            f"dead_unit_chance: {row.name} reads {row.operands} numbers; give a function of one, or a gate."
        )
    return row.dead_stretches(**parameters)


def _within(low: float, high: float, correlation: float, samples: int) -> float:
    """The chance that `samples` standard normal numbers, each two of that correlation, all lie from low to high."""
    from scipy.special import ndtri

    if correlation in (0, 1):
        share = float(np.exp(_log_share(np.array(low), np.array(high))))
        return share ** (samples if correlation == 0 else 1)
    slope, rest = math.sqrt(correlation / (1 - correlation)), math.sqrt(1 - correlation)
    # The integrand changes between 0 and 1 around a middle for each end, within a few 1 / slope.
    half = float(ndtri(0.5 ** (1 / samples)))
    ends = [(low / rest, -half), (high / rest, half)]
    middles = tuple((level - away) / slope for level, away in ends if math.isfinite(level))
    t, w = normal_rule(middles)
    return float(w @ np.exp(samples * _log_share(low / rest - slope * t, high / rest - slope * t)))


def _log_share(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The logarithm of the share of a standard normal from low to high, with its digits in both tails."""
    from scipy.special import log_ndtr

    with np.errstate(divide="ignore", invalid="ignore"):  # an end at infinity on both sides of 0, a share of 0
        mirrored = low + high > 0  # to where both ends can be told apart
        low, high = np.where(mirrored, -high, low), np.where(mirrored, -low, high)
        return log_ndtr(high) + np.log1p(-np.exp(log_ndtr(low) - log_ndtr(high)))


def relu_correlation(depth: int, c0: float = 0.0) -> float:
    """The correlation of two signals after `depth` ReLU layers, from c0, at He's initialisation with zero bias.

    It climbs to 1: deep ReLU layers see all inputs alike. Raises `RelumeError` for c0 outside [-1, 1] or depth below 0.

    Source: Cho & Saul 2009, Kernel methods for deep learning (the arc-cosine kernel of order 1).

    >>> round(relu_correlation(1), 4)
    0.3183
    """
    if not -1 <= c0 <= 1 or not isinstance(depth, Integral) or depth < 0:
        raise RelumeError(
            f"relu_correlation: c0 {c0!r} must lie in [-1, 1], and depth {depth!r} be a whole number, 0 or more."
        )
    c = c0
    for _ in range(depth):
        c = min(1.0, (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi)
    return c


def expected_dead_share(
    layer: int,
    samples: int,
    c0: float = 0.0,
    row: str | Activation = "relu",
    sigma_w2: float = 2.0,
    sigma_b2: float = 0.0,
    q0: float = 1.0,
    **parameters: float,
) -> float:
    """The share of units at a hidden layer that are closed on all of `samples` inputs before any training.

    Layers count from 1; `c0` is the correlation of the inputs, 0 where they are near-orthogonal, and `q0` their mean
    square. With ReLU and zero biases the scale of weights and inputs does not matter. What a network shows beyond this
    share is worth a diagnosis. Raises `RelumeError` for a layer below 1, and as `correlations` and `dead_unit_chance`
    do.

    >>> round(expected_dead_share(layer=10, samples=1000), 4)
    0.093
    """
    if layer < 1:
        raise RelumeError(f"expected_dead_share: layer is {layer!r}, but layers count from 1.")
    check_variances(sigma_w2, sigma_b2)
    check_positive("q0", q0)
    row = activation(row)
    if not _stretches(row, **parameters):  # however its signals grow
        return dead_unit_chance(0.0, samples, row, **parameters)
    if row.name == "relu" and sigma_b2 == 0:  # in closed form, and at any scale
        return dead_unit_chance(relu_correlation(layer - 1, c0), samples)
    c = correlations(row, layer, sigma_w2, sigma_b2, c0, q0, **parameters)[-1]
    q = propagate(row, layer, sigma_w2, sigma_b2, q0, **parameters).q[-1]
    c = 0.0 if math.isnan(c) else max(c, 0.0)  # where the signal is gone, all pre-activations are 0
    return dead_unit_chance(c, samples, row, max(q, 1e-200), **parameters)
