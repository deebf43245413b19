"""Times every function of the catalogue, forward and forward with backward, beside a plain copy and beside eager torch.

    python benchmarks/catalogue.py                  # 1e6 elements: prints a table, writes results/catalogue.json
    python benchmarks/catalogue.py --elements 16e6  # larger than the cache
    python benchmarks/catalogue.py --costs          # also writes the costs that relume ships
    python benchmarks/catalogue.py --keep-memory    # freed memory stays with the process

One thread, processor time. All candidates for a row take turns, each as often first, so that what else the machine does
falls on all of them, and so does the memory that the one before has left; a number is the median of the rounds, and its
spread the quartiles. Memory is as a program finds it: glibc gives large tensors back when they are freed, and new pages
cost whoever makes many of them. With --keep-memory nobody pays for pages, and only arithmetic is compared.

`module` is what `relume.nn.module` builds, `kept` relume's own version where torch has one too, `eager` the function as
people compose it from torch's operators.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relume.activations import Activation, activations
from relume.nn import module, resolve
from relume.nn.flaws import saved_bytes

RESULTS = Path(__file__).parent / "results" / "catalogue.json"
WIDTH = 1000
# With these glibc keeps what is freed.
KEEPS_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**30)}
Function = Callable[[Tensor], Tensor]


def _halves(gate: Function) -> Function:
    def gated(x: Tensor) -> Tensor:
        value, other = x.chunk(2, dim=-1)
        return value * gate(other)

    return gated


# The functions that torch does not have, composed the way people write them, of the input and the row's parameters.
EAGER: dict[str, Callable[..., Tensor]] = {
    "scaled_tanh": lambda x: 1.7159 * torch.tanh(2 / 3 * x),
    "penalized_tanh": lambda x, slope: torch.where(x > 0, torch.tanh(x), slope * torch.tanh(x)),
    "soft_clipping": lambda x, alpha: (F.softplus(alpha * x) - F.softplus(alpha * (x - 1))) / alpha,
    "elliott": lambda x: 0.5 * x / (1 + x.abs()) + 0.5,
    "arctan": torch.atan,
    "isru": lambda x, alpha: x / torch.sqrt(1 + alpha * x**2),
    "sqnl": lambda x: x.clamp(-2, 2) - x.clamp(-2, 2) * x.clamp(-2, 2).abs() / 4,
    "gaussian": lambda x: torch.exp(-(x**2)),
    "sine": lambda x, omega: torch.sin(omega * x),
    "dsilu": lambda x: torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x))),
    "tailored_relu": lambda x, negative_slope: math.sqrt(2 / (1 + negative_slope**2)) * F.leaky_relu(x, negative_slope),
    "shifted_relu": lambda x: torch.clamp(x, min=-1),
    "srelu": lambda x, t_left, a_left, t_right, a_right: torch.where(
        x > t_right, t_right + a_right * (x - t_right), torch.where(x > t_left, x, t_left + a_left * (x - t_left))
    ),
    "plu": lambda x, alpha, c: torch.maximum(alpha * (x + c) - c, torch.minimum(alpha * (x - c) + c, x)),
    "relu_squared": lambda x: torch.square(F.relu(x)),
    "star_relu": lambda x, scale, bias: scale * F.relu(x) ** 2 + bias,
    "smelu": lambda x, beta: torch.where(x.abs() < beta, (x + beta) ** 2 / (4 * beta), F.relu(x)),
    "nlrelu": lambda x, beta: torch.log(1 + beta * F.relu(x)),
    "pelu": lambda x, a, b: torch.where(x >= 0, a / b * x, a * (torch.exp(x / b) - 1)),
    "isrlu": lambda x, alpha: torch.where(x >= 0, x, x / torch.sqrt(1 + alpha * x**2)),
    "shifted_softplus": lambda x: F.softplus(x) - math.log(2),
    "squareplus": lambda x, b: 0.5 * (x + torch.sqrt(x**2 + b)),
    "bent_identity": lambda x: (torch.sqrt(x**2 + 1) - 1) / 2 + x,
    "exp": torch.exp,
    "symlog": lambda x: torch.sign(x) * torch.log1p(x.abs()),
    "snake": lambda x, a: x + torch.sin(a * x) ** 2 / a,
    "swish": lambda x, beta: x * torch.sigmoid(beta * x),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "flatten_t_swish": lambda x, threshold: torch.where(x >= 0, x * torch.sigmoid(x) + threshold, threshold),
    "aptx": lambda x, alpha, beta, gamma: (alpha + torch.tanh(beta * x)) * gamma * x,
    "logish": lambda x: x * torch.log(1 + torch.sigmoid(x)),
    "smish": lambda x: x * torch.tanh(torch.log(1 + torch.sigmoid(x))),
    "elish": lambda x: torch.where(x >= 0, x, torch.exp(x) - 1) * torch.sigmoid(x),
    "hard_elish": lambda x: torch.where(x >= 0, x, torch.exp(x) - 1) * torch.clamp((x + 1) / 2, 0, 1),
    "serf": lambda x: x * torch.erf(F.softplus(x)),
    "telu": lambda x: x * torch.tanh(torch.exp(x)),
    "phish": lambda x: x * torch.tanh(F.gelu(x)),
    "lisht": lambda x: x * torch.tanh(x),
    "bilinear_glu": _halves(lambda b: b),
    "reglu": _halves(F.relu),
    "geglu": _halves(F.gelu),
    "swiglu": _halves(F.silu),
    "maxout": lambda x: torch.maximum(*x.chunk(2, dim=-1)),
    "crelu": lambda x: torch.cat([F.relu(x), F.relu(-x)], dim=-1),
}


class Eager(nn.Module):
    """A composition with the row's parameters, learnt where relume's module learns them."""

    def __init__(self, row: Activation) -> None:
        super().__init__()
        self.composed = EAGER[row.name]
        learnt = {name for name, p in row.parameters.items() if p.init_argument}
        self.learnt = nn.ParameterDict({k: torch.tensor([v]) for k, v in row.arguments().items() if k in learnt})
        self.numbers = {k: v for k, v in row.arguments().items() if k not in learnt}

    def forward(self, x: Tensor) -> Tensor:
        return self.composed(x, **self.learnt, **self.numbers)


def candidates() -> dict[str, dict[str, Function]]:
    """Row -> what is timed for it."""
    found: dict[str, dict[str, Function]] = {}
    for row in activations():
        found[row.name] = {"copy": torch.clone, "module": module(row).eval()}
        if row.kept:
            found[row.name]["kept"] = resolve(row.kept)()
        if row.name in EAGER:
            found[row.name]["eager"] = Eager(row)
    return found


def _forward(function: Function, x: Tensor) -> float:
    with torch.no_grad():
        start = time.thread_time()
        function(x)
        return time.thread_time() - start


def _both(function: Function, x: Tensor) -> float:
    wanted = [x, *(function.parameters() if isinstance(function, nn.Module) else [])]
    start = time.thread_time()
    y = function(x)
    torch.autograd.grad(y, wanted, torch.ones_like(y))
    return time.thread_time() - start


def measure(functions: dict[str, Function], elements: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Candidate -> milliseconds: lower quartile, median and upper quartile, for `forward` and `both`."""
    x = torch.randn(elements // WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
    leaf = x.clone().requires_grad_()
    times: dict[str, dict[str, list[float]]] = {name: {"forward": [], "both": []} for name in functions}
    names = list(functions)
    first = 2 if elements < 1e7 else 1  # what fills caches and pools of memory; so large tensors are in neither
    for turn in range(first + rounds):
        for name in (
            names[turn % len(names) :] + names[: turn % len(names)]
        ):  # nobody always finds the memory of another
            times[name]["forward"].append(_forward(functions[name], x))
            times[name]["both"].append(_both(functions[name], leaf))
    return {
        name: {
            part: np.quantile(np.array(taken[first:]) * 1e3, [0.25, 0.5, 0.75]).round(4).tolist()
            for part, taken in parts.items()
        }
        for name, parts in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--elements", type=float, default=1e6)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", help="rows to time; nothing is written then")
    parser.add_argument("--keep-memory", action="store_true", help="leave out what new pages of memory cost")
    parser.add_argument("--costs", action="store_true", help="write the costs that the package ships")
    chosen = parser.parse_args()
    if chosen.keep_memory and "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEPS_MEMORY})
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    print(f"{'':24}{'over a copy: forward, both':>34}{'over eager: forward, both':>30}")
    for name, functions in candidates().items():
        if chosen.only and name not in chosen.only:
            continue
        rows[name] = measure(functions, int(chosen.elements), chosen.rounds)
        middle = {which: {part: t[1] for part, t in parts.items()} for which, parts in rows[name].items()}
        for which in functions:
            if which == "copy":
                continue
            line = f"{name:20}{which:8}"
            line += "".join(f"{middle[which][part] / middle['copy']['forward']:13.2f}" for part in ("forward", "both"))
            if "eager" in middle and which != "eager":
                line += "    " + "".join(
                    f"{middle[which][part] / middle['eager'][part]:13.2f}" for part in ("forward", "both")
                )
            print(line, flush=True)
    if chosen.only:
        return
    about = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {_processor()}, one thread",
        "torch": torch.__version__,
        "command": " ".join(["python", "benchmarks/catalogue.py", *sys.argv[1:]]),
        "elements": int(chosen.elements),
    }
    key = f"{chosen.elements:.2g}{' keep-memory' if chosen.keep_memory else ''}"
    past = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**past, key: {**about, "milliseconds": rows}}, indent=1) + "\n")
    if chosen.costs:
        write_costs(about, rows)


def write_costs(about: dict[str, Any], rows: dict[str, Any]) -> None:
    """What the package ships: times over that of a plain copy, and what backward keeps."""
    shipped = {}
    for name, found in rows.items():
        copy = found["copy"]["forward"][1]
        shipped[name] = {part: round(found["module"][part][1] / copy, 2) for part in ("forward", "both")}
        shipped[name]["bytes"] = saved_bytes(module(name))
        if "kept" in found:
            shipped[name]["kept"] = round(found["kept"]["both"][1] / copy, 2)
    where = Path(str(files("relume").joinpath("data/costs.json")))
    where.write_text(json.dumps({**about, "rows": shipped}, indent=1) + "\n", encoding="utf-8")


def _processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    main()
