"""FILE:NAME on the command line: loads a user's Python file and finds the Training in it."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from relume.errors import TrainingError
from relume.training import Training

HOW = "FILE:NAME is a Python file and the relume.Training in it, or a function without arguments that returns one."


def load_training(subject: str) -> Training:
    """The Training that FILE:NAME names; without a NAME, the only one there is.

    Raises TrainingError, with what was found instead; an error in the user's file is its cause.
    """
    path, name = _split(subject)
    module = _load(path)
    if not name:
        return _only(module, path)
    if not hasattr(module, name):
        raise TrainingError(f"no {name!r} in {path}.\n{_available(module, name)}")
    return _as_training(getattr(module, name), f"{path}:{name}")


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


def _as_training(value: object, where: str) -> Training:
    if isinstance(value, Training):
        return value
    if not callable(value):
        raise TrainingError(f"{where} is not a relume.Training but a {type(value).__name__}.\n{HOW}")
    try:
        made = value()
    except Exception as error:
        raise TrainingError(f"{where}() fails: {type(error).__name__}: {error}") from error
    if not isinstance(made, Training):
        raise TrainingError(f"{where}() does not return a relume.Training but a {type(made).__name__}.\n{HOW}")
    return made


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
