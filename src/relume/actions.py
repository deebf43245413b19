"""What the autopilot did in a run: which remedies it tried on copies, which it adopted, which it took back."""

from __future__ import annotations

from dataclasses import dataclass

from relume.diagnosis import Cause
from relume.verdicts import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One remedy, tried on copies of the network."""

    remedy: str
    verdict: Verdict | None  # None: it could not be applied, or others did better on a first seed
    loss: float | None  # mean on the held-out batches after the copies' training; None: it diverged or never ran
    because: str  # the verdict in one sentence, with its numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One critical diagnosis in a run that is watched with `heal`, and what was done about it."""

    step: int  # optimizer steps that were done
    cause: Cause
    finding: str  # what was wrong, in one sentence
    tried: tuple[Attempt, ...]
    adopted: str | None  # the remedy that is now in the network; None: none was proven
    loss_before: float | None = None  # mean on the held-out batches when it was found; None: not finite
    loss_untreated: float | None = None  # of untreated copies after as many steps as the treated ones had
    changes: tuple[str, ...] = ()  # what the remedy did, one sentence a place
    rolled_back: int | None = None  # the step at which it was taken out again
    why: str = ""  # of the roll-back, or why nothing could be tried

    @property
    def loss_adopted(self) -> float | None:
        """Mean on the held-out batches of the copies with the adopted remedy."""
        return next((attempt.loss for attempt in self.tried if attempt.remedy == self.adopted), None)


def told(action: Action) -> str:
    """An action in one line."""
    tried = f"tried {len(action.tried)} {'remedies' if len(action.tried) != 1 else 'remedy'} on copies"
    finding = action.finding.rstrip(".")
    if action.adopted is None:
        return f"step {action.step}: {finding}; {tried if action.tried else 'nothing was tried'}; {action.why}"
    line = (
        f"step {action.step}: {finding}; {tried}; adopted {action.adopted} (loss {_loss(action.loss_before)} -> "
        f"{_loss(action.loss_adopted)} on held-out batches against {_loss(action.loss_untreated)} untreated)"
    )
    return line if action.rolled_back is None else f"{line}; {taken_back(action)}"


def taken_back(action: Action) -> str:
    """The roll-back of an action."""
    return f"rolled {action.adopted} back at step {action.rolled_back}: {action.why}"


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"
