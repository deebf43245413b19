"""A trial that is interrupted: a script for another process, whose runs never end, and what became of its workers."""

import os
import time
from pathlib import Path
from typing import Any

INTERRUPTED = """
import sys, time, torch
from torch import nn
from relume.training import Training
from relume.trial.proof import run_trial

def slow(model):
    import os  # here, as the function travels to workers alone
    with open(MARK, "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(600)
    return 0.0

training = Training(
    model=lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)),
    optimizer=torch.optim.SGD, loss=nn.functional.mse_loss,
    batches=[(torch.ones(8, 2), torch.ones(8, 1))], score=slow,
)
try:
    run_trial(training, {}, (0, 1), 5, ENGINE, None)
except KeyboardInterrupt:
    print("interrupted")
    sys.exit(3)
"""


def endless_trial(folder: Path, engine: str) -> tuple[Path, Path]:
    """A script that runs such a trial, and the file in which each worker leaves its number."""
    script, mark = folder / "script.py", folder / "pids"
    script.write_text(INTERRUPTED.replace("MARK", repr(str(mark))).replace("ENGINE", repr(engine)))
    return script, mark


def wait_until(holds: Any, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.05)
    return False


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
