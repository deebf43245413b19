"""Forecasts against measured backward passes, closed forms and published numbers; and what cannot be followed."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import NETS
from torch import Tensor, nn

from relume import forecast
from relume.activations import ACTIVATIONS, activation
from relume.errors import RelumeError
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


# Whatever the network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_no_network_is_too_awkward(name: str):
    """Every awkward network gets a forecast, twice the same; model, modes, generators and gradients stay."""
    model, x = NETS[name](0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    foreseen = forecast(model, x)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert foreseen == forecast(model, x)
    linear = {n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and "self_attn" not in n}
    linear -= {"again"}  # its weight is that of `inner`, by which it is known
    assert linear <= {layer.name for layer in foreseen.layers}
    assert all(layer.gradient for layer in foreseen.layers)
    assert json.loads(json.dumps(foreseen.to_json()))["layers"][0]["name"] == foreseen.layers[0].name
    assert max(map(len, foreseen.text(60).splitlines())) <= 60


class Leaves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.relu(torch.from_numpy(self.before(x).detach().numpy())))


def test_what_leaves_torch_is_named():
    """Where values go through NumPy, the module is named, and what lies behind is still foreseen."""
    foreseen = forecast(Leaves(), noise(0, 16, 6))
    assert any("the model: its values leave torch (numpy)" in said for said in foreseen.not_modelled)
    assert any(said.startswith("after: where its input comes from") for said in foreseen.not_modelled)
    assert [layer.gradient for layer in foreseen.layers] == [None, 1.0]
    assert "no gradient was foreseen here" in str(foreseen)


def test_a_model_that_fails_is_foreseen_up_to_there():
    """The module that raises is named, with its error; q and dead units of the layers before it are foreseen."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Linear(9, 3)))
    foreseen = forecast(model, noise(0, 16, 6))
    assert foreseen.not_modelled[0].startswith("2.0: the forward pass fails (RuntimeError: mat1 and mat2")
    assert foreseen.layers[0].dead_share is not None
    assert foreseen.gradient_ratio is None
    assert str(foreseen).startswith("No gradient could be followed over 1 layer")


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.memory, self.last = nn.Linear(5, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.memory(torch.relu(self.first(x)))[0][:, -1])


def test_a_recurrent_kernel_is_measured_and_listed():
    """An LSTM has no rule: it is named as measured, and the gradient through it is that of a backward pass."""
    model, x = drawn(Recurrent(), seed=0), noise(0, 256, 7, 5)
    foreseen = forecast(model, x)
    assert foreseen.measured == ("memory: lstm has no rule; its effect was measured on the example",)
    assert any("LSTM applies its activations inside one fused kernel" in said for said in foreseen.not_modelled)
    assert off(foreseen, measured(model, x)) < 0.15


def test_a_branch_that_starts_at_zero_passes_no_gradient():
    """A residual branch whose last layer is zero: no gradient inside it, all of it beside it."""
    model = residual(NOTHING)
    for part in model.modules():
        if isinstance(part, Residual):
            nn.init.zeros_(next(part.branch[-1].parameters()))
    layers = {layer.name: layer for layer in forecast(drawn_first(model), noise(0, 64, 1, 8, 8)).layers}
    assert layers["2.branch.0"].gradient == 0.0
    assert (layers["0"].gradient or 0.0) > 0.0


def drawn_first(model: nn.Module) -> nn.Module:
    nn.init.normal_(model[0].weight, generator=torch.Generator().manual_seed(0))  # type: ignore[index]
    return model


@pytest.mark.parametrize(
    "example",
    [noise(0, 6), {"input": noise(0, 32, 6)}, (noise(0, 32, 6),), noise(0, 32, 6).double()],
    ids=["one vector", "keywords", "tuple", "double"],
)
def test_any_form_of_example(example: Any):
    """A lone vector, keyword arguments, a tuple and float64 all serve as the example."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    model = drawn(model, 0).double() if isinstance(example, Tensor) and example.dtype == torch.float64 else model
    assert len(forecast(model, example).layers) == 2


def test_an_example_without_numbers():
    """The error says what was asked, what was found and what to pass."""
    with pytest.raises(RelumeError, match=r"holds no floating point tensor(.|\n)*Pass what the model is called with"):
        forecast(nn.Identity(), torch.zeros(3, dtype=torch.int64))


def test_saving(tmp_path: Path):
    """JSON and one offline page by the suffix; another suffix, and a path that cannot be, are refused with reasons."""
    foreseen = forecast(mlp(nn.ReLU, 3, 32), noise(0, 32, 64))
    assert json.loads(foreseen.save(tmp_path / "new" / "f.json").read_text())["healthy"] is True
    html = foreseen.save(tmp_path / "f.html").read_text()
    assert "<table>" in html
    assert "default-src 'none'" in html and "src=" not in html.split("<body>")[1].split("<script")[0]
    assert "<table>" in foreseen._repr_html_()
    with pytest.raises(RelumeError, match=r"cannot save as 'f.txt'(.|\n)*Use .html or .json, such as 'f.html'"):
        foreseen.save(tmp_path / "f.txt")
    with pytest.raises(RelumeError, match="cannot write"):
        foreseen.save(tmp_path / "f.json" / "g.json" if (tmp_path / "f.json").touch() is None else "")


# What is given twice, cut off or not finite ---------------------------------------------------------------------------


class Between(nn.Module):
    """An operation between two layers."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.act = nn.Linear(8, 16), nn.Linear(16, 3), act

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.first(x)))


@pytest.mark.parametrize(
    "act",
    [
        lambda h: h * h,
        lambda h: torch.where(h > 1, h, 0.1 * h),
        lambda h: nn.functional.bilinear(h, h, noise(3, 16, 16, 16)),
        lambda h: torch.relu(h) ** 2,
        lambda h: torch.softmax(torch.tanh(h), -1),
        lambda h: torch.square(nn.functional.relu(h, inplace=True)),
    ],
    ids=["h * h", "where", "bilinear", "relu squared", "softmax", "in place"],
)
def test_an_operation_without_a_rule_is_measured(act: Callable[[Tensor], Tensor]):
    """A tensor given twice has one gradient, and an activation right before is taken together with the operation."""
    model, x = drawn(Between(act), seed=0), noise(1, 512, 8)
    foreseen = forecast(model, x)
    assert foreseen.measured
    # Behind an activation 3 %, by simulation: taken apart, relu squared is 32 % off.
    assert off(foreseen, measured(model, x, seeds=8)) < (0.12 if foreseen.layers[0].activation is None else 0.06)


def test_an_activation_in_place_is_not_taken_twice():
    """What an in-place sigmoid read is gone: the forecast is that of the twin that keeps it."""
    model, x = drawn(Between(lambda h: torch.square(h.sigmoid_())), seed=0), noise(1, 512, 8)
    twin = drawn(Between(lambda h: torch.square(h.sigmoid())), seed=0)
    assert off(forecast(model, x), measured(twin, x, seeds=8)) < 0.06


class Attention(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, 32), nn.Linear(32, 5)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.last(self.attention(h, h, h)[0])


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_is_measured_as_one_call(batch_first: bool):
    """Self-attention carries the gradient, whichever axis the samples have; more samples than probes too."""
    model, x = drawn(Attention(batch_first), seed=0), noise(1, 60, 48, 32)
    foreseen = forecast(model, x)
    assert foreseen.measured == ("attention: MultiheadAttention has no rule; its effect was measured on the example",)
    assert off(foreseen, measured(model, x, seeds=8)) < 0.1
    assert not any(hooks for part in model.modules() for hooks in (part._forward_hooks, part._forward_pre_hooks))


def test_a_transformer_is_foreseen():
    """Layers of torch's own encoder are within 10 % of a measured backward pass."""
    parts = [nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(2)]
    model, x = drawn(nn.Sequential(*parts, nn.Linear(32, 5)), seed=0), noise(0, 64, 10, 32)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "self_attn" not in n]
    foreseen = forecast(model, x)
    assert [layer.name for layer in foreseen.layers] == names
    assert off(foreseen, measured(model, x)) < 0.1


class FailsBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override] - torch's own is untyped
        ctx.back = 0
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # type: ignore[override] - torch's own is untyped
        # Zeros come when it is tried out, another gradient when it counts.
        if gradients[0].any():
            raise ZeroDivisionError("no gradient from here")
        return gradients[0]


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.inner = nn.Linear(8, 32), nn.Linear(32, 3), nn.MultiheadAttention(32, 1)
        self.inner.forward = lambda q, k, v: (FailsBack.apply(q), None)  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(self.inner(h, h, h)[0])


def test_a_gradient_that_fails_is_named():
    """What a measured call raises on the way back reaches the record with its module, and nobody raw."""
    foreseen = forecast(Sparse(), noise(0, 16, 8))
    said = "inner: the gradient of MultiheadAttention fails (ZeroDivisionError: no gradient from here)"
    assert said in foreseen.not_modelled
    assert foreseen.gradient_ratio is None


class Severed(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b, self.c, self.d = (nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.how != "no_grad"):
            h = torch.tanh(self.b(torch.tanh(self.a(x))))
        h = h.detach() if self.how == "detach" else h
        return self.d(torch.tanh(self.c(h)))


@pytest.mark.parametrize("how", ["detach", "no_grad"])
def test_what_lets_no_gradient_back_cuts_only_what_is_before(how: str):
    """Layers before it get exactly 0 and those behind it what they get without it; the forecast says what stops it."""
    model, x = drawn(Severed(how), seed=0), noise(0, 256, 64)
    foreseen = forecast(model, x)
    gradients = [layer.gradient or 0.0 for layer in foreseen.layers]
    assert gradients[:2] == [0.0, 0.0]
    assert gradients[2] == pytest.approx(measured(drawn(Severed("nothing"), 0), x)[-2], rel=0.1)
    assert foreseen.gradient_ratio == 0.0
    assert str(foreseen).startswith("No gradient reaches the first layer")
    assert foreseen.because[0].startswith("No gradient arrives at a: ")
    assert how in foreseen.because[0]
    assert foreseen.not_modelled == ()
    whole = forecast(drawn(Severed("nothing"), seed=0), x)
    assert whole.gradient_ratio and whole.healthy


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override] - torch's own is untyped
        with torch.no_grad():
            return 2 * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # type: ignore[override] - torch's own is untyped
        return 2 * gradients[0]


def test_an_autograd_function_sends_its_gradient_back():
    """Gradients are off inside the forward pass of every autograd.Function: that cuts nothing."""
    model, x = drawn(Between(Twice.apply), seed=0), noise(0, 64, 8)  # type: ignore[arg-type] - untyped in torch
    foreseen = forecast(model, x)
    assert off(foreseen, measured(model, x)) < 0.1


def test_a_last_layer_of_zeros():
    """No gradient reaches the layers before it: the ratio is 0, and the reason is named."""
    model = mlp(nn.ReLU, 3, 32)
    nn.init.zeros_(model[-1].weight)  # type: ignore[arg-type] - a Linear
    foreseen = forecast(model, noise(0, 64, 64))
    assert foreseen.gradient_ratio == 0.0
    assert foreseen.because == ("No gradient arrives at layer 0: the weights of layer 6 are all 0.",)
    assert str(foreseen).startswith("No gradient reaches the first layer over 3 layers")


def test_a_value_written_into_another_tensor():
    """What is written by index is not followed, and said: no gradient is claimed to be 0."""

    def write(h: Tensor) -> Tensor:
        out = torch.zeros_like(h)
        out[:, :4] = h[:, :4]
        return out

    foreseen = forecast(Between(write), noise(0, 16, 8))
    assert any("written into another tensor are not followed" in said for said in foreseen.not_modelled)
    assert foreseen.layers[0].gradient is None


@pytest.mark.parametrize("where", ["input", "weight", "overflow", "float64"])
def test_what_is_not_finite_is_named(where: str, tmp_path: Path):
    """NaN in the input and in a weight, and overflow: each by its name, without dead shares and warnings."""
    model, x = mlp(nn.ReLU, 6, 32), noise(0, 64, 64)
    if where == "input":
        x[0, 0] = math.nan
    elif where == "weight":
        with torch.no_grad():
            model[2].weight[0, 0] = math.nan  # type: ignore[index] - a Linear
    else:
        model, x = (model.double(), x.double()) if where == "float64" else (model, x)
        for part in model.parameters():
            part.data.mul_(1e60 if where == "float64" else 1e9)
    foreseen = forecast(model, x)
    assert str(foreseen).startswith("Values are not finite over 6 layers")
    said = {
        "input": ("The example input holds NaN or infinite values.",),
        "weight": ("2.weight holds NaN.",),
        "overflow": ("Values overflow: at layer 8 they are no longer finite.",),
        "float64": ("Values overflow: at layer 4 they are no longer finite.",),
    }
    assert foreseen.because == said[where]
    assert not foreseen.advice
    assert all(layer.dead_share is None for layer in foreseen.layers if not math.isfinite(layer.q))
    assert "times" not in str(foreseen)
    foreseen.save(tmp_path / "f.html")
    foreseen.save(tmp_path / "f.json")


# What gives no forecast -----------------------------------------------------------------------------------------------


def traced(model: nn.Module, x: Tensor) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own: it is to go, and is still met
        return torch.jit.trace(model, x)  # type: ignore[return-value] - a module, of a module


@pytest.mark.parametrize(
    ("model", "example", "said"),
    [
        (nn.Identity(), noise(0, 4, 8), ""),
        (nn.Sequential(nn.ReLU()), noise(0, 4, 8), ""),
        (nn.LSTM(8, 8), noise(0, 4, 5, 8), "LSTM applies its activations inside one fused kernel"),
        (nn.Sequential(nn.Linear(9, 3)), noise(0, 4, 8), "0: the forward pass fails (RuntimeError: mat1 and mat2"),
        (nn.Linear(8, 3), {"wrong": noise(0, 4, 8)}, "the model: the forward pass fails (TypeError: "),
        (traced(nn.Linear(8, 3), noise(0, 4, 8)), noise(0, 4, 8), "compiled TorchScript does not show"),
    ],
    ids=["identity", "relu", "lstm", "first layer fails", "wrong key", "traced"],
)
def test_a_model_whose_layers_are_not_reached(model: nn.Module, example: Any, said: str, tmp_path: Path):
    """The record says that there is nothing to foresee, and why; a model that fails is not healthy."""
    foreseen = forecast(model, example)
    assert foreseen.layers == ()
    assert str(foreseen).startswith("No layer with weights was reached: there is nothing to foresee.")
    assert said in " ".join(foreseen.not_modelled)
    assert foreseen.healthy == ("fails" not in said)
    assert foreseen.save(tmp_path / "f.html").exists()


def test_no_samples():
    """An empty batch is refused."""
    with pytest.raises(RelumeError, match=r"holds no samples(.|\n)*Pass one sample or more"):
        forecast(nn.Linear(8, 3), torch.zeros(0, 8))


def test_no_module():
    """A function is refused, by its type."""
    with pytest.raises(RelumeError, match=r"of type function, which is no torch.nn.Module(.|\n)*forecast\(model"):
        forecast(lambda x: x, torch.zeros(1, 8))  # type: ignore[arg-type] - on purpose


def test_an_image_without_a_batch_axis():
    """It would run with channels in the place of samples: the error says where and what to pass."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    with pytest.raises(RelumeError, match=r"layer 0 was given one sample of shape \(3, 32, 32\)(.|\n)*input\[None\]"):
        forecast(model, noise(0, 3, 32, 32))
    assert forecast(model, noise(0, 1, 3, 32, 32)).layers


def test_the_example_stays_as_it_is():
    """A first module that works in place changes nothing of the caller's."""
    x = noise(0, 16, 8)
    forecast(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 3)), (x,))
    assert torch.equal(x, noise(0, 16, 8))


def test_a_compiled_model_is_followed_in_its_original_form():
    """What torch.compile wraps gives the forecast of the model inside."""
    model, x = mlp(nn.ReLU, 3, 32), noise(0, 64, 64)
    wrapped = nn.Module()
    wrapped._orig_mod = model  # as torch._dynamo.OptimizedModule has it, without the time to load it
    assert forecast(wrapped, x) == forecast(model, x)


def test_a_map_opens_a_unit_at_any_position():
    """Dead units of convolutions with negative biases are those that no position of 1000 fresh images opens."""
    generator, parts = torch.Generator().manual_seed(0), []
    for fan_in in (3, 32):
        layer = nn.Conv2d(fan_in, 32, 3, padding=1)
        nn.init.kaiming_normal_(layer.weight, generator=generator)
        nn.init.constant_(layer.bias, -1.5)  # type: ignore[arg-type] - it has one
        parts += [layer, nn.ReLU()]
    model, h = nn.Sequential(*parts), noise(1, 1000, 3, 8, 8)
    foreseen = forecast(model, noise(2, 128, 3, 8, 8))
    for layer, part in zip(foreseen.layers, range(0, 4, 2), strict=True):
        h = model[part + 1](model[part](h)).detach()
        assert layer.dead_share == pytest.approx(float((h.amax((0, 2, 3)) <= 0).double().mean()), abs=0.02)


def test_biases_are_blamed_only_where_there_are_some():
    """Units that the inputs close, without biases, get no advice about biases."""
    model = mlp(nn.ReLU, 2, 128)
    nn.init.uniform_(model[0].weight, -1.0, 0.2, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    foreseen = forecast(model, noise(0, 64, 64).abs())
    assert (foreseen.layers[0].dead_share or 0.0) > 0.5
    assert not any("biases of the closed" in advice for advice in foreseen.advice)


def test_a_notebook_cell_and_a_narrow_terminal():
    """The cell has a style of its own and no page heading; 40 columns are enough for the text."""
    model = nn.Sequential(nn.Linear(16, 8), nn.LeakyReLU(), nn.Linear(8, 2))
    foreseen = forecast(model, noise(0, 8, 16))
    foreseen = replace(foreseen, layers=tuple(replace(x, name=f"classifier.{x.name}.linear") for x in foreseen.layers))
    cell = foreseen._repr_html_()
    assert "<style>.relume" in cell and "<h1>" not in cell and "<figure" not in cell
    assert max(map(len, foreseen.text(40).splitlines())) <= 40


def test_the_chart_names_layers_as_the_table_does(tmp_path: Path):
    """The page's chart has the layers' own names."""
    html = forecast(mlp(nn.ReLU, 3, 32), noise(0, 32, 64)).save(tmp_path / "f.html").read_text()
    assert '"names":["0","2","4","6"]' in html
