"""Combined remedies, and those for targets, outputs, gradients and depth."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from wanting import Detached, shut, wanting

from relume.errors import RemedyError
from relume.remedies import REMEDIES, combined, find_remedy, treat
from relume.report import words
from relume.training import Training
from relume.trial import trial

torch.set_num_threads(1)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, count: int) -> float:
    loss = torch.tensor(math.nan)
    for _ in range(count):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


# combinations -------------------------------------------------------------------------------------------------------


def test_a_combination_does_what_its_parts_do_in_order():
    """A trained network gets its rate lowered and its dead units redrawn, and keeps its function."""
    model, optimizer, x, y = wanting("recycle")
    steps(model, optimizer, x, y, 3)
    shut(model)
    both = treat(model, optimizer, "lower_learning_rate+recycle", example_input=x)
    assert both.optimizer is not None
    assert both.remedy == "lower_learning_rate+recycle"
    assert both.keeps_function
    assert both.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    first: Any = both.model[0]  # type: ignore[index]  # a Sequential
    assert bool((first.bias.abs() < 100).all())
    assert {"parameter group 0", "1"} <= set(both.changes)


def test_words_of_both_stand_where_both_changed_one_place():
    """Two remedies of one place leave both sentences there; the function is kept only if both keep it."""
    model, optimizer, x, _ = wanting("he_init")
    rates = treat(model, optimizer, "lower_learning_rate+raise_learning_rate", example_input=x)
    assert rates.changes["parameter group 0"].count("became") == 2
    assert not treat(model, optimizer, "he_init+lower_learning_rate", example_input=x).keeps_function


def test_a_combination_is_found_by_name_and_has_words():
    """Its name is read back, with spaces too, and a report says it in words."""
    made = combined("lower_learning_rate", REMEDIES["recycle"])
    assert find_remedy("lower_learning_rate + recycle").name == made.name == "lower_learning_rate+recycle"
    assert words.remedy(made.name) == "lower learning rate + recycle"
    own = combined(made, "prelu")
    assert own.name == "lower_learning_rate+recycle+prelu"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("prelu+prelu", "two or more different remedies; found prelu, prelu"),
        ("prelu+recicle", "no remedy named 'recicle'.\nDid you mean recycle"),
    ],
)
def test_what_is_no_combination_says_why(name: str, message: str):
    """A name twice, and one that is not there."""
    with pytest.raises(RemedyError, match=message):
        find_remedy(name)


def test_half_a_combination_is_not_applied():
    """Where one part cannot be applied, the error names it and its reason."""
    model, optimizer, x, _ = wanting("prelu")
    with pytest.raises(
        RemedyError, match=r"prelu\+recycle cannot be applied, for recycle cannot\.\nrecycle has nothing"
    ):
        treat(model, optimizer, "prelu+recycle", example_input=x)


def test_a_combination_is_an_arm_of_a_trial():
    """A trial trains it beside the untreated network, under its name."""
    _, _, x, y = wanting("prelu")
    training = Training(
        model=lambda: wanting("prelu")[0],
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-9),
        loss=F.mse_loss,
        batches=[(x[:50], y[:50]), (x[50:100], y[50:100])],
        steps=5,
    )
    result = trial(training, ["prelu+raise_learning_rate"], seeds=2, engine="sequential")
    arm = result.arm("prelu+raise_learning_rate")
    assert not arm.failure
    assert "learning rate 1e-09 became 1e-08" in arm.changes["parameter group 0"]


# rates, decay, gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("lower_learning_rate", 0.1), ("lower_learning_rate_100x", 0.01), ("lower_learning_rate_1000x", 0.001),
        ("raise_learning_rate", 10), ("raise_learning_rate_100x", 100), ("raise_learning_rate_1000x", 1000),
        ("raise_learning_rate_10000x", 10_000),
    ],
)  # fmt: skip
def test_a_rate_is_multiplied(name: str, factor: float):
    """Also that which a scheduler made later begins with."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr": 0.2, "initial_lr": 0.4}])
    treated = treat(model, optimizer, name)
    assert treated.optimizer is not None
    group = treated.optimizer.param_groups[0]
    assert (group["lr"], group["initial_lr"]) == (pytest.approx(0.2 * factor), pytest.approx(0.4 * factor))


def test_no_weight_decay():
    """Every group loses it; where there is none the remedy says so."""
    model, optimizer, _, _ = wanting("no_weight_decay")
    treated = treat(model, optimizer, "no_weight_decay")
    assert treated.optimizer is not None
    assert [group["weight_decay"] for group in treated.optimizer.param_groups] == [0.0]
    with pytest.raises(RemedyError, match="no parameter group has weight decay"):
        treat(treated.model, treated.optimizer, "no_weight_decay")


@pytest.mark.parametrize("closure", [False, True])
def test_a_step_with_a_gradient_that_is_not_finite_is_left_out(closure: bool):
    """One NaN batch moves nothing, not even by momentum; the next good one does."""
    model, _, x, y = wanting("prelu")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    treated = treat(model, optimizer, "skip_non_finite", example_input=x)
    model, driver = treated.model, treated.optimizer
    assert driver is not None

    def step(inputs: Tensor) -> None:
        def loss() -> Any:
            driver.zero_grad()
            value = F.mse_loss(model(inputs), y)
            value.backward()
            return value

        if closure:
            driver.step(loss)
        else:
            loss()
            driver.step()

    step(x)
    before = copy.deepcopy(model.state_dict())
    step(x * math.nan)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    step(x)
    assert not torch.equal(before["0.weight"], model.state_dict()["0.weight"])


def test_parameters_that_no_optimizer_knew_are_trained():
    """They join it and move; frozen ones do not; where none is missing the remedy says so."""
    model, optimizer, x, y = wanting("train_all")
    model[2].weight.requires_grad = False  # type: ignore[index, union-attr]  # a Sequential of Linear
    treated = treat(model, optimizer, "train_all", example_input=x)
    assert treated.optimizer is not None
    driven = {id(p) for group in treated.optimizer.param_groups for p in group["params"]}
    assert driven == {id(p) for p in treated.model.parameters() if p.requires_grad}
    before = copy.deepcopy(treated.model.state_dict())
    steps(treated.model, treated.optimizer, x, y, 2)
    moved = {name for name, value in treated.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(before) - {"2.weight"}
    with pytest.raises(RemedyError, match="drives every parameter"):
        treat(treated.model, treated.optimizer, "train_all")


def test_a_detach_in_the_network_passes_the_gradient_on():
    """The gradient is that of the same network without the detach; afterwards detach is itself again."""
    model, optimizer, x, y = wanting("keep_gradient")
    treated = treat(model, optimizer, "keep_gradient", example_input=x)
    twin: Any = copy.deepcopy(treated.model)
    F.mse_loss(twin(x), y).backward()
    first, second = twin.first, twin.second
    expected = torch.autograd.grad(F.mse_loss(second(torch.relu(first(x))), y), first.weight)[0]
    assert torch.equal(first.weight.grad, expected)
    assert not twin(x).detach().requires_grad
    plain = Detached()
    F.mse_loss(plain(x), y).backward()
    assert plain.first.weight.grad is None


def test_a_detach_stays_undone_under_a_watch_and_after_an_error():
    """A step that relume reads has the same gradient, and a forward that fails leaves no trace."""
    from relume.watch import watch

    model, optimizer, x, y = wanting("keep_gradient")
    treated = treat(model, optimizer, "keep_gradient", example_input=x)
    network: Any = treated.model
    with watch(network, treated.optimizer) as seen:
        for _ in range(3):
            loss = F.mse_loss(network(x), y)
            network.zero_grad()
            loss.backward()
            assert float(network.first.weight.grad.abs().sum()) > 0
            seen.step(loss)
    with pytest.raises(RuntimeError):
        network(x[:, :3])
    assert not (x * network.first.weight.sum()).detach().requires_grad


def test_no_detach_no_remedy():
    """It says so, and where else to look."""
    model, optimizer, x, _ = wanting("prelu")
    with pytest.raises(RemedyError, match=r"detaches nothing that had a gradient\.\nLook for torch\.no_grad"):
        treat(model, optimizer, "keep_gradient", example_input=x)

    class Opaque(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    with pytest.raises(RemedyError, match="keep_gradient has to run the network once"):
        treat(Opaque(), None, "keep_gradient")


# targets and outputs ------------------------------------------------------------------------------------------------


def test_standardised_targets_are_learnt_as_if_the_user_had_scaled_them():
    """Plain SGD takes the very steps it takes on standardised targets, and the answers are in the targets' units."""
    model, _, x, y = wanting("scale_targets")
    mean, std = y.mean(0), y.std(0, correction=0)
    ours = treat(model, torch.optim.SGD(model.parameters(), lr=0.1), "scale_targets", example_input=x, targets=[y])
    assert ours.optimizer is not None
    twin = copy.deepcopy(model)
    for net, optimizer, target in (
        (ours.model, ours.optimizer, y),
        (twin, torch.optim.SGD(twin.parameters(), lr=0.1), (y - mean) / std),
    ):
        steps(net, optimizer, x, target, 50)
    assert torch.allclose((ours.model(x) - mean) / std, twin(x), atol=1e-4)
    assert abs(float(ours.model(x).detach().mean()) - float(y.mean())) < 20
    assert "target_std" in ours.model.state_dict()


def test_a_trial_hands_targets_to_the_remedy():
    """Untreated, plain SGD diverges on targets of this size; with the remedy it learns."""
    _, _, x, y = wanting("scale_targets")
    training = Training(
        model=lambda: wanting("scale_targets")[0],
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        loss=F.mse_loss,
        batches=[(x[i : i + 100], y[i : i + 100]) for i in range(0, 1000, 100)],
        steps=40,
    )
    result = trial(training, ["scale_targets"], seeds=2, engine="sequential")
    assert all(score is None or score < -1e6 for score in result.control.scores)
    healed = result.arm("scale_targets").scores
    assert len(healed) == 2
    assert all(score is not None and score > -1.5 * float(y.var()) for score in healed)


@pytest.mark.parametrize(
    ("targets", "trained", "message"),
    [
        ([], False, "none were given.\nPass targets="),
        ([torch.ones(1000, 3) * 300], True, "partly trained: what it learned would be lost"),
        ([torch.zeros(1000, dtype=torch.long)], False, "targets that are numbers, one for each output"),
        ([torch.zeros(1000, 2)], False, "The network's outputs have shape"),
        ([torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))], False, "has nothing to do: every target"),
    ],
)
def test_targets_that_cannot_be_scaled(targets: list[Tensor], trained: bool, message: str):
    """Each reason is said."""
    model, optimizer, x, _ = wanting("scale_targets")
    with pytest.raises(RemedyError, match=message):
        treat(model, optimizer, "scale_targets", example_input=x, targets=targets, trained=trained)


def test_targets_are_scaled_once():
    """A second time it says that they are."""
    model, optimizer, x, y = wanting("scale_targets")
    once = treat(model, optimizer, "scale_targets", example_input=x, targets=[y])
    with pytest.raises(RemedyError, match="was applied before"):
        treat(once.model, once.optimizer, "scale_targets", example_input=x, targets=[y])


def test_the_output_loses_its_activation_and_nothing_else():
    """Outputs are those of the network without its last module; hidden activations stay."""
    model, optimizer, x, _ = wanting("linear_output")
    treated = treat(model, optimizer, "linear_output", example_input=x)
    assert torch.equal(treated.model(x), model[:-1](x))  # type: ignore[index]  # a Sequential
    assert list(treated.changes.values()) == ["relu removed"]
    with pytest.raises(RemedyError, match="No activation stands on the network's output"):
        treat(treated.model, treated.optimizer, "linear_output", example_input=x)


# depth --------------------------------------------------------------------------------------------------------------


class Functional(nn.Module):
    """The same network as a Sequential of four layers, written with functions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:  # type: ignore[union-attr]  # a slice of a ModuleList is one
            x = F.relu(layer(x))
        return self.layers[-1](x)


@pytest.mark.parametrize("functional", [False, True])
def test_residual_connections_are_those_written_by_hand(functional: bool):
    """Layers of one width add a share of their result to what they read; the others stay; gradients are the same."""
    torch.manual_seed(0)
    plain = Functional()
    layers: Any = plain.layers
    model = plain if functional else nn.Sequential(
        layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.ReLU(), layers[3]
    )  # fmt: skip
    x = torch.randn(32, 8)
    treated = treat(model, None, "residual", example_input=x)

    h = F.relu(layers[0](x))
    for layer in (layers[1], layers[2]):
        h = h + F.relu(layer(h)) / math.sqrt(2)
    expected = layers[3](h)
    got = treated.model(x)
    assert torch.allclose(got, expected, atol=1e-6)
    expected.square().mean().backward()
    got.square().mean().backward()
    pairs = [(p.grad, q.grad) for p, q in zip(treated.model.parameters(), model.parameters(), strict=True)]
    assert all(a is not None and b is not None and torch.allclose(a, b, atol=1e-6) for a, b in pairs)
    assert sum("of it is added" in words for words in treated.changes.values()) == 2


def test_residual_wants_layers_of_one_width():
    """Otherwise it says why each was left."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(RemedyError, match="2 changes the number of values"):
        treat(model, None, "residual", example_input=torch.randn(5, 8))


@pytest.mark.parametrize(("padding", "stride", "fits"), [(1, 1, True), ("same", 1, True), (0, 1, False), (1, 2, False)])
def test_residual_around_convolutions(padding: Any, stride: int, fits: bool):
    """Those that keep the size of the image."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, stride, padding), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    )
    x = torch.randn(5, 1, 8, 8)
    model(x)
    if fits:
        assert treat(model, None, "residual", example_input=x).changes["3"].startswith("1 of it is added")
    else:
        with pytest.raises(RemedyError, match="2 changes the number of values"):
            treat(model, None, "residual", example_input=x)
