"""Diagnose, try remedies, adopt the proven one and train with it; never worse than untreated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from relume.checkup import diagnose
from relume.diagnosis import REMEDIES_FOR
from relume.errors import RemedyError
from relume.interventions import report_on
from relume.remedies import REMEDIES, Remedy, find_remedy
from relume.remedies.combination import PLUS
from relume.report.results import Healed, Report, Trial
from relume.training import Training, fresh, repeatable, require_steps
from relume.trial import trial as run_trial
from relume.trial.arms import Trained, carry_out
from relume.trial.engine import Engine
from relume.trial.proof import apply_remedy, seed_list
from relume.trial.screening import screen
from relume.verdicts import MIN_SEEDS, WINNING, Arm, ranked

if TYPE_CHECKING:
    from relume.trial import OnProgress

CANDIDATES = 3  # arms of the trial that are trained afresh before the network is left untreated


def heal(
    training: Training,
    seeds: int | Iterable[int] = 3,
    *,
    steps: int | None = None,
    engine: str | Engine = "auto",
    remedies: Iterable[str | Remedy] | None = None,
    on_progress: OnProgress | None = None,
    report: Report | None = None,
    trial: Trial | None = None,
) -> Healed:
    """Train the network; where it is ill, with the remedy that a trial has proven on it.

    Diagnoses first (or takes `report`) and is done when the network is healthy. Else it tries `remedies` over `seeds`
    (or takes `trial`). By default these are the best of those that the report recommends, or, where none of them does
    better on a first seed or none keeps what that promised, of the first remedies for other causes. It then trains
    afresh, from a seed that nothing was chosen on, without and with the winner, and keeps the treated network only if
    its score is at least the untreated one's. Where nothing was proven, a remedy that scored higher in every seed of
    the trial is kept only if it scores higher afresh too. `steps` replaces the training's own number throughout.

        healed = relume.heal(training)
        print(healed.remedy, healed.score_before, healed.score_after)
        torch.save(healed.model.state_dict(), "model.pt")

    Raises what `diagnose` and `trial` raise.
    """
    chosen_seeds = seed_list(seeds)
    steps = training.steps if steps is None else require_steps(steps)
    training = repeatable(training, steps)
    if report is None:
        report = diagnose(training, steps)
        if not report.recording.finished:
            raise KeyboardInterrupt
    if report.healthy and trial is None:
        untreated = carry_out(fresh(training), steps, max(chosen_seeds) + 1)
        return _healed(None, untreated, untreated, report, None, "The untreated network is healthy.")

    known: Mapping[str, Remedy] = REMEDIES
    if remedies is not None:
        remedies = [remedies] if isinstance(remedies, (str, Remedy)) else list(remedies)
        known = {**REMEDIES, **{remedy.name: remedy for remedy in remedies if isinstance(remedy, Remedy)}}

    def prove(remedies: Iterable[str | Remedy]) -> Trial:
        proven = run_trial(training, remedies, chosen_seeds, steps, engine, on_progress=on_progress, report=report)
        if not proven.finished:
            raise KeyboardInterrupt
        return proven

    if trial is not None or remedies is not None:
        trial = trial or prove(remedies or ())
        untreated = carry_out(fresh(training), steps, max(trial.seeds) + 1)
        return _adopted(training, steps, report, trial, known, untreated)
    untreated = carry_out(fresh(training), steps, max(chosen_seeds) + 1)
    untried: Sequence[Remedy] = likeliest(report)
    while True:  # until one is adopted, or all were tried
        first = max(chosen_seeds) + 2  # seeds that chose an arm would flatter it, in the trial and afresh
        chosen, untried = screen(training, untried, steps, first, engine, on_progress=on_progress)
        healed = _adopted(training, steps, report, prove(chosen), known, untreated)
        if healed.remedy is not None or not untried:
            return healed


def _adopted(
    training: Training, steps: int, report: Report, trial: Trial, known: Mapping[str, Remedy], untreated: Trained
) -> Healed:
    """Trained afresh, with the best arm of the trial that keeps its promise beside `untreated`; else that."""
    seed = max(trial.seeds) + 1
    refused, level = [], None
    for arm in worth_adopting(trial)[:CANDIDATES]:
        treated = carry_out(fresh(training), steps, seed, partial(apply_remedy, _record(arm, known)))
        scores = f"{arm.name} {_score(treated)}, untreated {_score(untreated)}"
        proven = arm.verdict in WINNING
        how = "was proven in the trial" if proven else "was not proven, but scored higher in every seed of the trial"
        because = f"{arm.name} {how} ({arm.because.rstrip('.')}). Afresh with seed {seed}: {scores}."
        if not no_worse(treated.score, untreated.score) or (treated.score == untreated.score and not proven):
            refused.append(scores)
        elif treated.score != untreated.score:
            return _healed(arm.name, treated, untreated, report, trial, because)
        elif level is None:
            level = _healed(arm.name, treated, untreated, report, trial, because)
    if level is not None:  # healthier, and no arm scores higher
        return level
    because = f"Left untreated. {trial.because}"
    if refused:
        because = f"Left untreated: what did better in the trial did not afresh with seed {seed}: {'; '.join(refused)}."
    return _healed(None, untreated, untreated, report, trial, because)


def likeliest(report: Report) -> list[Remedy]:
    """What a report recommends, best first; then the first remedy for each other cause, as it may be that one.

    At the end stands the first of all together with each of these, as it may be both.
    """
    grave = [diagnosis for diagnosis in report.diagnoses if diagnosis.severity != "note"]
    names = [name for diagnosis in grave for name in diagnosis.remedies]
    others = [first for first, *_ in REMEDIES_FOR.values()]
    both = [f"{names[0]}{PLUS}{other}" for other in others if other not in names[0]] if names else []
    found = []
    for name in dict.fromkeys((*names, *others, *REMEDIES_FOR["unknown"], *both)):
        with suppress(RemedyError):  # a report may come from a version that knew other remedies
            found.append(find_remedy(name))
    return found


def worth_adopting(trial: Trial) -> list[Arm]:
    """The arms that were proven, best first; then those that scored higher in every seed, though not reliably."""
    control = trial.control.scores
    arms = ranked(trial.arms[1:])
    proven = [arm for arm in arms if arm.verdict in WINNING]
    higher = [arm for arm in arms if arm not in proven and _higher(arm.scores, control)]
    return proven + higher


def _higher(scores: Sequence[float | None], control: Sequence[float | None]) -> bool:
    pairs = list(zip(scores, control, strict=False))
    return len(pairs) >= MIN_SEEDS and all(a is not None and (c is None or a > c) for a, c in pairs)


def no_worse(treated: float | None, untreated: float | None) -> bool:
    """Whether the treated network may be kept: it has a score, and the untreated one has none that is higher."""
    return treated is not None and (untreated is None or treated >= untreated)


def _record(arm: Arm, known: Mapping[str, Remedy]) -> Remedy:
    try:
        return find_remedy(arm.name, known)
    except RemedyError:
        raise RemedyError(
            f"the trial's arm {arm.name!r} is no remedy that is known here.\n"
            f"Pass its record: remedies=[...]. Known: {', '.join(known)}."
        ) from None


def _score(trained: Trained) -> str:
    return f"scores {trained.score:.4g}" if trained.score is not None else trained.failure


def _healed(
    remedy: str | None, kept: Trained, untreated: Trained, report: Report, trial: Trial | None, because: str
) -> Healed:
    return Healed(
        model=kept.model,
        optimizer=kept.optimizer,
        remedy=remedy,
        trial=trial,
        report_before=report,
        report_after=report_on(kept.recording),
        score_before=untreated.score,
        score_after=kept.score,
        because=because,
    )
