"""How many steps pass from the death of a layer's last unit to the alarm of `relume.watch`, and how often it is wrong.

    python benchmarks/detect.py            # prints a table, writes results/detect.json
    python benchmarks/detect.py --quick    # one seed of each, nothing is written

Each case is a training that is killed in one way at a step drawn from its seed, or never. After each step the whole
data set is sent through the network: a layer is dead at the first step after which no unit of it fires on any sample,
to the end of the run. An alarm for a layer that fires again, or in a run in which none died, is false.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from benchmarks.machine import about
from relume import watch

RESULTS = Path(__file__).parent / "results" / "detect.json"
SAMPLES, FEATURES, CLASSES, WIDTH, STEPS = 2048, 16, 4, 64, 500
AFTER = 120  # steps that a run goes on after a death
ALLOWED = 60  # steps from death to alarm

Model = Any  # nn.Sequential, whose parts torch's annotations do not know
Optimizers = dict[str, Callable[[Iterable[Any], float], optim.Optimizer]]
OPTIMIZERS: Optimizers = {
    "Adam": lambda p, rate: optim.Adam(p, lr=rate),
    "AdamW": lambda p, rate: optim.AdamW(p, lr=rate),
    "SGD": lambda p, rate: optim.SGD(p, lr=30 * rate),
    "SGD, momentum, decay": lambda p, rate: optim.SGD(p, lr=10 * rate, momentum=0.9, weight_decay=5e-4),
    "RMSprop": lambda p, rate: optim.RMSprop(p, lr=rate),
    "Adagrad": lambda p, rate: optim.Adagrad(p, lr=10 * rate),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One training: how it is killed, by which optimizer it is trained, from which seed."""

    way: str
    optimizer: str
    seed: int
    batch: int = 32


def cases(seeds: int) -> list[Case]:
    """Every way with every optimizer where it applies; healthy runs, sparse and plain, in several batch sizes."""
    found = [Case(way="rate .1", optimizer="Adam", seed=s, batch=b) for s in range(3 * seeds) for b in (32, 128)]
    for way in ("spike", "bias", "inputs"):
        found += [Case(way=way, optimizer=o, seed=s) for o in OPTIMIZERS for s in range(seeds)]
    found += [Case(way="bias", optimizer="Adam", seed=s, batch=4) for s in range(seeds)]
    for way in ("none", "none, 2 % sparse"):
        for batch in (1, 8, 32, 256):
            found += [Case(way=way, optimizer=o, seed=s, batch=batch) for o in OPTIMIZERS for s in range(seeds)]
    return found


def network(seed: int, way: str) -> Model:
    torch.manual_seed(seed)
    if way == "rate .1":  # a wide layer seldom dies as a whole
        widths = [FEATURES, 8, 8, 8, 8, 8]
        return nn.Sequential(
            *[part for i, o in pairwise(widths) for part in (nn.Linear(i, o), nn.ReLU())], nn.Linear(8, CLASSES)
        )
    return nn.Sequential(
        nn.Linear(FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)
    )


def make_sparse(model: Model, x: Tensor) -> None:
    """Give each hidden unit the bias with which it fires on 2 % of the samples."""
    with torch.no_grad():
        for at in (0, 2):
            model[at].bias -= model[: at + 1](x).quantile(0.98, dim=0)


def dead_layers(model: Model, x: Tensor) -> set[str]:
    found = set()
    with torch.no_grad():
        for name, part in model.named_children():
            x = part(x)
            if isinstance(part, nn.ReLU) and not bool((x > 0).any()):
                found.add(name)
    return found


def follow(case: Case) -> dict[str, Any]:
    """Train under a watch; steps at which layers died, and at which that was told."""
    random = torch.Generator().manual_seed(case.seed)
    x = torch.randn(SAMPLES, FEATURES, generator=random)
    y = x[:, :CLASSES].argmax(1)
    model = network(case.seed, case.way)
    if "sparse" in case.way:
        make_sparse(model, x)
    rate = 0.1 if case.way == "rate .1" else 1e-3
    optimizer = OPTIMIZERS[case.optimizer](model.parameters(), rate)
    at = int(torch.randint(60, STEPS - AFTER, (), generator=random))
    dead: dict[str, int] = {}
    with watch(model, optimizer) as watching:
        for step in range(STEPS):
            if step == at:
                x = _harm(case.way, model, x)
            chosen = torch.randint(0, SAMPLES, (case.batch,), generator=random)
            loss = F.cross_entropy(model(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watching.step(loss)
            now = dead_layers(model, x)
            dead = {name: dead.get(name, step + 1) for name in now}  # what fires again did not die
            if dead and step + 1 >= max(dead.values()) + AFTER:
                break
    told = {alarm.site: alarm.step for alarm in watching.alarms if alarm.kind == "dead"}
    last = max((name for name in dead), key=int, default=None)  # those before it get no gradient because of it
    return {
        "died": dead[last] if last is not None else None,
        "told": told.get(last) if last is not None else None,
        "false": sorted(set(told) - set(dead)),
        "readings": len(watching._recorder.readings),
    }


def _harm(way: str, model: Model, x: Tensor) -> Tensor:
    with torch.no_grad():
        if way == "spike":  # what one step with a gradient far too large leaves behind
            model[2].weight.sub_(30 * model[2].weight.abs())
        elif way == "bias":
            model[2].bias.sub_(50.0)
        elif way == "inputs":  # a sensor that goes astray, and a network that had learnt to stay shut for it
            x = x.clone()
            x[:, 0] = 1e4
            model[0].weight[:, 0] = -model[0].weight[:, 0].abs() - 0.01
    return x


def summed(found: list[tuple[Case, dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each way and optimizer."""
    rows = []
    for key in dict.fromkeys((case.way, case.optimizer, case.batch) for case, _ in found):
        outcomes = [outcome for case, outcome in found if (case.way, case.optimizer, case.batch) == key]
        delays = [o["told"] - o["died"] for o in outcomes if o["died"] is not None and o["told"] is not None]
        rows.append({
            "way": key[0], "optimizer": key[1], "batch": key[2], "runs": len(outcomes),
            "died": sum(o["died"] is not None for o in outcomes), "told": len(delays),
            "within_60": sum(d <= ALLOWED for d in delays),
            "median_delay": float(np.median(delays)) if delays else None,
            "longest_delay": max(delays, default=None), "false": sum(bool(o["false"]) for o in outcomes),
        })  # fmt: skip
    return rows


@click.command()
@click.option("--seeds", default=4, show_default=True)
@click.option("--quick", is_flag=True, help="One seed of each; nothing is written.")
def main(seeds: int, quick: bool) -> None:
    """Kill layers, and count the steps until it is told."""
    torch.set_num_threads(1)
    found = [(case, follow(case)) for case in cases(1 if quick else seeds)]
    rows = summed(found)
    print(f"{'killed by':20}{'optimizer':22}{'batch':>6}{'runs':>6}{'died':>6}{'told':>6}{'within 60':>11}{'median':>8}"
          f"{'longest':>9}{'false':>7}")  # fmt: skip
    for row in rows:
        middle, longest = ("-" if row[key] is None else round(row[key]) for key in ("median_delay", "longest_delay"))
        print(f"{row['way']:20}{row['optimizer']:22}{row['batch']:6}{row['runs']:6}{row['died']:6}{row['told']:6}"
              f"{row['within_60']:11}{middle:>8}{longest:>9}{row['false']:7}")  # fmt: skip
    totals = {key: sum(row[key] for row in rows) for key in ("runs", "died", "told", "within_60", "false")}
    print(totals)
    if not quick:
        head = about(f"./dev bench detect --seeds {seeds}")
        RESULTS.write_text(json.dumps({**head, "totals": totals, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
