"""What a model keeps in plain attributes is put back as it was, in the same objects."""

from __future__ import annotations

import copy
import decimal
import math
import random
import types
import weakref
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import relume
from relume.attributes import Attributes
from relume.sites import undisturbed
from relume.surgery import duplicate


class Schedule:
    def __init__(self) -> None:
        self.step, self.past = 0, [0]


class Slotted:
    __slots__ = ("step",)

    def __init__(self) -> None:
        self.step = 0


def advance(schedule: Any) -> None:
    schedule.step += 1


def append_inside(value: Any) -> None:
    value["past"].append(1)


def step_and_note(schedule: Schedule) -> None:
    schedule.step += 1
    schedule.past.append(schedule.step)
    schedule.name = "new"  # type: ignore[attr-defined]


# a value, what moves it on in place, and how to read it
KINDS: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "list": ([1], lambda v: v.append(2), list),
    "nested": ({"past": [1]}, append_inside, copy.deepcopy),
    "dict": ({"a": 1}, lambda v: v.update(b=2), dict),
    "counter": (Counter("a"), lambda v: v.update("ab"), dict),
    "set": ({1}, lambda v: v.add(2), set),
    "deque": (deque([1, 2], maxlen=2), lambda v: v.append(3), list),
    "bytearray": (bytearray(b"a"), lambda v: v.extend(b"b"), bytes),
    "array": (np.zeros(2), lambda v: v.__iadd__(1), np.copy),
    "tensor": (torch.zeros(2), lambda v: v.add_(1), Tensor.tolist),
    "tensor in a tuple": ((torch.zeros(2),), lambda v: v[0].add_(1), lambda v: v[0].tolist()),
    "torch generator": (torch.Generator(), lambda v: torch.rand(1, generator=v), lambda v: v.get_state().tolist()),
    "random": (random.Random(0), lambda v: v.random(), lambda v: v.getstate()),
    "numpy generator": (np.random.default_rng(0), lambda v: v.random(), lambda v: str(v.bit_generator.state)),
    "object": (Schedule(), step_and_note, lambda v: (v.step, list(v.past), sorted(vars(v)))),
    "slots": (Slotted(), advance, lambda v: v.step),
    "namespace": (types.SimpleNamespace(step=0), advance, lambda v: v.step),
}


class Keeps(nn.Module):
    """Moves a value on in its forward pass, and counts."""

    def __init__(self, value: Any = None, move: Callable[[Any], Any] = lambda v: None) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.value, self.move, self.calls = value, move, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.move(self.value)
        self.latest = self.layer(x).relu()
        return self.latest


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_of_ours_moves_nothing_on(kind: str) -> None:
    """Counters, containers, generators and objects are as before, the same ones; a pass of the user's moves them."""
    value, move, read = copy.deepcopy(KINDS[kind])
    model = Keeps(value, move)
    before = read(value)
    with undisturbed(model):
        model(torch.ones(1, 3))
        assert str(read(value)) != str(before)
    assert model.value is value and str(read(value)) == str(before)
    assert model.calls == 0 and not hasattr(model, "latest")
    model(torch.ones(1, 3))
    assert model.calls == 1 and str(read(value)) != str(before)


def test_finding_sites_and_a_checkup_leave_counters() -> None:
    """What looks at a user's model from outside does not count in it."""
    model = Keeps([], lambda v: v.append(1))
    relume.find_sites(model, torch.ones(1, 3))
    relume.checkup(model, [torch.ones(4, 3)])
    assert model.calls == 0 and model.value == []


def test_what_functions_hold_is_put_back() -> None:
    """Lists, rebound names and defaults of a function that is named, such as a hook."""
    calls, count = [1], 0

    def hook(seen: list[int] = []) -> None:  # noqa: B006
        nonlocal count
        count += 1
        calls.append(count)
        seen.append(count)

    attributes = Attributes((), hook)
    hook()
    hook()
    attributes.put_back()
    assert calls == [1] and count == 0 and hook.__defaults__ == ([],)


def test_what_is_of_other_packages_is_left_alone_and_named() -> None:
    """A logger, a trainer or a decimal context of another package is not gone into; one that may change is named."""
    model = Keeps(decimal.Context(prec=5))
    attributes = Attributes(model.modules())
    assert [(type(module).__name__, name) for module, name in attributes.foreign()] == [("Keeps", "value")]
    model.value.prec = 7
    attributes.put_back()
    assert model.value.prec == 7
    assert not list(Attributes(Keeps(Schedule()).modules()).foreign())


def test_a_data_set_in_an_attribute_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors and arrays beyond the room for them are left as they are."""
    monkeypatch.setattr("relume.attributes.NOTED_BYTES", 100)
    model = Keeps([np.zeros(100), torch.zeros(2)])
    held = Attributes(model.modules()).held
    assert not any(value is model.value[0] for value in held) and any(value is model.value for value in held)


def test_a_lazy_layer_stays_what_its_first_pass_made_of_it() -> None:
    """Its number of inputs is known from then on, as its weights are."""
    model = nn.Sequential(nn.LazyLinear(4))
    with undisturbed(model):
        model(torch.ones(1, 3))
    assert model[0].in_features == 3


def test_a_model_that_keeps_its_activations_is_copied() -> None:
    """Tensors of a graph, which deepcopy refuses, come along as numbers; the user's stay in their graph."""
    model = Keeps([])
    model(torch.ones(1, 3))
    kept = model.latest
    twin: Any = duplicate(model, None)[0]
    assert twin.latest is not kept and torch.equal(twin.latest, kept) and not twin.latest.requires_grad
    assert model.latest is kept and kept.grad_fn is not None


class Frozen(dict[str, int]):
    """A configuration that is never written to, as libraries keep theirs on a model."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("this is frozen")


def test_what_is_read_only_is_left_as_it_is() -> None:
    """A frozen mapping, a view full of NaN and a proxy of what is gone survive a pass, and so do the modes."""
    model: Any = nn.Sequential(nn.Linear(2, 2))
    model.settings = Frozen(width=2)
    model.mask = torch.tensor(math.nan).expand(3)
    gone = Schedule()
    model.link = weakref.proxy(gone)
    del gone
    with undisturbed(model):
        model.eval()
    assert model.training and model.settings == {"width": 2} and model.mask.isnan().all()
