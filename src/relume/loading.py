"""FILE:NAME on the command line: loads a user's Python file and finds the Training in it."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from relume.errors import TrainingError
from relume.training import Training

HOW = "FILE:NAME is a Python file and the relume.Training in it, or a function without arguments that returns one."

NETWORK = (
    "FILE:NAME is a Python file and the relume.Training in it, or a function that returns one, or (model, batches)."
)


def load_training(subject: str) -> Training:
    """The Training that FILE:NAME names; without a NAME, the only one there is.

    Raises TrainingError, with what was found instead; an error in the user's file is its cause.
    """
    value, where = _named(subject)
    made = _called(value, where)
    if not isinstance(made, Training):
        raise _unfit(value, made, where, "a relume.Training", HOW)
    return made


def load_network(subject: str) -> Training | tuple[nn.Module, Any]:
    """The Training that FILE:NAME names, or the (model, batches).

    Raises TrainingError, with what was found instead; an error in the user's file is its cause.
    """
    value, where = _named(subject)
    made = _called(value, where)
    if isinstance(made, Training):
        return made
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        return made[0], made[1]
    if isinstance(made, nn.Module):
        raise TrainingError(
            f"{where} gives a network, {type(made).__name__}, without inputs, which are needed to see which units are "
            f"dead.\nReturn both: (model, batches), where batches gives (input, target) or inputs alone."
        )
    raise _unfit(value, made, where, "a relume.Training or (model, batches)", NETWORK)


def _named(subject: str) -> tuple[Any, str]:
    """What FILE:NAME names, and in words where that is."""
    path, name = _split(subject)
    module = _load(path)
    if not name:
        return _only(module, path), str(path)
    if not hasattr(module, name):
        raise TrainingError(f"no {name!r} in {path}.\n{_available(module, name)}")
    return getattr(module, name), f"{path}:{name}"


def _split(subject: str) -> tuple[Path, str]:
    head, colon, tail = subject.rpartition(":")
    if not colon or tail.endswith(".py") or "/" in tail or "\\" in tail:
        head, tail = subject, ""
    path = Path(head)
    if path.is_dir():
        raise TrainingError(f"{path} is a folder.\n{HOW}")
    if not path.is_file():
        folder = path.parent
        near = [p.name for p in folder.glob("*.py")] if folder.is_dir() else []
        close = difflib.get_close_matches(path.name, near, n=3) or sorted(near)[:5]
        found = f"Python files in {folder.resolve()}: {', '.join(close) if close else 'none'}."
        raise TrainingError(f"no file {path}.\n{found}\n{HOW}")
    return path, tail


def _load(path: Path) -> ModuleType:
    name = f"relume_subject_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise TrainingError(f"{path} is not a Python file.\n{HOW}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))  # so that it finds its neighbours, as `python FILE` would
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise TrainingError(f"{path} fails when it is loaded: {type(error).__name__}: {error}") from error
    import cloudpickle

    cloudpickle.register_pickle_by_value(module)  # worker processes cannot import it by its name
    return module


def _called(value: Any, where: str) -> Any:
    """The value itself, or what it returns where it is a function."""
    if isinstance(value, (Training, nn.Module)) or not callable(value):
        return value
    try:
        return value()
    except Exception as error:
        raise TrainingError(f"{where}() fails: {type(error).__name__}: {error}") from error


def _unfit(value: Any, made: Any, where: str, wanted: str, how: str) -> TrainingError:
    found = f"{where} is not {wanted}" if made is value else f"{where}() does not return {wanted}"
    return TrainingError(f"{found} but a {type(made).__name__}.\n{how}")


def _only(module: ModuleType, path: Path) -> Training:
    found = [name for name, value in vars(module).items() if isinstance(value, Training)]
    if len(found) == 1:
        return getattr(module, found[0])
    raise TrainingError(f"name the training in {path}: {path}:NAME.\n{_available(module, '')}")


def _available(module: ModuleType, asked: str) -> str:
    trainings = [name for name, value in vars(module).items() if isinstance(value, Training)]
    functions = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
    ]
    close = difflib.get_close_matches(asked, trainings + functions, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return (
        f"{hint}Trainings there: {', '.join(trainings) or 'none'}; functions: {', '.join(functions) or 'none'}.\n{HOW}"
    )
