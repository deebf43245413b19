"""Nothing is wrong here either: convolutions with BatchNorm. A channel is one unit, its positions are samples.

relume diagnose examples/conv_healthy.py:training
"""

from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

import relume
from relume.demo import digits

(images, labels), (held_out, truth) = digits()
images, held_out = images.reshape(-1, 1, 8, 8), held_out.reshape(-1, 1, 8, 8)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )  # fmt: skip


def accuracy(model: nn.Module) -> float:
    return float((model(held_out).argmax(1) == truth).float().mean())


training = relume.Training(
    model=network,
    optimizer=lambda parameters: optim.SGD(parameters, lr=0.05, momentum=0.9),
    loss=nn.functional.cross_entropy,
    batches=DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True),
    score=accuracy,
    steps=100,
)
