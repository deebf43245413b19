"""Claims: every experiment can show the opposite, and results are told and kept whole."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from relume.claims import CLAIMS, Finding, Lab, Results, Setting, chosen, run
from relume.claims.cost import elementwise
from relume.claims.judging import answer, below, exact, geometric, judge, median_interval
from relume.claims.lab import steps_to_learn
from relume.claims.networks import Lesson, Recipe, Stack, attend, born_dead, factor, network, propagate_once, revive
from relume.claims.page import document, render
from relume.claims.text import print_results
from relume.cli import main
from relume.errors import RelumeError
from relume.theory import chi, moments
from relume.verdicts import Difference

PUBLISHED = Path(__file__).parents[1] / "benchmarks" / "results" / "claims.json"

# A subject for each experiment of which the opposite is true, and the verdict that it must give.
FLIPS: dict[str, tuple[dict[str, Any], str]] = {
    "sigmoid-probability": ({"head": "identity"}, "refuted"),
    "sigmoid-vanishing": ({"name": "identity"}, "refuted"),
    "sigmoid-off-centre": ({"name": "tanh"}, "refuted"),
    "relu-cheap": ({"name": "mish"}, "refuted"),
    "relu-zero-centred": ({"name": "tanh"}, "supported"),
    "relu-dies": ({"name": "leaky_relu"}, "refuted"),
    "relu-cheaper-than-sigmoid": ({"name": "mish", "rivals": ("relu",)}, "refuted"),
    "relu-vanishes-less": ({"name": "sigmoid", "inits": ("He",)}, "refuted"),
    "relu-faster-convergence": ({"name": "sigmoid", "rival": "relu", "settings": ((2, ""),)}, "refuted"),
    "output-scenarios": (
        {"head": "identity", "other_head": "sigmoid", "hidden": "sigmoid", "other_hidden": "relu"},
        "refuted",
    ),
    "deep-relu-preferred": ({"name": "sigmoid", "rival": "sigmoid"}, "refuted"),
    "relu-gradient-one": ({"name": "gelu"}, "refuted"),
    "choose-by-experiment": ({"names": ("relu", "sigmoid"), "tasks": (("digits", 2, ""),)}, "refuted"),
    "leaky-revives": ({"slopes": (0.0,)}, "refuted"),
    "prelu-revives": ({"name": "relu6", "starts": (0.25,)}, "refuted"),
    "elu-smooth-at-zero": ({"alphas": (0.5,)}, "refuted"),
    "elu-revives": ({"name": "relu"}, "refuted"),
    "softplus-smooth": ({"name": "relu", "rival": "mish"}, "refuted"),
    "batch-norm-revives": ({"norm": ""}, "refuted"),
    "init-prevents": ({"baselines": ("torch",), "bias": -3.0}, "supported"),
    "learning-rate-prevents": ({"high": 0.003}, "refuted"),
    "smaller-prevents": ({"smaller": {"the same": (1.0, 1.0)}}, "refuted"),
    "mixing-prevents": ({"pairs": (("relu", "relu"),), "mixed": ("softsign",)}, "supported"),
    "tanh-range": ({"name": "relu"}, "refuted"),
    "tanh-costlier": ({"name": "relu", "rivals": ("mish",)}, "refuted"),
    "tanh-centred-faster": ({"rival": "tanh", "offset": 0.0}, "refuted"),
    "tanh-more-expressive": ({"name": "relu"}, "supported"),
    "tanh-vanishes": ({"name": "relu", "inits": ("He",)}, "refuted"),
    "tanh-scenarios": ({"head": "sigmoid", "hidden": "sigmoid"}, "refuted"),
    "relu-default": ({"name": "sigmoid", "rivals": ("relu",)}, "refuted"),
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One small lab for all, so that nothing is trained twice; in this process, so that a failure shows where."""
    lab = Lab(setting=Setting.of(quick=True), workers=1)
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def some() -> Results:
    """The results of a few claims that take no time, one with each verdict and each kind of figure."""
    return run(["relu-gradient-one", "relu-zero-centred", "elu-smooth-at-zero", "tanh-range"], quick=True, workers=1)


# The experiments ------------------------------------------------------------------------------------------------------


def test_every_claim_has_a_case_in_which_it_flips():
    """The table of flips is complete, and names no claim that is not there."""
    assert set(FLIPS) == set(CLAIMS)
    assert len(CLAIMS) == 30


@pytest.mark.parametrize("id", CLAIMS)
def test_an_experiment_can_show_the_opposite(id: str, lab: Lab):
    """Fed a subject of which the opposite is true, the same experiment says so."""
    subject, verdict = FLIPS[id]
    finding = CLAIMS[id].experiment(lab, **subject)
    assert finding.verdict == verdict, finding.because


@pytest.mark.parametrize("id", CLAIMS)
def test_the_published_verdict_is_another_than_the_flipped_one(id: str):
    """The results in the repository hold every claim, with a verdict that its flip does not have."""
    published = {r.id: r for r in Results.from_json(json.loads(PUBLISHED.read_text())).results}
    assert published[id].statement == CLAIMS[id].statement
    assert published[id].finding.verdict != FLIPS[id][1]


@pytest.mark.parametrize("id", ["relu-gradient-one", "relu-zero-centred", "elu-smooth-at-zero", "tanh-vanishes"])
def test_findings_are_complete(id: str, lab: Lab):
    """A finding has a sentence, a number inside its interval, and a figure with named axes and points."""
    finding: Finding = CLAIMS[id].experiment(lab)
    assert finding.low <= finding.number <= finding.high
    assert finding.because.endswith(".")
    assert finding.figure.title and finding.figure.x
    for series in finding.figure.series:
        assert len(series.x) == len(series.y) > 1
    assert bool(finding.depends_on) == (finding.verdict == "depends")


@pytest.mark.parametrize(
    ("name", "variance", "published"),
    [("sigmoid", 1.0, 0.0555), ("tanh", 1 / 3, 0.3334), ("relu", 1.0, 0.5042), ("relu", 2.0, 1.0)],
)
def test_gradient_factors_are_those_of_theory_and_of_other_scripts(name: str, variance: float, published: float):
    """The factor a layer, by autograd, is what independent measurements give, within their own scatter."""
    stack = Stack(activations=(name,), weight_variance=variance)
    measured = geometric([factor(propagate_once(stack, seed)) for seed in range(3)])
    assert measured.mean == pytest.approx(published, rel=0.03)


def test_batch_norm_in_a_deep_stack_has_the_factor_of_theory():
    """With BatchNorm before sigmoid the gradient grows a little a layer, as theory says."""
    signal = propagate_once(Stack(activations=("sigmoid",), weight_variance=1.0, norm="batch_norm", width=512), 0)
    assert factor(signal) == pytest.approx(moments("sigmoid").chi_bn, rel=0.03)


def test_one_layer_back_is_chi():
    """With inputs of variance 1 the last layer's factor is sigma_w2 E[f'^2] at the variance that arrives there."""
    signal = propagate_once(Stack(activations=("tanh",), weight_variance=1.0, depth=2, width=1000, samples=200), 0)
    q = 0.39429  # E[tanh^2] at variance 1, a published table
    last, first = signal.gradients[1], signal.gradients[0]
    # back from the second layer: the weights times the slope at the first, whose variance is 1
    assert (first / last) ** 2 == pytest.approx(chi("tanh", 1.0, 1.0), rel=0.05)
    assert chi("tanh", q, 1.0) > chi("tanh", 1.0, 1.0)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu"])
def test_weights_keep_the_variance(name: str):
    """Networks start with pre-activations of about the same variance in every layer, whatever the function."""
    torch.manual_seed(0)
    model = network(Recipe(activations=(name,), depth=6, width=512))
    x = torch.randn(256, 64)
    spread = []
    for part in list(model)[:-1]:
        x = part(x).detach()
        spread += [float(x.square().mean())] if isinstance(part, torch.nn.Linear) else []
    assert max(spread[1:]) / min(spread[1:]) < 1.6


def test_pairs_start_from_the_same_draws():
    """Networks of one shape have the same weights up to scale, whatever their function and init."""
    weights = []
    for recipe in (Recipe(), Recipe(activations=("tanh",)), Recipe(init="xavier"), Recipe(init="unit")):
        torch.manual_seed(3)
        weight = next(network(recipe).parameters()).detach()
        weights.append(weight / weight.std())
    for other in weights[1:]:
        torch.testing.assert_close(weights[0], other)


def test_a_lesson_is_the_same_each_time_and_in_a_worker():
    """A run depends on its recipe and seed alone: twice, and in another process, it gives the same numbers."""
    recipe = Recipe(depth=1, width=8, steps=20)
    here = attend(recipe, 1)
    assert repr(attend(recipe, 1)) == repr(here)
    lab = Lab(setting=Setting.of(quick=True), workers=2)
    lab._pool = _pool()
    try:
        assert repr(lab.map(attend, [(recipe, 1)])[0]) == repr(here)
    finally:
        lab.close()


def _pool() -> Any:
    from loky import ProcessPoolExecutor

    return ProcessPoolExecutor(1, env={"OMP_NUM_THREADS": "1"})


def test_a_lab_runs_nothing_twice():
    """What was run before is remembered, and progress counts what is new."""
    calls: list[int] = []
    told: list[tuple[int, int]] = []
    lab = Lab(
        setting=Setting.of(quick=True), workers=1, on_progress=lambda event: told.append((event.done, event.total))
    )
    square = partial(_square, calls)
    assert lab.map(square, [(2,), (3,), (2,)]) == [4, 9, 4]
    assert lab.map(square, [(3,), (4,)]) == [9, 16]
    assert calls == [2, 3, 4]
    assert told == [(1, 2), (2, 2), (1, 1)]


def _square(calls: list[int], x: int) -> int:
    calls.append(x)
    return x * x


def test_rates_are_tuned_beyond_the_grid():
    """Where the best rate is at the edge, the grid grows: sigmoid wants more than the grid's highest rate."""
    setting = replace(Setting.of(quick=True), rates=(0.001, 0.00316), width=16, steps=60)
    lab = Lab(setting=setting, workers=1)
    (tuned,) = lab.tuned(lab.recipe(activations=("tanh",)))
    assert tuned.rate == pytest.approx(0.1, rel=0.01)


def test_a_rate_that_diverges_is_never_chosen():
    """Divergence loses to every other rate, however low its loss was before."""
    setting = replace(Setting.of(quick=True), rates=(0.01, 1e6, 1e9), width=16, steps=30)
    lab = Lab(setting=setting, workers=1)
    (tuned,) = lab.tuned(lab.recipe(activations=("identity",), depth=6))
    assert tuned.rate < 1e6


def test_a_diverged_run_never_learned():
    """A run that ended in NaN counts as all its steps, though its losses are few."""
    lesson = Lesson(score=-math.inf, losses=(0.1,) * 15, steps=200)
    assert lesson.diverged and steps_to_learn(lesson) == 200
    assert steps_to_learn(Lesson(score=0.9, losses=(2.0,) * 10 + (0.1,) * 30, steps=40)) == 18


def test_dead_units_stay_dead_untreated_and_come_back_with_batch_norm():
    """The units that relume finds dead are those that a treatment is measured on."""
    ill = Recipe(depth=4, width=32, optimizer="adam", rate=0.03, steps=100, watched=True)
    untreated = revive(ill, Recipe(width=32, steps=100, rate=0.03), 0)
    treated = revive(ill, Recipe(width=32, steps=100, rate=0.03, norm="batch_norm"), 0)
    assert untreated.dead == treated.dead > 0
    assert untreated.revived < 0.2 < 0.8 < treated.revived


def test_shares_are_of_all_units():
    """Where one of two layers is closed by its biases, half of the units are dead, though all that can die are."""
    assert born_dead(Recipe(activations=("relu", "elu"), bias=-100.0), 0) == 0.5
    assert born_dead(Recipe(activations=("relu", "relu"), bias=-100.0), 0) == 1.0


def test_a_function_costs_as_much_as_itself():
    """Side by side, interleaved, the ratio of a function to itself is 1 within its interval or nearly so."""
    lab = Lab(setting=Setting.of(quick=True), workers=1)
    ratio = elementwise(lab, "tanh", "tanh", "in cache")
    assert ratio.low < 1.1 and ratio.high > 0.9


# Verdicts -------------------------------------------------------------------------------------------------------------


def test_verdicts_follow_intervals():
    """An interval above the least is a yes, one below is a no, one that holds it is open; and they add up."""
    assert answer(Difference(mean=2, low=1.5, high=2.5), 1.1) == "yes"
    assert answer(Difference(mean=1, low=0.5, high=1.05), 1.1) == "no"
    assert answer(Difference(mean=1, low=0.5, high=1.5), 1.1) == "open"
    assert below(exact(0.0), 0.1) == "yes" and below(exact(0.1), 0.1) == "no"
    assert answer(exact(math.nan), 0.1) == "open"
    assert judge({"a": "yes", "b": "yes"}) == ("supported", "")
    assert judge({"a": "no", "b": "no"}) == ("refuted", "")
    assert judge({"a": "yes", "b": "no", "c": "open"}) == ("depends", "holds: a; does not hold: b; open: c")
    assert judge({"a": "open"})[0] == "depends"


def test_intervals_cover_what_they_should():
    """95 % intervals of a median and of a geometric mean hold the truth in about 95 % of simulated experiments."""
    rng = np.random.default_rng(0)
    medians = [median_interval(rng.exponential(size=31).tolist()) for _ in range(1000)]
    assert 0.93 < np.mean([v.low <= math.log(2) <= v.high for v in medians]) < 0.985
    means = [geometric(np.exp(rng.normal(0.5, 0.3, size=6)).tolist()) for _ in range(1000)]
    assert 0.93 < np.mean([v.low <= math.exp(0.5) <= v.high for v in means]) < 0.97


def test_a_median_of_few_has_no_interval():
    """Three values say nothing of where the median lies with 95 % confidence."""
    assert median_interval([1.0, 2.0, 3.0]).low == -math.inf


# Kept and shown -------------------------------------------------------------------------------------------------------


def test_results_come_back_from_json(some: Results):
    """JSON holds everything: read back, the results are equal; NaN and infinity too."""
    assert Results.from_json(json.loads(json.dumps(some.to_json(), allow_nan=False))) == some
    first = some.results[0]
    odd = replace(first, finding=replace(first.finding, number=math.nan, low=-math.inf, high=math.inf))
    data = replace(some, results=(odd,)).to_json()
    back = Results.from_json(json.loads(json.dumps(data, allow_nan=False)))
    assert math.isnan(back.results[0].finding.number)


def test_unknown_ids_are_named_with_their_closest():
    """A claim that is not there is an error that says which are near."""
    with pytest.raises(RelumeError, match="no claim named 'relu-dead'") as caught:
        chosen(["relu-dead"])
    assert "Did you mean" in str(caught.value) and "relu-dies" in str(caught.value)
    assert "relume claims --list" in str(caught.value)


def test_an_interrupt_keeps_what_is_done(monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C in the second claim leaves the first, and says so."""

    def interrupted(lab: Lab) -> Finding:
        raise KeyboardInterrupt

    monkeypatch.setitem(CLAIMS, "relu-dies", replace(CLAIMS["relu-dies"], experiment=interrupted))
    results = run(["relu-gradient-one", "relu-dies", "tanh-range"], quick=True, workers=1)
    assert [r.id for r in results.results] == ["relu-gradient-one"]
    assert not results.finished

    done = CliRunner().invoke(main, ["claims", "relu-gradient-one", "relu-dies", "--quick"])
    assert done.exit_code == 130
    assert "Interrupted" in done.stdout and "relu-gradient-one" in done.stdout


def test_text_is_readable_in_60_columns(some: Results):
    """The first line is the summary, each statement has its verdict in words, and no line is longer than 60."""
    file = io.StringIO()
    print_results(some, Console(width=60, file=file, color_system=None))
    lines = file.getvalue().splitlines()
    assert lines[0].startswith("4 statements: 2 supported, 1 refuted, 1")
    assert max(map(len, lines)) <= 60
    for result in some.results:
        assert any(result.finding.verdict in line and result.id in line for line in lines)


def test_the_command_runs_lists_and_fails(tmp_path: Path):
    """`relume claims` writes JSON and page, lists without testing, and refuses an unknown id with exit code 2."""
    runner = CliRunner()
    files = tmp_path / "c.json", tmp_path / "c.html"
    done = runner.invoke(
        main, ["claims", "relu-gradient-one", "--quick", "--json", str(files[0]), "--html", str(files[1])]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(files[0].read_text())["results"][0]["finding"]["verdict"] == "supported"
    assert "relu-gradient-one" in files[1].read_text()

    done = runner.invoke(main, ["claims", "relu-gradient-one", "--quick", "--json", "-"])
    assert json.loads(done.stdout)["results"][0]["id"] == "relu-gradient-one"

    listed = runner.invoke(main, ["claims", "--list"])
    assert listed.exit_code == 0 and all(id in listed.stdout for id in CLAIMS)

    wrong = runner.invoke(main, ["claims", "relu-dead"])
    assert wrong.exit_code == 2 and "no claim named" in wrong.output


def test_the_page_holds_every_statement_and_no_markup_from_outside(some: Results):
    """The page names each statement with a figure in words; text with signs of HTML stays text."""
    hostile = replace(some.results[0], statement="<script>alert(1)</script>")
    page = render(replace(some, results=(hostile, *some.results[1:])))
    assert "<script>alert" not in page
    assert page.count("<figure") == len(some.results)
    assert 'data-chart="rows"' in page and 'data-chart="lines"' in page


def test_the_documentation_is_that_of_the_published_results():
    """docs/claims.md is what the results in the repository make, to the letter."""
    results = Results.from_json(json.loads(PUBLISHED.read_text()))
    written = (PUBLISHED.parents[2] / "docs" / "claims.md").read_text()
    assert written == document(results, "claims-figures.html")
    assert results.finished and not results.quick and len(results.results) == len(CLAIMS)
