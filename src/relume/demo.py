"""The demonstration: real handwritten digits, and a deep ReLU network that is trained too fast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relume.checkup import diagnose
from relume.heal import heal
from relume.report.results import Page
from relume.training import Training
from relume.trial import trial

LEARNING_RATE = 0.03  # ten times what Adam wants here: the loss falls all the same, and half the units die
TRAINED_ON = 1437  # of 1,797 images; the rest is for validation


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Handwritten digits, 8 x 8 pixels: ((images, labels) to train on, (images, labels) to validate on).

    Images are float32 [n, 64] in 0..1, labels int64 [n] in 0..9. No download: the 1,797 images are in the package.
    Source: Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository (CC BY 4.0).

    >>> (images, labels), _ = digits()
    >>> images.shape, labels.shape
    (torch.Size([1437, 64]), torch.Size([1437]))
    """
    with files("relume").joinpath("data/digits.npz").open("rb") as file, np.load(file) as data:
        images = torch.from_numpy(data["images"].astype(np.float32) / 16)
        labels = torch.from_numpy(data["labels"].astype(np.int64))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    return (images[:TRAINED_ON], labels[:TRAINED_ON]), (images[TRAINED_ON:], labels[TRAINED_ON:])


class Shuffled:
    """Batches of a data set in memory, in a new order each time, drawn from torch's global generator."""

    def __init__(self, images: Tensor, labels: Tensor, size: int = 64) -> None:
        self.images, self.labels, self.size = images, labels, size

    def __iter__(self) -> Any:
        for index in torch.randperm(len(self.images)).split(self.size):
            if len(index) == self.size:
                yield self.images[index], self.labels[index]


def network(width: int = 128, depth: int = 4) -> nn.Sequential:
    """A plain ReLU network for the digits."""
    sizes = [64, *[width] * depth]
    hidden = [part for i, o in pairwise(sizes) for part in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


def training() -> Training:
    """What `relume demo` runs: 4 x 128 ReLU units, Adam at 0.03, 300 steps of 64 images."""
    (images, labels), (held_out, truth) = digits()

    def validation_accuracy(model: nn.Module) -> float:
        return float((model(held_out).argmax(1) == truth).float().mean())

    return Training(
        model=network,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=LEARNING_RATE),
        loss=nn.functional.cross_entropy,
        batches=Shuffled(images, labels),
        score=validation_accuracy,
        steps=300,
    )


def run(
    seeds: int = 5, on_stage: Callable[[str], None] | None = None, on_progress: Callable[..., None] | None = None
) -> Page:
    """The whole job: diagnose, try every remedy, adopt the proven one. Ctrl-C leaves what was done until then."""
    stage = on_stage or (lambda text: None)
    example = training()
    page = Page(title="relume demo")
    try:
        stage("watching a network of 4 x 128 ReLU units learn handwritten digits")
        page = replace(page, report=(report := diagnose(example)))
        if report.recording.finished:
            stage(f"trying every remedy beside the untreated network, {seeds} seeds each")
            page = replace(page, trial=(tried := trial(example, seeds=seeds, on_progress=on_progress, report=report)))
            if tried.finished:
                stage("training the healed network on a fresh seed")
                page = replace(page, healed=heal(example, report=report, trial=tried))
    except KeyboardInterrupt:
        if page.report is None:
            raise
    return page
