"""Runs in worker processes of this machine."""

from __future__ import annotations

import os
import tempfile
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relume.trial.arms import Job, Outcome
from relume.trial.work import RETRIES, Note, Numerics, Wanted, always, killed, numerics, prepare, work


class Processes:
    """Runs jobs in worker processes; the training is sent to each once."""

    def __init__(self, payload: bytes, workers: int) -> None:
        self._payload = payload
        self._workers = workers
        self._pool: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.name = f"{workers} worker process{'es' * (workers != 1)}"

    def run(self, jobs: Sequence[Job], note: Note, wanted: Wanted = always) -> None:
        """Run the jobs and hand each outcome on as it comes; a job that is not wanted at its turn is left out.

        When a worker is killed, the runs that were in a worker are tried again at the end, one at a time, so that a run
        that kills its worker takes no other with it.
        """
        waiting, crashes = list(jobs), Counter[int]()
        while waiting:
            untouched = [job for job in waiting if not crashes[id(job)]]
            crashed = self._round(untouched or waiting, self._workers if untouched else 1, waiting, note, wanted)
            for job in crashed:
                crashes[id(job)] += 1
                if crashes[id(job)] > RETRIES:
                    waiting.remove(job)
                    note(killed(job, self.name))

    def _round(self, jobs: Sequence[Job], at_once: int, waiting: list[Job], note: Note, wanted: Wanted) -> list[Job]:
        """Run jobs until all are done, or a worker is killed: then those that were in a worker."""
        from concurrent.futures import FIRST_COMPLETED, Future, wait

        from loky.process_executor import BrokenProcessPool

        todo, running = deque(jobs), dict[Future[Outcome], Job]()
        while todo or running:
            try:
                while todo and len(running) < at_once:
                    if wanted(todo[0]):
                        running[self._open().submit(_work_in_worker, todo[0])] = todo[0]
                    else:
                        waiting.remove(todo[0])
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
            self._pool = ProcessPoolExecutor(
                self._workers,
                initializer=_start_worker,
                initargs=(file, numerics()),
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


_payload: bytes = b""


def _start_worker(payload: Path, state: Numerics) -> None:
    global _payload  # noqa: PLW0603 - a worker's initialiser has no other place to leave it
    prepare(state)
    _payload = payload.read_bytes()


def _work_in_worker(job: Job) -> Outcome:
    return work(_payload, job, f"process {os.getpid()}")
