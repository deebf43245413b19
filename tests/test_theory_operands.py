"""Predictions for functions of several numbers, or with several results, against closed forms and networks."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from relume.activations import Activation, Tail, activation
from relume.errors import RelumeError
from relume.theory import correlation_map, critical, dead_unit_chance, moments, propagate, signal_depth
from relume.theory.kernels import kernel


def row(name: str, layout: Any, operands: int, outputs: int, f: Any, df: Any) -> Activation:
    return Activation(
        name=name, module="torch.nn.ReLU", layout=layout, operands=operands, outputs=outputs, tex="", f=f, df=df,
        left=Tail(0.0), right=Tail(1.0), range=(-math.inf, math.inf), monotone=False, when="", paper="",
    )  # fmt: skip


MAXOUT = row("maxout2", "pieces", 2, 1, np.maximum, lambda a, b: (1.0 * (a >= b), 1.0 * (a < b)))
CRELU = row(
    "crelu2", "doubled", 1, 2,
    lambda x: (np.maximum(x, 0), np.maximum(-x, 0)), lambda x: (1.0 * (x > 0), -1.0 * (x < 0)),
)  # fmt: skip
GLU = row("glu2", "halves", 2, 1, lambda a, b: a * expit(b), lambda a, b: (expit(b), a * expit(b) * expit(-b)))
REGLU = row("reglu2", "halves", 2, 1, lambda a, b: a * np.maximum(b, 0), lambda a, b: (np.maximum(b, 0), a * (b > 0)))
ROWS = pytest.mark.parametrize("function", [MAXOUT, CRELU, GLU, REGLU], ids=lambda r: r.name)


def test_moments_in_closed_form():
    """The greater of two normals has mean 1/sqrt(pi) and mean square 1; gates factorise; CReLU keeps every length."""
    m = moments(MAXOUT)
    assert (m.mean, m.second, m.slope_second) == pytest.approx((1 / math.sqrt(math.pi), 1, 1), rel=1e-10)
    m = moments(CRELU, 3.0)
    assert (m.mean, m.second, m.slope_second) == pytest.approx((math.sqrt(3 / (2 * math.pi)), 1.5, 0.5), rel=1e-10)
    assert m.isometry == pytest.approx(0, abs=1e-10)
    sigmoid = moments("sigmoid", 2.0)
    m = moments(GLU, 2.0)
    second, slope_second = 2 * sigmoid.second, sigmoid.second + 2 * sigmoid.slope_second
    assert (m.mean, m.second, m.slope_second) == pytest.approx((0, second, slope_second), rel=1e-9, abs=1e-12)
    m = moments(REGLU)
    assert (m.second, m.slope_second) == pytest.approx((0.5, 1.0), rel=1e-9)


@ROWS
def test_layers_agree_with_networks(function: Activation):
    """Over six random networks with 700 outputs a layer, q and chi are the predicted ones to 10 %.

    Unit weights have variance sigma_w2 over the number of outputs of the layer before.
    """
    rng, networks, width, depth, sigma_w2 = np.random.default_rng(6), 6, 700, 3, 1.3
    units = width * function.operands // function.outputs
    h = rng.standard_normal((networks, 24, width))
    weights = rng.standard_normal((depth, networks, width, units)) * math.sqrt(sigma_w2 / width)
    parts, q = [], []
    for w in weights:
        z = h @ w
        q.append((z**2).mean())
        parts.append(np.split(z, function.operands, axis=-1))
        y = function.f(*parts[-1])
        h = np.concatenate(y if isinstance(y, tuple) else (y,), axis=-1)
    delta, factors = rng.standard_normal((networks, 24, units)), []
    for layer in reversed(range(depth - 1)):
        back = np.split(delta @ weights[layer + 1].transpose(0, 2, 1), function.outputs, axis=-1)
        slopes = function.partials(*parts[layer])
        # the partial derivatives come output by output
        rows = [slopes[i * function.operands : (i + 1) * function.operands] for i in range(function.outputs)]
        before = np.concatenate(
            [sum(g * r[k] for g, r in zip(back, rows, strict=True)) for k in range(function.operands)], axis=-1
        )
        factors.append((before**2).sum() / (delta**2).sum())
        delta = before
    deep = propagate(function, depth, sigma_w2)
    assert q == pytest.approx(deep.q, rel=0.1)
    assert factors[::-1] == pytest.approx(deep.chi[:-1], rel=0.1)


def test_critical_points():
    """Maxout and CReLU keep signal and gradient at once, at sigma_w2 = 1 and 2."""
    for function, sigma_w2 in ((MAXOUT, 1.0), (CRELU, 2.0)):
        point = critical(function)
        assert (point.sigma_w2, point.sigma_b2, point.slope) == pytest.approx((sigma_w2, 0, 1), rel=1e-9)


@pytest.mark.parametrize("q", [1.0, 100.0, 1e4, 1e8])
def test_moments_of_wide_operands(q: float):
    """Gates, the softmax of two and the larger of two keep their digits where the functions are narrow."""
    gate, m = moments("sigmoid", q), moments("glu", q)
    assert (m.second / q, m.slope_second) == pytest.approx((gate.second, gate.second + q * gate.slope_second), rel=1e-8)
    alone, m = moments("sigmoid", 2 * q), moments("softmax", q)
    assert (m.second, m.slope_second) == pytest.approx((alone.second, 2 * alone.slope_second), rel=1e-8)
    m = moments("reglu", q)
    assert (m.second, m.slope_second) == pytest.approx((q * q / 2, q), rel=1e-10)
    assert moments("maxout", q).mean == pytest.approx(math.sqrt(q / math.pi), rel=1e-10)


def test_correlation_maps_in_closed_form():
    """CReLU's map is the linear-and-|x| one, a product's is c^2, and the larger of two is a sum and an |x|."""
    for c in (-1.0, -0.4, 0.0, 0.7, 0.999, 1.0):
        absolute = 2 / math.pi * (math.sqrt(1 - c * c) + c * math.asin(c))
        assert correlation_map(CRELU, c, 3.0, 2.0) == pytest.approx((c + absolute) / 2, abs=1e-7)
        assert correlation_map("bilinear_glu", c, 3.0, 2.0) == pytest.approx(c * c, abs=1e-8)
        assert correlation_map(MAXOUT, c, 3.0, 1.0) == pytest.approx((c + absolute) / 2, abs=1e-7)
        assert correlation_map("reglu", c, 1.0, 2.0) == pytest.approx(c * (c + absolute) / 2, abs=1e-7)


@pytest.mark.parametrize("name", ["glu", "swiglu", "maxout", "softmax", "log_softmax", "crelu"])
def test_correlation_maps_agree_with_sampling(name: str):
    """A million sampled pairs of inputs give the same map to .005, and its slope at 1 is chi at a fixed variance."""
    rng, function, q, c = np.random.default_rng(12), activation(name), 1.5, 0.6
    first = rng.standard_normal((function.operands, 1_000_000))
    second = c * first + math.sqrt(1 - c * c) * rng.standard_normal(first.shape)
    y, other = (np.array(function.f(*(math.sqrt(q) * x))) for x in (first, second))
    assert correlation_map(name, c, q, 1.0) == pytest.approx((y * other).mean() / (y**2).mean(), abs=0.005)
    near = correlation_map(name, 1 - 1e-4, q, 1.0)
    m = moments(name, q)
    assert (1 - near) / 1e-4 == pytest.approx(m.slope_second * q / m.second, rel=5e-3)


def test_depths_of_gates():
    """ReGLU's map is c (c + |x|'s) / 2: it leaves 1, comes to 0, and has the slope 1 / pi there."""
    deep = signal_depth("reglu", 0.5)
    assert (deep.variance.kind, deep.c) == ("zero", 0.0)
    assert deep.xi_c == pytest.approx(1 / math.log(math.pi), rel=1e-6)


@pytest.mark.parametrize("name", ["tanh", "glu", "swiglu", "maxout", "softmax", "log_softmax", "crelu"])
def test_slopes_of_kernels(name: str):
    """The derivative of the mean product by the correlation is that of differences, in every structure."""
    function = activation(name)
    means = kernel(function, function.arguments())
    for c in (-0.5, 0.0, 0.8):
        difference = (means.mean(c + 1e-4, 1.3, 0.7) - means.mean(c - 1e-4, 1.3, 0.7)) / 2e-4
        assert means.slope(c, 1.3, 0.7) == pytest.approx(difference, rel=1e-5)


def test_units_of_gates_die_by_them():
    """A ReGLU's unit is closed where its gate is, as a ReLU's; a GLU, a CReLU and a maxout have no dead units."""
    assert dead_unit_chance(0.4, 9, "reglu") == pytest.approx(dead_unit_chance(0.4, 9), rel=1e-12)
    assert (
        dead_unit_chance(0.4, 9, "glu") == dead_unit_chance(0.4, 9, "maxout") == dead_unit_chance(0.4, 9, "crelu") == 0
    )


def test_what_is_not_known_is_said():
    """Correlations and deaths of functions that mix their operands in other ways are errors that name the function."""
    mixed = row(
        "mixed", "pieces", 2, 1, lambda a, b: np.sin(a * b), lambda a, b: (b * np.cos(a * b), a * np.cos(a * b))
    )
    with pytest.raises(RelumeError, match="correlations of mixed, which reads 2 numbers and gives 1, are not known"):
        correlation_map(mixed, 0.5, 1.0, 1.0)
    with pytest.raises(RelumeError, match="mixed, which reads 2 numbers"):
        dead_unit_chance(0.5, 1, mixed)
    flat = replace(row("flat", "pieces", 2, 1, lambda a, b: np.maximum(a - b, 0.0), lambda a, b: (1.0 * (a > b),
                   -1.0 * (a > b))), right=Tail(0.0, knee=1.0))  # fmt: skip
    with pytest.raises(RelumeError, match="dead_unit_chance: flat reads 2 numbers; give a function of one, or a gate"):
        dead_unit_chance(0.5, 1, flat)
