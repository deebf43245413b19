"""Causes: planted faults are named first, by replay and by the numbers alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_symptoms import batches, closed, mlp, scaled
from torch import Tensor, nn

import relume
import relume.nn
from relume.changes import CannotChange, changed
from relume.diagnosis import REMEDIES_FOR, Experiment, likeliest_cause
from relume.interventions import CHANGES, Scene, _is_lower, replay
from relume.recording import Recording
from relume.remedies import REMEDIES, find_remedy
from relume.report import words
from relume.snapshots import pair
from relume.suspicions import Cause, Suspicion, number, suspicions
from relume.symptoms import Symptom
from relume.training import Training


def xavier(model: Any) -> None:
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)


def he(model: Any) -> None:
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)


class Cut(nn.Module):
    """The gradient stops in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)).detach())


SGD, ADAM = torch.optim.SGD, torch.optim.Adam
Planted = tuple[Cause, Callable[[], nn.Module], Any, float, float]
PLANTED: dict[str, Planted] = {
    "a rate of 1 with Adam": ("learning_rate_too_high", mlp(), ADAM, 1.0, 1.0),
    "a rate of 20 with SGD": ("learning_rate_too_high", mlp(), SGD, 20.0, 1.0),
    "biases at -50": ("bias", mlp(edit=closed(24)), ADAM, 1e-3, 1.0),
    "inputs in the thousands": ("unscaled_inputs", mlp(), SGD, 0.1, 3000.0),
    "weights of std 1": ("initial_scale", mlp(depth=8, edit=scaled(1.0)), SGD, 0.01, 1.0),
    "exp in every layer, at He's scale": ("unbounded_activation", mlp(relume.nn.Exp, depth=6, edit=he), SGD, 0.01, 1.0),
    "weights of std 0.003": ("initial_scale", mlp(nn.Tanh, depth=6, edit=scaled(0.003)), SGD, 0.05, 1.0),
    "tanh with weights of std 2": ("initial_scale", mlp(nn.Tanh, edit=scaled(2.0)), ADAM, 1e-4, 1.0),
    "eight sigmoid layers": ("saturating_activation", mlp(nn.Sigmoid, depth=8, edit=xavier), SGD, 0.01, 1.0),
    "twelve layers of two": ("narrow_and_deep", mlp(depth=12, width=2), ADAM, 1e-3, 1.0),
    "a rate of 1e-9": ("learning_rate_too_low", mlp(), ADAM, 1e-9, 1.0),
}


def report_of(
    model: Callable[[], nn.Module], optimizer: Any, lr: float, scale: float, replays: bool = True, seed: int = 0
) -> relume.Report:
    training = Training(
        model=model,
        optimizer=lambda p: optimizer(p, lr=lr),
        loss=F.cross_entropy,
        batches=batches(scale=scale),
        steps=150,
    )
    return relume.diagnose(training, replays=replays, seed=seed)


@pytest.mark.parametrize("name", PLANTED)
def test_the_planted_cause_is_named_first(name: str) -> None:
    """Each fault is named, with its numbers, and with a replay where one was made."""
    cause, model, optimizer, lr, scale = PLANTED[name]
    report = report_of(model, optimizer, lr, scale)
    first = report.diagnoses[0]
    assert first.cause == cause, str(report)
    assert first.severity != "note" and sorted(first.remedies) == sorted(REMEDIES_FOR[cause])
    assert all(any(c.isdigit() for c in sentence) for sentence in first.because), first.because


@pytest.mark.parametrize("name", [n for n in PLANTED if n not in ("a rate of 20 with SGD",)])
def test_rules_alone_propose_the_planted_cause_and_say_that_they_are_alone(name: str) -> None:
    """Without a replay the numbers speak, and the diagnosis says that nothing was replayed."""
    cause, model, optimizer, lr, scale = PLANTED[name]
    first = report_of(model, optimizer, lr, scale, replays=False).diagnoses[0]
    assert first.cause == cause and "nothing was replayed" in " ".join(first.because)


def test_each_initialisation_is_advised_for_its_own_functions() -> None:
    """Tanh networks of the wrong scale are sent to Xavier first, ReLU networks to He."""
    for name, advised in (("tanh with weights of std 2", "xavier_init"), ("weights of std 1", "he_init")):
        _, model, optimizer, lr, scale = PLANTED[name]
        assert report_of(model, optimizer, lr, scale, replays=False).diagnoses[0].remedies[0] == advised


def test_a_gradient_that_stops_in_the_middle_is_named() -> None:
    """Weights that no gradient reaches are listed by name."""
    report = report_of(Cut, SGD, 1e-3, 1.0)
    suspects = [s for d in report.diagnoses for s in d.because if "a.weight" in s]
    assert report.diagnoses[0].cause == "no_gradient" and suspects, str(report)


@pytest.mark.parametrize("replays", [True, False])
def test_parameters_that_the_optimizer_was_not_given_are_named(replays: bool) -> None:
    """A network of which only the last bias is trained: the others are named, and a replay that trains them learns."""
    last = lambda parameters, lr: SGD(parameters[-1:], lr=lr)  # noqa: E731
    report = report_of(mlp(), last, 0.1, 1.0, replays=replays)
    assert report.diagnoses[0].cause == "no_gradient", str(report)
    told = " ".join(report.diagnoses[0].because)
    assert "the optimizer was not given them, so they never move: 0.weight" in told
    assert replays == ("all parameters handed to the optimizer" in told)


def test_a_body_that_stays_as_it_is_on_purpose_is_no_illness() -> None:
    """A network of which only the last layer is trained, and learns, has nothing wrong with the others."""
    head = lambda parameters, lr: SGD(parameters[-2:], lr=lr)  # noqa: E731
    report = report_of(mlp(depth=1, width=128), head, 0.5, 1.0)
    assert not any("not given" in said for d in report.diagnoses for said in d.because) and report.healthy, str(report)


def loop(watch: Any, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Any, data: Any) -> None:
    """One pass over the data, the way people write it."""
    for x, y in data:
        value = loss(model(x), y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        watch.step(value)


def test_a_watched_loop_replays_too_when_it_is_given_the_loss() -> None:
    """With the loss function the watch finds the target of each step, and replays the start on copies."""
    torch.manual_seed(0)
    model = mlp(edit=closed(24))()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = None
    with relume.watch(model, optimizer, loss=F.cross_entropy) as watch:
        for _ in range(8):
            loop(watch, model, optimizer, F.cross_entropy, batches())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    first = watch.report().diagnoses[0]
    assert first.cause == "bias" and len(first.experiments) >= 3
    assert first.experiments[0].cause is None and first.experiments[0].burden > 0.2
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(), F.cross_entropy, lambda o, t: -F.log_softmax(o, 1)[torch.arange(len(t)), t].mean()]
)
def test_targets_are_found_in_any_spelling_of_the_loss(loss: Any) -> None:
    """Modules, functions and hand-written losses all give the true targets, in order."""
    torch.manual_seed(0)
    model = mlp()()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with relume.watch(model, optimizer, loss=loss) as watch:
        loop(watch, model, optimizer, loss, batches())
    pairs = watch._recorder.first
    assert len(pairs) >= 10
    for (given, target), (x, y) in zip(pairs, batches(), strict=False):
        assert torch.equal(given[0], x) and torch.equal(target, y)


def test_a_replay_is_the_same_each_time_and_each_change_changes_something() -> None:
    """Replays are deterministic, and no change in the table is without effect."""
    x = [((a * 50 + 3) * (1e4 if i == 7 else 1), b.float() * 100) for i, (a, b) in enumerate(batches())]

    def network() -> nn.Module:
        return nn.Sequential(mlp(nn.Tanh, edit=scaled(0.7))(), nn.Hardtanh(-0.1, 0.1))

    recording = report_of(network, SGD, 1e-6, 1.0, replays=False).recording

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(3)
        model = network()
        return model, torch.optim.SGD(list(model.parameters())[1:], lr=1e-6)  # one is left out, to be handed over

    usual = [(a / 100, b * 100 + 7) for a, b in x]
    scene = Scene(start=start, batches=x, loss=lambda o, t: ((o[:, 0] - t) ** 2).mean(), usual=usual)
    control = replay(scene, recording, None, 30).losses
    assert control == replay(scene, recording, None, 30).losses
    for change in CHANGES:
        assert replay(scene, recording, change, 30).losses != control or change.cause == "bias", change.words


def test_a_change_of_several_things_is_put_down_to_the_one_that_the_numbers_name() -> None:
    """A textbook start that mends clears no plain suspicion; one that a single change mends comes first."""
    told = partial(Experiment, steps=9, measure="loss")
    as_it_was = told(change="as it was", cause=None, burden=1.0)
    alone = told(change="biases at zero", cause="bias", burden=0.99)
    book = told(change="a textbook start", cause="unknown", burden=0.0, better=True, covers=("bias", "initial_scale"))
    slower = told(change="a tenth of the rate", cause="learning_rate_too_high", burden=0.0, better=True)
    bias = Suspicion(cause="bias", strength=0.8, because="")
    rate = Suspicion(cause="learning_rate_too_high", strength=0.3, because="")
    assert likeliest_cause([bias], (as_it_was, alone, book)) == "bias"
    assert likeliest_cause([bias, rate], (as_it_was, alone, book, slower)) == "learning_rate_too_high"
    assert likeliest_cause([bias], (as_it_was, alone, book, slower)) == "bias"  # nobody suspected the rate
    assert likeliest_cause([], (as_it_was, alone, book)) == "unknown"
    faint = Suspicion(cause="bias", strength=0.2, because="")
    assert likeliest_cause([faint], (as_it_was, alone, book)) == "unknown"
    function = Suspicion(cause="saturating_activation", strength=0.6, because="")
    scale = Suspicion(cause="initial_scale", strength=0.9, because="")
    relu = told(change="ReLU", cause="saturating_activation", burden=0.0, better=True, covers=("initial_scale",))
    assert likeliest_cause([scale, function], (as_it_was, relu)) == "initial_scale"
    assert likeliest_cause([function], (as_it_was, relu)) == "saturating_activation"


def test_one_batch_out_of_all_proportion_is_named_not_the_learning_rate() -> None:
    """A batch whose inputs are a hundred thousand times the others' ruins a run that is well without it."""
    data = batches()
    data[9] = (data[9][0] * 1e5, data[9][1])
    training = Training(
        model=mlp(), optimizer=lambda p: torch.optim.SGD(p, lr=0.05), loss=F.cross_entropy, batches=data, steps=150
    )
    first = relume.diagnose(training).diagnoses[0]
    assert first.cause == "unscaled_inputs" and "left out" in " ".join(first.because), first


def regression(target: float, fitted: bool) -> relume.Report:
    """A network that learns a smooth function of values of that size; `fitted`: its output layer starts at it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2048, 16, generator=generator)
    y = target * (torch.tanh(x @ torch.randn(16, 1, generator=generator)) + 0.3 * x[:, :1])

    def network() -> nn.Module:
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
        if fitted:
            with torch.no_grad():
                for p in model[-1].parameters():
                    p.mul_(target)
        return model

    return relume.diagnose(
        Training(
            model=network,
            optimizer=lambda p: torch.optim.Adam(p, lr=3e-3),
            loss=F.mse_loss,
            batches=list(zip(x.split(64), y.split(64), strict=True)),
            steps=300,
        )
    )


def test_a_network_that_learns_slowly_because_of_its_targets_is_told_so() -> None:
    """A loss that falls by half is no clean bill where as many steps on sound targets lead much further."""
    report = regression(500.0, fitted=False)
    first = report.diagnoses[0]
    assert first.cause == "unscaled_targets" and first.severity == "warning", str(report)
    assert first.symptoms[0].evidence["progress"] > 0.1 and "less than it could" in str(report)
    assert regression(500.0, fitted=True).healthy  # the same targets, met by the output layer
    assert regression(1.0, fitted=False).healthy


def test_a_rate_that_grows_in_mid_run_is_named_from_before_it_did_harm() -> None:
    """The illness began long after the start: replays begin where the loss was still low."""

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        made = torch.optim.SGD(parameters, lr=0.1)
        made.register_step_post_hook(Ramp())
        return made

    training = Training(model=mlp(), optimizer=optimizer, loss=F.cross_entropy, batches=batches(), steps=500)
    report = relume.diagnose(training)
    first = report.diagnoses[0]
    assert first.cause == "learning_rate_too_high" and first.experiments, str(report)
    assert first.since > 100


class Ramp:
    """A schedule that lets the rate grow from some step on, to so many times what it was."""

    def __init__(self, rate: float = 0.1, growth: float = 1.05, since: int = 200, most: float = math.inf) -> None:
        self.steps, self.rate, self.growth, self.since, self.most = 0, rate, growth, since, most

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.steps += 1
        grown = math.log(self.growth) * max(0, self.steps - self.since)
        for group in optimizer.param_groups:
            group["lr"] = self.rate * min(self.most, math.exp(min(700.0, grown)))


def test_replays_begin_earlier_where_the_nearest_snapshot_is_spoilt_already() -> None:
    """The rate leaps two steps before a snapshot is taken: from there nothing mends, from the one before it does."""

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        made = torch.optim.SGD(parameters, lr=0.05)
        made.register_step_post_hook(Ramp(0.05, 1600.0, 147, 1600.0))
        return made

    training = Training(model=mlp(), optimizer=optimizer, loss=F.cross_entropy, batches=batches(), steps=300)
    first = relume.diagnose(training).diagnoses[0]
    assert first.cause == "learning_rate_too_high", first
    assert min(e.burden for e in first.experiments[1:]) <= 0.5 * first.experiments[0].burden


def test_a_loss_that_has_next_to_nothing_left_is_not_plainly_lower() -> None:
    """A fifth off a loss of a fiftieth is not missed; off a loss of one it is, and where the unit is not known too."""
    control, lower = np.full(50, 0.024), np.full(50, 0.019)
    assert not _is_lower(lower, control, math.inf, 0.01)
    assert _is_lower(lower, control, math.inf, 0.0)
    assert _is_lower(50 * lower, 50 * control, math.inf, 0.01)
    assert not _is_lower(50 * lower, 50 * control, 0.9, 0.01)  # the run itself ended lower


def test_every_cause_has_its_remedies_and_its_words() -> None:
    """No cause of the contract is without an entry, and every remedy it names is one that can be tried."""
    assert set(get_args(Cause)) == set(REMEDIES_FOR) == set(words.CAUSES) == set(words.BECAUSE)
    named = {name for names in REMEDIES_FOR.values() for name in names}
    assert {part for name in named for part in name.split("+")} <= set(REMEDIES)
    assert all(find_remedy(name).name == name for name in named)


def test_nothing_recorded_is_a_healthy_report() -> None:
    """An empty recording gives a report, not an error."""
    report = relume.Report.of(Recording())
    assert report.healthy and report.coverage.sites == ()


@pytest.mark.parametrize(
    ("value", "words"), [(0.0, "0"), (0.123456, "0.12"), (1234.5, "1200"), (3e-9, "3.0e-09"), (2.5e7, "2.5e+07")]
)
def test_numbers_have_two_digits(value: float, words: str) -> None:
    """Sentences carry no more digits than a reader needs."""
    assert number(value) == words


def test_a_checkup_leaves_the_model_bit_identical() -> None:
    """Buffers, gradients, modes and the random generator stay, with a loss and without."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 4))
    F.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    state = torch.get_rng_state()
    for loss in (None, F.cross_entropy):
        report = relume.checkup(model, batches(), loss)
        assert report.recording.readings[0].sites["2"].gradient is not None
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(g, p.grad) for g, p in zip(gradients, model.parameters(), strict=True) if p.grad is not None)
    assert torch.equal(state, torch.get_rng_state()) and model.training


class Uncopyable(nn.Module):
    """It holds a generator, as a network that reads from somewhere may."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.source = mlp()(), (i for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_a_network_that_cannot_be_copied_is_diagnosed_all_the_same() -> None:
    """`diagnose` builds it anew for its replays; a watched loop says that nothing was replayed."""
    report = report_of(Uncopyable, SGD, 1e-9, 1.0)
    assert report.diagnoses[0].cause == "learning_rate_too_low" and report.diagnoses[0].experiments
    model = Uncopyable()
    optimizer = SGD(model.parameters(), lr=1e-9)
    with relume.watch(model, optimizer, loss=F.cross_entropy) as watch:
        for _ in range(10):
            for x, y in batches():
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                watch.step(loss)
    blind = watch.report().coverage.blind
    assert any(sentence.startswith("nothing was replayed: Uncopyable cannot be copied") for sentence in blind), blind


def test_a_change_that_the_loss_refuses_is_left_out() -> None:
    """Without its last function this output lies beyond 0 to 1, where BCELoss raises; the true cause is found."""

    def shut() -> nn.Module:
        inner: Any = mlp()()
        with torch.no_grad():
            inner[-1].bias.fill_(-20.0)
        return nn.Sequential(inner, nn.Hardsigmoid())

    labelled = [(x, F.one_hot(y, 4).float()) for x, y in batches()]
    report = relume.diagnose(
        Training(
            model=shut, optimizer=lambda p: SGD(p, lr=0.1), loss=F.binary_cross_entropy, batches=labelled, steps=120
        )
    )
    assert report.diagnoses[0].cause == "bias", str(report)
    assert not any(e.change == "no function on the output" for e in report.diagnoses[0].experiments)


def test_inputs_of_a_table_are_standardised_column_by_column() -> None:
    """Units that differ a millionfold between features are put right by the replay that scales inputs."""
    scales = torch.logspace(-3, 3, 16)
    change = next(c for c in CHANGES if c.cause == "unscaled_inputs")
    assert change.data is not None
    scaled_batches = change.data([(x * scales + 5 * scales, y) for x, y in batches()])
    values = torch.cat([x for x, _ in scaled_batches])
    assert torch.allclose(values.mean(0), torch.zeros(16), atol=1e-4)
    assert torch.allclose(values.std(0, correction=0), torch.ones(16), atol=1e-3)


@pytest.mark.parametrize("place", [0, 1])
def test_data_that_changed_are_brought_back_to_what_they_were(place: int) -> None:
    """Shifted and scaled data get their old mean and deviation, column by column; what did not change stays."""
    before = [(x, torch.stack([y.float(), -y.float()], 1)) for x, y in batches()]
    now: Any = [tuple(part * 40 + 9 if i == place else part for i, part in enumerate(batch)) for batch in before]
    model = mlp()()
    optimizer = SGD(model.parameters(), lr=0.1)
    recording = report_of(mlp(), SGD, 0.1, 1.0, replays=False).recording
    for change in (c for c in CHANGES if c.back is not None):
        if change.back == place:
            _, back = changed(change, recording, model, optimizer, now, before)
            for batch, old in zip(back, before, strict=True):
                for a, b in zip(batch, old, strict=True):
                    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        for data, usual in ((before, before), (now, ()), *([(now, before)] if change.back != place else [])):
            with pytest.raises(CannotChange):
                changed(change, recording, model, optimizer, data, usual)


def test_what_changed_in_mid_run_is_seen_in_the_numbers() -> None:
    """Inputs and a learning rate that are many times what they were before the complaint are suspected."""
    steady = report_of(mlp(), SGD, 0.1, 1.0, replays=False).recording
    late = Symptom(kind="dead", site=steady.sites[0].name, since=steady.readings[-2].step)
    assert not {"unscaled_inputs"} & {s.cause for s in suspicions(steady, (late,))}
    fed = steady.readings[-1].input
    assert fed is not None
    changes: tuple[tuple[dict[str, Any], str, str], ...] = (
        ({"input": replace(fed, rms=fed.rms * 50)}, "unscaled_inputs", "root mean square of"),
        ({"learning_rate": 10.0}, "learning_rate_too_high", "went from 0.1 to 10"),
    )
    for change, cause, said in changes:
        readings = tuple(replace(r, **change) if r.step >= late.since else r for r in steady.readings)
        found = [s for s in suspicions(replace(steady, readings=readings), (late,)) if s.cause == cause]
        assert found and found[0].strength >= 0.5 and said in found[0].because
        born = replace(late, since=0, born=True)
        told = suspicions(replace(steady, readings=readings), (born,))
        assert not any(said in s.because for s in told)


def test_a_snapshot_keeps_what_hangs_on_the_optimizer() -> None:
    """Schedules and clipping that are step hooks go on in the copy."""
    model = mlp()()
    optimizer = SGD(model.parameters(), lr=0.1)
    stepped: list[float] = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: stepped.append(o.param_groups[0]["lr"]))
    _, twin = pair(model, optimizer)
    twin.step()
    assert stepped == [0.1]


def test_replays_never_drive_what_is_the_loops_own() -> None:
    """A hook that holds the loop's scheduler, or a loss with a state: a report says so, or works on copies."""

    class Counting(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.temperature = nn.Parameter(torch.ones(()))

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            self.calls += 1
            return F.cross_entropy(output / self.temperature, target)

    torch.manual_seed(0)
    model, counting = mlp(edit=closed(24))(), Counting()
    optimizer = torch.optim.SGD([*model.parameters(), *counting.parameters()], lr=0.05)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.999**epoch)
    hook = optimizer.register_step_post_hook(lambda *_: scheduler.step())
    with relume.watch(model, optimizer, loss=counting) as watch:
        loop(watch, model, optimizer, counting, batches())
        steps, calls, gradient = scheduler.last_epoch, counting.calls.clone(), counting.temperature.grad
        kept = None if gradient is None else gradient.clone()
        refused = watch.report()
        assert "step hook of SGD holds a LambdaLR" in " ".join(refused.coverage.blind)
        assert scheduler.last_epoch == steps
        hook.remove()
        replayed = watch.report()
        assert replayed.diagnoses[0].experiments and replayed.diagnoses[0].cause == "bias"
    assert torch.equal(counting.calls, calls)
    assert kept is not None and counting.temperature.grad is not None
    assert torch.equal(counting.temperature.grad, kept)


def test_a_report_survives_whatever_its_replays_raise() -> None:
    """A schedule that ends with the run cannot be replayed past its end: the report says so and stands."""

    class OneCycle:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=20)

        def __call__(self, *_: Any) -> None:
            self.scheduler.step()

    torch.manual_seed(0)
    model = mlp(edit=closed(24))()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    optimizer.register_step_post_hook(OneCycle(optimizer))
    with relume.watch(model, optimizer, loss=F.cross_entropy) as watch:
        loop(watch, model, optimizer, F.cross_entropy, batches()[:15])
    report = watch.report()
    assert not report.healthy and "nothing was replayed" in " ".join(report.coverage.blind)


def test_a_warm_up_from_zero_is_replayed_at_the_rate_it_leads_to() -> None:
    """At the rate of the first step nothing would move, and every change would look alike."""
    torch.manual_seed(0)
    model = mlp(edit=closed(24))()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, epoch / 20))
    with relume.watch(model, optimizer, loss=F.cross_entropy) as watch:
        for batch in batches() * 8:
            loop(watch, model, optimizer, F.cross_entropy, [batch])
            scheduler.step()
    first = watch.report().diagnoses[0]
    as_it_was, slower = first.experiments[:2]
    assert slower.change == "the learning rate divided by 10" and slower.loss != as_it_was.loss, first


def test_a_network_that_arrives_trained_is_no_start() -> None:
    """Its first loss beats every constant answer by far: what is dead in it was so before this run."""
    trained = mlp()()
    optimizer = torch.optim.Adam(trained.parameters(), lr=1e-2)
    for x, y in batches() * 20:
        value = F.cross_entropy(trained(x), y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    def again(network: Callable[[], nn.Module]) -> Recording:
        training = Training(
            model=network, optimizer=lambda p: torch.optim.SGD(p, lr=1e-3), loss=F.cross_entropy, batches=batches(),
            steps=120,
        )  # fmt: skip
        return relume.diagnose(training).recording

    assert again(lambda: copy.deepcopy(trained)).resumed
    assert not again(mlp()).resumed
