"""Other tools, and relume, each as its documentation attaches it to a training; and the process that times one.

`benchmarks/peers.py` starts it, with the Python that has the tool: nothing else may be imported here but torch.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.work import WARM_UP, Copy, Work, named

COPIES = ("plain", "twin", "with_tool")

Step = Callable[[Tensor, Tensor], Any]
Attach = Callable[[Any, torch.optim.Optimizer], Step]  # gives one step of training under the tool


def plain(model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    def step(x: Tensor, y: Tensor) -> None:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def relume(model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    from relume import watch

    watching = watch(model, optimizer)

    def step(x: Tensor, y: Tensor) -> None:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watching.step(loss)

    return step


def torchmortem(model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    """README, "Quick Start"."""
    from torchmortem import Autopsy  # pyright: ignore[reportMissingImports]  # installed where this runs

    autopsy = Autopsy(model, optimizer=optimizer).__enter__()

    def step(x: Tensor, y: Tensor) -> None:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        autopsy.step(loss=loss.item())

    return step


def traintools(model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    """README, "Quick Start", without a validation loss, which would be the user's to pay for."""
    from traintools import BatchInspector, GradientHealthMonitor  # pyright: ignore[reportMissingImports]
    from traintools.callbacks.pytorch import TraintoolsTracker  # pyright: ignore[reportMissingImports]

    tracker = TraintoolsTracker(model, F.cross_entropy)
    batch_inspector = BatchInspector(expected_num_classes=10)
    grad_health = GradientHealthMonitor(max_grad_norm=1.0)
    done = 0

    def step(x: Tensor, y: Tensor) -> None:
        nonlocal done
        batch_inspector.inspect(x, y, step=done)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        grad_health.inspect(model, step=done, lr=optimizer.param_groups[0]["lr"])
        optimizer.step()
        optimizer.zero_grad()
        tracker.step(step=done, inputs=x, targets=y)
        done += 1

    return step


def cockpit(model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    """The basic example of the documentation, without plots, and with the cheapest of the three configurations."""
    from backpack import extend  # pyright: ignore[reportMissingImports]
    from cockpit import Cockpit  # pyright: ignore[reportMissingImports]
    from cockpit.utils.configuration import configuration  # pyright: ignore[reportMissingImports]

    extend(model)
    mean_loss = extend(nn.CrossEntropyLoss())
    each_loss = nn.CrossEntropyLoss(reduction="none")
    tracking = Cockpit(model.parameters(), quantities=configuration("economy"))
    done = 0

    def step(x: Tensor, y: Tensor) -> None:
        nonlocal done
        optimizer.zero_grad()
        outputs = model(x)
        loss = mean_loss(outputs, y)
        losses = each_loss(outputs, y).detach()
        told = {"batch_size": len(x), "individual_losses": losses, "loss": loss, "optimizer": optimizer}
        with tracking(done, info=told):
            loss.backward(create_graph=tracking.create_graph(done))
        optimizer.step()
        done += 1

    return step


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One row of the table, and what pip installs for it."""

    name: str
    attach: Attach
    package: str = ""  # installed without its own requirements, none for what is here already
    wants: tuple[str, ...] = ()  # installed with theirs, before it


TOOLS = (
    Tool(name="relume", attach=relume),
    Tool(name="torchmortem", attach=torchmortem, package="torchmortem==0.1.1", wants=("jinja2", "numpy", "plotly")),
    Tool(name="traintools", attach=traintools, package="traintools==0.6.2", wants=("numpy",)),
    Tool(
        name="cockpit",
        attach=cockpit,
        package="cockpit-for-pytorch==1.0.2",
        # setuptools for its `import pkg_resources`; torchvision is wanted by BackPACK's examples alone
        wants=(
            "backpack-for-pytorch==1.7.1",
            "json-tricks",
            "matplotlib",
            "pandas",
            "scipy",
            "seaborn",
            "setuptools<81",
        ),
    ),
)


# The process ----------------------------------------------------------------------------------------------------------


def serve(tool: Tool, work: Work, asked: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What the tool started with; then, for each number of steps that is asked for, the seconds that they took."""
    copy = Copy(work)
    warm = plain(copy.model, copy.optimizer)
    for _ in range(WARM_UP):
        warm(*copy.batch())
    tool.attach(copy.model, copy.optimizer)  # imports the tool, which is no part of a training
    copies = {name: Copy(work) for name in COPIES}
    steps = {name: plain(copy.model, copy.optimizer) for name, copy in copies.items()}
    started = time.process_time()
    steps["with_tool"] = tool.attach(copies["with_tool"].model, copies["with_tool"].optimizer)
    start = time.process_time() - started
    yield {"version": version(tool.package.partition("==")[0] or tool.name), "start": start}
    order = list(COPIES)
    for line in asked:
        seconds: dict[str, float] = dict.fromkeys(COPIES, 0.0)
        warm(*copy.batch())  # others had the processor: what waking up costs falls on none of the three
        for _ in range(int(line)):
            for name in order:
                x, y = copies[name].batch()
                started = time.process_time()
                steps[name](x, y)
                seconds[name] += time.process_time() - started
            order.reverse()
        order = [*order[1:], order[0]]  # nor is the same one always the first
        yield {"steps": int(line), **seconds}


def main(name: str, work: str) -> None:
    """Serve the tool of that name on the work of that name: numbers come in and answers go out, a line each."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a tool prints must not get among the answers
    torch.set_num_threads(1)
    for answer in serve(next(tool for tool in TOOLS if tool.name == name), named(work), sys.stdin):
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
