"""Pruning: what may go goes, what may not says why, and nothing else changes."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from nets import NETS
from torch import Tensor, nn
from torch.nn import functional as F

import relume
from relume.cli import main
from relume.errors import DataError, RemedyError
from relume.prune import Pruned, prune
from relume.surgery import KEEPS_FUNCTION
from relume.wiring import output_change, outputs

torch.set_num_threads(1)

SHUT = -200.0  # a bias that no input of these tests overcomes


def samples(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ill(build: Callable[[], nn.Module], layers: dict[str, float], units: int = 3) -> nn.Module:
    """The network in eval mode, with the first units of some layers held at the end of their function by the bias."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
    with torch.no_grad():
        for path, bias in layers.items():
            model.get_parameter(f"{path}.bias")[:units] = bias
    return model.eval()


def in_double(model: nn.Module, x: Tensor) -> Tensor:
    """The output in double precision: what differs there is no rounding."""
    with torch.no_grad():
        return copy.deepcopy(model).double().eval()(x.double())


class Called(nn.Module):
    """Functions, a shared module, and two readers of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 10), nn.Linear(10, 8)
        self.first, self.second, self.act = nn.Linear(8, 3), nn.Linear(8, 2), nn.ReLU()
        with torch.no_grad():  # so that no unit is dead beside those that are held shut
            for layer in (self.a, self.b, self.c, self.d):
                layer.weight *= 4

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.a(x))
        x = self.act(self.b(x))
        x = torch.relu(self.c(x))
        x = self.d(x).relu()
        return torch.cat([self.first(x), self.second(F.dropout(x, 0.5, self.training))], 1)


def _flat(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers)


def _conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 8, 3, padding=1), nn.ReLU(), nn.AvgPool1d(2, padding=1), nn.Conv1d(8, 6, 3, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(30, 3),
    )  # fmt: skip


def _conv2d() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.1),
        nn.Conv2d(8, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


def _conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 8, 2), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(8, 4, 1), nn.Flatten(), nn.Linear(4, 2)
    )


def _mlp(function: Callable[[], nn.Module], bias: bool = True) -> Callable[[], nn.Module]:
    then = nn.ReLU if function is nn.ReLU else nn.Tanh  # which none of the constants of the first can kill
    return lambda: nn.Sequential(nn.Linear(6, 16), function(), nn.Linear(16, 12, bias), then(), nn.Linear(12, 3))


def _normed(norm: Callable[[int], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(6, 16), norm(16), nn.ReLU(), nn.Linear(16, 3))


Case = tuple[Callable[[], nn.Module], dict[str, float], tuple[int, ...], dict[str, int]]

# network, where units are held and how, shape of a sample, what is left of the widths
CASES: dict[str, Case] = {
    "linear": (_mlp(nn.ReLU), {"0": SHUT, "2": SHUT}, (6,), {"0": 13, "2": 9}),
    "calls": (Called, dict.fromkeys("abcd", SHUT), (6,), {"a": 13, "b": 9, "c": 7, "d": 5}),
    "conv1d": (_conv1d, {"0": SHUT, "3": SHUT}, (2, 8), {"0": 5, "3": 3}),
    "conv2d and BatchNorm": (_conv2d, {"1": SHUT, "5": SHUT}, (2, 8, 8), {"0": 5, "5": 3}),
    "conv3d": (_conv3d, {"0": SHUT}, (1, 4, 4, 4), {"0": 5}),
    "BatchNorm1d": (_normed(nn.BatchNorm1d), {"1": SHUT}, (6,), {"0": 13}),
    "BatchNorm after": (
        lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 3)),
        {"0": SHUT, "2": 0.7}, (6,), {"0": 13},
    ),
    "relu6 above": (_mlp(nn.ReLU6), {"0": -SHUT}, (6,), {"0": 13}),
    "hardtanh below": (_mlp(nn.Hardtanh), {"0": SHUT}, (6,), {"0": 13}),
    "hardtanh above": (_mlp(nn.Hardtanh), {"0": -SHUT}, (6,), {"0": 13}),
    "hardsigmoid above": (_mlp(nn.Hardsigmoid), {"0": -SHUT}, (6,), {"0": 13}),
    "averaged": (  # windows of 4, 6 and 9 equal numbers, whose means round apart
        _flat(
            nn.Conv2d(1, 8, 3), nn.Hardtanh(-1.0, 0.1), nn.AdaptiveAvgPool2d(3), nn.Conv2d(8, 4, 1), nn.Flatten(),
            nn.Linear(36, 2),
        ),
        {"0": -SHUT}, (1, 7, 7), {"0": 5},
    ),
    "sequence": (_mlp(nn.ReLU), {"0": SHUT}, (5, 6), {"0": 13}),
    "no bias that takes nothing": (_mlp(nn.ReLU, bias=False), {"0": SHUT}, (6,), {"0": 13}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_dead_units_leave_and_the_function_stays(name: str):
    """Whatever layer made the units and however they are read, the outputs are equal in double precision."""
    build, held, shape, widths = CASES[name]
    model, x = ill(build, held), samples(250, *shape)
    state = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()

    pruned = prune(model, [x])

    assert {path: len(pruned.model.get_parameter(f"{path}.weight")) for path in widths} == widths
    assert set(pruned.removed.values()) == {(0, 1, 2)}
    assert pruned.left == {}
    new = samples(100, *shape, seed=1)  # neither given nor drawn
    before, after = in_double(model, new), in_double(pruned.model, new)
    assert float((before - after).abs().max() / before.std()) <= 1e-6  # a bias holds what was folded in float32
    assert pruned.output_change <= KEEPS_FUNCTION >= pruned.held_out_change
    assert pruned.parameters_after == sum(p.numel() for p in pruned.model.parameters()) < pruned.parameters_before
    assert pruned.flops_after < pruned.flops_before
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_training_goes_on_as_it_would_have(kind: str):
    """Dead units move nothing, so the pruned network and its optimizer train to where the whole network would."""
    model = ill(_mlp(nn.ReLU), {"0": SHUT, "2": SHUT}).double()
    x, y = samples(250, 6).double(), samples(250, 3, seed=1).double()
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        if kind == "SGD" else torch.optim.Adam(model.parameters(), lr=0.01)
    )  # fmt: skip

    def train(net: nn.Module, driver: torch.optim.Optimizer) -> None:
        for _ in range(10):
            driver.zero_grad()
            (net(x) - y).square().mean().backward()
            driver.step()

    train(model, optimizer)
    pruned = prune(model, [x], optimizer)
    assert pruned.optimizer is not None
    assert set(pruned.removed.values()) == {(0, 1, 2)}
    train(model, optimizer)
    train(pruned.model, pruned.optimizer)

    assert float((model(x) - pruned.model(x)).abs().max().detach()) <= 1e-12
    whole, small = model.get_parameter("2.weight"), pruned.model.get_parameter("2.weight")
    assert torch.allclose(whole[3:, 3:], small, atol=1e-13)
    for key, value in optimizer.state[whole].items():
        kept = pruned.optimizer.state[small][key]
        assert torch.allclose(value[3:, 3:] if value.dim() == 2 else value, kept, atol=1e-13)


class Residual(nn.Module):
    """The dead units are added to what went in."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + F.relu(self.inner(x)))


class TwiceRead(nn.Module):
    """One layer reads two others."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other, self.last = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.inner(x))) + self.last(F.relu(self.other(x)))


class Strict(nn.Module):
    """Its code knows the width of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.inner(x))
        assert h.shape[1] == 8, "eight or nothing"
        return self.last(h)


class Hidden(Strict):
    """Uses the width of its layer for something else."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.inner(x))) * self.inner.out_features


def _positions() -> nn.Module:
    return nn.Sequential(nn.Conv1d(1, 8, 2), nn.Flatten(), nn.ReLU(), nn.Linear(40, 3))


REFUSALS: dict[str, tuple[Callable[[], nn.Module], dict[str, float], tuple[int, ...], str]] = {
    "residual": (Residual, {"inner": SHUT}, (6,), "its output goes into add, where it meets other values"),
    "reader twice": (TwiceRead, {"inner": SHUT}, (6,), "last, which reads it, is used 2 times in one pass"),
    "LayerNorm": (_normed(nn.LayerNorm), {"1": SHUT}, (6,), "1, whose mean and variance run over its units"),
    "positions": (_positions, {"0": SHUT}, (1, 6), "its 40 units are positions of the 8 units of 0"),
    "grouped reader": (
        _flat(nn.Conv1d(1, 8, 2), nn.ReLU(), nn.Conv1d(8, 8, 2, groups=8), nn.Flatten(), nn.Linear(32, 3)),
        {"0": SHUT}, (1, 6), "2 reads it in groups of channels",
    ),
    "border": (
        lambda: nn.Sequential(
            nn.Conv1d(1, 8, 2), nn.ReLU6(), nn.Conv1d(8, 4, 3, padding=1), nn.Flatten(), nn.Linear(20, 3)
        ),
        {"0": -SHUT}, (1, 6), "they give a constant other than zero and 2 pads its input with zeros",
    ),
    "no bias": (_mlp(nn.ReLU6, bias=False), {"0": -SHUT}, (6,), "other than zero and 2 has no bias to take it"),
    "strict": (Strict, {"inner": SHUT}, (6,), "no longer runs (AssertionError: eight or nothing)"),
    "hidden": (Hidden, {"inner": SHUT}, (6,), "without them the outputs move by"),
    "output": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU()), {"0": SHUT}, (6,), "part of the network's output"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_go_stays_and_says_why(name: str):
    """Units whose leaving would show are left, each with the reason, and the network is the same."""
    build, held, shape, reason = REFUSALS[name]
    model, x = ill(build, held), samples(250, *shape)

    pruned = prune(model, [x], all_dead=True)

    [reasons] = pruned.left.values()
    assert {0, 1, 2} <= set(reasons)
    assert all(reason in words for words in reasons.values()), reasons
    assert pruned.removed == {}
    assert pruned.output_change == 0
    assert pruned.parameters_after == pruned.parameters_before
    assert pruned.text().startswith("Nothing was removed:")
    assert reason[-25:] in " ".join(pruned.text().split())


def test_a_unit_without_a_proof_stays_unless_all_dead_may_go():
    """Squares are no affine map: nothing is proven, and only `all_dead` takes the evidence for enough."""

    class Squares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.relu(self.inner(x).square().neg().add(5.0)))

    model, x = ill(Squares, {"inner": SHUT}), samples(1000, 6)

    pruned = prune(model, [x])
    assert pruned.removed == {}
    assert "not proven" in pruned.left["relu"][0]
    assert "no affine map" in pruned.left["relu"][0]

    pruned = prune(model, [x], all_dead=True)
    assert pruned.removed == {"relu": (0, 1, 2)}
    assert "0 proven dead, the others silent on all samples" in pruned.text(200)


def folded() -> nn.Module:
    """Inputs of -1 and 1 leave the second layer's first unit closed; 0, between them, opens it."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        for path, weight, bias in (("0", [[1.0], [-1.0]], [0.0, 0.0]), ("2", [[-1, -1], [1, 0], [0, 1]], [0.5, 0, 0])):
            model.get_parameter(f"{path}.weight").copy_(torch.tensor(weight))
            model.get_parameter(f"{path}.bias").copy_(torch.tensor(bias))
    return model


def test_a_unit_that_opens_on_held_out_inputs_stays():
    """What a deep layer reads lies in the hull of what it read, but what the network reads bends on the way."""
    model = folded()
    x = torch.tensor([[-1.0], [1.0]]).repeat(600, 1)

    pruned = prune(model, [x])
    assert pruned.proofs[0].hull.all()  # proven for its own layer's inputs, and yet:
    assert pruned.left == {"3": {0: "opened by held-out inputs within the range of those seen"}}
    assert pruned.output_change == pruned.held_out_change == 0

    pruned = prune(model, [x], all_dead=True)
    assert pruned.removed == {"3": (0,)}
    assert pruned.output_change == 0 < KEEPS_FUNCTION < pruned.held_out_change
    assert "on held-out inputs within their range, where some of these units open." in pruned.text(300)


def test_a_layer_keeps_one_unit():
    """Where all are dead, one stays, so that the network still runs."""
    pruned = prune(ill(_mlp(nn.ReLU), {"0": SHUT}, units=16), [samples(1000, 6)])

    assert pruned.removed["1"] == tuple(range(1, 16))
    assert pruned.left["1"] == {0: "a layer keeps one unit"}


def test_a_healthy_network_has_nothing_to_remove():
    """It says so first, and that few samples tell little."""
    model = ill(_mlp(nn.ReLU), {})

    pruned = prune(model, [samples(2000, 6)])
    assert str(pruned) == "Nothing to remove: no unit is dead on 2,000 samples."
    assert pruned.seconds_before is None
    assert pruned.model is not model
    few = prune(model, [(samples(20, 6), None)]).text(300)
    assert few == (
        "Nothing to remove: no unit is dead on 20 samples. "
        "With fewer than 1,000, only units far from firing count as dead."
    )


def test_flops_are_those_of_the_products():
    """A linear layer takes two operations per weight and sample: product and sum."""
    pruned = prune(ill(_mlp(nn.ReLU), {"0": SHUT}), [samples(250, 6)])

    assert pruned.flops_before == 2 * 250 * (6 * 16 + 16 * 12 + 12 * 3)
    assert pruned.flops_after == 2 * 250 * (6 * 13 + 13 * 12 + 12 * 3)
    assert pruned.seconds_before is not None


@pytest.mark.parametrize("name", sorted(set(NETS) - {"tuple_output"}))
def test_awkward_networks_keep_their_function(name: str):
    """With the first units of every hidden layer held shut: fewer FLOPs wherever a unit went, equal outputs."""
    model, x = NETS[name](0)
    with torch.no_grad():
        for module in model.modules():
            bias = getattr(module, "bias", None)
            if isinstance(bias, Tensor) and len(bias) > 3:
                bias[:2] = SHUT
    pruned = prune(model, [x])

    assert output_change(outputs(model, [x]), outputs(pruned.model, [x])) <= KEEPS_FUNCTION
    assert bool(pruned.removed) == (pruned.flops_after < pruned.flops_before)
    assert bool(pruned.removed) == (name not in {"sigmoid_mlp", "tanh_mlp", "tied", "branching", "linear_only"})


def test_inputs_may_be_pairs_tuples_dicts_or_integers():
    """What a model takes is mixed and drawn part by part; integers are left as they are."""
    model, (a, b) = NETS["tuple_output"](0)
    with torch.no_grad():
        model.get_parameter("left.bias")[:4] = SHUT
    assert prune(model, [((a, b), None)]).removed == {"act": (0, 1, 2, 3)}
    assert prune(model, [{"a": a, "b": b}]).removed == {"act": (0, 1, 2, 3)}

    def build() -> nn.Module:
        return nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    words = torch.randint(9, (200, 5), generator=torch.Generator().manual_seed(0))
    assert prune(ill(build, {"1": SHUT}), [words]).removed == {"2": (0, 1, 2)}


def test_bad_inputs_say_what_is_wanted():
    """No batches, and batches that the model does not take."""
    model = ill(_mlp(nn.ReLU), {})
    with pytest.raises(DataError, match="at least one batch"):
        prune(model, [])
    with pytest.raises(RemedyError, match="does not run on the example input"):
        prune(model, [samples(4, 5)])


def test_numbers_and_text_fit():
    """JSON has the attributes, and narrow text stays narrow."""
    pruned = relume.prune(ill(_mlp(nn.ReLU), {"0": SHUT, "2": SHUT}), [samples(1000, 6)])
    assert isinstance(pruned, Pruned)
    written = json.loads(json.dumps(pruned.scored(0.5, 0.5).to_json(), allow_nan=False))

    assert written["removed"] == {"1": [0, 1, 2], "3": [0, 1, 2]}
    assert written["proofs"][0]["hull"] == [True] * 3
    assert (written["score_before"], written["parameters_after"]) == (0.5, 6 * 13 + 13 + 13 * 9 + 9 + 9 * 3 + 3)
    assert max(map(len, pruned.text(40).splitlines())) <= 40
    assert pruned.text().startswith("6 units of 28 removed, all proven dead:")


# the command line ----------------------------------------------------------------------------------------------------

SUBJECT = """
import torch
from torch import nn
import relume

x = torch.randn(1024, 8, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] > 0).long()

class Net(nn.Module):
    def __init__(self, bias=-100.0):
        super().__init__()
        self.inner, self.last = nn.Linear(8, 16), nn.Linear(16, 2)
        nn.init.constant_(self.inner.bias[:5], bias)
    def forward(self, x):
        return self.last(torch.relu(self.inner(x)))

def training(bias=-100.0, lr=0.01):
    return relume.Training(
        model=lambda: Net(bias), optimizer=lambda p: torch.optim.SGD(p, lr=lr), loss=nn.functional.cross_entropy,
        batches=[(x[i : i + 128], y[i : i + 128]) for i in range(0, 1024, 128)], steps=20,
    )

healthy = training(0.0)
diverges = training(lr=float("inf"))

def pair():
    return Net(0.0), [x]

def alone():
    return Net()

network, number = Net(), 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(SUBJECT)
    return tmp_path / "mine.py"


def command(*words: object) -> Result:
    return CliRunner().invoke(main, ["prune", *map(str, words)], catch_exceptions=False)


def test_a_training_is_trained_pruned_and_scored(file: Path, tmp_path: Path):
    """The saved network is read back where the user's file is not known, and computes the same."""
    saved, numbers = tmp_path / "new" / "pruned.pt", tmp_path / "other" / "n.json"
    result = command(f"{file}:training", "--save", saved, "--json", numbers)

    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("5 units of 16 removed, all proven dead:")
    written = json.loads(numbers.read_text())
    assert written["score_before"] == pytest.approx(written["score_after"])
    code = (
        "import torch, sys; net = torch.load(sys.argv[1], weights_only=False);"
        "print(net.inner.out_features, tuple(net(torch.zeros(2, 8)).shape))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "11 (2, 2)", run.stderr


def test_weights_are_read_instead_of_trained(file: Path, tmp_path: Path):
    """A state_dict goes into the network of a Training and of a pair; the healthy network has nothing to remove."""
    scope: dict[str, Any] = {}
    exec(SUBJECT, scope)
    torch.save(scope["Net"](-100.0).state_dict(), tmp_path / "w.pt")

    for name in ("pair", "healthy"):
        result = command(f"{file}:{name}", "--weights", tmp_path / "w.pt", "--json", "-")
        assert json.loads(result.stdout)["removed"] == {"relu": [0, 1, 2, 3, 4]}
        healthy = command(f"{file}:{name}")
        assert (healthy.exit_code, healthy.stdout.split(":")[0]) == (0, "Nothing to remove")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nothing", "cannot be read as weights"),
        ({"model": {}, "epoch": 3}, "holds no state_dict but a dict of model, epoch"),
        ({"inner.weight": torch.zeros(3, 8)}, "does not fit Net"),
    ],
)
def test_wrong_weights_are_refused(file: Path, tmp_path: Path, content: Any, message: str):
    """Each says what was found, and how to save weights that fit."""
    path = tmp_path / "w.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    result = command(f"{file}:pair", "--weights", path)

    assert result.exit_code == 2
    assert message in result.stderr
    assert "torch.save(model.state_dict(), PATH)" in result.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trainin", "Did you mean 'training'?"),
        ("alone", "gives a network, Net, without inputs"),
        ("network", "gives a network, Net, without inputs"),
        ("number", "is not a relume.Training or (model, batches) but a int"),
        ("diverges", "there is nothing to prune"),
    ],
)
def test_what_is_no_network_is_refused(file: Path, name: str, message: str):
    """Each says what was found instead."""
    result = command(f"{file}:{name}")

    assert result.exit_code == 2
    assert message in result.stderr
