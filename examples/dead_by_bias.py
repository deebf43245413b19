"""Most units of one layer are dead before the first step: their biases start at -30, so that no input opens them.

The network calls `F.relu` instead of `nn.ReLU` modules. relume sees both.

    relume diagnose examples/dead_by_bias.py:training
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, TensorDataset

import relume
from relume.demo import digits

(images, labels), (held_out, truth) = digits()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 128)
        self.fc2 = nn.Linear(128, 128)
        self.fc3 = nn.Linear(128, 10)
        with torch.no_grad():
            self.fc2.bias[:96] = -30.0

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def accuracy(model: nn.Module) -> float:
    return float((model(held_out).argmax(1) == truth).float().mean())


training = relume.Training(
    model=Net,
    optimizer=lambda parameters: optim.Adam(parameters, lr=1e-3),
    loss=F.cross_entropy,
    batches=DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True),
    score=accuracy,
    steps=300,
)
