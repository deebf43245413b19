"""Predictions from the catalogue, against closed forms, published numbers, torch's own gains and simulation."""

import doctest
import importlib
import math
from dataclasses import replace
from typing import Any

import mpmath
import numpy as np
import pytest
from torch.nn.init import calculate_gain

from relume.activations import Activation, activation, activations
from relume.errors import ActivationError, RelumeError
from relume.theory import (
    born_dead_chance,
    chi,
    dead_unit_chance,
    expected_dead_share,
    moments,
    propagate,
    relu_correlation,
)

# functions of several numbers are tested in test_theory_operands.py
each_row = pytest.mark.parametrize(
    "row", [row for row in activations() if (row.operands, row.outputs) == (1, 1)], ids=lambda row: row.name
)


# --- moments ----------------------------------------------------------------------------------------------------------

# Computed once by separate scripts: mean, second, slope_second, gain_forward, gain_backward, chi_ln, chi_bn at q = 1.
TABLE = {
    "relu": (0.3989, 0.5, 0.5, 1.4142, 1.4142, 1, 1.4669),
    "leaky_relu": (0.3950, 0.50005, 0.50005, 1.4141, 1.4141, 1, 1.4534),
    "prelu": (0.2992, 0.53125, 0.53125, 1.3720, 1.3720, 1, 1.2027),
    "tanh": (0, 0.39429, 0.46440, 1.5925, 1.4674, 1.1778, 1.1778),
    "sigmoid": (0.5, 0.29338, 0.04484, 1.8462, 4.7226, 0.1528, 1.0336),
    "elu": (0.1605, 0.64495, 0.66810, 1.2452, 1.2234, 1.0359, 1.0790),
    "selu": (0, 1, 1.07157, 1.0000, 0.9660, 1.0716, 1.0716),
    "gelu": (0.2821, 0.42522, 0.45585, 1.5335, 1.4811, 1.0720, 1.3188),
    "silu": (0.2066, 0.35578, 0.37948, 1.6765, 1.6233, 1.0666, 1.2121),
    "softplus": (0.8061, 0.92125, 0.29338, 1.0419, 1.8462, 0.3185, 1.0805),
    "mish": (0.2404, 0.45234, 0.47908, 1.4868, 1.4448, 1.0591, 1.2143),
    "softsign": (0, 0.18301, 0.22767, 2.3375, 2.0958, 1.244, 1.244),
    "hardtanh": (0, 0.51606, 0.68269, 1.3920, 1.2103, 1.3229, 1.3229),
}


@pytest.mark.parametrize("name", TABLE)
def test_moments_to_four_digits(name: str):
    """Moments, gains and the factors under normalisation are those of the table."""
    m = moments(name)
    found = (m.mean, m.second, m.slope_second, m.gain_forward, m.gain_backward, m.chi_ln, m.chi_bn)
    assert found == pytest.approx(TABLE[name], abs=6e-5)


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.25, 0.5])
@pytest.mark.parametrize("q", [1e-6, 1.0, 50.0])
def test_moments_of_leaky_relu_in_closed_form(slope: float, q: float):
    """Two straight pieces give every moment by hand, at any q: gains and factors do not depend on it."""
    m = moments("leaky_relu", q, negative_slope=slope)
    share = (1 + slope**2) / 2
    assert m.mean == pytest.approx((1 - slope) * math.sqrt(q / (2 * math.pi)), rel=1e-12)
    assert m.second == pytest.approx(q * share, rel=1e-12)
    assert m.slope_second == pytest.approx(share, rel=1e-12)
    assert m.slope_fourth == pytest.approx((1 + slope**4) / 2, rel=1e-12)
    assert m.gain_forward == pytest.approx(1 / math.sqrt(share), rel=1e-12)
    assert m.gain_backward == pytest.approx(1 / math.sqrt(share), rel=1e-12)
    assert m.chi_ln == pytest.approx(1, rel=1e-12)
    assert m.chi_bn == pytest.approx(share / (share - (1 - slope) ** 2 / (2 * math.pi)), rel=1e-12)
    assert m.isometry == pytest.approx((1 + slope**4) / 2 / share**2 - 1, abs=1e-12)


def test_moments_in_closed_form():
    """Hardtanh, exp and GELU have moments that can be worked out by hand; ReLU is no isometry and identity is one."""
    assert moments("hardtanh").slope_second == pytest.approx(math.erf(1 / math.sqrt(2)), rel=1e-12)
    for q in (0.1, 1.0, 4.0):
        m = moments("exp", q)
        assert (m.mean, m.second) == pytest.approx((math.exp(q / 2), math.exp(2 * q)), rel=1e-10)
        assert m.slope_fourth == pytest.approx(math.exp(8 * q), rel=1e-10)
        assert moments("gelu", q).mean == pytest.approx(q / math.sqrt(2 * math.pi * (1 + q)), rel=1e-12)
    assert moments("relu").isometry == pytest.approx(1, rel=1e-12)
    assert moments("identity").isometry == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "torch_name", "param"),
    [("relu", "relu", None), ("leaky_relu", "leaky_relu", 0.01), ("identity", "linear", None)],
)
def test_gains_agree_with_torch_where_torch_is_right(name: str, torch_name: Any, param: float | None):
    """For straight pieces torch's table of gains is exact, forward and backward."""
    assert moments(name).gain_forward == pytest.approx(calculate_gain(torch_name, param), rel=1e-12)
    assert moments(name).gain_backward == pytest.approx(calculate_gain(torch_name, param), rel=1e-12)


@each_row
def test_moments_agree_with_other_integration(row: Activation):
    """At a small and a large q, the moments are those of a fine trapezoid sum over the density."""
    for q in (0.04, 9.0):
        z = np.linspace(-12, 12, 480_001) + 1.3e-6  # off the corners
        w = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
        y, slope = row.f(math.sqrt(q) * z, **row.arguments()), row.df(math.sqrt(q) * z, **row.arguments())
        if np.abs(y).max() > 1e8:
            continue  # the sum stops where such a function only begins; it has its own test above
        m = moments(row, q)
        assert m.mean == pytest.approx(w @ y, rel=1e-3, abs=1e-5)
        assert m.second == pytest.approx(w @ y**2, rel=1e-3)
        assert m.slope_second == pytest.approx(w @ slope**2, rel=1e-3)
        assert m.slope_fourth == pytest.approx(w @ slope**4, rel=1e-3)


@each_row
def test_batch_norm_never_shrinks_gradients(row: Activation):
    """Poincare's inequality: Var f <= q E[f'^2] for a continuous f, so gradients grow, or stay, through BatchNorm.

    Of functions that outgrow lines, the factor is not known.
    """
    around = [np.array([k - 1e-9, k + 1e-9]) for k in row.breaks()]
    continuous = all(abs(np.diff(row.f(pair, **row.arguments()))[0]) < 1e-6 for pair in around)
    steep = any(math.isinf(tail.slope) for tail in row.tails())
    for q in (0.1, 1.0, 10.0):
        assert math.isnan(moments(row, q).chi_bn) == steep
        assert steep or not continuous or moments(row, q).chi_bn >= 1 - 1e-9


@pytest.mark.parametrize("q", [0.0, -1.0, math.inf, math.nan])
def test_moments_refuse_what_is_no_variance(q: float):
    """A variance that is not positive and finite is an error that says so."""
    with pytest.raises(RelumeError, match=r"q is .* must be positive and finite"):
        moments("relu", q)


def test_moments_refuse_unknown_names():
    """Unknown functions and parameters raise the catalogue's errors."""
    with pytest.raises(ActivationError, match="no activation named 'relo'"):
        moments("relo")
    with pytest.raises(ActivationError, match="relu has no parameter 'slope'"):
        moments("relu", slope=1.0)


@pytest.mark.parametrize("omega", [1.0, 5.0, 30.0, 200.0])
@pytest.mark.parametrize("q", [1.0, 0.3])
def test_moments_of_functions_that_turn_often(omega: float, q: float):
    """Mean squares of a sine and of a snake, and of their slopes, are the closed ones at every frequency."""
    m, damped = moments("sine", q, omega=omega), math.exp(-2 * omega**2 * q)
    assert m.second == pytest.approx((1 - damped) / 2, rel=1e-8)
    assert m.slope_second == pytest.approx(omega**2 * (1 + damped) / 2, rel=1e-8)
    assert m.slope_fourth == pytest.approx(omega**4 * (3 + 4 * damped + damped**4) / 8, rel=1e-8)
    # x + sin(ax)^2 / a has the slope 1 + sin(2ax)
    m = moments("snake", q, a=omega)
    assert m.slope_second == pytest.approx(1 + (1 - math.exp(-8 * omega**2 * q)) / 2, rel=1e-8)
    assert m.mean == pytest.approx((1 - damped) / (2 * omega), rel=1e-8)


def test_moments_that_no_rule_resolves():
    """Thousands of turns within a standard deviation are right to .05; a function that no panels catch is an error."""
    assert moments("sine", 1e6, omega=7.0).second == pytest.approx(0.5, abs=0.05)
    steep = replace(
        activation("tanh"), name="steep", f=lambda x: np.abs(x - 0.7) ** 0.1, df=lambda x: np.abs(x - 0.7) ** -0.9
    )  # the mean square of its slope is infinite, and every finer rule finds more of it
    with pytest.raises(RelumeError, match="steep turns too often at q = 1: its means do not settle"):
        moments(steep)


def test_moments_beyond_the_floats():
    """Where exp outgrows the floats its moments are inf, without a warning."""
    m = moments("exp", 1e6)
    assert (m.mean, m.second, m.slope_fourth) == (math.inf, math.inf, math.inf)


# --- propagation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "q", "sigma_w", "sigma_b2"),
    [
        ("relu", 1.0, math.sqrt(2), 0.0),
        ("tanh", 0.1, 1.085, 0.0008),
        ("tanh", 0.5, 1.299, 0.038),
        ("tanh", 1.0, 1.467, 0.151),
        ("selu", 1.0, 0.966, 0.0668),
        ("elu", 1.0, 1.223, 0.0347),
    ],
)
def test_critical_initialisation(name: str, q: float, sigma_w: float, sigma_b2: float):
    """At the known critical points gradients keep their size, and q stays where it is."""
    assert chi(name, q, sigma_w**2) == pytest.approx(1, abs=2e-3)
    deep = propagate(name, 2, sigma_w**2, sigma_b2, q0=(q - sigma_b2) / sigma_w**2)
    assert deep.q == pytest.approx((q, q), abs=1e-3)


def test_selu_normalises_itself():
    """Klambauer et al. 2017: mean 0 and variance 1 are SELU's fixed point at sigma_w2 = 1."""
    deep = propagate("selu", 50, 1.0)
    assert deep.q == pytest.approx([1.0] * 50, abs=1e-6)
    assert propagate("selu", 200, 1.0, q0=3.0).q[-1] == pytest.approx(1, abs=1e-3)


def test_propagation_of_relu_in_closed_form():
    """With ReLU every layer multiplies q and the squared gradient by sigma_w2 / 2."""
    deep = propagate("relu", 10, 1.0, q0=4.0)
    assert deep.q == pytest.approx([4.0 / 2**layer for layer in range(10)], rel=1e-12)
    assert deep.chi == pytest.approx([0.5] * 10, rel=1e-12)
    assert deep.gradient_ratio == pytest.approx(2**-4.5, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "sigma_w2", "measured"),
    [
        ("sigmoid", 1.0, 5.56e-19),
        ("sigmoid", 2.0, 2.99e-15),
        ("tanh", 1.0, 0.1553),
        ("tanh", 2.0, 2.854),
        ("tanh", 1 / 3, 8.8e-8),
        ("relu", 1.0, 4.73e-5),
    ],
)
def test_propagation_agrees_with_networks(name: str, sigma_w2: float, measured: float):
    """Over 30 layers the gradient shrinks or grows as measured in networks of width 1000, to 3 % of its logarithm."""
    assert math.log(propagate(name, 30, sigma_w2).gradient_ratio) == pytest.approx(math.log(measured), rel=0.03)


@pytest.mark.parametrize(
    ("name", "sigma_w2", "sigma_b2"), [("tanh", 2.0, 0.1), ("gelu", 2.5, 0.0), ("sigmoid", 4.0, 0.2)]
)
def test_propagation_agrees_with_a_simulation(name: str, sigma_w2: float, sigma_b2: float):
    """Over ten random networks of width 300 the mean variances and gradient factors are the predicted ones to 10 %."""
    rng, networks, width, depth, row = np.random.default_rng(1), 10, 300, 6, activation(name)
    h = rng.standard_normal((networks, 32, width))
    weights = rng.standard_normal((depth, networks, width, width)) * math.sqrt(sigma_w2 / width)
    z = []
    for w in weights:
        z.append(h @ w.transpose(0, 2, 1) + rng.standard_normal((networks, 1, width)) * math.sqrt(sigma_b2))
        h = row.f(z[-1])
    delta = rng.standard_normal(h.shape)
    factors = []
    for layer in reversed(range(depth - 1)):
        before = (delta @ weights[layer + 1]) * row.df(z[layer])
        factors.append((before**2).mean() / (delta**2).mean())
        delta = before
    deep = propagate(name, depth, sigma_w2, sigma_b2)
    assert [(v**2).mean() for v in z] == pytest.approx(deep.q, rel=0.1)
    assert factors[::-1] == pytest.approx(deep.chi[:-1], rel=0.1)


def test_each_layer_may_have_its_own_function():
    """Each layer's function shapes its own chi and the next layer's q."""
    deep = propagate(["relu", "tanh", "relu"], 3, 2.0)
    assert deep.q[1] == pytest.approx(2.0)
    assert deep.q[2] == pytest.approx(2 * moments("tanh", 2.0).second)
    assert deep.chi == pytest.approx([1.0, chi("tanh", 2.0, 2.0), 1.0])


@each_row
def test_propagation_never_warns(row: Activation):
    """Very deep networks that die out or blow up give 0, inf or NaN, and no warning."""
    for sigma_w2 in (0.01, 30.0):
        deep = propagate(row, 300, sigma_w2)
        assert len(deep.q) == len(deep.chi) == 300
        assert all(q >= 0 for q in deep.q)
        assert all(math.isnan(c) == math.isinf(q) for c, q in zip(deep.chi, deep.q, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": ["relu"], "depth": 2, "sigma_w2": 1.0}, "1 activations for 2 layers"),
        ({"rows": "relu", "depth": 0, "sigma_w2": 1.0}, "0 activations for 0 layers"),
        ({"rows": "relu", "depth": 1, "sigma_w2": 0.0}, "sigma_w2 is 0.0"),
        ({"rows": "relu", "depth": 1, "sigma_w2": 1.0, "q0": -1.0}, "q0 is -1.0"),
        ({"rows": "relu", "depth": 1, "sigma_w2": 1.0, "sigma_b2": -1.0}, "sigma_b2 is -1.0"),
    ],
)
def test_propagation_refuses_what_is_no_network(arguments: dict[str, Any], message: str):
    """Numbers that describe no network are errors that name them."""
    with pytest.raises(RelumeError, match=message):
        propagate(**arguments)


@pytest.mark.parametrize("sigma_w2", [-1.0, 0.0, math.inf, math.nan])
def test_chi_refuses_what_is_no_variance_of_weights(sigma_w2: float):
    """The weights' variance is checked as in `propagate`."""
    with pytest.raises(RelumeError, match=r"sigma_w2 is .* must be positive and finite"):
        chi("relu", 1.0, sigma_w2)


# --- death before training --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "layers", "chance"),
    [  # plain Monte Carlo over 60,000 networks or more, weights drawn one by one; standard error .002 or less
        *((2, *pair) for pair in ((2, 0.1551), (3, 0.3396), (5, 0.6226), (10, 0.9100), (20, 0.9949), (30, 0.9998))),
        *((3, *pair) for pair in ((2, 0.0430), (3, 0.1179), (5, 0.2923), (9, 0.5763), (20, 0.9014), (30, 0.9737))),
        *((4, *pair) for pair in ((2, 0.0112), (5, 0.1147), (10, 0.3360), (20, 0.6501), (30, 0.8171))),
        *((5, *pair) for pair in ((2, 0.0026), (5, 0.0401), (10, 0.1512), (20, 0.3739), (30, 0.5436))),
        *((8, *pair) for pair in ((2, 0.0), (5, 0.0018), (10, 0.0113), (20, 0.0408), (30, 0.0752))),
    ],
)
def test_born_dead_chance_agrees_with_monte_carlo(width: int, layers: int, chance: float):
    """The chance is that of drawn networks to .005, and lies between the bounds."""
    dead = born_dead_chance([width] * layers)
    assert dead.chance == pytest.approx(chance, abs=0.005)
    assert dead.lower <= dead.chance <= dead.upper


def test_born_dead_chance_as_published():
    """Lu et al. 2019: of networks with ten layers, width 10 dies below 1 %, width 5 above 10 %, width 3 about 60 %."""
    assert born_dead_chance([10] * 9).chance < 0.01
    assert born_dead_chance([5] * 9).chance > 0.1
    assert born_dead_chance([3] * 9).chance == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_born_dead_bounds_agree_with_the_theorem(width: int):
    """The bounds are those of Lu et al. 2019, and for two hidden layers the lower one is exact."""
    n, layers = width, 9
    a1, a2 = 1 - 2.0**-n, 1 - 2.0 ** (1 - n) - (n - 1) * 4.0**-n
    factor = (1 - 2.0 ** (1 - n)) * (1 - 2.0**-n) / (1 + (n - 1) * 2.0**-n)
    dead = born_dead_chance([n] * layers)
    assert dead.lower == pytest.approx(1 - a1 ** (layers - 1) + factor * (a2 ** (layers - 1) - a1 ** (layers - 1)))
    assert dead.upper == pytest.approx(1 - a1**layers)
    exact = 4.0**-n * (3 - 2.0 ** (1 - n))  # the two inputs use different units of the first layer
    assert born_dead_chance([n, n]).lower == pytest.approx(exact)
    assert born_dead_chance([n, n]).chance == pytest.approx(exact, abs=2e-3)


@pytest.mark.parametrize("uniform", [False, True])
def test_born_dead_chance_with_unequal_widths(uniform: bool):
    """Networks with other weights, normal or uniform and of any scale, and unequal widths die as often, to .01."""
    rng, widths, networks = np.random.default_rng(2), [4, 2, 5, 3, 3], 20_000
    h = np.broadcast_to(np.array([[1.0], [-1.0]]), (networks, 2, 1))
    for n in widths:
        shape = (networks, n, h.shape[2])
        w = rng.uniform(-0.1, 0.1, shape) if uniform else rng.standard_normal(shape) * 7
        h = np.maximum(h @ w.transpose(0, 2, 1), 0)
    share = (h.max(axis=(1, 2)) == 0).mean()
    dead = born_dead_chance(widths)
    assert dead.chance == pytest.approx(share, abs=0.01)
    assert dead.lower <= dead.chance <= dead.upper


def test_born_dead_chance_is_a_function_of_its_seed():
    """The same seed gives the same number, another one a slightly different one, and no global state is touched."""
    assert born_dead_chance([3] * 5, seed=1) == born_dead_chance([3] * 5, seed=1)
    assert born_dead_chance([3] * 5, seed=1).chance != born_dead_chance([3] * 5, seed=2).chance


def test_wide_networks_are_not_born_dead():
    """For wide layers the bounds meet near zero."""
    assert born_dead_chance([500] * 30).upper < 1e-12


@pytest.mark.parametrize(("widths", "samples"), [([], 10), ([3, 0], 10), ([2.5], 10), ([3], 0)])
def test_born_dead_chance_refuses_what_is_no_network(widths: list[Any], samples: int):
    """No widths, an empty layer, half a unit and no samples are errors."""
    with pytest.raises(RelumeError, match=r"born_dead_chance: (widths|samples)"):
        born_dead_chance(widths, samples)


@pytest.mark.parametrize(("layer", "share"), [(5, 0.0153), (10, 0.0930), (20, 0.2168), (30, 0.2863)])
def test_expected_dead_share(layer: int, share: float):
    """On 1000 near-orthogonal inputs the share of closed units grows with depth as computed elsewhere."""
    assert expected_dead_share(layer, 1000) == pytest.approx(share, abs=6e-5)


@pytest.mark.parametrize(
    ("correlation", "samples"), [(0.01, 3), (0.3, 50), (0.9, 1000), (0.9999, 1000), (0.999999, 10**6)]
)
def test_dead_unit_chance_agrees_with_mpmath(correlation: float, samples: int):
    """The chance is that of adaptive integration, also where the integrand is a step."""
    slope = math.sqrt(correlation / (1 - correlation))
    middle = -float(mpmath.sqrt(2) * mpmath.erfinv(1 - 2 * mpmath.mpf(0.5) ** (mpmath.mpf(1) / samples))) / slope
    pieces = sorted({-12.0, 0.0, 12.0, *(p for k in (-4, -1, 0, 1, 4) if abs(p := middle + k / slope) < 12)})
    exact = mpmath.quad(lambda t: mpmath.npdf(t) * mpmath.ncdf(slope * t) ** samples, pieces)
    assert dead_unit_chance(correlation, samples) == pytest.approx(float(str(exact)), rel=1e-6)


def test_dead_unit_chance_at_the_ends():
    """Independent inputs close a unit with chance 2^-n, identical ones with chance 1/2, one input always with 1/2."""
    assert dead_unit_chance(0.0, 10) == pytest.approx(2.0**-10)
    assert dead_unit_chance(1.0, 10) == 0.5
    for correlation in (0.0, 1e-12, 0.5, 1 - 1e-12):
        assert dead_unit_chance(correlation, 1) == pytest.approx(0.5)


@pytest.mark.parametrize(("correlation", "samples"), [(-0.1, 1), (1.1, 1), (math.nan, 1), (0.5, 0)])
def test_dead_unit_chance_refuses_nonsense(correlation: float, samples: int):
    """A correlation outside [0, 1] or no samples is an error."""
    with pytest.raises(RelumeError, match="dead_unit_chance: correlation"):
        dead_unit_chance(correlation, samples)
    with pytest.raises(RelumeError, match=r"q is 0\.0"):
        dead_unit_chance(0.5, 1, q=0.0)


@pytest.mark.parametrize(
    ("name", "q", "correlation"),
    [
        ("relu6", 9.0, 0.6), ("hardtanh", 4.0, 0.9), ("hardswish", 6.0, 0.5), ("relu", 2.0, 0.3),
        ("softshrink", 0.3, 0.4), ("hardshrink", 1.0, 0.95), ("threshold", 2.0, 0.2),
    ],
)  # fmt: skip
def test_dead_unit_chance_of_any_function_agrees_with_sampling(name: str, q: float, correlation: float):
    """Of 200,000 sampled units the share on a flat stretch for all of four inputs is the predicted one, to .003."""
    rng, row = np.random.default_rng(4), activation(name)
    shared, own = rng.standard_normal((200_000, 1)), rng.standard_normal((200_000, 4))
    z = math.sqrt(q) * (math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own)
    share = sum(((low <= z) & (z <= high)).all(axis=1).mean() for low, high in row.dead_stretches())
    assert dead_unit_chance(correlation, 4, row, q) == pytest.approx(share, abs=0.003)
    assert share > 0.005


def test_dead_unit_chance_where_no_end_is_flat():
    """GELU never dies; one input decides alike at every correlation; a whole unit at either end of hardtanh."""
    assert dead_unit_chance(0.5, 10, "gelu") == 0
    outside = math.erfc(1 / math.sqrt(2 * 4.0))
    for correlation in (0.0, 0.4, 1.0):
        assert dead_unit_chance(correlation, 1, "hardtanh", q=4.0) == pytest.approx(outside, rel=1e-9)
    far = math.erfc(10 / math.sqrt(2))  # ten standard deviations out, at either end, with all its digits
    assert dead_unit_chance(0.0, 1, "hardtanh", q=0.01) == pytest.approx(far, rel=1e-9, abs=0)


def test_expected_dead_share_of_other_functions_agrees_with_networks():
    """At the fourth layer of relu6 networks with biases, units are closed on all of 20 inputs as often as predicted."""
    rng, width, networks, sigma_w2, sigma_b2 = np.random.default_rng(5), 200, 30, 2.0, 0.2
    z = rng.standard_normal((networks, 20, width))
    for layer in range(4):
        h = np.clip(z, 0, 6) if layer else z
        w = rng.standard_normal((networks, width, width)) * math.sqrt(sigma_w2 / width)
        z = h @ w + rng.standard_normal((networks, 1, width)) * math.sqrt(sigma_b2)
    share = ((z <= 0).all(axis=1) | (z >= 6).all(axis=1)).mean()
    found = expected_dead_share(4, 20, row="relu6", sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    assert found == pytest.approx(share, abs=0.015)
    assert found > 0.05
    assert expected_dead_share(4, 20, row="leaky_relu") == 0


@pytest.mark.parametrize(("q", "correlation", "samples"), [(0.05, 0.3, 100), (0.2, 0.9, 1000), (3.0, 0.999, 50)])
def test_dead_unit_chance_inside_agrees_with_mpmath(q: float, correlation: float, samples: int):
    """A softshrink's chance to stay inside is that of adaptive integration."""
    edge, slope = 0.5 / math.sqrt(q * (1 - correlation)), math.sqrt(correlation / (1 - correlation))

    def all_inside(t: Any) -> Any:
        return mpmath.npdf(t) * (mpmath.ncdf(edge - slope * t) - mpmath.ncdf(-edge - slope * t)) ** samples

    exact = mpmath.quad(
        all_inside, [-12, *np.linspace(-3, 3, 61) * edge / slope, 12] if edge / slope < 4 else [-12, 0, 12]
    )
    assert dead_unit_chance(correlation, samples, "softshrink", q) == pytest.approx(float(str(exact)), rel=1e-6)


def test_expected_dead_share_where_signals_end_or_explode():
    """A softshrink network that goes silent is dead as a whole; a function without a flat stretch has no dead units."""
    assert expected_dead_share(4, 1000, row="softshrink", sigma_w2=1 / 3) == pytest.approx(1)
    assert expected_dead_share(5, 100, row="exp") == 0
    assert expected_dead_share(30, 100, row="elu", alpha=0.0) == pytest.approx(expected_dead_share(30, 100), rel=1e-6)
    with pytest.raises(RelumeError, match=r"sigma_w2 is -1.0"):
        expected_dead_share(5, 100, row="exp", sigma_w2=-1.0)


def test_a_softshrink_network_is_born_as_dead_as_predicted():
    """At the third layer of softshrink networks of width 300 units stay inside on 10 inputs as often as predicted."""
    rng, width, networks, sigma_w2 = np.random.default_rng(11), 300, 30, 1.0
    z = rng.standard_normal((networks, 10, width))
    for layer in range(3):
        h = z - np.clip(z, -0.5, 0.5) if layer else z
        z = h @ (rng.standard_normal((networks, width, width)) * math.sqrt(sigma_w2 / width))
    share = (np.abs(z) <= 0.5).all(axis=1).mean()
    assert expected_dead_share(3, 10, row="softshrink", sigma_w2=sigma_w2) == pytest.approx(share, abs=0.02)
    assert share > 0.05


def test_expected_dead_share_of_relu_by_either_way():
    """The general way, through the correlation map of any function, gives ReLU's closed form."""
    for layer in (1, 4, 10):
        relu = expected_dead_share(layer, 100)
        assert expected_dead_share(layer, 100, row="relu", sigma_b2=1e-300) == pytest.approx(relu, rel=1e-6)


@pytest.mark.parametrize("c0", [-1.0, -0.5, 0.0, 0.6, 1.0])
def test_relu_correlation_agrees_with_sampling(c0: float):
    """One layer maps the correlation as a million sampled pairs do, to .003."""
    rng = np.random.default_rng(3)
    u = rng.standard_normal(1_000_000)
    v = c0 * u + math.sqrt(1 - c0**2) * rng.standard_normal(1_000_000)
    assert relu_correlation(1, c0) == pytest.approx(2 * (np.maximum(u, 0) * np.maximum(v, 0)).mean(), abs=0.003)
    assert relu_correlation(0, c0) == c0
    assert relu_correlation(3, c0) == pytest.approx(relu_correlation(2, relu_correlation(1, c0)))


def test_deep_layers_and_the_first_one_refuse_nonsense():
    """A layer 0, a negative depth and a correlation beyond 1 are errors that say what is wrong."""
    with pytest.raises(RelumeError, match="layers count from 1"):
        expected_dead_share(0, 10)
    with pytest.raises(RelumeError, match="depth -1 be a whole number, 0 or more"):
        relu_correlation(-1)
    with pytest.raises(RelumeError, match=r"depth 2.5 be a whole number, 0 or more"):
        relu_correlation(2.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RelumeError, match=r"c0 1.5 must lie in \[-1, 1\]"):
        relu_correlation(1, 1.5)


@pytest.mark.parametrize("part", ["moments", "propagation", "correlation", "criticality", "death"])
def test_examples_run(part: str):
    """The examples in the docstrings give what they say."""
    outcome = doctest.testmod(importlib.import_module(f"relume.theory.{part}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0
