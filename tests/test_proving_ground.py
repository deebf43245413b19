"""The proving ground in `benchmarks/illness`: what its figures rest on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from benchmarks.illness import cases, truth
from benchmarks.illness.delay import AFTER_NAN, Course, course, follow, moments, watched
from benchmarks.illness.examine import examine_trap
from benchmarks.illness.networks import network
from benchmarks.illness.runs import Batches, fed, pace, training
from benchmarks.illness.spec import ANSWERS, Spec
from benchmarks.illness.tables import bounds, delay, told
from benchmarks.illness.tasks import task
from benchmarks.illness.traps import TRAPS
from relume.suspicions import Cause
from relume.symptoms import Kind
from relume.training import build

PLAIN = Spec(
    seed=0, task="wine", loss="cross_entropy", kind="mlp", width=16, depth=2, activation="relu", init="he",
    optimizer="adam", learning_rate=2e-3, batch=32, steps=100,
)  # fmt: skip


def test_draws_cover_the_axes() -> None:
    """Each axis that issue 4 names is drawn to near its ends, and the same seed draws the same run."""
    drawn = [cases.well(seed) for seed in range(600)]
    assert drawn[7] == cases.well(7)
    assert min(s.width for s in drawn) <= 3
    assert max(s.width for s in drawn) >= 450
    assert max(s.depth for s in drawn) >= 45
    assert max(s.steps for s in drawn) == 15_000
    assert {s.batch for s in drawn} == set(cases.BATCHES)
    assert {s.activation for s in drawn} == set(cases.ACTIVATIONS)
    assert {s.schedule for s in drawn} == {"", "cosine", "step"}
    assert any(s.clip for s in drawn)
    assert any(s.fitted_output for s in drawn)


@pytest.mark.parametrize("half", [0, 1])
def test_every_illness_is_drawn_in_both_halves(half: int) -> None:
    """In one half, as many runs as there are things to plant plant each once."""
    drawn = [cases.ill(2 * i + half) for i in range(len(ANSWERS))]
    assert sorted(s.planted for s in drawn) == sorted(ANSWERS)
    for spec in drawn:
        assert replace(spec, planted="") != truth.untouched(spec)


@pytest.mark.parametrize("planted", sorted(ANSWERS))
def test_answers_are_in_the_words_of_the_design(planted: str) -> None:
    """What may be said of a planted thing are kinds and causes that relume can say."""
    assert ANSWERS[planted].kinds <= set(get_args(Kind))
    assert ANSWERS[planted].causes <= set(get_args(Cause))
    assert ANSWERS[planted].kinds
    assert ANSWERS[planted].causes


def test_bounds_are_those_of_clopper_and_pearson() -> None:
    """No event in n: the upper bound is 1 - 0.025 ** (1 / n); 7 in 50: 5.82 % to 26.74 %, a published table."""
    assert bounds(0, 30) == pytest.approx((0.0, 1 - 0.025 ** (1 / 30)))
    assert bounds(30, 30) == pytest.approx((0.025 ** (1 / 30), 1.0))
    assert bounds(7, 50) == pytest.approx((0.0582, 0.2674), abs=1e-4)


def test_the_learning_rate_of_each_step() -> None:
    """What the optimizer steps with is the schedule's closed form, and the planted rise comes with the planted step."""
    assert pace(replace(PLAIN, schedule="cosine"), 50) == pytest.approx(0.5)
    assert pace(replace(PLAIN, schedule="step"), 49) == 1
    assert pace(replace(PLAIN, schedule="step"), 50) == pytest.approx(0.1)
    assert pace(replace(PLAIN, rate_ramp=100.0), 50) == pytest.approx(10)
    late = replace(PLAIN, rate_factor=30.0, planted_at=2, optimizer="sgd")
    model, optimizer = build(training(late), 0)
    moved = []
    for _ in range(4):
        before = next(model.parameters()).detach().clone()
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        moved.append(float((before - next(model.parameters()).detach()).mean()) / PLAIN.learning_rate)
    assert moved == pytest.approx([1, 1, 30, 30], rel=1e-3)


def test_clipped_gradients() -> None:
    """With clipping, one step of SGD moves all parameters together by the rate times the norm allowed."""
    spec = replace(PLAIN, optimizer="sgd", clip=0.5)
    model, optimizer = build(training(spec), 0)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.full_like(p, 100.0)
    optimizer.step()
    squares = [float(((a - b.detach()) ** 2).sum()) for a, b in zip(before, model.parameters(), strict=True)]
    assert math.sqrt(sum(squares)) == pytest.approx(0.5 * spec.learning_rate, rel=1e-3)


def test_one_batch_is_corrupt() -> None:
    """The batch of the planted step alone is spoilt, also when it is not in the first pass over the data."""
    x = torch.ones(10, 2)
    batches = Batches(x, torch.zeros(10), 4, corrupt_at=3, corrupt=math.nan)
    seen = [bool(inputs.isnan().any()) for _ in range(3) for inputs, _ in batches]
    assert seen == [False, False, False, True, False, False]
    words = [inputs.dtype for inputs, _ in Batches(x.long(), torch.zeros(10), 4)]
    assert set(words) == {torch.int64}


def test_planted_inputs_targets_and_weights() -> None:
    """What is planted in data and weights is there, in the size asked for, and nothing else is changed."""
    data = fed(replace(PLAIN, feature_scale=1e3))
    spread = data.x.std(0)
    assert float(spread.max()) == pytest.approx(1e3, rel=1e-3)
    assert float(spread.sort().values[-2]) == pytest.approx(1, rel=1e-3)
    assert float(fed(replace(PLAIN, input_shift=100.0)).x.mean()) == pytest.approx(100, abs=1e-2)
    net = network(replace(PLAIN, bias=-5.0, bias_layers=1), task("wine"))
    biases = [m.bias for m in net.modules() if isinstance(m, nn.Linear)]
    assert set(biases[0].tolist()) == {-5.0}
    assert not biases[1].any()
    fitted = replace(PLAIN, task="friedman", loss="mse", target_scale=20.0, target_shift=150.0, fitted_output=True)
    run = training(fitted)
    output = build(run, 0)[0](fed(fitted).x).detach()
    assert float(output.mean()) == pytest.approx(150, abs=40)


def test_closed_units_are_counted_by_the_data() -> None:
    """A unit is closed when no sample opens it: here those below the greatest input are, by construction."""
    layer = nn.Linear(1, 4)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.copy_(torch.tensor([-10.0, -2.0, -0.5, 1.0]))
    x = torch.linspace(0, 1, 11)[:, None]
    assert truth.closed_shares(nn.Sequential(layer, nn.ReLU()), x) == (0.5,)
    channel = nn.Conv2d(1, 4, 1)
    with torch.no_grad():
        channel.weight.fill_(1.0)
        channel.bias = nn.Parameter(torch.tensor([-10.0, 1.0, 1.0, 1.0]))
    assert truth.closed_shares(nn.Sequential(channel, nn.ReLU()), torch.rand(5, 1, 3, 3)) == (0.25,)


def test_truth_tells_a_well_run_from_an_ill_one() -> None:
    """The plain run is well and not ill; shut by a bias it is ill; planted in name only it is neither."""
    assert truth.measure(PLAIN).well
    assert truth.measure(replace(PLAIN, planted="bias", bias=-100.0)).ill
    nothing = truth.measure(replace(PLAIN, planted="inputs", input_scale=1.0))
    assert (nothing.well, nothing.ill) == (False, False)


def test_a_planted_step_is_told_after_it() -> None:
    """A run whose rate rises three hundredfold at step 100 is flagged soon after that, and not before."""
    spec = replace(PLAIN, planted="late_rate", planted_at=100, steps=250, rate_factor=1000.0)
    found = follow(spec)
    assert found.onset == 100
    assert found.early is None
    assert found.flagged is not None
    assert 100 < found.flagged <= 250
    assert {102, 250} <= moments(spec)


def test_flags_before_and_after_the_planting() -> None:
    """A warning before the planted step is early, one after it is the answer; in a well run each is early."""
    late = replace(PLAIN, planted="late_rate", planted_at=100, rate_factor=30.0)
    assert course(late, [8, 102, 130], [], 9) == Course(onset=100, flagged=102, early=8, asked=9)
    assert course(PLAIN, [8], [], 9) == Course(onset=None, flagged=None, early=8, asked=9)
    ramp = replace(PLAIN, planted="rate_ramp", rate_ramp=300.0)
    assert course(ramp, [50], [40, 50], 9) == Course(onset=40, flagged=50, early=None, asked=9)


def test_nan_in_the_data_is_seen_in_a_loop_of_ones_own() -> None:
    """The watched loop goes on past a batch with NaN, and the report names it."""
    spec = replace(PLAIN, planted="nan_batch", planted_at=20, corrupt=math.nan)
    steps: list[int] = []
    report = watched(training(spec), 0, lambda step, *_: steps.append(step))
    assert steps[-1] == 20 + AFTER_NAN
    assert "non_finite" in {s.kind for d in report.diagnoses for s in d.symptoms}


def test_traps_have_names_and_reasons() -> None:
    """Each trap is told from the others, and says why it is well."""
    assert len({trap.name for trap in TRAPS}) == len(TRAPS)
    assert all(trap.why for trap in TRAPS)


@pytest.mark.parametrize("name", [trap.name for trap in TRAPS])
def test_what_is_normal_is_given_a_clean_bill(name: str) -> None:
    """Each healthy run that looks ill is well by its score, not flagged, and in the guide with its reason."""
    found = examine_trap(name, 0)
    assert found["truth"]["well"], found
    assert not found["said"]["flagged"], found
    assert found["said"]["blind_told"] is not False
    guide = (Path(__file__).parents[1] / "docs/guide/normal.md").read_text()
    assert f"`{name}`" in guide


def test_a_sparse_trap_fires_as_seldom_as_it_says() -> None:
    """Of the units planted in the first layer, each fires on about the share of samples that the trap is named for."""
    for name, share in (("sparse_2", 0.02), ("sparse_0.5", 0.005)):
        run = next(trap for trap in TRAPS if trap.name == name).build(0)
        model, _ = build(run.training, 0)
        fires = (next(iter(model.children()))(task("digits").x) > 0).float().mean(0)[:32]
        assert float(fires.median()) == pytest.approx(share, rel=0.2)


def test_the_tables_count_what_was_found() -> None:
    """Shares, confusion, delays and the list of what is wrong are those of four runs made by hand."""

    def run(planted: str, kinds: list[str], cause: str, **course: Any) -> dict[str, Any]:
        spec = {"seed": 2, "planted": planted, "kind": "mlp", "activation": "relu", "loss": "mse"}
        said = {"flagged": bool(kinds), "kinds": kinds, "cause": cause}
        found = {"spec": spec, "truth": {"well": not planted, "ill": bool(planted)}, "said": said}
        return found | ({"course": course} if course else {})

    found = [
        run("", [], "", onset=None, flagged=None, early=None),
        run("", ["dead"], "bias"),
        run("bias", ["dead"], "bias", onset=0, flagged=9, early=None),
        run("fast", ["dead"], "bias", onset=100, flagged=130, early=8),
        run("slow", [], ""),
    ]
    trap = {"trap": "lstm", "seed": 4, "truth": {"well": True}}
    text = told(
        found, [trap | {"said": {"flagged": True, "kinds": ["saturated"], "cause": "bias", "blind_told": True}}]
    )
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert any(line.startswith("well runs flagged (false alarms) 1 of 2 50.0%") for line in lines)
    assert any(line.startswith("ill runs flagged 2 of 3") for line in lines)
    assert any(line.startswith("ill runs of which the first cause is right 1 of 3") for line in lines)
    assert "bias 1 of 1 bias* 1" in lines
    assert "fast 0 of 1 bias 1" in lines
    assert "slow 1 (healthy) 1" in lines
    assert "ill from a later step: delay in steps median 30, longest 30; never told in 0 of 1" in lines
    assert "lstm 1 1 bias 1 blind spot told in 1 of 1" in lines
    assert "seed 2: slow, mlp, relu, mse: missed" in lines
    assert delay(found[2]) == 9


def test_the_guide_says_what_was_measured() -> None:
    """Each row of the guide's table is a line of the tables that the kept figures give."""
    root = Path(__file__).parent.parent
    kept = json.loads((root / "benchmarks/results/illness-report.json").read_text())
    lines = [" ".join(line.split()) for line in told(kept["cases"], kept["traps"]).splitlines()]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (root / "docs/guide/accuracy.md").read_text().splitlines()
        if line.startswith("| ") and " of " in line
    ]
    assert len(rows) == 5
    for words, runs, share, interval in rows:
        said = f"{runs} {share.replace(' %', '%')} ({interval.replace(' %', '%')})"
        assert any(line.startswith(words) and line.endswith(said) for line in lines), said
    command = kept["command"].removeprefix("python -m benchmarks.")
    assert f"./dev bench {command}" in (root / "docs/guide/accuracy.md").read_text() and "--half report" in command


def test_the_guide_says_how_often_healing_helped() -> None:
    """The guide's row counts the outcomes that are kept, and names the command that gave them."""
    root = Path(__file__).parent.parent
    kept = json.loads((root / "benchmarks/results/healing-report.json").read_text())
    outcomes = [case["outcome"] for case in kept["cases"]]
    row = [len(outcomes), *(outcomes.count(word) for word in ("better", "same", "worse"))]
    guide = (root / "docs/guide/accuracy.md").read_text()
    assert f"| healed | {' | '.join(map(str, row))} |" in guide
    assert f"`./dev bench {kept['command'].removeprefix('python -m benchmarks.')}`" in guide
