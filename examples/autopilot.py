"""A loop of your own that heals itself: Adam at 0.1 kills this network, once watched and once watched with `heal`.

python examples/autopilot.py
"""

import logging

import torch
from torch import nn

import relume
from relume.demo import digits

(images, labels), (held_out, truth) = digits()


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(),
        nn.Linear(128, 128), nn.ReLU(),
        nn.Linear(128, 128), nn.ReLU(),
        nn.Linear(128, 128), nn.ReLU(),
        nn.Linear(128, 10),
    )  # fmt: skip


def accuracy_after(steps: int, *, seed: int, heal: bool) -> float:
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    loss_fn = nn.functional.cross_entropy
    with relume.watch(model, optimizer, loss=loss_fn, heal=heal) as watch:
        for _ in range(steps):
            batch = torch.randint(0, len(images), (64,))
            loss = loss_fn(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watch.step(loss)
    with torch.no_grad():
        return float((model(held_out).argmax(1) == truth).float().mean())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for seed in range(3):
        without, healed = (accuracy_after(600, seed=seed, heal=heal) for heal in (False, True))
        print(f"seed {seed}: accuracy on held-out digits {without:.1%} without, {healed:.1%} with the autopilot")
