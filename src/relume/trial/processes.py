"""Runs in worker processes of this machine."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import warnings
from collections import Counter, deque
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

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
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: `forkable` knows them
                copied = forkable()
                self._pool = ProcessPoolExecutor(
                    self._workers,
                    context=get_context("fork") if copied else None,
                    initializer=_start_worker,
                    initargs=(file, numerics()),
                    env=None if copied else {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                )
                self._pool.submit(os.getpid)  # starts them all
        return self._pool

    def close(self) -> None:
        """End the workers at once, with whatever they run."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, kill_workers=True)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def forkable() -> bool:
    """Whether workers may be copies of this process, which start at once instead of importing torch for seconds.

    A lock that another thread holds at that moment would stay locked in the copy. So there must be no thread of
    Python's, no CUDA, and none but those of two libraries: OpenBLAS ends its own before a fork, and OpenMP's pool is
    not asked for in a copy that computes in one thread, on which torch's DataLoader relies too.
    """
    # Python's threads by themselves: OpenMP may have fewer than it says, and their number must not make up for it.
    if sys.platform != "linux" or torch.cuda.is_initialized() or threading.active_count() > 1:
        return False
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)  # OpenBLAS has no threads now
    torch.ones(2**20).sum()  # and OpenMP has as many as it may
    return len(os.listdir("/proc/self/task")) == torch.get_num_threads()


_payload: bytes = b""


def _start_worker(payload: Path, state: Numerics) -> None:
    global _payload  # noqa: PLW0603 - a worker's initialiser has no other place to leave it
    prepare(state)
    _payload = payload.read_bytes()


def _work_in_worker(job: Job) -> Outcome:
    return work(_payload, job, f"process {os.getpid()}")
