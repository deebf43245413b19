"""The loss does not fall: eight sigmoid layers, each of which passes on a small part of the gradient.

relume diagnose examples/vanishing_sigmoid.py:training
"""

from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

import relume
from relume.demo import digits

(images, labels), (held_out, truth) = digits()


def network() -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(64, 64), nn.Sigmoid()]
    for _ in range(7):
        layers += [nn.Linear(64, 64), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def accuracy(model: nn.Module) -> float:
    return float((model(held_out).argmax(1) == truth).float().mean())


training = relume.Training(
    model=network,
    optimizer=lambda parameters: optim.SGD(parameters, lr=0.1, momentum=0.9),
    loss=nn.functional.cross_entropy,
    batches=DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True),
    score=accuracy,
    steps=300,
)
