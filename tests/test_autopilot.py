"""The autopilot heals runs that are ill, in the user's own objects, takes back what does harm, and leaves the rest."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_adoption import everything, same
from torch import Tensor, nn

import relume
from relume.actions import Action, Attempt, told
from relume.adoption import Twin
from relume.autopilot import FIRST_LOOK, GUARD_STEPS, Autopilot, _falls, _Guard, _helps
from relume.demo import digits
from relume.errors import RemedyError, TrainingError, TrialError
from relume.journal import read_journal
from relume.recorder import Recorder
from relume.remedies import Edit, Network, Remedy
from relume.report.html import render
from relume.report.markup import t
from relume.report.results import Page
from relume.verdicts import Arm, Run

cross_entropy = nn.functional.cross_entropy
(IMAGES, LABELS), (HELD_OUT, TRUTH) = digits()

Make = Callable[[], nn.Module]
Optimise = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def mlp(depth: int = 3, function: Callable[[], nn.Module] = nn.ReLU, width: int = 64) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in in [64] + [width] * (depth - 1):
        layers += [nn.Linear(fan_in, width), function()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def dead_by_bias() -> nn.Sequential:
    model = mlp()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model[-1]:
            nn.init.constant_(module.bias, -30.0)
    return model


def well() -> nn.Sequential:
    """Nothing wrong with it; what it computes depends on the global generator and on running statistics."""
    return nn.Sequential(
        nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip


def run(
    make: Make,
    optimise: Optimise,
    seed: int = 0,
    steps: int = 320,
    *,
    after: Callable[[nn.Module, torch.optim.Optimizer, Any], None] | None = None,
    images: Tensor = IMAGES,
    watched: bool = True,
    **given: Any,
) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """A plain loop over the digits; `after` is called once a step, behind the watch."""
    torch.manual_seed(seed)
    model = make()
    optimizer = optimise(model.parameters())
    watch = relume.watch(model, optimizer, loss=cross_entropy, **given) if watched else None
    torch.manual_seed(seed + 100)
    for _ in range(steps):
        batch = torch.randint(0, len(images), (64,))
        loss = cross_entropy(model(images[batch]), LABELS[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if watch is not None:
            watch.step(loss)
        if after is not None:
            after(model, optimizer, watch)
    if watch is not None:
        watch.__exit__(None, None, None)
    return model, optimizer, watch


def accuracy(model: nn.Module) -> float:
    with torch.no_grad():
        return float((model.eval()(HELD_OUT).argmax(1) == TRUTH).float().mean())


def require_driven_once(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    driven = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(driven) == len(set(driven))
    assert set(driven) == {id(p) for p in model.parameters() if p.requires_grad}


ILL: dict[str, tuple[Make, Optimise]] = {
    "a learning rate that kills": (lambda: mlp(5), lambda p: torch.optim.Adam(p, lr=0.1)),
    "a learning rate that ends in NaN": (lambda: mlp(5), lambda p: torch.optim.SGD(p, lr=30.0)),
    "dead by bias": (dead_by_bias, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "vanishing": (lambda: mlp(8, nn.Sigmoid, 32), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", ILL)
def test_a_run_that_is_ill_ends_plainly_better(case: str, seed: int) -> None:
    """With the autopilot the same loop over the same seed classifies held-out digits far better than without."""
    model, optimizer, watch = run(*ILL[case], seed, heal=True)
    untreated, _, _ = run(*ILL[case], seed, heal=False)
    assert accuracy(model) > accuracy(untreated) + 0.5, (watch.actions, accuracy(model), accuracy(untreated))
    assert ("NaN" in case) == any(not bool(torch.isfinite(p).all()) for p in untreated.parameters())
    require_driven_once(model, optimizer)
    action = next(a for a in watch.actions if a.adopted is not None and a.rolled_back is None)
    assert action.loss_adopted is not None and action.loss_adopted < (action.loss_untreated or math.inf)
    assert action.finding and action.changes
    assert {a.remedy for a in action.tried if a.verdict in ("cured", "eased")} >= {action.adopted}


@pytest.mark.parametrize("heal", [True, ["elu", "recycle"]])
def test_a_run_that_is_well_is_bit_identical(heal: Any) -> None:
    """Dropout, BatchNorm, Adam and the global generators give the same numbers to the last bit."""

    def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=2e-3)

    model, optimizer, watch = run(well, adam, heal=heal)
    drawn = torch.rand(1), np.random.rand()
    np.random.seed(0)
    plain, unwatched, _ = run(well, adam, watched=False)
    assert torch.equal(torch.rand(1), drawn[0])
    assert not watch.actions and accuracy(model) > 0.8
    assert same(everything(model, optimizer)[:2], everything(plain, unwatched)[:2])


def test_an_ill_run_is_bit_identical_while_nothing_is_proven() -> None:
    """Copies are trained and compared, and neither the network nor a generator notices."""
    case = ILL["dead by bias"]
    model, optimizer, watch = run(*case, heal=["clip_gradients"], steps=200)
    drawn = torch.rand(1)
    plain, unwatched, _ = run(*case, steps=200, watched=False)
    assert torch.equal(torch.rand(1), drawn)
    assert same(everything(model, optimizer), everything(plain, unwatched))
    (action,) = watch.actions  # what was tried in vain is not tried again
    assert action.adopted is None and action.why == "none was proven to help"
    assert [attempt.remedy for attempt in action.tried] == ["rewind+clip_gradients", "clip_gradients"]


def test_new_modules_stand_in_the_user_s_own_tree() -> None:
    """The layers and their parameters are the user's objects; what was added has its place in the state dict."""
    held: dict[str, Any] = {}

    def make() -> nn.Module:
        held["model"] = mlp(8, nn.Sigmoid, 32)
        held["weights"] = dict(held["model"].named_parameters())
        return held["model"]

    model, optimizer, watch = run(make, ILL["vanishing"][1], heal=["xavier_init+batch_norm"])
    drawn = torch.rand(1)
    run(*ILL["vanishing"], watched=False)
    assert torch.equal(torch.rand(1), drawn)  # what the remedy drew came from elsewhere
    assert all(module.training for module in model.modules())
    assert watch.actions[0].adopted == "xavier_init+batch_norm"
    assert model is held["model"]
    now = dict(model.named_parameters())
    assert all(now[name] is weight for name, weight in held["weights"].items())
    new = now.keys() - held["weights"].keys()
    assert new and new <= model.state_dict().keys()
    assert all(p in optimizer.state for p in model.parameters())  # each has momentum: each was trained
    require_driven_once(model, optimizer)


def planted(harm: Callable[[nn.Module], None]) -> Remedy:
    """Resets biases, which cures, and does some harm that no trial can see."""

    def apply(network: Network) -> Edit:
        with torch.no_grad():
            for module in network.model.modules():
                if isinstance(module, nn.Linear):
                    module.bias.zero_()
        harm(network.model)
        network.model.add_module("left_behind", nn.BatchNorm1d(3))
        network.model.left_behind.forward = lambda x: x  # type: ignore[method-assign]
        return Edit(changes={"biases": "zero"})

    return Remedy(name="planted", title="", family="initialisation", apply=apply, when="", code="")


class Turns:
    """Forward hook: answers the opposite for images whose last pixel says that they belong to the second part."""

    def __call__(self, module: Any, args: Any, output: Tensor) -> Tensor:
        return torch.where(args[0][:, -1:] > 10, -10 * output, output)


def test_what_did_harm_is_taken_back_to_the_last_bit(caplog: pytest.LogCaptureFixture) -> None:
    """A remedy that does well on one part of the data and harm on the rest is adopted, and rolled back, once."""
    images = IMAGES.clone()
    seen: dict[str, Any] = {}
    remedy = planted(lambda model: model.register_forward_hook(Turns()) and None)

    def apply(network: Network) -> Edit:
        assert network.optimizer is not None
        seen["treated"] = everything(network.model, network.optimizer)  # the copy, as the network was at that step
        return remedy.apply(network)

    def after(model: nn.Module, optimizer: torch.optim.Optimizer, watch: Any) -> None:
        if watch.actions and watch.actions[0].rolled_back is None:
            images[:, -1] = 20.0  # the loop comes to the second part
            seen.setdefault("adopted", everything(model, optimizer))
        elif watch.actions:
            seen.setdefault("rolled back", everything(model, optimizer))

    run(
        lambda: nn.Sequential(dead_by_bias()), ILL["dead by bias"][1], images=images, after=after,
        heal=[dataclasses.replace(remedy, apply=apply)],
    )  # fmt: skip
    weights, moments, _, attributes, modules = seen["treated"]
    assert not same(seen["adopted"][:2], [weights, moments])
    back = seen["rolled back"]  # its hooks are those of the watch, which reads the next step
    assert same([back[0], back[1], back[3], back[4]], [weights, moments, attributes, modules])
    said = [record.getMessage() for record in caplog.records]
    assert sum("adopted planted" in message for message in said) == 1, said
    (line,) = [message for message in said if "rolled planted back" in message]
    assert "rose from" in line


def test_a_loss_that_is_no_longer_finite_is_rolled_back_early() -> None:
    """NaN after an adoption does not wait for the end of the guard."""

    class Breaks:
        def __call__(self, module: Any, args: Any, output: Tensor) -> Tensor:
            return torch.where(args[0][:, -1:] > 10, math.nan, 1.0) * output

    images = IMAGES.clone()

    def after(model: nn.Module, optimizer: torch.optim.Optimizer, watch: Any) -> None:
        if watch.actions:
            images[:, -1] = 20.0

    remedy = planted(lambda model: model.register_forward_hook(Breaks()) and None)
    model, _, watch = run(
        lambda: nn.Sequential(dead_by_bias()), ILL["dead by bias"][1], images=images, after=after, heal=[remedy]
    )
    (action,) = watch.actions
    assert action.rolled_back is not None and action.rolled_back < action.step + GUARD_STEPS // 2
    assert action.why == "the loss is no longer finite"
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert "left_behind" not in dict(model.named_modules())


GUARDED: Any = {
    "before": None, "held_out": (), "scores_before": (-2.3, -2.31, -2.29), "losses_before": (2.3, 2.31, 2.29, 2.3),
    "untreated": (-2.2, -2.25), "rates": (0.1,),
}  # fmt: skip


@pytest.mark.parametrize(
    ("scores", "losses", "why"),
    [
        ((-1.0, -1.1, -0.9), (1.0, 1.1, 0.9), ""),
        ((-1.0, math.nan, -0.9), (1.0, 1.1, 0.9), "the loss on the held-out batches is not finite"),
        ((-2.5, -2.51, -2.49), (1.0, 1.1, 0.9), "the loss on the held-out batches rose from 2.3 to 2.5"),
        ((-2.27, -2.28, -2.26), (1.0, 1.1, 0.9), "is 2.27, untreated copies reached 2.23"),
        ((-1.0, -1.1, -0.9), (3.0, 3.1, 2.9), "the loss rose from 2.3 to 3"),
        ((-1.0, -1.1, -0.9), (2.0, 3.0, 2.0, 2.3), ""),  # within its noise
        ((-1.0, -1.1, -0.9), (), ""),  # no loss is handed to watch.step
    ],
)
def test_what_makes_a_remedy_go(scores: Any, losses: Any, why: str) -> None:
    """Each measure can send a remedy away by itself, and none does where nothing fell."""
    told_why = _falls(_Guard(**GUARDED), scores, losses)
    assert why in told_why and bool(why) == bool(told_why)


def test_a_scheduler_goes_on_and_the_healed_run_learns() -> None:
    """A remedy that lowers the learning rate holds under a scheduler that sets it at every step."""
    rates: list[float] = []
    schedulers: list[Any] = []

    def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(parameters, lr=0.1)
        schedulers.append(torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.999**step))
        return optimizer

    def after(model: nn.Module, optimizer: torch.optim.Optimizer, watch: Any) -> None:
        schedulers[-1].step()
        rates.append(optimizer.param_groups[0]["lr"])

    model, _, watch = run(lambda: mlp(5), adam, after=after, heal=["lower_learning_rate+recycle"])
    assert "learning_rate" in str(watch.actions[0].adopted)
    assert rates == pytest.approx([0.1 * 0.999**step for step in range(1, 321)])
    assert accuracy(model) > 0.8


def test_a_compiled_network_gets_no_other_structure() -> None:
    """Remedies that change modules are not applied to what torch.compile has compiled; those of numbers are."""
    compiled: list[Any] = []

    def make() -> nn.Module:
        compiled.append(torch.compile(dead_by_bias(), backend="eager"))
        return compiled[-1]

    model, _, watch = run(make, ILL["dead by bias"][1], heal=["leaky_relu+he_init", "reset_bias+he_init"])
    first, second = watch.actions[0].tried
    assert "changes the network's structure, and torch.compile" in first.because and first.verdict is None
    assert second.verdict == "cured" and watch.actions[0].adopted == "reset_bias+he_init"
    assert watch.actions[0].cause == "bias"  # told by replays, which run what was compiled as it is
    assert accuracy(model) > 0.8


def test_the_window_holds_copies() -> None:
    """A loop that fills the same tensors again does not change what was collected."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    recorder = Recorder(model, optimizer, cross_entropy)
    recorder.window = []
    images, labels = torch.empty(8, 64), torch.empty(8, dtype=torch.long)
    for step in range(3):
        images.copy_(IMAGES[8 * step : 8 * step + 8])
        labels.copy_(LABELS[8 * step : 8 * step + 8])
        recorder.arm(read=False)
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        recorder.collect(loss)
    for step, (((input,), target),) in enumerate(recorder.window):
        assert torch.equal(input, IMAGES[8 * step : 8 * step + 8])
        assert torch.equal(target, LABELS[8 * step : 8 * step + 8])
    assert len(recorder.window) == 3


# errors -------------------------------------------------------------------------------------------------------------


def test_what_heal_needs_is_said() -> None:
    """Without loss function or optimizer, with an unknown remedy or with none, the error says what to do."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TrainingError, match=r"needs the loss for it; none was given.\nWrite relume.watch\(model, opt"):
        relume.watch(model, optimizer, heal=True)
    with pytest.raises(TrainingError, match="needs the optimizer for it"):
        relume.watch(model, loss=cross_entropy, heal=True)
    with pytest.raises(RemedyError, match="no remedy named 'relu6x'"):
        relume.watch(model, optimizer, loss=cross_entropy, heal=["relu6x"])
    with pytest.raises(RemedyError, match=r"was given no remedy to try\.\nWrite heal=True"):
        relume.watch(model, optimizer, loss=cross_entropy, heal=[])
    lbfgs = torch.optim.LBFGS(model.parameters())
    with pytest.raises(TrainingError, match=r"LBFGS asks its closure for several\.\nWatch with heal=False, or train"):
        relume.watch(model, lbfgs, loss=cross_entropy, heal=True)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process would adopt what it likes, and their networks would part."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    model = mlp()
    with pytest.raises(TrainingError, match=r"changes the network of one process; found 2, which"):
        relume.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), loss=cross_entropy, heal=True)


def stopped(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of the autopilot's end; alarms are logged too."""
    return [r.getMessage() for r in caplog.records if "autopilot stopped" in r.getMessage()]


def test_an_error_in_the_autopilot_ends_it_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, the watch goes on, and so does the training, to the same numbers."""

    def look(*_: Any) -> bool:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(Autopilot, "look", look)
    case = ILL["dead by bias"]
    model, optimizer, watch = run(*case, steps=80, heal=True)
    plain, unwatched, _ = run(*case, steps=80, watched=False)
    assert same(everything(model, optimizer), everything(plain, unwatched))
    (message,) = stopped(caplog)
    assert message.endswith("ZeroDivisionError: planted")
    assert watch.recording.steps == 80 and not watch.report().healthy


def test_an_error_while_adopting_leaves_the_network_as_it_was(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a treatment does not stay: the network goes on as if nothing had been tried."""
    settle, calls = Twin.settle, []

    def breaks(twin: Twin) -> None:
        settle(twin)
        calls.append(twin)
        if len(calls) == 1:
            raise OSError("planted")

    monkeypatch.setattr(Twin, "settle", breaks)
    case = ILL["dead by bias"]
    model, optimizer, _ = run(*case, steps=120, heal=["reset_bias"])
    plain, unwatched, _ = run(*case, steps=120, watched=False)
    assert len(calls) == 2
    assert same(everything(model, optimizer), everything(plain, unwatched))
    assert "OSError: planted" in caplog.text


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    """Remedies are tried on copies; that there can be none is said before the run, not in the middle of it."""
    model = mlp()
    model.numbers = (n for n in range(3))  # type: ignore[assignment]
    with pytest.raises(RemedyError, match="Sequential cannot be copied: TypeError"):
        relume.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), loss=cross_entropy, heal=True)


def test_where_no_trial_can_be_run_the_watch_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The autopilot says why it stops, once, and the watch goes on reading."""

    def fails(*_: Any) -> None:
        raise TrialError("planted")

    monkeypatch.setattr("relume.tryout.collect", fails)
    _, _, watch = run(*ILL["dead by bias"], steps=120, heal=True, budget=0.5)
    assert not watch.actions and watch.latest.step > 100
    assert stopped(caplog) == ["relume: the autopilot stopped at step 63: planted"]


def test_targets_that_cannot_be_told_are_said(caplog: pytest.LogCaptureFixture) -> None:
    """Where the loop's loss is not what the loss function gives, nothing can be tried."""
    torch.manual_seed(0)
    model = dead_by_bias()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = relume.watch(model, optimizer, loss=lambda output, target: output.sum(), heal=True)
    for start in range(0, 64 * FIRST_LOOK * 3, 64):
        batch = torch.arange(start, start + 64) % len(IMAGES)
        loss = cross_entropy(model(IMAGES[batch]), LABELS[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch.step(loss)
    assert watch.actions[0].why == (
        "the targets of the loss could not be told; hand to watch.step what loss= gives for output and target alone"
    )
    assert "nothing was tried" in caplog.text


# what is told ---------------------------------------------------------------------------------------------------------


def test_the_report_tells_what_was_done(tmp_path: Any) -> None:
    """Text, JSON and page name the remedy; the recording and the journal are of the steps since it was adopted."""
    path = tmp_path / "run.relume"
    # SGD without momentum has no state, from which a resumed network could be told
    _, _, watch = run(dead_by_bias, lambda p: torch.optim.SGD(p, lr=0.3), heal=True, journal=path)
    report = watch.report()
    (action,) = watch.actions
    assert report.actions == watch.actions
    line = told(action)
    assert t(line[1:]) in render(Page.of(report))
    text = " ".join(str(report).split())
    assert "What the autopilot did" in text and f"adopted {action.adopted}" in text
    numbers = json.loads(json.dumps(report.to_json()))["actions"]
    assert numbers[0]["adopted"] == action.adopted and numbers[0]["tried"][0]["remedy"] == action.tried[0].remedy
    assert report.healthy and report.recording.steps == 320 - action.step
    kept = read_journal(path)
    assert kept.steps == report.recording.steps and len(kept.losses) == kept.steps and kept.resumed


def test_actions_in_words() -> None:
    """One line says what was wrong, what was tried and what became of it, with its numbers."""
    attempt = Attempt(remedy="prelu", verdict="cured", loss=0.41, because="")
    action = Action(
        step=300, cause="bias", finding="64 units died.", tried=(attempt,), adopted="prelu", loss_before=2.3,
        loss_untreated=None,
    )  # fmt: skip
    line = (
        "step 300: 64 units died; tried 1 remedy on copies; adopted prelu (loss 2.3 -> 0.41 on held-out batches "
        "against not finite untreated)"
    )
    assert told(action) == line
    back = dataclasses.replace(action, rolled_back=400, why="the loss rose")
    assert told(back) == f"{line}; rolled prelu back at step 400: the loss rose"
    none = Action(step=9, cause="unknown", finding="A", tried=(attempt, attempt), adopted=None, why="none helped")
    assert told(none) == "step 9: A; tried 2 remedies on copies; none helped"


def test_the_guide_tells_what_was_measured() -> None:
    """The guide's table is what `examples/autopilot.py` printed."""
    root = Path(__file__).parents[1]
    lines = (root / "benchmarks/results/autopilot.txt").read_text().splitlines()
    without, healed = zip(*(re.findall(r"([\d.]+)%", line) for line in lines), strict=True)
    page = (root / "docs/guide/your-loop.md").read_text()
    assert f"| watched | {' | '.join(f'{n} %' for n in without)} |" in page
    assert f"| watched with `heal=True` | {' | '.join(f'{n} %' for n in healed)} |" in page


def test_a_remedy_that_gains_next_to_nothing_is_not_adopted() -> None:
    """It must take a hundredth off the loss of now and of the untreated copies, whatever the trial has proven."""

    def runs(loss: float, burden: float = 0.5) -> list[Run]:
        return [Run(arm="", seed=seed, score=-loss, burden=burden) for seed in range(3)]

    def arm(loss: float, burden: float = 0.5, verdict: Any = "eased") -> Arm:
        return Arm(
            name="", verdict=verdict, symptoms=(), scores=(-loss,) * 3, difference=None, cost=None,
            runs=tuple(runs(loss, burden)),
        )  # fmt: skip

    assert _helps(arm(2.0), runs(2.3), [-2.3])
    assert not _helps(arm(2.299), runs(2.3), [-2.3])
    assert not _helps(arm(2.0), runs(2.3), [-2.0])  # the loop itself was there already
    assert not _helps(arm(2.0, burden=0.6), runs(2.3), [-2.3])
    assert not _helps(arm(2.0, verdict="no_effect"), runs(2.3), [-2.3])
    assert _helps(arm(2.0), runs(float("nan")), [float("nan")])  # anything is better than a network that is NaN
