"""The autopilot in loops of many shapes: what the loop keeps, sets and adds up itself stays the loop's."""

from __future__ import annotations

import decimal
from typing import Any

import pytest
import torch
from test_autopilot import IMAGES, LABELS, Turns, accuracy, dead_by_bias, mlp, planted
from torch import Tensor, nn

import relume
from relume.errors import NOTHING_TO_DO, RemedyError
from relume.remedies import REMEDIES, Edit, Network, Remedy, combined
from relume.training import Several, Training, train
from relume.training.stream import Stream
from relume.tryout import Tryout

cross_entropy = nn.functional.cross_entropy


class Counts(nn.Module):
    """Dead by bias; counts its passes, keeps a list of them, its latest activations and a thing of another package."""

    def __init__(self) -> None:
        super().__init__()
        self.body = dead_by_bias()
        self.calls, self.history, self.odd, self.latest = 0, [], decimal.Context(prec=5), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.history.append(self.calls)
        self.latest = self.body(x)
        return self.latest


def test_what_forward_keeps_is_the_loop_s_alone() -> None:
    """Counters, lists and hooks see the loop's passes and no other, until a roll-back takes them to that step.

    A rate that the loop has set since the adoption stays, and what cannot be put back is said.
    """
    torch.manual_seed(0)
    images = IMAGES.clone()
    model, hooked, expected = Counts(), [], 0
    model.body[1].register_forward_hook(lambda module, args, output: hooked.append(1))
    history = model.history
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    remedy = planted(lambda network: network.register_forward_hook(Turns()) and None)
    with relume.watch(model, optimizer, loss=cross_entropy, heal=[remedy]) as watch:
        for step in range(180):
            batch = torch.randint(0, len(images), (64,))
            loss = cross_entropy(model(images[batch]), LABELS[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watch.step(loss)
            expected += 1
            if watch.actions and watch.actions[0].rolled_back is None:
                images[:, -1] = 20.0  # where the remedy does harm
                optimizer.param_groups[0]["lr"] = 0.05
                model.odd.prec = 7
            if watch.actions and watch.actions[0].rolled_back == step + 1:
                expected = watch.actions[0].step
                assert optimizer.param_groups[0]["lr"] == 0.05
            assert model.calls == expected and len(hooked) == step + 1
            assert model.history is history and history == list(range(1, expected + 1))
    (action,) = watch.actions
    assert action.adopted == "planted" and action.rolled_back is not None
    assert action.why.endswith("; not put back: odd of Counts")


@pytest.mark.parametrize("constant", [True, False])
def test_a_lower_rate_holds_where_the_loop_sets_it_by_hand(constant: bool) -> None:
    """The healed run learns, the groups show what the loop has set, and the action says that there is a factor."""
    torch.manual_seed(0)
    model = mlp(5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    heal = ["lower_learning_rate+recycle"]
    with relume.watch(model, optimizer, loss=cross_entropy, heal=heal) as watch:
        for step in range(240):
            rate = 0.1 if constant else 0.1 * 0.9995**step
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = torch.randint(0, len(IMAGES), (64,))
            loss = cross_entropy(model(IMAGES[batch]), LABELS[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert optimizer.param_groups[0]["lr"] == rate
            watch.step(loss)
    assert "lower_learning_rate" in str(watch.actions[0].adopted)
    line = "learning rate: the loop sets it by hand; each step is taken at 0.1 times what it sets"
    assert watch.actions[0].changes.count(line) == 1
    assert accuracy(model) > 0.8


@pytest.mark.parametrize("summed", [True, False])
def test_copies_accumulate_as_the_loop_does(summed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four backward passes a step are four on the copies, and what is proven there heals the loop."""
    given: list[dict[str, Any]] = []
    begin = Tryout.__init__

    def note(tryout: Tryout, *args: Any, **kwargs: Any) -> None:
        given.append(kwargs)
        begin(tryout, *args, **kwargs)

    monkeypatch.setattr(Tryout, "__init__", note)
    torch.manual_seed(0)
    model = dead_by_bias()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 if not summed else 0.025, momentum=0.9)
    with relume.watch(model, optimizer, loss=cross_entropy, heal=["reset_bias+he_init"]) as watch:
        for _ in range(180):
            optimizer.zero_grad()
            total = 0.0
            for batch in torch.randint(0, len(IMAGES), (4, 16)):
                loss = cross_entropy(model(IMAGES[batch]), LABELS[batch])
                (loss if summed else loss / 4).backward()
                total += loss.item() / 4
            optimizer.step()
            watch.step(total)
    assert given == [{"passes": 4, "summed": summed}]
    assert watch.actions[0].adopted == "reset_bias+he_init" and accuracy(model) > 0.8


def run(model: nn.Module, optimizer: torch.optim.Optimizer, watch: Any) -> None:
    """Two hundred steps of the loop that people write."""
    for _ in range(200):
        batch = torch.randint(0, len(IMAGES), (64,))
        loss = cross_entropy(model(IMAGES[batch]), LABELS[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch.step(loss)


def test_remedies_that_change_no_weights_are_tried_on_earlier_ones_too() -> None:
    """A lower rate cannot revive what a high one has killed: named alone, it comes with the weights from before."""
    torch.manual_seed(0)
    model = mlp(5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with relume.watch(model, optimizer, loss=cross_entropy, heal=["lower_learning_rate"]) as watch:
        run(model, optimizer, watch)
    assert watch.actions[0].adopted == "rewind+lower_learning_rate" and accuracy(model) > 0.8


def test_weights_that_are_lost_for_good_are_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where numbers are no longer finite and none were kept, that is said once, and nothing is tried."""
    monkeypatch.setattr("relume.autopilot.SNAPSHOT_BYTES", 0)
    torch.manual_seed(0)
    model = mlp(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0)
    with relume.watch(model, optimizer, loss=cross_entropy, heal=["lower_learning_rate"]) as watch:
        run(model, optimizer, watch)
    (action,) = watch.actions
    assert action.why == "its numbers are no longer finite, and no earlier weights were kept to begin from"


# copies ----------------------------------------------------------------------------------------------------


def data(count: int, *, alike: bool = False) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    pairs = [(torch.randn(8, 4, generator=draw), torch.randn(8, 3, generator=draw)) for _ in range(count)]
    return [pairs[0]] * count if alike else pairs


def small() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.05)


def test_several_batches_make_the_step_of_one() -> None:
    """Parts of equal size train as the batch that they are parts of does."""
    whole, parts = [small() for _ in range(2)]
    batches = data(6)
    several = [Several(batches[:3]), Several(batches[3:])]
    joined = [(torch.cat([x for x, _ in step]), torch.cat([y for _, y in step])) for step in several]
    losses = []
    for (model, optimizer), steps in ((whole, joined), (parts, several)):
        training = Training(
            model=lambda model=model: model, optimizer=lambda p, optimizer=optimizer: optimizer,
            loss=nn.functional.mse_loss, batches=steps,
        )  # fmt: skip
        losses.append(train(training, model, optimizer, Stream(steps, 0), 5))
    assert losses[0] == pytest.approx(losses[1])
    for p, q in zip(whole[0].parameters(), parts[0].parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def keep(seen: list[nn.Module]) -> Any:
    """A treatment that does nothing, and keeps the copies."""

    def treat(remedy: Remedy, model: nn.Module, optimizer: torch.optim.Optimizer, *data: Any) -> Any:
        edit = remedy.apply(Network(model=model, optimizer=optimizer))
        seen.append(model)
        return model, optimizer, edit.changes

    return treat


def nothing(name: str) -> Remedy:
    return Remedy(name=name, title="", family="optimizer", apply=lambda n: Edit(changes={}), when="", code="")


def refuses(name: str, words: str) -> Remedy:
    def apply(network: Network) -> Edit:
        raise RemedyError(words)

    return Remedy(name=name, title="", family="optimizer", apply=apply, when="", code="")


@pytest.mark.parametrize("summed", [True, False])
def test_a_copy_takes_the_loop_s_steps(summed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights after accumulated steps are those of the loop that a user would write; so are the loss's own."""
    monkeypatch.setattr("relume.tryout.STEPS", 5)

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return (self.scale * output - target).square().mean()

    model, _ = small()
    loss = Scaled()
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.05)
    seen: list[nn.Module] = []
    pairs = data(4, alike=True)
    Tryout(model, optimizer, loss, pairs, pairs[:2], keep(seen), passes=2, summed=summed).run([nothing("none")])
    (input, target) = pairs[0]
    for _ in range(5):
        optimizer.zero_grad()
        for _ in range(2):
            value = loss(model(input), target)
            (value if summed else value / 2).backward()
        optimizer.step()
    for p, q in zip(model.parameters(), seen[0].parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_remedies_that_cannot_be_applied_take_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are places for are trained; what has nothing to do is not told, unless it was asked for."""
    monkeypatch.setattr("relume.tryout.TRIED", 2)
    monkeypatch.setattr("relume.tryout.STEPS", 3)
    idle = [refuses(f"idle{i}", f"it {NOTHING_TO_DO} here") for i in range(3)]
    remedies = [*idle, refuses("broken", "it does not fit"), nothing("a"), nothing("b"), nothing("c")]
    model, optimizer = small()
    for wanted in (False, True):
        tryout = Tryout(model, optimizer, nn.functional.mse_loss, data(4), data(2), keep([]))
        _, _, attempts, looked_at = tryout.run(remedies, wanted=wanted)
        told = [attempt.remedy for attempt in attempts]
        assert told == [*(["idle0", "idle1", "idle2"] if wanted else []), "broken", "a", "b"]
        assert [remedy.name for remedy in looked_at] == ["idle0", "idle1", "idle2", "broken", "a", "b"]
        assert attempts[-3].because == "it does not fit" and attempts[-1].loss is not None


def test_a_combination_with_nothing_to_do_is_not_told() -> None:
    """What one of its parts says of the network goes for all of it."""
    model, optimizer = small()
    both = combined(nothing("none"), REMEDIES["no_weight_decay"])
    tryout = Tryout(model, optimizer, nn.functional.mse_loss, data(4), data(2), keep([]))
    assert tryout.run([both])[2] == ()


def test_replays_of_a_compiled_network_run_what_was_compiled() -> None:
    """The cause is told by replays, which torch.compile would not let read a copy of its wrapper."""
    torch.manual_seed(0)
    model: Any = torch.compile(dead_by_bias(), backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = relume.watch(model, optimizer, loss=cross_entropy)
    for batch in torch.randint(0, len(IMAGES), (40, 64)):
        loss = cross_entropy(model(IMAGES[batch]), LABELS[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch.step(loss)
    report = watch.report()
    assert report.diagnoses[0].cause == "bias"
    assert not any("nothing was replayed" in why for why in report.recording.blind)
