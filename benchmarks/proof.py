"""How far proofs of dead units reach, and whether units that are proven ever fire on data that was held out.

    python benchmarks/proof.py

ruins networks on the handwritten digits and on clouds of points, every other one gravely, asks `relume.proof` about
every unit that is silent on the training data, and counts those that fire on held-out data, by the margin of the proof.
It prints a table and writes benchmarks/results/proof.json.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from relume.demo import digits
from relume.proof import prove

BANDS = (0.0, 0.02, 0.05, 0.1, float("inf"))  # of the margin, as a share of the inputs' radius
WIDTH, STEPS, BATCH = 128, 300, 64

Data = tuple[Tensor, Tensor, Tensor]  # images and labels to train on, images held out


def handwritten(seed: int) -> Data:
    (x, y), (held_out, _) = digits()
    return x, y, held_out


def blobs(seed: int) -> Data:
    """Ten clouds in 20 dimensions; as many points held out as trained on."""
    random = torch.Generator().manual_seed(seed)
    centres = 3.0 * torch.randn(10, 20, generator=random)
    labels = torch.randint(10, (2000,), generator=random)
    points = centres[labels] + torch.randn(2000, 20, generator=random)
    return points[:1000], labels[:1000], points[1000:]


def network(inputs: int) -> nn.Sequential:
    sizes = [inputs, WIDTH, WIDTH, WIDTH]
    parts = [part for i, o in pairwise(sizes) for part in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*parts, nn.Linear(WIDTH, 10))


def train(model: nn.Module, x: Tensor, y: Tensor, learning_rate: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for _ in range(STEPS):
        at = torch.randint(len(x), (BATCH,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[at]), y[at]).backward()
        optimizer.step()


def by_bias(model: nn.Sequential, data: Data, grave: bool) -> Data:
    """Biases 2 or 10 times what a unit receives below zero, in a third of the units of each layer; then training."""
    for layer in list(model)[:-1]:
        if isinstance(layer, nn.Linear):
            with torch.no_grad():
                usual = float(data[0].norm(dim=1).mean()) / layer.in_features**0.5
                layer.bias[: WIDTH // 3] -= (10.0 if grave else 2.0) * usual
    train(model, *data[:2], learning_rate=0.001)
    return data


def by_learning_rate(model: nn.Sequential, data: Data, grave: bool) -> Data:
    """Training at 30 or 300 times what Adam wants."""
    train(model, *data[:2], learning_rate=0.3 if grave else 0.03)
    return data


def by_input_scale(model: nn.Sequential, data: Data, grave: bool) -> Data:
    """Inputs 100 or 1000 times too large, and training at ten times what Adam wants."""
    scale = 1000.0 if grave else 100.0
    scaled = data[0] * scale, data[1], data[2] * scale
    train(model, *scaled[:2], learning_rate=0.01)
    return scaled


CAUSES: dict[str, Callable[[nn.Sequential, Data, bool], Data]] = {
    "bias": by_bias,
    "learning rate": by_learning_rate,
    "input scale": by_input_scale,
}
DATA: dict[str, Callable[[int], Data]] = {"digits": handwritten, "blobs": blobs}


def fired(model: nn.Sequential, x: Tensor, site: str, units: tuple[int, ...]) -> Tensor:
    with torch.no_grad():
        return (model[: int(site)](x)[:, list(units)] > 0).any(0)


def inside_box(model: nn.Sequential, x: Tensor, held_out: Tensor, site: str) -> Tensor:
    """Held-out samples of which every number that the layer reads is in the range of the training data."""
    with torch.no_grad():
        seen, new = (model[: int(site) - 1](data) for data in (x, held_out))
    return ((new >= seen.amin(0)) & (new <= seen.amax(0))).all(1)


def units_of(cause: str, data: str, seed: int) -> Iterator[dict[str, Any]]:
    """Each dead unit: its margin, whether it is proven on the box, and whether it fires on held-out data."""
    torch.manual_seed(seed)
    drawn = DATA[data](seed)
    model = network(drawn[0].shape[1])
    x, _, held_out = CAUSES[cause](model, drawn, seed % 2 == 1)
    model.eval()
    for proof in prove(model, [x]):
        after = fired(model, held_out, proof.site, proof.units)
        within = inside_box(model, x, held_out, proof.site)
        in_box = fired(model, held_out[within], proof.site, proof.units)
        columns = zip(proof.hull, proof.margin, proof.box, after, in_box, strict=True)
        for hull, margin, box, fires, fires_in_box in columns:
            yield {
                "hull": bool(hull), "margin": float(margin), "box": bool(box), "fires": bool(fires),
                "fires_in_box": bool(fires_in_box),
            }  # fmt: skip


def counted(units: list[dict[str, Any]]) -> dict[str, Any]:
    """Dead units, those proven, and those of each band of margin that fire."""
    proven = [u for u in units if u["hull"]]
    boxed = [u for u in units if u["box"]]
    bands = []
    for low, high in pairwise(BANDS):
        inside = [u for u in proven if low <= u["margin"] < high]
        bands.append({"from": low, "units": len(inside), "fire": sum(u["fires"] for u in inside)})
    return {
        "dead": len(units),
        "hull": len(proven),
        "box": len(boxed),
        "fire": sum(u["fires"] for u in units),
        "box_fire": sum(u["fires"] for u in boxed),
        "box_fire_inside": sum(u["fires_in_box"] for u in boxed),
        "bands": bands,
    }


def row(name: str, found: dict[str, Any]) -> str:
    bands = "".join(f"{b['fire']:5d} of {b['units']:5d}" for b in found["bands"])
    shares = "".join(f"{100 * found[key] / max(1, found['dead']):6.1f} %" for key in ("hull", "box"))
    return f"{name:15s}{found['dead']:7d}{shares}{bands}{found['box_fire']:5d} of {found['box']:5d}"


@click.command()
@click.option("--seeds", default=6, show_default=True, help="Networks of each cause on each data set.")
def main(seeds: int) -> None:
    """Ruin networks, prove their dead units closed, and see which fire on held-out data."""
    every: dict[str, list[dict[str, Any]]] = {}
    for cause in CAUSES:
        for data in DATA:
            for seed in range(seeds):
                every.setdefault(cause, []).extend(units_of(cause, data, seed))
    results = {cause: counted(units) for cause, units in every.items()}
    results["all"] = counted([u for units in every.values() for u in units])
    heads = "".join(f"{f'from {100 * low:.0f} %':>14s}" for low in BANDS[:-1])
    print(f"{'killed by':15s}{'dead':>7s}{'hull':>8s}{'box':>8s}{heads}{'on the box':>14s}   fire on held-out data")
    for cause, found in results.items():
        print(row(cause, found))
    head = {
        "command": f"python benchmarks/proof.py --seeds {seeds}",
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {platform.system()}",
        "networks": seeds * len(CAUSES) * len(DATA),
    }
    path = Path(__file__).parent / "results" / "proof.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**head, "killed_by": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
