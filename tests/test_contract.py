"""What every function of the catalogue must do in torch: torch's own modules, relume's, and the bare formulas."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from opinions import across_ranges, limit, outputs, partials
from torch import Tensor, nn

from relume.activations import Activation, activations
from relume.activations.costs import cost, measured
from relume.errors import ActivationError
from relume.nn import apply, module, resolve
from relume.nn.flaws import BYTES, FLAWS, flaws, saved_bytes, start

HALVES = (torch.float16, torch.bfloat16)
TINY = float(np.finfo(np.float32).tiny)  # below the smallest normal number a float32 has no digits to keep
NEAR_ZERO = 1e-6  # where the true number crosses zero a difference has no digits; this error, of float32, is allowed


@dataclass(frozen=True)
class Case:
    """A row and one implementation of it, in evaluation mode (RReLU is random while it trains)."""

    row: Activation
    which: str
    build: Callable[[], Callable[[Tensor], Tensor]]

    def function(self) -> Callable[[Tensor], Tensor]:
        """What gives the row's values: of torch's softmax, that is the first of the numbers side by side."""
        built = self.build()
        if self.which == "torch" and self.row.layout == "across":
            return lambda x: built(x)[..., :1]
        return built

    def __str__(self) -> str:
        return f"{self.row.name}-{self.which}"


def _formula(row: Activation) -> Callable[[Tensor], Tensor]:
    return lambda x: apply(x, *start(row).values(), row=row.name)


def _cases() -> list[Case]:
    found = []
    for row in activations():
        for dotted in filter(None, (row.module, row.kept)):
            which = dotted.partition(".")[0]
            build = resolve(dotted) if dotted == row.kept else partial(module, row)
            found.append(Case(row, which, lambda build=build: build().eval()))
        if not any(case.which == "relume" and case.row is row for case in found):
            found.append(Case(row, "formula", lambda row=row: _formula(row)))
    return found


CASES = _cases()
OWN = [case for case in CASES if case.which != "torch"]
MODULES = [case for case in CASES if case.which != "formula"]
in_blocks = pytest.mark.parametrize("blocks", [False, True], ids=["whole", "blocks"], indirect=True)
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_own = pytest.mark.parametrize("case", OWN, ids=str)
each_module = pytest.mark.parametrize("case", MODULES, ids=str)
each_row = pytest.mark.parametrize("row", activations(), ids=lambda row: row.name)


@pytest.fixture
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether small tensors too are walked through in pieces, by formulas that reuse their memory."""
    if request.param:
        monkeypatch.setattr("relume.nn.evaluate._BLOCK", 64 if "digits" in request.node.name else 2)
    return request.param


def points(row: Activation, count: int = 24, seed: int = 0) -> Tensor:
    """Standard normal inputs that no operand of the row has near a corner, in two columns for rows that read two."""
    x = 2 * torch.randn(8 * count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    kinks = torch.tensor([*row.breaks(), 0.0], dtype=torch.float64)
    clear = ((x[..., None] - kinks).abs() > 0.01).all(-1).all(-1) & ((x[:, 0] - x[:, 1]).abs() > 0.01)
    return x[clear][:count]


def true_value(row: Activation, x: np.ndarray) -> Any:
    """What the row makes of an input with two columns, in float64."""
    y = row.f(*(np.split(x, row.operands, axis=-1) if row.operands > 1 else [x]), **start(row))
    return np.concatenate(y, axis=-1) if row.outputs > 1 else y


def true_gradient(row: Activation, x: np.ndarray) -> Any:
    """The gradient of the sum of all outputs, in float64."""
    partials = row.partials(*(np.split(x, row.operands, axis=-1) if row.operands > 1 else [x]), **start(row))
    return np.concatenate(partials, axis=-1) if row.operands > 1 else np.sum(partials, axis=0)


def evaluate(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Values, and the gradient of their sum."""
    x = x.detach().clone().requires_grad_()
    y = function(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    return y.detach(), gradient


def ulps(found: Tensor, true: np.ndarray, allowed: Any = TINY) -> np.ndarray:
    """The error in units in the last place of float32, less what is allowed."""
    with np.errstate(over="ignore"):
        true32 = true.astype(np.float32)
    same = (found.numpy() == true32) | (np.isnan(found.numpy()) & np.isnan(true32))
    with np.errstate(invalid="ignore"):
        error = np.maximum(np.abs(found.double().numpy() - true) - allowed, 0)
        return np.where(same, 0.0, error / np.spacing(np.abs(true32)).astype(float))


def crossings(x: np.ndarray, true: np.ndarray) -> Any:
    """Which points of a line lie near a zero: a change of sign, or a dip that nearly gets there."""
    size = np.abs(true)
    dips = (size[1:-1] < np.minimum(size[:-2], size[2:])) & (size[1:-1] < 0.01)
    at = np.concatenate([np.flatnonzero(np.diff(np.sign(true)) != 0), np.flatnonzero(dips) + 1])
    return (np.abs(x[:, None] - x[at][None, :]) < 0.5).any(axis=1) if len(at) else np.zeros(len(x), bool)


# --- digits -----------------------------------------------------------------------------------------------------------


@in_blocks
@pytest.mark.parametrize("case", [case for case in OWN if case.row.layout == "elementwise"], ids=str)
def test_values_and_gradients_keep_their_digits(case: Case, blocks: bool):
    """In float32 over [-100, 100], both are within the stated ULP of the truth, or within 1e-6 of a zero crossing."""
    row = case.row
    away = np.concatenate([10.0 ** np.arange(-30, 0, 0.5), np.linspace(0.1, 100, 1999)])
    x = np.concatenate([-away[::-1], [0.0], away, *[np.nextafter(np.float32(k), [-999, 999]) for k in row.breaks()]])
    x = np.unique(np.clip(x, -100, 100).astype(np.float32))
    value, gradient = evaluate(case.build(), torch.from_numpy(x))
    x = x.astype(float)
    for found, true in ((value, row.value(x, **start(row))), (gradient, true_gradient(row, x))):
        allowed = np.where(crossings(x, true), NEAR_ZERO, TINY)
        error = ulps(found, true, allowed)
        worst = int(np.nanargmax(error))
        assert not np.isnan(error).any()
        assert error[worst] <= row.ulps, (x[worst], float(found[worst]), float(true[worst]))


@in_blocks
@pytest.mark.parametrize("case", [case for case in OWN if case.row.layout != "elementwise"], ids=str)
def test_values_and_gradients_of_many_operands_keep_their_digits(case: Case, blocks: bool):
    """In float32 over the square from -100 to 100, both are within the stated ULP; only next to zeros 1e-6 is allowed.

    What the other operand is does not matter: a gate that is nearly closed keeps its digits.
    """
    x = torch.rand(600, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = torch.sign(x) * 100 ** (x.abs() * 2 - 1)
    value, gradient = evaluate(case.build(), x)
    wide = x.double().numpy()
    for found, true in zip((value, gradient), by_mpmath(case.row, wide), strict=True):
        line = np.linspace(-5, 5, 2001)
        zeros = line[:-1][
            np.diff(np.sign(case.row.partials(*[np.ones_like(line)] * (case.row.operands - 1), line)[-1])) != 0
        ]
        near = (np.abs(wide[:, -1:] - zeros) < 0.5).any(axis=1, keepdims=True)
        error = ulps(found, true, np.where(near, NEAR_ZERO * np.maximum(1, np.abs(wide[:, :1])), TINY))
        assert np.nanmax(error) <= case.row.ulps
        assert not np.isnan(error).any()


def by_mpmath(row: Activation, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and gradient of an input with two columns, by the second opinion and not by the row."""
    values, gradients = [], []
    with mpmath.workdps(60):
        for point in x:
            parts = [list(map(mpmath.mpf, point))] if row.operands > 1 else [[mpmath.mpf(float(v))] for v in point]
            found = [outputs(row, *part) for part in parts]
            values.append([float(found[j][k]) for k in range(row.outputs) for j in range(len(parts))])
            slopes = [partials(row, *part) for part in parts]
            gradients.append([float(s) for s in slopes[0]] if row.operands > 1 else [float(sum(s)) for s in slopes])
    return np.array(values), np.array(gradients)


@in_blocks
@pytest.mark.parametrize("row", [row for row in activations() if row.operands == 1], ids=lambda row: row.name)
@pytest.mark.parametrize("size", [1e4, math.inf])
def test_far_ends_are_limits(row: Activation, size: float, blocks: bool):
    """At +-1e4 and at both infinities value and gradient are mpmath's, for every parameter over its whole range."""
    for moved in across_ranges(row):
        numbers = {**start(row), **moved}
        learnt = [torch.tensor([v]) if row.parameters[k].init_argument else v for k, v in numbers.items()]
        for parameters in (learnt, [*numbers.values()]):
            for side in (-1.0, 1.0):
                x = torch.full((6, 1), side * size)
                value, gradient = evaluate(lambda x, p=parameters: apply(x, *p, row=row.name), x)
                for found, k in ((value, 0), (gradient, 1)):
                    true, allowed = far_out(row, side * size, k, numbers)
                    error = ulps(found, np.array([true]), allowed)
                    assert np.all(error <= row.ulps), (moved, side, found[0].tolist(), true)


def far_out(row: Activation, x: float, k: int, numbers: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """All outputs of a row (k = 0), or their summed derivative (k = 1), by mpmath, and the error allowed there.

    That is what a rounding of x does to it, where a wave turns many times between two numbers of float32.
    """

    def opinion(z: Any) -> list[Any]:
        return [sum(partials(row, z, **numbers))] if k else list(outputs(row, z, **numbers))

    with mpmath.workdps(200):
        if math.isinf(x):
            true = [limit(lambda z, i=i: opinion(z)[i], math.copysign(1.0, x)) for i in range(1 if k else row.outputs)]
            return np.array(true), np.array(NEAR_ZERO)
        here, beside = opinion(mpmath.mpf(x)), opinion(mpmath.mpf(x) * (1 + 2.0**-23))
        return np.array(here, float), np.array(
            [NEAR_ZERO + float(abs(a - b)) for a, b in zip(here, beside, strict=True)]
        )


@in_blocks
@pytest.mark.parametrize("case", [case for case in OWN if case.row.operands > 1], ids=str)
@pytest.mark.parametrize("size", [1e4, math.inf])
def test_far_ends_of_many_operands_are_limits(case: Case, size: float, blocks: bool):
    """At +-1e4 and at both infinities value and gradient are the row's, never NaN where the row has a number."""
    x = np.array([[-size, -size], [size, size], [-size, 1.0], [size, 1.0], [1.0, -size], [1.0, size]])
    value, gradient = evaluate(case.build(), torch.from_numpy(x).float())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # inf - inf of two operands has no limit, and NumPy says so
        truths = true_value(case.row, x), true_gradient(case.row, x)
    for found, true in zip((value, gradient), truths, strict=True):
        error = ulps(found, true, NEAR_ZERO)
        assert np.all((error <= case.row.ulps) | np.isnan(true)), (found, true)


@each_case
def test_nan_stays_nan(case: Case):
    """A NaN is never turned into a number, in any precision."""
    for dtype in (torch.float32, torch.float64, *HALVES):
        function = _to(case.build(), dtype)
        assert torch.isnan(function(torch.full((1, 2), torch.nan, dtype=dtype))).all()


def _to(function: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return function.to(dtype) if isinstance(function, nn.Module) else function


def loses(case: Case, flaw: str) -> bool:
    """Whether torch's implementation is said, and held below, to lose this."""
    return case.which == "torch" and flaw in FLAWS.get(case.row.name, ())


def digits(case: Case, dtype: torch.dtype) -> float:
    """The spacing of the numbers near 1 that a case has: for some of torch's not that of float64."""
    return torch.finfo(torch.float32 if loses(case, "float64 as float32") and dtype == torch.float64 else dtype).eps


@each_case
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64], ids=str)
def test_dtype_is_kept(case: Case, dtype: torch.dtype):
    """Values and gradients have the input's dtype, and are as near the truth as it can hold them."""
    x = points(case.row).to(dtype)
    value, gradient = evaluate(_to(case.function(), dtype), x)
    assert value.dtype == gradient.dtype == dtype
    wide = x.double().numpy()
    loose = 16 * digits(case, dtype)
    np.testing.assert_allclose(value.double(), true_value(case.row, wide), rtol=loose, atol=loose)
    np.testing.assert_allclose(gradient.double(), true_gradient(case.row, wide), rtol=loose, atol=2 * loose)


@each_own
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precisions_are_rounded_once(case: Case, dtype: torch.dtype):
    """A half precision gives what float32 gives, rounded, for value and gradient."""
    x = points(case.row).to(dtype)
    value, gradient = evaluate(_formula(case.row), x)
    value32, gradient32 = evaluate(_formula(case.row), x.float())
    assert torch.equal(value, value32.to(dtype))
    assert torch.equal(gradient, gradient32.to(dtype))


# --- derivatives ------------------------------------------------------------------------------------------------------


@each_case
def test_first_and_second_derivatives(case: Case):
    """gradcheck and gradgradcheck hold in float64, for the input and for what is learnt."""
    function: Any = _to(case.build(), torch.float64)
    x = points(case.row, count=6).requires_grad_()
    learnt = dict(function.named_parameters()) if isinstance(function, nn.Module) else {}

    def run(x: Tensor, *values: Tensor) -> Tensor:
        if not learnt:
            return function(x)
        return torch.func.functional_call(function, dict(zip(learnt, values, strict=True)), (x,))

    inputs = (x, *[p.detach().clone().requires_grad_() for p in learnt.values()])
    noise = 1e6 * digits(case, torch.float64)  # a difference over a step of 1e-6 has this error
    assert torch.autograd.gradcheck(run, inputs, atol=max(noise, 1e-6))
    if loses(case, "no second derivative"):
        with pytest.raises(RuntimeError, match="is not implemented"):
            torch.autograd.gradgradcheck(run, inputs)
        return
    assert torch.autograd.gradgradcheck(run, inputs)


# --- what training code does with a module ----------------------------------------------------------------------------


@each_case
def test_autocast(case: Case):
    """Under autocast a float32 input gives finite values of a floating type, near those without it, and a gradient."""
    function, x = case.build(), points(case.row).float()
    plain, _ = evaluate(function, x)
    with torch.autocast("cpu", torch.bfloat16):
        value, gradient = evaluate(function, x)
    torch.testing.assert_close(value.float(), plain, rtol=0.02, atol=0.02)
    assert gradient.dtype == torch.float32
    if case.which != "torch":
        assert torch.equal(value, plain)


@each_case
def test_vmap(case: Case):
    """Mapped over the samples, and differentiated for each alone, a function gives what it gives on the batch."""
    function, x = case.build(), points(case.row, count=5)
    function = _to(function, torch.float64)
    if loses(case, "no vmap"):
        with pytest.raises(RuntimeError, match="vmap"):
            torch.vmap(function)(x)
        return
    value, gradient = evaluate(function, x)
    torch.testing.assert_close(torch.vmap(function)(x), value)
    each = torch.vmap(torch.func.grad(lambda sample: function(sample).sum()))(x)
    torch.testing.assert_close(each, gradient)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile itself does it
@each_case
def test_compiles_without_a_break(case: Case):
    """torch.compile takes it as one graph, forward and backward, and the numbers are the same."""
    torch.compiler.reset()  # all classes of relume share one forward, and so one limit of compiled versions
    function, x = case.build(), points(case.row).float()
    value, gradient = evaluate(torch.compile(function, fullgraph=True, backend="eager"), x)
    expected, slope = evaluate(function, x)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, slope)


@each_module
def test_copies_and_pickles(case: Case):
    """A copy, a pickle and a module that loads the state give the same values, and share nothing that is learnt."""
    built: Any = case.build()
    x = points(case.row).float()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.125)
    fresh: Any = case.build()
    fresh.load_state_dict(built.state_dict())
    for twin in (copy.deepcopy(built), pickle.loads(pickle.dumps(built)), fresh):
        assert torch.equal(twin(x), built(x))
        assert repr(twin) == repr(built)
        assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in built.parameters()}


@pytest.mark.parametrize("case", [case for case in MODULES if hasattr(case.build(), "inplace")], ids=str)
def test_in_place(case: Case):
    """Where torch can overwrite the input, it gives the same values and gradient, in the input's memory."""
    built = module(case.row, inplace=True).eval()
    x = points(case.row).float()
    value, gradient = evaluate(case.build(), x)
    leaf = x.clone().requires_grad_()
    start = leaf * 1
    result = built(start)
    result.sum().backward()
    assert result.data_ptr() == start.data_ptr()
    assert leaf.grad is not None
    torch.testing.assert_close(result.detach(), value)
    torch.testing.assert_close(leaf.grad, gradient)


@each_own
def test_large_tensors_are_walked_through(case: Case):
    """A tensor that is evaluated piece by piece gives what its rows give, in any order of memory, with gradients."""
    x = torch.randn(2**16 + 40, 2, generator=torch.Generator().manual_seed(0))
    function = case.build()
    value, gradient = evaluate(function, x)
    pieces = [evaluate(function, piece) for piece in x.split(2**14)]
    torch.testing.assert_close(value, torch.cat([p[0] for p in pieces]), rtol=1e-5, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(gradient, torch.cat([p[1] for p in pieces]), rtol=1e-5, atol=1e-6, equal_nan=True)
    turned = x.t().contiguous().t()
    torch.testing.assert_close(function(turned), value, rtol=1e-5, atol=1e-6, equal_nan=True)


# --- memory, and what torch loses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in OWN if case.row.operands == 1], ids=str)
def test_backward_keeps_four_bytes(case: Case):
    """A function of one number keeps at most 4 bytes of each float32 element for backward."""
    assert saved_bytes(case.build()) <= BYTES


@each_own
def test_own_functions_have_no_flaw(case: Case):
    """What relume evaluates itself gives no NaN at an end, loses no tail and keeps 4 bytes at most."""
    assert flaws(case.build(), case.row) == ()


@pytest.mark.parametrize("case", [case for case in MODULES if case.which == "torch"], ids=str)
def test_torch_loses_exactly_what_is_said(case: Case):
    """The table of what torch's modules lose is complete, and has nothing that torch has mended."""
    assert flaws(module(case.row).eval(), case.row) == FLAWS.get(case.row.name, ())


def test_flaws_are_of_rows():
    """The table speaks of rows of the catalogue whose module is torch's."""
    rows = {row.name: row for row in activations()}
    assert all(rows[name].module.startswith("torch.nn.") for name in FLAWS)


@each_row
def test_costs_are_known(row: Activation):
    """Every row has a measured cost, of forward and backward together more than of forward alone."""
    assert 0 < measured()[row.name]["forward"] < row.cost


def test_costs_of_other_names_are_unknown():
    """A row of one's own was never measured, and its cost is no number."""
    assert math.isnan(cost("mine"))


# --- what is refused --------------------------------------------------------------------------------------------------


@each_row
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool], ids=str)
def test_other_numbers_are_refused(row: Activation, dtype: torch.dtype):
    """Integer, complex and boolean tensors are an error that names the function and the type."""
    with pytest.raises(ActivationError, match=rf"{row.name} takes a tensor of floating point numbers, not {dtype}"):
        _formula(row)(torch.ones(2, 2, dtype=dtype))


# --- other runtimes ---------------------------------------------------------------------------------------------------


class _All(nn.Module):
    """Every function side by side, of an input with two columns."""

    def __init__(self, cases: list[Case]) -> None:
        super().__init__()
        self.functions = [case.build() for case in cases]
        self.held = nn.ModuleList([f for f in self.functions if isinstance(f, nn.Module)])

    def forward(self, x: Tensor) -> list[Tensor]:
        return [function(x) for function in self.functions]


# What the exporter has no operator for, by the name of torch's operator.
NOT_IN_ONNX = {"rrelu-torch": "rrelu_with_noise"}

quiet_exporter = pytest.mark.filterwarnings(
    # the exporter's own dependencies, not what is exported
    "ignore:.*:DeprecationWarning:(onnx|torch|copyreg|onnx_ir).*",
    "ignore:.*:FutureWarning:(onnx|torch|copyreg|onnx_ir).*",
)


@quiet_exporter
def test_onnx(tmp_path: Any):
    """Exported, every function gives in onnxruntime what it gives in torch."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x = torch.cat([points(row, count=2) for row in activations()]).float()
    cases = [case for case in CASES if str(case) not in NOT_IN_ONNX]
    both = _All(cases).eval()
    path = tmp_path / "all.onnx"
    # unoptimised, because onnxscript 0.7.2 drops a constant where it merges one clamp after another
    torch.onnx.export(both, (x,), path, dynamo=True, verbose=False, optimize=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for case, got, expected in zip(cases, found, both(x), strict=True):
        np.testing.assert_allclose(got, expected.detach(), rtol=1e-4, atol=1e-5, err_msg=str(case))


@quiet_exporter
@pytest.mark.parametrize("case", [case for case in CASES if str(case) in NOT_IN_ONNX], ids=str)
def test_what_onnx_lacks(case: Case, tmp_path: Any):
    """What is left out of the export is what the exporter has no operator for."""
    pytest.importorskip("onnxscript")
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match=NOT_IN_ONNX[str(case)]):
        torch.onnx.export(_All([case]).eval(), (torch.ones(3, 2),), tmp_path / "one.onnx", dynamo=True, verbose=False)
