"""The catalogue from outside: looking a row up, the errors it raises, and rows of one's own."""

import doctest
import math
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from relume.activations import ACTIVATIONS, Activation, Parameter, Tail, activation, activations, catalogue
from relume.activations import row as row_module
from relume.errors import ActivationError

each_row = pytest.mark.parametrize("row", activations(), ids=lambda row: row.name)
each_row_with_parameters = pytest.mark.parametrize(
    "row", [row for row in activations() if row.parameters], ids=lambda row: row.name
)


def test_look_up():
    """A name gives its row, a row gives itself, and the list has every row once."""
    assert activation("gelu") is ACTIVATIONS["gelu"]
    assert activation(ACTIVATIONS["gelu"]) is ACTIVATIONS["gelu"]
    assert list(ACTIVATIONS) == [row.name for row in activations()]


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("ReLU", "relu"),
        ("torch.nn.SiLU", "silu"),
        ("leaky-relu", "leaky_relu"),
        ("sigmiod", "sigmoid"),
        ("Gelu", "gelu"),
    ],
)
def test_an_unknown_name_is_told_the_closest(name: str, closest: str):
    """The error names what was asked, and the nearest row first."""
    with pytest.raises(ActivationError, match=rf"no activation named '{name}'.\nClosest: {closest}\b"):
        activation(name)


def test_a_name_like_no_other_is_told_all():
    """Where nothing is close the error lists every name."""
    with pytest.raises(ActivationError, match=r"There are: sigmoid, tanh, .*log_softmax"):
        activation("zzzzzz")


@pytest.mark.parametrize("name", [3, None, torch.relu, ["relu"]])
def test_a_name_that_is_no_string(name: Any):
    """Anything but a string or a row is an error that says what to pass."""
    with pytest.raises(ActivationError, match="by its name, a string such as 'relu'"):
        activation(name)


@each_row
def test_an_unknown_parameter_is_refused(row: Activation):
    """A parameter that the function does not have is an error that lists those it has."""
    with pytest.raises(ActivationError, match=rf"{row.name} has no parameter 'no_such'.\nIts parameters: "):
        row.tails(no_such=1.0)


@each_row_with_parameters
def test_parameters_out_of_bounds_are_refused(row: Activation):
    """A value outside a parameter's bounds, and NaN always, is an error that gives the bounds."""
    for name, bounds in row.parameters.items():
        assert bounds.low <= bounds.default <= bounds.high
        for value in (bounds.low - 1, math.nan):
            if value != bounds.low:  # an open bound has nothing below it
                with pytest.raises(ActivationError, match=f"{row.name}: {name} is .* must lie between"):
                    row.arguments(**{name: value})


def test_a_row_of_ones_own():
    """A row made outside the catalogue derives its facts like any other."""
    steep = replace(activation("relu"), name="steep", f=lambda x: 3 * np.maximum(x, 0), df=lambda x: 3.0 * (x > 0))
    steep = replace(steep, right=Tail(3.0, knee=0.0), parameters={"unused": Parameter(default=1.0)})
    assert activation(steep) is steep
    steep = replace(steep, parameters={})
    assert steep.max_slope == 3
    assert steep.second_moment == pytest.approx(4.5)
    assert steep.flat_edges(0.0) == (0.0, math.inf)


def test_tails_and_parameters_survive_pickling():
    """The plain records of a row can be sent to another process."""
    for record in (Tail(0.0, knee=1.0), Parameter(default=1.0)):
        assert pickle.loads(pickle.dumps(record)) == record


@pytest.mark.parametrize("module", [row_module, catalogue], ids=lambda module: module.__name__)
def test_examples_run(module: Any):
    """The examples in the docstrings give what they say."""
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0
    assert outcome.failed == 0
