"""Networks that want a remedy: small ones, each with what that remedy is for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Detached(nn.Module):
    """A network whose code cuts the gradient to its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)).detach())


def wanting(remedy: str, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer, Tensor, Tensor]:
    """Network, optimizer, inputs and targets of a case that this remedy of the table is meant for."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        function = nn.Sigmoid if remedy == "tanh" else nn.ReLU
        layers: list[nn.Module] = [nn.Linear(8, 32), function(), nn.Linear(32, 32), function(), nn.Linear(32, 3)]
        layers += [nn.ReLU()] if remedy == "linear_output" else []
        model = Detached() if remedy == "keep_gradient" else nn.Sequential(*layers)
        driven = list(model.parameters())[-2:] if remedy == "train_all" else model.parameters()
        optimizer = torch.optim.Adam(driven, weight_decay=0.1 if remedy == "no_weight_decay" else 0.0)
        x = torch.randn(1000, 8) * (50 if remedy == "scale_inputs" else 1)
        y = torch.randn(1000, 3) * 200 + 900
    return model, optimizer, x, y


def shut(model: Any, units: int = 8) -> None:
    """Shut that many units of the first layer for good."""
    with torch.no_grad():
        next(m for m in model.modules() if isinstance(m, nn.Linear)).bias[:units] = -1000.0
