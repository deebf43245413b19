"""Training: what a user hands over, and the one loop that runs it."""

from __future__ import annotations

import copy
import math
import operator
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from relume.errors import DataError, TrainingError

SCORED_SAMPLES = 20_000  # enough for a standard error of 0.7 % of the loss's spread; more would slow every arm
STREAM_SALT = 0x5EED  # the order of the data must not be drawn from the same numbers as the weights


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
                f"model must be a function without arguments that returns a new network; found {_kind(self.model)}.\n"
                "Every arm and seed needs a fresh network: write model=lambda: Net(...)."
            )
        if isinstance(self.optimizer, Optimizer) or not callable(self.optimizer):
            raise TrainingError(
                "optimizer must be a function from parameters to a torch.optim.Optimizer; "
                f"found {_kind(self.optimizer)}.\n"
                "Write optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)."
            )
        if not callable(self.loss) or (isinstance(self.loss, type) and issubclass(self.loss, nn.Module)):
            raise TrainingError(
                f"loss must be a function of (output, target) that returns a scalar; found {_kind(self.loss)}.\n"
                "Write loss=nn.functional.cross_entropy, or an instance such as loss=nn.CrossEntropyLoss()."
            )
        if self.score is not None and not callable(self.score):
            raise TrainingError(
                f"score must be a function from a network to a number, or None; found {_kind(self.score)}.\n"
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
            f"{name} must be something that can be iterated again and again; found {_kind(batches)}, which runs dry.\n"
            f"Pass a DataLoader or a list of (input, target), such as {name}=list(...)."
        )
    if isinstance(batches, (Tensor, str, bytes, dict)) or not (
        hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")
    ):
        raise TrainingError(
            f"{name} must be an iterable of (input, target), such as a DataLoader or a list; found {_kind(batches)}."
        )


def _kind(value: Any) -> str:
    """What a value is, in words for an error message."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"{type(value).__name__} {value!r}" if isinstance(value, (int, float, str)) else f"a {type(value).__name__}"


# Randomness ---------------------------------------------------------------------------------------------------------


def seed_all(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _rng_state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    return torch.get_rng_state(), np.random.get_state(), random.getstate(), cuda


def _set_rng_state(state: tuple[Any, ...]) -> None:
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])
    random.setstate(state[2])
    if state[3] is not None:
        torch.cuda.set_rng_state_all(state[3])


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Leave the global generators of torch, NumPy and Python as they were."""
    state = _rng_state()
    try:
        yield
    finally:
        _set_rng_state(state)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread: sums then add in one order, and two runs agree bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Stream:
    """Batches without end (or of one pass, with `once`), in an order that nothing but the seed decides.

    It draws from generators of its own, swapped in around each step of the iteration: dropout and initialisation
    cannot change the order of the data, nor the data what they draw. Equal streams give equal batches.
    """

    def __init__(self, batches: Iterable[Any], seed: int, *, once: bool = False) -> None:
        self.index = -1  # of the batch given last, within its pass
        self._place = -1  # of the batch read last
        self._batches = batches
        self._once = once
        self._iterator: Iterator[Any] | None = None
        self._ahead = deque[tuple[int, Any]]()
        with isolated_rng():
            seed_all(seed ^ STREAM_SALT)
            self._rng = _rng_state()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        self.peek(1)
        self.index, batch = self._ahead.popleft()
        return batch

    def peek(self, count: int) -> list[Any]:
        """The batches that come next; they stay the next ones."""
        while len(self._ahead) < count:
            batch = self._read()
            self._ahead.append((self._place, batch))
        return [batch for _, batch in list(self._ahead)[:count]]

    def _read(self) -> Any:
        with isolated_rng():
            _set_rng_state(self._rng)
            try:
                batch = self._next()
            except Exception as error:
                raise DataError(
                    f"batches failed at batch {self._place + 1}: {type(error).__name__}: {error}\n"
                    "The traceback above is from the data set or its loader."
                ) from error
            finally:
                self._rng = _rng_state()
        if batch is not _END:
            return batch
        if self._place >= 0:
            raise StopIteration
        raise DataError(
            "batches yield nothing: iterating over them gave no batch.\n"
            "The data set may be empty, drop_last may leave no batch, or only the first pass may give any."
        )

    def _next(self) -> Any:
        if self._iterator is not None:
            batch = next(self._iterator, _END)
            if batch is not _END or self._once:
                self._place += batch is not _END
                return batch
        self._iterator = iter(self._batches)
        batch = next(self._iterator, _END)
        self._place = -1 if batch is _END else 0
        return batch


_END = object()


# Batches ------------------------------------------------------------------------------------------------------------


def split(batch: Any) -> tuple[Any, Any]:
    """Input and target of a batch; DataError when it is not a pair."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise DataError(
        f"a batch must be a pair (input, target); found {describe(batch)}.\n"
        "Several inputs go into the first place as a tuple or dict: ((a, b), target) or ({'name': a}, target)."
    )


def call(model: nn.Module, input: Any) -> Any:
    """The model's output: a tuple or list is its arguments, a dict its keyword arguments."""
    if isinstance(input, (tuple, list)):
        return model(*input)
    if isinstance(input, dict):
        return model(**input)
    return model(input)


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors, in tuples, lists and dicts too, on that device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(part, device) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(to_device(part, device) for part in value)
    if isinstance(value, dict):
        return {name: to_device(part, device) for name, part in value.items()}
    return value


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter is."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, in tuples, lists and dicts too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)
    elif isinstance(value, dict):
        yield from tensors(tuple(value.values()))


def batch_size(batch: Any) -> int:
    """Samples in a batch: the length of its first tensor."""
    return next((len(tensor) for tensor in tensors(batch) if tensor.dim()), 1)


def describe(value: Any) -> str:
    """Shapes and types of what a batch holds, for error messages."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        inner = ", ".join(describe(part) for part in value[:4]) + (", ..." if len(value) > 4 else "")
        return f"{type(value).__name__} of {len(value)} ({inner})" if value else f"empty {type(value).__name__}"
    if isinstance(value, dict):
        return "dict with " + ", ".join(f"{name!r}: {describe(part)}" for name, part in list(value.items())[:4])
    return _kind(value)


def require_finite(batch: Any, index: int) -> None:
    """DataError when the input or target of batch `index` holds NaN or infinities; it says where."""
    for name, part in zip(("input", "target"), split(batch), strict=True):
        for tensor in tensors(part):
            bad = ~torch.isfinite(tensor)
            count = int(bad.sum())
            if count:
                word = "NaN" if bool(torch.isnan(tensor).any()) else "infinity"
                place = f"{count} of {tensor.numel()} values, first at {tuple(bad.nonzero()[0].tolist())}"
                raise DataError(
                    f"{name} of batch {index} contains {word} in {place}.\n"
                    "Drop those samples or fill them in: one such value makes the loss and then every weight NaN."
                )


# Building and training ----------------------------------------------------------------------------------------------


class Watching(Protocol):
    """What `train` asks of a watch."""

    def step(self, loss: Any = None) -> None: ...


def build(training: Training, seed: int) -> tuple[nn.Module, Optimizer]:
    """A fresh network and its optimizer, from that seed; the global generators stay seeded, for dropout."""
    seed_all(seed)
    try:
        model = training.model()
    except Exception as error:
        raise TrainingError(f"model() failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise TrainingError(f"model() must return a torch.nn.Module; it returned {_kind(model)}.")
    parameters = list(model.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        found = "all are frozen" if parameters else "it has none"
        raise TrainingError(f"{type(model).__name__} has no parameters to train: {found}.")
    try:
        optimizer = training.optimizer(parameters)
    except Exception as error:
        raise TrainingError(
            f"optimizer(parameters) failed: {type(error).__name__}: {error}\n"
            "It is called with the list of the model's parameters."
        ) from error
    if not isinstance(optimizer, Optimizer):
        raise TrainingError(
            f"optimizer(parameters) must return a torch.optim.Optimizer; it returned {_kind(optimizer)}."
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TrainingError(
            "LBFGS evaluates the loss several times a step, which relume cannot watch; use another one."
        )
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not held & {id(parameter) for parameter in parameters if parameter.requires_grad}:
        raise TrainingError(
            f"the optimizer holds {len(held)} parameters, none of them of the network that model() returned.\n"
            "Build it from its argument: optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)."
        )
    return model, optimizer


def loss_of(training: Training, model: nn.Module, batch: Any) -> Tensor:
    """The loss of the model on one batch, as a scalar with a gradient where gradients are enabled."""
    input, target = split(batch)
    try:
        output = call(model, input)
    except Exception as error:
        raise TrainingError(
            f"{type(model).__name__} failed on its input, {describe(input)}: {type(error).__name__}: {error}\n"
            "The traceback above is from its forward."
        ) from error
    try:
        loss = training.loss(output, target)
    except Exception as error:
        _explain_target(error, output, target)
        raise TrainingError(
            f"loss(output, target) failed: {type(error).__name__}: {error}\n"
            f"Output: {describe(output)}. Target: {describe(target)}."
        ) from error
    if not isinstance(loss, Tensor):
        raise TrainingError(f"loss(output, target) must return a scalar tensor; it returned {_kind(loss)}.")
    if loss.numel() != 1:
        raise TrainingError(
            f"loss(output, target) must return a scalar tensor; it returned a tensor of shape {tuple(loss.shape)}.\n"
            "Take its mean, or leave out reduction='none'."
        )
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise TrainingError(
            "the loss has no gradient: it does not depend on a trainable parameter through differentiable steps.\n"
            "Look for .detach(), .item(), argmax, torch.no_grad() or rounding in the model or the loss."
        )
    return loss


def _explain_target(error: Exception, output: Any, target: Any) -> None:
    """Raise a DataError when the loss failed because a class number is out of range."""
    if not isinstance(error, (IndexError, RuntimeError)) or "out of " not in str(error):
        return
    if not isinstance(target, Tensor) or target.is_floating_point() or not target.numel():
        return
    if not isinstance(output, Tensor) or output.dim() == 0:
        return
    classes = output.shape[1] if output.dim() > 1 else output.shape[0]
    raise DataError(
        f"target out of range: the network has {classes} outputs, so classes run from 0 to {classes - 1}; "
        f"found targets from {int(target.min())} to {int(target.max())}.\n"
        "Renumber the classes from 0, or widen the last layer."
    ) from error


def train(
    training: Training,
    model: nn.Module,
    optimizer: Optimizer,
    stream: Iterator[Any],
    steps: int,
    *,
    after_step: Callable[[int, float], None] | None = None,
    watch: Watching | None = None,
) -> list[float]:
    """Train the model in place, and return the loss of every step.

    Stops after the first loss that is NaN or infinite, which is then the last one returned; when the batch itself holds
    such values that is a DataError. `after_step` gets the number of steps done and the last loss.
    """
    model.train()
    device = device_of(model)
    losses: list[float] = []
    for step in range(1, steps + 1):
        batch = to_device(next(stream), device)
        loss = loss_of(training, model, batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            require_finite(batch, getattr(stream, "index", step - 1))
        optimizer.zero_grad()
        _backward(loss)
        optimizer.step()
        losses.append(value)
        if watch is not None:
            watch.step(loss)
        if after_step is not None:
            after_step(step, value)
        if not math.isfinite(value):
            break
    return losses


def _backward(loss: Tensor) -> None:
    try:
        loss.backward()
    except Exception as error:
        raise TrainingError(
            f"backward failed: {type(error).__name__}: {error}\n"
            "The traceback above says where; an in-place change of a value that backward needs is the usual reason."
        ) from error


def score(training: Training, model: nn.Module) -> float | None:
    """How good the model is, higher is better; None when that is NaN or infinite.

    The model is in eval mode meanwhile and no gradients are kept. Nothing of the global generators is used up, and the
    same samples are seen whatever was drawn before.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), isolated_rng():
            value = _mean_score(training, model) if training.score is None else _own_score(training.score, model)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return value if math.isfinite(value) else None


def _own_score(function: Callable[[nn.Module], float], model: nn.Module) -> float:
    seed_all(STREAM_SALT)
    try:
        value = function(model)
    except Exception as error:
        raise TrainingError(f"score(model) failed: {type(error).__name__}: {error}") from error
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TrainingError(f"score(model) must return a number; it returned {_kind(value)}.") from None


def _mean_score(training: Training, model: nn.Module) -> float:
    device = device_of(model)
    total, samples = 0.0, 0
    data = training.batches if training.validation is None else training.validation
    for batch in Stream(data, 0, once=True):
        size = batch_size(batch)
        total += float(loss_of(training, model, to_device(batch, device))) * size
        samples += size
        if samples >= SCORED_SAMPLES:
            break
    return -total / max(samples, 1)


def fresh(training: Training) -> Training:
    """The training with copies of its loaders, so that a run does not move on a state that they keep.

    Loaders that cannot be copied are shared.
    """
    try:
        copies = copy.deepcopy((training.batches, training.validation))
    except Exception:  # whatever a loader of the user's raises, such as for an open file
        return training
    return replace(training, batches=copies[0], validation=copies[1])


def check(training: Training) -> float:
    """Run two steps of a throw-away network, so that what cannot work fails now and says why.

    Returns the seconds that the second step took, without the start-up costs of the first.
    """
    with isolated_rng():
        model, optimizer = build(training, 0)
        times = [time.perf_counter()]
        stream = Stream(training.batches, 0)
        train(training, model, optimizer, stream, 2, after_step=lambda *_: times.append(time.perf_counter()))
        if training.score is None and training.validation is not None:
            device = device_of(model)
            with torch.no_grad():
                loss_of(training, model.eval(), to_device(next(Stream(training.validation, 0)), device))
    return times[-1] - times[-2]
