"""Modules built from rows of the catalogue."""

import copy
import doctest
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import relume.nn
from relume.activations import Activation, activation, activations
from relume.errors import ActivationError
from relume.nn import Curve, apply, module, resolve
from relume.nn.kernels import GRADIENTS, VALUES
from relume.remedies import swap_to, treat
from relume.sites import find_sites

each_row = pytest.mark.parametrize("row", activations(), ids=lambda row: row.name)


elementwise = pytest.mark.parametrize(
    "row", [row for row in activations() if row.layout == "elementwise"], ids=lambda row: row.name
)
OWN = [(row, dotted) for row in activations() for dotted in (row.module, row.kept) if dotted.startswith("relume.nn.")]
each_class = pytest.mark.parametrize(("row", "dotted"), OWN, ids=[dotted for _, dotted in OWN])
LEARNT = [row for row in activations() if row.learnable and row.module.startswith("relume.nn.")]
each_learnt = pytest.mark.parametrize("row", LEARNT, ids=lambda row: row.name)


@each_row
def test_every_row_builds_its_module(row: Activation):
    """The module is new each time, and of the row's class, by row or by name."""
    built = module(row)
    assert type(built) is resolve(row.module)
    assert built is not module(row)
    assert repr(module(row.name)) == repr(built)


@elementwise
def test_modules_compute_the_row(row: Activation):
    """A module gives the row's values."""
    x = np.linspace(-8, 8, 161)
    built = module(row).double().eval()
    expected = row.f(x, **row.arguments())
    loose = 1e-6 if row.learnable else 1e-13  # what is learnt starts as a float32
    np.testing.assert_allclose(built(torch.from_numpy(x)).detach(), expected, rtol=loose, atol=loose)


@elementwise
def test_parameters_reach_the_module(row: Activation):
    """Each parameter, moved from its default, moves the module's values as it moves the row's."""
    x = np.linspace(-25, 25, 161)
    for name, parameter in row.parameters.items():
        given = {name: min(max(parameter.default / 2 + 0.01, parameter.low), parameter.high)}
        built = module(row, **given).double().eval()
        expected = row.f(x, **row.arguments(**given))
        found = built(torch.from_numpy(x)).detach()
        loose = 1e-6 if row.learnable else 1e-12
        np.testing.assert_allclose(found, expected, rtol=loose, atol=loose)


@each_row
def test_modules_can_be_copied_and_pickled(row: Activation):
    """Copies and pickles of a module give the same values."""
    x = torch.linspace(-3, 3, 14)
    built = module(row).eval()
    for twin in (copy.deepcopy(built), pickle.loads(pickle.dumps(built))):
        assert torch.equal(twin(x), built(x))


def test_learned_parameters_are_per_unit():
    """PReLU can have one slope a unit, all starting at the given number, and learns them."""
    built = module("prelu", weight=0.1, num_parameters=64)
    assert isinstance(built, nn.PReLU)
    assert built.weight.shape == (64,)
    assert built.weight.requires_grad
    assert torch.equal(built.weight, torch.full((64,), 0.1))


def test_other_arguments_reach_the_constructor():
    """What the constructor takes besides the row's parameters is passed on."""
    assert repr(module("relu", inplace=True)) == "ReLU(inplace=True)"


def test_rows_of_one_class_differ():
    """The two forms of GELU build the same class with its own argument."""
    assert repr(module("gelu")) == "GELU(approximate='none')"
    assert repr(module("gelu_tanh")) == "GELU(approximate='tanh')"


@each_class
def test_classes_say_what_they_are(row: Activation, dotted: str):
    """A class is found under its name, and its documentation and representation hold the row's facts."""
    kind = resolve(dotted)
    assert issubclass(kind, Curve)
    assert kind.row is row
    assert f"{kind.__module__}.{kind.__qualname__}" == dotted
    assert kind.__doc__ is not None
    said = kind.__doc__ or ""
    assert row.tex in said and row.paper in said
    shown = repr(kind())
    assert all(f"{name}=" in shown or p.init_argument for name, p in row.parameters.items())
    assert ("num_parameters=1" in shown) == row.learnable


@elementwise
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4), (2, 3, 2, 2)])
def test_any_shape(row: Activation, shape: tuple[int, ...]):
    """Values keep the shape of the input, also of one number or of none, and the input is left alone."""
    x = torch.linspace(-2, 2, int(np.prod(shape)), dtype=torch.float64).reshape(shape).requires_grad_()
    before = x.detach().clone()
    y = apply(x, *row.arguments().values(), row=row.name)
    y.sum().backward()
    assert y.shape == shape
    np.testing.assert_allclose(y.detach(), row.f(before.numpy(), **row.arguments()), rtol=1e-12, atol=1e-14)
    assert x.grad is not None and x.grad.shape == shape
    assert torch.equal(x, before)


@each_learnt
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_learnt_parameters_of_each_channel(row: Activation, large: bool):
    """With one parameter a channel, each gets the gradient that it gets alone, in small tensors and in large."""
    channels, length = 3, 30000 if large else 4
    kind = resolve(row.module)
    x = torch.randn(4, channels, length, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = kind(num_parameters=channels).double()
    with torch.no_grad():
        for parameter in together.parameters():
            parameter.add_(torch.tensor([0.0, 0.1, 0.2]))
    together(x).square().sum().backward()
    for c in range(channels):
        alone = kind().double()
        with torch.no_grad():
            for parameter, whole in zip(alone.parameters(), together.parameters(), strict=True):
                parameter.fill_(whole[c])
        for sample in x[:, c]:  # one at a time, which is too small to be walked through in pieces
            alone(sample).square().sum().backward()
        for parameter, whole in zip(alone.parameters(), together.parameters(), strict=True):
            assert parameter.grad is not None and whole.grad is not None
            torch.testing.assert_close(whole.grad[c], parameter.grad[0])


@each_learnt
def test_one_learnt_number_gets_the_gradient_of_all(row: Activation):
    """What a row learns, as one number for a large tensor, gets the sum of the gradients that pieces of it give."""
    x = 2 * torch.randn(300_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    above = torch.randn(300_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole, piecewise = resolve(row.module)().double(), resolve(row.module)().double()
    whole(x).backward(above)
    for part, g in zip(x.split(50_000), above.split(50_000), strict=True):  # too small to be walked through in blocks
        piecewise(part).backward(g)
    for one, other in zip(whole.parameters(), piecewise.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def _both(name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = x.clone().requires_grad_()
    y = module(name)(leaf)
    (gradient,) = torch.autograd.grad(y, leaf, y.detach().cos())
    return y.detach(), gradient


@pytest.mark.parametrize("name", [row.name for row in activations() if row.name in VALUES or row.name in GRADIENTS])
def test_kernels_are_thread_safe_and_leave_no_trace(name: str):
    """Threads at once, inference mode before, any order of dimensions and another shape before: the same numbers."""
    x = torch.randn(300, 1000, generator=torch.Generator().manual_seed(0))
    expected = _both(name, x)
    _both(name, torch.cat([x, x]).reshape(2, -1, 1000))

    def after_inference(_: int) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            module(name)(x)
        return _both(name, x)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(after_inference, range(8)))
    for value, gradient in found:
        assert torch.equal(value, expected[0])
        assert torch.equal(gradient, expected[1])
    image = x.reshape(3, 100, 100, 10)
    turned = image.to(memory_format=torch.channels_last)
    for straight, also in zip(_both(name, image), _both(name, turned), strict=True):
        torch.testing.assert_close(also, straight)


def test_kernels_are_of_rows():
    """Every kernel is of a row of the catalogue, and what learns is not forgotten in its gradient."""
    rows = {row.name: row for row in activations()}
    assert {*VALUES, *GRADIENTS} <= {*rows}
    assert {name for name in GRADIENTS if rows[name].learnable} == {"star_relu", "swish"}


def test_kernels_decline_what_they_have_no_digits_for():
    """One number far left in a large tensor changes neither the others' values nor its own digits."""
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    for name in ("logish", "smish"):
        near = _both(name, x)
        far = x.clone()
        far[7] = -90.0
        value, gradient = _both(name, far)
        true = activation(name).f(np.float64(-90.0))
        assert float(value[7]) == pytest.approx(float(true), rel=1e-4)
        others = torch.arange(len(x)) != 7
        torch.testing.assert_close(value[others], near[0][others])
        torch.testing.assert_close(gradient[others], near[1][others], rtol=1e-5, atol=1e-6)


@each_learnt
def test_learnt_parameters_keep_their_dtype(row: Activation):
    """Half inputs and float32 parameters, as under autocast, give half values and float32 gradients."""
    built = resolve(row.module)()
    y = built(torch.linspace(-2, 2, 8, dtype=torch.bfloat16).reshape(4, 2))
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in built.parameters())


@pytest.mark.parametrize("row", [row for row in activations() if row.operands == 2 and row.layout != "across"])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_operands_lie_along_dim(row: Activation, dim: int):
    """Several operands are equal parts of the dimension that is asked for; the result is that much narrower."""
    x = torch.randn(4, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b = x.chunk(2, dim)
    expected = row.f(a.numpy(), b.numpy())
    np.testing.assert_allclose(module(row, dim=dim)(x), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("row", "shape", "dim", "message"),
    [
        ("swiglu", (2, 3), -1, r"swiglu splits dimension -1 into 2 equal parts, but the input has shape \(2, 3\)"),
        ("swiglu", (), -1, r"swiglu works along dimension -1, but the input has shape \(\).\nSet dim"),
        ("crelu", (2,), 1, r"crelu works along dimension 1, but the input has shape \(2,\)"),
        ("maxout", (2, 3), 1, "Give the layer before it 2 times as many units"),
    ],
)
def test_shapes_that_do_not_split_are_refused(row: str, shape: tuple[int, ...], dim: int, message: str):
    """An input that has no such dimension, or no equal parts of it, is an error that says so."""
    with pytest.raises(ActivationError, match=message):
        apply(torch.zeros(shape), row=row, dim=dim)


@each_learnt
def test_wrong_number_of_channels_is_refused(row: Activation):
    """As many parameters as there are no channels are an error that says where channels are."""
    built = resolve(row.module)(num_parameters=5)
    with pytest.raises(ActivationError, match=r"parameters for 5 channels, but the input has shape \(2, 3\)"):
        built(torch.zeros(2, 3))


@pytest.mark.parametrize("name", ["swish", "srelu", "serf"])
def test_own_modules_are_grafted(name: str):
    """A swap to one of relume's own functions puts its module there, as one site; what it learns is trained."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(x)))

    model, x = Net(), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    treated = treat(model, torch.optim.SGD(model.parameters(), lr=0.1), swap_to(name), example_input=x)
    (site,) = find_sites(treated.model, x)
    assert (site.activation, site.layer, site.units) == (name, "first", 8)
    own = [m for m in treated.model.modules() if isinstance(m, Curve)]
    assert [type(m) for m in own] == [resolve(activation(name).module)]
    assert treated.optimizer is not None
    held = {id(p) for group in treated.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in own[0].parameters()} <= held


def test_unknown_classes_are_attribute_errors():
    """A name that relume.nn does not have is an error that lists what it has."""
    with pytest.raises(AttributeError, match=r"relume.nn has no 'Swosh'. It has: Curve, apply, module"):
        relume.nn.Swosh  # noqa: B018 - reading it is the test


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("relu", {"slope": 0.1}, r"relu takes no argument 'slope'.\nIts arguments: inplace"),
        ("gelu", {"approximate": "tanh"}, r"gelu takes no argument 'approximate'.\nIts arguments: none"),
        ("prelu", {"init": 0.1}, r"prelu takes no argument 'init'.\nIts arguments: weight, num_parameters"),
        ("exp", {"args": 1}, r"exp takes no argument 'args'.\nIts arguments: none"),
        ("celu", {"alpha": 0.0}, "celu: alpha is 0.0, but must lie between"),
        ("relo", {}, "no activation named 'relo'"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, arguments: dict[str, Any], message: str):
    """Unknown names and arguments, and numbers out of bounds, are errors that say what there is."""
    with pytest.raises(ActivationError, match=message):
        module(name, **arguments)


def test_examples_run():
    """The examples in the docstrings give what they say."""
    outcome = doctest.testmod(relume.nn)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_half_gradients_of_parameters_are_summed_in_single_precision():
    """Over millions of numbers bfloat16 sums would stop growing, block by block."""
    x = (torch.rand(4_000_000, generator=torch.Generator().manual_seed(0)) + 0.5).bfloat16()
    layer = module("swish").bfloat16()
    layer(x).backward(torch.full_like(x, 2.0**-10))
    wide = x.double()
    logistic = wide.sigmoid()
    expected = float((2.0**-10 * wide * wide * logistic * (1 - logistic)).sum())
    (beta,) = layer.parameters()
    assert beta.grad is not None
    assert float(beta.grad) == pytest.approx(expected, rel=2**-8)


def test_apply_refuses_what_it_does_not_know():
    """An unknown row is told the closest names, and a row without all of its parameters what they are."""
    x = torch.zeros(3)
    with pytest.raises(ActivationError, match=r"no activation named 'swsh'.\nClosest: swish"):
        relume.nn.apply(x, row="swsh")
    with pytest.raises(ActivationError, match=r"elu takes 1 parameters, and 0 were given.\nIn this order: alpha"):
        relume.nn.apply(x, row="elu")
    with pytest.raises(ActivationError, match=r"relu takes 0 parameters, and 1 were given"):
        relume.nn.apply(x, 1.0, row="relu")
