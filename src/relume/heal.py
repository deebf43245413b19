"""Diagnose, try remedies, adopt the proven one and train with it; never worse than untreated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from relume.checkup import diagnose
from relume.errors import RemedyError
from relume.interventions import report_on
from relume.remedies import REMEDIES, Remedy
from relume.report.results import Healed, Report, Trial
from relume.training import Training, fresh, repeatable, require_steps
from relume.trial import trial as run_trial
from relume.trial.arms import Trained, carry_out
from relume.trial.proof import apply_remedy, seed_list
from relume.verdicts import WINNING, Arm, ranked

if TYPE_CHECKING:
    from relume.trial import OnProgress

CANDIDATES = 3  # arms proven in the trial that are trained afresh before the network is left untreated


def heal(
    training: Training,
    seeds: int | Iterable[int] = 3,
    *,
    steps: int | None = None,
    engine: str = "auto",
    remedies: Iterable[str | Remedy] | None = None,
    on_progress: OnProgress | None = None,
    report: Report | None = None,
    trial: Trial | None = None,
) -> Healed:
    """Train the network; where it is ill, with the remedy that a trial has proven on it.

    Diagnoses first (or takes `report`) and is done when the network is healthy. Else it tries `remedies`, by default
    those that the report recommends, over `seeds` (or takes `trial`); trains afresh, from a seed that the trial has not
    seen, without and with the winner; and keeps the treated network only if its score is at least the untreated one's.
    `steps` replaces the training's own number throughout.

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
    if trial is None:
        asked = recommended(report) if remedies is None else remedies
        trial = run_trial(training, asked, chosen_seeds, steps, engine, on_progress=on_progress, report=report)
        if not trial.finished:
            raise KeyboardInterrupt

    seed = max(trial.seeds) + 1
    untreated = carry_out(fresh(training), steps, seed)
    refused = []
    for arm in [arm for arm in ranked(trial.arms[1:]) if arm.verdict in WINNING][:CANDIDATES]:
        treated = carry_out(fresh(training), steps, seed, partial(apply_remedy, _record(arm, known)))
        scores = f"{arm.name} {_score(treated)}, untreated {_score(untreated)}"
        if no_worse(treated.score, untreated.score):
            because = (
                f"{arm.name} was proven in the trial ({arm.because.rstrip('.')}). Afresh with seed {seed}: {scores}."
            )
            return _healed(arm.name, treated, untreated, report, trial, because)
        refused.append(scores)
    because = f"Left untreated. {trial.because}"
    if refused:
        because = f"Left untreated: what the trial had proven did worse afresh with seed {seed}: {'; '.join(refused)}."
    return _healed(None, untreated, untreated, report, trial, because)


def recommended(report: Report) -> list[str] | None:
    """The remedies that a report recommends, best first; None, for all families, where it recommends none."""
    grave = [diagnosis for diagnosis in report.diagnoses if diagnosis.severity != "note"]
    names = dict.fromkeys(name for diagnosis in grave for name in diagnosis.remedies if name in REMEDIES)
    return list(names) or None


def no_worse(treated: float | None, untreated: float | None) -> bool:
    """Whether the treated network may be kept: it has a score, and the untreated one has none that is higher."""
    return treated is not None and (untreated is None or treated >= untreated)


def _record(arm: Arm, known: Mapping[str, Remedy]) -> Remedy:
    if arm.name not in known:
        raise RemedyError(
            f"the trial's arm {arm.name!r} is no remedy that is known here.\n"
            f"Pass its record: remedies=[...]. Known: {', '.join(known)}."
        )
    return known[arm.name]


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
