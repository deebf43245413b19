"""The catalogue: every fact that a row declares, against mpmath, against torch, and by scanning."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf

from relume.activations import ACTIVATIONS, Activation, activation, activations, normal_rule
from relume.activations.notation import as_text
from relume.errors import ActivationError
from relume.nn import resolve

Number = Any  # mpmath has no types that a checker could follow
ROWS = activations()
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


# --- second opinions: each function as its paper writes it, in 50 digits ----------------------------------------------


def mp_selu(x: Number) -> Number:
    alpha, scale = mpf("1.6732632423543772848170429916717"), mpf("1.0507009873554804934193349852946")
    return scale * (x if x > 0 else alpha * mpmath.expm1(x))


def mp_gelu_tanh(x: Number) -> Number:
    return x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpf("0.044715") * x**3)))


def mp_clip(x: Number, low: float, high: float) -> Number:
    return min(max(x, mpf(low)), mpf(high))


def mp_sigmoid(x: Number) -> Number:
    return 1 / (1 + mpmath.exp(-x))


def mp_softplus(x: Number, beta: float = 1.0, threshold: float = math.inf) -> Number:
    return x if x * beta > threshold else mpmath.log1p(mpmath.exp(x * beta)) / beta


SECOND_OPINIONS: dict[str, Callable[..., Number]] = {
    "sigmoid": mp_sigmoid,
    "relu": lambda x: max(x, mpf(0)),
    "tanh": mpmath.tanh,
    "leaky_relu": lambda x, negative_slope: x if x > 0 else negative_slope * x,
    "prelu": lambda x, weight: x if x > 0 else weight * x,
    "rrelu": lambda x, lower, upper: x if x > 0 else (mpf(lower) + mpf(upper)) / 2 * x,
    "elu": lambda x, alpha: x if x > 0 else alpha * mpmath.expm1(x),
    "celu": lambda x, alpha: x if x > 0 else alpha * mpmath.expm1(x / alpha),
    "selu": mp_selu,
    "softplus": mp_softplus,
    "gelu": lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2,
    "gelu_tanh": mp_gelu_tanh,
    "silu": lambda x: x * mp_sigmoid(x),
    "mish": lambda x: x * mpmath.tanh(mp_softplus(x)),
    "identity": lambda x: x,
    "exp": mpmath.exp,
    "relu6": lambda x: mp_clip(x, 0, 6),
    "hardtanh": lambda x, min_val, max_val: mp_clip(x, low=min_val, high=max_val),
    "hardsigmoid": lambda x: mp_clip(x / 6 + mpf(1) / 2, 0, 1),
    "hardswish": lambda x: x * mp_clip(x / 6 + mpf(1) / 2, 0, 1),
    "softsign": lambda x: x / (1 + abs(x)),
    "logsigmoid": lambda x: -mp_softplus(-x),
    "tanhshrink": lambda x: x - mpmath.tanh(x),
    "softshrink": lambda x, lambd: mpmath.sign(x) * max(abs(x) - lambd, mpf(0)),
    "hardshrink": lambda x, lambd: x if abs(x) > lambd else mpf(0),
}


# --- helpers ----------------------------------------------------------------------------------------------------------


def settings(row: Activation) -> list[dict[str, float]]:
    """The default parameters, and each parameter moved to half and to twice its default."""
    moved = [{name: p.default * factor} for name, p in row.parameters.items() for factor in (0.5, 2.0)]
    return [{}, *moved]


def away_from(points: tuple[float, ...], x: np.ndarray, distance: float = 1e-6) -> np.ndarray:
    return x[np.all([np.abs(x - point) > distance for point in points], axis=0)] if points else x


def wide_scan() -> np.ndarray:
    """Points over [-1e4, 1e4], dense where functions bend."""
    steps = np.concatenate([np.linspace(0, 30, 3001), np.geomspace(30, 1e4, 500)])
    return np.unique(np.concatenate([-steps, steps]))


def torch_arguments(row: Activation, parameters: dict[str, float]) -> dict[str, Any]:
    """The arguments, after the input, of the torch functions that a row names."""
    learned = {name for name, p in row.parameters.items() if p.init_argument}
    numbers = row.arguments(**parameters)
    tensors = {name: torch.tensor([numbers[name]], dtype=torch.float64) for name in learned}
    return {**numbers, **tensors, **row.fixed}


def torch_callables(row: Activation, parameters: dict[str, float]) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Every torch function and module that a row names, as a function of the input alone."""
    arguments = torch_arguments(row, parameters)
    found = {name: partial(resolve(name), **arguments) for name in row.functions}
    start = {row.parameters[n].init_argument or n: v for n, v in row.arguments(**parameters).items() if row.parameters}
    found[row.module] = resolve(row.module)(**start, **row.fixed).double().eval()
    return found


def close(found: np.ndarray, expected: np.ndarray, rtol: float, atol: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


# --- values and derivatives -------------------------------------------------------------------------------------------


def test_every_row_has_a_second_opinion():
    """No row without an independent formula in this file, and no formula without a row."""
    assert set(SECOND_OPINIONS) == set(ACTIVATIONS)


@each_row
def test_values_and_derivatives_agree_with_mpmath(row: Activation):
    """Values and slopes are right to 12 digits, or 1e-15 where digits cancel, at every parameter setting."""
    points = np.concatenate(
        [np.linspace(-12.03, 12.03, 61), [-700.0, -37.5, -1e-3, -1e-7, 1e-7, 1e-3, 19.5, 30.0, 300.0]]
    )
    with mpmath.workdps(50):
        for parameters in settings(row):
            arguments = row.arguments(**parameters)
            x = away_from(row.breaks(**parameters), points, distance=1e-8)
            opinion = partial(SECOND_OPINIONS[row.name], **arguments)
            values = [float(opinion(mpf(float(v)))) for v in x]
            slopes = [float(mpmath.diff(opinion, mpf(float(v)), h=mpf(10) ** -20)) for v in x]
            close(row.f(x, **arguments), np.array(values), rtol=1e-12, atol=1e-15)
            close(row.df(x, **arguments), np.array(slopes), rtol=1e-12, atol=1e-15)


@each_row
def test_flat_tails_keep_their_digits(row: Activation):
    """Where the slope goes to an end's limit it keeps ten digits, however small it gets."""
    left, right = row.tails()
    x = np.array([-25.0, -30.0, -36.0]) if left.slope == 0 else np.array([25.0, 30.0, 36.0])
    if left.slope != 0 and right.slope != 0:
        x = np.concatenate([x, -x])
    with mpmath.workdps(1000):  # tanh of gelu_tanh loses 500 digits at -36
        opinion = partial(SECOND_OPINIONS[row.name], **row.arguments())
        slopes = [float(mpmath.diff(opinion, mpf(float(v)), h=mpf(10) ** -30)) for v in x]
    close(row.df(x, **row.arguments()), np.array(slopes), rtol=1e-10, atol=1e-300)


@each_row
def test_values_agree_with_every_torch_name(row: Activation):
    """Every function and module that the row names gives the row's values in float64, and its own parameters shape it.

    The absolute 1e-14 is torch's: its gelu and silu-like functions lose their digits in the left tail.
    """
    x = wide_scan()
    for parameters in settings(row):
        expected = row.f(x, **row.arguments(**parameters))
        for name, call in torch_callables(row, parameters).items():
            found = call(torch.from_numpy(x.copy())).detach().numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14, err_msg=name)


@each_row
def test_derivatives_agree_with_autograd(row: Activation):
    """The slope is the one torch propagates, at the corners too.

    To seven digits only, because torch's hardsigmoid uses a float32 1/6 also in float64; mpmath checks the rest.
    """
    for parameters in settings(row):
        x = np.concatenate([np.linspace(-30, 30, 1201), row.breaks(**parameters)])
        for name, call in torch_callables(row, parameters).items():
            leaf = torch.from_numpy(x).requires_grad_()
            call(leaf.clone()).sum().backward()  # a clone, because the in-place functions refuse a leaf
            assert leaf.grad is not None
            expected = row.df(x, **row.arguments(**parameters))
            np.testing.assert_allclose(leaf.grad.numpy(), expected, rtol=1e-7, atol=1e-13, err_msg=name)


@each_row
def test_far_ends_and_nan(row: Activation):
    """Values are finite to +-1e4 unless the function overflows, the infinite ends give limits, and NaN gives NaN."""
    for parameters in settings(row):
        arguments = row.arguments(**parameters)
        x = wide_scan()
        too_large = np.array([abs(SECOND_OPINIONS[row.name](mpf(float(v)), **arguments)) > 1.7e308 for v in x])
        assert np.isfinite(row.f(x[~too_large], **arguments)).all()
        assert np.isfinite(row.df(x[~too_large], **arguments)).all()
        for g in (row.f, row.df):
            assert np.isnan(g(np.array([np.nan]), **arguments)).all()
            assert not np.isnan(g(np.array([-np.inf, np.inf]), **arguments)).any()
        left, right = row.tails(**parameters)
        assert row.df(np.array([-np.inf, np.inf]), **arguments).tolist() == [left.slope, right.slope]
        assert row.f(x[::-1].reshape(1, -1), **arguments).shape == (1, len(x))


# --- declared facts ---------------------------------------------------------------------------------------------------


@each_row
def test_tails_are_as_declared(row: Activation):
    """Beyond a knee the slope is exactly the declared one, just before it not; without a knee it only tends to that."""
    for parameters in settings(row):
        arguments = row.arguments(**parameters)
        for side, tail in zip((-1.0, 1.0), row.tails(**parameters), strict=True):
            far = row.df(side * np.array([1e6, 1e8]), **arguments)
            close(far, np.full(2, tail.slope), rtol=0, atol=1e-11)
            if tail.knee is None:
                assert row.df(np.float64(side * 5), **arguments) != tail.slope
                continue
            beyond = tail.knee + side * np.geomspace(1e-9, 1e6, 200)
            assert (row.df(beyond, **arguments) == tail.slope).all()
            if row.breaks() and not parameters:  # a line is straight everywhere, softplus from 37 on in float64
                assert row.df(np.float64(tail.knee - side * 1e-6), **arguments) != tail.slope


@each_row
def test_range_is_the_tightest(row: Activation):
    """All values lie in the declared range, and they come as close to both its ends as floats can tell."""
    low, high = row.range
    y = row.f(np.concatenate([wide_scan(), np.linspace(-3, 0, 200_001), [-np.inf, np.inf]]), **row.arguments())
    assert low - 1e-15 <= y.min()
    assert y.max() <= high + 1e-15
    assert y.min() == low or abs(y.min() - low) < 1e-10
    assert y.max() == high or abs(y.max() - high) < 1e-10


@each_row
def test_monotone_is_as_declared(row: Activation):
    """A function declared monotone never falls, and another one does."""
    y = row.f(wide_scan(), **row.arguments())
    falls = np.diff(y[np.isfinite(y)])
    assert bool((falls >= -1e-15).all()) == row.monotone


@each_row
def test_kinks_hold_all_the_corners(row: Activation):
    """Between two declared kinks the slope has no jump: halving the steps there halves the largest change."""
    for parameters in settings(row):
        arguments = row.arguments(**parameters)
        edges = [-40.0, *row.breaks(**parameters), 40.0]
        for low, high in pairwise(edges):
            inside = np.linspace(low, high, 40_001)[1:-1]
            slopes = row.df(inside, **arguments)
            assert np.abs(np.diff(slopes)).max() <= 0.6 * np.abs(slopes[2:] - slopes[:-2]).max() + 1e-9


@each_row
def test_names_resolve(row: Activation):
    """The module is a class of torch or relume modules, each function is callable, and none is named twice."""
    assert issubclass(resolve(row.module), torch.nn.Module)
    assert all(callable(resolve(name)) for name in row.functions)
    assert len(set(row.functions)) == len(row.functions)


def test_rows_that_share_a_torch_name_are_told_apart():
    """Where two rows name the same function or module, their fixed arguments differ."""
    for row in ROWS:
        for other in ROWS:
            if row is not other and {row.module, *row.functions} & {other.module, *other.functions}:
                assert row.fixed
                assert row.fixed != other.fixed


def test_every_common_torch_spelling_is_there():
    """Functional, method and in-place spellings that torch has for a row's module are all named by the row."""
    places = {"torch": torch, "torch.nn.functional": torch.nn.functional, "torch.Tensor": torch.Tensor}
    for row in ROWS:
        spellings = {row.name, f"{row.name}_"}
        there = {f"{place}.{name}" for place, where in places.items() for name in spellings if hasattr(where, name)}
        assert there <= set(row.functions)


@each_row
def test_defaults_are_those_of_torch(row: Activation):
    """A module built without arguments behaves as the row does without parameters."""
    x = np.linspace(-25, 25, 101)
    call = resolve(row.module)(**row.fixed).double().eval()
    close(call(torch.from_numpy(x)).detach().numpy(), row.f(x, **row.arguments()), rtol=1e-12, atol=1e-14)


@each_row
def test_texts_are_complete(row: Activation):
    """The key is the name, the paper carries a year, and the printed row shows formula, source and parameters."""
    assert ACTIVATIONS[row.name] is row
    assert any(word.strip(",:").isdigit() and 1900 < int(word.strip(",:")) < 2100 for word in row.paper.split())
    text = str(row)
    for part in (row.name, as_text(row.tex, ascii=True), row.module, row.paper, *row.parameters):
        assert part in text
    assert "-0.0000" not in text


# --- derived facts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 0.01, 1e-3, 1e-6])
@each_row
def test_flat_edges_by_scanning(row: Activation, tolerance: float):
    """Outside the edges every slope is small, just inside it is not, and an end without an edge is not flat."""
    for parameters in settings(row):
        arguments = row.arguments(**parameters)
        low, high = row.flat_edges(tolerance, **parameters)
        scale = row.steepest(**parameters)
        if math.isinf(scale):
            scale = abs(row.df(np.float64(0), **arguments))
        assert low < high
        x = wide_scan()
        outside = np.concatenate([x[x <= low], x[x >= high], [e for e in (low, high) if math.isfinite(e)]])
        assert (np.abs(row.df(outside, **arguments)) <= tolerance * scale * (1 + 1e-9)).all()
        for edge, step in ((low, 1e-4), (high, -1e-4)):
            if math.isfinite(edge):
                inside = row.df(edge + step * max(1.0, abs(edge)), **arguments)
                assert abs(inside) > tolerance * scale
            else:
                assert abs(row.df(np.float64(edge), **arguments)) >= tolerance * scale


@each_row
def test_exactly_flat_edges_are_the_knees(row: Activation):
    """With tolerance 0 the edges are where the slope is exactly zero, and a unit can die if there is one."""
    for parameters in settings(row):
        low, high = row.flat_edges(0.0, **parameters)
        for edge, tail in zip((low, high), row.tails(**parameters), strict=True):
            assert math.isfinite(edge) == (tail.slope == 0 and tail.knee is not None)
            if math.isfinite(edge):
                assert row.df(np.float64(edge), **row.arguments(**parameters)) == 0
    assert row.can_die == any(map(math.isfinite, row.flat_edges(0.0)))


def test_flat_edges_in_closed_form():
    """Edges that can be worked out by hand come out as such."""
    assert activation("relu").flat_edges(0.0) == (0.0, math.inf)
    assert activation("relu").flat_edges(0.01) == (0.0, math.inf)
    assert activation("relu6").flat_edges(0.01) == (0.0, 6.0)
    assert activation("hardtanh").flat_edges(0.0, min_val=-2.0, max_val=500.0) == (-2.0, 500.0)
    assert activation("hardtanh").flat_edges(0.1, min_val=-2.0, max_val=500.0) == (-2.0, 500.0)
    edge = math.log((1 + math.sqrt(0.99)) / (1 - math.sqrt(0.99)))  # sigmoid' = 1/4 sech(x/2)^2
    assert activation("sigmoid").flat_edges(0.01) == pytest.approx((-edge, edge), abs=1e-12)
    assert activation("softsign").flat_edges(1e-4) == pytest.approx((-99, 99), abs=1e-9)
    assert activation("elu").flat_edges(0.01, alpha=0.5) == (pytest.approx(math.log(0.02)), math.inf)
    assert activation("exp").flat_edges(0.01) == (pytest.approx(math.log(0.01)), math.inf)


def test_a_slope_at_the_tolerance_is_not_flat():
    """A leaky slope of .01 is not flat at tolerance .01, one below it is, and only a slope of 0 is exactly flat."""
    leaky = activation("leaky_relu")
    assert leaky.flat_edges(0.01) == (-math.inf, math.inf)
    assert leaky.flat_edges(0.01, negative_slope=0.005) == (0.0, math.inf)
    assert leaky.flat_edges(0.0, negative_slope=0.005) == (-math.inf, math.inf)
    assert leaky.flat_edges(0.0, negative_slope=0.0) == (0.0, math.inf)


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, math.nan])
def test_flat_edges_refuse_what_is_no_share(tolerance: float):
    """A tolerance outside [0, 1) is an error that says so."""
    with pytest.raises(ActivationError, match=r"tolerance is .* must lie in \[0, 1\)"):
        activation("relu").flat_edges(tolerance)


@each_row
def test_steepest_slope(row: Activation):
    """No slope exceeds the steepest one, and one comes within 1e-9 of it."""
    for parameters in settings(row):
        arguments = row.arguments(**parameters)
        x = np.concatenate(
            [wide_scan(), np.linspace(-4, 4, 400_001), *([k - 1e-9, k + 1e-9] for k in row.breaks(**parameters))]
        )
        found = np.abs(row.df(x, **arguments)).max()
        assert found == pytest.approx(row.steepest(**parameters), rel=1e-8)
        assert found <= row.steepest(**parameters) * (1 + 1e-12)


@each_row
def test_moments_agree_with_mpmath(row: Activation):
    """Mean and mean square under N(0, 1) are those of adaptive integration in 20 digits."""
    opinion = partial(SECOND_OPINIONS[row.name], **row.arguments())
    pieces = sorted({-14, -6, -2, 0, 2, 6, 14, *(k for k in row.breaks() if abs(k) < 14)})

    def moment(power: int) -> float:
        return float(str(mpmath.quad(lambda z: opinion(z) ** power * mpmath.npdf(z), pieces)))

    with mpmath.workdps(20):
        mean, second = moment(1), moment(2)
    assert row.mean == pytest.approx(mean, abs=1e-10)
    assert row.second_moment == pytest.approx(second, rel=1e-10)
    assert row.zero_centred == (abs(mean) < 1e-6)


def test_derived_facts_that_everyone_knows():
    """The lists that textbooks give for dying, saturating, bounded, centred and smooth functions."""

    def those(fact: str) -> set[str]:
        return {row.name for row in ROWS if getattr(row, fact)}

    assert {"relu", "relu6", "hardtanh", "hardsigmoid", "hardswish"} == those("can_die")
    assert {"leaky_relu", "prelu", "rrelu", "identity", "tanhshrink", "softshrink", "hardshrink"} == {
        row.name for row in ROWS if not row.saturates
    }
    assert {"sigmoid", "tanh", "relu6", "hardtanh", "hardsigmoid", "softsign"} == those("bounded")
    assert {"tanh", "selu", "softsign", "hardtanh", "identity", "tanhshrink", "softshrink", "hardshrink"} == those(
        "zero_centred"
    )
    corners = {row.name for row in ROWS if not row.smooth}
    assert {"relu", "leaky_relu", "prelu", "rrelu", "selu", "relu6"} <= corners
    assert not {"elu", "celu", "softplus", "gelu", "silu", "mish", "tanh", "softsign"} & corners
    assert activation("tanh").max_slope == pytest.approx(1)


def test_elu_is_smooth_only_at_alpha_one():
    """ELU has a corner at 0 unless alpha is 1; CELU was made to have none."""
    assert activation("elu").corners(alpha=0.5) == (0.0,)
    assert activation("elu").corners(alpha=1.0) == ()
    assert activation("celu").corners(alpha=0.5) == ()


@pytest.mark.parametrize("q", [1e-8, 1.0, 3.0, 1e6])
def test_normal_rule_integrates_powers(q: float):
    """The rule gives the moments 1, q, 3 q^2 and 105 q^4, and the half mean sqrt(q / 2 pi) across a kink."""
    x, w = normal_rule((), q)
    for power, moment in ((0, 1), (2, q), (4, 3 * q**2), (8, 105 * q**4)):
        assert w @ x**power == pytest.approx(moment, rel=1e-12)
    assert w @ np.maximum(x, 0) == pytest.approx(math.sqrt(q / (2 * math.pi)), rel=1e-12)
    x, w = normal_rule((0.3,), q)
    share = 0.5 * math.erfc(0.3 / math.sqrt(2 * q))
    assert w @ (x > 0.3) == pytest.approx(share, rel=1e-9, abs=1e-300)
