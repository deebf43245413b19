"""What the loss could reach: the least that any weights could make of it, with what stands behind the last layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from relume.nested import call, tensors
from relume.recording import Reach
from relume.sites import undisturbed

SAMPLES = 256  # at most; each has an output of its own to choose, so more say no more
FEWEST = 64  # for the best constant answer, which a handful of samples would flatter
ITERATIONS = 100  # of L-BFGS; from outputs of 1/2 it has the least of every loss of torch within some tens
BOUNDED = -1e-3  # a loss that falls below has no least value that could be compared


def reach(model: nn.Module, batches: Sequence[tuple[Any, Any]], loss: Callable[[Any, Any], Tensor]) -> Reach | None:
    """The least loss when the last layer may give whatever it likes, when the whole output may, and with one answer.

    A function behind the last layer that keeps the outputs away from the targets, such as a ReLU before targets below
    zero or a softmax before a cross entropy, shows as a difference of the first two. The last is what a network reaches
    that takes nothing from its inputs. None where they cannot be told, or the loss has no least value. The model is
    left bit-identical.
    """
    try:
        with undisturbed(model), torch.enable_grad():
            return _reach(model.eval(), *_joined(batches), loss)
    except Exception:  # whatever the user's model and loss make of what they are not given in training
        return None


def _joined(batches: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """As many batches as one as are needed; the first alone where they are not plain tensors."""
    chosen: list[tuple[Any, Any]] = []
    for input, target in batches:
        if not (isinstance(input, Tensor) and isinstance(target, Tensor) and input.dim() and target.dim()):
            return batches[0]
        chosen.append((input, target))
        if sum(len(x) for x, _ in chosen) >= SAMPLES:
            break
    inputs, targets = zip(*chosen, strict=True)
    return torch.cat(inputs)[:SAMPLES], torch.cat(targets)[:SAMPLES]


def _reach(model: nn.Module, input: Any, target: Any, loss: Callable[[Any, Any], Tensor]) -> Reach | None:
    layer, given, output = last_layer(model, input)
    with torch.no_grad():
        first = float(loss(output, target))
    if not isinstance(output, Tensor) or not isinstance(given, Tensor) or output.dim() == 0:
        return None

    def behind(free: Tensor) -> Tensor:
        if given is output:  # nothing stands behind the last layer
            return loss(free, target)
        hook = layer.register_forward_hook(lambda module, args, output: free)
        try:
            return loss(call(model, input), target)
        finally:
            hook.remove()

    floor = _least(behind, given)
    free = floor
    if given is not output:
        free = _least(lambda y: loss(y, target), output)
        if not BOUNDED <= free <= floor:  # as that of log-probabilities that may exceed 0
            free = floor
    constant = None
    if len(given) == len(output) >= FEWEST:
        constant = _least(lambda one: behind(one.expand_as(given)), given[:1])
    if not math.isfinite(first) or not math.isfinite(floor) or floor < BOUNDED:
        return None
    classes = not any(t.is_floating_point() for t in tensors(target))
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    return Reach(layer=names[layer], first=first, floor=floor, free=free, constant=constant, classes=classes)


def last_layer(model: nn.Module, input: Any) -> tuple[nn.Module, Any, Any]:
    """The last module with parameters of its own that a pass goes through, what it gives, and what the model gives."""
    last: list[tuple[nn.Module, Any]] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        last.append((module, output))

    with_weights = [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
    hooks = [m.register_forward_hook(note) for m in with_weights]
    try:
        with torch.no_grad():
            output = call(model, input)
    finally:
        for hook in hooks:
            hook.remove()
    return (*last[-1], output)


def _least(value: Callable[[Tensor], Tensor], like: Tensor) -> float:
    """The least value over all tensors of that shape, as far as a search from 1/2 finds it."""
    # a ReLU and its relatives have a slope there, and a bounded function is not yet flat
    free = torch.full_like(like, 0.5).requires_grad_()
    optimizer = torch.optim.LBFGS([free], max_iter=ITERATIONS, line_search_fn="strong_wolfe")
    best = math.inf

    def closure() -> Tensor:
        nonlocal best
        optimizer.zero_grad()
        result = value(free)
        result.backward()
        if torch.isfinite(result):
            best = min(best, float(result.detach()))
        return result

    with suppress(Exception):  # a loss may refuse what the search tries, as BCELoss does beyond 0 to 1
        optimizer.step(closure)
    return best
