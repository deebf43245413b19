"""Correlations, fixed points and critical points, against closed forms, other integration, and wide networks."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from relume import nn as catalogue
from relume.activations import activation
from relume.errors import RelumeError
from relume.theory import (
    chi,
    correlation_map,
    correlations,
    critical,
    fixed_variance,
    moments,
    propagate,
    relu_correlation,
    signal_depth,
    small_signal,
    tat_slope,
)

CORRELATIONS = (-1.0, -0.999999, -0.7, 0.0, 0.3, 0.99, 0.9999, 1 - 1e-9, 1.0)

# --- correlation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [0.01, 1.0, 40.0])
def test_correlation_map_of_relu_in_closed_form(q: float):
    """The map is the arc-cosine kernel at every scale, and near 1 too; with two variances it does not change."""
    expected = [relu_correlation(1, c) for c in CORRELATIONS]
    assert correlation_map("relu", CORRELATIONS, q, 2.0) == pytest.approx(expected, abs=1e-9)
    assert correlation_map("relu", CORRELATIONS, q, 2.0, q2=3.0) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("q", "q2"), [(0.3, 0.3), (1.0, 0.2)])
def test_correlation_map_of_exp_in_closed_form(q: float, q2: float):
    """E[exp(u1) exp(u2)] = exp((q + q2) / 2 + c sqrt(q q2))."""
    for c in CORRELATIONS:
        product = math.exp((q + q2) / 2 + c * math.sqrt(q * q2))
        expected = (0.7 * product + 0.1) / math.sqrt((0.7 * math.exp(2 * q) + 0.1) * (0.7 * math.exp(2 * q2) + 0.1))
        assert correlation_map("exp", c, q, 0.7, 0.1, q2) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "gelu", "silu", "softplus", "mish"])
def test_correlation_map_agrees_with_gauss_hermite(name: str):
    """For smooth functions a plain product rule of 120 by 120 nodes gives the same to 1e-6."""
    z, w = np.polynomial.hermite_e.hermegauss(120)
    w = w / w.sum()
    row, q, q2 = activation(name), 1.2, 0.6
    for c in (-0.9, 0.0, 0.5, 0.95):
        u2 = math.sqrt(q2) * (c * z[:, None] + math.sqrt(1 - c * c) * z[None, :])
        f1, arguments = row.f(math.sqrt(q) * z, **row.arguments()), row.arguments()
        product = w @ (f1[:, None] * row.f(u2, **arguments)) @ w
        scale = [1.5 * (w @ row.f(math.sqrt(v) * z, **arguments) ** 2) + 0.1 for v in (q, q2)]
        expected = (1.5 * product + 0.1) / math.sqrt(scale[0] * scale[1])
        assert correlation_map(name, c, q, 1.5, 0.1, q2) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["hardtanh", "hardshrink", "relu6", "hardsigmoid", "softshrink"])
def test_correlation_map_with_kinks_agrees_with_sampling(name: str):
    """With several kinks, or jumps, two million sampled pairs give the same map to .003."""
    rng, row = np.random.default_rng(7), activation(name)
    u, v = rng.standard_normal((2, 2_000_000))
    for c in (0.2, 0.97):
        first, second = (row.f(math.sqrt(2.0) * x, **row.arguments()) for x in (u, c * u + math.sqrt(1 - c * c) * v))
        expected = (first * second).mean() / (first**2).mean()
        assert correlation_map(name, c, 2.0, 1.0) == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize("name", ["tanh", "gelu", "selu", "sigmoid", "softplus"])
def test_slope_of_the_map_at_one_is_chi(name: str):
    """C'(1) is chi where the variance is fixed, and C(1) is 1."""
    sigma_w2, sigma_b2 = 1.1, 0.2
    q = fixed_variance(name, sigma_w2, sigma_b2).q
    near = correlation_map(name, [1 - 1e-4, 1.0], q, sigma_w2, sigma_b2)
    assert near[1] == pytest.approx(1, abs=1e-12)
    assert (1 - near[0]) / 1e-4 == pytest.approx(chi(name, q, sigma_w2), rel=2e-3)


def test_correlation_map_takes_any_shape():
    """A number gives a float, and an array one of its shape."""
    grid = np.array([[0.0, 0.5], [0.9, 1.0]])
    found = correlation_map("tanh", grid, 1.0, 2.0)
    assert found.shape == (2, 2)
    assert isinstance(correlation_map("tanh", 0.5, 1.0, 2.0), float)
    assert found[0, 1] == correlation_map("tanh", 0.5, 1.0, 2.0)


def test_correlations_of_relu():
    """Layer by layer they are those of the closed form, from the inputs' own on, whatever the scale."""
    for sigma_w2 in (0.5, 2.0, 4.0):
        expected = [relu_correlation(layer, 0.2) for layer in range(8)]
        assert correlations("relu", 8, sigma_w2, c0=0.2) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("name", "sigma_w2", "sigma_b2"), [("tanh", 2.5, 0.1), ("gelu", 1.5, 0.3), ("elu", 1.2, 0.0)])
def test_correlations_agree_with_networks(name: str, sigma_w2: float, sigma_b2: float):
    """In forty random networks of width 300 two inputs come together, or apart, as predicted to .05."""
    rng, row, width = np.random.default_rng(8), activation(name), 300
    first = rng.standard_normal((40, 1, width))
    h = np.concatenate([first, 0.5 * first + math.sqrt(0.75) * rng.standard_normal((40, 1, width))], axis=1)
    found = []
    for _ in range(6):
        w = rng.standard_normal((40, width, width)) * math.sqrt(sigma_w2 / width)
        z = h @ w + rng.standard_normal((40, 1, width)) * math.sqrt(sigma_b2)
        found.append((z[:, 0] * z[:, 1]).mean() / math.sqrt((z[:, 0] ** 2).mean() * (z[:, 1] ** 2).mean()))
        h = row.f(z, **row.arguments())
    assert found == pytest.approx(correlations(row, 6, sigma_w2, sigma_b2, c0=0.5), abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"c": 1.5, "q": 1.0, "sigma_w2": 1.0}, "c is 1.5, but correlations lie in"),
        ({"c": math.nan, "q": 1.0, "sigma_w2": 1.0}, "c is nan"),
        ({"c": 0.5, "q": 0.0, "sigma_w2": 1.0}, "q is 0.0"),
        ({"c": 0.5, "q": 1.0, "sigma_w2": 1.0, "q2": -1.0}, "q2 is -1.0"),
        ({"c": 0.5, "q": 1.0, "sigma_w2": -1.0}, "sigma_w2 is -1.0"),
    ],
)
def test_correlation_map_refuses_nonsense(arguments: dict[str, Any], message: str):
    """What is no correlation or variance is an error that names it."""
    with pytest.raises(RelumeError, match=message):
        correlation_map("tanh", **arguments)


@pytest.mark.parametrize(("omega", "q"), [(1.0, 1.0), (5.0, 10.0), (3.0, 2.0)])
def test_correlation_map_of_a_sine_in_closed_form(omega: float, q: float):
    """E[sin(wu) sin(wv)] = e^(-w^2 q) sinh(w^2 q c): narrow at 1 where it turns often."""
    for c in (-0.999, 0.0, 0.5, 0.99, 0.999, 1.0):
        s = omega**2 * q
        expected = (math.exp(s * (c - 1)) - math.exp(-s * (c + 1))) / (1 - math.exp(-2 * s))
        assert correlation_map("sine", c, q, 1.0, omega=omega) == pytest.approx(expected, abs=1e-7)


def test_correlations_that_no_rule_resolves():
    """A sine that turns too often, and an exponential that outgrows the floats, are errors that give q."""
    with pytest.raises(RelumeError, match=r"correlations of sine are not known at q = 1e\+08: it turns too often"):
        correlation_map("sine", 0.5, 1e8, 1.0)
    with pytest.raises(RelumeError, match=r"correlations of exp are not known at q = .*, lies beyond 9"):
        correlations("exp", 10, 2.0)


def test_signals_that_end():
    """Where all that comes is 0, there is no correlation: NaN, and no warning; with biases it is theirs."""
    assert math.isnan(correlation_map("threshold", 0.5, 1e-4, 1.0))
    assert correlation_map("threshold", 0.5, 1e-4, 1.0, 0.1) == pytest.approx(1)
    assert correlations("softshrink", 6, 1 / 3)[:2] == (0.0, 0.0)
    assert math.isnan(correlations("softshrink", 6, 1 / 3)[-1])
    for name in ("threshold", "softshrink", "hardshrink"):
        deep = signal_depth(name, 1.0)
        assert (deep.phase, deep.variance.kind, deep.chi, deep.xi_gradient) == ("ordered", "zero", 0.0, 0.0)
        assert math.isnan(deep.c) and math.isnan(deep.xi_c)


def test_correlations_refuse_nonsense():
    """An input correlation beyond 1 is an error."""
    with pytest.raises(RelumeError, match=r"correlations: c0 is 2.0"):
        correlations("relu", 3, 1.0, c0=2.0)


# --- fixed points and depths ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sigma_w2", "sigma_b2", "kind"),
    [
        ("relu", 1.0, 0.0, "zero"), ("relu", 2.0, 0.0, "any"), ("relu", 2.5, 0.0, "unbounded"),
        ("relu", 1.0, 0.5, "stable"), ("relu", 2.0, 0.1, "unbounded"), ("relu", 1.0, 1e-14, "stable"),
        ("tanh", 1.0, 0.0, "zero"), ("tanh", 0.5, 0.0, "zero"), ("tanh", 2.0, 0.0, "stable"),
        ("tanh", 1.0, 1e-8, "stable"), ("sigmoid", 1.0, 0.0, "stable"), ("selu", 1.0, 0.0, "stable"),
        ("gelu", 4.0, 0.0, "unbounded"), ("gelu", 2.0, 0.0, "zero"), ("exp", 1.0, 0.0, "unbounded"),
        ("softplus", 1.0, 0.1, "stable"), ("softshrink", 0.5, 0.0, "zero"),
    ],
)  # fmt: skip
def test_fixed_variance(name: str, sigma_w2: float, sigma_b2: float, kind: str):
    """The kind is known, and where the variance is fixed, a thousand layers from a far start come near it."""
    found = fixed_variance(name, sigma_w2, sigma_b2)
    assert found.kind == kind
    if kind == "stable":
        assert sigma_w2 * moments(name, found.q).second + sigma_b2 == pytest.approx(found.q, rel=1e-9)
        deep = propagate(name, 300, sigma_w2, sigma_b2, q0=1.3)
        away = abs(found.slope) ** 300
        assert deep.q[-1] == pytest.approx(found.q, rel=1e-3 + 50 * away, abs=1e-2 if away > 0.5 else 0)
    else:
        assert found.q == {"zero": 0.0, "any": 1.0, "unbounded": math.inf}[kind]


@pytest.mark.parametrize(("name", "sigma_w2", "sigma_b2"), [("tanh", 2.0, 0.1), ("relu", 1.0, 0.5), ("selu", 1.0, 0.0)])
def test_slope_and_depth_of_the_variance(name: str, sigma_w2: float, sigma_b2: float):
    """A small deviation shrinks by V'(q) a layer, and by e over the depth that follows from it."""
    found = fixed_variance(name, sigma_w2, sigma_b2)
    ahead = [sigma_w2 * moments(name, found.q * (1 + s)).second + sigma_b2 for s in (1e-5, -1e-5)]
    assert found.slope == pytest.approx((ahead[0] - ahead[1]) / (2e-5 * found.q), rel=1e-5)
    assert found.depth == pytest.approx(-1 / math.log(found.slope))


def test_phases_of_tanh():
    """Ordered below, critical at and chaotic above tanh's point; in chaos inputs of any correlation come to c."""
    ordered, chaotic = signal_depth("tanh", 1.5, 0.3), signal_depth("tanh", 3.0, 0.05)
    point = critical("tanh", 0.5)
    at = signal_depth("tanh", point.sigma_w2, point.sigma_b2)
    assert [d.phase for d in (ordered, at, chaotic)] == ["ordered", "critical", "chaotic"]
    assert (ordered.c, at.c) == (1.0, 1.0)
    assert ordered.xi_c == pytest.approx(ordered.xi_gradient)
    assert at.xi_gradient > 1e6
    for c0 in (0.0, 0.9):
        assert correlations("tanh", 150, 3.0, 0.05, c0=c0)[-1] == pytest.approx(chaotic.c, abs=1e-4)


def test_depth_of_the_correlation():
    """Deviations of the correlation from its fixed point shrink by e every xi_c layers, in order and in chaos."""
    for sigma_w2, sigma_b2 in ((1.5, 0.3), (3.0, 0.05)):
        deep = signal_depth("tanh", sigma_w2, sigma_b2)
        q = deep.variance.q
        c = deep.c - 1e-3
        ahead = correlation_map("tanh", c, q, sigma_w2, sigma_b2)
        assert (ahead - deep.c) / (c - deep.c) == pytest.approx(math.exp(-1 / deep.xi_c), rel=2e-3)


def test_depths_at_the_ends():
    """A variance that shrinks for ever still has its limits; one that grows for ever has no correlation to come to."""
    linear = signal_depth("tanh", 1.0)
    assert (linear.phase, linear.xi_gradient) == ("critical", math.inf)
    for sigma_w2 in (0.5, 1.0):  # a straight line keeps every correlation, as 200 layers show
        assert math.isnan(signal_depth("tanh", sigma_w2).c) and math.isnan(signal_depth("tanh", sigma_w2).xi_c)
        assert correlations("tanh", 200, sigma_w2, c0=0.5)[-1] < 0.7
    assert signal_depth("relu", 1.0).c == 1  # a corner does not
    assert fixed_variance("gaussian", 1.0).slope < 0  # swings, and settles as fast as its size says
    assert fixed_variance("gaussian", 1.0).depth == pytest.approx(-1 / math.log(-fixed_variance("gaussian", 1.0).slope))
    grows = signal_depth("relu", 3.0)
    assert math.isnan(grows.c) and math.isnan(grows.xi_c)
    assert grows.xi_gradient == pytest.approx(1 / math.log(1.5))
    assert signal_depth("hardtanh", 4.0).c == 0  # odd, without biases


# --- critical points --------------------------------------------------------------------------------------------------


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
def test_critical_curve(name: str, q: float, sigma_w: float, sigma_b2: float):
    """The known points, to their digits; chi is 1 and the variance is fixed there."""
    point = critical(name, q)
    assert (math.sqrt(point.sigma_w2), point.sigma_b2) == pytest.approx((sigma_w, sigma_b2), abs=5e-4)
    assert chi(name, q, point.sigma_w2) == pytest.approx(1, rel=1e-12)
    assert propagate(name, 1, point.sigma_w2, point.sigma_b2, q0=moments(name, q).second).q[0] == pytest.approx(q)


@pytest.mark.parametrize("slope", [0.01, 0.25, 0.5])
def test_critical_leaky_relu(slope: float):
    """sigma_w2 = 2 / (1 + a^2) without biases, and the variance stays at any value."""
    point = critical("leaky_relu", 3.0, negative_slope=slope)
    assert (point.sigma_w2, point.sigma_b2, point.slope) == pytest.approx((2 / (1 + slope**2), 0, 1))


@pytest.mark.parametrize(
    ("name", "sigma_w"),
    [("tanh", 1.0), ("gelu", 2.0), ("silu", 2.0), ("mish", 1 / 0.6), ("elu", 1.0), ("relu", math.sqrt(2))],
)
def test_small_signal(name: str, sigma_w: float):
    """At q -> 0 sigma_w is 1 over the slope at 0, and a critical point of small q is near."""
    point = small_signal(name)
    assert math.sqrt(point.sigma_w2) == pytest.approx(sigma_w, rel=1e-6)
    assert point.sigma_b2 == 0
    assert 1 / moments(name, 1e-6).slope_second == pytest.approx(point.sigma_w2, rel=5e-3)


@pytest.mark.parametrize("name", ["softplus", "sigmoid", "logsigmoid"])
def test_where_there_is_no_critical_point(name: str):
    """At every q the biases would need a negative variance, and at q -> 0 the function is not 0; the words say so."""
    for q in (1e-4, 0.1, 1.0, 10.0):
        point = critical(name, q)
        assert math.isnan(point.sigma_w2)
        assert f"{name} has no critical point at q = {q:g}: the biases would need the variance -" in point.why_not
    assert "which centred biases take away" in small_signal(name).why_not


def test_where_the_slope_is_zero():
    """A function that is flat around 0, or at 0, has no critical point for small signals."""
    for name in ("phish", "lisht", "relu_squared", "tanhshrink", "bilinear_glu", "reglu", "geglu", "swiglu"):
        assert "its slope there is 0" in small_signal(name).why_not
        assert math.isnan(small_signal(name).sigma_w2)
    assert small_signal("glu").sigma_w2 == pytest.approx(4)  # sigmoid(0) a
    assert "its slope there is 0" in small_signal("softshrink").why_not
    assert "mean squared slope there is 0" in critical("softshrink", 1e-8).why_not


@pytest.mark.parametrize("q", [0.1, 0.5, 1.0])
def test_centred_sigmoid_is_a_critical_tanh(q: float):
    """1/2 + tanh(x/2)/2: the sigmoid's point at 4 q is tanh's at q, sigma_w and sigma_b2 four times as great."""
    tanh, sigmoid = critical("tanh", q), critical("sigmoid", 4 * q, centred=True)
    assert sigmoid.mean == pytest.approx(0.5)
    assert sigmoid.sigma_w2 == pytest.approx(16 * tanh.sigma_w2)
    assert sigmoid.sigma_b2 == pytest.approx(4 * tanh.sigma_b2, rel=1e-6)
    assert sigmoid.slope == pytest.approx(tanh.slope)
    assert small_signal("sigmoid", centred=True).sigma_w2 == pytest.approx(16)


@pytest.mark.parametrize("name", ["sigmoid", "softplus", "gelu", "relu", "mish"])
def test_centred_points_keep_variance_and_gradient_in_networks(name: str):
    """With biases that take the mean away, 15 layers of width 400 keep q and the gradient to 30 %."""
    rng, row, width = np.random.default_rng(9), activation(name), 400
    point = critical(name, centred=True)
    z = rng.standard_normal((5, 16, width))
    start, weights, slopes = z, [], []
    for _ in range(15):
        w = rng.standard_normal((5, width, width)) * math.sqrt(point.sigma_w2 / width)
        b = rng.standard_normal((5, 1, width)) * math.sqrt(point.sigma_b2) - point.mean * w.sum(axis=1, keepdims=True)
        weights.append(w)
        slopes.append(row.df(z, **row.arguments()))
        z = row.f(z, **row.arguments()) @ w + b
    delta = rng.standard_normal(z.shape)
    end = (delta**2).mean()
    for w, slope in zip(weights[::-1], slopes[::-1], strict=True):
        delta = (delta @ w.transpose(0, 2, 1)) * slope
    assert (z**2).mean() / (start**2).mean() == pytest.approx(1, abs=0.3)
    assert (delta**2).mean() / end == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize(("depth", "slope"), [(20, 0.1814), (50, 0.4305), (100, 0.5704)])
def test_tat_slope_as_published(depth: int, slope: float):
    """The slopes of Zhang et al. 2022; at that slope the correlation of orthogonal inputs comes to .9."""
    found = tat_slope(depth)
    assert found == pytest.approx(slope, abs=5e-5)
    row_scale = 2 / (1 + found**2)
    deep = correlations("leaky_relu", depth + 1, row_scale, negative_slope=found)
    assert deep[-1] == pytest.approx(0.9, abs=1e-6)


def test_tat_slope_refuses_nonsense():
    """No depth, a target that is none, and a target that ReLU does not reach are errors."""
    with pytest.raises(RelumeError, match="depth 0 must be a whole number, 1 or more"):
        tat_slope(0)
    with pytest.raises(RelumeError, match=r"depth 50.5 must be a whole number, 1 or more"):
        tat_slope(50.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RelumeError, match=r"target 1.0 lie between"):
        tat_slope(10, 1.0)
    with pytest.raises(RelumeError, match=r"2 ReLU layers bring orthogonal inputs to a correlation of 0.49"):
        tat_slope(2)


# --- wide networks ----------------------------------------------------------------------------------------------------


def measured_chi(name: str, sigma_w2: float, depth: int, batch: int, normalised: bool) -> float:
    """The factor a layer on the mean square of the gradient in one network of width 1000, in its middle layers."""
    rng = torch.Generator().manual_seed(10)
    f, width = catalogue.module(name), 1000
    h = torch.randn(batch, width, generator=rng)
    seen: list[Tensor] = []
    for _ in range(depth):
        z = h @ torch.randn(width, width, generator=rng) * math.sqrt(sigma_w2 / width)
        z.requires_grad_(not z.requires_grad) if not seen else None
        seen.append(z)
        h = f((z - z.mean(0)) / z.std(0, correction=0) if normalised else z)
    grads = torch.autograd.grad(h, seen, torch.randn(batch, width, generator=rng))
    sizes = [float((g.double() ** 2).mean()) for g in grads]
    return (sizes[2] / sizes[-3]) ** (1 / (depth - 5))


@pytest.mark.parametrize(
    ("name", "sigma_w2"),
    [("sigmoid", 1.0), ("sigmoid", 2.0), ("tanh", 1.0), ("tanh", 2.0), ("tanh", 1 / 3), ("relu", 1.0), ("gelu", 2.2)],
)
def test_chi_agrees_with_wide_networks(name: str, sigma_w2: float):
    """Over the middle layers of a network of width 1000 the predicted factor is right to 3 %."""
    depth = 14
    predicted = math.prod(propagate(name, depth, sigma_w2).chi[2:-3]) ** (1 / (depth - 5))
    assert measured_chi(name, sigma_w2, depth, 48, normalised=False) == pytest.approx(predicted, rel=0.03)


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh", "sigmoid"])
def test_chi_under_batch_norm_agrees_with_wide_networks(name: str):
    """With batches of 256 normalised before the function, the predicted factor is right to 3 %."""
    found = measured_chi(name, 1.0, 14, 256, normalised=True)
    assert found == pytest.approx(moments(name).chi_bn, rel=0.03)
