"""Finds the targets of a training step: what the loss function was given beside the model's outputs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from relume.nested import first_float, tensors
from relume.randomness import isolated_rng

SAME_SUM = 1e-4  # of a loss: what two ways to add up a few float32 numbers differ by at most


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets of one step, one for each pass through the model, and how the passes' gradients became one."""

    passes: tuple[Any, ...]
    summed: bool = False  # and not averaged, as they are where each loss is divided by the number of passes


@dataclass(slots=True)
class _Pass:
    """What was seen after one pass through the model."""

    output: Any
    candidates: list[Any] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)  # single numbers that were made of the output, perhaps the loss


class TargetFinder:
    """Armed between a forward pass and the end of its step; `end(loss)` gives the targets, or None.

    A loss that is a module is hooked. Of a plain function, the tensors that are combined with the model's output are
    tried as its target, and the one that gives the very loss of the step is it; where that is not finite, which many
    would give, the only one that does. Where several passes make one step, each must have a target that gives a number
    which the loop has made of that output, and their losses must add up.
    """

    def __init__(self, loss: Callable[[Any, Any], Tensor]) -> None:
        self._loss = loss
        self._hook: Any = None
        self._mode: _Meetings | None = None
        self._passes: list[_Pass] = []
        self._roots: list[Tensor] = []  # what backward began from

    def begin(self, output: Any, *, gradients: bool = True) -> None:
        """The model has given its output; `gradients` asks how those of several passes become one."""
        self.pause()
        seen = _Pass(_detached(output))
        self._passes.append(seen)
        if isinstance(self._loss, nn.Module):

            def note(module: nn.Module, args: Any, kwargs: Any, value: Any) -> None:
                seen.candidates += _second(module, args, kwargs)
                if isinstance(value, Tensor):
                    seen.values.append(value.detach())

            self._hook = self._loss.register_forward_hook(note, with_kwargs=True)
            if not gradients:  # torch.compile compiles nothing that it first meets under a mode
                return
        if not _get_current_function_mode_stack():  # the user's own mode may end in mid-step, and would take ours
            met = _Pass(None) if self._hook is not None else seen  # a module says itself what it was given
            self._mode = _Meetings(met, output, self._roots)
            self._mode.__enter__()

    def pause(self) -> None:
        """Take everything off: another pass begins, in which nothing is looked for."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self._mode is not None:
            _take_off(self._mode)
            self._mode = None

    def forget(self) -> None:
        """Take everything off, and leave the step's targets untold."""
        self.pause()
        self._passes, self._roots = [], []

    def end(self, loss: Any) -> Targets | None:
        """The step is over: the targets, with nothing left on; None where they cannot be told."""
        self.pause()
        passes, self._passes = self._passes, []
        roots, self._roots = sum(float(root) for root in self._roots), []
        total = _number(loss)
        noise = _noise(passes[0].output) if passes else 0.0
        if isinstance(self._loss, nn.Module):
            found = [(seen.candidates[0], _number(seen.values[0])) for seen in passes if len(seen.candidates) == 1]
            found = [pair for pair in found if pair[1] is not None]
        else:
            alone = total if len(passes) == 1 else None
            found = [pair for seen in passes if (pair := self._told(seen, alone, noise)) is not None]
        if not passes or len(found) < len(passes):
            return None
        targets, losses = zip(*found, strict=True)
        noise = max(noise, SAME_SUM if len(passes) > 1 else 0.0)
        whole = roots if total is None else total
        if not isinstance(self._loss, nn.Module) and not any(_close(whole, t, noise) for t in _totals(losses)):
            return None  # the loop trains on something else besides
        return Targets(targets, summed=len(passes) > 1 and _close(roots, sum(losses), noise))

    def _told(self, seen: _Pass, loss: float | None, noise: float) -> tuple[Any, float] | None:
        """The target of one pass and its loss: the step's, or else a number that the loop has made of the output."""
        known = [float(value) for value in seen.values] if loss is None else [loss]
        found: dict[int, tuple[Any, float]] = {}
        with isolated_rng(), torch.no_grad():
            for candidate in seen.candidates:
                try:
                    value = float(self._loss(seen.output, candidate))
                except Exception:
                    continue
                if any(_close(number, value, noise) for number in known):
                    found[id(candidate)] = candidate, value
        told = next(iter(found.values()), None)
        return told if told is None or len(found) == 1 or math.isfinite(told[1]) else None


def _second(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The target among the arguments of a loss, which is the second of two; of others nothing is known."""
    if kwargs:
        try:
            args = tuple(inspect.signature(module.forward).bind(*args, **kwargs).arguments.values())
        except (TypeError, ValueError):
            return ()
    return args[1:] if len(args) == 2 else ()


def _totals(losses: Sequence[float]) -> tuple[float, ...]:
    """What a loop of several passes may call the loss of its step."""
    count, whole = len(losses), sum(losses)
    return losses[-1], losses[-1] / count, whole, whole / count


def _number(loss: Any) -> float | None:
    if isinstance(loss, Tensor):
        return float(loss.detach()) if loss.numel() == 1 else None
    return float(loss) if isinstance(loss, (int, float)) else None


def _noise(output: Any) -> float:
    """By how much, relatively, a loss may differ that is computed again: under autocast it is, in other formats."""
    tensor = first_float(output)
    half = tensor is not None and tensor.dtype in (torch.bfloat16, torch.float16)
    return 2 * torch.finfo(tensor.dtype).eps if half and tensor is not None else 0.0


def _close(a: float, b: float, noise: float) -> bool:
    return a == b or math.isclose(a, b, rel_tol=noise) or (math.isnan(a) and math.isnan(b))


def _take_off(mode: TorchFunctionMode) -> None:
    """End a mode, also where the user has entered another since and is still in it."""
    above: list[TorchFunctionMode] = []
    while mode in _get_current_function_mode_stack():
        above.append(_pop_mode())
    for other in reversed([m for m in above if m is not mode]):
        _push_mode(other)


class _Meetings(TorchFunctionMode):
    """Notes the tensors that meet the model's output, or what was made of it, in one call; also calls of backward."""

    def __init__(self, seen: _Pass, output: Any, roots: list[Tensor]) -> None:
        super().__init__()
        self._seen, self._roots = seen, roots
        self._known = {id(t): t for t in tensors(output)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is Tensor.backward and args[0].numel() == 1:
            self._roots.append(args[0].detach())
        if len(self._known) < 32 and isinstance(result, Tensor):  # a loss is a few calls; backward and the step follow
            met = list(tensors((args, tuple((kwargs or {}).values()))))
            if any(id(t) in self._known for t in met):
                self._seen.candidates += [t for t in met if id(t) not in self._known and not t.requires_grad]
                self._known[id(result)] = result
                if result.numel() == 1:
                    self._seen.values.append(result.detach())
        return result


def _detached(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, dict):
        return {key: _detached(value) for key, value in output.items()}
    if isinstance(output, (tuple, list)) and not hasattr(output, "_fields"):
        return type(output)(_detached(value) for value in output)
    return output
