"""The network of a run."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.illness.spec import Spec
from benchmarks.illness.tasks import HEADS, Task
from relume.nn import module


class _Cut(nn.Module):
    """A slip that happens: the rest of the network sees values without their history."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Residual(nn.Module):
    """A pre-norm block; with `zero` its last layer is zero, so that the block starts as the identity."""

    def __init__(self, width: int, activation: str, zero: bool = False) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.activation = module(activation)
        if zero:
            nn.init.zeros_(self.second.weight)
            nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.activation(self.first(self.norm(x))))


def network(spec: Spec, data: Task) -> nn.Module:
    """A fresh network for these data from torch's global seed."""
    hidden: list[nn.Module] = []
    if spec.kind == "cnn":
        side = math.isqrt(data.features)
        hidden.append(nn.Unflatten(1, (1, side, side)))
        channels = [1, *[spec.width] * spec.depth]
        for i, (a, b) in enumerate(pairwise(channels)):
            hidden += [nn.Conv2d(a, b, 3, padding=1), module(spec.activation)]
            hidden += [nn.MaxPool2d(2)] if i == 0 else []
            hidden += [_Cut()] if i == spec.cut_after else []
        hidden += [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        last = 4 * spec.width
    elif spec.kind == "residual":
        hidden.append(nn.Linear(data.features, spec.width))
        hidden += [Residual(spec.width, spec.activation) for _ in range(spec.depth)]
        last = spec.width
    else:
        sizes = [data.features, *[spec.width] * spec.depth]
        for i, (a, b) in enumerate(pairwise(sizes)):
            hidden.append(nn.Linear(a, b))
            hidden += [nn.BatchNorm1d(b)] if spec.kind == "batch_norm" else []
            hidden.append(module(spec.activation))
            hidden += [nn.Dropout(spec.dropout)] if spec.dropout else []
            hidden += [_Cut()] if i == spec.cut_after else []
        last = spec.width
    output = nn.Linear(last, data.outputs)
    head: list[nn.Module] = [nn.ReLU()] if spec.relu_on_output else []
    model = nn.Sequential(*hidden, output, *head, HEADS[spec.loss][0]())
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    for i, layer in enumerate(layers):
        _initialise(layer, spec, hidden=layer is not output, index=i)
    if spec.fitted_output:
        with torch.no_grad():
            output.weight *= data.y.std(0)[:, None]
            output.bias.copy_(data.y.mean(0))
    return model


def _initialise(layer: nn.Linear | nn.Conv2d, spec: Spec, hidden: bool, index: int) -> None:
    assert layer.bias is not None
    with torch.no_grad():
        if spec.init != "torch":
            draw = nn.init.xavier_uniform_ if spec.init == "keras" or not hidden else nn.init.kaiming_normal_
            draw(layer.weight)
            nn.init.zeros_(layer.bias)
        if spec.constant_weights is not None:
            layer.weight.fill_(spec.constant_weights)
            nn.init.zeros_(layer.bias)
        if hidden:
            layer.weight *= spec.weight_scale
            if spec.bias is not None and (spec.bias_layers == 0 or index < spec.bias_layers):
                signs = torch.randint(0, 2, layer.bias.shape) * 2.0 - 1 if spec.bias_sign == "both" else 1.0
                layer.bias.copy_(torch.full_like(layer.bias, spec.bias) * signs)
