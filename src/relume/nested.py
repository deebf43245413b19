"""What goes into a model and comes out of it: tensors in tuples, lists, dicts and records."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts, and in the fields of dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from tensors(getattr(value, name))


def first_float(value: Any) -> Tensor | None:
    """The first floating point tensor in a value."""
    return next((tensor for tensor in tensors(value) if tensor.is_floating_point()), None)


def call(model: nn.Module, input: Any) -> Any:
    """The model's output: a tuple or list is its arguments, a dict its keyword arguments."""
    args, kwargs = arguments(input)
    return model(*args, **kwargs)


def arguments(input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How an input is passed to a model: positional arguments, keyword arguments."""
    if isinstance(input, Mapping):
        return (), dict(input)
    return (tuple(input) if isinstance(input, (tuple, list)) else (input,)), {}


def as_input(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `call` passes on as these arguments; where there are both kinds, all by name. None where that cannot be."""
    if not args or not kwargs:
        return kwargs if kwargs else args
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return None
    kinds = bound.signature.parameters
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if kinds[name].kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif kinds[name].kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL):
            return None
        else:
            named[name] = value
    return named


def extent(value: Any) -> tuple[int, int]:
    """Samples (the first tensor's first dimension) and bytes of the tensors in nested arguments."""
    if isinstance(value, Tensor):
        return (value.shape[0] if value.dim() else 1), value.numel() * value.element_size()
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        parts = [extent(part) for part in value]
        return next((samples for samples, _ in parts if samples), 0), sum(size for _, size in parts)
    return 0, 0
