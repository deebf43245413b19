"""Planted runs with known answers: what a trial may and may not say of an arm."""

import math
from typing import Any

import pytest

from relume.recording import from_json, to_json
from relume.verdicts import Arm, Cost, Difference, Run, difference, judge, judge_control, mean_interval, ranked, winner

ILL = {"burden": 0.6, "kinds": ("dead",), "dead_share": 0.6}
WELL = {"burden": 0.0, "kinds": ()}
NAN, INF = float("nan"), float("inf")


def runs(arm: str, *scores: float | None, seeds: tuple[int, ...] | None = None, **state: Any) -> list[Run]:
    parts = {"burden": 0.0, "steps": 100, "seconds": 1.0, "parameters": 50, **state}
    return [
        Run(arm=arm, seed=seed, score=score, **parts)
        for seed, score in zip(seeds or range(len(scores)), scores, strict=True)
    ]


def mixed(arm: str, *states: tuple[float | None, dict[str, Any]]) -> list[Run]:
    return [Run(arm=arm, seed=seed, score=score, **{"burden": 0.0, **s}) for seed, (score, s) in enumerate(states)]


CONTROL = (0.50, 0.52, 0.48, 0.51, 0.49)
BETTER = (0.80, 0.81, 0.83, 0.80, 0.79)
WORSE = (0.30, 0.33, 0.29, 0.30, 0.31)
LIKE = (0.51, 0.51, 0.49, 0.50, 0.48)


# The difference -----------------------------------------------------------------------------------------------------


def test_the_interval_is_students():
    """Mean and interval agree with the published t quantile for four degrees of freedom, 2.776445."""
    found = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445105 * math.sqrt(2.5 / 5)
    assert (found.mean, found.low, found.high) == pytest.approx((3.0, 3.0 - half, 3.0 + half))


@pytest.mark.parametrize("scores", [(0.1,), (0.1, 0.2), (0.1, 0.2, 0.3, None, 0.7)])
def test_identical_scores_differ_by_exactly_nothing(scores: tuple[float | None, ...]):
    """Equal scores give (0, 0, 0) for one seed, two or more, without rounding."""
    assert difference(scores, scores) == Difference(mean=0.0, low=0.0, high=0.0)


def test_one_seed_has_no_interval():
    """With a single pair the interval is unbounded, and with none there is no difference."""
    assert difference([1.0], [1.5]) == Difference(mean=0.5, low=-INF, high=INF)
    assert difference([None, 1.0], [1.0, None]) is None
    assert difference([NAN, INF], [1.0, 2.0]) is None


def test_seeds_without_both_scores_are_left_out_of_the_difference():
    """A divergent run has no score to compare, so its seed does not enter the mean."""
    found = difference([1.0, None, 2.0, 3.0], [2.0, 9.0, 3.0, NAN])
    assert found == Difference(mean=1.0, low=1.0, high=1.0)


# Verdicts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(
    ("control", "arm", "verdict"),
    [
        (runs("c", *CONTROL, **ILL), runs("a", *BETTER, **WELL), "cured"),
        (runs("c", *CONTROL, **ILL), runs("a", *CONTROL, **WELL), "cured"),
        (runs("c", *CONTROL, **ILL), runs("a", *CONTROL, **ILL), "no_effect"),
        (runs("c", *CONTROL, **ILL), runs("a", *BETTER, burden=0.2, kinds=("dead",)), "eased"),
        (runs("c", *CONTROL), runs("a", *CONTROL), "no_effect"),
        (runs("c", *CONTROL), runs("a", *[None] * 5), "harmed"),
        (runs("c", *CONTROL, **ILL), runs("a", *[NAN] * 5), "harmed"),
        (runs("c", *CONTROL, **ILL), runs("a", *[-INF] * 5), "harmed"),
        (runs("c", *[None] * 5), runs("a", *BETTER), "cured"),
        (runs("c", *[NAN] * 5), runs("a", *[INF] * 5), "no_effect"),
        (runs("c", *CONTROL), runs("a", -1e3, -1e12, -7.0, -1e5, -1e30), "harmed"),
    ],
)
def test_clear_cases_read_the_same_with_few_seeds_and_many(
    control: list[Run], arm: list[Run], verdict: str, count: int
):
    """What is plain in five seeds is plain in three and in two."""
    assert judge(control[:count], arm[:count]).verdict == verdict


@pytest.mark.parametrize(
    ("control", "arm", "verdict", "because"),
    [
        # score alone
        (runs("c", *CONTROL, **ILL), runs("a", *WORSE, **WELL), "harmed", "The score falls: score -0.19"),
        (runs("c", *CONTROL, **ILL), runs("a", *BETTER, **ILL), "eased", "The score rises, with dead units left"),
        (runs("c", *CONTROL), runs("a", *BETTER), "eased", "The score rises, there was nothing to cure"),
        (runs("c", *CONTROL), runs("a", *LIKE), "no_effect", "No reliable difference: burden 0 to 0"),
        (runs("c", *CONTROL), runs("a", *LIKE, **ILL), "unproven", "More of it is ill (burden 0 to 0.6)"),
        # the symptom goes, the score may have suffered
        (
            runs("c", *CONTROL, **ILL),
            runs("a", 0.2, 0.6, 0.5, 0.2, 0.6, **WELL),
            "unproven",
            "The burden 0.6 to 0, but the score may have suffered: score -0.08 (95 % interval",
        ),
        # a tiny loss within the margin of a wide control
        (
            runs("c", 0.4, 0.6, 0.5, 0.3, 0.7, **ILL),
            runs("a", 0.399, 0.599, 0.5, 0.301, 0.699, **WELL),
            "cured",
            "No longer ill with dead units in all 5 seeds, untreated ill in 5",
        ),
        # the burden falls a little, or not in every seed
        (runs("c", *CONTROL, **ILL), runs("a", *LIKE, burden=0.55, kinds=("dead",)), "no_effect", "0.6 to 0.55"),
        (
            mixed("c", *[(0.5, ILL)] * 5),
            mixed("a", *[(0.5, {"burden": b, "kinds": ("dead",)}) for b in (0.1, 0.9, 0.1, 0.8, 0.6)]),
            "no_effect",
            "No reliable difference: burden 0.6 to 0.5",
        ),
        # cured of one kind and ill of another, in one seed
        (
            runs("c", *CONTROL, **ILL),
            mixed("a", *[(0.9, WELL)] * 4, (0.9, {"burden": 0.1, "kinds": ("saturated",)})),
            "eased",
            "The burden 0.6 to 0.02 in the mean of 5 seeds",
        ),
        # below what counts as ill, but hardly less dead
        (runs("c", *CONTROL, **ILL), runs("a", *BETTER, burden=0.4), "eased", "The burden 0.6 to 0.4 in the mean"),
        (runs("c", *CONTROL, **ILL), runs("a", *BETTER, burden=0.05), "cured", "No longer ill with dead"),
        # an ill control in too few seeds
        (
            mixed("c", (0.5, ILL), *[(0.5, WELL)] * 4),
            mixed("a", *[(0.5, WELL)] * 5),
            "unproven",
            "The untreated network is ill in only 1 of 5 seeds",
        ),
        (mixed("c", (0.5, ILL), (0.5, WELL)), mixed("a", (0.6, WELL), (0.5, WELL)), "cured", "untreated ill in 1"),
        # divergence
        (runs("c", *CONTROL), runs("a", 0.9, 0.9, None, None, None), "harmed", "Diverges in 3 of 5 seeds"),
        (runs("c", *CONTROL, **ILL), runs("a", 0.9, 0.9, 0.9, 0.9, None), "unproven", "Diverges in 1 of 5 seeds"),
        (
            runs("c", 0.5, None, None),
            runs("a", 0.5, 0.6, 0.7),
            "cured",
            "No longer ill with NaN or infinity in all 3 seeds",
        ),
        (runs("c", 0.5, None, None), runs("a", None, 0.6, 0.7), "unproven", "Diverges in 1 of 3 seeds"),
        (runs("c", None, None), runs("a", None, None), "no_effect", "Diverges in all 2 seeds, as the untreated"),
        (runs("c", None, None), runs("a", 0.5, 0.6), "cured", "untreated ill in 2; no seed gives both a score."),
        (runs("c", None, 0.1), runs("a", 0.5, 0.6), "cured", ", divergence counted as the worst score seen)."),
        # one seed
        (runs("c", 0.5), runs("a", 0.5), "no_effect", "Exactly as the untreated network in the one seed"),
        (runs("c", 0.5, **ILL), runs("a", 0.9), "unproven", "One seed cannot tell an effect from chance: score +0.4"),
        (runs("c", 0.5), runs("a", -100.0), "unproven", "without an interval"),
        (runs("c", 0.5), runs("a", None), "harmed", "Diverges in 1 of 1 seed "),
    ],
)
def test_each_rule_on_its_own(control: list[Run], arm: list[Run], verdict: str, because: str):
    """Each rule decides the case that it was written for, and says so with its numbers."""
    found = judge(control, arm)
    assert (found.verdict, because in found.because) == (verdict, True), found.because


def test_three_seeds_cannot_show_what_five_can():
    """The same scatter around the same effect is no reliable difference in three seeds, and one in five."""
    control, arm = runs("c", *[0.5] * 5), runs("a", 0.55, 0.7, 0.6, 0.56, 0.68)
    assert judge(control[:3], arm[:3]).verdict == "no_effect"
    assert judge(control, arm).verdict == "eased"


def test_rounding_is_not_harm():
    """Differences of the size of float32 rounding, all of one sign, are no harm."""
    control = runs("c", *CONTROL, **ILL)
    arm = runs("a", *[score * (1 - 1e-8) for score in CONTROL], **WELL)
    assert judge(control, arm).verdict == "cured"


def test_an_arm_that_changes_nothing_reads_so():
    """A no-op arm has no effect, a difference of exactly nothing, and no cost."""
    arm = judge(runs("untreated", *CONTROL, **ILL), runs("noop", *CONTROL, **ILL), changes={"fc1": "nothing"})
    assert (arm.name, arm.verdict) == ("noop", "no_effect")
    assert arm.difference == Difference(mean=0.0, low=0.0, high=0.0)
    assert arm.cost == Cost(time=1.0, parameters=1.0)
    assert arm.symptoms == ("dead",)
    assert arm.dead_share == pytest.approx(0.6)
    assert arm.changes == {"fc1": "nothing"}


def test_costs_are_ratios_of_time_per_step_and_of_size():
    """An arm that stopped early is not cheap for it."""
    control = runs("c", *CONTROL, seconds=2.0, steps=100, parameters=50)
    arm = runs("a", *CONTROL, seconds=1.5, steps=50, parameters=60)
    assert judge(control, arm).cost == Cost(time=1.5, parameters=1.2)


def test_lost_runs_are_left_out():
    """A seed whose worker died says nothing; when all are lost the reason is the arm's failure."""
    lost = [Run(arm="a", seed=seed, score=None, burden=0.0, lost=True, failure="killed") for seed in range(2)]
    control = runs("c", *CONTROL, **ILL)
    arm = judge(control, [*lost, *runs("a", *BETTER[2:], seeds=(2, 3, 4))])
    assert arm.verdict == "cured"
    assert "all 3 seeds" in arm.because
    failed = judge(control, lost)
    assert (failed.verdict, failed.failure, failed.scores) == ("unproven", "killed", ())
    assert judge(control, []).failure == "no seed ran on both sides"


def test_the_control_is_described_not_judged():
    """The untreated arm has no verdict and no difference, and says in how many seeds it is ill."""
    arm = judge_control(mixed("untreated", (0.5, ILL), (0.5, WELL), (None, WELL)))
    assert (arm.verdict, arm.difference, arm.cost) == (None, None, None)
    assert arm.because == "Ill in 2 of 3 seeds: dead units and NaN or infinity."
    assert arm.scores == (0.5, 0.5, None)
    assert judge_control(runs("untreated", 1.0, 2.0)).because == "Healthy in all 2 seeds."


# Choosing -----------------------------------------------------------------------------------------------------------


def arm_of(name: str, *scores: float, state: dict[str, Any] = WELL, **more: Any) -> Arm:
    return judge(runs("untreated", *CONTROL, **ILL), runs(name, *scores, **{**state, **more}))


def test_the_winner_is_cured_then_eased_then_best_then_cheapest():
    """Verdict before score, score before cost, and no winner among arms that are neither cured nor eased."""
    cured = arm_of("cured", *BETTER)
    best = arm_of("best", *[score + 0.01 for score in BETTER])
    cheap = arm_of("cheap", *BETTER, parameters=40)
    eased = arm_of("eased", *[score + 0.1 for score in BETTER], state={"burden": 0.1, "kinds": ("dead",)})
    harmed = arm_of("harmed", *WORSE)
    none = arm_of("none", *CONTROL, state=ILL)
    arms = [harmed, none, eased, cured, cheap, best]
    assert [arm.name for arm in ranked(arms)] == ["best", "cheap", "cured", "eased", "none", "harmed"]
    assert winner(arms) is best
    assert winner([eased, harmed]) is eased
    assert winner([none, harmed]) is None
    assert winner([]) is None


def test_ties_in_score_and_size_go_to_the_faster():
    """Scores that differ by rounding are equal, and the faster arm is chosen."""
    slow = arm_of("slow", *[score + 1e-15 for score in BETTER], seconds=3.0)
    fast = arm_of("fast", *BETTER, seconds=2.0)
    assert winner([slow, fast]) is fast
    assert winner([fast, slow]) is fast


def test_arms_survive_json():
    """An arm with infinite interval ends and missing scores comes back as it was."""
    arm = judge(runs("c", 0.5, None), runs("a", 0.9, 0.2))
    again = from_json(to_json(arm), Arm)
    assert again == arm
    assert again.difference is not None
    assert again.difference.high == INF
