"""Early verdicts: an arm gets no further seeds once what they would say is plain, and the same ones on every engine."""

import dataclasses
import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from relume.errors import TrialError
from relume.training import Training
from relume.trial import Engine, Progress, trial
from relume.trial.arms import CONTROL, Job, Outcome
from relume.trial.proof import Looks, collect, run_trial
from relume.trial.work import Note, Wanted, always
from relume.verdicts import Run, judge, settled

ILL = {"burden": 0.6, "kinds": ("dead",)}
SAME = (0.50, 0.52, 0.48)


def runs(arm: str, *scores: float | None, **state: Any) -> list[Run]:
    return [Run(arm=arm, seed=seed, score=score, **{"burden": 0.0, **state}) for seed, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("control", "arm", "verdict", "plain"),
    [
        (runs("c", *SAME, **ILL), runs("a", 0.80, 0.81, 0.79), "cured", True),
        (runs("c", *SAME, **ILL), runs("a", 0.50, 0.90, 0.52), "cured", False),  # the score may have suffered
        ([*runs("c", 0.50, 0.52, **ILL), *runs("c", 0.0, 0.0, 0.48)[2:]], runs("a", 0.80, 0.81, 0.79), "cured", False),
        (runs("c", *SAME), runs("a", 0.20, 0.21, 0.19), "harmed", True),
        (runs("c", *SAME), runs("a", 0.44, 0.48, 0.404), "harmed", False),  # at 95 %, not at a third of the 5 %
        (runs("c", *SAME), runs("a", None, None, None), "harmed", True),
        (runs("c", *SAME), runs("a", None, None, 0.50), "harmed", False),
        (runs("c", *SAME), runs("a", 0.80, 0.81, 0.79), "eased", True),
        (runs("c", *SAME), runs("a", 0.52, 0.534, 0.506), "eased", False),
        (runs("c", *SAME, **ILL), runs("a", *SAME, burden=0.3, kinds=("dead",)), "eased", True),
        (runs("c", *SAME), runs("a", *SAME), "no_effect", True),
        (runs("c", None, None, None), runs("a", None, None, None), "no_effect", True),
        (runs("c", *SAME), runs("a", 0.51, 0.51, 0.49), "no_effect", False),  # more seeds may find a difference
        (runs("c", *SAME)[:2], runs("a", 0.20, 0.21), "harmed", False),  # two seeds settle nothing
    ],
)
def test_what_is_plain_after_three_seeds(control: list[Run], arm: list[Run], verdict: str, plain: bool):
    """The verdict must hold at the corrected confidence, or in every seed where no interval decides it."""
    assert judge(control, arm).verdict == verdict
    assert settled(control, arm, looks=3) is plain


def test_a_lost_run_settles_nothing():
    """A seed that could not be run on one side is no evidence, and the arm goes on."""
    control, arm = runs("c", *SAME, 0.5), runs("a", 0.20, 0.21, 0.19, 0.2)
    assert settled(control, arm, looks=3)
    assert not settled(control, [*arm[:3], dataclasses.replace(arm[3], lost=True)], looks=3)


def test_chance_settles_at_most_what_it_may():
    """Of arms that differ by nothing but noise, fewer than 5 % are settled at any of three looks (Bonferroni)."""
    generator, found, trials = random.Random(0), 0, 4000
    for _ in range(trials):
        control, arm = (runs(name, *(generator.gauss(0.5, 0.05) for _ in range(5))) for name in "ca")
        found += any(settled(control[:k], arm[:k], looks=3) for k in (3, 4))
    assert 0.01 < found / trials < 0.05


class Planned:
    """A runner whose outcomes are planned and come in any order, as from many workers."""

    name = "planned"

    def __init__(self, outcomes: Mapping[tuple[str, int], Outcome], workers: int, seed: int) -> None:
        self._outcomes, self._workers, self._random = outcomes, workers, random.Random(seed)
        self.begun: list[tuple[str, int]] = []

    def run(self, jobs: Sequence[Job], note: Note, wanted: Wanted = always) -> None:
        todo, running = list(jobs), list[Job]()
        while todo or running:
            while todo and len(running) < self._workers:
                job = todo.pop(0)
                if wanted(job):
                    self.begun.append((job.arm, job.seed))
                    running.append(job)
            if running:
                job = running.pop(self._random.randrange(len(running)))
                note(self._outcomes[job.arm, job.seed])


ARMS = {
    CONTROL: (0.50, 0.52, 0.48, 0.51, 0.49, 0.50),
    "plain": (0.90, 0.91, 0.92, 0.91, 0.90, 0.90),
    "later": (0.54, 0.59, 0.56, 0.57, 0.56, 0.57),
    "never": (0.51, 0.51, 0.49, 0.50, 0.48, 0.52),
}


@pytest.mark.parametrize("workers", [1, 2, 5, 24])
@pytest.mark.parametrize("seed", range(5))
def test_an_arm_ends_at_the_same_seed_on_any_number_of_workers(workers: int, seed: int):
    """Which seeds an arm keeps follows from its outcomes, not from the order in which they come."""
    planned = {
        (name, s): Outcome(run=run) for name, scores in ARMS.items() for s, run in enumerate(runs(name, *scores))
    }
    jobs = [Job(CONTROL, s) for s in range(6)] + [Job(n, s) for s, n in itertools.product(range(6), list(ARMS)[1:])]
    runner, events = Planned(planned, workers, seed), list[Progress]()
    found = collect(runner, jobs, events.append, early=True)
    assert {name: len(outcomes) for name, outcomes in found.items()} == {CONTROL: 6, "plain": 3, "later": 4, "never": 6}
    assert len(runner.begun) <= 19 + workers
    assert (events[-1].done, events[-1].total) == (len(runner.begun), len(runner.begun))
    assert len(collect(Planned(planned, workers, seed), jobs)["plain"]) == 6


def test_looks_wait_for_every_seed_before():
    """An arm is not looked at while one of its first seeds, or of the control's, is still running."""
    jobs = [Job(name, seed) for seed in range(4) for name in (CONTROL, "a")]
    every = {(r.arm, r.seed): Outcome(run=r) for r in (*runs(CONTROL, *SAME, 0.5), *runs("a", 0.9, 0.9, 0.91, 0.92))}
    done: dict[tuple[str, int], Outcome] = {key: value for key, value in every.items() if key != (CONTROL, 1)}
    looks = Looks(jobs, done)
    assert looks.wanted(Job("a", 3))
    done[CONTROL, 1] = every[CONTROL, 1]
    assert not looks.wanted(Job("a", 3))
    assert looks.wanted(Job("a", 2)) and looks.wanted(Job(CONTROL, 3))


# On real runs -------------------------------------------------------------------------------------------------------


class Net(nn.Sequential):
    """A network whose hidden units start out dead."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        nn.init.constant_(self[0].bias, -30.0)  # type: ignore[arg-type]


def sgd(parameters: Any) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def make() -> Training:
    x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    batches = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=32, shuffle=True)
    return Training(model=Net, optimizer=sgd, loss=nn.functional.cross_entropy, batches=batches, steps=60)


def test_early_trials_agree_between_engines_and_with_the_whole_trial():
    """The arm that cures ends early on every engine, with the winner and the scores that the whole trial finds."""
    asked: dict[str, Any] = {"remedies": ["reset_bias", "lower_learning_rate"], "seeds": 5}
    whole = trial(make(), **asked, engine="sequential")
    here = trial(make(), **asked, engine="sequential", early=True)
    there = trial(make(), **asked, engine=Engine(name="processes", workers=3), early=True)
    assert there.engine == "3 worker processes"
    for name in (CONTROL, "reset_bias", "lower_learning_rate"):
        assert here.arm(name).scores == there.arm(name).scores == whole.arm(name).scores[: len(here.arm(name).scores)]
        assert here.arm(name).verdict == there.arm(name).verdict == whole.arm(name).verdict
    assert here.winner == there.winner == "reset_bias"
    assert len(here.arm("reset_bias").scores) == 3
    assert len(here.control.scores) == len(whole.arm("reset_bias").scores) == 5
    assert here.seeds == (0, 1, 2, 3, 4)


def test_an_early_trial_of_two_seeds_is_a_whole_one():
    """Below the first look nothing is left out."""
    result = run_trial(make(), {}, (0, 1), 10, "sequential", None, early=True)
    assert len(result.control.scores) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "ray2"}, r"no engine named 'ray2'.\nEngines: auto, processes, sequential, ray"),
        ({"workers": 0}, "workers must be at least 1; found 0"),
        ({"cpus_per_arm": -1.0}, "must not be negative, nor both zero; found -1 and 0"),
        ({"cpus_per_arm": 0.0}, "must not be negative, nor both zero; found 0 and 0"),
        ({"gpus_per_arm": -0.5}, "must not be negative, nor both zero; found 1 and -0.5"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(wrong: dict[str, Any], message: str):
    """Names and amounts are checked when they are given."""
    with pytest.raises(TrialError, match=message):
        Engine(**wrong)
