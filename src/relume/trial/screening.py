"""Which of many remedies are worth a proof: each is trained once, the likeliest first, until some do better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from relume.training import Training
from relume.trial.arms import CONTROL, Job
from relume.trial.engine import Engine, opened
from relume.trial.proof import OnProgress, apply_remedy, collect, rehearse
from relume.verdicts import Run

if TYPE_CHECKING:
    from relume.remedies import Remedy

ROUND = 4  # remedies tried before looking whether one of them will do; as many as the longest grid of learning rates
WORTH_PROVING = 3  # arms that a trial then proves over paired seeds


def screen(
    training: Training,
    remedies: Sequence[Remedy],
    steps: int,
    seed: int,
    engine: str | Engine = "auto",
    *,
    on_progress: OnProgress | None = None,
) -> tuple[list[Remedy], Sequence[Remedy]]:
    """The remedies worth a proof, the best first, at most three, and those that were not tried.

    They are tried in rounds of four, until one of a round will do: it ends healthy, with a better score than the
    untreated network. Where none does, those with the best scores come first. One seed proves nothing, and what is
    proven afterwards must have other seeds.
    """
    seconds = rehearse(training, steps)
    with opened(training, steps, engine, 1 + ROUND, seconds * steps) as runner:
        control: Run | None = None
        runs: dict[str, Run] = {}
        for start in range(0, len(remedies), ROUND):
            tried = remedies[start : start + ROUND]
            jobs = [Job(CONTROL, seed)] if control is None else []
            jobs += [Job(remedy.name, seed, partial(apply_remedy, remedy)) for remedy in tried]
            found = collect(runner, jobs, on_progress, before=len(runs) + (control is not None))
            control = control or found[CONTROL][0].run
            runs |= {remedy.name: found[remedy.name][0].run for remedy in tried}
            will_do = [remedy for remedy in tried if _will_do(runs[remedy.name], control)]
            if will_do:
                return sorted(will_do, key=lambda remedy: -_score(runs[remedy.name]))[:WORTH_PROVING], remedies[
                    start + ROUND :
                ]
    ran = [remedy for remedy in remedies if not runs[remedy.name].lost]
    return sorted(ran or remedies, key=lambda remedy: -_score(runs[remedy.name]))[:WORTH_PROVING], ()


def _will_do(run: Run, control: Run) -> bool:
    return not run.lost and not run.kinds and math.isfinite(_score(run)) and _score(run) > _score(control)


def _score(run: Run) -> float:
    return run.score if run.score is not None and math.isfinite(run.score) else -math.inf
