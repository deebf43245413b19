"""Healthy runs that look ill: each with the reason why it is well, and a score that it must reach to count."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.illness.networks import Residual
from benchmarks.illness.runs import Batches
from benchmarks.illness.sequences import Blocks, Encoder, Recurrent
from benchmarks.illness.tasks import Task, score, task
from relume import Training
from relume.training import Stream, build, train

Parameters = Iterable[nn.Parameter]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A training, and the score from which on it is well."""

    training: Training
    enough: float
    blind: tuple[str, ...] = ()  # words of which the coverage must show one: what it cannot see here
    dead: tuple[float, float] = (0.0, 1.0)  # share of closed units that the layer with most of them must have


@dataclass(frozen=True, slots=True, kw_only=True)
class Trap:
    """A way to look ill and be well."""

    name: str
    why: str
    build: Callable[[int], Run]  # from a seed


# --- parts ------------------------------------------------------------------------------------------------------------


def _run(
    data: Task, loss: str, model: Callable[[], nn.Module], *, steps: int = 600, rate: float = 2e-3, batch: int = 64,
    enough: float = 0.9, optimizer: Callable[..., Any] = torch.optim.Adam, function: Any = None, **rest: Any,
) -> Run:  # fmt: skip
    functions = {
        "cross_entropy": nn.functional.cross_entropy,
        "bce_logits": nn.functional.binary_cross_entropy_with_logits,
        "bce": nn.functional.binary_cross_entropy,
        "mse": nn.functional.mse_loss,
    }
    made = Training(
        model=model,
        optimizer=lambda parameters: optimizer([p for p in parameters if p.requires_grad], lr=rate),
        loss=function or functions[loss],
        batches=Batches(data.x, data.y, batch),
        score=lambda net: score(loss, net(data.x_held), data.y_held),
        steps=steps,
    )
    return Run(training=made, enough=enough, **rest)


def _mlp(inputs: int, width: int, depth: int, outputs: int, between: Callable[[], nn.Module] | None = None) -> Any:
    parts: list[nn.Module] = []
    for i in range(depth):
        parts += [nn.Linear(inputs if i == 0 else width, width), nn.ReLU()]
        parts += [between()] if between is not None else []
    return nn.Sequential(*parts, nn.Linear(width, outputs))


def _few(name: str, count: int) -> Task:
    data = task(name)
    return replace(data, x=data.x[:count], y=data.y[:count])


def _far(gap: float = 4.0) -> Task:
    """Three clouds with wide gaps between them: a task that can be solved for good."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1200, 8, generator=generator)
    y = torch.arange(1200) % 3
    x[torch.arange(1200), y] += gap
    return Task(x=x[:900], y=y[:900], x_held=x[900:], y_held=y[900:], outputs=3, losses=("cross_entropy",))


# --- the traps --------------------------------------------------------------------------------------------------------


def _dying(seed: int) -> Run:
    data = task("digits")
    return _run(
        data, "cross_entropy", lambda: _mlp(64, 256, 3, 10), rate=(6e-3, 8e-3, 1e-2)[seed // 2 % 3], steps=800,
        enough=0.93, dead=(0.02, 0.5),
    )  # fmt: skip


def _mostly_dead(seed: int) -> Run:
    """A layer wider than the task needs, trained fast under L2: most of it goes, and what is left does the work."""
    rate, decay = ((1e-2, 1e-3), (1.5e-2, 1e-4), (2e-2, 1e-3))[seed // 2 % 3]
    optimizer = partial(torch.optim.Adam, weight_decay=decay)
    model = partial(_mlp, 64, 512, 2, 10)
    return _run(
        task("digits"), "cross_entropy", model, optimizer=optimizer, rate=rate, steps=1200, enough=0.95,
        dead=(0.55, 0.9),
    )  # fmt: skip


def _sparse(seed: int, share: float) -> Run:
    """A quarter of the first layer's units has the bias at which that share of the samples opens them."""
    data = task("digits")

    def model() -> nn.Module:
        net = _mlp(64, 128, 2, 10)
        with torch.no_grad():
            z = data.x @ net[0].weight.T
            net[0].bias[:32] = -z.quantile(1 - share, 0)[:32]
        return net

    return _run(data, "cross_entropy", model, steps=(500, 800)[seed // 2 % 2], rate=5e-4)


def _solved(seed: int, loss: str) -> Run:
    data = _far()
    if loss == "bce":
        y, y_held = ((y == 0).float()[:, None] for y in (data.y, data.y_held))
        data = replace(data, y=y, y_held=y_held, outputs=1)
        head: list[nn.Module] = [nn.Sigmoid()]
    else:
        head = [nn.Softmax(-1)]

    def nll(p: Tensor, y: Tensor) -> Tensor:
        return nn.functional.nll_loss(torch.log(p.clamp(min=1e-12)), y)

    return _run(
        data, "bce" if loss == "bce" else "cross_entropy", lambda: nn.Sequential(_mlp(8, 32, 2, data.outputs), *head),
        function=None if loss == "bce" else nll, steps=3000, rate=3e-3, optimizer=torch.optim.Adam, enough=0.95,
    )  # fmt: skip


def _bias_before_norm(seed: int) -> Run:
    data = task("digits")

    def model() -> nn.Module:
        parts: list[nn.Module] = []
        for i in range(1 + seed // 2 % 4 * 2):
            parts += [nn.Linear(64 if i == 0 else 96, 96), nn.BatchNorm1d(96), nn.ReLU()]
        return nn.Sequential(*parts, nn.Linear(96, 10))

    return _run(data, "cross_entropy", model)


class _Frozen(nn.Module):
    """A backbone that is not trained, and if so asked stays in eval mode; a head that is."""

    def __init__(self, backbone: nn.Module, head: nn.Module, always_eval: bool) -> None:
        super().__init__()
        self.backbone, self.head, self.always_eval = backbone.requires_grad_(False), head, always_eval

    def train(self, mode: bool = True) -> _Frozen:
        super().train(mode)
        if self.always_eval:
            self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def _frozen(seed: int, always_eval: bool) -> Run:
    data = task("digits")

    def model() -> nn.Module:
        backbone = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        return _Frozen(backbone, _mlp(256, 64, 1, 10), always_eval)

    return _run(data, "cross_entropy", model, enough=0.85)


class _Bag(nn.Module):
    """Pixels as words: an embedding of each place and level, their mean, a linear head; no activation anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(64 * 17, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x).mean(1))


def _embedding(seed: int) -> Run:
    data = task("digits")

    def words(x: Tensor) -> Tensor:
        return (x * 16).round().long() + 17 * torch.arange(64)

    return _run(replace(data, x=words(data.x), x_held=words(data.x_held)), "cross_entropy", _Bag, rate=1e-2, steps=800)


def _converged(seed: int) -> Run:
    """Trained on until the loss is near 1e-6 and next to no gradient is left."""
    return _run(
        _far(6.0), "cross_entropy", lambda: _mlp(8, 32 << seed // 2 % 3, 2, 3), steps=4000, rate=5e-3, enough=0.99
    )


def _zero_branches(seed: int) -> Run:
    data = task("digits")

    def model() -> nn.Module:
        blocks = [Residual(64, ("relu", "gelu")[seed // 2 % 2], zero=True) for _ in range(4 + seed // 2 % 3 * 4)]
        return nn.Sequential(nn.Linear(64, 64), *blocks, nn.Linear(64, 10))

    return _run(data, "cross_entropy", model, steps=400, rate=1e-3)


def _dropout(seed: int) -> Run:
    model = partial(_mlp, 64, 256, 2 + seed // 2 % 3, 10, partial(nn.Dropout, 0.5))
    return _run(task("digits"), "cross_entropy", model, steps=1000, rate=1e-3)


def _small_data(seed: int, count: int) -> Run:
    data = _few("wine", count)
    # the score is told on the samples themselves: so few cannot speak for others
    data = replace(data, x_held=data.x, y_held=data.y)
    return _run(data, "cross_entropy", lambda: _mlp(13, 64, 2, 3), batch=(4, 0)[seed // 2 % 2], steps=300)


def _resumed(seed: int) -> Run:
    """A trained network goes on with a fresh optimizer: its loss has nowhere left to fall."""
    data = task("digits")
    first = _run(data, "cross_entropy", lambda: _mlp(64, 128, 2, 10), steps=1500)
    net, optimizer = build(first.training, seed)
    train(first.training, net, optimizer, Stream(first.training.batches, seed), first.training.steps)
    return _run(data, "cross_entropy", lambda: copy.deepcopy(net), steps=400, rate=(1e-4, 5e-4)[seed // 2 % 2])


def _noise_floor(seed: int) -> Run:
    """A line under noise of standard deviation 3: the loss comes to 9 and stays, and nobody could do better."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4000, 6, generator=generator)
    y = x[:, :1] * 2 + 3 * torch.randn(4000, 1, generator=generator)
    data = Task(x=x[:3000], y=y[:3000], x_held=x[3000:], y_held=y[3000:], outputs=1, losses=("mse",))
    reachable = 4 / 13  # share of the variance that is signal
    return _run(data, "mse", lambda: _mlp(6, 16, 1, 1), steps=800, rate=2e-3, enough=0.6 * reachable)


def _noisy_labels(seed: int) -> Run:
    """Six of ten labels are drawn anew: the loss stays high for good, the network finds the rest."""
    data = task("blobs")
    generator = torch.Generator().manual_seed(seed)
    anew = torch.randint(0, 6, data.y.shape, generator=generator)
    y = torch.where(torch.rand(data.y.shape, generator=generator) < 0.6, anew, data.y)
    return _run(replace(data, y=y), "cross_entropy", lambda: _mlp(8, 16, 1, 6), steps=600, rate=1e-3, enough=0.75)


def _multi_label(seed: int) -> Run:
    data = task(("multilabel", "digit_bits")[seed // 2 % 2])
    return _run(data, "bce_logits", lambda: _mlp(data.features, 64, 2, data.outputs), steps=800)


def _large_targets(seed: int) -> Run:
    """Prices in hundreds of thousands, and an output layer that starts at their mean and spread."""
    data = task("friedman")
    data = replace(data, y=data.y * 5e4 + 3e5, y_held=data.y_held * 5e4 + 3e5)

    def model() -> nn.Module:
        net = _mlp(data.features, 64, 2, 1)
        with torch.no_grad():
            net[-1].weight *= data.y.std()
            net[-1].bias.fill_(float(data.y.mean()))
        return net

    return _run(data, "mse", model, steps=1500, rate=3e-3, enough=0.6)


def _sequence(seed: int, make: Callable[[int], nn.Module], blind: tuple[str, ...] = (), **settings: Any) -> Run:
    data = task("digits")
    return _run(data, "cross_entropy", lambda: make(seed), blind=blind, **{"steps": 300, **settings})


TRAPS = tuple(
    Trap(name=name, why=why, build=build)
    for name, why, build in (
        ("units_die", "some units die while the network learns as well as any", _dying),
        ("mostly_dead", "weight decay switched off what is not needed; the rest learns", _mostly_dead),
        ("sparse_2", "units that fire on 2 % of the samples learn from those", partial(_sparse, share=0.02)),
        ("sparse_0.5", "units that fire on 0.5 % of them likewise", partial(_sparse, share=0.005)),
        ("solved_sigmoid", "outputs saturate because they are right", partial(_solved, loss="bce")),
        ("solved_softmax", "outputs saturate because they are right", partial(_solved, loss="nll")),
        ("bias_before_norm", "BatchNorm takes the bias away, its gradient is 0", _bias_before_norm),
        ("frozen", "layers that are not to be trained get no gradient", partial(_frozen, always_eval=False)),
        ("frozen_eval", "the same, and in eval mode", partial(_frozen, always_eval=True)),
        ("embedding", "no activation anywhere, so no unit to watch", _embedding),
        ("converged", "gradients shrink because nothing is left to learn", _converged),
        ("zero_branches", "no gradient in step 0 behind a layer that starts at 0", _zero_branches),
        ("dropout", "half of the activations are 0 in each step, other ones each time", _dropout),
        ("samples_16", "16 samples say little of a unit", partial(_small_data, count=16)),
        ("samples_40", "40 samples likewise", partial(_small_data, count=40)),
        ("resumed", "a trained network goes on: the loss cannot fall", _resumed),
        ("noise_floor", "the loss is at the variance of the noise", _noise_floor),
        ("noisy_labels", "the loss is at the entropy of the labels", _noisy_labels),
        ("multi_label", "several right answers a sample", _multi_label),
        ("large_targets", "large losses and gradients are in the targets' units", _large_targets),
        ("gelu_blocks", "no unit of GELU is ever shut", partial(_sequence, make=partial(Blocks, "gelu"))),
        ("swiglu_blocks", "a gate near 0 is not death", partial(_sequence, make=partial(Blocks, "swiglu"))),
        ("encoder", "torch's own encoder layer, ReLU or GELU", partial(_sequence, make=Encoder)),
        (
            "lstm", "its gates saturate at work, and are out of sight",
            partial(_sequence, make=partial(Recurrent, nn.LSTM), blind=("LSTM",), rate=5e-3),
        ),
        (
            "gru", "its gates saturate at work, and are out of sight",
            partial(_sequence, make=partial(Recurrent, nn.GRU), blind=("GRU",), rate=5e-3),
        ),
    )
)  # fmt: skip
