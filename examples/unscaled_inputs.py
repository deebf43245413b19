"""The loss is NaN within ten steps: the inputs run to the thousands, as raw sensor values do.

relume diagnose examples/unscaled_inputs.py:training
"""

from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

import relume
from relume.demo import digits

(images, labels), (held_out, truth) = digits()
images, held_out = images * 4096, held_out * 4096  # as a 12-bit sensor gives them


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(),
        nn.Linear(128, 128), nn.ReLU(),
        nn.Linear(128, 128), nn.ReLU(),
        nn.Linear(128, 10),
    )  # fmt: skip


def accuracy(model: nn.Module) -> float:
    return float((model(held_out).argmax(1) == truth).float().mean())


training = relume.Training(
    model=network,
    optimizer=lambda parameters: optim.SGD(parameters, lr=0.01, momentum=0.9),
    loss=nn.functional.cross_entropy,
    batches=DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True),
    score=accuracy,
    steps=300,
)
