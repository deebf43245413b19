"""What other tools cost a training step, beside relume in the same run, each in an environment of its own.

    ./dev bench watch --peers

Each peer gets a virtual environment in the user's cache, with the torch that is used here: what it wants is installed
first, then the peer itself without its own requirements, so that no pin of its moves torch. A peer that cannot be
installed, or does not run, is left out with the reason.

A process of each tool holds three copies of one training, two plain and one under the tool, as its documentation writes
it and at its defaults. Within a process they take turns step by step, A B C C B A, as in `benchmarks/watch.py`. The
processes take turns every few steps, so that the machine's load falls on all; one whose tool takes more than a minute
for a network does fewer. What is timed is the processor's time, with the tool's start and without its import.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch

from benchmarks.tools import COPIES, TOOLS, Tool
from benchmarks.work import WORKS, Work

ROOT = Path(__file__).parents[1]
COMPARED = WORKS[:3]
TURN = 20  # steps of each copy before the next process has its turn
LONGEST = 60.0  # seconds that steps under a tool may take for one network; then its figures are of fewer steps


class Skipped(Exception):
    """Why a tool is not in the table."""


# A tool's environment ------------------------------------------------------------------------------------------------


def cache() -> Path:
    """Where environments are kept from one run to the next."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "relume" / "peers"


def environment(tool: Tool, folder: Path) -> Path:
    """The Python that has the tool; its environment is made where there is none in `folder`, or another.

    Raises Skipped when pip cannot install it.
    """
    if not tool.package:
        return Path(sys.executable)
    torch_here = f"torch=={torch.__version__.partition('+')[0]}"
    place = folder / tool.name
    python, stamp = place / "bin" / "python", place / "made-of"
    made_of = "\n".join((sys.version, torch_here, *tool.wants, tool.package))
    if stamp.exists() and stamp.read_text() == made_of:
        return python
    print(f"Installing {tool.package} in {place}", file=sys.stderr)
    pip = (str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet")
    for command in (
        (sys.executable, "-m", "venv", "--clear", str(place)),
        (*pip, torch_here, *tool.wants),
        (*pip, "--no-deps", tool.package),
    ):
        done = subprocess.run(command, capture_output=True, text=True, env=_variables(own=False), check=False)
        if done.returncode:
            raise Skipped(f"{tool.package} cannot be installed: {_reason(done.stderr or done.stdout)}")
    stamp.write_text(made_of)
    return python


def _variables(*, own: bool) -> dict[str, str]:
    """The variables of a process: without the modules of this one, unless it is relume's own."""
    path = [str(ROOT), *(os.environ.get("PYTHONPATH", "").split(os.pathsep) if own else ())]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "OMP_NUM_THREADS": "1"}


def _reason(text: str) -> str:
    """The last line of what was printed that speaks of an error, or the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "error" in line.casefold()), lines[-1] if lines else "it ended")


# A tool's process ----------------------------------------------------------------------------------------------------


class Side:
    """A process of one tool, from here. Raises Skipped when it ends before it is told to, with the reason."""

    def __init__(self, tool: Tool, python: Path, work: Work, folder: Path) -> None:
        self._name = tool.name
        self._log = folder / f"{tool.name}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, "-m", "benchmarks.tools", tool.name, work.name],
                env=_variables(own=not tool.package), cwd=folder,  # what some write, they write there
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        self.start = self._answer()
        self.turns: list[dict[str, Any]] = []

    def take(self, steps: int) -> None:
        """Have it take so many steps of each copy."""
        with suppress(BrokenPipeError):  # it has ended, and does not answer
            print(steps, file=self._process.stdin, flush=True)
        self.turns.append(self._answer())

    @property
    def seconds(self) -> float:
        """Of the processor, in the steps under the tool so far."""
        return sum(turn["with_tool"] for turn in self.turns)

    def close(self) -> None:
        self._process.communicate()  # no more steps are asked for, so that it ends

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            self.close()
            raise Skipped(f"{self._name} does not run: {_reason(self._log.read_text())}")
        return json.loads(answer)


# The table ------------------------------------------------------------------------------------------------------------

HEAD = ("network", "steps", "a step", "tool", "times a step", "quartiles", "noise", "start")


def compare(works: Sequence[Work], steps: int | None = None, tools: Sequence[Tool] = TOOLS) -> dict[str, Any]:
    """What was installed; for each work and tool its figures, or why it was skipped. Prints the guide's table."""
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    pythons: dict[str, Path] = {}
    uninstalled: dict[str, Any] = {}
    for tool in tools:
        try:
            pythons[tool.name] = environment(tool, folder)
        except Skipped as reason:
            uninstalled[tool.name] = {"skipped": str(reason)}
    print("", "| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|", sep="\n")
    rows = {}
    for work in works:
        ready = [tool for tool in tools if tool.name in pythons]
        rows[work.name] = uninstalled | _turns(ready, pythons, work, steps or work.steps, folder)
        for tool in tools:
            print(line(work.name, tool.name, rows[work.name][tool.name]), flush=True)
    return {"installed": {t.name: [t.package, *t.wants] for t in tools if t.package}, "rows": rows}


def _turns(tools: Sequence[Tool], pythons: dict[str, Path], work: Work, steps: int, folder: Path) -> dict[str, Any]:
    """The processes of all tools take turns until each has done that many steps, failed, or taken too long."""
    sides: dict[str, Side] = {}
    rows: dict[str, Any] = {}
    try:
        for tool in tools:
            try:
                sides[tool.name] = Side(tool, pythons[tool.name], work, folder)
            except Skipped as reason:
                rows[tool.name] = {"skipped": str(reason)}
        for turn, done in enumerate(range(0, steps, TURN)):
            for name in list(sides)[:: -1 if turn % 2 else 1]:
                if sides[name].seconds > LONGEST:
                    continue
                try:
                    sides[name].take(min(TURN, steps - done))
                except Skipped as reason:
                    rows[name] = {"skipped": str(reason)}
                    del sides[name]
    finally:
        for side in sides.values():
            side.close()
    return rows | {name: figures(side.start, side.turns) for name, side in sides.items()}


def figures(start: dict[str, Any], turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A row out of a process's answers."""
    steps, plain, twin, with_tool = (sum(turn[name] for turn in turns) for name in ("steps", *COPIES))
    ratios = [2 * turn["with_tool"] / (turn["plain"] + turn["twin"]) for turn in turns]
    return {
        "version": start["version"],
        "steps": steps,
        "step_ms": 1e3 * plain / steps,
        "with_over_without": 2 * (with_tool + start["start"]) / (plain + twin),
        "quartiles_of_turns": quantiles(ratios) if len(ratios) > 1 else 3 * ratios,
        "without_over_without": twin / plain,
        "start_ms": 1e3 * start["start"],
    }


def line(work: str, tool: str, row: dict[str, Any]) -> str:
    if "skipped" in row:
        return f"| {work} | | | {tool} | skipped: {row['skipped']} | | | |"
    lower, _, upper = row["quartiles_of_turns"]
    return (
        f"| {work} | {row['steps']} | {row['step_ms']:.3g} ms | {tool} {row['version']} "
        f"| {row['with_over_without']:.3f} | {lower:.2f} to {upper:.2f} | {abs(row['without_over_without'] - 1):.3f} "
        f"| {row['start_ms']:.0f} ms |"
    )
