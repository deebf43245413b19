"""Remedies that see to it that sound gradients arrive, and that the optimizer uses them."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from relume.errors import NOTHING_TO_DO, RemedyError
from relume.nested import call
from relume.remedies.record import Edit, Network, require_optimizer
from relume.sites import undisturbed
from relume.surgery import left_out, register

CLIP_NORM = 1.0  # Pascanu, Mikolov & Bengio 2013 (arXiv:1211.5063); 1 is what language models have settled on


class ClipGradients:
    """Before each optimizer step, scales the gradients, all together, down to a norm of at most `max_norm`."""

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """As a step pre-hook; a closure, which makes the gradients during the step, is wrapped."""
        return before_step(self.clip, optimizer, args, kwargs)

    def clip(self, optimizer: Optimizer) -> None:
        clip_grad_norm_(parameters_of(optimizer), self.max_norm)


class SkipNonFinite:
    """Before each optimizer step, drops the gradients where one of them is NaN or infinite: no step is taken then."""

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """As a step pre-hook; a closure, which makes the gradients during the step, is wrapped."""
        return before_step(self.drop, optimizer, args, kwargs)

    def drop(self, optimizer: Optimizer) -> None:
        parameters = [p for p in parameters_of(optimizer) if p.grad is not None]
        if not all(bool(torch.isfinite(p.grad).all()) for p in parameters if p.grad is not None):
            for p in parameters:
                p.grad = None


def before_step(act: Any, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
    """Do that to the gradients of a step, and of every call of its closure where it makes them itself."""
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        act(optimizer)
        return None

    def wrapped() -> Any:
        loss = closure()
        act(optimizer)
        return loss

    return (args[0], wrapped), {k: v for k, v in kwargs.items() if k != "closure"}


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def clip_gradients(network: Network) -> Edit:
    optimizer = require_optimizer(network, "clip_gradients")
    optimizer.register_step_pre_hook(ClipGradients(CLIP_NORM))
    return Edit(
        changes={"optimizer": f"gradients clipped to a norm of {CLIP_NORM:g} before each step"}, keeps_function=True
    )


def skip_non_finite(network: Network) -> Edit:
    optimizer = require_optimizer(network, "skip_non_finite")
    optimizer.register_step_pre_hook(SkipNonFinite())
    return Edit(changes={"optimizer": "takes no step where a gradient is NaN or infinite"}, keeps_function=True)


def train_all(network: Network) -> Edit:
    """Parameters that want gradients and that no optimizer knows join its first group."""
    optimizer = require_optimizer(network, "train_all")
    missing = left_out(network.model, optimizer)
    if not missing:
        raise RemedyError(
            f"train_all {NOTHING_TO_DO}: the optimizer drives every parameter that wants a gradient.\n"
            "Frozen parameters stay frozen; set requires_grad to train them."
        )
    register(optimizer, missing, None)
    return Edit(changes=dict.fromkeys(missing, "handed to the optimizer"), keeps_function=True)


# detach -------------------------------------------------------------------------------------------------------------

_DETACHES = (Tensor.detach, torch.detach, Tensor.detach_, torch.detach_)


class _Detaches(TorchFunctionMode):
    """Meets the detach calls in the network's own code, those of torch and relume left alone, and may undo them."""

    def __init__(self, *, undo: bool) -> None:
        super().__init__()
        self.undo = undo
        self.found = 0  # calls that cut a gradient

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DETACHES and _is_network_s(sys._getframe(1)):
            self.found += args[0].requires_grad
            if self.undo:
                return args[0]
        return func(*args, **(kwargs or {}))


def _is_network_s(frame: FrameType | None) -> bool:
    """Whether a call came from code that is neither torch's nor relume's; other modes on the way do not count."""
    while frame is not None and frame.f_code.co_name == "__torch_function__":
        frame = frame.f_back
    module = str(frame.f_globals.get("__name__", "")) if frame is not None else ""
    return module.split(".")[0] not in ("torch", "relume")


class KeepGradient:
    """Forward pre-hook and forward hook of a network: between them, its `detach` calls do nothing."""

    def __init__(self) -> None:
        self._modes: list[_Detaches] = []  # a stack: the network may call itself

    def begin(self, module: Any, args: Any) -> None:
        mode = _Detaches(undo=True)
        mode.__enter__()
        self._modes.append(mode)

    def end(self, module: Any, args: Any, output: Any) -> None:
        if self._modes:
            self._modes.pop().__exit__(None, None, None)


def keep_gradient(network: Network) -> Edit:
    """Whatever the network's code detaches during a forward pass keeps its history."""
    if network.example is None:
        raise RemedyError(
            "keep_gradient has to run the network once, and no input could be guessed.\nPass example_input."
        )
    with undisturbed(network.model), _Detaches(undo=False) as seen, torch.enable_grad():
        call(network.model, network.example)
    if not seen.found:
        raise RemedyError(
            f"keep_gradient {NOTHING_TO_DO}: the network's code detaches nothing that had a gradient.\n"
            "Look for torch.no_grad, .data and .numpy in its forward, and for parameters without requires_grad."
        )
    hook = KeepGradient()
    network.model.register_forward_pre_hook(hook.begin)
    network.model.register_forward_hook(hook.end, always_call=True)
    return Edit(changes={"forward": f"{seen.found} detach calls pass the gradient on"}, keeps_function=True)
