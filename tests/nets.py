"""Awkward networks: each function takes a seed and gives back (model, example_input)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Net = Callable[..., tuple[nn.Module, Any]]


def _example(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1000))


def _seeded(build: Callable[[int], tuple[nn.Module, Any]]) -> Net:
    """Draw the weights from the seed, and leave the global generator as it was."""

    @functools.wraps(build)
    def net(seed: int = 0) -> tuple[nn.Module, Any]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return build(seed)

    return net


@_seeded
def mlp(seed: int) -> tuple[nn.Module, Any]:
    """Activations as modules of a Sequential."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    return model, _example(seed, 32, 6)


@_seeded
def sigmoid_mlp(seed: int) -> tuple[nn.Module, Any]:
    """A function that saturates and never dies."""
    model = nn.Sequential(nn.Linear(6, 16), nn.Sigmoid(), nn.Linear(16, 12), nn.Sigmoid(), nn.Linear(12, 3))
    return model, _example(seed, 32, 6)


@_seeded
def tanh_mlp(seed: int) -> tuple[nn.Module, Any]:
    """A zero-centred function that saturates."""
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))
    return model, _example(seed, 32, 6)


class Functional(nn.Module):
    """Activations as function calls, each written differently."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 16), nn.Linear(16, 12)
        self.fc3, self.fc4 = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x))
        x = torch.relu(self.fc2(x))
        x = self.fc3(x).relu()
        return self.fc4(x)


@_seeded
def functional_mlp(seed: int) -> tuple[nn.Module, Any]:
    """F.relu, torch.relu and the method, called by the root."""
    return Functional(), _example(seed, 32, 6)


class InPlace(nn.Module):
    """In-place ReLU: a module, and calls whose result nobody takes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        self.act(h)
        h = self.fc2(h)
        F.relu_(h)
        return self.fc3(h)


@_seeded
def in_place(seed: int) -> tuple[nn.Module, Any]:
    """The input of the activation is overwritten, and used afterwards."""
    return InPlace(), _example(seed, 32, 6)


class Shared(nn.Module):
    """One nn.ReLU for layers of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.act(self.fc2(self.act(self.fc1(x)))))


@_seeded
def shared_module(seed: int) -> tuple[nn.Module, Any]:
    """A module that is called twice."""
    return Shared(), _example(seed, 32, 6)


@_seeded
def shared_in_sequential(seed: int) -> tuple[nn.Module, Any]:
    """A module that stands at two places of a Sequential."""
    act = nn.ReLU()
    return nn.Sequential(nn.Linear(6, 16), act, nn.Linear(16, 12), act, nn.Linear(12, 3)), _example(seed, 32, 6)


@_seeded
def conv(seed: int) -> tuple[nn.Module, Any]:
    """Convolution, BatchNorm, pooling, flattening."""
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.2), nn.Linear(10, 3),
    )  # fmt: skip
    return model, _example(seed, 16, 1, 10, 10)


class Block(nn.Module):
    """A residual block with in-place shared ReLU, as in torchvision's ResNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


@_seeded
def residual(seed: int) -> tuple[nn.Module, Any]:
    """Units of several layers are added."""
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), Block(6), Block(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    )
    return model, _example(seed, 8, 1, 8, 8)


class TwoHeads(nn.Module):
    """Gives a tuple, and takes two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 10), nn.Linear(4, 10)
        self.act = nn.ReLU()
        self.first, self.second = nn.Linear(10, 3), nn.Linear(10, 1)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        h, g = self.act(self.left(a)), F.relu(self.right(b))
        return self.first(h), self.second(g)


@_seeded
def tuple_output(seed: int) -> tuple[nn.Module, Any]:
    """Two inputs and two outputs."""
    return TwoHeads(), (_example(seed, 32, 6), _example(seed + 1, 32, 4))


class Checkpointed(nn.Module):
    """Recomputes its middle in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(12, 3)
        self.middle = nn.Sequential(nn.ReLU(), nn.Linear(16, 12), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        h: Any = checkpoint(self.middle, self.first(x), use_reentrant=False)
        return self.last(h)


@_seeded
def checkpointed(seed: int) -> tuple[nn.Module, Any]:
    """Activation checkpointing."""
    return Checkpointed(), _example(seed, 32, 6)


class Tied(nn.Module):
    """One weight for two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.again, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.again.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.again(F.relu(self.inner(x)))))


@_seeded
def tied(seed: int) -> tuple[nn.Module, Any]:
    """Tied weights."""
    return Tied(), _example(seed, 32, 6)


@_seeded
def frozen(seed: int) -> tuple[nn.Module, Any]:
    """The first layer is not trained."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    model[0].requires_grad_(False)
    return model, _example(seed, 32, 6)


class Encoder(nn.Module):
    """torch's own transformer layer, whose activation is an attribute and whose fast path hides it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 16), nn.Linear(16, 3)
        self.layer = nn.TransformerEncoderLayer(16, 2, dim_feedforward=24, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)).mean(1))


@_seeded
def transformer(seed: int) -> tuple[nn.Module, Any]:
    """nn.TransformerEncoderLayer."""
    return Encoder(), _example(seed, 16, 7, 5)


class Branching(nn.Module):
    """Its control flow depends on the values, so that torch.fx cannot follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        if h.sum() > 1e6:
            h = h / 2
        return self.fc2(F.relu(h))


@_seeded
def branching(seed: int) -> tuple[nn.Module, Any]:
    """Untraceable control flow around a functional activation."""
    return Branching(), _example(seed, 32, 6)


class Dropped(nn.Module):
    """F.dropout(training=self.training): a trace that keeps `training` fixed is wrong in one mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.fc1(x)), 0.3, training=self.training)
        return self.fc3(F.dropout(F.relu(self.fc2(x)), 0.3, training=self.training))


@_seeded
def dropped(seed: int) -> tuple[nn.Module, Any]:
    """Functional dropout that depends on the mode."""
    return Dropped(), _example(seed, 32, 6)


class Configured(nn.Module):
    """The activation is a function in an attribute."""

    def __init__(self, act: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.act = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3), act

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.act(self.fc2(self.act(self.fc1(x)))))


@_seeded
def configured(seed: int) -> tuple[nn.Module, Any]:
    """A function in an attribute, called twice."""
    return Configured(), _example(seed, 32, 6)


@_seeded
def linear_only(seed: int) -> tuple[nn.Module, Any]:
    """No activation at all."""
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)), _example(seed, 32, 6)


@_seeded
def normalised(seed: int) -> tuple[nn.Module, Any]:
    """Every activation is normalised already."""
    model = nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(),
        nn.Linear(12, 3),
    )  # fmt: skip
    return model, _example(seed, 32, 6)


NETS: dict[str, Net] = {
    net.__name__: net
    for net in (
        mlp, sigmoid_mlp, tanh_mlp, functional_mlp, in_place, shared_module, shared_in_sequential, conv, residual,
        tuple_output, checkpointed, tied, frozen, transformer, branching, dropped, configured, linear_only, normalised,
    )
}  # fmt: skip
