"""What a worker gets and does: the training as bytes, and one job carried out on a fresh copy of it."""

from __future__ import annotations

import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from relume.errors import RelumeError
from relume.randomness import one_thread
from relume.training import Training
from relume.trial.arms import Job, Outcome, carry_out, summarise
from relume.verdicts import Run

RETRIES = 2  # of a run whose worker was killed

Note = Callable[[Outcome], None]
Wanted = Callable[[Job], bool]
Numerics = tuple[torch.dtype, str]


def always(job: Job) -> bool:
    """Every job is wanted."""
    return True


def work(payload: bytes | tuple[Training, int], job: Job, where: str) -> Outcome:
    """Carry out one job, in one thread, on a fresh copy of the training.

    Fresh, because a loader may keep a state of its own, such as a torch.Generator, that the run before has moved on.
    """
    import cloudpickle

    training, steps = payload if isinstance(payload, tuple) else cloudpickle.loads(payload)
    if not isinstance(payload, tuple):
        job = cloudpickle.loads(cloudpickle.dumps(job))
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trained = carry_out(training, steps, job.seed, job.treatment)
            return Outcome(run=summarise(trained, job.arm, job.seed, where), changes=trained.changes)
        except Exception as error:  # reported: as the arm's failure, or as the trial's error when it is the control
            message = str(error) if isinstance(error, RelumeError) else f"{type(error).__name__}: {error}"
            return lost(job, message, where, traceback.format_exc())


def lost(job: Job, failure: str, where: str, trace: str = "") -> Outcome:
    """The outcome of a job that never ran to a result."""
    run = Run(arm=job.arm, seed=job.seed, score=None, burden=0.0, failure=failure, engine=where, lost=True)
    return Outcome(run=run, traceback=trace)


def killed(job: Job, where: str) -> Outcome:
    """The outcome of a job that took its worker with it, and each of the retries too."""
    return lost(job, f"its worker was killed {RETRIES + 1} times", where)


def numerics() -> Numerics:
    """What a worker must set like its parent, to compute the same numbers."""
    return torch.get_default_dtype(), torch.get_float32_matmul_precision()


def prepare(state: Numerics) -> None:
    """Make a worker like its parent, and quiet: an interrupt is the parent's to handle, warnings were shown there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(state[0])
    torch.set_float32_matmul_precision(state[1])


# The training as bytes ----------------------------------------------------------------------------------------------


def packed(training: Training, steps: int) -> tuple[bytes | None, str]:
    """The training as bytes, or why that cannot be."""
    import cloudpickle

    try:
        return cloudpickle.dumps((training, steps)), ""
    except Exception as error:  # whatever an object of the user's raises when it is pickled
        return None, f"{type(error).__name__}: {error}"


@contextmanager
def by_value(training: Training) -> Iterator[None]:
    """Let cloudpickle write out what comes from modules that a worker cannot import, such as a file given by path."""
    import cloudpickle

    parts: list[Any] = [training.model, training.optimizer, training.loss, training.score]
    for batches in (training.batches, training.validation):
        parts += [batches, *(vars(batches).values() if hasattr(batches, "__dict__") else ())]
    names = {getattr(part, "__module__", None) or type(part).__module__ for part in parts}
    names -= {"__main__", *cloudpickle.list_registry_pickle_by_value()}
    modules = [sys.modules[name] for name in sorted(names) if name in sys.modules and not _importable(name)]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _importable(name: str) -> bool:
    """Whether another process that has this one's path finds the same module under that name."""
    top = name.partition(".")[0]
    specs = (finder.find_spec(top, None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    spec = next((spec for spec in specs if spec is not None), None)
    file = getattr(sys.modules[name], "__file__", None)
    if spec is None or file is None or spec.origin is None or top != name:
        return spec is not None
    return not Path(spec.origin).exists() or Path(spec.origin).samefile(file)
