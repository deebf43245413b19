"""What a user hands over."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from relume.errors import TrainingError
from relume.training.batches import kind_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How to train one network: all that relume needs to train it again and again.

    `model` takes no argument and returns a network freshly initialised from torch's global seed; `optimizer` takes an
    iterable of parameters; `loss` takes (output, target) and returns a scalar; `batches` (and `validation`) can be
    iterated again and again and give (input, target). An input that is a tuple or a dict is passed on as the model's
    arguments. `score` takes the trained network and returns a number, higher is better; without it the score is minus
    the mean loss on `validation`, or on `batches` where there is none.

        Training(
            model=lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)),
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
            loss=nn.functional.cross_entropy,
            batches=DataLoader(data, batch_size=64, shuffle=True),
        )

    Raises TrainingError, with what was found, when a part cannot be what it is meant to be.
    """

    model: Callable[[], nn.Module]
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    loss: Callable[[Any, Any], Tensor]
    batches: Iterable[Any]
    score: Callable[[nn.Module], float] | None = None
    validation: Iterable[Any] | None = None
    steps: int = 1000

    def __post_init__(self) -> None:
        if isinstance(self.model, nn.Module) or not callable(self.model):
            raise TrainingError(
                f"model must be a function without arguments that returns a new network; found {kind_of(self.model)}.\n"
                "Every arm and seed needs a fresh network: write model=lambda: Net(...)."
            )
        if isinstance(self.optimizer, Optimizer) or not callable(self.optimizer):
            raise TrainingError(
                "optimizer must be a function from parameters to a torch.optim.Optimizer; "
                f"found {kind_of(self.optimizer)}.\n"
                "Write optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)."
            )
        if not callable(self.loss) or (isinstance(self.loss, type) and issubclass(self.loss, nn.Module)):
            raise TrainingError(
                f"loss must be a function of (output, target) that returns a scalar; found {kind_of(self.loss)}.\n"
                "Write loss=nn.functional.cross_entropy, or an instance such as loss=nn.CrossEntropyLoss()."
            )
        if self.score is not None and not callable(self.score):
            raise TrainingError(
                f"score must be a function from a network to a number, or None; found {kind_of(self.score)}.\n"
                "Without it the score is minus the mean loss."
            )
        _require_batches("batches", self.batches)
        if self.validation is not None:
            _require_batches("validation", self.validation)
        object.__setattr__(self, "steps", require_steps(self.steps))

    @property
    def score_in_words(self) -> str:
        """What the score is, for reports."""
        if self.score is not None:
            return getattr(self.score, "__name__", "score").replace("<lambda>", "score").replace("_", " ")
        return f"minus mean loss on {'the training batches' if self.validation is None else 'the validation data'}"


def require_steps(steps: Any) -> int:
    """`steps` as an int of at least 1, or a TrainingError."""
    try:
        number = operator.index(steps)
    except TypeError:
        number = 0
    if isinstance(steps, bool) or number < 1:
        raise TrainingError(f"steps must be a whole number of at least 1; found {steps!r}.")
    return number


def _require_batches(name: str, batches: Any) -> None:
    if isinstance(batches, Iterator):
        raise TrainingError(
            f"{name} must be something that can be iterated more than once; found {kind_of(batches)}, which runs dry.\n"
            f"Pass a DataLoader or a list of (input, target), such as {name}=list(...)."
        )
    if isinstance(batches, (Tensor, str, bytes, dict)) or not (
        hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")
    ):
        raise TrainingError(
            f"{name} must be an iterable of (input, target), such as a DataLoader or a list; found {kind_of(batches)}."
        )
