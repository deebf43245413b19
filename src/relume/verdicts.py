"""What a trial says of an arm: runs in, verdicts out. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, stdev
from typing import Literal

Verdict = Literal["cured", "eased", "no_effect", "harmed", "unproven"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One arm trained with one seed."""

    arm: str
    seed: int
    score: float | None  # higher is better; None when the run diverged or could not be scored
    burden: float  # how ill the network was at the end, 0..1; see `symptoms.burden`
    kinds: tuple[str, ...] = ()  # symptoms that made it ill, such as ("dead",); none: it was well, whatever its burden
    dead_share: float = 0.0  # of all units of all sites
    saturated_share: float = 0.0
    losses: tuple[float, ...] = ()  # thinned to at most 200, evenly over the run
    steps: int = 0
    seconds: float = 0.0
    parameters: int = 0
    failure: str = ""  # "diverged: loss is NaN at step 12", or why the remedy could not be applied
    engine: str = ""  # where it ran: "process 4711"
    lost: bool = False  # it never ran to a result, which says nothing of the arm: `failure` says why


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Mean paired difference of the score to the control, with its 95 % interval (Student's t over seeds)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the arm costs beside the control, as ratios: 1.0 is the same."""

    time: float
    parameters: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One variant in a trial, judged against the untreated control."""

    name: str  # "untreated", or the remedy's name
    verdict: Verdict | None  # None for the control
    symptoms: tuple[str, ...]  # kinds still seen in at least half of the seeds
    scores: tuple[float | None, ...]  # per seed; None: diverged
    difference: Difference | None  # None for the control, and where no seed could be compared
    cost: Cost | None
    dead_share: float = 0.0  # mean over seeds
    saturated_share: float = 0.0
    because: str = ""  # the verdict in one sentence, with its numbers
    failure: str = ""  # why the remedy could not be applied; then there are no scores
    changes: Mapping[str, str] = field(default_factory=dict)  # what the remedy did, by place
    runs: tuple[Run, ...] = ()


SYMPTOMS = {
    "dead": "dead units",
    "saturated": "saturated units",
    "vanishing": "vanishing gradients",
    "exploding": "exploding gradients",
    "non_finite": "NaN or infinity",
    "not_learning": "a loss that does not fall",
    "oscillating": "an oscillating loss",
    "off_centre": "off-centre activations",
}

CONFIDENCE = 0.95
MIN_SEEDS = 2  # one pair of runs cannot tell an effect from chance
FIRST_LOOK = 3  # seeds before a verdict may be settled: at two, 1 in 1200 had the wrong sign on digits
# Of the burden, so much may be left: an arm that slips just below what counts as ill is eased, not cured. Our choice,
# made on the demo, where it decides between BatchNorm (under 1 % dead) and the lower rate (21 % of 64 %); not measured.
CURED = 0.25
EASED = 0.25  # least fall of the burden, as a share of the control's: less is within what other seeds do to it
# "No worse" is a score whose interval stays above zero minus the smaller of these two: a hundredth of the control's
# score matters to nobody, and a quarter of its spread over seeds is less than choosing another seed does.
MARGIN_OF_SCORE = 0.01
MARGIN_OF_SPREAD = 0.25
# Runs that blow up without reaching NaN differ so wildly (losses of 1e3 and 1e12) that a t-interval holds anything.
# An arm that in every seed loses more than the control's whole score, and this much of its spread, needs no interval.
RUIN_IN_SPREADS = 3.0
ROUNDING = 1e-6  # of the greatest score: float32 rounding, not learning

BEST_FIRST: tuple[Verdict, ...] = ("cured", "eased", "no_effect", "unproven", "harmed")
WINNING: tuple[Verdict, ...] = ("cured", "eased")


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Difference:
    """Mean of the values with its interval (Student's t), of 95 % by default; unbounded for a single value."""
    mean = fmean(values)
    if len(values) < 2:
        return Difference(mean=mean, low=-math.inf, high=math.inf)
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * stdev(values) / math.sqrt(len(values))
    return Difference(mean=mean, low=mean - half, high=mean + half)


def difference(
    control: Sequence[float | None], arm: Sequence[float | None], confidence: float = CONFIDENCE
) -> Difference | None:
    """Mean paired difference arm - control over the seeds in which both have a score; None where no seed has both.

    Identical scores give exactly (0, 0, 0), whatever the number of seeds.
    """
    pairs = [(c, a) for c, a in zip(control, arm, strict=True) if _finite(c) is not None and _finite(a) is not None]
    differences = [a - c for c, a in pairs if a is not None and c is not None]
    if not differences:
        return None
    if not any(differences):
        return Difference(mean=0.0, low=0.0, high=0.0)
    return mean_interval(differences, confidence)


def judge(control: Sequence[Run], arm: Sequence[Run], *, changes: Mapping[str, str] | None = None) -> Arm:
    """What paired runs say of an arm. The first rule that holds decides.

    A run without a finite score has diverged: it is ill, and stands with the worst score that either side reached.
    A seed whose run was lost on either side is left out.

    1. `harmed`: the arm diverges where the control finished, in more seeds than the other way round, and this in at
       least half of the seeds; or the score's 95 % interval, divergence counted, lies below zero; or the arm loses more
       than the control's whole score in every seed.
    2. `no_effect`: score, burden and kinds of symptom equal the control's exactly.
    3. `unproven`: fewer than two seeds, or the arm diverges in a seed in which the control finished.
    4. `cured`: the control is ill in at least half of the seeds, the arm in none with a quarter of the burden at most,
       and the score is no worse: its mean difference is not negative, or its interval lies above minus the margin.
    5. `eased`: the score is no worse and the burden falls reliably (by a quarter or more in every seed in which the
       control is ill, or by a quarter in the mean with its interval below zero), or the score's interval is above zero.
    6. `no_effect`: neither burden nor score changed reliably, and there was nothing that went away.
    7. `unproven`: the rest, such as a symptom that is gone while the score may have suffered.

    Where the control is healthy in all seeds nothing can be cured, and the score alone decides.
    """
    name = arm[0].arm if arm else ""
    pairs = _pairs(control, arm)
    if not pairs:
        reason = next(
            (run.failure for run in (*arm, *control) if run.lost and run.failure), "no seed ran on both sides"
        )
        return _summary(name, arm, verdict="unproven", because=f"Not tried: {reason}", failure=reason, changes=changes)
    verdict, because = _verdict(pairs)
    return _summary(
        name,
        arm,
        verdict=verdict,
        because=because,
        difference=difference([c.score for c, _ in pairs], [a.score for _, a in pairs]),
        cost=_cost(pairs),
        changes=changes,
    )


def settled(control: Sequence[Run], arm: Sequence[Run], looks: int) -> bool:
    """Whether what these paired runs say is plain enough to do without further seeds, at one of so many looks.

    The intervals are wider than those of a verdict: each look has its share of the 5 % (Bonferroni). What no interval
    decides must hold in every seed: that the arm is free of symptoms, that it diverges, or that nothing differs. "No
    reliable difference" and "unproven" are never settled, as more seeds may decide them.
    """
    pairs = _pairs(control, arm)
    if len(pairs) < max(FIRST_LOOK, len(arm)):  # a run that was lost leaves a doubt
        return False
    confidence = 1 - (1 - CONFIDENCE) / looks
    score, noise, margin = _scores(pairs, confidence)
    change = mean_interval([_burden(a) - _burden(c) for c, a in pairs], confidence)
    verdict, _ = _verdict(pairs)
    if verdict == "harmed":
        return score.high < -noise or _ruined(pairs) or all(_diverged(a) and not _diverged(c) for c, a in pairs)
    if verdict == "no_effect":
        return _same(pairs) or all(_diverged(run) for pair in pairs for run in pair)
    no_worse = score.low >= -margin
    if verdict == "cured":
        return no_worse and change.high < 0
    before = fmean(_burden(c) for c, _ in pairs)
    falls = change.high < 0 and -change.mean >= EASED * before and any(_ill(a) for _, a in pairs)
    return verdict == "eased" and (score.low > noise or (falls and no_worse))


def judge_control(runs: Sequence[Run]) -> Arm:
    """The untreated arm, which the others are judged against."""
    ill = sum(_ill(run) for run in runs)
    because = (
        f"Ill in {ill} of {_seeds(runs)}: {in_words(_kinds(runs, least=0.0))}." if ill else f"Healthy in {_all(runs)}."
    )
    return _summary(runs[0].arm if runs else "untreated", runs, verdict=None, because=because)


def in_words(kinds: Sequence[str]) -> str:
    """What a network suffers from, such as "dead units and vanishing gradients"."""
    words = [SYMPTOMS.get(kind, kind) for kind in kinds]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def ranked(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """Best first: by verdict, then by mean score, and among equals the cheaper one."""

    def key(arm: Arm) -> tuple[float, ...]:
        scores = [score for score in map(_finite, arm.scores) if score is not None]
        mean = fmean(scores) if scores else -math.inf
        cost = arm.cost or Cost(time=math.inf, parameters=math.inf)
        place = len(BEST_FIRST) if arm.failure or arm.verdict is None else BEST_FIRST.index(arm.verdict)
        rounded = float(f"{mean:.10g}")  # the same sums in another order are a tie
        return place, len(arm.scores) - len(scores), -rounded, cost.parameters, round(cost.time, 1)

    return tuple(sorted(arms, key=key))


def winner(arms: Sequence[Arm]) -> Arm | None:
    """The arm to adopt: the best that is cured, else the best that is eased, else none."""
    return next(iter(ranked([arm for arm in arms if arm.verdict in WINNING])), None)


def _verdict(pairs: list[tuple[Run, Run]]) -> tuple[Verdict, str]:
    controls, arms = [c for c, _ in pairs], [a for _, a in pairs]
    seeds = len(pairs)
    newly = [a for c, a in pairs if not _diverged(c) and _diverged(a)]
    rescued = [c for c, a in pairs if _diverged(c) and not _diverged(a)]
    score, noise, margin = _scores(pairs)
    certain = seeds >= MIN_SEEDS
    said = _say(score, pairs)

    if len(newly) > len(rescued) and 2 * len(newly) >= seeds:
        return "harmed", f"Diverges in {len(newly)} of {_seeds(arms)} in which the untreated network does not."
    if certain and score.high < -noise:
        return "harmed", f"The score falls: {said}."
    if certain and _ruined(pairs):
        return "harmed", f"The score falls by more than the untreated network reached, in {_all(arms)}."
    if all(map(_diverged, controls)) and all(map(_diverged, arms)):
        return "no_effect", f"Diverges in {_all(arms)}, as the untreated network does."
    if _same(pairs):
        return "no_effect", f"Exactly as the untreated network in {_all(arms)}."
    if not certain:
        return "unproven", f"One seed cannot tell an effect from chance: {said}."
    if newly:
        return (
            "unproven",
            f"Diverges in {len(newly)} of {_seeds(arms)} in which the untreated network does not; {said}.",
        )

    ill = [(c, a) for c, a in pairs if _ill(c)]
    no_worse = score.mean >= -noise or score.low >= -margin
    free = not any(map(_ill, arms))
    often = bool(ill) and 2 * len(ill) >= seeds
    before, after = fmean(map(_burden, controls)), fmean(map(_burden, arms))
    if often and free and no_worse and after <= CURED * before:
        return (
            "cured",
            f"No longer ill with {in_words(_kinds(controls, least=0.0))} in {_all(arms)}, untreated ill in {len(ill)}; "
            f"{said}.",
        )

    change = mean_interval([_burden(a) - _burden(c) for c, a in pairs])
    steady = often and all(_burden(c) - _burden(a) >= EASED * _burden(c) for c, a in ill)
    steady = steady and all(_burden(a) <= _burden(c) for c, a in pairs)
    falls = before > 0 and (steady or (change.high < 0 and before - after >= EASED * before))
    burden = f"burden {before:.2g} to {after:.2g}"
    if falls and no_worse and after < before:
        return "eased", f"The {burden} in the mean of {_seeds(arms)}; {said}."
    if score.low > noise:
        left = in_words(_kinds(arms, least=0.0)) or "no symptom"
        return "eased", f"The score rises, {f'with {left} left' if ill else 'there was nothing to cure'}: {said}."
    if falls:
        return "unproven", f"The {burden}, but the score may have suffered: {said}."
    if ill and free:
        return "unproven", f"The untreated network is ill in only {len(ill)} of {_seeds(arms)}; {said}."
    if change.low > 0:
        return "unproven", f"More of it is ill ({burden}), without a reliable change of the score: {said}."
    return "no_effect", f"No reliable difference: {burden}, {said}."


def _pairs(control: Sequence[Run], arm: Sequence[Run]) -> list[tuple[Run, Run]]:
    by_seed = {run.seed: run for run in control if not run.lost}
    return [(by_seed[run.seed], run) for run in arm if not run.lost and run.seed in by_seed]


def _scores(pairs: list[tuple[Run, Run]], confidence: float = CONFIDENCE) -> tuple[Difference, float, float]:
    """The difference with diverged runs at the worst score seen, its rounding error, and the margin of "no worse"."""
    both = [(_finite(c.score), _finite(a.score)) for c, a in pairs]
    seen = [score for pair in both for score in pair if score is not None]
    worst = min(seen, default=0.0)
    filled = [(worst if c is None else c, worst if a is None else a) for c, a in both]
    controls = [c for c, _ in both if c is not None]
    margin = 0.0
    if len(controls) > 1:
        margin = min(MARGIN_OF_SCORE * abs(fmean(controls)), MARGIN_OF_SPREAD * stdev(controls))
    found = difference([c for c, _ in filled], [a for _, a in filled], confidence)
    assert found is not None  # there is at least one pair, and every score in it is finite
    return found, ROUNDING * max(map(abs, seen), default=0.0), margin


def _same(pairs: list[tuple[Run, Run]]) -> bool:
    return all((_finite(c.score), c.burden, c.kinds) == (_finite(a.score), a.burden, a.kinds) for c, a in pairs)


def _ruined(pairs: list[tuple[Run, Run]]) -> bool:
    scores = [(_finite(c.score), _finite(a.score)) for c, a in pairs]
    controls = [c for c, _ in scores if c is not None]
    if len(controls) < max(MIN_SEEDS, len(pairs)):
        return False
    least = max(abs(fmean(controls)), RUIN_IN_SPREADS * stdev(controls))
    return all(a is None or (c is not None and c - a > least) for c, a in scores)


def _finite(score: float | None) -> float | None:
    return score if score is not None and math.isfinite(score) else None


def _diverged(run: Run) -> bool:
    return _finite(run.score) is None


def _burden(run: Run) -> float:
    return 1.0 if _diverged(run) else run.burden


def _ill(run: Run) -> bool:
    return _diverged(run) or bool(run.kinds)


def _kinds(runs: Sequence[Run], least: float = 0.5) -> tuple[str, ...]:
    """Kinds of symptom seen in at least that share of the runs, the most frequent first; diverging is one."""
    counts: dict[str, int] = {}
    for run in runs:
        for kind in dict.fromkeys((*run.kinds, *(("non_finite",) if _diverged(run) and not run.lost else ()))):
            counts[kind] = counts.get(kind, 0) + 1
    return tuple(kind for kind, count in sorted(counts.items(), key=lambda kc: -kc[1]) if count >= least * len(runs))


def _cost(pairs: list[tuple[Run, Run]]) -> Cost | None:
    """Time of a step and parameters, as ratios to the control; a run that diverged early has them too."""
    times = [(a.seconds / a.steps) / (c.seconds / c.steps) for c, a in pairs if c.steps and a.steps and c.seconds > 0]
    sizes = [a.parameters / c.parameters for c, a in pairs if c.parameters]
    return Cost(time=median(times or [1.0]), parameters=median(sizes or [1.0]))


def _seeds(runs: Sequence[Run]) -> str:
    return f"{len(runs)} seed{'s' * (len(runs) != 1)}"


def _all(runs: Sequence[Run]) -> str:
    return f"all {len(runs)} seeds" if len(runs) != 1 else "the one seed"


def _say(score: Difference, pairs: list[tuple[Run, Run]]) -> str:
    """The difference in words; it says so where diverged runs enter it."""
    if all(_diverged(c) or _diverged(a) for c, a in pairs):
        return "no seed gives both a score"
    if len(pairs) < MIN_SEEDS:
        return f"score {score.mean:+.2g}, without an interval"
    filled = (
        ", divergence counted as the worst score seen" if any(_diverged(c) or _diverged(a) for c, a in pairs) else ""
    )
    return f"score {score.mean:+.2g} (95 % interval {score.low:+.2g} to {score.high:+.2g}{filled})"


def _summary(
    name: str,
    runs: Sequence[Run],
    *,
    verdict: Verdict | None,
    because: str,
    difference: Difference | None = None,
    cost: Cost | None = None,
    failure: str = "",
    changes: Mapping[str, str] | None = None,
) -> Arm:
    ran = [run for run in runs if not run.lost]
    return Arm(
        name=name,
        verdict=verdict,
        symptoms=_kinds(ran),
        scores=() if failure else tuple(_finite(run.score) for run in runs),
        difference=difference,
        cost=cost,
        dead_share=fmean(run.dead_share for run in ran) if ran else 0.0,
        saturated_share=fmean(run.saturated_share for run in ran) if ran else 0.0,
        because=because,
        failure=failure,
        changes=dict(changes or {}),
        runs=tuple(runs),
    )
