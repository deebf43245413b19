"""Means and variances of a signal, element by element, and probes of its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relume.activations import Activation
from relume.activations.row import panels

# Edges of the panels that means over a normal variable are summed on: in its standard deviations, and in the units of
# an activation function's own bends. Eight nodes a panel give four digits and more for every row of the catalogue.
_IN_DEVIATIONS = (-8.0, -3.0, -1.0, 1.0, 3.0, 8.0)
_AT_BENDS = (-6.0, -2.0, 0.0, 2.0, 6.0)
_NODES = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """What is foreseen of one tensor of the forward pass; shapes are the tensor's, with 1 in place of the batch.

    `probe` is no number of the signal: it is a tensor (with the number of probes in place of the batch) that depends on
    those before it as the gradient does on those behind it, with the weights and with the slopes of one sample
    of the example, or with slopes drawn by their mean and spread. Autograd on it gives gradients.
    """

    mean: Tensor
    variance: Tensor
    probe: Tensor
    raw: bool = False  # an input, before any layer: how its values hang together only the example says
    layer: int = -1  # the last layer it came through
    open: bool = False  # that layer has met no activation yet
    plain: bool = True  # nothing but activations, pooling and moves since then: no sum of branches, no normalisation
    stretch: float = 0.0  # variance of the samples' length along the mean, over its square: this closes no unit
    draw: Tensor | None = None  # values, one a probe, that go with the slopes before it: sums of branches keep them
    applied: tuple[Any, ...] | None = None  # the activation whose output this is: function, arguments, state before it

    @property
    def second(self) -> Tensor:
        """The mean square."""
        return self.variance + self.mean**2

    def drawn(self, like: Tensor) -> Tensor:
        """Its values, or fresh ones for the elements of `like`."""
        return self.draw if self.draw is not None else spread(self.mean, self.variance, like)


def state_of(value: Tensor, probes: int, *, around: Tensor | None = None, raw: bool = False) -> State:
    """Mean and variance over the samples of an example, and a probe that nothing came before.

    One sample shows no spread. It then stands for inputs of its size in random directions: the mean is `around` (a
    bias, or 0), and the variance its mean square around that.
    """
    value = value.detach().double()
    if len(value) > 1:
        mean, variance = value.mean(0, keepdim=True), value.var(0, keepdim=True)
    else:
        mean = torch.zeros_like(value) if around is None else around.detach().double().expand_as(value)
        variance = (value - mean).square().mean().expand_as(value)
    probe = torch.zeros((probes, *value.shape[1:]), dtype=torch.float64, device=value.device, requires_grad=True)
    return State(mean=mean, variance=variance, probe=probe, raw=raw)


def spread(mean: Tensor, variance: Tensor, like: Tensor) -> Tensor:
    """Draws with this mean and variance, one for each element of `like`."""
    return mean + variance.clamp_min(0.0).sqrt() * torch.randn_like(like)


def shown(value: Tensor, like: Tensor) -> Tensor:
    """The example's own values, a row a probe: probes take its samples in turn, the same ones in every layer."""
    return value.detach().double()[torch.arange(len(like), device=value.device) % len(value)]


def normal_means(
    row: Activation, parameters: Mapping[str, float], mean: NDArray[np.float64], variance: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """E[f(z)] and E[f(z)^2] for z ~ N(mean, variance), unit by unit.

    A variance of 0 gives the values at the mean. Gauss-Legendre panels, split for each unit at the function's kinks.
    """
    arguments = row.arguments(**parameters)
    width = np.sqrt(np.maximum(variance, 0.0))
    centre = mean[:, None]
    bends = np.array([*_AT_BENDS, *row.breaks(**arguments)])
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        moved = np.nan_to_num((bends - centre) / width[:, None], nan=0.0)
    edges = np.sort(np.clip(np.concatenate([moved, np.tile(_IN_DEVIATIONS, (len(mean), 1))], axis=1), -8.0, 8.0))
    z, weight = panels(edges, _NODES)
    x = centre + width[:, None] * z
    with np.errstate(over="ignore", invalid="ignore"):
        y = row.value(x, **arguments)
        return (weight * y).sum(1), (weight * y * y).sum(1)


def share_beyond(edges: tuple[float, float], mean: NDArray[np.float64], variance: NDArray[np.float64]) -> Any:
    """The share of z ~ N(mean, variance) at or beyond the two edges, unit by unit."""
    from scipy.special import ndtr  # here, as in the catalogue: it takes longer to load than all else

    low, high = edges
    width = np.sqrt(np.maximum(variance, 0.0))
    spread = np.where(width > 0, width, 1.0)
    normal = ndtr((low - mean) / spread) + ndtr((mean - high) / spread)
    return np.where(width > 0, normal, ((mean <= low) | (mean >= high)).astype(float))
