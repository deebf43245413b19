"""The loss grows until it is NaN: a regression on the digits with SGD at a learning rate of 2.

relume diagnose examples/exploding.py:training
"""

from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

import relume
from relume.demo import digits

(images, labels), (held_out, truth) = digits()
targets = (labels.float().unsqueeze(1) - 4.5) / 2.9  # the digit itself, at mean 0 and standard deviation 1
held_out_targets = (truth.float().unsqueeze(1) - 4.5) / 2.9


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 64), nn.LeakyReLU(0.1),
        nn.Linear(64, 64), nn.LeakyReLU(0.1),
        nn.Linear(64, 64), nn.LeakyReLU(0.1),
        nn.Linear(64, 1),
    )  # fmt: skip


training = relume.Training(
    model=network,
    optimizer=lambda parameters: optim.SGD(parameters, lr=2.0),
    loss=nn.functional.mse_loss,
    batches=DataLoader(TensorDataset(images, targets), batch_size=64, shuffle=True),
    validation=[(held_out, held_out_targets)],
    steps=300,
)
