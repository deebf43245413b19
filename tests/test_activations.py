"""The catalogue: values and derivatives of every row, against mpmath, against torch, in float32 and at the ends."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf
from opinions import (
    SECOND_OPINIONS,
    across_ranges,
    away_from,
    both,
    close,
    outputs,
    partials,
    section,
    settings,
    several,
    wide_scan,
)

from relume.activations import ACTIVATIONS, Activation, activations
from relume.nn import resolve

ROWS = activations()
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
each_torch_row = pytest.mark.parametrize(
    "row", [row for row in ROWS if row.module.startswith("torch.") or row.functions], ids=lambda row: row.name
)
LEARNABLE = [(row, name) for row in ROWS for name, p in row.parameters.items() if p.derivative]


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
        for parameters in [*settings(row), *across_ranges(row)]:
            arguments = row.arguments(**parameters)
            if arguments[name] in [v for key, v in arguments.items() if key != name]:
                continue  # where two thresholds meet there are two derivatives
            noise = 1e-15 * max(1.0, abs(arguments[name]))  # of the rounding of p x, which a wave repeats
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
            close(derivative(x, **arguments), np.array(list(map(float, expected))), rtol=1e-12, atol=noise)
            ends = derivative(np.array([-np.inf, np.inf, np.nan]), **arguments)
            assert np.isnan(ends).tolist() == [False, False, True]


def test_all_learnt_parameters_have_a_derivative():
    """What is learnt has a derivative, and what has one is learnt."""
    assert all((p.init_argument is None) == (p.derivative is None) for row in ROWS for p in row.parameters.values())


@each_row
def test_small_inputs_keep_their_digits(row: Activation):
    """Values near 0 are right to 11 digits of their own size, also where a function is flat there."""
    x = away_from(row.breaks(), np.array([-0.05, -1e-3, -1e-6, 1e-6, 1e-3, 0.05]), distance=1e-7)
    with mpmath.workdps(50):
        expected = [float(section(row, mpf(float(v)))) for v in x]
    close(row.value(x), np.array(expected), rtol=1e-11, atol=1e-300)


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
