"""The catalogue: every fact that a row declares, against mpmath, against torch, and by scanning."""

import inspect
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
from opinions import SECOND_OPINIONS, outputs, partials, section

from relume.activations import ACTIVATIONS, Activation, activation, activations, normal_points, normal_rule
from relume.activations.notation import as_text
from relume.errors import ActivationError
from relume.nn import resolve

ROWS = activations()
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
each_torch_row = pytest.mark.parametrize(
    "row", [row for row in ROWS if row.module.startswith("torch.") or row.functions], ids=lambda row: row.name
)
LEARNABLE = [(row, name) for row in ROWS for name, p in row.parameters.items() if p.derivative]


# --- helpers ----------------------------------------------------------------------------------------------------------


def settings(row: Activation) -> list[dict[str, float]]:
    """The default parameters, and each parameter moved to half and to twice its default, or around 0 by a half."""
    moved = [
        {name: value}
        for name, p in row.parameters.items()
        for value in ((p.default * 0.5, p.default * 2.0) if p.default else (-0.5, 0.5))
    ]
    return [{}, *moved]


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


def in_torch(row: Activation, apply: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """A torch function or module of a row, as one from operands to outputs."""

    def call(*operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = apply(operands[0] if row.layout == "elementwise" else torch.stack(operands, dim=-1))
        return (y,) if row.layout == "elementwise" else (y[..., 0],)

    return call


def torch_callables(row: Activation, parameters: dict[str, float]) -> dict[str, Callable[..., Any]]:
    """Every torch function that a row names, and torch's module, as functions from operands to outputs."""
    numbers = row.arguments(**parameters)
    learned = {name for name, p in row.parameters.items() if p.init_argument}
    tensors = {name: torch.tensor([numbers[name]], dtype=torch.float64) for name in learned}
    along = {} if row.layout == "elementwise" else {"dim": -1}
    arguments = {**numbers, **tensors, **row.fixed, **along}
    found = {name: in_torch(row, partial(resolve(name), **arguments)) for name in row.functions}
    if row.module.startswith("torch."):
        start = {row.parameters[name].init_argument or name: value for name, value in numbers.items()}
        module = resolve(row.module)(**start, **row.fixed, **along).double().eval()
        found[row.module] = in_torch(row, module)
    return found


def close(found: np.ndarray, expected: np.ndarray, rtol: float, atol: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


# --- values and derivatives -------------------------------------------------------------------------------------------


def test_every_row_has_a_second_opinion():
    """No row without an independent formula in this file, and no formula without a row."""
    assert set(SECOND_OPINIONS) == set(ACTIVATIONS)


@each_row
def test_values_and_derivatives_agree_with_mpmath(row: Activation):
    """Values and all partial derivatives are right to 12 digits, or 1e-15 where digits cancel, at every setting."""
    points = np.concatenate(
        [np.linspace(-12.03, 12.03, 31), [-700.0, -37.5, -1e-3, -1e-7, 1e-7, 1e-3, 19.5, 30.0, 300.0]]
    )
    with mpmath.workdps(50):
        for parameters in settings(row):
            arguments = row.arguments(**parameters)
            for operands in several(row, away_from(row.breaks(**parameters), points, distance=1e-8)):
                exact = [tuple(map(mpf, map(float, point))) for point in zip(*operands, strict=True)]
                values = np.array([[float(y) for y in outputs(row, *point, **parameters)] for point in exact])
                slopes = np.array([[float(y) for y in partials(row, *point, **parameters)] for point in exact])
                close(np.stack(both(row.f(*operands, **arguments)), axis=1), values, rtol=1e-12, atol=1e-15)
                close(np.stack(both(row.df(*operands, **arguments)), axis=1), slopes, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("row", "name"), LEARNABLE, ids=lambda part: getattr(part, "name", part))
def test_parameter_derivatives_agree_with_mpmath(row: Activation, name: str):
    """The derivative by a learnt parameter is right to 12 digits, at every setting."""
    derivative = row.parameters[name].derivative
    assert derivative is not None
    with mpmath.workdps(50):
        for parameters in settings(row):
            arguments = row.arguments(**parameters)
            x = away_from(row.breaks(**parameters), np.linspace(-12.03, 12.03, 41))
            others = {key: value for key, value in arguments.items() if key != name}
            expected = [
                mpmath.diff(
                    lambda p, v=v, others=others: SECOND_OPINIONS[row.name](mpf(float(v)), **others, **{name: p}),
                    mpf(arguments[name]),
                    h=mpf(10) ** -20,
                )
                for v in x
            ]
            close(derivative(x, **arguments), np.array(list(map(float, expected))), rtol=1e-12, atol=1e-15)
            ends = derivative(np.array([-np.inf, np.inf, np.nan]), **arguments)
            assert np.isnan(ends).tolist() == [False, False, True]


def test_all_learnt_parameters_have_a_derivative():
    """What is learnt has a derivative, and what has one is learnt."""
    assert all((p.init_argument is None) == (p.derivative is None) for row in ROWS for p in row.parameters.values())


@each_row
def test_flat_tails_keep_their_digits(row: Activation):
    """Where the slope goes to zero at an end it keeps ten digits, however small it gets."""
    left, right = row.tails()
    x = [sign * v for sign, tail in ((-1, left), (1, right)) if tail.slope == 0 for v in (25.0, 30.0, 36.0)]
    x = np.array(x or [-36.0, -25.0, 25.0, 36.0])
    with mpmath.workdps(1000):  # tanh of gelu_tanh loses 500 digits at -36
        exact = [partials(row, *[mpf(1)] * (row.operands - 1), mpf(float(v))) for v in x]
    found = np.stack(row.partials(*several(row, x)[0]), axis=1)
    close(found, np.array([[float(y) for y in point] for point in exact]), rtol=1e-10, atol=1e-300)


@each_row
def test_float32_keeps_its_digits(row: Activation):
    """On float32 tensors over [-100, 100] values and derivatives are off by no more than the row's `ulps`.

    Only around zeros, where the sign changes or numbers grow on both sides, terms cancel: an error of 1e-6 is allowed.
    """
    x32 = torch.cat([torch.linspace(-100, 100, 2001), torch.linspace(-15, 15, 3001)]).sort().values.unique()
    x = x32.double().numpy()
    clear = np.all([np.abs(x - k) > 1e-5 * max(1, abs(k)) for k in row.breaks()], axis=0) | np.zeros_like(x, bool)
    operands = several(row, x)[0]
    tensors = [torch.from_numpy(v).float() for v in operands]
    tiny = float(np.finfo(np.float32).tiny)
    for g in (row.f, row.df):
        found, true = both(g(*tensors, **row.arguments())), both(g(*operands, **row.arguments()))
        for y32, y in zip(found, true, strict=True):
            fits = clear & (np.abs(y) < np.finfo(np.float32).max)
            size, around = np.abs(y), [slice(max(i - 40, 0), i + 41) for i in range(len(y))]
            changes = np.array([np.ptp(np.sign(y[near])) > 0 for near in around])
            ends = [
                (size[near][: len(size[near]) // 2].max(), size[near][len(size[near]) // 2 :].max()) for near in around
            ]
            touches = np.min(ends, axis=1) > 10 * size
            crossing = changes | touches
            unit = np.spacing(np.maximum(np.abs(y[fits]), tiny).astype(np.float32)).astype(float)
            allowed = np.where(crossing[fits], 1e-6, tiny)
            error = np.abs(y32.double().numpy()[fits] - y[fits])
            assert y32.dtype == torch.float32
            off = (error - allowed) / unit
            assert off.max() <= row.ulps, (x[fits][off.argmax()], y32[fits][off.argmax()])


@each_row
def test_tensors_give_what_arrays_give(row: Activation):
    """In float64 the formulas give on tensors what they give on arrays, with learnt parameters as tensors too."""
    x = np.concatenate([np.linspace(-30, 30, 601), [-1e4, 1e4, -np.inf, np.inf, np.nan]])
    for parameters in settings(row):
        numbers = row.arguments(**parameters)
        learnt = {k: torch.tensor([v], dtype=torch.float64) for k, v in numbers.items() if row.parameters[k].derivative}
        tensors = [torch.from_numpy(v) for v in several(row, x)[0]]
        for g in (row.f, row.df):
            expected = both(g(*several(row, x)[0], **numbers))
            for found, y in zip(both(g(*tensors, **{**numbers, **learnt})), expected, strict=True):
                np.testing.assert_allclose(found.numpy(), y, rtol=1e-12, atol=1e-15)


@each_row
def test_derivatives_can_be_differentiated_at_zero(row: Activation):
    """Autograd through the derivative of a smooth function gives the second derivative, at 0 as elsewhere."""
    points = [v for v in (0.0, -1.3, 0.7) if all(abs(v - k) > 1e-6 for k in row.breaks())]
    if not points or row.outputs > 1 or row.operands > 1:
        points = [-1.3, 0.7]
    one = [mpf(1)] * (row.operands - 1)
    order = (0,) * (row.operands - 1) + (2,)
    for v in points:
        with mpmath.workdps(50):
            true = float(
                mpmath.diff(
                    lambda *u: outputs(row, *u)[0],
                    (*one, mpf(v)) if one else mpf(v),
                    order if one else 2,
                    h=mpf(10) ** -12,
                )
            )
        x = torch.tensor(v, dtype=torch.float64, requires_grad=True)
        slope = both(row.df(*[torch.ones_like(x) for _ in one], x, **row.arguments()))[row.operands - 1]
        found = torch.autograd.grad(slope, x, allow_unused=True)[0] if slope.requires_grad else None
        assert (0.0 if found is None else float(found)) == pytest.approx(true, rel=1e-9, abs=1e-12)


@each_torch_row
def test_values_agree_with_every_torch_name(row: Activation):
    """Every function and module that the row names gives the row's values in float64, and its own parameters shape it.

    The absolute 1e-14 is torch's: its gelu and silu-like functions lose their digits in the left tail.
    """
    x = wide_scan()
    for parameters in settings(row):
        for operands in several(row, x):
            expected = both(row.f(*operands, **row.arguments(**parameters)))
            for name, call in torch_callables(row, parameters).items():
                for found, y in zip(call(*[torch.from_numpy(v.copy()) for v in operands]), expected, strict=True):
                    np.testing.assert_allclose(found.detach().numpy(), y, rtol=1e-12, atol=1e-14, err_msg=name)


@each_torch_row
def test_derivatives_agree_with_autograd(row: Activation):
    """The slope is the one torch propagates, at the corners too.

    To seven digits only, because torch's hardsigmoid uses a float32 1/6 also in float64; mpmath checks the rest.
    """
    for parameters in settings(row):
        for operands in several(row, np.concatenate([np.linspace(-30, 30, 1201), row.breaks(**parameters)])):
            expected = both(row.df(*operands, **row.arguments(**parameters)))
            for name, call in torch_callables(row, parameters).items():
                leaves = [torch.from_numpy(v.copy()).requires_grad_() for v in operands]
                call(*[leaf.clone() for leaf in leaves])[0].sum().backward()  # clones: in-place functions refuse leaves
                for leaf, slope in zip(leaves, expected, strict=True):
                    assert leaf.grad is not None
                    np.testing.assert_allclose(leaf.grad.numpy(), slope, rtol=1e-7, atol=1e-13, err_msg=name)


@each_row
def test_far_ends_and_nan(row: Activation):
    """Values are finite to +-1e4 unless the function overflows, the infinite ends give limits, and NaN gives NaN."""
    ends = np.array([-np.inf, np.inf])
    for parameters in settings(row):
        arguments = row.arguments(**parameters)
        x = wide_scan()
        too_large = np.array([abs(section(row, mpf(float(v)), **parameters)) > 1.7e308 for v in x])
        left, right = row.tails(**parameters)
        for operands in several(row, x[~too_large]):
            assert all(np.isfinite(y).all() for g in (row.f, row.df) for y in both(g(*operands, **arguments)))
        for operands in several(row, np.array([np.nan])):
            assert any(np.isnan(y).all() for g in (row.f, row.df) for y in both(g(*operands, **arguments)))
            assert all(np.isnan(y).all() for y in both(row.f(*operands, **arguments)))
        np.testing.assert_array_equal(row.slope(ends, **parameters), [left.slope, right.slope])
        y = row.value(x[::-1].reshape(1, -1), **parameters)
        assert y.shape == (1, len(x))
        # Towards an end that has a limit, values go where the end says; a bounded wave has none, and says so with NaN.
        far, end = row.value(np.array([-1e12, 1e12]), **parameters), row.value(ends, **parameters)
        wave = row.bounded and math.isnan(left.slope)
        for f, e in zip(far, end, strict=True):
            if wave:
                assert math.isnan(e)
            else:
                assert abs(f - e) < 1e-10 if math.isfinite(e) else abs(f) > 20 and f * e > 0


# --- declared facts ---------------------------------------------------------------------------------------------------


@each_row
def test_tails_are_as_declared(row: Activation):
    """Beyond a knee the slope is exactly the declared one, just before it not; without a knee it only tends to that."""
    for parameters in settings(row):
        for side, tail in zip((-1.0, 1.0), row.tails(**parameters), strict=True):
            far = row.slope(side * np.geomspace(1e6, 1e8, 99), **parameters)
            if math.isnan(tail.slope):
                assert np.ptp(far) > 0.9
                continue
            if math.isinf(tail.slope):
                assert (np.abs(far) > 1e5).all()
                assert (np.sign(far) == np.sign(tail.slope)).all()
            else:
                close(far, np.full(99, tail.slope), rtol=0, atol=1e-5)
                close(far[-1:], far[:1], rtol=0, atol=1e-5)
            if tail.knee is None:
                assert row.slope(np.float64(side * 2), **parameters) != tail.slope
                continue
            beyond = tail.knee + side * np.geomspace(1e-9, 1e6, 200)
            assert (row.slope(beyond, **parameters) == tail.slope).all()
            straight = len({tail.slope for tail in row.tails(**parameters)}) == 1 and row.layout != "elementwise"
            if row.breaks() and not parameters and not straight:  # softplus is straight from 37 on in float64
                assert row.slope(np.float64(tail.knee - side * 1e-6), **parameters) != tail.slope


def everywhere(row: Activation) -> np.ndarray:
    """All that a row puts out for numbers of every size, also infinite ones."""
    x = np.concatenate([wide_scan(), np.linspace(-3, 3, 200_001), [-np.inf, np.inf]])
    others = (-1e4, -1.0, 1.0, 1e4, -np.inf, np.inf) if row.operands > 1 else (1.0,)
    with np.errstate(invalid="ignore"):
        found = [row.f(*[np.full_like(x, a)] * (row.operands - 1), x, **row.arguments()) for a in others]
    y = np.concatenate([v for values in found for v in both(values)])
    return y[~np.isnan(y)]


@each_row
def test_range_is_the_tightest(row: Activation):
    """All values lie in the declared range, and they come as close to both its ends as floats can tell."""
    low, high = row.range
    y = everywhere(row)
    assert low - 1e-15 <= y.min()
    assert y.max() <= high + 1e-15
    assert y.min() == low or abs(y.min() - low) < 1e-9
    assert y.max() == high or abs(y.max() - high) < 1e-9


@each_row
def test_monotone_is_as_declared(row: Activation):
    """A function declared monotone never falls, and another one does."""
    y = row.value(wide_scan())
    falls = np.diff(y[np.isfinite(y)])
    assert bool((falls >= -1e-15).all()) == row.monotone


@each_row
def test_kinks_hold_all_the_corners(row: Activation):
    """Between two declared kinks the slope has no jump: halving the steps there halves the largest change."""
    for parameters in settings(row):
        edges = [-40.0, *row.breaks(**parameters), 40.0]
        for low, high in pairwise(edges):
            inside = np.linspace(low, high, 40_001)[1:-1]
            for partial_slope in row.partials(*several(row, inside)[0], **parameters):
                jump = np.abs(np.diff(partial_slope)).max()
                assert jump <= 0.6 * np.abs(partial_slope[2:] - partial_slope[:-2]).max() + 1e-9


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
    for row in (row for row in ROWS if row.module.startswith("torch.")):  # torch.arctan is arithmetic to torch
        spellings = {row.name, f"{row.name}_"}
        there = {f"{place}.{name}" for place, where in places.items() for name in spellings if hasattr(where, name)}
        assert there <= set(row.functions)


@each_torch_row
def test_defaults_are_those_of_torch(row: Activation):
    """A module built without arguments behaves as the row does without parameters, where torch has a default."""
    if not row.module.startswith("torch.") or row.operands > 1:
        return
    build = resolve(row.module)
    missing = {
        name: row.parameters[name].default
        for name, argument in inspect.signature(build).parameters.items()
        if argument.default is argument.empty and name in row.parameters
    }
    x = np.linspace(-25, 25, 101)
    call = build(**missing, **row.fixed).double().eval()
    close(call(torch.from_numpy(x)).detach().numpy(), row.value(x), rtol=1e-12, atol=1e-14)


@each_row
def test_texts_are_complete(row: Activation):
    """The key is the name, the paper carries a year, and the printed row shows formula, source and parameters."""
    assert ACTIVATIONS[row.name] is row
    assert any(word.strip(",:").isdigit() and 1900 < int(word.strip(",:")) < 2100 for word in row.paper.split())
    text = str(row)
    assert row.when.endswith(".")
    assert len(row.when.split()) >= 5
    for part in (row.name, as_text(row.tex, ascii=True), row.module, row.when, row.paper, *row.parameters):
        assert part in text
    assert "-0.0000" not in text


# --- derived facts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 0.01, 1e-3, 1e-6])
@each_row
def test_flat_edges_by_scanning(row: Activation, tolerance: float):
    """Outside the edges every slope is small, just inside it is not, and an end without an edge is not flat."""
    for parameters in settings(row):
        low, high = row.flat_edges(tolerance, **parameters)
        scale = row.steepest(**parameters)
        if math.isinf(scale):
            scale = abs(row.slope(np.float64(0), **parameters))
        assert low < high
        x = wide_scan()
        outside = np.concatenate([x[x <= low], x[x >= high], [e for e in (low, high) if math.isfinite(e)]])
        assert (np.abs(row.slope(outside, **parameters)) <= tolerance * scale * (1 + 1e-9)).all()
        for edge, step in ((low, 1e-4), (high, -1e-4)):
            if math.isfinite(edge):
                inside = row.slope(np.float64(edge + step * max(1.0, abs(edge))), **parameters)
                assert abs(inside) > tolerance * scale
            else:
                end = abs(row.slope(np.float64(edge), **parameters))
                assert math.isnan(end) or end >= tolerance * scale


@each_row
def test_exactly_flat_edges_are_the_knees(row: Activation):
    """With tolerance 0 the edges are where the slope is exactly zero, and a unit can die if there is one."""
    for parameters in settings(row):
        low, high = row.flat_edges(0.0, **parameters)
        for edge, tail in zip((low, high), row.tails(**parameters), strict=True):
            assert math.isfinite(edge) == (tail.slope == 0 and tail.knee is not None)
            if math.isfinite(edge):
                assert row.slope(np.float64(edge), **parameters) == 0
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
    """No slope exceeds the steepest one, and one comes close; where that is infinite slopes grow without end."""
    for parameters in settings(row):
        x = np.concatenate(
            [wide_scan(), np.linspace(-4, 4, 400_001), *([k - 1e-9, k + 1e-9] for k in row.breaks(**parameters))]
        )
        found = np.abs(row.slope(x, **parameters)).max()
        steepest = row.steepest(**parameters)
        if math.isinf(steepest):
            assert found > 1000 * abs(row.slope(np.float64(1.0), **parameters))
        else:
            assert found == pytest.approx(steepest, rel=1e-7)
            assert found <= steepest * (1 + 1e-12)


@each_row
def test_moments_agree_with_mpmath(row: Activation):
    """Mean and mean square over independent N(0, 1) are those of another rule: adaptive, or Gauss-Hermite for two."""
    pieces = sorted({-14, -6, -2, 0, 2, 6, 14, *(k for k in row.breaks() if abs(k) < 14)})

    def moment(power: int) -> float:
        def mean_power(z: Any) -> Any:
            return sum(y**power for y in outputs(row, z)) / row.outputs * mpmath.npdf(z)

        return float(str(mpmath.quad(mean_power, pieces)))

    if row.operands == 1:
        with mpmath.workdps(20):
            mean, second = moment(1), moment(2)
        digits = 1e-10
    else:
        mean, second = hermite_moments(row)
        digits = 5e-3
    assert row.mean == pytest.approx(mean, abs=digits)
    assert row.second_moment == pytest.approx(second, rel=digits)
    assert row.zero_centred == (abs(mean) < max(1e-6, digits * 1e-3))


def hermite_moments(row: Activation) -> tuple[float, float]:
    """Mean and mean square over two independent normals, by the product of two Gauss-Hermite rules."""
    z, w = np.polynomial.hermite_e.hermegauss(120)
    a, b = np.meshgrid(z, z)
    y = np.array(
        [
            [float(outputs(row, mpf(p), mpf(q))[0]) for p, q in zip(*line, strict=True)]
            for line in zip(a, b, strict=True)
        ]
    )
    weights = np.outer(w, w) / (2 * math.pi)
    return float((weights * y).sum()), float((weights * y * y).sum())


def test_moments_of_two_operands_in_closed_form():
    """Products of independent normals, the larger of two, and a rectified gate have known moments."""
    assert activation("bilinear_glu").second_moment == pytest.approx(1, rel=1e-12)
    assert activation("reglu").second_moment == pytest.approx(0.5, rel=1e-12)
    assert activation("maxout").mean == pytest.approx(1 / math.sqrt(math.pi), rel=1e-12)
    assert activation("maxout").second_moment == pytest.approx(1, rel=1e-12)
    assert activation("softmax").mean == pytest.approx(0.5, rel=1e-12)
    assert activation("crelu").mean == pytest.approx(1 / math.sqrt(2 * math.pi), rel=1e-12)
    for gate, alone in (("glu", "sigmoid"), ("geglu", "gelu"), ("swiglu", "silu")):
        assert activation(gate).second_moment == pytest.approx(activation(alone).second_moment, rel=1e-10)
    (a, b), w = normal_points(2)
    assert w @ (a**2 * b**4) == pytest.approx(3, rel=1e-10)


def test_derived_facts_that_everyone_knows():
    """The lists that textbooks give for dying, saturating, bounded, centred and smooth functions."""

    def those(fact: str) -> set[str]:
        return {row.name for row in ROWS if getattr(row, fact)}

    assert those("can_die") == {
        "relu", "relu6", "hardtanh", "hardsigmoid", "hardswish", "threshold", "shifted_relu", "relu_squared",
        "star_relu", "smelu", "nlrelu", "sqnl", "flatten_t_swish", "hard_elish", "reglu",
    }  # fmt: skip
    assert {row.name for row in ROWS if not row.saturates} == {
        "leaky_relu", "prelu", "rrelu", "tailored_relu", "srelu", "plu", "identity", "tanhshrink", "softshrink",
        "hardshrink", "bent_identity", "lisht", "sine", "snake", "maxout", "crelu", "bilinear_glu",
    }  # fmt: skip
    assert those("bounded") == {
        "sigmoid", "tanh", "scaled_tanh", "penalized_tanh", "relu6", "hardtanh", "hardsigmoid", "softsign", "elliott",
        "arctan", "isru", "sqnl", "gaussian", "sine", "dsilu", "soft_clipping", "softmax", "softmin",
    }  # fmt: skip
    assert those("zero_centred") == {
        "tanh", "scaled_tanh", "selu", "softsign", "hardtanh", "identity", "tanhshrink", "softshrink", "hardshrink",
        "arctan", "isru", "sqnl", "sine", "plu", "symlog", "star_relu", "glu", "bilinear_glu", "reglu", "geglu",
        "swiglu",
    }  # fmt: skip
    assert those("learnable") == {"prelu", "srelu", "star_relu", "pelu", "snake", "swish"}
    assert those("gated") == {"glu", "bilinear_glu", "reglu", "geglu", "swiglu"}
    assert {row.name for row in ROWS if not row.smooth} == {
        "relu", "leaky_relu", "prelu", "rrelu", "tailored_relu", "srelu", "plu", "selu", "relu6", "hardtanh",
        "hardsigmoid", "hardswish", "threshold", "shifted_relu", "nlrelu", "softshrink", "hardshrink",
        "penalized_tanh", "flatten_t_swish", "hard_elish", "reglu", "maxout", "crelu",
    }  # fmt: skip
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
