"""`python -m benchmarks.illness`: the confusion tables, and the figures behind them in `benchmarks/results/`."""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import click
import torch
from loky import get_reusable_executor

from benchmarks.illness import healing
from benchmarks.illness.examine import examine, examine_trap
from benchmarks.illness.tables import told
from benchmarks.illness.traps import TRAPS

RESULTS = Path(__file__).parents[1] / "results"
HALVES = {"tune": 0, "report": 1}  # by the seed's last bit: what is tuned on is never reported on


@click.command()
@click.option("--half", type=click.Choice(list(HALVES)), default="report", show_default=True)
@click.option("--cases", "count", default=160, show_default=True, help="Runs drawn, half of them planted.")
@click.option("--traps", default=2, show_default=True, help="Seeds of each healthy trap.")
@click.option(
    "--first", default=0, show_default=True, help="Runs passed over: those already looked at measure nothing."
)
@click.option("--only", default="", help="Traps of these names alone, with commas; no drawn runs, no file.")
@click.option("--workers", default=2, show_default=True)
@click.option("--heal", is_flag=True, help="Heal the planted runs instead, those that are ill and of --longest steps.")
@click.option("--longest", default=1000, show_default=True, help="Steps of the longest run that is healed.")
def main(half: str, count: int, traps: int, first: int, only: str, workers: int, heal: bool, longest: int) -> None:
    """Draw runs, train them, ask relume, and count."""
    if heal:
        _heal([2 * i + HALVES[half] for i in range(first, first + count // 2)], half, longest)
        return
    seeds = [] if only else [2 * i + HALVES[half] for i in range(first, first + count // 2)]
    names = [trap.name for trap in TRAPS if not only or trap.name in only.split(",")]
    if only and not names:
        raise click.BadParameter(f"no trap of that name; there are {', '.join(trap.name for trap in TRAPS)}")
    with get_reusable_executor(max_workers=workers) as pool:
        jobs = [pool.submit(examine, seed, planted) for seed in seeds for planted in (False, True)]
        jobs += [
            pool.submit(examine_trap, name, 2 * i + HALVES[half]) for name in names for i in range(first, first + traps)
        ]
        results: list[dict[str, Any]] = []
        for job in jobs:
            results.append(job.result())
            print(f"\r{len(results)} of {len(jobs)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    found, trapped = [r for r in results if "spec" in r], [r for r in results if "trap" in r]
    print(told(found, trapped))
    if not only:
        _keep(half, found, trapped)


def _heal(seeds: list[int], half: str, longest: int) -> None:
    """One run after the other: healing has workers of its own."""
    results: list[dict[str, Any]] = []
    for seed in seeds:
        result = healing.healed(seed, longest)
        if result is not None:
            results.append(result)
            click.echo("{seed} {planted}: {outcome} by {remedy}, {seconds} s".format(**result), err=True)
    print(healing.told(results))
    _write(f"healing-{half}.json", {"cases": results})


def _keep(half: str, found: list[dict[str, Any]], trapped: list[dict[str, Any]]) -> None:
    _write(f"illness-{half}.json", {"cases": found, "traps": trapped})


def _write(name: str, tables: dict[str, list[dict[str, Any]]]) -> None:
    RESULTS.mkdir(exist_ok=True)
    head = {
        "command": " ".join(["python -m benchmarks.illness", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {platform.system()}",
        "torch": torch.__version__,
    }
    # one run a line: the file is read by people, who compare it with the one before
    rows = {table: ",\n".join(map(json.dumps, table_rows)) for table, table_rows in tables.items()}
    body = ",\n".join(f'"{table}": [\n{lines}\n]' for table, lines in rows.items())
    path = RESULTS / name
    path.write_text(f"{json.dumps(head, indent=1)[:-2]},\n{body}\n}}\n")
    print(f"Figures: {path.relative_to(Path.cwd())}", file=sys.stderr)


if __name__ == "__main__":
    main()
