"""Data sets and heads: what a network is trained for, and how its score is told. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor, nn

from relume.demo import digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Standardised inputs and targets, split in two, with the number of outputs and the losses that suit them."""

    x: Tensor
    y: Tensor
    x_held: Tensor
    y_held: Tensor
    outputs: int
    losses: tuple[str, ...]
    best: float = 1.0  # the score that can be reached, where the targets are far from determined by the inputs

    @property
    def features(self) -> int:
        return self.x.shape[1]


def _bce(p: Tensor, y: Tensor) -> Tensor:
    """NaN of NaN, where torch raises: a run that diverges shall show it, not crash."""
    return nn.functional.binary_cross_entropy(p, y) if bool(torch.isfinite(p).all()) else (p * torch.nan).mean()


# A head is what stands behind the last layer, and the loss of (output, target).
HEADS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor, Tensor], Tensor]]] = {
    "cross_entropy": (nn.Identity, nn.functional.cross_entropy),
    "nll": (lambda: nn.LogSoftmax(-1), nn.functional.nll_loss),
    "mse_on_probabilities": (
        lambda: nn.Softmax(-1),
        lambda p, y: nn.functional.mse_loss(p, nn.functional.one_hot(y, p.shape[-1]).to(p)),
    ),
    "bce_logits": (nn.Identity, nn.functional.binary_cross_entropy_with_logits),
    "bce": (nn.Sigmoid, _bce),
    "mse_on_sigmoid": (nn.Sigmoid, nn.functional.mse_loss),
    "mse": (nn.Identity, nn.functional.mse_loss),
    "huber": (nn.Identity, nn.functional.huber_loss),
}
CLASSES = ("cross_entropy", "nll", "mse_on_probabilities")
LABELS = ("bce_logits", "bce", "mse_on_sigmoid")
NUMBERS = ("mse", "huber")


def _split(data: Any, outputs: int, losses: tuple[str, ...]) -> Task:
    """Three quarters to train on, in an order of its own; columns to mean 0 and standard deviation 1."""
    x, y = data
    x, y = torch.as_tensor(np.asarray(x), dtype=torch.float32), torch.as_tensor(np.asarray(y))
    y = y.long() if losses == CLASSES else y.float().reshape(len(y), -1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    n = 3 * len(x) // 4
    x = (x - x[:n].mean(0)) / x[:n].std(0).clamp(min=1e-6)
    if losses == NUMBERS:
        y = (y - y[:n].mean(0)) / y[:n].std(0)
    return Task(x=x[:n], y=y[:n], x_held=x[n:], y_held=y[n:], outputs=outputs, losses=losses)


@lru_cache
def task(name: str) -> Task:
    """The task of that name; see `TASKS`."""
    return TASKS[name]()


def _digits(labels: bool = False) -> Task:
    (x, y), (x_held, y_held) = digits()
    if labels:  # which bits the digit's number has
        bits = torch.arange(4)
        y, y_held = ((y[:, None] >> bits) & 1).float(), ((y_held[:, None] >> bits) & 1).float()
        return Task(x=x, y=y, x_held=x_held, y_held=y_held, outputs=4, losses=LABELS)
    return Task(x=x, y=y, x_held=x_held, y_held=y_held, outputs=10, losses=CLASSES)


def _classes(**settings: Any) -> Any:
    return datasets.make_classification(
        1600, 12, n_informative=8, n_redundant=2, n_clusters_per_class=1, flip_y=0.0, random_state=1, **settings
    )


def _labels() -> tuple[Any, Any]:
    """Five labels of which any number can be right, each the side of a plane of its own."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1600, 10))
    return x, x @ rng.normal(size=(10, 5)) > 0


TASKS: dict[str, Callable[[], Task]] = {
    "blobs": lambda: _split(datasets.make_blobs(1200, 8, centers=6, cluster_std=3.0, random_state=1)[:2], 6, CLASSES),
    "moons": lambda: _split(datasets.make_moons(1200, noise=0.15, random_state=1), 2, CLASSES),
    "circles": lambda: _split(datasets.make_circles(1200, noise=0.08, factor=0.5, random_state=1), 1, LABELS),
    "wine": lambda: _split(datasets.load_wine(return_X_y=True), 3, CLASSES),
    "cancer": lambda: _split(datasets.load_breast_cancer(return_X_y=True), 1, LABELS),
    "digits": _digits,
    "digit_bits": lambda: _digits(labels=True),
    "imbalanced": lambda: _split(_classes(weights=[0.9, 0.06, 0.04], n_classes=3, class_sep=2.0), 3, CLASSES),
    "multilabel": lambda: _split(_labels(), 5, LABELS),
    "friedman": lambda: _split(datasets.make_friedman1(1200, noise=0.5, random_state=1), 1, NUMBERS),
    # a ridge regression explains that much of the patients held out
    "diabetes": lambda: replace(_split(datasets.load_diabetes(return_X_y=True), 1, NUMBERS), best=0.55),
}  # fmt: skip


def score(kind: str, output: Tensor, y: Tensor) -> float:
    """Share of right answers, the mean over classes, or explained variance; 1 at best, chance is near `floor`."""
    if kind in CLASSES:  # each class counts alike: in unbalanced data most answers are right without any learning
        right = (output.argmax(-1) == y).float()
        return float(torch.stack([right[y == c].mean() for c in y.unique()]).mean())
    if kind in LABELS:
        middle = 0.0 if kind == "bce_logits" else 0.5
        return float(((output > middle).float() == y).float().mean())
    return 1 - float(((output - y) ** 2).mean() / ((y - y.mean(0)) ** 2).mean())


def floor(kind: str, y: Tensor) -> float:
    """The score of the best constant answer."""
    if kind in CLASSES:
        return 1 / len(y.unique())
    if kind in LABELS:
        share = y.mean(0)
        return float(torch.maximum(share, 1 - share).mean())
    return 0.0
