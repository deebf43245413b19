"""Predictions for functions of several numbers, or with several results, against closed forms and networks."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from relume.activations import Activation, Tail
from relume.errors import RelumeError
from relume.theory import correlation_map, critical, dead_unit_chance, moments, propagate


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


def test_what_is_not_known_is_said():
    """Correlations and deaths of functions of several numbers are errors that name the function."""
    with pytest.raises(RelumeError, match="maxout2 reads 2 numbers and gives 1"):
        correlation_map(MAXOUT, 0.5, 1.0, 1.0)
    with pytest.raises(RelumeError, match="maxout2 reads 2 numbers; give a function of one"):
        dead_unit_chance(0.5, 1, MAXOUT)
