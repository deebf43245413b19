"""How long a forecast takes, and how far it is from a backward pass of the same network on the same inputs.

    python benchmarks/forecast.py

prints a table and writes benchmarks/results/forecast.json. "Off" is the largest relative error over all layers of the
rms gradient relative to the last layer, over eight random gradients at the output; "one" is that of the first of the
eight alone, and "a layer" that of the factor from one layer to the next.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

import relume
from relume.demo import digits

SAMPLES, INPUTS, OUTPUTS = 128, 64, 10
GRADIENTS = range(2, 10)  # seeds; sizes under one gradient are up to 8 % from those over sixteen


class Residual(nn.Module):
    """Two convolutions beside a skip, an activation after the sum."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), norm(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1), norm(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.branch(x))


def mlp(act: Callable[[], nn.Module], depth: int, width: int, norm: Callable[[int], nn.Module] | None = None):
    parts: list[nn.Module] = []
    fan_in = INPUTS
    for _ in range(depth):
        parts += [nn.Linear(fan_in, width), *([norm(width)] if norm else []), act()]
        fan_in = width
    return nn.Sequential(nn.Flatten(), *parts, nn.Linear(width, OUTPUTS))


def convolutions(*between: nn.Module, norm: Callable[[int], nn.Module] | None = None, act: Callable = nn.ReLU):
    parts: list[nn.Module] = []
    fan_in = 1
    for _ in range(6):
        parts += [nn.Conv2d(fan_in, 32, 3, padding=1), *([norm(32)] if norm else []), act()]
        fan_in = 32
    return nn.Sequential(*parts, *between, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, OUTPUTS))


def residual(norm: Callable[[int], nn.Module]) -> nn.Module:
    blocks = [Residual(32, norm) for _ in range(5)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, OUTPUTS))
    return nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), *blocks, *head)


def initialised(model: nn.Module, how: str) -> nn.Module:
    for part in model.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)) and how != "default":
            nn.init.kaiming_normal_(part.weight) if how == "he" else nn.init.xavier_normal_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return model


def cases() -> Iterator[tuple[str, nn.Module]]:
    for how in ("default", "he", "xavier"):
        for act, depth, width in (
            (nn.ReLU, 5, 64), (nn.ReLU, 20, 128), (nn.ReLU, 50, 256), (nn.LeakyReLU, 50, 256), (nn.Tanh, 20, 256),
            (nn.Tanh, 50, 256), (nn.Sigmoid, 30, 256), (nn.GELU, 20, 256), (nn.ELU, 20, 512), (nn.SELU, 30, 256),
        ):  # fmt: skip
            yield f"{act.__name__} {depth} x {width}, {how}", initialised(mlp(act, depth, width), how)
    for how in ("default", "he"):
        for name, model in (
            ("BatchNorm MLP 10 x 64", mlp(nn.ReLU, 10, 64, nn.BatchNorm1d)),
            ("LayerNorm MLP 10 x 64", mlp(nn.GELU, 10, 64, nn.LayerNorm)),
            ("6 convolutions", convolutions()),
            ("6 convolutions, tanh", convolutions(act=nn.Tanh)),
            ("6 convolutions, max-pool", convolutions(nn.MaxPool2d(2))),
            ("6 convolutions, BatchNorm", convolutions(norm=nn.BatchNorm2d)),
            ("6 convolutions, GroupNorm", convolutions(norm=lambda c: nn.GroupNorm(4, c), act=nn.GELU)),
            ("5 residual blocks", residual(lambda _: nn.Identity())),
            ("5 residual blocks, BatchNorm", residual(nn.BatchNorm2d)),
        ):
            yield f"{name}, {how}", initialised(model, how)


def measured(model: nn.Module, x: Tensor, seeds: range) -> list[float]:
    """The rms gradient at the output of each layer over that at the last, for random gradients at the output."""
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        outputs.append(output)

    hooks = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    y = model(x)
    for hook in hooks:
        hook.remove()
    squares = torch.zeros(len(outputs), dtype=y.dtype)
    for seed in seeds:
        sent = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=y.dtype)
        squares += torch.stack([g.square().mean() for g in torch.autograd.grad(y, outputs, sent, retain_graph=True)])
    return (squares / squares[-1]).sqrt().tolist()


def main() -> None:
    rows = []
    noise = torch.randn(SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    for data, x in (("noise", noise), ("digits", digits()[0][0][:SAMPLES].reshape(-1, 1, 8, 8).double())):
        torch.manual_seed(0)
        for name, model in cases():
            model.double()
            foreseen = [layer.gradient or 0.0 for layer in relume.forecast(model, x).layers]
            seen = measured(model, x, GRADIENTS)
            off, off_one = (
                max(abs(a / b - 1) for a, b in zip(foreseen, sizes, strict=True))
                for sizes in (seen, measured(model, x, GRADIENTS[:1]))
            )
            pairs = zip(pairwise(foreseen), pairwise(seen), strict=True)
            a_layer = max(abs((a / b) / (c / d) - 1) for (a, b), (c, d) in pairs)
            rows.append(
                {"network": name, "inputs": data, "off": off, "off_one": off_one, "a_layer": a_layer, "first": seen[0]}
            )
            print(
                f"{name:42s} {data:7s} off {100 * off:5.1f} %   one {100 * off_one:5.1f} %   "
                f"a layer {100 * a_layer:5.1f} %   first {seen[0]:.2e}"
            )
    deep = mlp(nn.ReLU, 99, 256)
    x = noise.float()
    relume.forecast(deep, x)
    started = time.process_time()
    for _ in range(3):
        relume.forecast(deep, x)
    seconds = (time.process_time() - started) / 3
    within = sum(row["off"] <= 0.1 for row in rows)
    print(f"100 layers of 256: {seconds:.2f} s of processor time in {torch.get_num_threads()} thread(s)")
    one = sum(row["off_one"] <= 0.1 for row in rows)
    print(f"{within} of {len(rows)} within 10 % at every layer; {one} of one gradient alone")
    result = {
        "seconds_100_layers": seconds,
        "within_10_percent": within,
        "within_10_percent_of_one": one,
        "of": len(rows),
        "rows": rows,
    }
    path = Path(__file__).parent / "results" / "forecast.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
