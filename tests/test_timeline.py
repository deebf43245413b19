"""What became of each unit: planted deaths are found, dated and told; sparse units never come and go."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from records import healthy_report, ill_report, non_finite_report
from torch import nn

from relume.recorder import Recorder
from relume.recording import (
    InitialWeight,
    InputReading,
    Reading,
    Recording,
    Site,
    SiteReading,
    WeightReading,
    from_json,
    to_json,
)
from relume.report import Report
from relume.report.history import DEAD, histories
from relume.report.results import Page
from relume.report.text import render
from relume.report.words import timeline as told
from relume.symptoms import find
from relume.timeline import UnitHistory, timeline, together

KILLED = range(24)  # of the 32 units of site "3": unit 0 is revived by hand, unit 1 is and dies again
STEP, REVIVAL, AGAIN, STEPS = 50, 180, 310, 450  # far enough apart for a thousand samples read at each 7th step
RATE = 0.05


def run(every: int = 1, size: int = 64, kill: bool = True, sparse: float = 0.0) -> tuple[Recording, float]:
    """A run read at each `every`-th step, and by what share of its size step 50 moved the layer."""
    torch.manual_seed(0)
    layer = nn.Linear(32, 32)
    nn.init.constant_(layer.bias, 0.3)  # all fire on many samples, so that only what is planted dies
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), layer, nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2048, 16, generator=rng)
    if sparse:  # each unit of the layer starts by firing on that share of the data
        with torch.no_grad():
            layer.bias -= model[:3](x).quantile(1 - sparse, dim=0)
    y = x[:, :4].argmax(1)
    recorder = Recorder(model, optimizer)
    moved = 0.0
    for step in range(STEPS):
        recorder.arm(read=step % every == 0)
        chosen = torch.randint(0, 2048, (size,), generator=rng)
        loss = F.cross_entropy(model(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        before = torch.cat([p.detach().flatten() for p in layer.parameters()])
        if kill and step == STEP:
            assert layer.bias.grad is not None
            layer.bias.grad[list(KILLED)] = 20 / RATE
        optimizer.step()
        if step == STEP:
            after = torch.cat([p.detach().flatten() for p in layer.parameters()])
            moved = float((after - before).norm() / after.norm())
        if kill:
            with torch.no_grad():
                layer.bias[:2] += 20.0 * (step == REVIVAL)
                layer.bias[1] -= 20.0 * (step == AGAIN)
        recorder.collect(loss.detach())
    return recorder.recording(), moved


@cache
def planted(every: int = 1) -> tuple[Recording, float]:
    return run(every)


def of(recording: Recording, site: str = "3") -> dict[int, UnitHistory]:
    return {history.unit: history for history in timeline(recording) if history.site == site}


@pytest.mark.parametrize("every", [1, 7])
def test_planted_deaths_are_found_dated_between_two_readings_and_named_by_kind(every: int) -> None:
    """The killed units died between the readings around step 50, one was revived, one flickers, the others live."""
    recording, _ = planted(every)
    units = of(recording)
    kinds = {0: "revived", 1: "flickering"} | dict.fromkeys(KILLED[2:], "died") | dict.fromkeys(range(24, 32), "alive")
    assert {unit: history.kind for unit, history in units.items()} == kinds
    before = STEP // every * every  # the forward pass of step 50 itself still finds the units alive
    since = before + every
    for unit in KILLED[2:]:
        assert (units[unit].before, units[unit].since, units[unit].revivals) == (before, since, 0)
        assert units[unit].dead == ((since, None),) and units[unit].dead_at_end
    again = math.ceil((REVIVAL + 1) / every) * every
    last = math.ceil((AGAIN + 1) / every) * every
    assert units[0].dead == ((since, again),) and units[0].revivals == 1 and not units[0].dead_at_end
    assert (units[0].before, units[0].since) == (before, since)
    assert units[1].dead == ((since, again), (last, None)) and units[1].since == last and units[1].dead_at_end
    assert {history.kind for history in of(recording, "1").values()} == {"alive"}


@pytest.mark.parametrize("every", [1, 7])
def test_beside_a_death_stand_its_loss_learning_rate_and_step(every: int) -> None:
    """The numbers beside a death are those of the run: the losses around it, the rate, what the read step moved."""
    recording, moved = planted(every)
    unit = of(recording)[5]
    assert unit.before is not None and unit.since is not None
    assert unit.loss_before == recording.losses[unit.before]
    assert unit.loss == max(recording.losses[unit.before + 1 : unit.since + 1])
    assert unit.learning_rate == RATE and unit.update_step == unit.before
    assert unit.update_ratio is not None and unit.usual_ratio is not None and 0 < unit.usual_ratio < 0.02
    if every == 1:
        assert unit.update_ratio == pytest.approx(moved, rel=1e-3) and moved > 0.5
    else:
        assert unit.update_ratio < 0.02  # step 49 was read, and it was an ordinary one: step 50 was not
    assert unit.samples >= 1000


def test_the_diagnosis_says_what_the_deadly_step_did() -> None:
    """A step that moved the layer by ten times the usual stands among the reasons; an ordinary one does not."""
    told_of = [s for d in Report.of(planted(1)[0]).diagnoses for s in d.because if "died between steps" in s]
    (sentence,) = told_of
    assert sentence.startswith("22 units of layer 2 died between steps 50 and 51: step 50 moved the layer by 1 of")
    assert "times the usual, and the loss went from" in sentence
    assert not any("died between" in s for d in Report.of(planted(7)[0]).diagnoses for s in d.because)


def test_the_untouched_twin_lives_throughout() -> None:
    """Without the planted step no unit has anything to tell."""
    recording, _ = run(kill=False)
    assert Counter(history.kind for history in timeline(recording)) == {"alive": 64}
    assert told(Report.of(recording)) == []


@pytest.mark.parametrize("size", [8, 64, 2048])
@pytest.mark.parametrize("rate", [0.02, 0.005])
def test_a_trained_network_of_sparse_units_has_none_that_come_and_go(rate: float, size: int) -> None:
    """Units that fire on 2 % or 0.5 % of the samples are silent in most batches, and never flicker or revive."""
    recording, _ = run(every=2, size=size, kill=False, sparse=rate)
    _, reads = recording.of_site("3")
    silent = np.mean([read.silent for read in reads])
    assert silent > 0.5 if size == 8 else silent > 0.02 if size == 64 else silent < 0.5
    assert not {history.kind for history in timeline(recording)} & {"flickering", "revived"}


# Recordings made by hand ----------------------------------------------------------------------------------------------


def recorded(
    fires: np.ndarray,
    size: int,
    *,
    positions: int = 1,
    steps: list[int] | None = None,
    trained: bool = True,
    activation: str = "relu",
) -> Recording:
    """A run of one site; `fires` [readings, units] is how many of a reading's samples each unit fires on."""
    readings, units = fires.shape
    at = steps or list(range(readings))
    samples = size * positions
    plain = np.ones(units, dtype=np.float32)
    frames = tuple(
        Reading(
            step=step, loss=1.0, learning_rate=0.1,
            sites={"act": SiteReading(
                samples=samples, flat_share=(1 - row / samples).astype(np.float32), silent=row == 0,
                pre_mean=plain, pre_std=plain, mean=plain, std=plain,
            )},
            weights={"fc.weight": WeightReading(norm=2.0, gradient=0.1, update=0.01)},
            input=InputReading(samples=size, mean=0.0, std=1.0, rms=1.0, largest=1.0),
        )
        for step, row in zip(at, fires, strict=True)
    )  # fmt: skip
    site = Site(name="act", activation=activation, units=units, axis=-1, order=0, layers=("fc",), weight="fc.weight")
    return Recording(
        sites=(site,), readings=frames, losses=(1.0,) * (max(at) + 1), steps=max(at) + 1, trained=trained,
        initial={"fc.weight": InitialWeight(shape=(units, 4), fan_in=4, mean=0.0, std=0.1)},
    )  # fmt: skip


def kinds(recording: Recording) -> Counter[str]:
    return Counter(history.kind for history in timeline(recording))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rate", [0.02, 0.005, 0.002])
@pytest.mark.parametrize(("size", "readings"), [(1, 6000), (16, 1500), (64, 400), (256, 100), (1024, 60)])
def test_a_sparse_unit_neither_flickers_nor_revives(size: int, readings: int, rate: float, seed: int) -> None:
    """512 units that fire at random on 2 %, 0.5 % or 0.2 % of their samples, at any batch size, never came back."""
    fires = np.random.default_rng(seed).binomial(size, rate, size=(readings, 512))
    found = kinds(recorded(fires, size))
    assert not found["flickering"] and not found["revived"], found


def test_a_channel_that_fires_all_over_few_images_neither_flickers_nor_revives() -> None:
    """Positions of one image fire together: a thousand silent ones may be one image, and prove no death."""
    images = np.random.default_rng(0).binomial(32, 0.005, size=(300, 256))
    found = kinds(recorded(images * 64, 32, positions=64))
    assert not found["flickering"] and not found["revived"], found


@pytest.mark.parametrize("size", [1, 32, 256, 2048])
def test_a_unit_that_lives_dies_and_lives_again_is_revived_at_any_batch_size(size: int) -> None:
    """Firing on 40 % of its samples, then on none of 4000, then on 40 % again, is no chance."""
    stretch = max(2, 4096 // size)
    fires = np.random.default_rng(0).binomial(size, 0.4, size=(3 * stretch, 3))
    fires[stretch : 2 * stretch, 0] = 0  # dead in the middle
    fires[:stretch, 1] = 0  # dead from birth, and then alive
    lives = {history.unit: history for history in timeline(recorded(fires, size))}
    assert [lives[unit].kind for unit in range(3)] == ["revived", "revived", "alive"]
    fired = np.flatnonzero(fires[:, 0])
    last, again = int(fired[fired < stretch].max()), int(fired[fired >= 2 * stretch].min())
    assert (lives[0].before, lives[0].since, lives[0].dead) == (last, last + 1, ((last + 1, again),))
    assert (lives[1].before, lives[1].since) == (None, 0)


def test_one_sample_between_two_silences_is_no_revival() -> None:
    """A unit that fires once in ten thousand samples is as good as dead all along, and died where it last fired."""
    fires = np.zeros((200, 1), dtype=int)
    fires[:20] = 30
    fires[90] = 1
    (history,) = timeline(recorded(fires, 64))
    assert (history.kind, history.before, history.since, history.revivals) == ("died", 90, 91, 0)


def test_too_few_samples_are_no_death() -> None:
    """Silence on fewer than a thousand samples is none, at the end as in between."""
    fires = np.full((60, 2), 30)
    fires[45:, 0] = 0  # 15 times 64
    fires[20:35, 1] = 0
    assert kinds(recorded(fires, 64)) == {"alive": 2}
    fires[44, 0] = 0
    assert kinds(recorded(fires, 64)) == {"alive": 1, "died": 1}


def test_dead_from_the_first_reading_is_born_dead_only_before_any_training() -> None:
    """A run that was first read at step 40 cannot say that its units were born dead."""
    fires = np.zeros((30, 1), dtype=int)
    assert [h.kind for h in timeline(recorded(fires, 64))] == ["born_dead"]
    assert [h.kind for h in timeline(recorded(fires, 64, steps=[0] * 30, trained=False))] == ["born_dead"]
    late = recorded(fires, 64, steps=list(range(40, 70)))
    (history,) = timeline(late)
    assert (history.kind, history.before, history.since, history.update_ratio) == ("died", None, 40, None)
    assert told(Report.of(late))[0].startswith("1 unit of fc died before step 40, the first that was read: loss 1,")


def test_closing_readings_count_as_any_other() -> None:
    """A unit silent in every step that fires once more with the last weights is not dead; one that does not is."""
    fires = np.full((60, 2), 30)
    fires[20:] = 0
    fires[59, 0] = 3
    steps = [*range(44), *[44] * 16]  # the kept batches are read with the weights as they are now
    closed = recorded(fires, 64, steps=steps)
    assert [h.dead_at_end for h in timeline(closed)] == [False, True]
    assert timeline(closed)[1].since == 20


def test_the_end_is_judged_as_the_detectors_do() -> None:
    """Units dead or saturated at the end are the units of the symptoms, in ill and well recordings alike."""
    for recording in (planted(1)[0], planted(7)[0], ill_report().recording, non_finite_report().recording):
        symptoms = find(recording)
        for kind, lives in (
            ("dead", {(h.site, h.unit) for h in timeline(recording) if h.dead_at_end}),
            ("saturated", {(h.site, h.unit) for h in timeline(recording) if h.kind == "saturated"}),
        ):
            assert lives == {(s.site, unit) for s in symptoms if s.kind == kind for unit in s.units}
    assert kinds(non_finite_report().recording) == {"saturated": 144}


def test_nothing_after_the_first_nan_is_read() -> None:
    """Silence after a NaN says nothing: it neither kills a unit nor does firing revive it."""
    fires = np.full((60, 1), 30)
    fires[30:] = 0
    recording = recorded(fires, 64)
    frames = tuple(replace(r, loss=math.nan) if r.step >= 35 else r for r in recording.readings)
    assert kinds(recording) == {"died": 1}
    assert kinds(replace(recording, readings=frames)) == {"alive": 1}


def test_the_timeline_is_in_the_numbers_and_comes_back_from_them() -> None:
    """`to_json` has every unit's history under "timeline", as plain values that read back without loss."""
    report = Report.of(planted(1)[0])
    values = json.loads(json.dumps(report.to_json()["timeline"], allow_nan=False))
    assert tuple(from_json(value, UnitHistory) for value in values) == report.timeline == timeline(report.recording)
    assert values[32]["kind"] == "revived" and values[32]["dead"] == [[51, 181]]
    assert to_json(report.timeline[33])["kind"] == "flickering"


# The report -----------------------------------------------------------------------------------------------------------


def test_the_report_tells_when_units_died_and_what_happened_then() -> None:
    """One line for those that died at once, with loss, rate and step; one for the revived, one for the flickering."""
    report = Report.of(planted(1)[0])
    died, revived, flickering = told(report)
    unit = report.timeline[32 + 5]
    assert died.startswith("22 units of layer 2 died between steps 50 and 51: loss ")
    assert died.endswith(f"learning rate 0.05, step 50 moved the layer by 1 of its size (usual {unit.usual_ratio:.2g})")
    assert revived == "Units that were dead and fire again: 1 of layer 2"
    assert flickering == "Units that flicker: dead, firing, dead again: 1 of layer 2"
    assert "Timeline" in render(Page.of(report)) and "Timeline" not in render(Page.of(healthy_report()))


def test_many_deaths_are_told_by_the_largest_and_the_rest_is_counted() -> None:
    """Three moments are told, the most units first; the lines together account for every unit that died."""
    report = ill_report()
    lines = told(report)
    groups = together(report.timeline)
    assert [len(g) for g in groups] == sorted((len(g) for g in groups), reverse=True)
    amounts = [int(line.split()[0]) for line in lines[:4]]
    assert amounts[:3] == [len(group) for group in groups[:3]]
    assert sum(amounts) == sum(h.kind == "died" for h in report.timeline)
    assert f"more died in {len(groups) - 3} smaller groups, the last by step" in lines[3]


def test_the_map_shows_a_silence_that_ended() -> None:
    """A revived unit is drawn dead from its death to its revival, and alive around it."""
    history = next(h for h in histories(Report.of(planted(7)[0])) if h.site.name == "3")
    dead = history.steps[history.states[:, 0] == DEAD]
    assert (dead.min(), dead.max()) == (56, 175)
    assert (history.revived, history.flickering, history.dead) == (1, 1, 23)


def test_the_dead_units_of_a_healthy_network_are_no_news() -> None:
    """Where dead units are only a note, the report has no timeline; the numbers have it all the same."""
    fires = np.full((40, 40), 30)
    fires[20:, 0] = 0
    report = Report.of(recorded(fires, 64))
    assert report.healthy and any(s.kind == "dead" for s in report.symptoms)
    assert told(report) == [] and report.timeline[0].kind == "died"


def test_a_loss_that_leapt_between_two_readings_stands_beside_the_death() -> None:
    """Every step's loss is known: the greatest between the two readings counts, not that of the later one."""
    fires = np.full((60, 1), 30)
    fires[30:] = 0
    recording = recorded(fires, 64, steps=list(range(0, 300, 5)))
    losses = [1.0] * 296
    losses[145], losses[147], losses[150], losses[151] = 2.0, 9.5, 1.5, 80.0
    (history,) = timeline(replace(recording, losses=tuple(losses)))
    assert (history.before, history.since, history.loss_before, history.loss) == (145, 150, 2.0, 9.5)
