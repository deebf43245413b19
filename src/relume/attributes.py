"""What objects keep in plain attributes, such as a counter that `forward` moves on: noted, and put back in place.

`state_dict` knows parameters and buffers alone. A pass of ours through a user's model must not be seen in the rest
either, and a network that is rolled back must go on from the rest as it was.
"""

from __future__ import annotations

import copy
import random
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

NOTED_BYTES = 64 * 2**20  # of tensors and arrays in attributes: what is larger is a data set
NOTED_VALUES = 100_000

# Parameters, buffers, submodules, hooks and modes, which others look after.
_OF_TORCH = frozenset(vars(nn.Module()))


def _refill_dict(value: dict[Any, Any], was: dict[Any, Any]) -> None:
    value.clear()
    value.update(was)


def _refill_set(value: set[Any], was: set[Any]) -> None:
    value.clear()
    value.update(was)


def _refill_deque(value: deque[Any], was: list[Any]) -> None:
    value.clear()
    value.extend(was)


def _set_bits(value: np.random.Generator, was: Any) -> None:
    value.bit_generator.state = was


def _refill_tensor(value: Tensor, was: Tensor) -> None:
    if not torch.equal(value, was):  # what is equal may be a view that takes no copy
        with torch.no_grad():
            value.copy_(was)


_RECORDS = {"types", "argparse"}  # packages of plain namespaces

# What can change in place: what is in it, one level deep, and how that is put back.
_CONTENTS: tuple[tuple[type, Callable[[Any], Any], Callable[[Any, Any], Any]], ...] = (
    (list, list, lambda value, was: value.__setitem__(slice(None), was)),
    (dict, dict, _refill_dict),
    (set, set, _refill_set),
    (deque, list, _refill_deque),
    (bytearray, bytes, lambda value, was: value.__setitem__(slice(None), was)),
    (np.ndarray, np.copy, np.copyto),
    (Tensor, lambda value: value.detach().clone(), _refill_tensor),
    (torch.Generator, torch.Generator.get_state, torch.Generator.set_state),
    (random.Random, random.Random.getstate, random.Random.setstate),
    (types.CellType, lambda value: value.cell_contents, lambda value, was: setattr(value, "cell_contents", was)),
    (np.random.Generator, lambda value: copy.deepcopy(value.bit_generator.state), _set_bits),
)


def contents(value: Any) -> Any:
    """What is in a value that can change in place: items, numbers, a state, or attributes by name; a shallow copy."""
    for kind, read, _ in _CONTENTS:
        if isinstance(value, kind):
            return read(value)
    return _fields(value)


def refill(value: Any, was: Any) -> None:
    """Put back what `contents` gave; the value stays the same object."""
    for kind, _, write in _CONTENTS:
        if isinstance(value, kind):
            write(value, was)
            return
    for name in _fields(value).keys() - was.keys():
        object.__delattr__(value, name)
    for name, part in was.items():
        if getattr(value, name, None) is not part:
            object.__setattr__(value, name, part)


def _is_same(now: Any, was: Any) -> bool:
    """Whether contents are plainly what they were, so that nothing need be written: a value may be read-only."""
    if isinstance(was, Tensor):
        return now.shape == was.shape and bool(((now == was) | ((now != now) & (was != was))).all())
    if isinstance(was, np.ndarray):
        return now.shape == was.shape and now.tobytes() == was.tobytes()
    if isinstance(was, dict):
        return list(map(id, now)) == list(map(id, was)) and all(now[key] is was[key] for key in was)
    if isinstance(was, list):
        return list(map(id, now)) == list(map(id, was))
    return now is was


_CONSTANT = (
    int, float, complex, str, bytes, type, type(None), tuple, frozenset, range, slice, Enum, Tensor, nn.Module,
    np.generic, torch.dtype, torch.device, PurePath, types.FunctionType, types.BuiltinFunctionType, types.MethodType,
    types.ModuleType,
)  # fmt: skip


class Attributes:
    """The plain attributes of modules as they are now; `put_back` makes them so again, in the same objects.

    Followed are lists, dicts, sets, deques, arrays, tensors, random generators, and objects of classes from the same
    packages as those of the modules: a logger or a trainer that a module refers to is not its own. Of `others`, which
    are functions and objects, the same. `held` are the values among them that can change in place, `of_graphs` tensors
    that are part of a graph.

    >>> class Counts(nn.Module):
    ...     calls = 0
    ...     def forward(self, x):
    ...         self.calls += 1
    ...         return x
    >>> model = Counts()
    >>> attributes = Attributes(model.modules())
    >>> _ = model(0), model(1)
    >>> attributes.put_back()
    >>> model.calls
    0
    """

    def __init__(self, modules: Iterable[nn.Module], *others: Any) -> None:
        self.held: list[Any] = []
        self._room = NOTED_BYTES
        self._seen: dict[int, Any] = {}
        # a lazy module becomes another one in its first pass, which is meant to stay
        self._modules = [(m, _plain(m)) for m in modules if not isinstance(m, LazyModuleMixin)]
        owners = [type(m) for m, _ in self._modules] + [
            other if _is_function(other) else type(other) for other in others
        ]
        self._packages = {_package(owner) for owner in owners} - {"torch", "relume", "builtins"} | _RECORDS
        for _, fields in self._modules:
            self._follow(fields.values())
        self._follow(others)
        self._was = [contents(value) for value in self.held]
        self.of_graphs = [v for v in self._seen.values() if isinstance(v, Tensor) and v.grad_fn is not None]

    def put_back(self) -> None:
        """Make all of it as it was."""
        for module, fields in self._modules:
            own = vars(module)
            for name in _plain(module).keys() - fields.keys():
                del own[name]
            for name, value in fields.items():
                if own.get(name, own) is not value:
                    own[name] = value
        for value, was in zip(self.held, self._was, strict=True):
            if not _is_same(contents(value), was):
                with suppress(Exception):  # whatever a class of the user's raises where it is written to
                    refill(value, was)

    def foreign(self) -> Iterator[tuple[nn.Module, str]]:
        """Attributes, by module and name, that hold something which may change and cannot be put back."""
        for module, fields in self._modules:
            for name, value in fields.items():
                if not isinstance(value, _CONSTANT) and not self._changes(value):
                    yield module, name

    def _follow(self, values: Iterable[Any]) -> None:
        waiting = list(values)
        while waiting and len(self._seen) < NOTED_VALUES:
            value = waiting.pop()
            if id(value) in self._seen or type(value) in weakref.ProxyTypes:  # a proxy may be dead, and raise
                continue
            self._seen[id(value)] = value
            if self._changes(value):
                self.held.append(value)
            waiting.extend(self._parts(value))

    def _changes(self, value: Any) -> bool:
        """Whether a value can change in place, and be put back."""
        if isinstance(value, Tensor):
            bare = (
                type(value) is Tensor and value.layout is torch.strided and not (value.is_meta or value.is_inference())
            )
            return bare and value.grad_fn is None and self._fits(value.numel() * value.element_size())
        if isinstance(value, np.ndarray):
            return bool(value.flags.writeable) and self._fits(value.nbytes)
        return isinstance(value, tuple(kind for kind, _, _ in _CONTENTS)) or self._is_own(value)

    def _fits(self, size: int) -> bool:
        self._room -= size
        return self._room >= 0

    def _is_own(self, value: Any) -> bool:
        kind = type(value)
        fields = hasattr(value, "__dict__") or hasattr(kind, "__slots__")
        return fields and not isinstance(value, (type, nn.Module, tuple)) and _package(kind) in self._packages

    def _parts(self, value: Any) -> Iterator[Any]:
        if isinstance(value, (list, tuple, set, frozenset, deque)):
            yield from value
        elif isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, types.FunctionType):
            yield from _enclosed(value)
        elif isinstance(value, types.CellType):
            yield value.cell_contents
        elif isinstance(value, types.MethodType):
            yield value.__self__
        elif self._is_own(value):
            yield from _fields(value).values()


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OF_TORCH}


def _fields(value: Any) -> dict[str, Any]:
    """Attributes of one object, in its `__dict__` or in slots."""
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if hasattr(value, name)]
    return {
        **{name: getattr(value, name) for name in slots if not name.startswith("__")},
        **getattr(value, "__dict__", {}),
    }


def _enclosed(function: types.FunctionType) -> Iterator[Any]:
    """What a function holds: by its closure and its defaults."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not assigned yet
            cell.cell_contents  # noqa: B018
            yield cell
    yield from function.__defaults__ or ()


def _is_function(value: Any) -> bool:
    return isinstance(value, (types.FunctionType, types.MethodType))


def _package(owner: Any) -> str:
    return (getattr(owner, "__module__", None) or "builtins").partition(".")[0]
