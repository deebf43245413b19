"""Every detector finds a network ill by construction, and passes its healthy twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relume
from relume.diagnosis import Experiment, settled
from relume.recording import Reach, Recording
from relume.symptoms import DETECTORS, Symptom, burden, find, find_alike, find_not_learning, find_out_of_reach
from relume.training import Training


def batches(samples: int = 1024, size: int = 64, scale: float = 1.0, target_scale: float = 1.0) -> list[Any]:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 16, generator=rng)
    y = (x[:, :4].argmax(1) * target_scale).long()
    return list(zip((x * scale).split(size), y.split(size), strict=True))


def mlp(
    act: Callable[[], nn.Module] = nn.ReLU, depth: int = 3, width: int = 32, edit: Callable[[Any], None] | None = None
) -> Callable[[], nn.Sequential]:
    def make() -> nn.Sequential:
        sizes = [16, *[width] * depth]
        parts = [p for i, o in pairwise(sizes) for p in (nn.Linear(i, o), act())]
        model = nn.Sequential(*parts, nn.Linear(width, 4))
        if edit is not None:
            with torch.no_grad():
                edit(model)
        return model

    return make


def run(
    model: Callable[[], nn.Module],
    lr: float = 1e-3,
    steps: int = 120,
    optimizer: Any = torch.optim.Adam,
    data: list[Any] | None = None,
) -> relume.Report:
    training = Training(
        model=model,
        optimizer=lambda p: optimizer(p, lr=lr),
        loss=F.cross_entropy,
        batches=data if data is not None else batches(),
        steps=steps,
    )
    return relume.diagnose(training, replays=False)


def kinds(report: relume.Report) -> set[str]:
    return {s.kind for d in report.diagnoses if d.severity != "note" for s in d.symptoms}


def scaled(std: float) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight.normal_(std=std)
                layer.bias.zero_()

    return edit


def closed(units: int) -> Callable[[Any], None]:
    return lambda model: model[2].bias[:units].fill_(-50.0)


HEALTHY: dict[str, Callable[[], relume.Report]] = {
    "relu": lambda: run(mlp()),
    "relu with momentum": lambda: run(mlp(), 0.05, optimizer=lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)),
    "tanh": lambda: run(mlp(nn.Tanh)),
    "gelu": lambda: run(mlp(nn.GELU)),
    "elu": lambda: run(mlp(nn.ELU)),
    "leaky relu": lambda: run(mlp(nn.LeakyReLU)),
    "shallow sigmoid": lambda: run(mlp(nn.Sigmoid, depth=1), 0.01),
}


@cache
def healthy(name: str) -> relume.Report:
    return HEALTHY[name]()


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_network_is_given_a_clean_bill(name: str) -> None:
    """Ordinary networks that learn have no finding, whatever their function."""
    report = healthy(name)
    assert report.healthy, str(report)
    assert report.coverage.watched == report.coverage.sites and len(report.coverage.sites) == len(
        report.recording.sites
    )


def test_units_closed_by_their_bias_are_born_dead_and_named_exactly() -> None:
    """The planted units, no other, are dead from the first step on, at their own site."""
    report = run(mlp(edit=closed(24)))
    (symptom,) = [s for s in report.symptoms if s.kind == "dead" and s.severity != "note"]
    assert set(range(24)) <= set(symptom.units) and len(symptom.units) <= 26
    assert (symptom.site, symptom.born, symptom.since) == ("3", True, 0)
    assert symptom.evidence["samples"] >= 1000
    assert symptom.evidence["rate_below"] == pytest.approx(3 / symptom.evidence["distinct_samples"])
    assert not report.healthy


def test_units_killed_by_the_learning_rate_died_and_are_dated() -> None:
    """At a rate of 1 a ReLU network dies after step 0, and is not called born dead."""
    report = run(mlp(), lr=1.0)
    dead = [s for s in report.symptoms if s.kind == "dead" and s.severity != "note"]
    assert dead and all(not s.born and s.since >= 1 for s in dead)


def test_sigmoid_stacks_vanish_and_tanh_stacks_of_the_same_depth_do_not() -> None:
    """Eight sigmoid layers at Xavier's scale lose the gradient; tanh at the same scale keeps it."""

    def xavier(model: Any) -> None:
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)

    ill = run(mlp(nn.Sigmoid, depth=8, edit=xavier), 0.01, optimizer=torch.optim.SGD)
    (symptom,) = [s for s in ill.symptoms if s.kind == "vanishing"]
    # theory: 0.0557 of the energy a layer at Xavier's scale for square layers, as an amplitude 0.236
    assert symptom.born and symptom.evidence["per_layer"] == pytest.approx(0.236, rel=0.15)
    assert symptom.severity != "note"
    assert "vanishing" not in kinds(run(mlp(nn.Tanh, depth=8, edit=xavier), 0.01, optimizer=torch.optim.SGD))


def test_tanh_with_large_weights_is_saturated_and_with_sound_ones_is_not() -> None:
    """Weights of ten times the sound scale saturate tanh from the start."""
    report = run(mlp(nn.Tanh, edit=scaled(2.0)), 1e-4)
    assert "saturated" in kinds(report) and all(s.born for s in report.symptoms if s.kind == "saturated")
    assert "saturated" not in kinds(healthy("tanh"))


def test_large_weights_explode_and_their_nan_is_no_death() -> None:
    """A gradient that grows over depth is exploding; after the NaN no unit is counted as dead."""
    report = run(mlp(depth=8, edit=scaled(1.0)), 0.1, optimizer=torch.optim.SGD)
    assert {"exploding", "non_finite"} <= kinds(report) and "dead" not in kinds(report)
    assert not {"exploding", "non_finite"} & kinds(healthy("relu"))


def test_a_step_too_small_does_not_learn_and_a_sound_one_does() -> None:
    """A rate of 1e-9 leaves the loss where it was."""
    assert kinds(run(mlp(), 1e-9)) == {"not_learning"}
    assert "not_learning" not in kinds(healthy("relu"))


def test_a_loss_that_creeps_down_with_weights_that_stand_still_does_not_learn() -> None:
    """Full batches let the loss fall at every step, however small; the same fall with weights that move is learning."""
    whole = [(torch.cat([x for x, _ in batches()]), torch.cat([y for _, y in batches()]))]
    creeping = run(mlp(), 1e-4, optimizer=torch.optim.SGD, data=whole)
    losses = creeping.recording.losses
    assert losses[-1] < losses[len(losses) // 2] < losses[0]
    assert kinds(creeping) == {"not_learning"} and creeping.diagnoses[0].cause == "learning_rate_too_low"
    assert "not_learning" not in kinds(run(mlp(), 0.03, optimizer=torch.optim.SGD, data=whole))
    resumed = find(replace(creeping.recording, resumed=True))  # may have arrived
    assert all(symptom.severity == "note" for symptom in resumed)


def with_losses(losses: Any) -> Recording:
    return Recording(losses=tuple(float(v) for v in losses), steps=len(losses))


def test_a_loss_that_leaps_back_again_and_again_oscillates_and_noise_does_not() -> None:
    """Swings between well below and above the first loss count; a falling noisy loss does not."""
    rng = np.random.default_rng(0)
    swinging = np.where(np.arange(200) % 7 < 3, 3.0, 0.4) + 0.01 * rng.standard_normal(200)
    swinging[:5] = 2.0
    falling = 2 * np.exp(-np.arange(200) / 60) + 0.3 * rng.random(200)
    assert [s.kind for s in find(with_losses(swinging))] == ["oscillating"]
    assert find(with_losses(falling)) == ()


def test_a_loss_at_a_plateau_then_falling_is_learning() -> None:
    """Most of a run without progress is no finding when the loss falls in the end."""
    losses = np.concatenate([np.full(150, 2.3), np.linspace(2.3, 0.5, 50)]) + 0.01 * np.sin(np.arange(200))
    assert find(with_losses(losses)) == ()


def test_a_loss_that_fell_and_rose_again_is_ill_since_it_rose() -> None:
    """What was learnt and lost is dated to where it was lost, and is no illness of the start."""
    fell, rest, rose = np.geomspace(2.3, 0.05, 300), np.full(200, 0.05), np.geomspace(0.05, 2.3, 100)
    [lost] = find_not_learning(with_losses([*fell, *rest, *rose, *np.full(400, 2.3)]))
    assert not lost.born and 500 <= lost.since <= 560
    [stuck] = find_not_learning(with_losses(np.full(1000, 2.3) + 0.01 * np.sin(np.arange(1000))))
    assert stuck.born and stuck.since == 0
    reach = Reach(layer="", first=60.0, floor=0.0, free=0.0, constant=1.0)
    from_above = replace(with_losses([*np.geomspace(60, 1.2, 300), *np.full(700, 1.25)]), reach=reach)
    [never] = find_not_learning(from_above)  # it had not learnt: the output layer came to the best constant answer
    assert never.born and never.evidence["progress"] < 0
    below_zero = with_losses([*np.full(20, -1.0), *np.full(30, -0.5), *np.full(950, 2.0)])
    assert all(s.born for s in find_not_learning(below_zero))


def test_layers_behind_weights_at_zero_are_not_cut_off() -> None:
    """Where all weights are zero no gradient gets back: that is their scale, not a detach()."""

    def zeros(model: Any) -> None:
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    report = run(mlp(nn.Tanh, edit=zeros), 0.05)
    assert report.diagnoses[0].cause == "initial_scale", str(report)


def test_off_centre_is_a_note_and_tanh_is_centred() -> None:
    """Sigmoid's output is mostly its mean, which is no illness; tanh's is not."""
    found = [s for s in healthy("shallow sigmoid").symptoms if s.kind == "off_centre"]
    assert found and all(s.severity == "note" for s in found)
    assert not any(s.kind == "off_centre" for s in healthy("tanh").symptoms)


def test_too_few_samples_are_no_verdict() -> None:
    """A unit silent on 900 samples is not called dead; on 1,000 it is."""
    model = mlp(edit=closed(32))()
    x = torch.randn(1000, 16)
    assert not any(s.kind == "dead" for s in relume.checkup(model, [x[:900]]).symptoms)
    assert any(s.kind == "dead" for s in relume.checkup(model, [x]).symptoms)


def test_dead_units_that_initialisation_explains_are_no_finding() -> None:
    """Deep ReLU networks at torch's own scale are born with silent units; that is a note."""
    report = run(mlp(depth=6), 1e-9, steps=60)
    assert any(s.kind == "dead" and s.born for s in report.symptoms)
    assert not any(s.kind == "dead" and s.severity != "note" for s in report.symptoms)


def test_unit_evidence_ends_where_values_break() -> None:
    """Readings after the first NaN do not count towards silence."""
    report = run(mlp(edit=closed(24)))
    readings = report.recording.readings
    broken = replace(readings[1], loss=float("nan"))
    cut = replace(report.recording, readings=(readings[0], broken, *readings[2:]))
    assert not any(s.kind == "dead" for s in find(cut))


def test_burden_orders_what_is_worse() -> None:
    """More dead units are a greater burden, and a healthy run has next to none."""
    burdens = []
    for units in (0, 8, 24, 32):
        recording = run(mlp(edit=closed(units))).recording
        burdens.append(burden(recording, find(recording), ("dead",)))
    assert burdens == sorted(burdens) and burdens[0] < 0.1 < burdens[-1] <= 1


def test_every_detector_is_exercised_here() -> None:
    """A new detector needs a test in this file: its name is looked for."""
    source = Path(__file__).read_text(encoding="utf-8")
    for detector in DETECTORS:
        assert detector.__name__.removeprefix("find_") in source, detector.__name__


def test_a_closed_layer_needs_fewer_samples_than_a_unit() -> None:
    """A layer shut for every sample of 200 single ones is closed; some dead units of it are no verdict yet."""
    singles = batches(200, 1)
    shut = run(mlp(edit=closed(32)), data=singles, steps=150)
    assert shut.diagnoses[0].cause == "bias" and shut.diagnoses[0].severity == "critical"
    recording = replace(shut.recording, readings=shut.recording.readings[:40])
    whole = [s for s in find(recording) if s.kind == "dead" and s.share == 1.0]
    assert not whole  # 40 samples are too few for a layer too


def test_units_that_died_in_a_network_that_learns_are_a_doubt_that_replays_settle() -> None:
    """Without a replay a note; with one an illness where a change keeps them alive and learns more, else a note."""
    died = Symptom(kind="dead", site="1", share=0.7, severity="note", at_worst="warning")
    before, after = (
        Experiment(change="as it was", cause=None, steps=9, burden=0.5, measure="share of units dead"),
        Experiment(
            change="a tenth", cause="learning_rate_too_high", steps=9, burden=0.1, measure="share of units dead",
            better=True,
        ),
    )  # fmt: skip
    assert settled((died,), ()) == (died,)
    assert [s.severity for s in settled((died,), (before, after))] == ["warning"]
    for no_help in (replace(after, better=False), replace(after, burden=0.3)):
        assert [s.severity for s in settled((died,), (before, no_help))] == ["note"]


def test_units_that_start_alike_are_named_with_the_scale_of_their_weights() -> None:
    """A constant initialisation makes one unit of many; drawn weights with biases at zero do not."""

    def constant(value: float) -> Callable[[Any], None]:
        def edit(model: Any) -> None:
            for layer in model[0:4:2]:
                layer.weight.fill_(value)
                layer.bias.zero_()

        return edit

    report = run(mlp(edit=constant(0.1)), steps=200)
    assert report.diagnoses[0].cause == "initial_scale" and not report.healthy, str(report)
    assert {s.site for d in report.diagnoses for s in d.symptoms if "initial_weight" in s.evidence} == {"1", "3"}
    assert [s.site for s in find_alike(run(mlp(edit=lambda m: m[0].bias.zero_())).recording)] == []


def test_an_output_that_never_reaches_the_targets_is_out_of_reach() -> None:
    """Half of the first loss cannot be lost: a warning; for class numbers a note while the rest of it comes down."""
    reach = Reach(layer="2", first=1.0, floor=0.5, free=0.0)
    losses = tuple(np.linspace(1.0, 0.6, 200))
    recording = Recording(losses=losses, steps=200, reach=reach)
    assert [s.severity for s in find_out_of_reach(recording)] == ["warning"]
    assert [s.severity for s in find_out_of_reach(replace(recording, reach=replace(reach, classes=True)))] == ["note"]
    assert not list(find_out_of_reach(replace(recording, reach=replace(reach, floor=0.05))))


def test_a_closed_output_is_found() -> None:
    """A ReLU on the network's own output that is shut for every sample is dead, and critical."""

    def shut(model: Any) -> None:
        model[-1].weight.abs_().neg_()  # what comes in is positive, so what goes out is negative
        model[-1].bias.zero_()

    model = nn.Sequential(*mlp(edit=shut)(), nn.ReLU())

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return ((output[:, 0] - target) ** 2).mean()

    report = relume.checkup(model, batches(), loss)
    assert report.diagnoses[0].cause == "output_activation" and report.diagnoses[0].severity == "critical"


class Cut(nn.Module):
    """Two layers; the gradient stops between them, or the second starts at zero."""

    def __init__(self, *, detach: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 4)
        nn.init.zeros_(self.b.weight)
        self.detach = detach

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        return self.b(h.detach() if self.detach else h)


def test_a_layer_cut_off_from_the_gradient_is_found_although_the_loss_falls() -> None:
    """A detach in the middle is a finding; a layer that gets no gradient in the first step only is none."""
    cut_off = run(lambda: Cut(detach=True), 0.01)
    assert [(s.kind, s.site) for s in cut_off.symptoms if s.severity != "note"] == [("not_learning", "relu")]
    assert cut_off.diagnoses[0].cause == "no_gradient" and not cut_off.healthy
    assert run(lambda: Cut(detach=False), 0.01).healthy


def test_a_frozen_layer_is_normal() -> None:
    """Weights that are not to be trained need no gradient."""

    def frozen() -> nn.Module:
        model = mlp()()
        model[0].requires_grad_(False)
        return model

    assert run(frozen, 0.01).healthy


def test_one_unit_of_two_is_no_finding() -> None:
    """A bottleneck of two units that lost one, in a network that learns, is a note."""

    def bottleneck() -> nn.Module:
        return nn.Sequential(
            nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2), nn.ReLU(), nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 4)
        )

    recording = run(bottleneck, 0.01).recording
    for step, reading in enumerate(recording.readings):
        reading.sites["3"].silent[:] = [step > 3, False]
    assert [s.severity for s in find(recording) if s.kind == "dead" and s.site == "3"] == ["note"]


def test_half_the_outputs_closed_is_a_finding() -> None:
    """On the network's own output nothing stands in for a unit."""
    layer = nn.Linear(16, 4)
    with torch.no_grad():
        layer.bias[:2].fill_(-100.0)
    report = relume.checkup(nn.Sequential(layer, nn.ReLU()), batches(), F.cross_entropy)
    assert not report.healthy and report.diagnoses[0].cause in ("output_activation", "bias")


def test_a_loss_around_zero_says_nothing_by_its_size() -> None:
    """A policy gradient's loss that wanders around zero is not called stuck."""
    rng = np.random.default_rng(0)
    assert find(with_losses(rng.standard_normal(300))) == ()


def test_growing_gradients_are_a_finding_although_a_huge_loss_falls() -> None:
    """A loss that falls from a huge value does not excuse gradients that grow a thousandfold over depth."""
    report = run(mlp(depth=8, edit=scaled(1.0)))
    assert report.recording.losses[-1] < report.recording.losses[0] / 2
    assert "exploding" in kinds(report)


def test_nan_in_the_data_is_named_before_what_it_broke() -> None:
    """Of a broken run the input is named first, also where a later reading saw it."""
    data = [(x.clone(), y) for x, y in batches()]
    data[3][0][0, 0] = float("nan")
    torch.manual_seed(0)
    model = mlp()()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with relume.watch(model, optimizer, budget=1e9) as watch:  # every step is read, however slow the machine
        for _ in range(3):
            for x, y in data:
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                watch.step(loss)
    first = watch.report().diagnoses[0]
    assert first.cause == "unscaled_inputs" and "NaN" in first.because[0]


def test_dead_units_of_a_network_that_was_trained_before_are_not_held_against_its_initialisation() -> None:
    """A quarter of a layer dead at the first reading is a finding in a new network, and a note in a resumed one."""
    for resumed in (False, True):
        torch.manual_seed(0)
        model = mlp(edit=closed(8))()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        passes = batches() * 2
        for x, y in passes[:1] if resumed else []:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        with relume.watch(model, optimizer) as watch:
            for x, y in passes:
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                watch.step(loss)
        (symptom,) = [s for s in watch.report().symptoms if s.kind == "dead" and len(s.units) >= 8]
        assert symptom.severity == ("note" if resumed else "warning")
