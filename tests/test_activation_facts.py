"""The catalogue: what rows declare of tails, kinks, ranges and names, and what is derived from that, by scanning."""

import inspect
import math
from itertools import pairwise
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf
from opinions import both, close, outputs, settings, several, wide_scan

from relume.activations import ACTIVATIONS, Activation, activation, activations, normal_points, normal_rule
from relume.activations.notation import as_text
from relume.errors import ActivationError
from relume.nn import resolve

ROWS = activations()
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
each_module_of_torch = pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.module.startswith("torch.") and row.layout == "elementwise"],
    ids=lambda row: row.name,
)


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
            knee = tail.knee
            beyond = knee + side * np.geomspace(1e-9, 1e6, 200)
            assert (row.slope(beyond, **parameters) == tail.slope).all()
            straight = len({end.slope for end in row.tails(**parameters)}) == 1 and row.layout != "elementwise"
            if row.breaks() and not parameters and not straight:  # softplus is straight from 37 on in float64
                assert row.slope(np.float64(knee - side * 1e-6), **parameters) != tail.slope


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


@each_module_of_torch
def test_defaults_are_those_of_torch(row: Activation):
    """A module built without arguments behaves as the row does without parameters, where torch has a default."""
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
    """With tolerance 0 the edges are where the slope is exactly zero."""
    for parameters in settings(row):
        low, high = row.flat_edges(0.0, **parameters)
        for edge, tail in zip((low, high), row.tails(**parameters), strict=True):
            assert math.isfinite(edge) == (tail.slope == 0 and tail.knee is not None)
            if math.isfinite(edge):
                assert row.slope(np.float64(edge), **parameters) == 0


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
        "star_relu", "smelu", "nlrelu", "sqnl", "flatten_t_swish", "hard_elish", "reglu", "softshrink", "hardshrink",
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


# --- exactly flat stretches -------------------------------------------------------------------------------------------


@each_row
def test_dead_stretches_by_scanning(row: Activation):
    """Among a hundred thousand points the slope is exactly 0 just where a stretch says so."""
    x = np.linspace(-7.9, 8.1, 100_003)
    for parameters in settings(row):
        stretches = row.dead_stretches(**parameters)
        inside = np.any([(low <= x) & (x <= high) for low, high in stretches], axis=0) if stretches else x > math.inf
        assert (row.slope(x[inside], **parameters) == 0).all()
        # Elsewhere it is 0 where it changes its sign, or has shrunk out of the floats.
        assert ((row.slope(x, **parameters) == 0) & ~inside & (np.abs(x) < 3)).sum() <= 2
        assert row.can_die == bool(row.dead_stretches())


def test_dead_stretches_by_hand():
    """Ends, the middle of a shrinkage, both, and none; a bound at infinity is no end."""
    assert activation("hardtanh").dead_stretches() == ((-math.inf, -1.0), (1.0, math.inf))
    assert activation("hardtanh").dead_stretches(max_val=math.inf) == ((-math.inf, -1.0),)
    assert activation("softshrink").dead_stretches() == ((-0.5, 0.5),)
    assert activation("hardshrink").dead_stretches(lambd=2.0) == ((-2.0, 2.0),)
    assert activation("softshrink").dead_stretches(lambd=0.0) == ()
    assert activation("srelu").dead_stretches(a_left=0.0, a_right=0.0) == ((-math.inf, 0.0), (1.0, math.inf))
    assert activation("tanh").dead_stretches() == ()


def test_a_parameter_that_switches_a_side_off_makes_a_flat_end():
    """ELU at alpha 0 is a ReLU, and a penalised tanh of slope 0 as flat on its left."""
    assert activation("elu").dead_stretches(alpha=0.0) == ((-math.inf, 0.0),)
    assert activation("penalized_tanh").dead_stretches(slope=0.0) == ((-math.inf, 0.0),)
    assert activation("elu").dead_stretches(alpha=0.5) == ()


def test_infinite_parameters():
    """An infinite slope is an error that says so; an infinite bound of hardtanh is none at all."""
    with pytest.raises(ActivationError, match="leaky_relu: negative_slope is inf, but must be finite"):
        activation("leaky_relu").arguments(negative_slope=math.inf)
    assert activation("hardtanh").value(np.float64(1e9), max_val=math.inf) == 1e9
