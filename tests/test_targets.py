"""The targets of a step are told from what its loop does between the passes and the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

import relume
from relume.nested import as_input, call
from relume.recorder import Recorder

cross_entropy = nn.functional.cross_entropy


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 4, generator=draw), torch.randint(0, 3, (8,), generator=draw)) for _ in range(count)
    ]  # fmt: skip


def window_of(loop: Any, loss: Any = cross_entropy, count: int = 4) -> tuple[Recorder, list[tuple[Tensor, Tensor]]]:
    """A recorder after one step of a loop, which is given the model, the batches and the optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, optimizer, loss)
    recorder.window = []
    recorder.arm(read=False)
    # a mode that is on in a forward pass would have a compiled network compiled again
    model[0].register_forward_hook(lambda *_: modes.append(len(_get_current_function_mode_stack())))
    modes: list[int] = []
    given = batches(count)
    said = loop(model, given, loss)
    optimizer.step()
    recorder.collect(said)
    assert not model._forward_hooks and not model._forward_pre_hooks and not any(modes)
    return recorder, given


def mean_of_each(model: Any, given: Any, loss: Any) -> Any:
    """The textbook: each loss is divided by the number of passes; the last one is said."""
    value = None
    for x, y in given:
        value = loss(model(x), y) / len(given)
        value.backward()
    return value


def mean_in_backward(model: Any, given: Any, loss: Any) -> Any:
    total = 0.0
    for x, y in given:
        value = loss(model(x), y)
        (value / len(given)).backward()
        total += value.item()
    return total / len(given)


def mean_at_once(model: Any, given: Any, loss: Any) -> Any:
    value = torch.stack([loss(model(x), y) for x, y in given]).mean()
    value.backward()
    return value


def sum_of_each(model: Any, given: Any, loss: Any) -> Any:
    total = torch.zeros(())
    for x, y in given:
        value = loss(model(x), y)
        value.backward()
        total = total + value.detach()
    return total


def sum_at_once(model: Any, given: Any, loss: Any) -> Any:
    value: Any = sum(loss(model(x), y) for x, y in given)
    value.backward()
    return value


@pytest.mark.parametrize("loss", [cross_entropy, nn.CrossEntropyLoss()], ids=["function", "module"])
@pytest.mark.parametrize("loop", [mean_of_each, mean_in_backward, mean_at_once, sum_of_each, sum_at_once])
def test_every_pass_of_an_accumulated_step_has_its_target(loop: Any, loss: Any) -> None:
    """Inputs and targets come in their order, and whether gradients are summed or averaged is told."""
    recorder, given = window_of(loop, loss)
    assert recorder.window is not None
    (step,) = recorder.window
    assert len(step) == len(given)
    for ((input,), target), (x, y) in zip(step, given, strict=True):
        assert torch.equal(input, x) and torch.equal(target, y)
    assert recorder.summed == loop.__name__.startswith("sum")
    if isinstance(loss, nn.Module):
        assert not loss._forward_hooks and not loss._forward_pre_hooks


def other_loss(model: Any, given: Any, loss: Any) -> Any:
    return 3 * mean_at_once(model, given, loss)


def one_loss_for_two(model: Any, given: Any, loss: Any) -> Any:
    value = loss(model(given[0][0]) + model(given[1][0]), given[0][1])
    value.backward()
    return value


@pytest.mark.parametrize("loop", [other_loss, one_loss_for_two])
def test_what_does_not_add_up_is_not_told(loop: Any) -> None:
    """Where the step's loss is something else, or a pass has no loss of its own, nothing is collected."""
    recorder, _ = window_of(loop, count=2)
    assert recorder.window == []


def with_evaluation(model: Any, given: Any, loss: Any) -> Any:
    value = loss(model(given[0][0]), given[0][1])
    value.backward()
    model.eval()
    with torch.no_grad():
        loss(model(given[1][0]), given[1][1])
    model.train()
    return value


def as_a_number(model: Any, given: Any, loss: Any) -> Any:
    value = loss(model(given[0][0]), given[0][1])
    value.backward()
    return value.item()


def unsaid(model: Any, given: Any, loss: Any) -> Any:
    loss(model(given[0][0]), given[0][1]).backward()


def under_autocast(model: Any, given: Any, loss: Any) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(model(given[0][0]), given[0][1])
    value.backward()
    return value


@pytest.mark.parametrize("loss", [cross_entropy, nn.CrossEntropyLoss()], ids=["function", "module"])
@pytest.mark.parametrize("loop", [with_evaluation, as_a_number, unsaid, under_autocast])
def test_one_pass_is_told_in_loops_of_many_shapes(loop: Any, loss: Any) -> None:
    """An evaluation before the step's end, a loss said as a number or not at all, another precision."""
    recorder, given = window_of(loop, loss)
    assert recorder.window is not None
    (((((input,), target)),),) = recorder.window
    assert torch.equal(input, given[0][0]) and torch.equal(target, given[0][1])


def with_a_penalty(model: Any, given: Any, loss: Any) -> Any:
    value = loss(model(given[0][0]), given[0][1]) + 0.1 * sum(p.square().sum() for p in model.parameters())
    value.backward()
    return value


def a_penalty_unsaid(model: Any, given: Any, loss: Any) -> Any:
    with_a_penalty(model, given, loss)


@pytest.mark.parametrize("loop", [with_a_penalty, a_penalty_unsaid])
def test_a_loss_with_more_in_it_is_not_told(loop: Any) -> None:
    """Copies would be trained on another loss than the loop's."""
    recorder, _ = window_of(loop)
    assert recorder.window == []


class Scaled(nn.Module):
    def forward(self, x: Tensor, *more: Tensor, scale: float = 1.0, **named: Tensor) -> Tensor:
        return scale * (x + sum(more) + sum(named.values()))


class Named(nn.Module):
    def forward(self, x: Tensor, y: Tensor, scale: float = 1.0, **named: Tensor) -> Tensor:
        return scale * (x + 2 * y + sum(named.values()))


def test_arguments_of_both_kinds_go_by_name() -> None:
    """What is collected calls the model as the loop did; where it cannot, nothing is collected."""
    x, y, z = torch.ones(1), 2 * torch.ones(1), 3 * torch.ones(1)
    for args, kwargs in [((x, y), {}), ((), {"x": x, "y": y}), ((x,), {"y": y, "scale": 3.0}), ((x, y), {"z": z})]:
        assert torch.equal(call(Named(), as_input(Named(), args, kwargs)), Named()(*args, **kwargs))
    assert as_input(Scaled(), (x, y), {"scale": 3.0}) is None  # y has no name
    assert as_input(Named(), (x, y), {"y": y}) is None


class Asked(nn.Module):
    """A loss that is a module, with arguments of its own names."""

    def forward(self, input: Tensor, target: Tensor, weight: Any = None) -> Tensor:
        """The mean of squares."""
        return ((input - target) ** 2).mean() * (1.0 if weight is None else weight)


@pytest.mark.parametrize("way", ["one", "both", "turned", "three"])
def test_a_loss_is_asked_by_name_too(way: str) -> None:
    """The target is the second of two arguments, however they are given; of three none is told, and nothing raises."""
    asked: dict[str, Any] = {
        "one": lambda loss, y, t: loss(y, target=t),
        "both": lambda loss, y, t: loss(input=y, target=t),
        "turned": lambda loss, y, t: loss(target=t, input=y),
        "three": lambda loss, y, t: loss(y, t, 2.0),
    }
    target = torch.zeros(8, 3)

    def loop(model: Any, given: Any, loss: Any) -> Any:
        value = asked[way](loss, model(given[0][0]), target)
        value.backward()
        return value

    recorder, _ = window_of(loop, Asked())
    told = [pairs[0][1] for pairs in recorder.window or ()]
    assert not told if way == "three" else torch.equal(told[0], target)


def test_no_random_number_is_drawn_for_a_target() -> None:
    """A loss that draws numbers is tried on candidates without using up any of the loop's."""

    def noisy(output: Tensor, target: Tensor) -> Tensor:
        return (output + torch.randn_like(output) - target).square().mean()

    def loop(model: Any, given: Any, loss: Any) -> Any:
        torch.manual_seed(5)
        value = loss(model(given[0][0]), torch.zeros(8, 3))
        value.backward()
        states.append(torch.get_rng_state())
        return value

    states: list[Tensor] = []
    window_of(loop, noisy)
    assert torch.equal(states[0], torch.get_rng_state())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of dynamo itself
def test_a_loss_that_torch_compiles_is_compiled_while_it_is_watched() -> None:
    """No mode is on where a module calls what is to be compiled, unless gradients are asked for."""
    compiled: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    squares = torch.compile(lambda output, target: ((output - target) ** 2).mean(), backend=count)

    class Loss(nn.Module):
        def forward(self, output: Tensor, target: Tensor) -> Any:
            return squares(output, target)

    model, loss = nn.Linear(4, 3), Loss()
    watching = relume.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), loss=loss)
    for x, _ in batches(5):
        value = loss(model(x), torch.zeros(8, 3))
        value.backward()
        watching.step(value)
    assert len(compiled) == 1 and len(watching._recorder.first) > 1


def test_passes_without_a_step_are_not_kept() -> None:
    """Hundreds of passes before the first step leave one input at most, where only replays want them."""
    model = nn.Linear(4, 3)
    recorder = Recorder(model, torch.optim.SGD(model.parameters(), lr=0.1), cross_entropy)
    recorder.arm(read=False)
    for x, _ in batches(300):
        model(x)
    assert recorder._inputs == [None] and recorder._finder is not None and not recorder._finder._passes
    assert not _get_current_function_mode_stack()
    recorder.stop()
