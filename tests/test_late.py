"""A loop of the user's own that falls ill in mid-run is replayed from before it, within bounds, and never changed."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relume
from relume import snapshots
from relume.errors import RemedyError
from relume.kept import Stretch
from relume.nested import extent
from relume.pace import LONGEST_WAIT, Pace
from relume.snapshots import FROZEN, Snapshots, states, whole
from relume.targets import TargetFinder
from relume.watch import RECENT

AT, STEPS = 600, 900  # the step at which something happens, and of all

Event = Callable[[int, torch.optim.Optimizer, Tensor, Tensor], tuple[Tensor, Tensor]]


def network(seed: int = 0, width: int = 64) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.05), nn.Linear(width, 1)
    )


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def nothing(step: int, optimizer: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x, y


def raised_rate(step: int, optimizer: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if step == AT:
        optimizer.param_groups[0]["lr"] *= 100
    return x, y


def larger_inputs(step: int, optimizer: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return (x * 50 if step >= AT else x), y


def spiked_targets(step: int, optimizer: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x, (y * 1000 if AT <= step < AT + 80 else y)


def train(
    model: Any, optimizer: Any, event: Event = nothing, steps: int = STEPS, watch: Any = None, schedule: Any = None
) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 16, generator=rng)
    y = (torch.relu(x @ torch.randn(16, generator=rng) / 2) - 1 + 0.1 * torch.randn(2000, generator=rng))[:, None]
    torch.manual_seed(1)
    for step in range(steps):
        index = torch.randint(0, len(x), (32,), generator=rng)
        inputs, targets = event(step, optimizer, x[index], y[index])
        loss = F.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if watch is not None:
            watch.step(loss)
        if schedule is not None:
            schedule.step()


def watched(event: Event = nothing, make: Any = sgd, **more: Any) -> relume.watch:
    model = network()
    optimizer = make(model)
    with relume.watch(model, optimizer, loss=F.mse_loss) as watch:
        train(model, optimizer, event, watch=watch, **more)
    return watch


def only_cause(watch: relume.watch) -> Any:
    """The first diagnosis, which must stand on a replay in which the illness showed."""
    report = watch.report()
    assert not report.healthy, str(report)
    found = report.diagnoses[0]
    assert found.experiments and found.experiments[0].cause is None and found.experiments[0].burden > 0, str(report)
    return found


# what happened in mid-run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "make", "cause", "change"),
    [
        (raised_rate, sgd, "learning_rate_too_high", "the learning rate divided by"),
        (larger_inputs, sgd, "unscaled_inputs", "inputs"),
        (spiked_targets, sgd, "unscaled_targets", "targets at the scale of the first steps"),
        (spiked_targets, adam, "unscaled_targets", "targets at the scale of the first steps"),
    ],
)
def test_what_happens_in_mid_run_is_named_by_a_replay(event: Event, make: Any, cause: str, change: str) -> None:
    """A raised rate, inputs on another scale and a spike of the targets are told apart, and since when."""
    found = only_cause(watched(event, make))
    assert found.cause == cause and abs(found.since - AT) <= 60
    mended = [e for e in found.experiments if e.cause == cause and e.change.startswith(change)]
    assert min(e.burden for e in mended) <= 0.5 * found.experiments[0].burden


def test_a_rate_that_a_scheduler_raises_is_named_too() -> None:
    """The replay takes the rates of the steps that followed, not those of the snapshot."""
    model = network()
    optimizer = sgd(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < AT else 100.0)
    with relume.watch(model, optimizer, loss=F.mse_loss) as watch:
        train(model, optimizer, watch=watch, schedule=schedule)
    assert only_cause(watch).cause == "learning_rate_too_high"


def test_a_replay_begins_at_a_snapshot_before_the_event_with_what_came_after_it() -> None:
    """The weights are from before the event, batches and rates from after it, and all moments are there."""
    watch = watched(raised_rate, adam)
    assert watch._snapshots is not None and watch._later
    at, stretch = next(iter(watch._later.items()))
    assert 0 < at <= AT < stretch.start <= AT + 60 and stretch.rates == (0.1,)
    assert sum(len(input[0]) for input, _ in stretch.pairs) >= 1000
    model, optimizer = watch._snapshots.taken[at].again()
    assert all(optimizer.state[p]["step"].item() == at for p in model.parameters())
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_a_compiled_network_is_replayed_as_well() -> None:
    """Snapshots are of what torch.compile wraps."""
    model = network()
    optimizer = sgd(model)
    compiled = torch.compile(model, backend="eager")
    with relume.watch(compiled, optimizer, loss=F.mse_loss) as watch:  # pyright: ignore[reportArgumentType]
        train(compiled, optimizer, raised_rate, watch=watch)
    assert only_cause(watch).cause == "learning_rate_too_high"
    assert watch._snapshots is not None and type(watch._snapshots.taken[0].again()[0]) is nn.Sequential


# nothing is changed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [nothing, spiked_targets])
@pytest.mark.parametrize("make", [sgd, adam])
def test_training_is_bit_identical_with_and_without(event: Event, make: Any) -> None:
    """Snapshots and kept batches change no parameter, no moment and no random generator; dropout draws the same."""
    found = []
    for with_watch in (False, True):
        model = network()
        optimizer = make(model)
        if with_watch:
            with relume.watch(model, optimizer, loss=F.mse_loss) as watch:
                train(model, optimizer, event, watch=watch)
            assert watch._snapshots is not None and len(watch._snapshots.taken) > 1
            assert bool(watch._later) == (event is spiked_targets)
        else:
            train(model, optimizer, event)
        moments = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
        found.append([*model.parameters(), *moments, torch.get_rng_state()])
    assert len(found[0]) == len(found[1])
    assert all(torch.equal(a, b) or (a.isnan() & b.isnan()).any() for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("make", [sgd, adam])
def test_a_healthy_run_is_still_healthy(make: Any) -> None:
    """Nothing happened, so nothing is kept but a few snapshots, and nothing is armed."""
    watch = watched(make=make)
    assert watch.report().healthy, str(watch.report())
    assert watch._snapshots is not None and len(watch._snapshots.taken) == 1 + RECENT
    assert not watch._later and watch._recorder.followed == 0


# within bounds ------------------------------------------------------------------------------------------------------


def held() -> int:
    """Bytes of all tensors that are alive."""
    gc.collect()
    return sum(t.numel() * t.element_size() for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter))


def test_ten_thousand_steps_hold_no_more_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an event every thousand steps, what the watch holds stays within its budgets."""
    model = network(width=32)
    optimizer = adam(model)
    size = 3 * sum(p.numel() * p.element_size() for p in model.parameters())  # with two moments
    budget = 6 * size
    monkeypatch.setattr(snapshots, "SNAPSHOT_BYTES", budget)
    monkeypatch.setattr(sys.modules["relume.watch"], "FOLLOWING", 0.01)

    def event(step: int, optimizer: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if step % 1000 == 500:
            seen.append(held())
        return x, (y * 30 if step % 1000 > 900 else y)

    seen: list[int] = []
    train(model, optimizer, event, steps=600)
    unwatched = seen[0]
    seen.clear()
    with relume.watch(model, optimizer, loss=F.mse_loss) as watch:
        train(model, optimizer, event, steps=10_000, watch=watch)
        assert watch._snapshots is not None and len(watch._later) > 1
        stretches = [watch._recorder.opening, *watch._later.values()]
        batches = (1 + FROZEN) * max(sum(extent(pair)[1] for pair in stretch.pairs) for stretch in stretches)
        kept = sum(extent(batch)[1] for batch in watch._recorder.kept.batches)
        assert max(seen) - unwatched <= budget + batches + kept + 3 * size  # standstill keeps states of its own
        assert len(watch._snapshots.taken) <= 6 and len(watch._later) <= FROZEN
        assert watch._recorder.followed <= 0.01 * 10_000 + 32


@pytest.mark.parametrize(("room", "most"), [(9, 1 + RECENT), (3, 2), (1, 1), (0, 0)])
def test_a_larger_network_has_fewer_snapshots(room: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One recent one at least where three fit; the start alone where one does; else none."""
    size = sum(p.numel() * p.element_size() for p in network().parameters())
    monkeypatch.setattr(snapshots, "SNAPSHOT_BYTES", int((room + 0.9) * size * 2))  # with momentum
    if room == 0:
        monkeypatch.setattr(snapshots, "SNAPSHOT_BYTES", size - 1)
    watch = watched()
    assert watch._snapshots is not None and len(watch._snapshots.taken) == most
    assert watch.report().healthy


def test_batches_of_a_stretch_are_consecutive_and_bounded() -> None:
    """It ends with enough samples, with its bytes, and at the first step that is missing."""
    x, y = torch.zeros(100, 4), torch.zeros(100)
    few, small, torn = Stretch(5, [0.1], 10**6), Stretch(0, [0.1], 5000), Stretch(7, [0.1], 10**6)
    for step in range(5, 40):
        if few.wants(step):
            few.add(x, y)
    assert len(few.pairs) == 10
    small.add(x, y)
    small.add(x, y)
    small.add(x, y)
    assert len(small.pairs) == 2 and not torn.wants(8)


def test_where_targets_cannot_be_told_nothing_is_copied() -> None:
    """With gradient accumulation there is nothing to replay: no snapshot is taken and no step is armed in vain."""
    model = network()
    optimizer = sgd(model)
    with relume.watch(model, optimizer, loss=F.mse_loss, budget=1e-6) as watch:
        for _ in range(200):
            for _ in range(2):
                loss = F.mse_loss(model(torch.randn(8, 16)), torch.randn(8, 1)) / 2
                loss.backward()
            optimizer.step()
            watch.step(loss)  # pyright: ignore[reportPossiblyUnboundVariable] two passes
            optimizer.zero_grad()
        assert watch._snapshots is not None and list(watch._snapshots.taken) == [0]
        assert not model._forward_hooks and not model._forward_pre_hooks


def test_copies_take_their_share_of_the_time() -> None:
    """A copy as dear as a step is made once in a thousand steps at a budget of 1 %, and earlier in a short run."""
    pace = Pace(0.01)
    assert pace.copies(500, 1.0) == 1
    pace.ordinary(0.001)
    assert pace.copies(5000, 0.001) in (1000, 1001) and pace.copies(100, 0.001) == 100  # 1001 where it is rounded up
    assert pace.copies(10**6, 1.0) == LONGEST_WAIT


# one snapshot -------------------------------------------------------------------------------------------------------


class Counter:
    """A step hook that counts, and lowers the rate as it goes."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self.steps += 1
        optimizer.param_groups[0]["lr"] = 0.1 / self.steps


def some_steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    for _ in range(count):
        loss = model(torch.randn(32, 8, generator=rng)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


@pytest.mark.parametrize("copy", [states, whole])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_snapshot_goes_on_as_the_network_did(name: str, copy: Any) -> None:
    """Ten steps from a snapshot give the weights that ten steps gave the network then, bit for bit, and every time."""
    model = normed()
    optimizer = OPTIMIZERS[name](model.parameters())
    some_steps(model, optimizer, 7, seed=0)
    again = copy(model, optimizer)
    some_steps(model, optimizer, 10, seed=1)
    then = [t.clone() for t in model.state_dict().values()]
    some_steps(model, optimizer, 5, seed=2)
    optimizer.param_groups[0]["lr"] = 7.0
    for _ in range(2):
        twin, copied = again()
        some_steps(twin, copied, 10, seed=1)
        assert all(torch.equal(a, b) for a, b in zip(then, twin.state_dict().values(), strict=True))


def test_groups_that_were_added_later_are_not_in_an_earlier_snapshot() -> None:
    """Layers that were unfrozen in mid-run are frozen in what came before."""
    model: Any = normed()
    optimizer = torch.optim.SGD(model[3].parameters(), lr=0.01)
    again = states(model, optimizer)
    optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.5})
    assert len(again()[1].param_groups) == 1 and len(optimizer.param_groups) == 2


def test_step_hooks_are_as_they_were() -> None:
    """What a hook had counted by then comes with the snapshot."""
    model = normed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(Counter())
    some_steps(model, optimizer, 3, seed=0)
    again = states(model, optimizer)
    some_steps(model, optimizer, 3, seed=0)
    twin, copied = again()
    some_steps(twin, copied, 1, seed=0)
    assert copied.param_groups[0]["lr"] == pytest.approx(0.1 / 4)


def test_a_network_that_was_changed_since_is_refused() -> None:
    """The weights of then do not go into another network, and the message says what to do."""
    model: Any = normed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    again = states(model, optimizer)
    model[3] = nn.Linear(16, 3)
    with pytest.raises(RemedyError, match=r"other parameters or buffers.*\n.*new watch"):
        again()


def test_a_network_that_cannot_be_copied_trains_on_and_the_report_says_why() -> None:
    """A hook that holds the loop's scheduler, or a generator in the model: no replay, and no harm."""
    model: Any = network()
    model.stream = (i for i in range(3))
    optimizer = sgd(model)
    with relume.watch(model, optimizer, loss=F.mse_loss) as watch:
        train(model, optimizer, raised_rate, watch=watch)
    report = watch.report()
    assert not report.healthy and not report.recording.note
    assert any("nothing was replayed: Sequential cannot be copied" in why for why in report.coverage.blind)


# events -------------------------------------------------------------------------------------------------------------


def looks(losses: list[float], every: int = 20) -> tuple[Snapshots, list[int | None]]:
    model = normed()
    found = Snapshots(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda: None, states, RECENT)
    found.begin()
    return found, [found.look(i * every, loss) for i, loss in enumerate(losses, 1)]


def test_each_leap_is_one_event_and_a_loss_that_is_not_finite_another() -> None:
    """A loss that stays high is told once, a further leap again, NaN once."""
    _, events = looks([1.0] * 10 + [5.0] * 2 + [40.0] * 2 + [math.nan] * 30)
    assert [i for i, event in enumerate(events) if event is not None] == [10, 12, 14]
    assert events[10] == 120 and events[12] == 180  # each the last but one, and from before the leap at 220


def test_events_that_are_over_make_room_for_new_ones() -> None:
    """After more events than there is room for, each followed by recovery, the newest is still kept; the start too."""
    found, events = looks(([1.0] * 10 + [5.0] + [0.9] * 5) * 12)
    assert sum(event is not None for event in events) >= 2 * FROZEN
    kept = list(found.taken)
    assert kept[0] == 0 and len(kept) <= FROZEN + RECENT and max(e for e in events if e is not None) in kept


def test_a_loss_that_is_not_finite_tells_its_target_where_only_one_can_be_it() -> None:
    """Any target gives NaN then: one is taken, two are not."""
    output, target, other = torch.full((4, 1), math.nan), torch.zeros(4, 1), torch.ones(4, 1)
    for extra in (False, True):
        finder = TargetFinder(F.mse_loss)
        finder.begin(output)
        loss = F.mse_loss(output, target)
        if extra:
            _ = output + other
        found = finder.end(loss)
        assert found is None if extra else found is not None and found.passes[0] is target


def test_lazy_layers_and_groups_that_change_are_no_obstacle() -> None:
    """A network without weights yet is watched, and one whose optimizer was given more since is still replayed."""
    lazy = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 1))
    relume.watch(lazy, torch.optim.SGD(lazy.parameters(), lr=0.1), loss=F.mse_loss)
    model = network()
    optimizer = torch.optim.SGD(list(model.parameters())[:2], lr=0.1)
    again = states(model, optimizer)
    optimizer.param_groups[0]["params"].append(list(model.parameters())[2])
    assert len(again()[1].param_groups[0]["params"]) == 2
    optimizer.param_groups[0]["params"] = optimizer.param_groups[0]["params"][:1]
    with pytest.raises(RemedyError, match="other parameters or buffers than when"):
        again()
