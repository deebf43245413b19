"""Trials: remedies beside the untreated network, over paired seeds."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from relume.errors import NOTHING_TO_DO, RemedyError, TrialError
from relume.randomness import one_thread
from relume.report.results import Report, Trial
from relume.report.words import remedy as remedy_words
from relume.training import Training, check, repeatable, require_steps
from relume.trial.arms import CONTROL, Job, Outcome, Treatment
from relume.trial.engine import Engine, Runner, opened
from relume.trial.work import packed
from relume.verdicts import FIRST_LOOK, MIN_SEEDS, Arm, Run, in_words, judge, judge_control, ranked, settled, winner

if TYPE_CHECKING:
    from relume.remedies import Remedy

FAMILIES = (
    "leaky_relu", "prelu", "elu", "softplus", "batch_norm", "he_init", "xavier_init", "lower_learning_rate",
    "smaller_network", "mixed_activations",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One more run of a trial is done."""

    done: int
    total: int
    run: Run


OnProgress = Callable[[Progress], None]


def trial(
    training: Training,
    remedies: Iterable[str | Remedy] | None = None,
    seeds: int | Iterable[int] = 5,
    steps: int | None = None,
    engine: str | Engine = "auto",
    *,
    on_progress: OnProgress | None = None,
    report: Report | None = None,
    early: bool = False,
) -> Trial:
    """Train the network with and without each remedy, from the same seeds on the same batches, and judge.

    `remedies` are names or records; None takes the nine families and what `report` recommends. `seeds` is a number of
    seeds or the seeds themselves; with `early`, an arm whose verdict is plain after three or more of them gets no
    further ones. `engine` is "processes" (one worker per core), "ray" (many machines), "sequential" (this process; the
    same numbers bit for bit) or "auto", which takes workers when they are worth their start; an `Engine` says how many.
    `on_progress` is called with a `Progress` after each run. Ctrl-C ends it early: the seeds that are done, two at
    least, are judged, and `finished` is False.

        result = relume.trial(training, ["prelu", "lower_learning_rate"], seeds=5)
        print(result.winner, result.arm("prelu").because)

    Raises TrainingError when the training cannot run at all, RemedyError for an unknown remedy, TrialError when the
    untreated network fails. A remedy that cannot be applied is no error: its arm says why,
    unless nobody asked for it and it has nothing to do here.
    """
    chosen = [_remedy(remedy) for remedy in (default_remedies(report) if remedies is None else _listed(remedies))]
    _require_distinct([remedy.name for remedy in chosen])
    treatments = {remedy.name: partial(apply_remedy, remedy) for remedy in chosen}
    result = run_trial(training, treatments, seed_list(seeds), steps, engine, on_progress, early=early)
    if remedies is None:  # nobody asked for those
        result = replace(result, arms=tuple(arm for arm in result.arms if NOTHING_TO_DO not in arm.failure))
    best = next((remedy for remedy in chosen if remedy.name == result.winner), None)
    return result if best is None else replace(result, code=best.code)


def run_trial(
    training: Training,
    treatments: Mapping[str, Treatment],
    seeds: tuple[int, ...],
    steps: int | None,
    engine: str | Engine,
    on_progress: OnProgress | None,
    *,
    early: bool = False,
) -> Trial:
    """A trial of named treatments against the untreated network."""
    started = time.perf_counter()
    steps = training.steps if steps is None else require_steps(steps)
    training = repeatable(training, steps)
    seconds = rehearse(training, steps)
    jobs = [Job(CONTROL, seed) for seed in seeds]
    jobs += [Job(name, seed, treatment) for seed in seeds for name, treatment in treatments.items()]
    with opened(training, steps, engine, len(jobs), seconds * steps) as runner:
        outcomes = collect(runner, jobs, on_progress, interruptible=True, early=early)
        ran_in = runner.name
    control = [outcome.run for outcome in outcomes[CONTROL]]
    arms = [judged(control, outcomes[name]) for name in treatments]
    done = tuple(run.seed for run in control)
    result = concluded(judge_control(control), arms, training, done, steps, ran_in, time.perf_counter() - started)
    if len(done) == len(seeds):
        return result
    return replace(
        result, because=f"Interrupted after {len(done)} of {len(seeds)} seeds. {result.because}", finished=False
    )


def rehearse(training: Training, steps: int) -> float:
    """Check the training on a copy, so that a loader with a state of its own is not moved on; seconds of a step."""
    import cloudpickle

    payload, _ = packed(training, steps)
    with one_thread():  # as every run: several threads are slower on small networks, and much slower on busy machines
        return check(training if payload is None else cloudpickle.loads(payload)[0])


def collect(
    runner: Runner,
    jobs: Sequence[Job],
    on_progress: OnProgress | None = None,
    *,
    before: int = 0,
    ahead: int = 0,
    interruptible: bool = False,
    early: bool = False,
) -> dict[str, list[Outcome]]:
    """Run the jobs; the outcomes of each arm, in the order of the jobs. TrialError when a control cannot be run.

    `before` and `ahead` are the runs done earlier and known to come, for the progress. Where it is `interruptible`,
    Ctrl-C leaves the seeds in which every arm is done, if there are enough of them to judge. With `early`, an arm ends
    with the seed at which its verdict is settled; what was run beyond it, for want of other work, is left out, so that
    the result does not depend on how many workers there were.
    """
    done: dict[tuple[str, int], Outcome] = {}
    looking = Looks(jobs, done) if early else None

    def wanted(job: Job) -> bool:
        return looking is None or looking.wanted(job)

    def note(outcome: Outcome) -> None:
        run = outcome.run
        if run.arm == CONTROL and run.lost and outcome.traceback:
            raise TrialError(
                f"the untreated network could not be trained with seed {run.seed}: {run.failure}\n\n{outcome.traceback}"
            )
        done[run.arm, run.seed] = outcome
        if on_progress is not None:
            left = sum((job.arm, job.seed) not in done and wanted(job) for job in jobs)
            on_progress(Progress(done=before + len(done), total=before + len(done) + left + ahead, run=run))

    try:
        runner.run(jobs, note, wanted)
    except KeyboardInterrupt:
        missing = {job.seed for job in jobs if wanted(job) and (job.arm, job.seed) not in done}
        jobs = [job for job in jobs if job.seed not in missing]
        if not interruptible or len({job.seed for job in jobs}) < MIN_SEEDS:
            raise
    arms: dict[str, list[Outcome]] = {}
    for job in filter(wanted, jobs):
        arms.setdefault(job.arm, []).append(done[job.arm, job.seed])
    return arms


class Looks:
    """Which jobs of a trial are still wanted, as its outcomes come in.

    An arm is looked at seed by seed, in the order of the jobs, with the outcomes of those seeds alone. So it ends at
    the same seed in whatever order the outcomes come.
    """

    def __init__(self, jobs: Sequence[Job], done: Mapping[tuple[str, int], Outcome]) -> None:
        self._seeds = list(dict.fromkeys(job.seed for job in jobs))
        self._done = done
        self._looked: dict[str, int] = {}  # arm -> seeds at its last look
        self._ended: dict[str, int] = {}  # arm -> seeds at which it was settled

    def wanted(self, job: Job) -> bool:
        """Whether the job belongs to the trial, as far as can be told now; controls always do."""
        if job.arm == CONTROL:
            return True
        while job.arm not in self._ended:
            count = self._looked.get(job.arm, FIRST_LOOK - 1) + 1
            pairs = [(self._done.get((CONTROL, s)), self._done.get((job.arm, s))) for s in self._seeds[:count]]
            runs = [(c.run, a.run) for c, a in pairs if c is not None and a is not None]
            if count > len(self._seeds) or len(runs) < count:
                return True
            self._looked[job.arm] = count
            if settled([c for c, _ in runs], [a for _, a in runs], len(self._seeds) - FIRST_LOOK + 1):
                self._ended[job.arm] = count
        return self._seeds.index(job.seed) < self._ended[job.arm]


def judged(control: Sequence[Run], outcomes: Sequence[Outcome]) -> Arm:
    """The verdict on an arm, with what was changed in it."""
    changes = next((outcome.changes for outcome in outcomes if outcome.changes), {})
    return judge(control, [outcome.run for outcome in outcomes], changes=changes)


def concluded(
    control: Arm,
    arms: Sequence[Arm],
    training: Training,
    seeds: tuple[int, ...],
    steps: int,
    engine: str,
    seconds: float,
) -> Trial:
    """The trial that these arms make."""
    best = winner(arms)
    if all(run.lost for run in control.runs):
        raise TrialError(f"the untreated network could not be trained: {control.runs[0].failure}.")
    if best is not None:
        because = f"{remedy_words(best.name)}: {best.because[:1].lower()}{best.because[1:]}"
    elif not control.symptoms:
        because = "The untreated network is healthy, and no arm scores reliably higher."
    else:
        because = f"None of {len(arms)} arms cures or eases {in_words(control.symptoms)} reliably."
    return Trial(
        arms=(control, *ranked(arms)),
        winner=best.name if best is not None else None,
        seeds=seeds,
        steps=steps,
        engine=engine,
        score=training.score_in_words,
        symptom=in_words(control.symptoms) if control.symptoms else "",
        seconds=seconds,
        because=because,
    )


# Remedies and seeds -------------------------------------------------------------------------------------------------


def apply_remedy(
    remedy: Remedy, model: nn.Module, optimizer: Optimizer, inputs: Sequence[Any], targets: Sequence[Any] = ()
) -> Any:
    """The treatment that a remedy is."""
    from relume.remedies import treat

    treated = treat(model, optimizer, remedy, batches=inputs, targets=targets, trained=False)
    return treated.model, treated.optimizer, {str(place): str(what) for place, what in treated.changes.items()}


def default_remedies(report: Report | None) -> list[str]:
    """The nine families, and what a report recommends beyond them, the recommended first."""
    named = [name for diagnosis in report.diagnoses for name in diagnosis.remedies] if report is not None else []
    return list(dict.fromkeys((*named, *FAMILIES)))


def _listed(remedies: Iterable[str | Remedy]) -> list[str | Remedy]:
    if isinstance(remedies, str):
        return [remedies]
    try:
        chosen = list(remedies)
    except TypeError:
        return [remedies]  # type: ignore[list-item]  # a single Remedy
    if not chosen:
        raise RemedyError("a trial needs at least one remedy; found an empty list.\nPass remedies=None for all.")
    return chosen


def _remedy(remedy: str | Remedy) -> Remedy:
    from relume.remedies import Remedy, find_remedy

    if isinstance(remedy, Remedy):
        return remedy
    if not isinstance(remedy, str):
        raise RemedyError(f"a remedy is a name or a Remedy; found a {type(remedy).__name__}.")
    return find_remedy(remedy)


def _require_distinct(names: Sequence[str]) -> None:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice or CONTROL in names:
        found = ", ".join(twice) or CONTROL
        raise RemedyError(f"each arm needs a name of its own, {CONTROL!r} being the control's; found {found} twice.")


def seed_list(seeds: int | Iterable[int]) -> tuple[int, ...]:
    """The seeds themselves: a number n means 0 to n-1."""
    try:
        chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(operator.index(seed) for seed in seeds)
    except TypeError:
        chosen = ()
    if isinstance(seeds, bool) or not chosen or len(set(chosen)) < len(chosen):
        raise TrialError(f"seeds must be a number of at least 1, or distinct whole numbers; found {seeds!r}.")
    return chosen
