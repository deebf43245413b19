"""Batches: taken apart, moved, described, and looked at for values that nothing can learn from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from relume.errors import DataError
from relume.nested import tensors


class Several(tuple[Any, ...]):
    """Batches that make one step together: their gradients are averaged."""

    __slots__ = ()


def parts(batch: Any) -> tuple[Any, ...]:
    """The batches that a step is made of: one, where they are not `Several`."""
    return tuple(batch) if isinstance(batch, Several) else (batch,)


def split(batch: Any) -> tuple[Any, Any]:
    """Input and target of a batch; DataError when it is not a pair."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise DataError(
        f"a batch must be a pair (input, target); found {describe(batch)}.\n"
        "Several inputs go into the first place as a tuple or dict: ((a, b), target) or ({'name': a}, target)."
    )


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
    return kind_of(value)


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


def kind_of(value: Any) -> str:
    """What a value is, in words for an error message."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"{type(value).__name__} {value!r}" if isinstance(value, (int, float, str)) else f"a {type(value).__name__}"
