"""Initialisation of whole networks: against torch's own, against theory, and on awkward networks."""

import copy
import doctest
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from nets import NETS
from torch import Tensor, nn

from relume import initialise
from relume.errors import RemedyError
from relume.initialise import SCHEMES, fans_of, init_
from relume.remedies import treat
from relume.theory import critical

torch.set_num_threads(1)


def part(model: nn.Module, path: str) -> Any:
    return model.get_submodule(path)


def stack(function: Callable[[], nn.Module], depth: int, width: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(width, width), function())], nn.Linear(width, 8))


def by_torch(model: nn.Module, draw: Callable[[Any, int], object], seed: int) -> nn.Module:
    """A copy with weights that torch's own function drew, layer by layer, and biases zero."""
    model = copy.deepcopy(model)
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    torch.manual_seed(seed)
    for index, layer in enumerate(layers):
        draw(layer.weight, len(layers) - 1 - index)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return model


def same_parameters(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(left.parameters(), right.parameters(), strict=True))


def images(function: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), function(), nn.Conv2d(8, 6, 3, groups=2), function(), nn.Flatten(), nn.LazyLinear(5)
    )


# --- agreement with torch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [None, 0.01, 0.3])
@pytest.mark.parametrize("convolutions", [False, True])
def test_he_is_torchs_own(slope: float | None, convolutions: bool):
    """From the same seed the same weights, bit for bit, as kaiming_normal_: ReLU and leaky ReLU, linear and not."""

    def function() -> nn.Module:
        return nn.ReLU() if slope is None else nn.LeakyReLU(slope)

    model = images(function) if convolutions else stack(function, 3, 20)
    if convolutions:
        model(torch.zeros(1, 3, 8, 8))  # LazyLinear takes its shape

    def draw(weight: Tensor, left: int) -> None:
        kind: Any = "linear" if left == 0 else "relu" if slope is None else "leaky_relu"
        nn.init.kaiming_normal_(weight, a=slope or 0, nonlinearity=kind)

    expected = by_torch(model, draw, seed=3)
    torch.manual_seed(3)
    init_(model, "he")
    assert same_parameters(model, expected)


def test_xavier_is_torchs_own():
    """From the same seed the same weights, bit for bit, as xavier_normal_, whatever the function."""
    for model in (stack(nn.Tanh, 3, 20), stack(nn.GELU, 2, 10), stack(nn.Sigmoid, 3, 10)):
        expected = by_torch(model, lambda weight, left: nn.init.xavier_normal_(weight), seed=4)
        torch.manual_seed(4)
        init_(model, "xavier")
        assert same_parameters(model, expected)


def test_lecun_has_variance_one_over_fan_in():
    """From the same seed the same weights as torch's normal_ with std 1 / sqrt(fan_in), bit for bit."""
    model = stack(nn.SELU, 3, 20)
    expected = by_torch(model, lambda weight, left: nn.init.normal_(weight, std=1 / math.sqrt(20)), seed=5)
    torch.manual_seed(5)
    init_(model, "lecun")
    assert same_parameters(model, expected)


def test_lsuv_starts_from_torchs_orthogonal_weights():
    """The weights are torch's orthonormal ones up to one number a layer, and outputs have variance 1 in the end."""
    model, x = stack(nn.Tanh, 3, 20), torch.randn(64, 20, generator=torch.Generator().manual_seed(6))
    expected = by_torch(model, lambda weight, left: nn.init.orthogonal_(weight), seed=6)
    torch.manual_seed(6)
    done = init_(model, "lsuv", example_input=x)
    for path in ("0", "2", "4", "6"):
        ratio = part(model, path).weight / part(expected, path).weight
        assert float(ratio.detach().std()) < 1e-4 * float(ratio.detach().mean())
    h = x
    for layer in model:
        h = layer(h)
        if isinstance(layer, nn.Linear):
            assert float(h.detach().std()) == pytest.approx(1, abs=0.1)
    assert "scaled to an output of standard deviation" in done.changes["0"]


def test_fans_agree_with_torch():
    """As torch counts them; a transposed convolution counts what a unit adds up, which a pass of ones shows."""
    for layer in (nn.Linear(5, 7), nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, (3, 2), groups=2)):
        assert fans_of(layer) == nn.init._calculate_fan_in_and_fan_out(layer.weight)
    layer = nn.ConvTranspose2d(4, 6, 4, stride=2, groups=2, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        middle = layer(torch.ones(1, 4, 9, 9))[0, 0, 8:12, 8:12]
    assert fans_of(layer)[0] == pytest.approx(float(middle.mean()))


# --- criticality ------------------------------------------------------------------------------------------------------


def gradient_range(model: nn.Sequential, seed: int) -> float:
    """The greatest gradient norm of a hidden pre-activation over the smallest."""
    seen: list[Tensor] = []
    torch.manual_seed(seed)
    h = torch.randn(64, part(model, "0").in_features)
    for layer in model:
        h = layer(h)
        if isinstance(layer, nn.Linear):
            seen.append(h)
    grads = torch.autograd.grad(h, seen[:-1], torch.randn_like(h))
    sizes = [float(g.double().norm()) for g in grads]
    return max(sizes) / min(sizes) if min(sizes) else math.inf


@pytest.mark.parametrize(
    "function",
    [nn.Tanh, nn.GELU, nn.ELU, nn.SELU, nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Mish, nn.Softplus, nn.Hardtanh, nn.Softsign],
)
def test_critical_keeps_gradients_through_thirty_layers(function: Callable[[], nn.Module]):
    """Gradient norms stay within a factor 4 where torch's default loses a factor 500 or more."""
    model = stack(function, 30, 256)
    assert gradient_range(model, 1) > 500
    init_(model)
    assert gradient_range(model, 1) < 4


def test_centred_sigmoids_are_tanh_networks():
    """Their gradients fall as slowly as those of tanh at sigma_w = 1, where torch's default leaves no gradient."""
    model, tanh = stack(nn.Sigmoid, 30, 200), stack(nn.Tanh, 30, 200)
    assert gradient_range(model, 2) > 1e12
    torch.manual_seed(2)
    init_(model, "sigmoid_centred")
    torch.manual_seed(2)
    init_(tanh, "lecun")
    # W = 4 W_tanh, and twice that at the input: the same network, with pre-activations twice as large
    with torch.no_grad():
        x = torch.randn(16, 200)
        assert torch.allclose(model[:7](x), 2 * tanh[:7](x), atol=2e-3)
    assert gradient_range(model, 2) == pytest.approx(gradient_range(tanh, 2), rel=0.02)
    assert gradient_range(model, 2) < 10


def test_critical_draws_what_theory_says():
    """Std, bias std and the centring of biases are those of the critical point; ends have gain 1 and no bias."""
    for function, name, centred in ((nn.Tanh, "tanh", False), (nn.Sigmoid, "sigmoid", True)):
        model = stack(function, 2, 900)
        done = init_(model)
        point = critical(name, centred=centred)
        first, inner, last = part(model, "0"), part(model, "2"), part(model, "4")
        rest = inner.bias.detach() + point.mean * inner.weight.detach().sum(1)
        assert float(inner.weight.detach().std()) == pytest.approx(math.sqrt(point.sigma_w2 / 900), rel=0.01)
        assert float(rest.std()) == pytest.approx(math.sqrt(point.sigma_b2), rel=0.1)
        assert float(rest.mean()) == pytest.approx(0, abs=0.1)
        assert float(first.weight.detach().std()) == pytest.approx(1 / 30, rel=0.01)
        assert float(last.weight.detach().std()) == pytest.approx(1 / 30, rel=0.03)
        assert not bool(first.bias.any())
        assert torch.allclose(last.bias, -point.mean * last.weight.sum(1), atol=1e-4)
        assert f"(critical for {name})" in done.changes["2"]


def test_each_layer_is_drawn_for_what_feeds_it():
    """In a network of several functions the critical weights of a layer are those of the function before it."""
    model = nn.Sequential(nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 300), nn.ELU())
    model.append(nn.Linear(300, 4))
    init_(model)
    for path, name in (("2", "tanh"), ("4", "relu")):
        expected = math.sqrt(critical(name).sigma_w2 / 300)
        assert float(part(model, path).weight.detach().std()) == pytest.approx(expected, rel=0.02)


def test_functions_without_a_point_that_holds_say_so():
    """Tanhshrink's variance drifts and hardshrink's jump leaves no point at all: both are drawn, with a word."""
    model = stack(nn.Tanhshrink, 2, 10)
    assert "a deviation of the variance grows by 1.32 a layer" in init_(model).changes["2"]
    model = stack(lambda: nn.Hardshrink(2.0), 2, 10)
    assert "no critical point at q = 1" in init_(model).changes["2"]
    assert "He's scale instead" in init_(model).changes["2"]


def test_a_layer_without_bias_is_told_what_it_lacks():
    """The bias that belongs to a point is missed by a layer that has none, and nothing fails."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 2))
    assert "it has no bias" in init_(model).changes["2"]


# --- RAI --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "he", "rai"), [(2, 0.875, 0.238), (3, 0.578, 0.060)])
def test_rai_against_born_death(width: int, he: float, rai: float):
    """Of 400 networks with nine ReLU layers, the share born dead is as published to .08, He's and RAI's."""
    model = nn.Sequential(nn.Linear(1, width), nn.ReLU())
    for _ in range(8):
        model.extend([nn.Linear(width, width), nn.ReLU()])
    model.append(nn.Linear(width, 1))
    x = torch.linspace(-1.7, 1.7, 201)[:, None]
    wiring = initialise.follow(model, x)
    shares = []
    for scheme in ("he", "rai"):
        torch.manual_seed(7)
        dead = 0
        for _ in range(400):
            initialise.redraw(model, wiring, SCHEMES[scheme])
            with torch.no_grad():
                dead += not bool(model[:-1](x).std(0).any())  # the same for every input
        shares.append(dead / 400)
    assert shares == pytest.approx([he, rai], abs=0.08)


def test_rai_draws_one_number_of_each_row_from_beta():
    """One number of each unit's weights and bias has mean 2/3; the rest have std .6007 / sqrt(fan_in)."""
    model = nn.Sequential(nn.Linear(400, 3000), nn.ReLU(), nn.Linear(3000, 2))
    torch.manual_seed(8)
    words = init_(model, "rai").changes
    layer = part(model, "0")
    rows = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
    greatest = rows.max(1).values
    assert float((greatest > 0.15).float().mean()) > 0.95  # Beta(2, 1) is below that in 2 %
    assert float(greatest.mean()) == pytest.approx(2 / 3, abs=0.02)
    rest = np.sort(rows.numpy(), axis=1)[:, :-1]
    assert float(rest.std()) == pytest.approx(0.6007 / 20, rel=0.03)
    assert "as He" in words["2"]


# --- awkward networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("net", NETS)
def test_every_scheme_takes_every_network(net: str, scheme: str):
    """All linear and convolutional layers have a word, what is drawn is finite, what is left is bit-identical."""
    model, x = NETS[net](0)
    before = {name: p.detach().clone() for name, p in model.named_parameters(remove_duplicate=False)}
    modes = [m.training for m in model.modules()]
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    done = init_(model, scheme, example_input=x)

    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    drawn = {path for path, words in done.changes.items() if not words.startswith("left")}
    assert all(part(model, path).weight.requires_grad for path in drawn)
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            assert path in done.changes or f"{path}.weight" in done.changes or "out_proj" in path
    tied = {id(part(model, path).weight) for path in drawn}
    for name, p in model.named_parameters(remove_duplicate=False):
        assert bool(torch.isfinite(p).all())
        changed = not torch.equal(p, before[name])
        path, _, kind = name.rpartition(".")
        if kind == "weight" and path in drawn:
            assert changed
        elif path not in drawn and id(p) not in tied:
            assert not changed, name
    lines = str(done).splitlines()
    assert lines[0] == f"{scheme}: {len(drawn)} of {len(done.changes)} layers drawn"
    assert len(lines) == 1 + len(done.changes)


class Odd(nn.Module):
    """An embedding, a fused layer, a transposed convolution, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.lstm = nn.Embedding(10, 8), nn.LSTM(8, 8)
        self.up, self.spare = nn.ConvTranspose1d(8, 6, 4, stride=2), nn.Linear(2, 2)
        self.attention, self.head = nn.MultiheadAttention(6, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.up(self.lstm(self.table(x))[0].transpose(1, 2))).transpose(1, 2)
        return torch.sigmoid(self.head(self.attention(h, h, h)[0]))


def test_what_is_left_alone_is_said():
    """Embeddings are left; fused layers and unused ones too, with a word; transposed convolutions are drawn."""
    model = Odd()
    kept = copy.deepcopy({n: p for n, p in model.named_parameters() if not n.startswith(("up", "head"))})
    done = init_(model, "he")
    assert done.changes["lstm"] == "left as it is: LSTM keeps torch's own initialisation"
    assert done.changes["attention"] == "left as it is: MultiheadAttention keeps torch's own initialisation"
    assert done.changes["spare"] == "left as it is: the forward pass did not use it"
    assert "table" not in done.changes
    assert "gain 1.41 for relu" in done.changes["up"]
    assert "gain 1 as a bounded output follows" in done.changes["head"]  # the sigmoid at the output is no hidden one
    assert all(torch.equal(p, kept[n]) for n, p in model.named_parameters() if n in kept)
    for scheme in ("critical", "rai", "xavier", "sigmoid_centred"):
        assert not init_(model, scheme).changes["up"].startswith("left")


def test_a_weight_shared_with_an_embedding_is_left():
    """A language model's head that reads its embedding's weight keeps it, with a word."""
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
    part(model, "3").weight = part(model, "0").weight
    before = part(model, "0").weight.detach().clone()
    assert init_(model).changes["3"] == "left as it is: its weight is an embedding's"
    assert torch.equal(part(model, "0").weight, before)


def test_centring_after_a_transposed_convolution_has_the_right_sums():
    """On inputs that are all one, biases of minus the sum leave nothing of them in the middle of the picture."""
    for layer in (nn.Linear(5, 3), nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 4, stride=2, groups=2)):
        shape = (1, 5) if isinstance(layer, nn.Linear) else (1, 4, 9, 9)
        with torch.no_grad():
            bias: Any = layer.bias
            bias.copy_(-initialise._unit_sums(layer))
            out = layer(torch.ones(shape))
            middle = out if out.dim() == 2 else out[:, :, 2:6, 2:6] if out.shape[-1] < 10 else out[:, :, 8:12, 8:12]
            axes = tuple(range(2, middle.dim()))
            assert torch.allclose(middle.mean(axes) if axes else middle, torch.zeros(()), atol=1e-5)


def test_remedies_draw_the_same():
    """The remedy he_init on a copy gives what init_ gives from the same seed: there is one implementation."""
    model, x = NETS["conv"](0)
    treated = treat(model, None, "he_init", example_input=x)
    assert dict(init_(model, "he", example_input=x).changes) == dict(treated.changes)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_unknown_schemes_have_close_names():
    """A name nearly right is told the right one, any other all of them."""
    with pytest.raises(RemedyError, match=r"no initialisation named 'xaver'.\nDid you mean 'xavier'\?"):
        init_(nn.Linear(2, 2), "xaver")
    with pytest.raises(RemedyError, match=r"Schemes: critical, he, lecun, lsuv, rai, sigmoid_centred, xavier\."):
        init_(nn.Linear(2, 2), "zzz")


def test_inputs_are_asked_for_where_none_can_be_guessed():
    """Two inputs cannot be guessed, LSUV measures on real ones, and a wrong one is told with the model's own words."""
    with pytest.raises(RemedyError, match="no input could be guessed"):
        init_(NETS["tuple_output"](0)[0])
    with pytest.raises(RemedyError, match="lsuv measures the output of each layer on sample inputs"):
        init_(nn.Linear(2, 2), "lsuv")
    with pytest.raises(RemedyError, match="does not run on the example input: RuntimeError"):
        init_(nn.Linear(2, 2), example_input=torch.zeros(1, 3))


def test_only_drawing_moves_the_generator():
    """Guessing an input and following the pass draw nothing from torch's generator: a dropout net shows it."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(), nn.ReLU(), nn.Linear(6, 2))
    torch.manual_seed(9)
    init_(model, "he")
    weight = part(model, "0").weight.detach().clone()
    torch.manual_seed(9)
    assert torch.equal(weight, nn.init.kaiming_normal_(torch.empty(6, 6), nonlinearity="relu"))


def test_examples_run():
    """The examples in the docstrings give what they say."""
    outcome = doctest.testmod(initialise)
    assert outcome.attempted > 0
    assert outcome.failed == 0


# --- what a chain is not ----------------------------------------------------------------------------------------------


class Added(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.inner(x))


def test_a_sum_and_a_gate_are_told():
    """A layer that leads to a sum of branches or to a gate says so, and is not said to lead to nothing."""
    changes = init_(nn.Sequential(Added(), nn.Linear(16, 4))).changes
    assert "goes into add, where it meets other values, which this scale leaves out" in changes["0.inner"]
    changes = init_(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 16), nn.GLU(), nn.Linear(8, 2))).changes
    assert "goes into glu" in changes["1"] and "no activation" not in changes["1"]


def test_tied_weights_are_drawn_once():
    """The layer drawn first keeps its draw, and the other one says whose weight it has; so does a tied embedding."""
    first, last = nn.Linear(8, 8), nn.Linear(8, 8)
    last.weight = first.weight
    tied = nn.Sequential(first, nn.ReLU(), last)
    torch.manual_seed(0)
    assert init_(tied, "he").changes["2"] == "left as it is: its weight is that of 0"
    assert float(first.weight.detach().std()) == pytest.approx(math.sqrt(2 / 8), rel=0.3)
    table, head = nn.Embedding(10, 8), nn.Linear(8, 10)
    head.weight = table.weight
    embedded = nn.Sequential(table, head)
    assert "did not use it" not in init_(embedded, "he").changes["1"]


def test_a_network_that_is_one_layer():
    """Its path is empty, and it is drawn all the same."""
    layer = nn.Linear(64, 64)
    done = init_(layer, "he")
    assert "the model: weights drawn with std 0.125" in str(done)
    assert float(layer.weight.detach().std()) == pytest.approx(0.125, rel=0.1)


def test_a_variance_that_would_run_away_is_told():
    """Hardswish and softshrink hold their critical point only nearby; tanh, relu and gelu everywhere above."""
    for function, told in ((nn.Hardswish, True), (nn.Softshrink, True), (nn.Tanh, False), (nn.ReLU, False)):
        changes = init_(stack(function, 3, 20)).changes
        assert ("does not come back" in list(changes.values())[1]) == told


@pytest.mark.parametrize(("name", "scheme"), [("kaiming", "he"), ("Glorot", "xavier"), ("LSUV", "lsuv")])
def test_other_names_of_schemes(name: str, scheme: str):
    """What torch and Keras call them, in any case."""
    assert init_(stack(nn.ReLU, 2, 8), name, example_input=torch.randn(64, 8)).scheme == scheme


def test_what_is_no_network_is_refused():
    """No module, no scheme, and a network whose shapes are not known yet, are errors that say what is wanted."""
    with pytest.raises(RemedyError, match=r"init_ needs a torch.nn.Module; found list"):
        init_([1])  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(RemedyError, match="no initialisation named 'none'"):
        init_(stack(nn.ReLU, 2, 8), None)  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(RemedyError, match=r"no input could be guessed.\nPass example_input"):
        init_(nn.Sequential(nn.LazyLinear(8), nn.ReLU()))
