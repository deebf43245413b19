"""Experiments on what functions cost: side by side, interleaved, in one thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn

from relume.activations import activation
from relume.claims.judging import answer, below, dots, fact, judge, median_interval, said
from relume.claims.lab import Lab
from relume.claims.networks import function
from relume.claims.record import Finding
from relume.randomness import isolated_rng, one_thread
from relume.verdicts import Difference

# Numbers that a function is applied to: 256 kB of float32, which a core's own cache holds (128 samples of 512 units),
# and 4 MB, which it does not, so that all functions wait for memory.
SIZES = {"in cache": 2**16, "in memory": 2**20}
ROUNDS, QUICK_ROUNDS = 60, 15
WIDTH, BATCH = 256, 128  # of the network whose step is timed: three hidden layers
FAST = 1.5  # times a plain copy: such a function waits for memory, as the copy does
MATTERS = 1.05  # a difference in cost below 5 % is no reason to choose


def relu_cheap(lab: Lab, name: str = "relu") -> Finding:
    """Whether it is linear for x > 0, and its time beside that of a plain copy."""
    x = np.geomspace(1e-6, 1e6, 200)
    slopes = activation(name).slope(x)
    linear = bool(np.all(slopes == slopes[0]))
    shown = dict.fromkeys((name, "relu", "sigmoid", "tanh", "gelu"))
    costs = {
        f"{each} {place}": elementwise(lab, each, "", place, backward=False) for each in shown for place in SIZES
    }  # fmt: skip
    own = {place: costs[f"{name} {place}"] for place in SIZES}
    verdict, on = judge(
        {"linear for x > 0": fact(linear), **{f"fast {place}": below(cost, FAST) for place, cost in own.items()}}
    )
    first = next(iter(own.values()))
    said_costs = " and ".join(f"{said(cost)} times {place}" for place, cost in own.items())
    return Finding(
        verdict=verdict,
        because=f"For x > 0 its slope is {'constant' if linear else 'not constant'}. Forward it takes as long as a "
        f"plain copy {said_costs} (fast: below {FAST:g}).",
        measured=f"time of {name} over a plain copy, forward, {next(iter(own))}",
        number=first.mean, low=first.low, high=first.high, unit="times", seeds=rounds(lab), depends_on=on,
        figure=dots("Time of a function, forward", "times a plain copy", costs, mark=1, mark_name="copy"),
    )  # fmt: skip


def relu_cheaper_than_sigmoid(lab: Lab, name: str = "relu", rivals: tuple[str, ...] = ("sigmoid",)) -> Finding:
    """Times of both functions, alone and inside a training step."""
    return _costs_more(lab, rivals, (name,), f"{' and '.join(rivals)} over {name}")


def tanh_costlier(lab: Lab, name: str = "tanh", rivals: tuple[str, ...] = ("relu", "sigmoid")) -> Finding:
    """Times of the function and its rivals, alone and inside a training step."""
    return _costs_more(lab, (name,), rivals, f"{name} over {' and '.join(rivals)}")


def _costs_more(lab: Lab, dear: tuple[str, ...], cheap: tuple[str, ...], what: str) -> Finding:
    found = {}
    for a in dear:
        for b in cheap:
            for place in SIZES:
                found[f"{a} / {b} alone {place}"] = elementwise(lab, a, b, place)
            found[f"{a} / {b} in a training step"] = in_network(lab, a, b)
    verdict, on = judge({key: answer(value, MATTERS) for key, value in found.items()})
    first = next(iter(found.values()))
    return Finding(
        verdict=verdict,
        because="Ratios of time, forward and backward: "
        + "; ".join(f"{key} {said(value)}" for key, value in found.items())
        + f". The step is one of a network of 3 x {WIDTH} units with batches of {BATCH}; other sizes and machines "
        "differ.",
        measured=f"ratio of time, {next(iter(found))}, forward and backward",
        number=first.mean, low=first.low, high=first.high, unit="times", seeds=rounds(lab), depends_on=on,
        figure=dots(f"Time: {what}", "ratio of time", found, mark=1, mark_name="same", log=True),
    )  # fmt: skip


def elementwise(lab: Lab, a: str, b: str, place: str, backward: bool = True) -> Difference:
    """Time of function `a` over that of `b` (empty: a plain copy) on normal numbers that lie in that place."""
    x = torch.randn(SIZES[place], generator=torch.Generator().manual_seed(0), requires_grad=backward)
    ones = torch.ones_like(x)

    def run(call: Callable[[torch.Tensor], torch.Tensor]) -> None:
        y = call(x)
        if backward:
            torch.autograd.grad(y, x, ones)

    calls = [function(name) if name else torch.clone for name in (a, b)]
    return _ratio(lab, partial(run, calls[0]), partial(run, calls[1]))


def in_network(lab: Lab, a: str, b: str) -> Difference:
    """Time of a training step of the same network, with function `a` over that with `b`."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, WIDTH, generator=generator)
    target = torch.randint(10, (BATCH,), generator=generator)

    def step(name: str) -> Callable[[], None]:
        with isolated_rng():
            torch.manual_seed(0)
            hidden = [part for _ in range(3) for part in (nn.Linear(WIDTH, WIDTH), function(name))]
            model = nn.Sequential(*hidden, nn.Linear(WIDTH, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

        def run() -> None:
            for _ in range(3):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), target).backward()
                optimizer.step()

        return run

    return _ratio(lab, step(a), step(b))


def _ratio(lab: Lab, a: Callable[[], None], b: Callable[[], None]) -> Difference:
    """The median over rounds of time a / time b, each round in the order a b b a, so that a drift cancels."""
    ratios = []
    with one_thread():
        for _ in range(3):
            a()
            b()
        for _ in range(rounds(lab)):
            times = []
            for call in (a, b, b, a):
                started = time.thread_time()  # of this thread alone: what else runs on the machine is not counted
                call()
                times.append(time.thread_time() - started)
            ratios.append((times[0] + times[3]) / (times[1] + times[2]))
    return median_interval(ratios)


def rounds(lab: Lab) -> int:
    """How often both sides are timed."""
    return QUICK_ROUNDS if lab.setting.quick else ROUNDS
