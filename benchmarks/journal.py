"""How large a journal gets in an hour of training, at the default budget.

    ./dev bench journal            # prints a table, writes results/journal.json
    ./dev bench journal --quick    # to see that it runs; nothing is written

Trains each network of `benchmarks/work.py` under a watch that keeps a journal, and tells what of the file is readings
and what losses. How many readings an hour has follows from what they cost and from how many steps were done: the pace
that the watch has learnt in these steps is followed on for ten hours, without the training.
"""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
import torch.nn.functional as F

from benchmarks.machine import about
from benchmarks.work import WORKS, Copy, Work
from relume import watch
from relume.journal import read_journal
from relume.pace import Pace

RESULTS = Path(__file__).parent / "results" / "journal.json"
HOURS = (1, 10)


def measure(work: Work, steps: int) -> dict[str, Any]:
    """The figures of one row: bytes of the file, and what that makes in the first and in the tenth hour."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "run.journal")
        copy = Copy(work)
        started = time.process_time()
        with watch(copy.model, copy.optimizer, journal=path) as watching:
            for _ in range(steps):
                x, y = copy.batch()
                loss = F.cross_entropy(copy.model(x), y)
                copy.optimizer.zero_grad()
                loss.backward()
                copy.optimizer.step()
                watching.step(loss)
            pace, step_seconds = watching._pace, (time.process_time() - started) / steps
        readings = len(read_journal(path).readings)
        of_losses, of_readings = (without(path, table) for table in ("loss", "reading"))
        units = sum(site.units for site in watching.recording.sites)
    row = {
        "steps": steps, "step_ms": 1e3 * step_seconds, "units": units, "readings": readings,
        "bytes_per_unit_and_reading": of_readings / readings / units, "bytes_per_step": of_losses / steps,
    }  # fmt: skip
    per_hour = round(3600 / step_seconds)
    cost, look = (pace.spent - pace._looks) / readings, pace._looks / steps
    done = steps
    for hour in range(1, max(HOURS) + 1):
        found, done = follow(pace, done, hour * per_hour, cost, look)
        if hour in HOURS:
            found += readings if hour == 1 else 0  # those that were measured
            size = found * of_readings / readings + per_hour * of_losses / steps
            row |= {f"readings_in_hour_{hour}": found, f"MB_in_hour_{hour}": size / 1e6}
    return row


def without(path: Path, table: str) -> int:
    """Take a table's rows out of the file; by how many bytes that made it smaller."""
    before = path.stat().st_size
    file = sqlite3.connect(path)
    file.execute(f"DELETE FROM {table}")
    file.commit()
    file.execute("VACUUM")
    file.close()
    return before - path.stat().st_size


def follow(pace: Pace, done: int, until: int, cost: float, look: float) -> tuple[int, int]:
    """Readings from step `done` until that step, and the step of the last; each costs `cost`, looks `look` a step."""
    found = 0
    while (wait := pace.wait(done)) + done <= until:
        pace._looks += look * wait  # not by its `look`, which also learns from a single one what counting takes
        pace.spent += look * wait
        pace.read(pace.usual, cost)
        done += wait
        found += 1
    return found, done


HEAD = f"{'':46}{'step':>9}{'units':>7}{'readings':>10}{'B a unit':>10}{'B a step':>10}" + "".join(
    f"{f'hour {hour}':>10}{'':>10}" for hour in HOURS
)


def line(name: str, row: dict[str, Any]) -> str:
    return (
        f"{name:46}{row['step_ms']:6.2f} ms{row['units']:7d}{row['readings']:10d}"
        f"{row['bytes_per_unit_and_reading']:10.1f}{row['bytes_per_step']:10.1f}"
        + "".join(f"{row[f'readings_in_hour_{hour}']:10d}{row[f'MB_in_hour_{hour}']:7.1f} MB" for hour in HOURS)
    )


@click.command()
@click.option("--quick", is_flag=True, help="A few steps of each, nothing is written.")
def main(quick: bool) -> None:
    """Measure how large a journal gets in an hour."""
    torch.set_num_threads(1)
    print(HEAD)
    rows = {}
    for work in WORKS:
        rows[work.name] = measure(work, 40 if quick else work.steps)
        print(line(work.name, rows[work.name]), flush=True)
    if not quick:
        RESULTS.write_text(json.dumps({**about("./dev bench journal"), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
