"""Snapshots: taken within a budget, frozen before an event, and what replays begin from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_symptoms import batches, mlp

import relume
from relume import snapshots
from relume.snapshots import EVERY, LATEST, Snapshots
from relume.training import Training


def taken(losses: list[float]) -> Snapshots:
    model: Any = mlp()()
    found = Snapshots(model, torch.optim.Adam(model.parameters()), lambda: None)
    for step, loss in enumerate(losses, 1):
        with torch.no_grad():
            model[0].bias.fill_(float(step))
        found.look(step, loss)
    return found


def test_the_latest_are_kept_and_are_of_their_step() -> None:
    """Three of the last steps while nothing happens; each is the network of its own step, a fresh copy each time."""
    found = taken([1.0] * 400)
    assert list(found.taken) == [300, 350, 400]
    model: Any
    for step, snapshot in found.taken.items():
        model, _ = snapshot.again()
        assert float(model[0].bias[0].detach()) == step
    first, second = found.taken[300].again()[0], found.taken[300].again()[0]
    assert next(first.parameters()) is not next(second.parameters())


def test_the_last_good_one_is_frozen_when_the_loss_leaps() -> None:
    """What was before the leap outlasts the snapshots that follow it."""
    found = taken([1.0] * 210 + [50.0] * 400)
    assert min(found.taken) == 200 - (LATEST - 1) * EVERY and max(found.taken) == 600


def test_nothing_is_kept_of_a_network_beyond_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget is for all snapshots together, weights and moments."""
    monkeypatch.setattr(snapshots, "SNAPSHOT_BYTES", 1000)
    assert not taken([1.0] * 200).taken


def test_a_late_illness_is_replayed_from_just_before_it() -> None:
    """Units die from step 600 on, when the learning rate is raised: the replay begins near it and shows the rate."""

    class Late(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            self.done = getattr(self, "done", 0) + 1
            self.param_groups[0]["lr"] = 0.05 if self.done < 600 else 20.0
            return super().step(closure)

    report = relume.diagnose(
        Training(model=mlp(), optimizer=lambda p: Late(p, lr=0.05), loss=F.cross_entropy, batches=batches(), steps=700)
    )
    assert not report.healthy and report.diagnoses[0].since >= 590, str(report)
