"""Modules built from rows of the catalogue."""

import copy
import doctest
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import relume.nn
from relume.activations import Activation, activations
from relume.errors import ActivationError
from relume.nn import Exp, module, resolve

each_row = pytest.mark.parametrize("row", activations(), ids=lambda row: row.name)


@each_row
def test_every_row_builds_its_module(row: Activation):
    """The module is new each time, of the row's class, and computes the row's values, by row or by name."""
    x = np.linspace(-8, 8, 161)
    built = module(row).double().eval()
    assert type(built) is resolve(row.module)
    assert built is not module(row)
    assert repr(module(row.name)) == repr(module(row))
    np.testing.assert_allclose(built(torch.from_numpy(x)).detach(), row.f(x, **row.arguments()), rtol=1e-12, atol=1e-14)


@each_row
def test_parameters_reach_the_module(row: Activation):
    """Each parameter, moved to half its default, moves the module's values as it moves the row's."""
    x = np.linspace(-25, 25, 161)
    for name, parameter in row.parameters.items():
        given = {name: parameter.default / 2}
        built = module(row, **given).double().eval()
        expected = row.f(x, **row.arguments(**given))
        np.testing.assert_allclose(built(torch.from_numpy(x)).detach(), expected, rtol=1e-12, atol=1e-14)


@each_row
def test_modules_can_be_copied_and_pickled(row: Activation):
    """Copies and pickles of a module give the same values."""
    x = torch.linspace(-3, 3, 13)
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


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)])
def test_exp_is_torch_exp(shape: tuple[int, ...]):
    """Exp gives e^x with its gradient, for any shape, and leaves its input alone."""
    x = torch.linspace(-2, 2, int(np.prod(shape)), dtype=torch.float64).reshape(shape).requires_grad_()
    before = x.detach().clone()
    y = Exp()(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(y, torch.exp(before))
    assert torch.equal(x.grad, torch.exp(before))
    assert torch.equal(x, before)


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
