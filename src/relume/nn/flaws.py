"""What torch's own modules lose, measured by comparing them with the catalogue's formulas in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn

from relume.activations import Activation
from relume.activations.flaws import FLAWS, Flaw

__all__ = ["BYTES", "FLAWS", "LOST", "Flaw", "flaws", "saved_bytes", "start"]

# A stretch is lost where more than this share of it is gone, though float32 could hold the true number.
LOST = 0.01
# Float32 bytes for each element of the input that backward may need: the input, or the output, and no more.
BYTES = 4

# Where a function is followed: out to both sides, and from both sides down to 0.
_STRETCHES = (
    ("on the left", -np.linspace(1, 100, 3961)),
    ("on the right", np.linspace(1, 100, 3961)),
    ("near 0", np.concatenate([sign * 10.0 ** np.linspace(-6, 0, 241) for sign in (-1, 1)])),
)


def start(row: Activation) -> dict[str, float]:
    """The row's parameters as its module has them: those that are learnt start as a float32."""
    values = row.arguments()
    return {k: float(np.float32(v)) if row.parameters[k].init_argument else v for k, v in values.items()}


def saved_bytes(function: Callable[[Tensor], Tensor], elements: int = 4096) -> float:
    """The bytes that a function keeps for backward, for each element of a float32 input.

    A storage counts once however often it is kept, the input and the output too. `elements` must be even.

    >>> saved_bytes(torch.relu), saved_bytes(lambda x: x * torch.sigmoid(x))
    (4.0, 8.0)
    """
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function(torch.linspace(-3, 3, elements).reshape(-1, 2).requires_grad_())
    del result  # kept until here, so that no storage is used twice
    return sum(size for size in kept.values() if size >= elements) / elements


def flaws(function: Callable[[Tensor], Tensor], row: Activation) -> tuple[Flaw, ...]:
    """What a function, said to be that of the row at its defaults, loses in float32 on the CPU.

    A function of several numbers reads them side by side. It is followed along the last of them, the others at 1, by
    the first of its results and by the gradient of that to each of the numbers.

    >>> from relume.activations import activation
    >>> flaws(torch.sigmoid, activation("sigmoid"))
    ('gradient lost on the right',)
    """
    found: set[str] = set()
    for end, sign in (("-inf", -1), ("inf", 1)):
        value, slopes, true_value, true_slopes = _compare(function, row, np.array([sign * np.inf]))
        if any(np.any(np.isnan(y) > np.isnan(true)) for y, true in ((value, true_value), (slopes, true_slopes))):
            found.add(f"nan at {end}")
    for where, x in _STRETCHES:
        value, slopes, true_value, true_slopes = _compare(function, row, x)
        found |= {f"value lost {where}"} if _lost(value, true_value) else set()
        found |= {f"gradient lost {where}"} if _lost(slopes, true_slopes) else set()
    if saved_bytes(function) > BYTES:
        found.add("more than 4 bytes")
    value, slopes, true_value, true_slopes = _compare(function, row, np.linspace(-2.3, 2.3, 24), torch.float64)
    if not all(np.allclose(y, true, 1e-10, 1e-10) for y, true in ((value, true_value), (slopes, true_slopes))):
        found.add("float64 as float32")
    if not _runs(lambda x: torch.autograd.functional.hessian(lambda z: function(z).sum(), x)):
        found.add("no second derivative")
    if not _runs(torch.vmap(function)):
        found.add("no vmap")
    return tuple(flaw for flaw in get_args(Flaw) if flaw in found)


def _runs(function: Callable[[Tensor], Tensor]) -> bool:
    try:
        function(torch.ones(2, 2))
    except RuntimeError:  # what torch raises where an operator lacks the rule
        return False
    return True


def _compare(
    function: Callable[[Tensor], Tensor], row: Activation, x: np.ndarray, dtype: torch.dtype = torch.float32
) -> tuple[np.ndarray, ...]:
    """Value and gradient in that precision, and the true ones, at the numbers that it makes of x."""
    operands = np.stack([np.ones_like(x)] * (row.operands - 1) + [x], axis=-1)
    z = torch.from_numpy(operands).to(dtype).requires_grad_()
    y = (copy.deepcopy(function).to(dtype) if isinstance(function, nn.Module) else function)(z)[..., 0]
    (slopes,) = torch.autograd.grad(y.sum(), z)
    at = z.detach().double().numpy()
    true_slopes = row.partials(*at.T, **start(row))[: row.operands]  # those of the first result come first
    true_value = row.value(at[:, -1], **start(row))
    return y.detach().double().numpy(), slopes.double().numpy(), true_value, np.stack(true_slopes, axis=-1)


def _lost(found: np.ndarray, true: np.ndarray) -> bool:
    """Whether three neighbours are wrong where float32 could hold the truth; next to a zero crossing one or two are."""
    info = torch.finfo(torch.float32)
    held = (np.abs(true) >= info.tiny) & (np.abs(true) <= info.max)
    wrong = held & ~(np.abs(found - true) <= LOST * np.abs(true))
    return bool(np.any(wrong[:-2] & wrong[1:-1] & wrong[2:]))
