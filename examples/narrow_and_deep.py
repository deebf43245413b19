"""The network answers the same to every input: twelve ReLU layers of three units, and one of them lets nothing through.

relume diagnose examples/narrow_and_deep.py:training
"""

from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

import relume
from relume.demo import digits

(images, labels), (held_out, truth) = digits()


def network() -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(64, 3), nn.ReLU()]
    for _ in range(11):
        layers += [nn.Linear(3, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(3, 10))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return model


def accuracy(model: nn.Module) -> float:
    return float((model(held_out).argmax(1) == truth).float().mean())


training = relume.Training(
    model=network,
    optimizer=lambda parameters: optim.Adam(parameters, lr=1e-3),
    loss=nn.functional.cross_entropy,
    batches=DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True),
    score=accuracy,
    steps=300,
)
