"""Units that got no gradient are told from the optimizer's state, exactly, whatever the optimizer adds of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.optim import Optimizer

from relume.recording import Site
from relume.sites import find_sites
from relume.standstill import RULES, Standstill

UNITS, EVERY, LOOKS = 48, 25, 12
NEGLIGIBLE = 1e-3  # of the largest gradient in the layer: what samples send whose loss is at its floor

Make = Callable[[Iterable[Any]], Optimizer]


def variants() -> dict[str, Make]:
    """Every optimizer with a rule, in each of torch's implementations, with and without weight decay and momentum."""
    found: dict[str, Make] = {}

    def add(name: str, kind: Any, **settings: Any) -> None:
        for how in ("single", "foreach", "fused"):
            if how == "fused" and kind not in (optim.SGD, optim.Adam, optim.AdamW, optim.Adagrad):
                continue
            way: dict[str, Any] = {"foreach": how == "foreach", **({"fused": True} if how == "fused" else {})}
            found[f"{name}-{how}"] = partial(kind, **settings, **way)

    add("sgd", optim.SGD, lr=0.05)
    add("sgd-decay", optim.SGD, lr=0.05, weight_decay=1e-3)
    add("momentum", optim.SGD, lr=0.02, momentum=0.9)
    add("momentum-decay", optim.SGD, lr=0.02, momentum=0.9, weight_decay=5e-4)
    add("momentum-dampened", optim.SGD, lr=0.02, momentum=0.9, dampening=0.5, weight_decay=5e-4)
    add("nesterov-decay", optim.SGD, lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)
    add("adam", optim.Adam, lr=0.002)
    add("adam-decay", optim.Adam, lr=0.002, weight_decay=1e-3)
    add("amsgrad-decay", optim.Adam, lr=0.002, weight_decay=1e-3, amsgrad=True)
    add("adamw", optim.AdamW, lr=0.002)
    add("nadam", optim.NAdam, lr=0.002)
    add("radam", optim.RAdam, lr=0.002)
    add("adamax", optim.Adamax, lr=0.002)
    add("rmsprop", optim.RMSprop, lr=0.002)
    add("rmsprop-decay", optim.RMSprop, lr=0.002, weight_decay=1e-3)
    add("rmsprop-momentum", optim.RMSprop, lr=0.002, momentum=0.9, centered=True)
    add("rmsprop-momentum-decay", optim.RMSprop, lr=0.002, momentum=0.9, weight_decay=1e-3)
    add("adagrad", optim.Adagrad, lr=0.02)
    add("adagrad-decay", optim.Adagrad, lr=0.02, weight_decay=1e-3, lr_decay=1e-3)
    return found


class Run:
    """A net with units that never fire, units that fall silent in mid-run, and rare ones; the truth is kept beside."""

    def __init__(self, make: Make, *, bias: bool = True, seed: int = 0, schedule: Any = None) -> None:
        torch.manual_seed(seed)
        self.layer = nn.Linear(16, UNITS, bias=bias)
        self.model = nn.Sequential(self.layer, nn.ReLU(), nn.Linear(UNITS, 4))
        self.x = torch.randn(512, 16)
        self.x[:, 0] = 1.0  # where there is no bias, this column is one
        with torch.no_grad():
            self.shift(slice(0, 8), -50.0)
            self.layer.weight[16:].div_(self.layer.weight[16:].norm(dim=1, keepdim=True))
            self.shift(slice(16, UNITS), -2.05)  # these fire on about 2 % of the samples
        self.y = self.x[:, 1:5].argmax(1)
        self.optimizer = make(self.model.parameters())
        self.schedule = schedule(self.optimizer) if schedule else None
        self.standstill = Standstill(self.model, self.optimizer)
        (site,) = find_sites(self.model, self.x)
        self.site: Site = site
        self.standstill.follow([site])
        self.random = torch.Generator().manual_seed(seed)
        self.steps = 0
        self.last_gradient = np.zeros(UNITS, dtype=np.int64)  # steps done when each unit last got one to speak of
        self.zero_since = np.zeros(UNITS, dtype=np.int64)  # and the least at all

    def shift(self, units: slice, by: float) -> None:
        with torch.no_grad():
            (self.layer.bias[units] if self.layer.bias is not None else self.layer.weight[units, 0]).add_(by)

    def backward(self) -> None:
        chosen = torch.randint(0, len(self.x), (32,), generator=self.random)
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.x[chosen]), self.y[chosen]).backward()

    def step(self) -> None:
        self.backward()
        self.steps += 1
        gradient = self.layer.weight.grad
        assert gradient is not None
        size = gradient.abs().amax(1)
        self.zero_since = np.where(size > 0, self.steps, self.zero_since)
        self.last_gradient[(size > NEGLIGIBLE * size.max()).numpy()] = self.steps
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()

    def look(self) -> np.ndarray[Any, Any]:
        self.standstill.look(self.steps)
        return self.standstill.idle.get(self.site.name, np.zeros(UNITS, dtype=np.int64))

    def check(self, looks: int = LOOKS, every: int = EVERY) -> int:
        """Compare with the truth at each look; how many units were found idle in all."""
        found = 0
        for _ in range(looks):
            for _ in range(every):
                self.step()
            idle = self.look()
            assert (idle <= self.steps - self.last_gradient).all(), "a unit that got a gradient is called idle"
            zero = self.steps - self.zero_since
            expected = np.maximum(0, (zero - 1) // every * every)  # from the first look at which it was zero
            assert (idle >= expected).all(), "a unit without gradient is not called idle"
            found += int((idle > 0).sum())
        return found


@pytest.mark.parametrize("name", variants())
def test_idle_units_are_those_without_any_gradient(name: str) -> None:
    """At each look the units called idle are exactly those that got no gradient since an earlier look."""
    run = Run(variants()[name])
    assert run.check(4) >= 8
    run.shift(slice(8, 16), -50.0)  # these had momentum until now
    assert run.check() >= 16 * 8


def test_every_rule_is_tested() -> None:
    """Each optimizer in the table is among the variants above."""
    parameter = nn.Parameter(torch.zeros(2))
    assert {type(make([parameter])) for make in variants().values()} == set(RULES)


@pytest.mark.parametrize(
    "name", ["momentum-single", "adam-single", "adamw-single", "rmsprop-single", "adam-decay-single"]
)
def test_without_a_bias_the_weights_tell(name: str) -> None:
    """A layer without a bias is followed by the rows of its weights."""
    run = Run(variants()[name], bias=False)
    assert run.check(8) >= 7 * 8


@pytest.mark.parametrize("name", ["momentum-decay-single", "adamw-single", "adam-single", "sgd-single"])
def test_learning_rates_may_change_at_every_step(name: str) -> None:
    """A schedule between two looks hides no gradient and invents no standstill."""
    run = Run(variants()[name], schedule=lambda o: optim.lr_scheduler.CosineAnnealingLR(o, T_max=400))
    assert run.check() >= 8


def test_parameter_groups_are_followed_each_by_its_own_settings() -> None:
    """The layer's group may have another momentum and weight decay than the first group has."""

    def make(parameters: Iterable[Any]) -> Optimizer:
        weight, bias, *rest = parameters
        groups: list[dict[str, Any]] = [
            {"params": rest, "momentum": 0.0},
            {"params": [weight, bias], "momentum": 0.8, "weight_decay": 1e-3},
        ]
        return optim.SGD(groups, lr=0.02, momentum=0.9)

    assert Run(make).check() >= 8


def test_skipped_steps_are_told_from_steps_without_gradient() -> None:
    """Where an AMP scaler left optimizer steps out, decay is counted by the optimizer's own steps."""
    run = Run(variants()["adam-single"])
    for _ in range(24):
        run.step()
    run.shift(slice(8, 16), -50.0)  # these have momentum, whose decay is counted
    for step in range(24, 100):
        if step % 10 == 9:
            run.backward()  # and no step
            run.steps += 1
        else:
            run.step()
        if step % 25 == 24:
            run.look()
    assert (run.look()[:16] >= 50).all()


def test_a_learning_rate_of_zero_is_no_standstill() -> None:
    """Plain SGD moves nothing at rate 0, or below the rounding of a large value: neither is taken for a sign."""
    for rate, bias in ((0.0, 0.0), (1e-12, 0.0), (0.05, -1e6)):
        run = Run(lambda p, rate=rate: optim.SGD(p, lr=rate))
        run.shift(slice(8, 16), bias)
        for _ in range(2):
            for _ in range(EVERY):
                run.step()
            run.look()
        assert not run.standstill.resolved(run.site.name)[8:16].any()
    assert Run(variants()["sgd-single"]).standstill.resolved(run.site.name).sum() == 0  # no gradient was seen yet


def test_other_optimizers_are_a_blind_spot() -> None:
    """An optimizer that relume does not know is named, and so is a weight decay that it cannot follow."""
    run = Run(lambda p: optim.ASGD(p, lr=0.01))
    run.step()
    assert not run.look().any() and "ASGD's state says nothing" in run.standstill.blind[0]
    run = Run(lambda p: optim.NAdam(p, lr=0.01, weight_decay=0.1))
    assert "NAdam mixes its weight decay" in run.standstill.blind[0]


def test_cleared_gradients_tell_nothing() -> None:
    """A look after `zero_grad` neither forgets what was known nor adds to it."""
    run = Run(variants()["adam-single"])
    run.check(3)
    before = run.look().copy()
    run.step()
    run.optimizer.zero_grad()
    assert (run.look() == before).all() and before.any()


def test_a_bias_before_a_normalisation_is_not_asked() -> None:
    """Its gradient is zero whatever the unit does; the normalisation's own bias tells, where there is one."""
    for affine, followed in ((True, True), (False, False)):
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16, affine=affine), nn.ReLU(), nn.Linear(16, 2))
        standstill = Standstill(model, optim.Adam(model.parameters()))
        standstill.follow(find_sites(model, torch.randn(32, 8)))
        assert bool(standstill._bundles) is followed
