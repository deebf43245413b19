"""Where the runs of a trial are run: this process, worker processes or Ray, with the same numbers bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from relume.errors import TrialError
from relume.training import Training
from relume.trial.arms import Job
from relume.trial.cluster import Ray
from relume.trial.processes import Processes
from relume.trial.work import Note, Wanted, always, by_value, packed, work

ENGINES = ("auto", "processes", "sequential", "ray")
WORTHWHILE = 5.0  # seconds of work: a worker takes two or three to start


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An engine by its name, and how much of it a trial may take.

        relume.trial(training, engine=Engine(name="ray", ray_address="auto", gpus_per_arm=0.25))

    Raises TrialError for an unknown name or an amount that cannot be.
    """

    name: str = "auto"
    workers: int | None = None  # processes at once; None: as many as there are cores
    ray_address: str | None = None  # None: a Ray of its own on this machine, or the one of RAY_ADDRESS
    cpus_per_arm: float = 1.0  # of a Ray task
    gpus_per_arm: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise TrialError(f"no engine named {self.name!r}.\nEngines: {', '.join(ENGINES)}.")
        if self.workers is not None and self.workers < 1:
            raise TrialError(f"workers must be at least 1; found {self.workers}.")
        if self.cpus_per_arm < 0 or self.gpus_per_arm < 0 or self.cpus_per_arm + self.gpus_per_arm <= 0:
            raise TrialError(
                "cpus_per_arm and gpus_per_arm must not be negative, nor both zero; "
                f"found {self.cpus_per_arm:g} and {self.gpus_per_arm:g}."
            )

    @classmethod
    def of(cls, engine: str | Engine) -> Engine:
        """The engine itself, or the one of that name."""
        return cls(name=engine) if isinstance(engine, str) else engine


class Runner(Protocol):
    """What carries out jobs, in their order as far as there is room, and says in words where."""

    name: str

    def run(self, jobs: Sequence[Job], note: Note, wanted: Wanted = always) -> None: ...


class Sequential:
    """Runs jobs one after another in this process: the reference that the others must equal bit for bit."""

    def __init__(self, payload: bytes | tuple[Training, int], why: str = "") -> None:
        self._payload = payload
        self.name = f"in this process ({why})" if why else "in this process"

    def run(self, jobs: Sequence[Job], note: Note, wanted: Wanted = always) -> None:
        """Run the jobs in order and hand each outcome on; a job that is not wanted at its turn is left out."""
        for job in jobs:
            if wanted(job):
                note(work(self._payload, job, f"process {os.getpid()}"))


@contextmanager
def opened(training: Training, steps: int, engine: str | Engine, runs: int, seconds: float) -> Iterator[Runner]:
    """The engine for about so many runs of so many seconds; its workers end with the context.

    Raises TrialError for an unknown engine, or for workers when the training cannot be sent to them.
    """
    chosen = Engine.of(engine)
    with by_value(training):
        payload, why = packed(training, steps)
        if payload is None and chosen.name in ("processes", "ray"):
            raise TrialError(f"worker processes cannot be sent this training: {why}.\nUse engine='sequential'.")
        if payload is None:
            yield Sequential((training, steps), why=f"the training cannot be copied: {why}")
            return
        workers = max(1, min(chosen.workers or _cores(), runs))
        few = workers < 2 or runs * seconds < WORTHWHILE or torch.cuda.is_initialized()
        if chosen.name == "sequential" or (chosen.name == "auto" and few):
            yield Sequential(payload)
            return
        runner = _with_workers(payload, chosen, workers)
        try:
            yield runner
        finally:
            runner.close()


def _with_workers(payload: bytes, engine: Engine, workers: int) -> Processes | Ray:
    if engine.name == "ray":
        return Ray(
            payload,
            address=engine.ray_address,
            workers=workers,
            cpus_per_arm=engine.cpus_per_arm,
            gpus_per_arm=engine.gpus_per_arm,
        )
    return Processes(payload, workers)


def _cores() -> int:
    from loky import cpu_count

    return cpu_count()
