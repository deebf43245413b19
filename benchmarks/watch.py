"""What `relume.watch` costs a training step, measured as single steps that take turns with those of an unwatched twin.

    ./dev bench watch             # prints a table, writes results/watch.json and results/watch-profile.txt
    ./dev bench watch --peers     # then puts other tools beside relume: see benchmarks/peers.py
    ./dev bench watch --quick     # to see that it runs; nothing is written

Three copies of one training take turns in the order A B C C B A: two unwatched, whose ratio is the noise of the
measurement, and one watched. The processor's time of each step is summed up over the run, the start of the watch
included. Such ratios are no finer than a per cent, so a second figure needs no twin: all that is spent within
`watch.step`, and what steps in which something was on took beyond the median of the others, over the time of all.
Of that, `counting` is what an ordinary call takes.

The rows `ddp2` are of two processes that train one network, one thread each; both take the same turns, and the figures
are means of the two. Waiting for one another takes no processor time, so there is a ratio of wall time too.
"""

from __future__ import annotations

import cProfile
import io
import json
import pstats
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from benchmarks import peers as others
from benchmarks.machine import about
from benchmarks.work import WARM_UP, WORKS, Copy, Work, named
from relume import watch

RESULTS = Path(__file__).parent / "results" / "watch.json"
PROFILE = RESULTS.with_name("watch-profile.txt")
RANKED = WORKS[:2]  # also measured on two processes

Start = Callable[[nn.Module, Any], Any]


class Run(Copy):
    """One copy of a training, of a process or of several; the processor's seconds of each step are kept."""

    def __init__(self, work: Work, start: Start | None = None) -> None:
        super().__init__(work)
        if dist.is_initialized():
            self.model = DistributedDataParallel(self.model)
        self.seconds: list[float] = []
        self.wall = 0.0
        self.own: list[float] = []  # of them, within the tool's own call after the step
        self.armed: list[bool] = []  # something of the tool's is on in this step
        started = time.process_time()
        self.tool = start(self.model, self.optimizer) if start else None
        self.start = time.process_time() - started

    def step(self) -> None:
        x, y = self.batch()
        self.armed.append(getattr(self.tool, "_armed", False))
        on_the_wall, started = time.perf_counter(), time.process_time()
        loss = F.cross_entropy(self.model(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        trained = time.process_time()
        if self.tool is not None:
            self.tool.step(loss)
        ended = time.process_time()
        self.wall += time.perf_counter() - on_the_wall
        self.seconds.append(ended - started)
        self.own.append(ended - trained)


def measure(work: Work, steps: int, start: Start = watch) -> dict[str, Any]:
    """The figures of one row."""
    warm = Run(work)
    for _ in range(WARM_UP):
        warm.step()
    runs = [Run(work), Run(work), Run(work, start)]
    for step in range(steps):
        for run in runs if step % 2 == 0 else reversed(runs):
            run.step()
    plain, twin, watched = (sum(run.seconds) + run.start for run in runs)
    seconds, own, armed = (np.array(part) for part in (runs[2].seconds, runs[2].own, runs[2].armed))
    clock = np.array(runs[0].own)  # what it takes to read the clock
    trained = seconds - own
    within = trained[armed].sum() - armed.sum() * np.median(trained[~armed]) if armed.any() else 0.0
    excess = own.sum() - clock.sum() + within + runs[2].start
    counting = steps * max(0.0, float(np.median(own) - np.median(clock)))
    row = {
        "steps": steps,
        "step_ms": 1e3 * plain / steps,
        "watched_over_unwatched": 2 * watched / (plain + twin),
        "unwatched_over_unwatched": twin / plain,
        "wall_over_unwatched": 2 * runs[2].wall / (runs[0].wall + runs[1].wall),
        "summed_excess": float(excess / seconds.sum()),
        "counting": float(counting / seconds.sum()),
        "start_ms": 1e3 * runs[2].start,
    }
    if isinstance(runs[2].tool, watch):
        row |= _said(runs[2].tool)
    return row


def _said(tool: watch) -> dict[str, Any]:
    """What the watch read, and what the report costs, which is no step."""
    found = tool.recording
    in_run = [reading for reading in found.readings if reading.step < found.steps]  # and not those that close it
    row: dict[str, Any] = {"readings": len(in_run), "sites": len(found.sites)}
    started = time.process_time()
    coverage = tool.report().coverage
    row |= {"report_ms": 1e3 * (time.process_time() - started), "watched_sites": len(coverage.watched)}
    return row


def measure_ranks(work: Work, steps: int, ranks: int = 2) -> dict[str, Any]:
    """The figures of one row where that many processes train together: means over them."""
    with TemporaryDirectory() as folder:
        spawn(_rank, args=(ranks, folder, work.name, steps), nprocs=ranks)
        rows = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(ranks)]
    return {key: value if isinstance(value, int) else mean(row[key] for row in rows) for key, value in rows[0].items()}


def _rank(rank: int, ranks: int, folder: str, name: str, steps: int) -> None:
    """One of the processes."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    Path(folder, f"{rank}.json").write_text(json.dumps(measure(named(name), steps)))
    dist.barrier()  # none goes while another still talks to it
    dist.destroy_process_group()


def profile(work: Work, steps: int = 500) -> str:
    """Where the time goes within the watch: calls of relume's functions, the dearest first."""
    run = Run(work, watch)
    profiler = cProfile.Profile()
    profiler.runcall(lambda: [run.step() for _ in range(steps)])
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("cumtime").print_stats(
        r"(watch|recorder|probe|standstill|sites|pace|alarms)\.py"
    )
    return f"{work.name}, {steps} steps\n{text.getvalue()}"


HEAD = f"{'':46}{'step':>9}{'watched':>10}{'noise':>8}{'excess':>9}{'counting':>10}{'readings':>10}{'report':>10}"


def line(name: str, row: dict[str, Any]) -> str:
    return (
        f"{name:46}{row['step_ms']:6.2f} ms{row['watched_over_unwatched']:10.4f}"
        f"{abs(row['unwatched_over_unwatched'] - 1):8.4f}{row['summed_excess']:9.4f}{row['counting']:10.4f}"
        f"{row.get('readings', 0):10d}{row.get('report_ms', 0.0):7.0f} ms"
    )


@click.command()
@click.option("--quick", is_flag=True, help="A few steps of each, nothing is written.")
@click.option("--only", help="Rows whose name contains this; nothing is written.")
@click.option("--steps", type=int, help="Of each row, instead of its own number.")
@click.option("--peers", is_flag=True, help="Then the same of other tools, beside relume.")
def main(quick: bool, only: str | None, steps: int | None, peers: bool) -> None:
    """Time watched and unwatched steps side by side."""
    torch.set_num_threads(1)
    asked = 40 if quick else steps
    measured = [(work.name, measure, work) for work in WORKS]
    measured += [(f"ddp2: {work.name}", measure_ranks, work) for work in RANKED]
    print(HEAD)
    rows = {}
    for name, function, work in measured:
        if only is None or only in name:
            rows[name] = function(work, asked or work.steps)
            print(line(name, rows[name]), flush=True)
    keeps = not quick and only is None
    head = about("./dev bench watch" + (" --peers" if peers else "") + (f" --steps {steps}" if steps else ""))
    if keeps:
        past = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        kept = {"peers": past["peers"]} if "peers" in past else {}  # a run without them leaves them as they were
        _keep({**head, "rows": rows, **kept})
        PROFILE.write_text("\n".join(profile(work) for work in (WORKS[0], WORKS[-1])))
    if peers:
        compared = others.compare([work for work in others.COMPARED if only is None or only in work.name], asked)
        if keeps:
            _keep({**head, "rows": rows, "peers": {**head, **compared}})


def _keep(found: dict[str, Any]) -> None:
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
