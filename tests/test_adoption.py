"""A copy that was treated can be put into the user's own objects, and taken out again without a trace."""

from __future__ import annotations

import copy
from typing import Any

import nets
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, StepLR
from wanting import shut, wanting

from relume.adoption import Twin, is_compiled, keep_schedule, scheduled, settings_of, structure
from relume.remedies import REMEDIES, Network, operate

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
