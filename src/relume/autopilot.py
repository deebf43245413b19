"""The autopilot of `watch(..., heal=True)`: treats a network in the middle of a loop of the user's own.

It looks at the run at growing intervals, by the detectors alone. Where they find what may be critical it collects the
batches of the next steps, asks for the full diagnosis, and pauses the loop on a critical one: copies of the network
and its optimizer are trained on every second of these batches, untreated and with each of a few remedies, and scored
on the others. One seed picks the remedies that are worth a proof; further seeds, each another order of the batches,
prove them beside the untreated control. What is proven is applied to the network in place (`adoption`). Over the next
steps it is on trial: where the loss falls behind, the network is put back as it was, and that remedy is not tried
again.

On ordinary steps nothing is done, and a network that is well is never touched.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, variance
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from relume.actions import Action, Attempt, taken_back, told
from relume.adoption import Twin, is_compiled, keep_schedule, scheduled, settings_of, structure
from relume.diagnosis import REMEDIES_FOR, Diagnosis
from relume.errors import RemedyError, TrainingError
from relume.interventions import SURE
from relume.nested import call, tensors
from relume.randomness import isolated_rng, seed_all
from relume.recorder import Recorder
from relume.remedies import REMEDIES, Edit, Network, Remedy, combined, find_remedy, operate
from relume.report import Report
from relume.report.headline import headline
from relume.report.results import Page
from relume.sites import undisturbed
from relume.snapshots import SNAPSHOT_BYTES
from relume.surgery import copied_loss, require_own_hooks
from relume.symptoms import find
from relume.training import Training, batch_size
from relume.trial.arms import CONTROL, Job, Outcome
from relume.trial.engine import Sequential
from relume.trial.proof import collect, judged
from relume.verdicts import WINNING, Arm, Run, difference

log = logging.getLogger("relume")

FIRST_LOOK = 30  # steps: deaths by a learning rate far too high are over by then
LOOK_GROWTH = 2  # times the steps to the next look
LONGEST_LOOK = 5000  # steps between looks in a long run
WINDOW_SAMPLES = 2000  # collected for a trial: a thousand to learn from, and as many to score on
WINDOW_BYTES = 64 * 2**20
FEWEST_PAIRS = 8  # of batches collected, where they are large
PATIENCE = 20  # steps without one target that could be told
TRIED = 8  # remedies tried on one seed
WORTHWHILE = 0.01  # of the loss: a network is not changed for less
PROVEN = 3  # of them that are then proven
SEEDS = 3  # pairs of runs behind a proof
TRIAL_STEPS = 100  # of each copy: as many as a replay, enough for units killed by a high learning rate to show
GUARD_STEPS = TRIAL_STEPS  # after an adoption: what the copies had reached by then is known
GUARD_LOOKS = 4  # meanwhile, so that a loss that is no longer finite is seen early
JUDGED_LOSSES = 25  # of the loop, before an adoption and at the end of its guard: a quarter of it

REWIND = "rewind"
# Families of remedies that leave weights alone: what is broken stays so, unless the weights of a better day come back.
MENDS_NO_WEIGHTS = ("optimizer", "gradient")
DRAWS_ANEW = "initialisation"  # the family that refuses a trained network; a trial has shown that nothing is lost

Pair = tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class _Guard:
    """What an adopted remedy is measured by."""

    before: Twin
    held_out: Sequence[Pair]
    scores_before: tuple[float, ...]  # minus the loss on each held-out batch
    losses_before: tuple[float, ...]  # of the latest steps
    untreated: tuple[float, ...]  # scores of the control's runs, None left out


class Autopilot:
    """Heals the network of a watched loop. `look` is called after steps that were read or kept; it says what it did.

    `remedies` replaces those that the diagnosis recommends. Raises TrainingError where a loss function or an optimizer
    is missing, or several processes train together, and RemedyError for a remedy that is unknown or a network that
    cannot be copied.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        loss: Callable[[Any, Any], Any] | None,
        remedies: bool | str | Remedy | Iterable[str | Remedy] = True,
    ) -> None:
        for what, value in (("loss", loss), ("optimizer", optimizer)):
            if value is None:
                raise TrainingError(
                    f"watch(..., heal=True) trains copies of the network and needs the {what} for it; none was given.\n"
                    "Write relume.watch(model, optimizer, loss=loss_fn, heal=True)."
                )
        if _processes() > 1:
            raise TrainingError(
                f"watch(..., heal=True) changes the network of one process; found {_processes()}, which "
                "would no longer agree.\nWatch with heal=False, and treat the network between runs."
            )
        assert loss is not None and optimizer is not None
        self.actions: list[Action] = []
        self._model: nn.Module = getattr(model, "_orig_mod", model)
        self._optimizer = optimizer
        self._loss = loss
        self._chosen = None if isinstance(remedies, bool) else _listed(remedies)
        self._done = 0  # steps before this recorder's first
        self._refused: set[str] = set()  # taken back
        self._tried: set[tuple[str, str]] = set()  # cause and remedy, where none was proven
        self._compiled = is_compiled(model)
        self._good: tuple[int, dict[str, Any], dict[str, Any]] | None = None
        self._guard: _Guard | None = None
        self._wait = self._due = FIRST_LOOK
        self._since = 0  # the step at which the window began
        Twin(self._model, optimizer)  # a network that cannot be copied says so now, not in mid-run
        self._keep_good(0)

    @property
    def due(self) -> int:
        """The step, as the recorder counts, that should be read because it is to be looked at."""
        return self._due

    def look(self, recorder: Recorder, report: Callable[[], Report]) -> bool:
        """Do what is to be done at this step; whether the network was changed, so that a new recorder must begin."""
        if self._guard is not None:
            return recorder.step > self._due and self._watch_over(self._guard, recorder)
        if recorder.window is not None:
            if not self._collected(recorder):
                return False
            changed = self._treat(recorder, report)
            recorder.window = None
            return changed
        if recorder.step > self._due:  # that step was read, whatever the clock made the watch read before
            self._look_again(recorder.step)
            recording = recorder.recording(finished=False)
            if any("critical" in (s.severity, s.at_worst) for s in find(recording)):
                recorder.window, self._since = [], recorder.step
            else:
                self._keep_good(recorder.step)
        return False

    def _look_again(self, step: int) -> None:
        self._wait = min(self._wait * LOOK_GROWTH, LONGEST_LOOK)
        self._due = step + self._wait

    def _keep_good(self, step: int) -> None:
        """Keep the weights as they are: nothing critical was found in them."""
        state = self._model.state_dict(), self._optimizer.state_dict()["state"]
        held = list(tensors(state))
        if sum(t.numel() * t.element_size() for t in held) <= SNAPSHOT_BYTES and all(map(_is_finite, held)):
            self._good = self._done + step, *copy.deepcopy(state)

    # a critical diagnosis ---------------------------------------------------------------------------------------------

    def _collected(self, recorder: Recorder) -> bool:
        """Whether the window is full, or will not be."""
        assert recorder.window is not None
        if not recorder.window:
            recorder.flush()
            return not math.isfinite(recorder.losses[-1]) or recorder.step - self._since > PATIENCE
        size = sum(t.numel() * t.element_size() for t in tensors(recorder.window))
        samples = sum(batch_size(input) for input, _ in recorder.window)
        return size >= WINDOW_BYTES or (samples >= WINDOW_SAMPLES and len(recorder.window) >= FEWEST_PAIRS)

    def _treat(self, recorder: Recorder, report: Callable[[], Report]) -> bool:
        found = report()
        diagnosis = next((d for d in found.diagnoses if d.severity == "critical"), None)
        if diagnosis is None:
            self._keep_good(recorder.step)
            return False
        pairs = recorder.window or recorder.first  # a loss that is not finite tells no target; earlier steps did
        step = self._done + recorder.step
        action = Action(
            step=step, cause=diagnosis.cause, finding=headline(Page(report=found)), tried=(), adopted=None
        )  # fmt: skip
        if len(pairs) < 2:
            return self._note(replace(action, why="the targets of the loss could not be told"))
        remedies = self._candidates(diagnosis)
        if not remedies:
            return False  # all were tried, and that was told
        require_own_hooks(self._optimizer)
        loss = copied_loss(self._loss)
        log.info("relume: step %d: %s The loop waits while remedies are tried on copies.", step, action.finding)
        learnt, held_out = pairs[::2], pairs[1::2]
        before = self._scores(held_out)
        trial = _Trial(self._model, self._optimizer, loss, learnt, held_out, self._treatment)
        control, arms, attempts = trial.run(remedies)
        untreated = tuple(run.score for run in control if run.score is not None)
        action = replace(
            action,
            tried=attempts,
            loss_before=_loss(before),
            loss_untreated=_loss(untreated),
            why="none was proven to help",
        )
        best = max((arm for arm in arms if _helps(arm, control, before)), key=_mean_score, default=None)
        if best is None:
            self._tried.update((diagnosis.cause, remedy.name) for remedy in remedies)
            return self._note(action)
        remedy = next(remedy for remedy in remedies if remedy.name == best.name)
        recorder.flush()
        losses = tuple(recorder.losses[-JUDGED_LOSSES:])
        guard = _Guard(Twin(self._model, self._optimizer), held_out, before, losses, untreated)
        try:
            changes = self._adopt(remedy, learnt)
        except BaseException:
            guard.before.settle()
            raise
        self._guard = guard
        self._good = None  # its weights may no longer fit
        self._tried.clear()
        changes = tuple(f"{place}: {words}" for place, words in changes.items())
        self._note(replace(action, adopted=remedy.name, changes=changes, why=""))
        return self._begin_anew(recorder, GUARD_STEPS // GUARD_LOOKS)

    def _note(self, action: Action) -> bool:
        self.actions.append(action)
        log.warning("relume: %s", told(action))
        return False

    def _begin_anew(self, recorder: Recorder, due: int) -> bool:
        self._done += recorder.step
        self._wait, self._due = FIRST_LOOK, due
        return True

    def _candidates(self, diagnosis: Diagnosis) -> list[Remedy]:
        """The remedies to try, best first: those that change no weights also with the weights of a better day."""
        names = dict.fromkeys((*diagnosis.remedies, *REMEDIES_FOR["unknown"]))
        broken = not all(map(_is_finite, self._model.state_dict().values()))
        found: dict[str, Remedy] = {}
        for remedy in _listed(names) if self._chosen is None else self._chosen:
            gentle = remedy.family in MENDS_NO_WEIGHTS and self._chosen is None
            if self._good is not None and (broken or gentle):
                rewound = combined(self._rewind(), remedy)
                found[rewound.name] = rewound
            if not broken:
                found[remedy.name] = remedy
        known = self._refused | {name for cause, name in self._tried if cause == diagnosis.cause}
        return [remedy for name, remedy in found.items() if name not in known][:TRIED]

    def _rewind(self) -> Remedy:
        """The weights, and what the optimizer knew of them, of the last step at which nothing critical was found."""
        assert self._good is not None
        step, weights, moments = self._good

        def apply(network: Network) -> Edit:
            assert network.optimizer is not None
            network.model.load_state_dict(weights)
            groups = network.optimizer.state_dict()["param_groups"]
            network.optimizer.load_state_dict(copy.deepcopy({"state": moments, "param_groups": groups}))
            return Edit(changes={"weights": f"those of step {step}"})

        return Remedy(
            name=REWIND, title="Weights of an earlier step", family="revival", apply=apply, when="", code=""
        )  # fmt: skip

    def _treatment(
        self, remedy: Remedy, model: nn.Module, optimizer: Optimizer, inputs: Sequence[Any], targets: Sequence[Any]
    ) -> Any:
        """Apply a remedy to copies, in place."""
        shape, settings = structure(model), settings_of(optimizer)
        parts = [REMEDIES[name].family for name in remedy.name.split("+") if name in REMEDIES] or [remedy.family]
        network = Network(
            model=model, optimizer=optimizer, batches=tuple(inputs), targets=tuple(targets),
            trained=DRAWS_ANEW not in parts,
        )  # fmt: skip
        treated = operate(network, remedy)
        if self._compiled and structure(model) != shape:
            raise RemedyError(
                f"{remedy.name} changes the network's structure, and torch.compile has compiled it as it was.\n"
                "Treat the network before it is compiled."
            )
        if scheduled(optimizer):
            keep_schedule(optimizer, settings)
        return model, optimizer, {str(place): str(words) for place, words in treated.changes.items()}

    def _adopt(self, remedy: Remedy, pairs: Sequence[Pair]) -> dict[str, str]:
        inputs, targets = zip(*pairs, strict=True)
        twin = Twin(self._model, self._optimizer)
        with isolated_rng():
            seed_all(SEEDS + 1)  # none that the trial has seen
            changes = self._treatment(remedy, twin.model, twin.optimizer, inputs, targets)[2]
        twin.settle()
        return changes

    def _scores(self, pairs: Sequence[Pair]) -> tuple[float, ...]:
        """Minus the loss on each batch, in eval mode."""
        with undisturbed(self._model), torch.no_grad():
            self._model.eval()
            loss = copied_loss(self._loss)
            return tuple(-float(loss(call(self._model, input), target)) for input, target in pairs)

    # after an adoption ------------------------------------------------------------------------------------------------

    def _watch_over(self, guard: _Guard, recorder: Recorder) -> bool:
        recorder.flush()
        latest = recorder.readings[-1] if recorder.readings else None
        losses = recorder.losses if latest is not None and latest.loss is not None else []
        why = ""
        if not all(map(math.isfinite, losses)):
            why = "the loss is no longer finite"
        elif recorder.step > GUARD_STEPS:
            why = _falls(guard, self._scores(guard.held_out), losses[-JUDGED_LOSSES:])
        else:
            self._due = min(GUARD_STEPS, recorder.step + GUARD_STEPS // GUARD_LOOKS)
            return False
        self._guard = None
        action = self.actions[-1]
        if not why:
            log.info("relume: step %d: %s is kept", self._done + recorder.step, action.adopted)
            self._look_again(recorder.step)
            return False
        self._refused.add(str(action.adopted))
        guard.before.settle()
        self.actions[-1] = replace(action, rolled_back=self._done + recorder.step, why=why)
        log.warning("relume: %s", taken_back(self.actions[-1]))
        return self._begin_anew(recorder, FIRST_LOOK)


class _Trial:
    """Copies of the network as it is now, trained on some batches and scored on others, with and without remedies."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: Callable[[Any, Any], Any],
        learnt: Sequence[Pair],
        held_out: Sequence[Pair],
        treatment: Callable[..., Any],
    ) -> None:
        driven: list[Optimizer] = []

        def fresh() -> nn.Module:
            twin = Twin(model, optimizer)
            driven[:] = [twin.optimizer]
            return twin.model

        self._treatment = treatment
        training = Training(
            model=fresh,
            optimizer=lambda parameters: driven[0],
            loss=loss,
            batches=_Shuffled(learnt),
            validation=held_out,
            steps=TRIAL_STEPS,
        )
        self._runner = Sequential((training, TRIAL_STEPS))

    def run(self, remedies: Sequence[Remedy]) -> tuple[list[Run], list[Arm], tuple[Attempt, ...]]:
        """The control's runs, the arms that were worth a proof, and what became of every remedy."""
        first = self._train(remedies, [0])
        control = first[CONTROL][0].run
        higher = [r for r in remedies if _score(first[r.name][0].run) > _score(control)]
        higher.sort(key=lambda r: -_score(first[r.name][0].run))
        proven = higher[:PROVEN]
        outcomes = self._train(proven, range(1, SEEDS + 1)) if proven else first
        controls = [outcome.run for outcome in outcomes[CONTROL]]
        arms = {remedy.name: judged(controls, outcomes[remedy.name]) for remedy in proven}
        attempts = tuple(_attempt(first[r.name][0].run, arms.get(r.name), better=r in higher) for r in remedies)
        return controls, list(arms.values()), attempts

    def _train(self, remedies: Sequence[Remedy], seeds: Iterable[int]) -> dict[str, list[Outcome]]:
        treatments = {CONTROL: None, **{remedy.name: partial(self._treatment, remedy) for remedy in remedies}}
        return collect(self._runner, [Job(name, seed, act) for seed in seeds for name, act in treatments.items()])


class _Shuffled:
    """Batches in an order that the global generator draws afresh for each pass."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = pairs

    def __iter__(self) -> Any:
        return iter([self._pairs[i] for i in torch.randperm(len(self._pairs)).tolist()])


def _attempt(first: Run, arm: Arm | None, *, better: bool) -> Attempt:
    """What became of a remedy, by its proof where it came to that, or else by its run with the first seed."""
    if arm is not None:
        scores = [score for score in arm.scores if score is not None]
        return Attempt(remedy=arm.name, verdict=arm.verdict, loss=_loss(scores), because=arm.because)
    judged_by = "Others did better on a first seed." if better else "No better than untreated on a first seed."
    scores = [] if first.score is None else [first.score]
    return Attempt(
        remedy=first.arm, verdict=None, loss=_loss(scores), because=" ".join(first.failure.split()) or judged_by
    )


def _helps(arm: Arm, control: Sequence[Run], before: Sequence[float]) -> bool:
    """Proven, no more of it ill than without, and a loss worthwhile below that without it and that of now."""
    losses = [-score for score in (fmean(before), *(_score(run) for run in control)) if math.isfinite(score)]
    low = min(losses, default=math.inf)
    worthwhile = -_mean_score(arm) <= low - WORTHWHILE * abs(low) if losses else True
    ill = fmean(run.burden for run in arm.runs) > fmean(run.burden for run in control)
    return arm.verdict in WINNING and worthwhile and not ill


def _mean_score(arm: Arm) -> float:
    return fmean([-math.inf if score is None else score for score in arm.scores])


def _falls(guard: _Guard, scores: Sequence[float], losses: Sequence[float]) -> str:
    """Why an adopted remedy must go, by the held-out batches and by the loop's own; empty where it may stay."""
    if not all(map(math.isfinite, scores)):
        return "the loss on the held-out batches is not finite"
    change = difference(guard.scores_before, scores)
    if change is not None and change.high < 0:
        return f"the loss on the held-out batches rose from {-fmean(guard.scores_before):.3g} to {-fmean(scores):.3g}"
    if guard.untreated and fmean(scores) < min(guard.untreated):
        return (
            f"the loss on the held-out batches is {-fmean(scores):.3g}, untreated copies reached "
            f"{-fmean(guard.untreated):.3g}"
        )
    before = guard.losses_before
    if min(len(before), len(losses)) > 1 and all(map(math.isfinite, before)):
        noise = math.sqrt(variance(before) / len(before) + variance(losses) / len(losses))
        if fmean(losses) - fmean(before) > SURE * noise:
            return f"the loss rose from {fmean(before):.3g} to {fmean(losses):.3g}"
    return ""


def _score(run: Run) -> float:
    return run.score if run.score is not None and math.isfinite(run.score) else -math.inf


def _loss(scores: Sequence[float]) -> float | None:
    mean = -fmean(scores) if scores else math.nan
    return mean if math.isfinite(mean) else None


def _processes() -> int:
    """How many train together."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def _is_finite(tensor: Any) -> bool:
    return not isinstance(tensor, torch.Tensor) or bool(torch.isfinite(tensor).all())


def _listed(remedies: str | Remedy | Iterable[str | Remedy]) -> list[Remedy]:
    chosen = [remedies] if isinstance(remedies, (str, Remedy)) else list(remedies)
    if not chosen:
        raise RemedyError("heal= was given no remedy to try.\nWrite heal=True for those that the diagnosis recommends.")
    return [remedy if isinstance(remedy, Remedy) else find_remedy(remedy) for remedy in chosen]
