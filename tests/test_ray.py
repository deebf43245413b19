"""Trials on Ray: the same numbers as here, and nothing lost with a node."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupts import alive, endless_trial, wait_until
from torch import nn
from torch.optim import Optimizer

from relume.errors import TrialError
from relume.training import Training
from relume.trial import Engine, Progress, cluster, trial
from relume.trial.arms import CONTROL, Job, Outcome
from relume.trial.cluster import Ray, _slots
from relume.trial.engine import opened
from relume.trial.proof import run_trial
from relume.verdicts import Run

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'relume[ray]'")
utils: Any = pytest.importorskip("ray.cluster_utils", reason="this Ray has no local clusters")

# Ray leaves sockets and log files to the collector, and reads a pipe that a killed node has closed.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:Exception ignored:pytest.PytestWarning")


def model() -> nn.Module:
    """A network with dropout whose hidden units start out dead."""
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
    nn.init.constant_(net[0].bias, -30.0)  # type: ignore[arg-type]
    return net


def sgd(parameters: Any) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def make(**changes: Any) -> Training:
    x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    batches = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
    parts: dict[str, Any] = {"model": model, "optimizer": sgd, "loss": nn.functional.cross_entropy, "batches": batches}
    return Training(**{**parts, "steps": 40, **changes})


def revive(model: nn.Module, optimizer: Optimizer, inputs: Any, targets: Any) -> Any:
    nn.init.zeros_(model[0].bias)  # type: ignore[index]
    return model, optimizer, {"0": "bias at zero"}


def die(model: nn.Module, optimizer: Optimizer, inputs: Any, targets: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def plain(run: Run) -> Run:
    """A run without what may differ between two equal runs: the time it took, and where."""
    return dataclasses.replace(run, seconds=0.0, engine="")


@pytest.fixture(scope="module")
def local() -> Iterator[None]:
    """A Ray of two CPUs on this machine, for the tests that need no more."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_ray_gives_the_same_numbers_bit_for_bit(local: None):
    """Runs, verdicts and winner are those of this process, every run is reported, and a Ray in use is left alone."""
    training, arms = make(), {"revive": revive}
    here = run_trial(training, arms, (0, 1, 2), None, "sequential", None)
    events: list[Progress] = []
    there = run_trial(training, arms, (0, 1, 2), None, "ray", events.append)
    assert [[plain(run) for run in arm.runs] for arm in there.arms] == [
        [plain(run) for run in arm.runs] for arm in here.arms
    ]
    assert [arm.verdict for arm in there.arms] == [arm.verdict for arm in here.arms] == [None, "cured"]
    assert there.engine == "Ray, 2 CPUs on 1 node"
    assert [event.done for event in events] == [1, 2, 3, 4, 5, 6]
    assert f"process {os.getpid()}" not in {run.engine.partition(", ")[2] for arm in there.arms for run in arm.runs}
    assert ray.is_initialized()


def test_a_run_that_always_kills_its_worker_is_lost_alone(local: None):
    """After two retries the run is a failure with its reason, and no other run is lost with it."""
    result = run_trial(make(), {"die": die, "revive": revive}, (0, 1), 20, "ray", None)
    assert result.arm("die").failure == "its worker was killed 3 times"
    assert result.arm("revive").verdict == "cured"


def test_jobs_that_are_not_wanted_are_left_out(local: None):
    """A job that is not wanted when its turn comes is not run, and one that waits in Ray is cancelled."""
    done: list[Outcome] = []

    def wanted(job: Job) -> bool:
        return job.seed < 2 or not done

    jobs = [Job(CONTROL, seed) for seed in range(12)]
    with opened(make(), 20, "ray", len(jobs), 1.0) as runner:
        runner.run(jobs, done.append, wanted)
    seeds = [outcome.run.seed for outcome in done]
    assert {0, 1} <= set(seeds)
    assert len(seeds) < 12
    assert not any(outcome.run.lost for outcome in done)


def test_what_ray_cannot_do_is_said(local: None, monkeypatch: pytest.MonkeyPatch):
    """More than any node has, code that a node cannot load, an address where there is none, and no Ray at all."""
    with pytest.raises(TrialError, match=r"one arm asks for 64 CPUs and 0 GPUs; the largest Ray node has 2 CPUs"):
        trial(make(), ["prelu"], seeds=2, engine=Engine(name="ray", cpus_per_arm=64))
    with (
        pytest.raises(TrialError, match=r"could not begin the run of untreated with seed 0(?s:.*)Every node needs"),
        opened(make(), 20, "ray", 2, 1.0) as runner,
    ):
        assert isinstance(runner, Ray)
        runner._payload = ray.put(b"no training")
        runner.run([Job(CONTROL, 0)], print)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(TrialError, match=r"no Ray cluster at 'nonsense://host:1': (?s:.*)ray start --head"):
        trial(make(), ["prelu"], seeds=2, engine=Engine(name="ray", ray_address="nonsense://host:1"))
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(TrialError, match=r"needs Ray, which is not installed.\nRun: pip install 'relume\[ray\]'"):
        trial(make(), ["prelu"], seeds=2, engine="ray")


def test_room_on_nodes_is_counted_node_by_node():
    """A task does not spread over nodes, so what is left on each is lost; GPUs count where they are asked for."""
    nodes = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 5.0}]
    assert _slots(nodes, 1, 0) == 8
    assert _slots(nodes, 2, 0) == 3
    assert _slots(nodes, 1, 0.25) == 3
    assert _slots(nodes, 0, 0.25) == 4
    assert _slots(nodes, 1, 2) == 0


def test_a_trial_outlives_a_node(tmp_path: Path):
    """Of two nodes one is killed while it works: its runs are run again, and the numbers are those of this process."""
    if ray.is_initialized():  # by the tests before
        ray.shutdown()
    mark = tmp_path / "pids"

    def slow(net: nn.Module) -> float:
        with mark.open("a") as file:
            file.write(f"{ray.get_runtime_context().get_node_id()}\n")
        time.sleep(1.0)
        return float(sum(parameter.sum() for parameter in net.parameters()))

    training = make(score=slow, steps=10)
    nodes = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        doomed = nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        killed: list[Any] = []

        def kill(progress: Progress) -> None:
            both = mark.exists() and len(set(mark.read_text().split())) == 2
            if both and not killed:
                killed.append(doomed)
                nodes.remove_node(doomed, allow_graceful=False)

        events: list[Progress] = []
        there = run_trial(
            training, {"revive": revive}, (0, 1, 2, 3), None, "ray", lambda e: (events.append(e), kill(e))[0]
        )
    finally:
        ray.shutdown()
        nodes.shutdown()
    assert killed == [doomed]
    assert len(events) == 8
    assert not any(run.lost for arm in there.arms for run in arm.runs)
    here = run_trial(
        make(score=lambda net: float(sum(p.sum() for p in net.parameters())), steps=10),
        {"revive": revive},
        (0, 1, 2, 3),
        None,
        "sequential",
        None,
    )
    assert [arm.scores for arm in there.arms] == [arm.scores for arm in here.arms]
    assert [arm.verdict for arm in there.arms] == [arm.verdict for arm in here.arms]


def test_an_interrupt_cancels_the_tasks(tmp_path: Path):
    """Ctrl-C in mid-trial raises KeyboardInterrupt and leaves no worker behind."""
    script, mark = endless_trial(tmp_path, "ray")
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert wait_until(lambda: mark.exists() and mark.read_text().endswith("\n"), 240), "no worker has started"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (3, "interrupted\n")
    assert wait_until(lambda: not any(map(alive, map(int, mark.read_text().split()))))
