"""How long a verdict takes: relume's trial beside the loops that people write, on handwritten digits.

    ./dev bench trial

trains the untreated network and ten remedies over paired seeds, in turns by three means: `user` is a loop with a
DataLoader and torch's default threads, `indexed` the same with one thread and tensors taken by index, `relume` is
`relume.trial`. Each runs in a process of its own; times are wall time, without imports of the main process, and what
the workers import is in them. Then the gains are measured one by one. Prints a table and writes
benchmarks/results/trial.json. The load of the machine before each is kept: on a busy machine `user` collapses, and is
stopped at 30 ms a step; what it would have taken is then told from the share that it did.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

import relume
from benchmarks.machine import about
from relume.demo import digits
from relume.errors import RemedyError
from relume.remedies import find_remedy
from relume.trial import Engine
from relume.trial.arms import EXAMPLES
from relume.trial.proof import FAMILIES, apply_remedy
from relume.verdicts import FIRST_LOOK, judge, settled

RESULTS = Path(__file__).parent / "results" / "trial.json"
BATCH, STEPS, SEEDS = 64, 600, 5
SLOWEST = 0.03  # seconds a step, for a loop of the user's: two threads that share a core can be that slow
WORKS = {"mlp": (0.01, 0.1), "conv": (0.01, 0.1)}  # and their learning rates
(IMAGES, LABELS), (HELD_OUT, TRUTH) = digits()


def mlp(width: int = 128) -> nn.Module:
    parts = [part for i, o in pairwise([64] + 6 * [width]) for part in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*parts, nn.Linear(width, 10))


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "conv": conv}


def accuracy(model: nn.Module) -> float:
    return float((model(HELD_OUT).argmax(1) == TRUTH).float().mean())


def sgd(rate: float, parameters: Any) -> optim.Optimizer:
    return optim.SGD(parameters, lr=rate, momentum=0.9)


def training(work: str, rate: float, steps: int) -> relume.Training:
    """One of the works, as relume takes it."""
    return relume.Training(
        model=NETWORKS[work],
        optimizer=partial(sgd, rate),
        loss=nn.functional.cross_entropy,
        batches=DataLoader(TensorDataset(IMAGES, LABELS), batch_size=BATCH, shuffle=True),
        score=accuracy,
        steps=steps,
    )


# What is timed ------------------------------------------------------------------------------------------------------


def user(work: str, rate: float, seeds: int, steps: int, *, indexed: bool) -> dict[str, Any]:
    """The loop that people write, for every arm and seed: mean scores by arm, and the share of it done in the limit."""
    total, done = steps * seeds * (1 + len(FAMILIES)), 0
    end = time.perf_counter() + SLOWEST * total
    if indexed:
        torch.set_num_threads(1)
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=BATCH, shuffle=True)
    scores: dict[str, list[float]] = {}
    for name in (None, *FAMILIES):
        for seed in range(seeds):
            torch.manual_seed(seed)
            model = NETWORKS[work]()
            optimizer = sgd(rate, model.parameters())
            if name is not None:
                try:
                    examples = [IMAGES[:EXAMPLES]], [LABELS[:EXAMPLES]]
                    model, optimizer, _ = apply_remedy(find_remedy(name), model, optimizer, *examples)
                except RemedyError:
                    continue
            taken = _fit(model, optimizer, loader, steps, indexed, end)
            done += taken
            if taken < steps:
                return {"share_done": done / total}
            model.eval()
            with torch.no_grad():
                scores.setdefault(name or "untreated", []).append(accuracy(model))
    return {"scores": {name: sum(found) / len(found) for name, found in scores.items()}}


def _fit(
    model: nn.Module, optimizer: optim.Optimizer, loader: DataLoader[Any], steps: int, indexed: bool, end: float
) -> int:
    """Train for so many steps, or until the time is up; the steps taken."""
    step, losses = 0, []
    while step < steps:
        rows = torch.randperm(len(IMAGES)).split(BATCH) if indexed else None
        for batch in loader if rows is None else ((IMAGES[index], LABELS[index]) for index in rows):
            loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            step += 1
            if step == steps or time.perf_counter() > end:
                return step
    return step


def ours(work: str, rate: float, seeds: int, steps: int, engine: Engine, early: bool = False) -> dict[str, Any]:
    """The trial; the verdict on each arm."""
    result = relume.trial(training(work, rate, steps), FAMILIES, seeds=seeds, engine=engine, early=early)
    return {
        "verdicts": {arm.name: "not tried" if arm.failure else arm.verdict or "-" for arm in result.arms},
        "runs": sum(len(arm.runs) for arm in result.arms),
        "seconds_per_run": round(sum(run.seconds for run in result.control.runs) / seeds, 3),
    }


def with_loader(*asked: Any) -> dict[str, Any]:
    """The trial in this process, with each batch put together by the DataLoader, sample by sample."""
    with patch("relume.training.stream.in_memory", lambda batches: None):
        return ours(*asked, engine=Engine(name="sequential"))


CANDIDATES: dict[str, Callable[..., dict[str, Any]]] = {
    "user": partial(user, indexed=False),
    "indexed": partial(user, indexed=True),
    "relume": partial(ours, engine=Engine()),
}
GAINS: dict[str, Callable[..., dict[str, Any]]] = {
    "one process, DataLoader": with_loader,
    "one process, in memory": partial(ours, engine=Engine(name="sequential")),
    "1 worker": partial(ours, engine=Engine(name="processes", workers=1)),
    "2 workers": partial(ours, engine=Engine(name="processes", workers=2)),
    "2 workers, early": partial(ours, engine=Engine(name="processes", workers=2), early=True),
}


# Seeds of one arm in one network: measured, and left out of relume ----------------------------------------------------


class Stacked(nn.Module):
    """Linear layers of several networks in one, as one batched product."""

    def __init__(self, networks: int, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(networks, fan_in, fan_out) * (1 / (3 * fan_in)) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(networks, 1, fan_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


def stacking(width: int, networks: int, steps: int = 200) -> float:
    """How many times faster that many networks train as one than one after another, in steps of pure training."""

    def seconds(model: nn.Module, shape: tuple[int, ...]) -> float:
        optimizer = sgd(0.01, model.parameters())
        start = time.perf_counter()
        for _ in range(steps):
            index = torch.randint(0, len(IMAGES), shape)
            output = model(IMAGES[index]).flatten(0, -2)
            each = nn.functional.cross_entropy(output, LABELS[index].flatten(), reduction="none")
            losses = each.view(-1, BATCH).mean(1)
            losses.tolist()
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
        return time.perf_counter() - start

    torch.set_num_threads(1)
    parts = [part for i, o in pairwise([64] + 6 * [width]) for part in (Stacked(networks, i, o), nn.ReLU())]
    stacked = nn.Sequential(*parts, Stacked(networks, width, 10))
    times = [(seconds(mlp(width), (BATCH,)), seconds(stacked, (networks, BATCH))) for _ in range(3)]
    return networks * min(one for one, _ in times) / min(all_ for _, all_ in times)


# Early verdicts -------------------------------------------------------------------------------------------------------


def looks(seeds: int, steps: int, draws: int = 40) -> dict[str, dict[str, float]]:
    """Of trials with that many seeds and fewer: the share of runs that `early` saves, and of verdicts that it changes.

    Seeds are drawn from those of two whole trials, without replacement, `draws` times for each arm.
    """
    trials = [relume.trial(training("mlp", rate, steps), FAMILIES, seeds=seeds) for rate in WORKS["mlp"]]
    generator, found = random.Random(0), {}
    for most in {5, 8, seeds} & set(range(4, seeds + 1)):
        taken, changed, opposite = [], 0, 0
        for trial in trials:
            for arm in (arm for arm in trial.arms[1:] if not arm.failure):
                for _ in range(draws):
                    chosen = generator.sample(range(seeds), most)
                    control, runs = ([side.runs[i] for i in chosen] for side in (trial.control, arm))
                    ends = (k for k in range(FIRST_LOOK, most) if settled(control[:k], runs[:k], most - FIRST_LOOK + 1))
                    taken.append(next(ends, most))
                    early = judge(control[: taken[-1]], runs[: taken[-1]]).verdict
                    whole = judge(control, runs).verdict
                    changed += early != whole
                    opposite += {early, whole} in ({"harmed", "cured"}, {"harmed", "eased"})
        arms = len(FAMILIES)
        saved = 1 - (most + arms * sum(taken) / len(taken)) / (most * (1 + arms))
        found[f"{most} seeds"] = {
            "runs_saved": round(saved, 3), "changed": round(changed / len(taken), 3), "opposite": opposite,
            "verdicts": len(taken),
        }  # fmt: skip
    return found


# The bench ----------------------------------------------------------------------------------------------------------


def timed(table: str, name: str, work: str, rate: float, seeds: int, steps: int) -> dict[str, Any]:
    """One candidate, in a process of its own with torch's default threads."""
    asked = json.dumps([table, name, work, rate, seeds, steps])
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    load = os.getloadavg()[0]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.trial", "--one", asked],
        env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return {"load_before": round(load, 2), **json.loads(done.stdout.splitlines()[-1])}


def one(asked: str) -> None:
    """What `timed` asks of a process."""
    table, name, *rest = json.loads(asked)
    function = {"candidates": CANDIDATES, "gains": GAINS}[table][name]
    threads = torch.get_num_threads()
    start, cpu = time.perf_counter(), os.times()
    found = function(*rest)
    seconds, after = time.perf_counter() - start, os.times()
    used = sum(after[:4]) - sum(cpu[:4])  # of this process and of workers that have ended
    seconds /= found.get("share_done", 1.0)
    print(json.dumps({"seconds": round(seconds, 2), "cpu_seconds": round(used, 2), "threads": threads, **found}))


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--rounds", default=1, show_default=True, help="Repetitions; every other one in reverse order.")
@click.option("--seeds", default=SEEDS, show_default=True)
@click.option("--steps", default=STEPS, show_default=True)
@click.option("--work", "works", multiple=True, type=click.Choice(list(WORKS)), help="This work only.")
@click.option("--gains/--no-gains", default=True, show_default=True, help="Measure each gain by itself.")
@click.option("--early-seeds", default=12, show_default=True, help="Of the trials that early verdicts are tried on.")
@click.option("--quick", is_flag=True, help="Two seeds, 100 steps, the first rate, few gains; nothing is written.")
@click.option("--one", "asked", hidden=True)
def main(
    rounds: int,
    seeds: int,
    steps: int,
    works: tuple[str, ...],
    gains: bool,
    early_seeds: int,
    quick: bool,
    asked: str | None,
) -> None:
    if asked is not None:
        one(asked)
        return
    if quick:
        seeds, steps = 2, 100
    table: dict[str, Any] = {}
    for work in works or WORKS:
        for rate in WORKS[work][: 1 if quick else None]:
            key = f"{work}, rate {rate:g}"
            table[key] = {name: [] for name in CANDIDATES}
            for turn in range(rounds):
                for name in list(CANDIDATES)[:: -1 if turn % 2 else 1]:
                    table[key][name].append(timed("candidates", name, work, rate, seeds, steps))
            _show(key, table[key])
    found: dict[str, Any] = {"works": table}
    if gains:
        found["gains"] = {name: [timed("gains", name, "mlp", 0.01, seeds, steps)] for name in GAINS}
        _show("gains (mlp, rate 0.01)", found["gains"])
        found["stacking"] = {f"{w} wide, {n} seeds": round(stacking(w, n), 2) for w in (32, 128, 256) for n in (3, 5)}
        print("stacked seeds, times faster in pure training steps:", found["stacking"])
    if gains and not quick:
        found["early"] = looks(early_seeds, steps)
        print("early verdicts:", found["early"])
    if not quick:
        where = about(" ".join(["./dev bench trial", *sys.argv[1:]]))
        RESULTS.write_text(
            json.dumps({**where, "load_at_end": os.getloadavg(), "seeds": seeds, "steps": steps, **found}, indent=1)
            + "\n"
        )


def _show(title: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    best = {name: min(row["seconds"] for row in found) for name, found in rows.items()}
    first = best[next(iter(best))]
    print(f"\n{title:30}{'seconds':>10}{'spread':>16}{'times faster':>14}{'load':>7}", flush=True)
    for name, found in rows.items():
        times = [row["seconds"] for row in found]
        spread = f"{min(times):.1f}-{max(times):.1f}"
        print(f"{name:30}{best[name]:10.1f}{spread:>16}{first / best[name]:14.2f}{found[0]['load_before']:7.1f}")


if __name__ == "__main__":
    main()
