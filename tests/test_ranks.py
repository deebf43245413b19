"""Several processes train one network under DDP: one report, and dead is what is dead on all of them."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from relume.watch import watch

STEPS, WIDTH = 150, 32
ON_ALL, ON_FIRST = range(8), range(8, 16)  # units that never fire on any rank, and on the last only


def train(rank: int, ranks: int, folder: str, watched: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{watched}", rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    first = nn.Linear(9, WIDTH)
    with torch.no_grad():
        first.bias[list(ON_ALL)] = -50.0
        first.bias[list(ON_FIRST)] = -50.0
        first.weight[:, 8] = 0.0
        first.weight[list(ON_FIRST), 8] = 100.0  # opens where the last feature is one: on the last rank
    model = DistributedDataParallel(nn.Sequential(first, nn.ReLU(), nn.Linear(WIDTH, 2)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    random = torch.Generator().manual_seed(rank)
    watching = watch(model, optimizer, budget=0.05 * (1 + rank)) if watched else None  # they would choose differently
    for _ in range(STEPS):
        x = torch.randn(32, 9, generator=random)
        y = (x[:, 0] > 0).long()
        x[:, 8] = float(rank == ranks - 1)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if watching is not None:
            watching.step(loss)
    found: dict[str, Any] = {"weights": [p.tolist() for p in model.parameters()]}
    if watching is not None:
        watching.__exit__(None, None, None)
        report = watching.report()
        found["note"] = report.recording.note
        found["dead"] = [list(s.units) for s in report.symptoms if s.kind == "dead"]
        found["steps"] = [r.step for r in report.recording.readings]
        found["samples"] = [r.sites["module.1"].samples for r in report.recording.readings]
    Path(folder, f"{watched}{rank}.json").write_text(json.dumps(found))
    dist.barrier()  # none goes while another still talks to it
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 4])
def test_dead_is_what_is_dead_on_every_rank(ranks: int, tmp_path: Path) -> None:
    """All ranks name the same units, read the same steps and end with the weights of an unwatched run."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    for watched in (False, True):
        spawn(train, args=(ranks, str(tmp_path), watched), nprocs=ranks)
    plain = json.loads((tmp_path / "False0.json").read_text())
    found = [json.loads((tmp_path / f"True{rank}.json").read_text()) for rank in range(ranks)]
    for one in found:
        assert not one["note"]
        assert one["dead"] == [list(ON_ALL)]
        assert one["steps"] == found[0]["steps"] and one["samples"][0] == 32 * ranks
        assert one["weights"] == plain["weights"]


def ask_one(rank: int, ranks: int, folder: str) -> None:
    """A network that biases hold shut; only the first rank asks what is wrong."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(9), nn.Linear(9, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))
    nn.init.constant_(net[1].bias, -50.0)  # pyright: ignore[reportArgumentType] - a Linear's
    model = DistributedDataParallel(net)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    random = torch.Generator().manual_seed(rank)
    with watch(model, optimizer, loss=F.cross_entropy) as watching:
        for _ in range(STEPS):
            x = torch.randn(32, 9, generator=random)
            loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watching.step(loss)
    if rank == 0:
        Path(folder, "report.json").write_text(json.dumps(watching.report().to_json()))
    dist.barrier()
    dist.destroy_process_group()


def test_one_rank_may_ask_alone(tmp_path: Path) -> None:
    """The report of one rank replays the causes without waiting for the others, who are elsewhere."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    spawn(ask_one, args=(2, str(tmp_path)), nprocs=2)
    first = json.loads((tmp_path / "report.json").read_text())["diagnoses"][0]
    assert first["cause"] == "bias" and any("Replayed for" in said for said in first["because"])
