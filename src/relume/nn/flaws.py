"""What torch's own modules lose, measured by comparing them with the catalogue's formulas in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from relume.activations import Activation

Flaw = Literal[
    "nan at -inf",
    "nan at inf",
    "value lost on the left",
    "value lost on the right",
    "gradient lost on the left",
    "gradient lost on the right",
    "more than 4 bytes",
    "float64 as float32",
    "no second derivative",
    "no vmap",
]

# A tail is lost where more than this share of it is gone, though float32 could hold the true number.
LOST = 0.01
# Float32 bytes for each element of the input that backward may need: the input, or the output, and no more.
BYTES = 4

# What torch's modules lose (measured with torch 2.13; a test holds that it is exactly this): every row with a flaw.
FLAWS: Mapping[str, tuple[Flaw, ...]] = {
    "sigmoid": ("gradient lost on the right",),
    "tanh": ("gradient lost on the left", "gradient lost on the right"),
    "rrelu": ("more than 4 bytes", "no vmap"),
    "gelu": ("nan at -inf", "nan at inf", "value lost on the left", "gradient lost on the left"),
    "gelu_tanh": ("nan at -inf", "nan at inf", "value lost on the left", "gradient lost on the left"),
    "silu": ("nan at -inf", "nan at inf", "value lost on the left", "gradient lost on the left"),
    "mish": ("nan at -inf", "nan at inf", "gradient lost on the left"),
    "hardsigmoid": ("float64 as float32", "no second derivative"),
    "hardswish": ("nan at -inf",),
    "softsign": ("nan at -inf", "nan at inf", "more than 4 bytes"),
    "logsigmoid": ("more than 4 bytes",),
}


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
    """What a function of one number, said to be that of the row at its defaults, loses in float32 on the CPU.

    >>> from relume.activations import activation
    >>> flaws(torch.sigmoid, activation("sigmoid"))
    ('gradient lost on the right',)
    """
    found: set[str] = set()
    for end, side, sign in (("-inf", "left", -1), ("inf", "right", 1)):
        value, slope, true_value, true_slope = _compare(function, row, np.array([sign * np.inf]))
        if any(np.isnan(y) > np.isnan(true) for y, true in ((value, true_value), (slope, true_slope))):
            found.add(f"nan at {end}")
        value, slope, true_value, true_slope = _compare(function, row, sign * np.linspace(1, 100, 3961))
        found |= {f"value lost on the {side}"} if _lost(value, true_value) else set()
        found |= {f"gradient lost on the {side}"} if _lost(slope, true_slope) else set()
    if saved_bytes(function) > BYTES:
        found.add("more than 4 bytes")
    value, slope, true_value, true_slope = _compare(function, row, np.linspace(-2.3, 2.3, 24), torch.float64)
    if not all(np.allclose(y, true, 1e-10, 1e-10) for y, true in ((value, true_value), (slope, true_slope))):
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
    """Value and slope in that precision, and the true ones, at the numbers that it makes of x."""
    z = torch.from_numpy(x).to(dtype).requires_grad_()
    y = (copy.deepcopy(function).to(dtype) if isinstance(function, nn.Module) else function)(z)
    (slope,) = torch.autograd.grad(y.sum(), z)
    at = z.detach().double().numpy()
    shape = start(row)
    return y.detach().double().numpy(), slope.double().numpy(), row.value(at, **shape), row.partials(at, **shape)[0]


def _lost(found: np.ndarray, true: np.ndarray) -> bool:
    """Whether three neighbours are wrong where float32 could hold the truth; next to a zero crossing one or two are."""
    info = torch.finfo(torch.float32)
    held = (np.abs(true) >= info.tiny) & (np.abs(true) <= info.max)
    wrong = held & ~(np.abs(found - true) <= LOST * np.abs(true))
    return bool(np.any(wrong[:-2] & wrong[1:-1] & wrong[2:]))
