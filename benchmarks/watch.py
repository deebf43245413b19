"""What `relume.watch` costs a training step, measured as single steps that take turns with those of an unwatched twin.

    python benchmarks/watch.py             # prints a table, writes results/watch.json and results/watch-profile.txt
    python benchmarks/watch.py --quick     # to see that it runs; nothing is written

Three copies of one training take turns in the order A B C C B A: two unwatched, whose ratio is the noise of the
measurement, and one watched. The processor's time of each step is summed up over the run, the start of the watch
included. Such ratios are no finer than a per cent, so a second figure needs no twin: all that is spent within
`watch.step`, and what steps in which something was on took beyond the median of the others, over the time of all.
Of that, `counting` is what an ordinary call takes.
"""

from __future__ import annotations

import cProfile
import io
import json
import pstats
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import about
from relume import watch

RESULTS = Path(__file__).parent / "results" / "watch.json"
PROFILE = RESULTS.with_name("watch-profile.txt")
SEED = 0
SAMPLES = 2048


# What is trained ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One kind of training."""

    name: str
    model: Callable[[], nn.Module]
    inputs: tuple[int, ...]  # of one sample
    batch: int
    classes: int = 10
    optimizer: Callable[[Any], torch.optim.Optimizer] = field(default=lambda p: torch.optim.Adam(p, lr=1e-3))
    steps: int = 2000


def mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


def cnn() -> nn.Module:
    layers: list[nn.Module] = []
    for fan_in, fan_out in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if fan_in > 3 else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Transformer(nn.Module):
    """Two blocks of width 64 on 32 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, activation="gelu", batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def deep() -> nn.Module:
    return mlp(64, *[64] * 49, 10)


WORKS = (
    Work(name="tiny MLP 64-64-64-10, batch 32", model=lambda: mlp(64, 64, 64, 10), inputs=(64,), batch=32),
    Work(
        name="MLP 784-512x4-10, batch 128", model=lambda: mlp(784, *[512] * 4, 10), inputs=(784,), batch=128, steps=1000
    ),
    Work(name="CNN + BatchNorm 3-32-64-64, 32x32, batch 64", model=cnn, inputs=(3, 32, 32), batch=64, steps=300),
    Work(name="2-block GELU transformer, batch 32", model=Transformer, inputs=(32, 64), batch=32, steps=1000),
    Work(name="50-layer MLP, width 64, batch 64", model=deep, inputs=(64,), batch=64, steps=1000),
)


class Run:
    """One copy of a training; the processor's seconds of each step are kept."""

    def __init__(self, work: Work, start: Callable[[nn.Module, Any], Any] | None = None) -> None:
        torch.manual_seed(SEED)
        self.model = work.model()
        self.optimizer = work.optimizer(self.model.parameters())
        rng = torch.Generator().manual_seed(SEED)
        self.x = torch.randn(SAMPLES, *work.inputs, generator=rng)
        self.y = torch.randint(0, work.classes, (SAMPLES,), generator=rng)
        self.order = torch.Generator().manual_seed(SEED)
        self.batch = work.batch
        self.seconds: list[float] = []
        self.own: list[float] = []  # of them, within the tool's own call after the step
        self.armed: list[bool] = []  # something of the tool's is on in this step
        started = time.process_time()
        self.tool = start(self.model, self.optimizer) if start else None
        self.start = time.process_time() - started

    def step(self) -> None:
        chosen = torch.randint(0, len(self.x), (self.batch,), generator=self.order)
        x, y = self.x[chosen], self.y[chosen]
        self.armed.append(getattr(self.tool, "_armed", False))
        started = time.process_time()
        loss = F.cross_entropy(self.model(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        trained = time.process_time()
        if self.tool is not None:
            self.tool.step(loss)
        ended = time.process_time()
        self.seconds.append(ended - started)
        self.own.append(ended - trained)


def measure(work: Work, steps: int, start: Callable[[nn.Module, Any], Any] = watch) -> dict[str, Any]:
    """The figures of one row."""
    warm = Run(work)
    for _ in range(20):
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
        "summed_excess": float(excess / seconds.sum()),
        "counting": float(counting / seconds.sum()),
        "start_ms": 1e3 * runs[2].start,
    }
    if isinstance(runs[2].tool, watch):
        row |= _said(runs[2].tool)
    return row


def _said(tool: watch) -> dict[str, Any]:
    """What the watch read, and what the report costs, which is no step."""
    row: dict[str, Any] = {"readings": len(tool.recording.readings), "sites": len(tool.recording.sites)}
    started = time.process_time()
    coverage = tool.report().coverage
    row |= {"report_ms": 1e3 * (time.process_time() - started), "watched_sites": len(coverage.watched)}
    return row


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
def main(quick: bool, only: str | None, steps: int | None) -> None:
    """Time watched and unwatched steps side by side."""
    torch.set_num_threads(1)
    print(HEAD)
    rows = {}
    for work in WORKS:
        if only is None or only in work.name:
            rows[work.name] = measure(work, 40 if quick else steps or work.steps)
            print(line(work.name, rows[work.name]), flush=True)
    if not quick and only is None:
        command = "./dev bench watch" + (f" --steps {steps}" if steps else "")
        RESULTS.write_text(json.dumps({**about(command), "rows": rows}, indent=1) + "\n")
        PROFILE.write_text("\n".join(profile(work) for work in (WORKS[0], WORKS[-1])))


if __name__ == "__main__":
    main()
