"""Runs on many machines, as Ray tasks."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from relume.errors import TrialError
from relume.trial.arms import Job, Outcome
from relume.trial.work import RETRIES, Note, Numerics, Wanted, always, killed, numerics, prepare, work

QUEUED = 2  # tasks that Ray has, for each that runs: no worker waits for this process, and autoscalers see a demand


class Ray:
    """Runs jobs as Ray tasks, each on so many CPUs and GPUs; the training is put into the object store once.

    Without an address Ray is started on this machine, with so many CPUs as `workers`; a Ray that this process is
    connected to already is used as it is. Raises TrialError when Ray is missing, does not answer, or has no room for
    one task.
    """

    def __init__(
        self, payload: bytes, *, address: str | None, workers: int, cpus_per_arm: float, gpus_per_arm: float
    ) -> None:
        if find_spec("ray") is None:
            raise TrialError("engine='ray' needs Ray, which is not installed.\nRun: pip install 'relume[ray]'.")
        import ray

        self._ray = ray
        self._owned = not ray.is_initialized()
        if self._owned:
            _connect(address, workers)
        self._running: dict[Any, Job] = {}
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self._slots = _slots(nodes, cpus_per_arm, gpus_per_arm)
            if not self._slots and address is None:
                cpus, gpus = (max(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
                raise TrialError(
                    f"one arm asks for {cpus_per_arm:g} CPUs and {gpus_per_arm:g} GPUs; the largest Ray node has "
                    f"{cpus:g} CPUs and {gpus:g} GPUs.\nAsk for less with cpus_per_arm and gpus_per_arm."
                )
            self._payload = ray.put(payload)
        except BaseException:
            self.close()
            raise
        task = ray.remote(num_cpus=cpus_per_arm, num_gpus=gpus_per_arm, max_retries=RETRIES)
        self._task: Any = task(_work_on_node)
        self._state = numerics(), list(sys.path)
        total = sum(node.get("CPU", 0) for node in nodes)
        self.name = f"Ray, {total:g} CPUs on {len(nodes)} node{'s' * (len(nodes) != 1)}"

    def run(self, jobs: Sequence[Job], note: Note, wanted: Wanted = always) -> None:
        """Run the jobs and hand each outcome on as it comes; a job that is not wanted at its turn is left out.

        A run whose worker or node is killed is run again elsewhere, twice at most.
        """
        import cloudpickle

        ray, todo = self._ray, deque(jobs)
        while todo or self._running:
            while todo and len(self._running) < max(1, QUEUED * self._slots):
                job = todo.popleft()
                if wanted(job):
                    # As bytes of our own pickler: Ray's does not know which modules must be sent by value.
                    self._running[self._task.remote(self._payload, cloudpickle.dumps(job), self._state)] = job
            if not self._running:
                break
            done, _ = ray.wait(list(self._running), num_returns=1)
            for task in done:
                job = self._running.pop(task)
                note(self._outcome(task, job))
            for task in [task for task, job in self._running.items() if not wanted(job)]:
                del self._running[task]
                ray.cancel(task, force=True)

    def _outcome(self, task: Any, job: Job) -> Outcome:
        from ray.exceptions import RayError, RayTaskError

        try:
            return self._ray.get(task)
        except RayTaskError as error:
            raise TrialError(
                f"a Ray worker could not begin the run of {job.arm} with seed {job.seed}:\n{error}\n"
                "Every node needs relume and what the training imports, in the same versions."
            ) from None
        except RayError:  # the worker or its node died, or its memory ran out
            return killed(job, self.name)

    def close(self) -> None:
        """Cancel what runs, and end Ray where it was started here."""
        running, self._running = list(self._running), {}
        for task in running:
            self._ray.cancel(task, force=True)
        if self._owned:
            self._ray.shutdown()


def _connect(address: str | None, workers: int) -> None:
    import ray

    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        ray.init(address="local", num_cpus=workers, include_dashboard=False, **quiet)
        return
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise TrialError(
            f"no Ray cluster at {address!r}: {error}\n"
            "Start one with `ray start --head`, and pass its address: ray://HOST:10001 from outside, 'auto' on a node."
        ) from None


def _slots(nodes: Sequence[dict[str, float]], cpus: float, gpus: float) -> int:
    """How many tasks fit at once."""
    asked = {"CPU": cpus, "GPU": gpus}
    return sum(
        int(min((node.get(kind, 0) // amount for kind, amount in asked.items() if amount), default=0)) for node in nodes
    )


def _work_on_node(payload: bytes, job: bytes, state: tuple[Numerics, list[str]]) -> Outcome:
    import cloudpickle
    from ray.util import get_node_ip_address

    prepare(state[0])
    sys.path += [path for path in state[1] if path not in sys.path]  # what a node shares with the driver, it finds
    return work(payload, cloudpickle.loads(job), f"node {get_node_ip_address()}, process {os.getpid()}")
