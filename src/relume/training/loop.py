"""The one loop: build, train, score, check."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from relume.errors import DataError, TrainingError
from relume.nested import call
from relume.randomness import isolated_rng, seed_all
from relume.training.batches import batch_size, describe, device_of, kind_of, parts, require_finite, split, to_device
from relume.training.record import Training
from relume.training.stream import STREAM_SALT, Stream

SCORED_SAMPLES = 20_000  # enough for a standard error of 0.7 % of the loss's spread; more would slow every arm


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
        raise TrainingError(f"model() must return a torch.nn.Module; it returned {kind_of(model)}.")
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
            f"optimizer(parameters) must return a torch.optim.Optimizer; it returned {kind_of(optimizer)}."
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
        raise TrainingError(f"loss(output, target) must return a scalar tensor; it returned {kind_of(loss)}.")
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
    after_step: Callable[[int, float], object] | None = None,
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
        batches = parts(to_device(next(stream), device))
        loss: Tensor | float = 0.0
        value = 0.0
        for number, batch in enumerate(batches):
            loss = loss_of(training, model, batch)
            part = float(loss.detach())
            if not math.isfinite(part):
                require_finite(batch, getattr(stream, "index", step - 1))
            if number == 0:
                optimizer.zero_grad()
            _backward(loss / len(batches) if len(batches) > 1 else loss)
            value += part / len(batches)
        optimizer.step()
        losses.append(value)
        if watch is not None:
            watch.step(value if len(batches) > 1 else loss)
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
        raise TrainingError(f"score(model) must return a number; it returned {kind_of(value)}.") from None


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


def repeatable(training: Training, steps: int) -> Training:
    """The training with batches that every run can have alike: where the loader cannot be copied, a record of them.

    A loader with a state of its own would else give each run other batches. The record holds `steps` batches at most.
    """
    try:
        copy.deepcopy(training.batches)
    except Exception:  # whatever a loader of the user's raises, such as for an open file
        return replace(training, batches=list(islice(Stream(training.batches, 0), steps)))
    return training


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
