"""Sites are found at call level, whatever way the activation is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from relume.activations import ACTIVATIONS, Activation
from relume.nn import apply, module, resolve
from relume.sites import Trace, find_sites, is_site

X = torch.linspace(-1, 1, 24).reshape(4, 6)


class Calls(nn.Module):
    """One layer, then whatever the test calls."""

    def __init__(self, then: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)
        self.out = nn.Linear(5, 2)
        self._then = then

    def forward(self, x: Tensor) -> Any:
        return self.out(self._then(self.fc(x)))


WRITTEN = {
    "F.relu": F.relu,
    "F.relu in place": lambda z: F.relu(z, inplace=True),
    "torch.relu": torch.relu,
    "x.relu()": lambda z: z.relu(),
    "x.relu_()": lambda z: z.relu_(),
    "torch.clamp from 0": lambda z: torch.clamp(z, min=0),
    "x.clamp_min(0)": lambda z: z.clamp_min(0),
    "torch.maximum with 0": lambda z: torch.maximum(z, torch.zeros_like(z)),
    "torch.max with 0": lambda z: torch.max(z, torch.tensor(0.0)),
    "F.threshold": lambda z: F.threshold(z, 0, 0),
    "checkpointed": lambda z: checkpoint(F.relu, z, use_reentrant=False),
    "checkpointed, reentrant": lambda z: checkpoint(F.relu, z, use_reentrant=True),
}


@pytest.mark.parametrize("written", WRITTEN)
def test_a_relu_is_found_however_it_is_written(written: str) -> None:
    """Every way to write a ReLU is one site, of the layer that feeds it."""
    (site,) = find_sites(Calls(WRITTEN[written]), X)
    assert (site.activation, site.layer, site.units, site.output) == ("relu", "fc", 5, False)
    assert (site.weight, site.bias) == ("fc.weight", "fc.bias")


@pytest.mark.parametrize("name", [name for name, row in ACTIVATIONS.items() if is_site(row) and row.functions])
def test_every_function_of_the_catalogue_is_a_site(name: str) -> None:
    """The module of each row is found under the row's own name, in its own place."""
    model = nn.Sequential(nn.Linear(6, 5), module(name), nn.Linear(5, 2))
    (site,) = find_sites(model, X)
    if name == "relu6":  # torch's module calls F.relu6 or, in older versions, F.hardtanh(0, 6): the same function
        assert site.activation in ("relu6", "hardtanh")
    else:
        assert site.activation == name
    assert (site.name, site.layer) == ("1", "0")


def test_parameters_of_the_call_are_read() -> None:
    """The slope that the caller gave is the site's, not the default."""
    (site,) = find_sites(Calls(lambda z: F.leaky_relu(z, 0.3)), X)
    assert dict(site.parameters) == {"negative_slope": pytest.approx(0.3)}


def test_a_shared_module_called_three_times_is_three_sites() -> None:
    """Each call of a shared module is a site with its own layer and width."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.act = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.c(self.act(self.b(self.act(self.a(x))))))

    sites = find_sites(Shared(), X)
    assert [(s.name, s.layer, s.units) for s in sites] == [("act", "a", 5), ("act#2", "b", 4), ("act#3", "c", 3)]
    assert [s.output for s in sites] == [False, False, True]


def test_channels_are_the_units_of_a_convolution() -> None:
    """After a convolution and its BatchNorm the units are channels, and the layers are named nearest first."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))
    (site,) = find_sites(model, torch.randn(2, 1, 8, 8))
    assert (site.units, site.axis, site.layers, site.normalised) == (8, -3, ("1", "0"), True)
    (site,) = find_sites(nn.Sequential(nn.Conv1d(3, 7, 2), nn.ReLU()), torch.randn(2, 3, 9))
    assert (site.units, site.axis) == (7, -2)


def test_the_transformers_own_call_is_seen() -> None:
    """nn.TransformerEncoderLayer applies its activation in a call of its own, also where eval has a fast path."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
    for model in (layer, layer.eval()):
        (site,) = find_sites(model, torch.randn(2, 3, 8))
        assert (site.activation, site.units, site.axis, site.layer) == ("gelu", 16, -1, "linear1")


def test_a_residual_add_keeps_the_layer() -> None:
    """The units of a sum are those of the layer that was added."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(x + self.a(x)))

    (site,) = find_sites(Residual(), X)
    assert (site.layer, site.units, site.output) == ("a", 6, False)


@pytest.mark.parametrize(
    ("model", "inputs", "word"),
    [
        (nn.LSTM(6, 3), X, "LSTM"),
        (nn.GRU(6, 3), X, "GRU"),
        (Calls(lambda z: z * (z > 0)), X, "arithmetic"),
        (Calls(lambda z: z * (z > 0).float()), X, "arithmetic"),
        (Calls(lambda z: 1 / (1 + torch.exp(-z))), X, "exp()"),
        (Calls(torch.sin), X, "sin()"),
        (Calls(lambda z: z.clamp(0, 1)), X, "clamp()"),
        (Calls(lambda z: torch.where(z > 0, z, 0.1 * z)), X, "arithmetic"),
    ],
)
def test_what_cannot_be_seen_is_said(model: nn.Module, inputs: Tensor, word: str) -> None:
    """Fused kernels and activations written as arithmetic are blind spots, by name."""
    with Trace(model) as trace:
        model(inputs)
    assert trace.sites == () and trace.error is None
    assert any(word in sentence for sentence in trace.blind)


def test_a_softmax_is_no_site_and_a_mask_on_raw_input_no_blind_spot() -> None:
    """What is no activation of units is neither found nor complained of."""
    model = Calls(lambda z: F.softmax(z, -1))
    with Trace(model) as trace:
        model(X * (X > 0))
    assert trace.sites == () and not trace.blind


def test_finding_sites_changes_nothing() -> None:
    """Buffers, gradients, modes and the random generator are bit-identical afterwards."""
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.ReLU())
    model(X).sum().backward()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gradients = [p.grad for p in model.parameters()]
    state = torch.get_rng_state()
    find_sites(model, X)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(a is b for a, b in zip(gradients, (p.grad for p in model.parameters()), strict=True))
    assert torch.equal(state, torch.get_rng_state()) and model.training


def test_an_error_of_the_model_is_the_models() -> None:
    """What the model raises comes out as it is, and no hook or mode stays behind."""

    def fail(z: Tensor) -> Tensor:
        raise ValueError("my own mistake")

    with pytest.raises(ValueError, match="my own mistake"):
        find_sites(Calls(fail), X)
    assert not torch.overrides._get_current_function_mode_stack()
    assert not nn.modules.module._global_forward_hooks and not nn.modules.module._global_forward_pre_hooks


OWN_CLASSES = [
    (row, dotted)
    for row in ACTIVATIONS.values()
    for dotted in (row.module, row.kept)
    if dotted.startswith("relume.nn.")
]


@pytest.mark.parametrize(("row", "dotted"), OWN_CLASSES, ids=[dotted for _, dotted in OWN_CLASSES])
def test_own_modules_are_one_site(row: Activation, dotted: str):
    """A module of relume.nn is one site under its own name, or none where it reads or gives several numbers."""
    own = resolve(dotted)()
    model = nn.Sequential(nn.Linear(4, 8), own, nn.LazyLinear(2))
    model(torch.zeros(3, 4))
    with Trace(model) as trace:
        model(torch.zeros(3, 4))
    if row.layout != "elementwise":
        assert trace.sites == ()
        return
    (site,) = trace.sites
    assert (site.name, site.activation, site.layer, site.weight, site.units) == ("1", row.name, "0", "0.weight", 8)
    assert site.parameters == pytest.approx(row.arguments())
    assert not site.output
    assert not trace.blind


@pytest.mark.parametrize(
    ("function", "blind"),
    [
        (F.glu, ["after 0: glu() gates one half by the other, which is no site"]),
        (nn.GLU(), ["after 0: glu() gates one half by the other, which is no site"]),
        (lambda x: apply(x, row="swiglu"), ["after 0: swiglu() gates one half by the other, which is no site"]),
        (nn.Softmax(dim=-1), []),
        (lambda x: F.log_softmax(x, dim=-1), []),
        (lambda x: x.softmax(-1), []),
    ],
    ids=["glu", "GLU", "swiglu", "Softmax", "log_softmax", "method"],
)
def test_functions_of_several_numbers_are_no_sites(function: Callable[[Tensor], Tensor], blind: list[str]):
    """A gate or a softmax is no site; that a gate is not seen is said."""

    class Net(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return function(super().forward(input))

    model = Net(nn.Linear(4, 8))
    with Trace(model) as trace:
        model(torch.zeros(3, 4))
    assert trace.error is None
    assert trace.sites == ()
    assert list(trace.blind) == blind


def test_own_functions_are_sites_too():
    """A call of relume.nn.apply is a site that bears its function's name."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            return apply(self.layer(x), row="gelu")

    (site,) = find_sites(Net(), torch.zeros(3, 4))
    assert (site.name, site.activation, site.layer) == ("gelu", "gelu", "layer")
