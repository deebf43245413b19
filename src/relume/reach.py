"""What the loss could reach: the least that any weights could make of it, with what stands behind the last layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from relume.nested import call, tensors
from relume.recording import Reach
from relume.sites import undisturbed

SAMPLES = 256  # of one batch; each has an output of its own to choose, so more say no more
ITERATIONS = 100  # of L-BFGS; from outputs of 1 it has the least of every loss of torch within some tens
BOUNDED = -1e-3  # a loss that falls below has no least value that could be compared


def reach(model: nn.Module, input: Any, target: Any, loss: Callable[[Any, Any], Tensor]) -> Reach | None:
    """The least loss on one batch when the last layer may give whatever it likes, and when the whole output may.

    A function behind the last layer that keeps the outputs away from the targets, such as a ReLU before targets below
    zero or a softmax before a cross entropy, shows as a difference. None where nothing stands behind the last layer,
    the two cannot be told apart, or the loss has no least value. The model is left bit-identical.
    """
    try:
        with undisturbed(model), torch.enable_grad():
            return _reach(model, input, target, loss)
    except Exception:  # whatever the user's loss says to outputs that it was not made for, such as BCELoss beyond 0 to 1
        return None


def _reach(model: nn.Module, input: Any, target: Any, loss: Callable[[Any, Any], Tensor]) -> Reach | None:
    model.eval()
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    last: list[tuple[nn.Module, Any]] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        last.append((module, output))

    hooks = [m.register_forward_hook(note) for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
    try:
        with torch.no_grad():
            output = call(model, input)
    finally:
        for hook in hooks:
            hook.remove()
    if not last or not isinstance(output, Tensor) or output.dim() == 0 or len(output) > 10 * SAMPLES:
        return None
    layer, given = last[-1]
    if not isinstance(given, Tensor) or given is output:
        return None

    def behind(free: Tensor) -> Tensor:
        hook = layer.register_forward_hook(lambda module, args, output: free)
        try:
            return loss(call(model, input), target)
        finally:
            hook.remove()

    with torch.no_grad():
        first = float(loss(output, target))
        unmoved = torch.equal(output, given) or not torch.isfinite(given).all()
    if unmoved:
        return None
    floor, free = _least(behind, given), _least(lambda y: loss(y, target), output)
    if not all(map(math.isfinite, (first, floor, free))) or min(floor, free) < BOUNDED:
        return None
    classes = not any(t.is_floating_point() for t in tensors(target))
    return Reach(layer=names[layer], first=first, floor=floor, free=free, classes=classes)


def _least(value: Callable[[Tensor], Tensor], like: Tensor) -> float:
    """The least value over all tensors of that shape, as far as a search from 1 finds it."""
    # from 1: a ReLU or its relatives have a slope there, and a bounded function is not yet flat
    free = torch.ones_like(like).requires_grad_()
    optimizer = torch.optim.LBFGS([free], max_iter=ITERATIONS, line_search_fn="strong_wolfe")
    best = math.inf

    def closure() -> Tensor:
        nonlocal best
        optimizer.zero_grad()
        result = value(free)
        result.backward()
        if torch.isfinite(result):
            best = min(best, float(result))
        return result

    optimizer.step(closure)
    return best
