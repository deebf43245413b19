"""Training runs drawn by seed: well ones over the axes that people vary, and ill ones with one thing planted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.illness.tasks import HEADS, NUMBERS, TASKS, Task, score, task
from relume import Training
from relume.nn import module


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One training run. The last block is what can be planted; its defaults leave a run as people would write it."""

    seed: int
    task: str
    loss: str
    kind: str  # "mlp", "cnn", "batch_norm", "residual"
    width: int
    depth: int
    activation: str
    init: str  # "torch", "keras" (Glorot's uniform, biases zero), "he"
    optimizer: str
    learning_rate: float
    batch: int  # 0: the whole data set
    steps: int
    dropout: float = 0.0

    planted: str = ""
    weight_scale: float = 1.0
    bias: float | None = None
    bias_layers: int = 0  # the first so many hidden layers; 0: all
    input_scale: float = 1.0
    input_shift: float = 0.0
    target_scale: float = 1.0
    relu_on_output: bool = False
    cut_after: int = -1  # hidden layer behind which the gradient is cut


@dataclass(frozen=True, slots=True)
class Answer:
    """What may be said of a run with that planted: kinds of which one must be named, causes of which one is first."""

    kinds: frozenset[str]
    causes: frozenset[str]


def _answer(kinds: str, causes: str) -> Answer:
    return Answer(frozenset(kinds.split()), frozenset(causes.split()))


ANSWERS: dict[str, Answer] = {
    "fast": _answer("dead saturated non_finite exploding not_learning oscillating", "learning_rate_too_high"),
    "slow": _answer("not_learning", "learning_rate_too_low"),
    "bias": _answer("dead saturated not_learning", "bias"),
    "large_weights": _answer("saturated exploding non_finite dead not_learning oscillating", "initial_scale"),
    "small_weights": _answer("vanishing not_learning", "initial_scale"),
    "inputs": _answer("dead saturated exploding non_finite not_learning oscillating", "unscaled_inputs"),
    "targets": _answer("exploding non_finite not_learning dead saturated oscillating", "unscaled_targets"),
    "deep_sigmoid": _answer("vanishing saturated not_learning", "saturating_activation"),
    "unbounded": _answer("exploding non_finite dead saturated not_learning", "unbounded_activation"),
    "narrow": _answer("dead vanishing not_learning", "narrow_and_deep"),
    "relu_on_output": _answer("dead not_learning", "output_activation"),
    "cut": _answer("not_learning vanishing", "no_gradient"),
}


# --- the network of a run ---------------------------------------------------------------------------------------------


class _Cut(nn.Module):
    """A slip that happens: the rest of the network sees values without their history."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class _Residual(nn.Module):
    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.activation = module(activation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.activation(self.first(self.norm(x))))


def network(spec: Spec) -> nn.Module:
    """A fresh network from torch's global seed."""
    data = task(spec.task)
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
        hidden += [_Residual(spec.width, spec.activation) for _ in range(spec.depth)]
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
    return model


def _initialise(layer: Any, spec: Spec, hidden: bool, index: int) -> None:
    with torch.no_grad():
        if spec.init != "torch":
            draw = nn.init.xavier_uniform_ if spec.init == "keras" or not hidden else nn.init.kaiming_normal_
            draw(layer.weight)
            nn.init.zeros_(layer.bias)
        if hidden:
            layer.weight *= spec.weight_scale
            if spec.bias is not None and (spec.bias_layers == 0 or index < spec.bias_layers):
                layer.bias.fill_(spec.bias)


class Batches:
    """Batches of a task in memory, in a new order each time, drawn from torch's global generator."""

    def __init__(self, x: Tensor, y: Tensor, size: int) -> None:
        self.x, self.y, self.size = x, y, size or len(x)

    def __iter__(self) -> Any:
        for index in torch.randperm(len(self.x)).split(self.size):
            if len(index) == min(self.size, len(self.x)):
                yield self.x[index], self.y[index]


def fed(spec: Spec) -> Task:
    """The task as this run sees it: its inputs and targets in the units that were planted."""
    data = task(spec.task)

    def seen(x: Tensor) -> Tensor:
        return x * spec.input_scale + spec.input_shift

    seen_as = replace(data, x=seen(data.x), x_held=seen(data.x_held))
    if spec.target_scale == 1:
        return seen_as
    return replace(seen_as, y=data.y * spec.target_scale, y_held=data.y_held * spec.target_scale)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


def training(spec: Spec) -> Training:
    """The run as a user would hand it over."""
    data, loss = fed(spec), HEADS[spec.loss][1]

    def held_out_score(model: nn.Module) -> float:
        return score(spec.loss, model(data.x_held), data.y_held)

    return Training(
        model=lambda: network(spec),
        optimizer=lambda parameters: OPTIMIZERS[spec.optimizer](parameters, lr=spec.learning_rate),
        loss=loss,
        batches=Batches(data.x, data.y, spec.batch),
        score=held_out_score,
        steps=spec.steps,
    )


# --- drawing runs -----------------------------------------------------------------------------------------------------

USUAL_RATES = {"adam": 2e-3, "sgd": 0.1, "momentum": 0.02, "rmsprop": 1e-3, "adagrad": 0.02}
STEPS = (100, 200, 400, 800, 1600, 3000)
BATCHES = (1, 8, 32, 64, 128, 0)


def _pick(rng: np.random.Generator, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def well(seed: int) -> Spec:
    """A run as people write it. That it is well is measured, not assumed: `truth.measure`."""
    rng = np.random.default_rng(seed)
    name = _pick(rng, sorted(TASKS))
    data = task(name)
    loss = _pick(rng, data.losses)
    kinds = ["mlp", "mlp", "batch_norm", "residual", *(["cnn"] * 3 if name in ("digits", "digit_bits") else [])]
    kind = _pick(rng, kinds)
    activation = _pick(rng, ("relu", "relu", "relu", "tanh", "leaky_relu", "elu", "gelu", "silu", "sigmoid", "selu"))
    deepest = {"mlp": 6, "batch_norm": 10, "residual": 24, "cnn": 4}[kind]
    depth = round(math.exp(rng.uniform(0, math.log(deepest))))
    if activation == "sigmoid":
        depth = min(depth, 2)
    width = round(math.exp(rng.uniform(math.log(8), math.log(48 if kind == "cnn" else 256))))
    optimizer = _pick(rng, sorted(OPTIMIZERS))
    batch = _pick(rng, BATCHES[2:] if kind == "batch_norm" else BATCHES)
    rate = USUAL_RATES[optimizer] * math.exp(rng.uniform(math.log(0.4), math.log(1.5)))
    if batch in (1, 8):
        rate /= 4
    if optimizer in ("sgd", "momentum") and (loss in NUMBERS or depth > 4):
        rate /= 3
    steps = _pick(rng, STEPS[1:] if kind != "cnn" else STEPS[1:4])
    return Spec(
        seed=seed, task=name, loss=loss, kind=kind, width=width, depth=depth, activation=activation,
        init=_pick(rng, ("torch", "keras", "he" if activation in ("relu", "leaky_relu") else "keras")),
        optimizer=optimizer, learning_rate=rate, batch=batch, steps=steps,
        dropout=0.3 if kind == "mlp" and rng.random() < 0.2 and width > 32 else 0.0,
    )  # fmt: skip


def ill(seed: int) -> Spec:
    """A run with one thing planted, on the network and data of a well one where that can carry it."""
    rng = np.random.default_rng([seed, 1])
    base = well(seed)
    plain = replace(base, kind="cnn" if base.kind == "cnn" else "mlp", dropout=0.0)
    planted = _pick(rng, sorted(ANSWERS))
    factor = float(math.exp(rng.uniform(math.log(3), math.log(30))))
    relu = replace(plain, activation="relu")
    sigmoid = replace(plain, activation=_pick(rng, ("sigmoid", "tanh")))
    made = {
        "fast": lambda: replace(relu, learning_rate=relu.learning_rate * 10 * factor),
        "slow": lambda: replace(plain, learning_rate=plain.learning_rate / 1000 / factor),
        "bias": lambda: replace(
            relu if rng.random() < 0.7 else sigmoid, bias=-3 * factor, bias_layers=int(rng.integers(0, 2))
        ),
        "large_weights": lambda: replace(
            _pick(rng, (relu, sigmoid)), weight_scale=2 * factor, depth=max(3, plain.depth)
        ),
        "small_weights": lambda: replace(plain, weight_scale=1 / (3 * factor), depth=max(4, plain.depth)),
        "inputs": lambda: replace(_pick(rng, (relu, sigmoid)), input_scale=30 * factor),
        "targets": lambda: replace(
            relu, task=_pick(rng, ("friedman", "diabetes")), loss="mse", kind="mlp", depth=max(2, plain.depth),
            target_scale=100 * factor,
        ),
        "deep_sigmoid": lambda: replace(plain, activation="sigmoid", kind="mlp", depth=int(rng.integers(6, 20))),
        "unbounded": lambda: replace(plain, activation="exp", kind="mlp", depth=int(rng.integers(3, 7)), init="he"),
        "narrow": lambda: replace(
            relu, kind="mlp", width=int(rng.integers(2, 4)), depth=int(rng.integers(10, 30)), init="he"
        ),
        "relu_on_output": lambda: replace(relu, relu_on_output=True, loss=task(relu.task).losses[0]),
        "cut": lambda: replace(plain, depth=max(2, plain.depth), cut_after=max(2, plain.depth) - 1),
    }[planted]()  # fmt: skip
    return replace(made, planted=planted)
