"""A copy that was treated can be put into the user's own objects, and taken out again without a trace."""

from __future__ import annotations

import copy
import decimal
from collections.abc import Callable
from typing import Any

import nets
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, StepLR
from wanting import shut, wanting

from relume.adoption import (
    Twin,
    hold_rates,
    is_compiled,
    keep_schedule,
    loop_rates,
    rates_of,
    scale_rates,
    scheduled,
    settings_of,
    structure,
)
from relume.remedies import REMEDIES, Network, operate
from relume.surgery import duplicate

STEPS = 3


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int = STEPS) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """All that a run goes on from, as copies; parameters by their place in the optimizer."""
    moments = optimizer.state_dict()
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    attributes = [sorted(vars(m)) for m in model.modules()]
    return copy.deepcopy((dict(model.state_dict()), moments, hooks, attributes, str(model)))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("name", REMEDIES)
def test_every_remedy_can_be_adopted_in_place_and_taken_back(name: str) -> None:
    """The user's own model gives the treated copy's outputs and goes on training; put back, it is bit-identical."""
    model, optimizer, x, y = wanting(name)
    fresh = REMEDIES[name].family in ("initialisation", "output")
    if not fresh:
        train(model, optimizer, x, y)
        shut(model)
    kept = dict(model.named_parameters())
    earlier = everything(model, optimizer)
    before, twin = Twin(model, optimizer), Twin(model, optimizer)
    network = Network(model=twin.model, optimizer=twin.optimizer, batches=(x,), targets=(y,), trained=not fresh)
    operate(network, REMEDIES[name])

    twin.settle()
    assert torch.equal(model.eval()(x), twin.model.eval()(x))
    model.train()
    twin.model.train()
    driven = [id(p) for group in optimizer.param_groups for p in group["params"]]
    mine = {id(p) for p in model.parameters()}
    assert len(driven) == len(set(driven)) and set(driven) <= mine
    assert set(driven) == mine or name != "train_all"
    train(model, optimizer, x, y)
    train(twin.model, twin.optimizer, x, y)
    assert same(everything(model, optimizer), everything(twin.model, twin.optimizer))
    assert not same(everything(model, optimizer), earlier)

    before.settle()
    assert same(everything(model, optimizer), earlier)
    assert all(p is kept[n] for n, p in model.named_parameters())
    train(model, optimizer, x, y, 1)
    train(before.model, before.optimizer, x, y, 1)
    assert same(everything(model, optimizer), everything(before.model, before.optimizer))


def test_what_the_user_holds_stays_in_use() -> None:
    """Parameters, the optimizer's groups and lists, hooks with their handles and objects of the user's are the same."""
    model, optimizer, x, y = wanting("leaky_relu")
    train(model, optimizer, x, y)
    settings: Any = object()
    model.settings = settings  # type: ignore[assignment]
    calls: list[int] = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    group, parameters = optimizer.param_groups[0], optimizer.param_groups[0]["params"]
    twin = Twin(model, optimizer)
    operate(Network(model=twin.model, optimizer=twin.optimizer, example=x), REMEDIES["prelu"])
    twin.settle()
    assert model.settings is settings and group is optimizer.param_groups[0] and parameters is group["params"]
    assert len(parameters) == 8  # two slopes beside six
    calls.clear()
    model(x)
    assert calls == [1]
    handle.remove()
    model(x)
    assert calls == [1]


def test_a_rewritten_forward_comes_and_goes() -> None:
    """Function calls become modules in the user's own network, whose code calls them; taken back, it is as it was."""
    model, x = nets.functional_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    earlier = everything(model, optimizer)
    before, twin = Twin(model, optimizer), Twin(model, optimizer)
    operate(Network(model=twin.model, optimizer=twin.optimizer, example=x), REMEDIES["prelu"])
    twin.settle()
    assert "forward" in vars(model) and torch.equal(model(x), twin.model(x))
    slopes = [p for p in model.parameters() if p.dim() == 1 and not any(p is q for q in before.model.parameters())]
    model(x).sum().backward()
    assert slopes and all(p.grad is not None for p in model.parameters())
    before.settle()
    assert "forward" not in vars(model) and torch.equal(model(x), before.model(x))
    assert same(everything(model, optimizer), earlier)


def test_what_compilation_left_on_a_module_stays() -> None:
    """An attribute that no copy carries, such as what `Module.compile` made, is not taken for one that went."""
    model, optimizer, x, _ = wanting("leaky_relu")
    model.compile(backend="eager")
    assert is_compiled(model) and not is_compiled(copy.deepcopy(model))
    twin = Twin(model, optimizer)
    twin.settle()
    assert is_compiled(model)
    assert is_compiled(torch.compile(nn.Linear(1, 1), backend="eager"))  # type: ignore[arg-type]
    del x


@pytest.mark.parametrize("name", ["leaky_relu", "prelu", "batch_norm", "residual", "scale_inputs", "keep_gradient"])
def test_a_changed_structure_is_noticed(name: str) -> None:
    """What a compiled network was compiled for differs after a remedy that changes modules or hooks."""
    model, optimizer, x, _ = wanting(name)
    before = structure(model)
    assert structure(copy.deepcopy(model)) == before
    operate(Network(model=model, optimizer=optimizer, batches=(x,)), REMEDIES[name])
    assert structure(model) != before


@pytest.mark.parametrize("name", ["lower_learning_rate", "he_init", "reset_bias", "clip_gradients"])
def test_numbers_alone_are_no_structure(name: str) -> None:
    """Weights and optimizer settings may change under a compiled network."""
    model, optimizer, x, _ = wanting(name)
    before = structure(model)
    operate(Network(model=model, optimizer=optimizer, batches=(x,)), REMEDIES[name])
    assert structure(model) == before


SCHEDULERS = {
    "step": lambda o: StepLR(o, 1, gamma=0.5),
    "lambda": lambda o: LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "one cycle": lambda o: OneCycleLR(o, max_lr=0.5, total_steps=20),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_lower_rate_survives_the_scheduler(kind: str) -> None:
    """With a scheduler, every step is a tenth of what it would be, and the scheduler's own course stays the same."""

    def steps(treat: bool) -> tuple[list[float], list[float]]:
        weight = nn.Parameter(torch.zeros(()))
        model = nn.Module()
        model.weight = weight  # type: ignore[assignment]
        optimizer = torch.optim.SGD([weight], lr=0.4)
        scheduler = SCHEDULERS[kind](optimizer)
        moved, rates = [], []
        for step in range(6):
            if treat and step == 2:
                twin, before = Twin(model, optimizer), settings_of(optimizer)
                for _ in range(2):  # twice a tenth: the factors multiply
                    REMEDIES["lower_learning_rate"].apply(Network(model=twin.model, optimizer=twin.optimizer))
                    keep_schedule(twin.optimizer, before)
                twin.settle()
            value = float(weight.detach())
            weight.grad = torch.ones(())
            optimizer.step()
            scheduler.step()
            moved.append(value - float(weight.detach()))
            rates.append(optimizer.param_groups[0]["lr"])
        return moved, rates

    (usual, rates), (treated, rates_too) = steps(False), steps(True)
    assert rates_too == rates
    assert treated[:2] == usual[:2]
    assert treated[2:] == pytest.approx([step / 100 for step in usual[2:]], rel=1e-3)


def test_taking_back_leaves_the_rate_to_the_scheduler() -> None:
    """What a scheduler has set since the copy was made stays; without a scheduler the copy's rate comes back."""
    for with_scheduler in (True, False):
        model, optimizer, _, _ = wanting("leaky_relu")
        if with_scheduler:
            StepLR(optimizer, 1)
        twin = Twin(model, optimizer)
        rate = optimizer.param_groups[0]["lr"]
        optimizer.param_groups[0]["lr"] = 7.0
        twin.settle()
        assert optimizer.param_groups[0]["lr"] == (7.0 if with_scheduler else rate)


def test_new_parameters_join_the_group_that_the_scheduler_knows() -> None:
    """A group of their own would make the scheduler fail; without one they get it, and keep their weight decay of 0."""
    for with_scheduler in (True, False):
        model, _, x, _ = wanting("prelu")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
        scheduler = LambdaLR(optimizer, lambda epoch: 1.0) if with_scheduler else None
        assert scheduled(optimizer) is with_scheduler
        twin, before = Twin(model, optimizer), settings_of(optimizer)
        operate(Network(model=twin.model, optimizer=twin.optimizer, example=x), REMEDIES["prelu"])
        if with_scheduler:
            keep_schedule(twin.optimizer, before)
        twin.settle()
        assert [len(g["params"]) for g in optimizer.param_groups] == ([8] if with_scheduler else [6, 1, 1])
        assert not optimizer._optimizer_step_pre_hooks  # the rates stayed
        model(x).sum().backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


# rates that the loop sets by hand -----------------------------------------------------------------------------------

BY_HAND: dict[str, Callable[[int, float], float]] = {
    "a schedule": lambda step, rate: 0.4 * 0.9**step,
    "always the same": lambda step, rate: 0.4,
    "a leap later": lambda step, rate: rate if step < 5 else 0.3,
    "decay of what is there": lambda step, rate: 0.97 * rate,
    "halves of what is there": lambda step, rate: rate / 2,
    "a tenth of what is there": lambda step, rate: rate / 10 if step == 4 else rate,
}


def moved_by(set_rate: Callable[[int, float], float], factor: float, *, moving: bool = False) -> list[float]:
    """How far each of eight steps of SGD goes where a remedy multiplies the rate before step 2, twice by its root."""
    weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
    model = nn.Module()
    model.weight = weight  # type: ignore[assignment]
    optimizer = torch.optim.SGD([weight], lr=0.4)
    moved = []
    for step in range(8):
        for _ in range(2 if factor != 1 and step == 2 else 0):
            twin, before = Twin(model, optimizer), settings_of(optimizer)
            for group in twin.optimizer.param_groups:
                group["lr"] *= factor**0.5
            if scheduled(twin.optimizer):
                keep_schedule(twin.optimizer, before)
            else:
                hold_rates(twin.optimizer, before, moving=moving)
            twin.settle()
        value = float(weight.detach())
        group = optimizer.param_groups[0]
        group["lr"] = set_rate(step, group["lr"])
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        moved.append(value - float(weight.detach()))
    return moved


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("factor", [0.01, 100.0])
@pytest.mark.parametrize("kind", BY_HAND)
def test_an_adopted_rate_holds_where_the_loop_sets_its_own(kind: str, factor: float, moving: bool) -> None:
    """Each step is so many times as long as without, whether the loop sets rates outright or changes what is there."""
    usual = moved_by(BY_HAND[kind], 1.0)
    treated = moved_by(BY_HAND[kind], factor, moving=moving)
    assert treated[:2] == pytest.approx(usual[:2])
    assert treated[2:] == pytest.approx([factor * step for step in usual[2:]])


def test_what_the_loop_sets_is_told() -> None:
    """An adopted rate stands in its group until the loop sets one; then the loop's stands there, and words say so."""
    model, _, x, y = wanting("leaky_relu")
    parts = [{"params": part.parameters()} for part in model.children() if list(part.parameters())]
    optimizer = torch.optim.SGD(parts, lr=0.1)
    before = settings_of(optimizer)
    REMEDIES["lower_learning_rate"].apply(Network(model=model, optimizer=optimizer))
    hold_rates(optimizer, before)
    train(model, optimizer, x, y, 1)
    assert rates_of(optimizer.param_groups) == pytest.approx([0.01] * 3) and loop_rates(optimizer) == ""
    for group in optimizer.param_groups:
        group["lr"] = 0.08
    assert not scheduled(optimizer)
    train(model, optimizer, x, y, 1)
    assert rates_of(optimizer.param_groups) == [0.08] * 3 and scheduled(optimizer)
    assert loop_rates(optimizer) == (
        "learning rate: the loop sets it by hand; each step is taken at 0.1 times what it sets"
    )


def test_rates_of_new_groups_are_held_too() -> None:
    """A group that a remedy has added, and parameters in it, step at the same share of what the loop sets."""
    model, _, x, y = wanting("prelu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    before = settings_of(optimizer)
    network = Network(model=model, optimizer=optimizer, example=x)
    REMEDIES["lower_learning_rate"].apply(network)
    operate(network, REMEDIES["prelu"])
    hold_rates(optimizer, before)
    seen: list[list[float]] = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(rates_of(o.param_groups)))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    train(model, optimizer, x, y, 1)
    assert len(seen[0]) == 3 and seen[0] == pytest.approx([0.01] * 3)
    scale_rates(optimizer, [0.5] * 3)  # as a replay does
    train(model, optimizer, x, y, 1)
    assert seen[1] == pytest.approx([0.005] * 3)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.2})
    scale_rates(optimizer, [0.5] * 4)
    train(model, optimizer, x, y, 1)
    assert seen[2] == pytest.approx([0.0025] * 3 + [0.1])


def test_a_second_lower_rate_holds_under_a_scheduler() -> None:
    """What is adopted later is a factor on what was adopted before, in the user's own hooks."""
    model, optimizer, x, y = wanting("leaky_relu")
    StepLR(optimizer, 1000)
    rate = rates_of(optimizer.param_groups)[0]
    seen: list[float] = []
    earlier = Twin(model, optimizer)
    for _ in range(2):
        twin, before = Twin(model, optimizer), settings_of(optimizer)
        REMEDIES["lower_learning_rate"].apply(Network(model=twin.model, optimizer=twin.optimizer))
        keep_schedule(twin.optimizer, before)
        earlier = Twin(model, optimizer)
        twin.settle()
    handle = optimizer.register_step_pre_hook(lambda o, *_: seen.append(rates_of(o.param_groups)[0]))
    train(model, optimizer, x, y, 1)
    handle.remove()
    earlier.settle()
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(rates_of(o.param_groups)[0]))
    train(model, optimizer, x, y, 1)
    assert seen == pytest.approx([rate / 100, rate / 10])


# what is neither weight nor buffer ----------------------------------------------------------------------------------


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)
        self.calls, self.history, self.odd = 0, [], decimal.Context(prec=5)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.history.append({"call": self.calls})
        return self.layer(x)


def test_attributes_are_put_back_in_place() -> None:
    """Counters and containers are as they were when the copy was made, in the user's own objects."""
    torch.manual_seed(0)
    model = Counts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(4, 8), torch.randn(4, 3)
    train(model, optimizer, x, y)
    history, first = model.history, model.history[0]
    twin = Twin(model, optimizer)
    train(twin.model, twin.optimizer, x, y)
    assert model.calls == STEPS == len(history)
    train(model, optimizer, x, y, 2)
    first["call"] = 7
    before = Twin(model, optimizer)
    train(model, optimizer, x, y, 4)
    first["call"] = 8
    before.settle()
    assert model.calls == STEPS + 2 and model.history is history and model.history[0] is first
    assert [entry["call"] for entry in history] == [7, *range(2, STEPS + 3)]


def test_what_cannot_be_put_back_is_named() -> None:
    """An object of another package that has changed since is named, one that has not is no news."""
    model = Counts()
    twin = Twin(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert twin.lost() == ()
    model.odd.prec = 7
    assert twin.lost() == ("odd of Counts",)


class Scale(nn.Module):
    """A loss with something to learn, and a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.ones(())), 0
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        self.mean: Tensor
        self.mean += 1
        return (output * self.weight - target).square().mean()


class Stubborn(torch.optim.SGD):
    """Can be copied by class and state alone."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("planted")


def test_a_copied_optimizer_drives_nothing_of_the_loop() -> None:
    """Parameters that are not the model's, such as a loss's, are copied too where the optimizer is made anew."""
    model, loss = nn.Linear(8, 3), Scale()
    optimizer = Stubborn([*model.parameters(), *loss.parameters()], lr=0.1)
    twin = duplicate(model, optimizer)[1]
    assert twin is not None
    mine = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert len(mine) == 3 and not mine & {id(p) for p in twin.param_groups[0]["params"]}


@pytest.mark.parametrize("copies", [True, False])
def test_a_loss_that_learns_is_copied_with_the_network(copies: bool) -> None:
    """The copied optimizer drives the copied loss, also where it is copied by class and state; all of it goes back."""

    torch.manual_seed(0)
    model, loss = nn.Linear(8, 3), Scale()
    optimizer = (torch.optim.SGD if copies else Stubborn)([*model.parameters(), *loss.parameters()], lr=0.1)
    x, y = torch.randn(4, 8), torch.randn(4, 3)

    def step(model: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()

    step(model, loss, optimizer)
    was = copy.deepcopy(loss.state_dict())
    twin = Twin(model, optimizer, loss)
    step(twin.model, twin.loss, twin.optimizer)
    assert same(dict(loss.state_dict()), dict(was)) and loss.calls == 1
    assert not torch.equal(twin.loss.weight, loss.weight)
    before = Twin(model, optimizer, loss)
    step(model, loss, optimizer)
    step(model, loss, optimizer)
    before.settle()
    assert same(dict(loss.state_dict()), dict(was)) and loss.calls == 1
