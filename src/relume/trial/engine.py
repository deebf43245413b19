"""Where the runs of a trial are run: in worker processes, or in this one, with the same numbers bit for bit."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from relume.errors import RelumeError, TrialError
from relume.randomness import one_thread
from relume.training import Training
from relume.trial.arms import Job, Outcome, carry_out, summarise
from relume.verdicts import Run

ENGINES = ("auto", "processes", "sequential")
RETRIES = 2  # of a run whose worker was killed
WORTHWHILE = 5.0  # seconds of work: a worker takes two or three to start

Note = Callable[[Outcome], None]


class Sequential:
    """Runs jobs one after another in this process: the reference that the workers must equal bit for bit."""

    def __init__(self, payload: bytes | tuple[Training, int], why: str = "") -> None:
        self._payload = payload
        self.name = f"in this process ({why})" if why else "in this process"

    def run(self, jobs: Sequence[Job], note: Note) -> None:
        """Run the jobs in order and hand each outcome on."""
        for job in jobs:
            note(work(self._payload, job, f"process {os.getpid()}"))


class Processes:
    """Runs jobs in worker processes; the training is sent to each once."""

    def __init__(self, payload: bytes, workers: int) -> None:
        self._payload = payload
        self._workers = workers
        self._pool: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.name = f"{workers} worker process{'es' * (workers != 1)}"

    def run(self, jobs: Sequence[Job], note: Note) -> None:
        """Run the jobs and hand each outcome on as it comes.

        When a worker is killed, the runs that were in a worker are tried again at the end, one at a time, so that a run
        that kills its worker takes no other with it.
        """
        waiting, crashes = list(jobs), Counter[int]()
        while waiting:
            untouched = [job for job in waiting if not crashes[id(job)]]
            crashed = self._round(untouched or waiting, self._workers if untouched else 1, waiting, note)
            for job in crashed:
                crashes[id(job)] += 1
                if crashes[id(job)] > RETRIES:
                    waiting.remove(job)
                    note(Outcome(run=_lost(job, f"its worker was killed {RETRIES + 1} times", self.name)))

    def _round(self, jobs: Sequence[Job], at_once: int, waiting: list[Job], note: Note) -> list[Job]:
        """Run jobs until all are done, or a worker is killed: then those that were in a worker."""
        from concurrent.futures import FIRST_COMPLETED, Future, wait

        from loky.process_executor import BrokenProcessPool

        todo, running = deque(jobs), dict[Future[Outcome], Job]()
        while todo or running:
            try:
                while todo and len(running) < at_once:
                    running[self._open().submit(_work_in_worker, todo[0])] = todo[0]
                    todo.popleft()
            except BrokenProcessPool:
                self.close()
            broken = False
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                if isinstance(future.exception(), BrokenProcessPool):
                    broken = True
                    continue
                waiting.remove(running.pop(future))
                note(future.result())
            if broken:
                wait(running)
                for future in [future for future in running if future.exception() is None]:
                    waiting.remove(running.pop(future))
                    note(future.result())
                self.close()
                return list(running.values())
        return []

    def _open(self) -> Any:
        if self._pool is None:
            from loky import ProcessPoolExecutor

            # By file: a worker that dies while it starts would leave a full pipe, on which this process would wait.
            self._folder = tempfile.TemporaryDirectory(prefix="relume-")
            file = Path(self._folder.name) / "training.pickle"
            file.write_bytes(self._payload)
            state = torch.get_default_dtype(), torch.get_float32_matmul_precision()
            self._pool = ProcessPoolExecutor(
                self._workers,
                initializer=_start_worker,
                initargs=(file, *state),
                env={"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            )
        return self._pool

    def close(self) -> None:
        """End the workers at once, with whatever they run."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, kill_workers=True)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


Engine = Sequential | Processes


@contextmanager
def opened(training: Training, steps: int, engine: str, runs: int, seconds: float) -> Iterator[Engine]:
    """The engine of that name for about so many runs of so many seconds; its workers end with the context.

    Raises TrialError for an unknown engine, or for workers when the training cannot be sent to them.
    """
    if engine not in ENGINES:
        raise TrialError(f"no engine named {engine!r}.\nEngines: {', '.join(ENGINES)}.")
    with by_value(training):
        payload, why = packed(training, steps)
        if payload is None and engine == "processes":
            raise TrialError(f"worker processes cannot be sent this training: {why}.\nUse engine='sequential'.")
        workers = min(_cores(), runs)
        few = workers < 2 or runs * seconds < WORTHWHILE or torch.cuda.is_initialized()
        if payload is None:
            yield Sequential((training, steps), why=f"the training cannot be copied: {why}")
        elif engine == "sequential" or (engine == "auto" and few):
            yield Sequential(payload)
        else:
            processes = Processes(payload, max(1, workers))
            try:
                yield processes
            finally:
                processes.close()


def _cores() -> int:
    from loky import cpu_count

    return cpu_count()


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


# One job ------------------------------------------------------------------------------------------------------------


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
            return Outcome(run=_lost(job, message, where), traceback=traceback.format_exc())


def _lost(job: Job, failure: str, where: str) -> Run:
    return Run(arm=job.arm, seed=job.seed, score=None, burden=0.0, failure=failure, engine=where, lost=True)


_payload: bytes = b""


def _start_worker(payload: Path, dtype: torch.dtype, precision: str) -> None:
    """Make a worker like its parent, and quiet: an interrupt is the parent's to handle, warnings were shown there."""
    global _payload  # noqa: PLW0603 - a worker's initialiser has no other place to leave it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    torch.set_float32_matmul_precision(precision)
    _payload = payload.read_bytes()


def _work_in_worker(job: Job) -> Outcome:
    return work(_payload, job, f"process {os.getpid()}")
