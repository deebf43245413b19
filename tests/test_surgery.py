"""Edits to a network and its optimizer: copies, optimizer state, wiring, grafts."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from nets import NETS, Functional, configured, conv, dropped, functional_mlp, in_place, mlp, residual, shared_module
from torch import Tensor, nn
from torch.nn import functional as F

from relume.errors import RemedyError
from relume.grafts import graft
from relume.nested import call
from relume.rewriting import Rewritten
from relume.sites import find_sites
from relume.surgery import duplicate, forget, narrow, register, select
from relume.wiring import Wiring, follow, guess_input, output_change, outputs

torch.set_num_threads(1)

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "Adadelta": torch.optim.Adadelta,
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "Rprop": torch.optim.Rprop,
    "Adafactor": torch.optim.Adafactor,
    "LBFGS": lambda p: torch.optim.LBFGS(p, max_iter=2),
}


def part(model: nn.Module, path: str) -> Any:
    """A submodule, of whatever kind."""
    return model.get_submodule(path)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Any, steps: int) -> float:
    """Some steps on a made-up loss; the last loss."""
    value = 0.0

    def closure() -> Any:
        optimizer.zero_grad()
        found = call(model, x)
        parts = found if isinstance(found, tuple) else (found,)
        loss = torch.stack([(y - 1).square().mean() for y in parts]).sum()
        loss.backward()
        return loss

    model.train()
    for _ in range(steps):
        loss: Any = optimizer.step(closure)
        value = float(loss.detach())
    return value


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_copies_train_as_the_originals_would(name: str):
    """Model and optimizer, copied and trained on, end where a run that was never copied ends, and apart from it."""
    model, x = mlp(0)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, x, 3)
    twin, new_optimizer = duplicate(model, optimizer)
    assert new_optimizer is not None
    before = copy.deepcopy(model.state_dict())

    train(twin, new_optimizer, x, 3)

    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not torch.equal(twin.state_dict()["0.weight"], before["0.weight"])
    train(model, optimizer, x, 3)
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in model.state_dict().items())


def test_a_scheduled_optimizer_steps_its_own_copy():
    """A scheduler wraps `step` of the original; the copy's `step` is free of it and moves the copied parameters."""
    model, x = mlp(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 10)
    twin, new_optimizer = duplicate(model, optimizer)
    assert new_optimizer is not None
    before = part(model, "0").weight.detach().clone()

    train(twin, new_optimizer, x, 1)

    assert torch.equal(before, part(model, "0").weight)
    assert not torch.equal(before, part(twin, "0").weight)


def double(module: nn.Module, args: Any, output: Any) -> Any:
    """A forward hook."""
    return output * 2


class CountSteps:
    """A step hook that copies with its optimizer."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self.steps += 1


def test_hooks_come_along_apart():
    """Hooks of the model and of the optimizer work on the copies without touching the originals'."""
    model, x = mlp(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    counter = CountSteps()
    optimizer.register_step_pre_hook(counter)
    model.register_forward_hook(double)
    twin, new_optimizer = duplicate(model, optimizer)
    assert new_optimizer is not None

    train(twin, new_optimizer, x, 2)

    assert counter.steps == 0
    copied: Any = next(iter(vars(new_optimizer)["_optimizer_step_pre_hooks"].values()))
    assert copied.steps == 2
    twin.load_state_dict(model.state_dict())
    assert torch.equal(model(x), twin(x))


def test_a_model_that_cannot_be_copied_is_refused():
    """The reason and a way out are in the message."""
    model, _ = mlp(0)
    model.__dict__["numbers"] = (i for i in range(3))

    with pytest.raises(RemedyError, match="cannot be copied"):
        duplicate(model, None)


def test_slopes_get_no_weight_decay():
    """New parameters join the group of their layer, or a twin of it without weight decay."""
    model, _ = mlp(0)
    first, rest = list(part(model, "0").parameters()), list(part(model, "2").parameters())
    optimizer = torch.optim.SGD([{"params": first, "lr": 0.5}, {"params": rest}], lr=0.1, weight_decay=0.01)
    joined, apart = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    register(optimizer, {"a": joined}, first[0])
    register(optimizer, {"b": apart}, first[0], decay=False)

    assert any(p is joined for p in optimizer.param_groups[0]["params"])
    group = optimizer.param_groups[2]
    assert [p is apart for p in group["params"]] == [True]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.0)


def test_optimizers_with_parameter_names_take_new_ones():
    """An optimizer built from named parameters goes on naming them."""
    model, x = mlp(0)
    optimizer = torch.optim.Adam(model.named_parameters(), lr=0.1, weight_decay=0.1)
    new = nn.Parameter(torch.zeros(2))

    register(optimizer, {"slopes": new}, None, decay=False)

    assert optimizer.param_groups[1]["param_names"] == ["slopes"]
    train(model, optimizer, x, 1)


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "LBFGS"])
def test_slices_carry_their_moments(name: str):
    """A sliced parameter stays the same object, keeps the moments of what is kept, and can be trained."""
    model, x = mlp(0)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, x, 2)
    layer: Any = part(model, "0")
    old = {k: v.clone() for k, v in optimizer.state[layer.weight].items() if isinstance(v, Tensor)}
    keep = torch.tensor([1, 3, 4])
    wiring = follow(model, x)

    narrow(model, optimizer, wiring.layers[0], keep)

    assert layer.weight.shape == (3, 6)
    assert layer.out_features == 3
    assert part(model, "2").in_features == 3
    for key, value in optimizer.state[layer.weight].items():
        if isinstance(value, Tensor) and value.dim() == 2 and old[key].shape == (16, 6):
            assert torch.equal(value, old[key][keep])
    train(model, optimizer, x, 2)


def test_select_and_forget_touch_only_what_is_named():
    """Rows that are not named keep value and moment."""
    p = nn.Parameter(torch.arange(6.0).reshape(3, 2))
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    p.grad = torch.ones(3, 2)
    optimizer.step()

    forget(optimizer, p, 0, torch.tensor([1]))
    assert optimizer.state[p]["momentum_buffer"].tolist() == [[1, 1], [0, 0], [1, 1]]
    select(optimizer, p, 0, torch.tensor([1, 2]))
    assert optimizer.state[p]["momentum_buffer"].tolist() == [[0, 0], [1, 1]]


def test_readers_are_named_through_pools_and_flattening():
    """A channel that is flattened is a block of columns of the next layer."""
    model, x = conv(0)
    first, second, third, last = follow(model, x).layers

    assert (first.norms, [r.path for r in first.readers], first.stops) == ([("1", 1)], ["4"], [])
    assert [(r.path, r.block, r.padded) for r in second.readers] == [("8", 4, False)]
    assert (third.norms, third.sites, third.source) == ([("9", 1)], [2], second)
    assert last.stops == ["its output is part of the network's output"]


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: residual(0), "meets other values"),
        (lambda: NETS["tied"](0), "used 2 times"),
        (lambda: NETS["linear_only"](0), "network's output"),
    ],
)
def test_units_that_cannot_be_followed_say_why(build: Callable[[], tuple[nn.Module, Any]], reason: str):
    """Added units, tied weights and outputs end the search for readers with a sentence."""
    model, x = build()

    assert any(reason in stop for layer in follow(model, x).layers for stop in layer.stops)


@pytest.mark.parametrize("name", NETS)
def test_wiring_sees_what_find_sites_sees(name: str):
    """The wiring's places are the sites, in order, and following leaves the network bit-identical."""
    model, x = NETS[name](0)
    inputs = x if isinstance(x, tuple) else (x,)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    wiring = follow(model, x)

    assert [p.call.site.name for p in wiring.places] == [s.name for s in find_sites(model, *inputs)]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert isinstance(wiring, Wiring)


def grafted(build: Callable[..., tuple[nn.Module, Any]], **how: Any) -> tuple[nn.Module, nn.Module, Any, Any, Any]:
    """A net, its copy with a leaky ReLU of slope 0 or an Identity grafted in, the input, the grafts and the rest."""
    model, x = build(0)
    twin = copy.deepcopy(model)
    make = (lambda places: nn.Identity()) if how.get("before") else (lambda places: nn.LeakyReLU(0.0))
    done, left = graft(twin, x, range(len(follow(model, x).places)), make, **how)
    return model, twin, x, done, left


@pytest.mark.parametrize("how", [{}, {"separate": True}, {"before": True, "separate": True}], ids=str)
@pytest.mark.parametrize("name", sorted(set(NETS) - {"sigmoid_mlp", "tanh_mlp", "branching"}))
def test_grafts_of_the_same_function_change_nothing(name: str, how: dict[str, bool]):
    """Every place can be grafted, and an equal function there gives equal outputs in both modes, dropout included."""
    model, twin, x, done, left = grafted(NETS[name], **how)

    assert left == {}
    assert sorted(i for g in done for i in g.calls) == list(range(len(follow(model, x).places)))
    for training in (False, True):
        change = output_change(outputs(model, [x], training=training), outputs(twin, [x], training=training))
        assert change <= 1e-6
    assert all(part(twin, g.path) is g.module for g in done)
    assert set(model.state_dict()) <= set(twin.state_dict())


def test_a_rewritten_forward_keeps_class_hooks_and_mode():
    """F.dropout goes on following `training`, hooks go on firing, and the class is the user's."""
    model, twin, x, _, _ = grafted(dropped)
    fired: list[int] = []
    twin.register_forward_hook(lambda m, args, out: fired.append(1))

    assert type(twin) is type(model)
    assert isinstance(vars(twin)["forward"], Rewritten)
    assert not torch.equal(twin.train()(x), twin(x))
    assert torch.equal(twin.eval()(x), twin(x))
    assert fired


@pytest.mark.parametrize("build", [functional_mlp, dropped, shared_module], ids=lambda f: f.__name__)
def test_rewritten_forwards_copy_and_pickle(build: Callable[..., tuple[nn.Module, Any]]):
    """Copies and unpickled twins compute the same with their own weights."""
    _, twin, x, _, _ = grafted(build, separate=True)
    expected = twin.eval()(x)
    file = io.BytesIO()
    torch.save(twin, file)
    file.seek(0)
    other: Any
    for other in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin)), torch.load(file, weights_only=False)):
        assert torch.equal(expected, other(x))
        with torch.no_grad():
            other.fc1.weight.zero_()
            assert not torch.equal(expected, other(x))
    assert torch.equal(expected, twin(x))


def test_a_forward_can_be_rewritten_again():
    """A second graft finds the calls that the first one left, and keeps the first."""
    model, x = functional_mlp(0)
    graft(model, x, [0], lambda places: nn.LeakyReLU(0.0))
    expected = model(x)

    done, left = graft(model, x, [2], lambda places: nn.LeakyReLU(0.0))

    assert not left
    assert len(done) == 1
    assert torch.equal(expected, model(x))
    assert [s.activation for s in find_sites(model, x)] == ["leaky_relu", "relu", "leaky_relu"]


def test_one_call_of_a_shared_module_can_be_chosen():
    """The other call keeps the shared module."""
    model, x = shared_module(0)

    done, left = graft(model, x, [1], lambda places: nn.ELU())

    assert (left, [g.calls for g in done]) == ({}, [(1,)])
    assert [s.activation for s in find_sites(model, x)] == ["relu", "elu"]


def test_a_function_in_an_attribute_becomes_a_module_there():
    """`self.act = F.relu` stays the place where the activation is set."""
    _, twin, _, done, _ = grafted(configured)

    assert [g.path for g in done] == ["act"]
    assert isinstance(twin.act, nn.LeakyReLU)


def test_an_in_place_module_whose_result_is_dropped_is_rewritten():
    """Later uses of the overwritten tensor get the graft's output."""
    model, x = in_place(0)
    before = model(x)

    graft(model, x, [0, 1], lambda places: nn.LeakyReLU(0.5))

    assert [s.activation for s in find_sites(model, x)] == ["leaky_relu", "leaky_relu"]
    assert not torch.equal(before, model(x))


class Remembering(Functional):
    """Sets an attribute in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        return super().forward(x)


class Noisy(Functional):
    """Draws numbers in its forward that a trace would freeze."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc4(F.relu(self.fc3(F.relu(self.fc2(F.relu(self.fc1(x))))))) + torch.randn(3)


class Sliced(Functional):
    """Changes its activation's input behind the back of a trace, through a view."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        view = h[:, :4]
        F.relu_(h)
        return self.fc4(F.pad(view, (0, 4)))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Remembering, "sets attributes"), (Noisy, "tensors of its own|changes the network's output"), (Sliced, "changes")],
)
def test_code_that_a_trace_would_change_is_refused(kind: type[Functional], reason: str):
    """Side effects, frozen random numbers and aliased in-place writes are found before anything is edited."""
    import re

    torch.manual_seed(0)
    model, x = kind(), torch.randn(8, 6)
    before = dict(vars(model))

    done, left = graft(model, x, range(len(follow(model, x).places)), lambda places: nn.ELU())

    assert done == []
    assert left
    assert all(re.search(reason, words) for words in left.values())
    assert "forward" not in vars(model)
    assert set(vars(model)) == set(before)


@pytest.mark.parametrize("name", sorted(set(NETS) - {"tuple_output"}))
def test_an_input_is_guessed_from_the_first_layer(name: str):
    """The guess runs; where two inputs are needed there is none."""
    model, _ = NETS[name](0)

    assert outputs(model, [guess_input(model)])


def test_no_input_is_guessed_for_two():
    """A model of two inputs takes no guess."""
    assert guess_input(NETS["tuple_output"](0)[0]) is None


def test_output_change_sees_what_matters():
    """Equal is zero, a shift counts in standard deviations, other shapes and new NaN are infinite."""
    y = torch.tensor([0.0, 2.0])

    assert output_change([y], [y.clone()]) == 0
    assert output_change([y], [y + 0.5]) == pytest.approx(0.5)
    assert output_change([y], [y[:1]]) == float("inf")
    assert output_change([y], [y * float("nan")]) == float("inf")
