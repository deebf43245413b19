"""Forecasts against measured backward passes, closed forms and published numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relume import forecast
from relume.activations import ACTIVATIONS, activation
from relume.forecast.moments import normal_means, share_beyond
from relume.report.forecast import Forecast
from relume.theory import expected_dead_share, moments, propagate


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mlp(
    act: Callable[[], nn.Module], depth: int, width: int, seed: int = 0, sigma_w2: float = 2.0, outputs: int = 10
) -> nn.Sequential:
    """Normal weights of variance sigma_w2 / fan_in, biases zero."""
    generator = torch.Generator().manual_seed(seed)
    widths = [64, *[width] * depth, outputs]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layer = nn.Linear(fan_in, fan_out)
        nn.init.normal_(layer.weight, std=math.sqrt(sigma_w2 / fan_in), generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, act()]
    return nn.Sequential(*layers[:-1])


def drawn(model: nn.Module, seed: int) -> nn.Module:
    """Weights from torch's default distribution, from this seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in model.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
    return model


def measured(model: nn.Module, x: Any, seeds: int = 4) -> list[float]:
    """The rms gradient at the output of each layer over the last one's, by backward passes of random gradients."""
    squares: list[float] = []
    for seed in range(seeds):
        outputs: list[Tensor] = []

        def keep(_: nn.Module, __: object, output: Tensor, outputs: list[Tensor] = outputs) -> None:
            output.retain_grad()
            outputs.append(output)

        hooks = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        y = model(x)
        y.backward(noise(seed, *y.shape).to(y))
        for hook in hooks:
            hook.remove()
        found = [float(o.grad.double().square().mean()) for o in outputs if o.grad is not None]
        squares = [a + b for a, b in zip(squares or [0.0] * len(found), found, strict=True)]
    return [math.sqrt(s / squares[-1]) for s in squares]


def off(foreseen: Forecast, seen: list[float]) -> float:
    """The largest relative error of a layer's gradient."""
    return max(abs((layer.gradient or 0.0) / b - 1) for layer, b in zip(foreseen.layers, seen, strict=True))


# Against measured backward passes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma_w2", [1 / 3, 1.0, 2.0])
@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.SELU, nn.LeakyReLU], ids=lambda a: a.__name__)
def test_an_mlp_is_foreseen_within_ten_percent(act: Callable[[], nn.Module], sigma_w2: float):
    """At every one of 16 layers the gradient is within 10 % of a measured backward pass of the same weights."""
    model, x = mlp(act, 15, 128, seed=3, sigma_w2=sigma_w2).double(), noise(5, 256, 64).double()
    assert off(forecast(model, x), measured(model, x)) < 0.1


class Gated(nn.Module):
    """Squeeze and excitation: each channel times a gate that reads all of the sample."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(channels, channels, 3, padding=1), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return torch.relu(h * torch.sigmoid(self.gate(h.mean((2, 3))))[:, :, None, None])


def normalised(act: Callable[[], nn.Module]) -> nn.Module:
    parts = [part for _ in range(10) for part in (nn.Linear(64, 64), nn.LayerNorm(64), act())]
    return nn.Sequential(nn.Flatten(), *parts, nn.Linear(64, 10))


TOGETHER: dict[str, Callable[[], nn.Module]] = {
    "SiLU": lambda: nn.Sequential(nn.Flatten(), *mlp(nn.SiLU, 10, 256)),
    "Hardswish": lambda: nn.Sequential(nn.Flatten(), *mlp(nn.Hardswish, 10, 256)),
    "LayerNorm": lambda: drawn(normalised(nn.GELU), seed=1),
    "gates": lambda: drawn(
        nn.Sequential(nn.Conv2d(1, 16, 3), Gated(16), Gated(16), nn.Flatten(), nn.Linear(576, 10)), seed=1
    ),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_slopes_of_one_sample_hang_together(name: str):
    """Where some samples carry more of the gradient than others, it is within 10 % still: drawn apart, it is not."""
    x = noise(2, 128, 1, 8, 8).double()
    model = TOGETHER[name]().double()
    assert off(forecast(model, x), measured(model, x, seeds=8)) < 0.1


def convolutions(*, norm: Callable[[int], nn.Module], act: Callable[[], nn.Module], pool: nn.Module) -> nn.Module:
    parts: list[nn.Module] = []
    for fan_in in (1, 16, 16, 16):
        parts += [nn.Conv2d(fan_in, 16, 3, padding=1), norm(16), act()]
    return nn.Sequential(*parts, pool, nn.Conv2d(16, 16, 3, stride=2), act(), nn.Flatten(), nn.Linear(16, 10))


class Residual(nn.Module):
    def __init__(self, width: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), norm(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.branch(x))


def residual(norm: Callable[[int], nn.Module]) -> nn.Module:
    blocks = [Residual(16, norm) for _ in range(3)]
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )


NOTHING = lambda _: nn.Identity()  # noqa: E731 - a norm that is none


IMAGES: dict[str, Callable[[], nn.Module]] = {
    "max-pool": lambda: convolutions(norm=NOTHING, act=nn.ReLU, pool=nn.MaxPool2d(2)),
    "average": lambda: convolutions(norm=NOTHING, act=nn.Tanh, pool=nn.AvgPool2d(2)),
    "BatchNorm": lambda: convolutions(norm=nn.BatchNorm2d, act=nn.ReLU, pool=nn.MaxPool2d(2)),
    "GroupNorm": lambda: convolutions(norm=lambda c: nn.GroupNorm(4, c), act=nn.GELU, pool=nn.AvgPool2d(2)),
    "InstanceNorm": lambda: convolutions(norm=nn.InstanceNorm2d, act=nn.ReLU, pool=nn.AvgPool2d(2)),
    "residual": lambda: residual(NOTHING),
    "residual with BatchNorm": lambda: residual(nn.BatchNorm2d),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_convolutional_network_is_foreseen_within_ten_percent(name: str):
    """Convolutions, pooling, normalisation and sums of branches: within 10 % of a measured backward pass."""
    model, x = drawn(IMAGES[name](), seed=1).double(), noise(2, 128, 1, 8, 8).double()
    assert off(forecast(model, x), measured(model, x)) < 0.1


def test_max_pooling_picks_what_the_activation_lets_through():
    """Right behind zero-bias ReLU layers, where nearly every maximum is positive: half of the slopes would be wrong."""
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 10)
    )  # fmt: skip
    model, x = drawn(model, seed=0).double(), noise(0, 256, 1, 8, 8).double()
    nn.init.zeros_(next(p for n, p in model.named_parameters() if n == "0.bias"))
    foreseen = forecast(model, x)
    assert foreseen.measured == ("2: max_pool2d has no rule; its effect was measured on the example",)
    assert off(foreseen, measured(model, x)) < 0.1


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_normalisation_by_batch_and_by_running_statistics(mode: str):
    """BatchNorm counts as it runs: by the batch in training, by its running statistics in evaluation."""
    model = drawn(nn.Sequential(*[p for _ in range(3) for p in (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Tanh())]), 0)
    model = nn.Sequential(model, drawn(nn.Linear(64, 10), 1))
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_var.fill_(0.1)  # type: ignore[union-attr] - it tracks them
    model.train(mode == "training").double()
    x = noise(0, 256, 64).double()
    assert off(forecast(model, x), measured(model, x)) < 0.1


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm], ids=lambda n: n.__name__)
def test_normalisation_by_sample(norm: Callable[[int], nn.Module]):
    """LayerNorm and RMSNorm, with what they take out of the gradient."""
    parts = [p for _ in range(4) for p in (nn.Linear(64, 64), norm(64), nn.SiLU())]
    model, x = drawn(nn.Sequential(*parts, nn.Linear(64, 64)), seed=2).double(), noise(1, 256, 64).double()
    assert off(forecast(model, x), measured(model, x)) < 0.1


def test_dropout_in_training():
    """Dropout makes mean squares grow, forward and back."""
    model = mlp(lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.3)), 6, 128).double()
    x = noise(1, 256, 64).double()
    assert off(forecast(model, x), measured(model, x)) < 0.1


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.value, self.gate, self.last = (nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(3 * self.value(h) * torch.sigmoid(self.gate(h)) - 1.0)


def test_products_and_constants():
    """A gate, a factor and a shift."""
    model, x = drawn(Gate(), seed=0).double(), noise(0, 256, 64).double()
    assert off(forecast(model, x), measured(model, x)) < 0.1


# Against theory -------------------------------------------------------------------------------------------------------


def test_one_sample_gives_the_mean_field_numbers():
    """From one sample all is theory: q and the gradient's factor follow the mean-field recursion."""
    foreseen = forecast(mlp(nn.Tanh, 10, 500, sigma_w2=1.0, outputs=500), noise(0, 1, 64))
    theory = propagate("tanh", 10, sigma_w2=1.0, q0=foreseen.layers[0].q)
    for layer, q, chi in zip(foreseen.layers, theory.q, theory.chi, strict=False):
        assert layer.q == pytest.approx(q, rel=0.1)
        assert (layer.factor or 0.0) ** 2 == pytest.approx(chi, rel=0.08)


def test_deep_sigmoid_is_the_published_catastrophe():
    """Sigmoid at Xavier over 30 layers loses the gradient by the factor of Schoenholz's theory, and says so first."""
    foreseen = forecast(mlp(nn.Sigmoid, 30, 256, sigma_w2=1.0), noise(0, 128, 64))
    # Mean square 5.9e-19 from layer 1 to 30 at width 1000, by an independent measurement: reference, section 1.
    assert foreseen.gradient_ratio is not None
    assert math.log10(foreseen.gradient_ratio) == pytest.approx(math.log10(5.86e-19), abs=1.0)
    assert str(foreseen).startswith("Gradients shrink ")
    assert "Sigmoid with weights of Xavier's scale" in str(foreseen).splitlines()[0]
    assert all(layer.off_critical for layer in foreseen.layers[:-1])


def test_he_and_relu_are_healthy():
    """The healthy twin: ReLU at He's scale keeps its gradients, and nothing is advised."""
    foreseen = forecast(mlp(nn.ReLU, 5, 256), noise(0, 128, 64))
    assert foreseen.healthy
    assert foreseen.advice == ()
    assert str(foreseen).startswith("Gradients keep their size")
    assert not any(layer.off_critical for layer in foreseen.layers[:-1])


def test_dead_units_before_training_are_those_of_theory():
    """Over ten seeds, the share born dead at layer 10 is what the correlation of two inputs predicts."""
    shares = [
        forecast(mlp(nn.ReLU, 10, 256, seed=seed), noise(seed, 512, 64)).layers[9].dead_share or 0.0
        for seed in range(10)
    ]
    assert np.mean(shares) == pytest.approx(expected_dead_share(10, 1000), rel=0.25)


def test_dead_units_are_those_that_a_thousand_inputs_leave_silent():
    """Layer by layer, the share foreseen from 64 inputs is the share that 1000 fresh inputs never open."""
    model = mlp(nn.ReLU, 12, 256, seed=1)
    foreseen, h = forecast(model, noise(1, 64, 64)), noise(2, 1000, 64)
    for layer in foreseen.layers[:12]:
        h = torch.relu(model.get_submodule(layer.name)(h))
        assert layer.dead_share == pytest.approx(float((h.detach().amax(0) <= 0).double().mean()), abs=0.04)


def test_units_between_the_ends_of_softshrink_are_foreseen_dead():
    """Of a softshrink layer with small weights, the share foreseen is the share that 1000 fresh inputs leave flat."""
    model = mlp(nn.Softshrink, 3, 256, seed=3, sigma_w2=0.02)
    foreseen, x = forecast(model, noise(1, 64, 64)).layers[0], noise(2, 1000, 64)
    z = model[0](x).detach()  # type: ignore[operator] - a Linear
    share = float((z.abs() <= 0.5).all(0).double().mean())
    assert foreseen.dead_share == pytest.approx(share, abs=0.1)
    assert share > 0.1


def test_a_bias_closes_its_units():
    """96 of 128 units with a bias of -30 are foreseen dead, also from a single sample, and named."""
    model = mlp(nn.ReLU, 2, 128)
    nn.init.constant_(model[0].bias[:96], -30.0)  # type: ignore[index] - a Linear
    for x in (noise(0, 64, 64), noise(0, 1, 64)):
        foreseen = forecast(model, x)
        assert foreseen.layers[0].dead_share == pytest.approx(0.75, abs=0.01)
        assert not foreseen.healthy
        assert foreseen.because == ("75 % of the 128 units of layer 0 will be silent on 1,000 samples.",)
        assert foreseen.advice == ("Set the biases of the closed layers to 0.",)


def test_saturation_is_the_mass_on_the_flat_ends():
    """The share of saturated values is that of fresh pre-activations whose slope is below 1 % of the steepest."""
    model = mlp(nn.Tanh, 3, 256, sigma_w2=25.0)
    foreseen, h = forecast(model, noise(0, 64, 64)), noise(1, 2000, 64)
    z = model[2](model[1](model[0](h)))
    assert foreseen.layers[1].saturated_share == pytest.approx(
        float((1 - z.tanh() ** 2 < 0.01).double().mean()), abs=0.02
    )
    assert "are saturated" in str(foreseen).splitlines()[0] or "grow" in str(foreseen).splitlines()[0]


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh, nn.ELU], ids=lambda a: a.__name__)
def test_the_advised_scale_mends(act: Callable[[], nn.Module]):
    """Weights multiplied by the advised factors pass the gradient on over 25 layers, by a measured backward pass."""
    model, x = mlp(act, 25, 128, sigma_w2=1 / 3), noise(0, 64, 64)
    foreseen = forecast(model, x)
    assert foreseen.gradient_ratio is not None
    assert foreseen.gradient_ratio < 1e-3
    assert "column scale" in foreseen.advice[0]
    with torch.no_grad():
        for layer in foreseen.layers:
            model.get_submodule(layer.name).weight.mul_(layer.scale)  # type: ignore[operator] - a tensor
    seen = measured(model, x)
    assert 1 / 3 < seen[0] / seen[-2] < 3


# Expectations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [n for n, row in ACTIVATIONS.items() if row.layout == "elementwise" and row.operands == 1]
)
def test_means_over_a_normal_are_those_of_theory(name: str):
    """For every elementwise function of one number, mean and mean square are those of the scalar quadrature."""
    row = activation(name)
    for q in (1e-4, 0.3, 1.0, 4.0):
        mean, second = normal_means(row, {}, np.array([0.0]), np.array([q]))
        exact = moments(row, q)
        assert mean[0] == pytest.approx(exact.mean, rel=2e-3, abs=1e-6)
        assert second[0] == pytest.approx(exact.second, rel=2e-3, abs=1e-9)


def test_means_off_centre_have_closed_forms():
    """ReLU of N(m, v) by its closed form, and of a constant by itself."""
    m, v = np.array([-2.0, 0.5, 3.0, -1.0]), np.array([1.0, 4.0, 0.25, 0.0])
    mean, second = normal_means(activation("relu"), {}, m, v)
    s = np.sqrt(v[:3])
    density = np.exp(-((m[:3] / s) ** 2) / 2) / math.sqrt(2 * math.pi)
    below = np.array([0.5 * math.erfc(-a / math.sqrt(2)) for a in m[:3] / s])
    assert mean[:3] == pytest.approx(m[:3] * below + s * density, rel=1e-5)
    assert second[:3] == pytest.approx((m[:3] ** 2 + v[:3]) * below + m[:3] * s * density, rel=1e-5)
    assert mean[3] == second[3] == 0.0
    assert share_beyond((0.0, math.inf), m, v).tolist() == pytest.approx([*(1 - below), 1.0])
