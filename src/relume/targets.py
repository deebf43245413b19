"""Finds the target of a training step: what the loss function was given beside the model's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from relume.nested import tensors


class TargetFinder:
    """Armed between a forward pass and the end of its step; `found(loss)` is the target, or None.

    A loss that is a module is hooked. Of a plain function, the tensors that are combined with the model's output are
    tried as its target, and the one that gives the very loss of the step is it. Where that is not finite, which many
    would give, it is the only one that the function takes.
    """

    def __init__(self, loss: Callable[[Any, Any], Tensor]) -> None:
        self._loss = loss
        self._hook: Any = None
        self._mode: _Meetings | None = None
        self._output: Any = None
        self._candidates: list[Any] = []

    def begin(self, output: Any) -> None:
        """The model has given its output."""
        self._output = _detached(output)
        self._candidates = []
        if isinstance(self._loss, nn.Module):
            self._hook = self._loss.register_forward_pre_hook(lambda m, args: self._candidates.append(args[-1]))
        elif not _get_current_function_mode_stack():  # the user's own mode may end in mid-step, and would take ours
            self._mode = _Meetings(output)
            self._mode.__enter__()

    def end(self, loss: Any) -> Any:
        """The step is over: the target, with nothing left on; None where it cannot be told."""
        if self._hook is not None:
            self._hook.remove()
            self._hook, candidates = None, self._candidates
            self._output, self._candidates = None, []
            return candidates[0] if len(candidates) == 1 else None
        if self._mode is not None:
            _take_off(self._mode)
            self._candidates += self._mode.met
            self._mode = None
        output, candidates = self._output, self._candidates
        self._output, self._candidates = None, []
        if not isinstance(loss, Tensor):
            return None
        found: dict[int, Any] = {}
        with torch.no_grad():
            for candidate in candidates:
                try:
                    same = torch.equal(self._loss(output, candidate).nan_to_num(), loss.detach().nan_to_num())
                except Exception:
                    continue
                if same:
                    found[id(candidate)] = candidate
        one = len(found) == 1 or (bool(found) and bool(torch.isfinite(loss).all()))
        return next(iter(found.values())) if one else None


def _take_off(mode: TorchFunctionMode) -> None:
    """End a mode, also where the user has entered another since and is still in it."""
    above: list[TorchFunctionMode] = []
    while mode in _get_current_function_mode_stack():
        above.append(_pop_mode())
    for other in reversed([m for m in above if m is not mode]):
        _push_mode(other)


class _Meetings(TorchFunctionMode):
    """Notes the tensors that meet the model's output, or what was made of it, in one call."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.met: list[Tensor] = []
        self._known = {id(t): t for t in tensors(output)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if len(self._known) < 32 and isinstance(result, Tensor):  # a loss is a few calls; backward and the step follow
            met = list(tensors((args, tuple((kwargs or {}).values()))))
            if any(id(t) in self._known for t in met):
                self.met += [t for t in met if id(t) not in self._known and not t.requires_grad]
                self._known[id(result)] = result
        return result


def _detached(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, dict):
        return {key: _detached(value) for key, value in output.items()}
    if isinstance(output, (tuple, list)) and not hasattr(output, "_fields"):
        return type(output)(_detached(value) for value in output)
    return output
