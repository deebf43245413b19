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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean, variance
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from relume.actions import Action, taken_back, told
from relume.adoption import (
    Twin,
    hold_rates,
    is_compiled,
    keep_schedule,
    loop_rates,
    rates_of,
    scheduled,
    settings_of,
    structure,
)  # fmt: skip
from relume.attributes import Attributes
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
from relume.surgery import STEP_HOOKS, copied_loss, require_own_hooks
from relume.symptoms import find
from relume.training import batch_size
from relume.tryout import SEEDS, STEPS, Pair, Tryout, mean_loss, score_of
from relume.verdicts import WINNING, Arm, Run, difference

log = logging.getLogger("relume")

FIRST_LOOK = 30  # steps: deaths by a learning rate far too high are over by then
LOOK_GROWTH = 2  # times the steps to the next look
LONGEST_LOOK = 5000  # steps between looks in a long run
WINDOW_SAMPLES = 2000  # collected for a trial: a thousand to learn from, and as many to score on
WINDOW_BYTES = 64 * 2**20
FEWEST_PAIRS = 8  # of batches collected, where they are large
PATIENCE = 20  # steps without one target that could be told
WORTHWHILE = 0.01  # of the loss: a network is not changed for less
GUARD_STEPS = STEPS  # after an adoption: what the copies had reached by then is known
GUARD_LOOKS = 4  # meanwhile, so that a loss that is no longer finite is seen early
JUDGED_LOSSES = 25  # of the loop, before an adoption and at the end of its guard: a quarter of it

REWIND = "rewind"
# Families of remedies that leave weights alone: what is broken stays so, unless the weights of a better day come back.
MENDS_NO_WEIGHTS = ("optimizer", "gradient")
NO_TARGETS = (
    "the targets of the loss could not be told; hand to watch.step what loss= gives for output and target alone"
)
NO_WEIGHTS = "its numbers are no longer finite, and no earlier weights were kept to begin from"
DRAWS_ANEW = "initialisation"  # the family that refuses a trained network; a trial has shown that nothing is lost


@dataclass(frozen=True, slots=True)
class _Guard:
    """What an adopted remedy is measured by."""

    before: Twin
    held_out: Sequence[Pair]
    scores_before: tuple[float, ...]  # minus the loss on each held-out batch
    losses_before: tuple[float, ...]  # of the latest steps
    untreated: tuple[float, ...]  # scores of the control's runs, None left out
    rates: Sequence[float]  # of the optimizer's groups, as they were adopted


class Autopilot:
    """Heals the network of a watched loop. `look` is called after steps that were read or kept; it says what it did.

    `remedies` replaces those that the diagnosis recommends. Raises TrainingError where a loss function or an optimizer
    is missing, the optimizer is L-BFGS, or several processes train together, and RemedyError for a remedy that is
    unknown or a network, optimizer or loss that cannot be copied.
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
        if isinstance(optimizer, torch.optim.LBFGS):
            raise TrainingError(
                "watch(..., heal=True) trains copies by one loss a step; LBFGS asks its closure for several.\n"
                "Watch with heal=False, or train with another optimizer."
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
        self._rates = rates_of(optimizer.param_groups)  # as they were before the loop set any
        Twin(self._model, optimizer, loss)  # a network that cannot be copied says so now, not in mid-run
        self._keep_good(0)

    @property
    def due(self) -> int:
        """The step, as the recorder counts, that should be read because it is to be looked at."""
        return self._due

    def look(self, recorder: Recorder, report: Callable[[], Report]) -> bool:
        """Do what is to be done at this step; whether the network was changed, so that a new recorder must begin."""
        self._tell_rates()
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
            with self._apart():
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
        pairs = [pair for step in recorder.window for pair in step]
        size = sum(t.numel() * t.element_size() for t in tensors(pairs))
        samples = sum(batch_size(input) for input, _ in pairs)
        return size >= WINDOW_BYTES or (samples >= WINDOW_SAMPLES and len(pairs) >= FEWEST_PAIRS)

    def _treat(self, recorder: Recorder, report: Callable[[], Report]) -> bool:
        with self._apart():
            found = self._try_out(recorder, report)
        if found is None:
            return False
        action, remedy, learnt, guard = found
        try:
            changes = self._adopt(remedy, learnt)
        except BaseException:
            guard.before.settle()
            raise
        self._rates = rates_of(self._optimizer.param_groups)
        self._guard = replace(guard, rates=self._rates)
        self._good = None  # its weights may no longer fit
        self._tried.clear()
        lines = [f"{place}: {words}" for place, words in changes.items()] + [loop_rates(self._optimizer)]
        self._note(replace(action, adopted=remedy.name, changes=tuple(filter(None, lines)), why=""))
        return self._begin_anew(recorder, GUARD_STEPS // GUARD_LOOKS)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Put back what passes of ours move on beside the network, such as a list that a hook function appends to.

        No copy of a network replaces what functions hold by closure.
        """
        modules = [*self._model.modules(), *(self._loss.modules() if isinstance(self._loss, nn.Module) else ())]
        hooks = [h for m in modules for h in (*m._forward_pre_hooks.values(), *m._forward_hooks.values())]
        hooks += [h for name in STEP_HOOKS for h in vars(self._optimizer)[name].values()]
        attributes = Attributes(modules, self._loss, *hooks)
        try:
            yield
        finally:
            attributes.put_back()

    def _try_out(
        self, recorder: Recorder, report: Callable[[], Report]
    ) -> tuple[Action, Remedy, Sequence[Pair], _Guard] | None:
        """Diagnose, and try remedies on copies: what is to be adopted, and what it will be measured by."""
        found = report()
        diagnosis = next((d for d in found.diagnoses if d.severity == "critical"), None)
        if diagnosis is None:
            self._keep_good(recorder.step)
            return None
        steps = recorder.window or [(pair,) for pair in recorder.first]  # a loss that is not finite tells no target
        pairs = [pair for step in steps for pair in step]
        action = Action(
            step=self._done + recorder.step, cause=diagnosis.cause, finding=headline(Page(report=found)), tried=(),
            adopted=None,
        )  # fmt: skip
        if len(pairs) < 2:
            return self._note(replace(action, why=NO_TARGETS))
        remedies = self._candidates(diagnosis)
        if not remedies:
            lost = self._good is None and not self._is_sound() and (diagnosis.cause, REWIND) not in self._tried
            self._tried.add((diagnosis.cause, REWIND))
            return self._note(replace(action, why=NO_WEIGHTS)) if lost else None  # all were tried, and that was told
        require_own_hooks(self._optimizer)
        log.info("relume: step %d: %s The loop waits while remedies are tried on copies.", action.step, action.finding)
        learnt, held_out = pairs[::2], pairs[1::2]
        before = self._scores(held_out)
        passes = Counter(map(len, steps)).most_common(1)[0][0]
        tryout = Tryout(
            self._model, self._optimizer, self._loss, learnt, held_out, self._treatment, passes=passes,
            summed=recorder.summed,
        )  # fmt: skip
        control, arms, attempts, looked_at = tryout.run(remedies, wanted=self._chosen is not None)
        untreated = tuple(run.score for run in control if run.score is not None)
        action = replace(
            action,
            tried=attempts,
            loss_before=mean_loss(before),
            loss_untreated=mean_loss(untreated),
            why="none was proven to help",
        )
        best = max((arm for arm in arms if _helps(arm, control, before)), key=_mean_score, default=None)
        if best is None:
            self._tried.update((diagnosis.cause, remedy.name) for remedy in looked_at)
            return self._note(action)
        remedy = next(remedy for remedy in remedies if remedy.name == best.name)
        recorder.flush()
        losses = tuple(recorder.losses[-JUDGED_LOSSES:])
        twin = Twin(self._model, self._optimizer, self._loss)
        return action, remedy, learnt, _Guard(twin, held_out, before, losses, untreated, self._rates)

    def _note(self, action: Action) -> None:
        self.actions.append(action)
        log.warning("relume: %s", told(action))

    def _tell_rates(self) -> None:
        """Say, once, that the loop sets rates by hand after one was adopted."""
        line = loop_rates(self._optimizer)
        adopted = next(
            (i for i, a in reversed([*enumerate(self.actions)]) if a.adopted and a.rolled_back is None), None
        )
        if line and adopted is not None and line not in self.actions[adopted].changes:
            self.actions[adopted] = replace(self.actions[adopted], changes=(*self.actions[adopted].changes, line))
            log.info("relume: %s", line)

    def _begin_anew(self, recorder: Recorder, due: int) -> bool:
        self._done += recorder.step
        self._wait, self._due = FIRST_LOOK, due
        return True

    def _candidates(self, diagnosis: Diagnosis) -> list[Remedy]:
        """The remedies to try, best first: those that change no weights also with the weights of a better day."""
        names = dict.fromkeys((*diagnosis.remedies, *REMEDIES_FOR["unknown"]))
        broken = not self._is_sound()
        found: dict[str, Remedy] = {}
        for remedy in _listed(names) if self._chosen is None else self._chosen:
            gentle = remedy.family in MENDS_NO_WEIGHTS
            if self._good is not None and (broken or gentle):
                rewound = combined(self._rewind(), remedy)
                found[rewound.name] = rewound
            if not broken:
                found[remedy.name] = remedy
        known = self._refused | {name for cause, name in self._tried if cause == diagnosis.cause}
        return [remedy for name, remedy in found.items() if name not in known]

    def _is_sound(self) -> bool:
        """Whether all numbers in the network are finite."""
        return all(map(_is_finite, self._model.state_dict().values()))

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
        else:
            hold_rates(optimizer, settings, moving=rates_of(settings) != self._rates)
        return model, optimizer, {str(place): str(words) for place, words in treated.changes.items()}

    def _adopt(self, remedy: Remedy, pairs: Sequence[Pair]) -> dict[str, str]:
        inputs, targets = zip(*pairs, strict=True)
        twin = Twin(self._model, self._optimizer)
        with isolated_rng(), self._apart():
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
            with self._apart():
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
        if lost := guard.before.lost():
            why += f"; not put back: {', '.join(lost)}"
        self._put_back(guard)
        self.actions[-1] = replace(action, rolled_back=self._done + recorder.step, why=why)
        log.warning("relume: %s", taken_back(self.actions[-1]))
        return self._begin_anew(recorder, FIRST_LOOK)

    def _put_back(self, guard: _Guard) -> None:
        """Make the network as it was; rates that the loop has set since stay in their proportion to those adopted."""
        groups, free = self._optimizer.param_groups, not scheduled(self._optimizer)
        now = rates_of(groups)
        guard.before.settle()
        for group, rate, adopted in zip(groups, now, guard.rates, strict=False):
            if free and adopted and rate != adopted:
                group["lr"] = group["lr"] * (rate / adopted)
        self._rates = rates_of(groups)


def _helps(arm: Arm, control: Sequence[Run], before: Sequence[float]) -> bool:
    """Proven, no more of it ill than without, and a loss worthwhile below that without it and that of now."""
    losses = [-score for score in (fmean(before), *(score_of(run) for run in control)) if math.isfinite(score)]
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
