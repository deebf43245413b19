"""Worker processes: copies of this one or fresh interpreters, with the same numbers."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from test_trial import overshoot, revive
from torch import nn
from torch.optim import Optimizer

from relume.training import Training
from relume.trial import processes
from relume.trial.proof import run_trial
from relume.verdicts import Run


class Net(nn.Sequential):
    """A network with dropout whose hidden units start out dead."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
        nn.init.constant_(self[0].bias, -30.0)  # type: ignore[arg-type]


def sgd(parameters: Any) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def make() -> Training:
    x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    batches = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
    return Training(model=Net, optimizer=sgd, loss=nn.functional.cross_entropy, batches=batches, steps=60)


def all_runs(training: Training, treatments: dict[str, Any], engine: str) -> list[Run]:
    """Every run, without what may differ between two equal ones: the time it took, and where."""
    result = run_trial(training, treatments, (0, 1), 40, engine, None)
    runs = [run for arm in sorted(result.arms, key=lambda arm: arm.name) for run in arm.runs]
    return [dataclasses.replace(run, seconds=0.0, engine="") for run in runs]


def run_python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints; other tests may have left threads in this one."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process is copied")
@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_process_is_copied_only_while_no_strange_thread_runs(threads: str):
    """The pools of torch and NumPy do not stand in the way; a thread of Python's or of any other library does."""
    out = run_python(
        """
        import ctypes, threading
        import numpy, scipy.linalg, torch
        from relume.trial.processes import forkable

        numpy.linalg.inv(numpy.eye(300))
        scipy.linalg.inv(numpy.eye(300))
        print(forkable())
        event = threading.Event()
        thread = threading.Thread(target=event.wait)
        thread.start()
        print(forkable())
        event.set()
        thread.join()
        print(forkable())
        libc, handle = ctypes.CDLL(None), ctypes.c_ulong()
        libc.pthread_create(ctypes.byref(handle), None, ctypes.cast(libc.pause, ctypes.c_void_p), None)
        print(forkable())
        """,
        OMP_NUM_THREADS=threads,
        OPENBLAS_NUM_THREADS="2",
    )
    assert out.split() == ["True", "False", "True", "False"]


def test_workers_of_either_kind_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch):
    """Copies of this process and fresh interpreters agree bit for bit, also after this one has used many threads."""
    training, treatments = make(), {"revive": revive, "overshoot": overshoot}
    torch.ones(2**20).exp().sum()
    here = all_runs(training, treatments, "sequential")
    for copied in (True, False):
        monkeypatch.setattr(processes, "forkable", lambda copied=copied: copied)
        assert str(all_runs(training, treatments, "processes")) == str(here)
