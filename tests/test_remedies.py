"""Every remedy on every net: it keeps its promises, or says why it cannot."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from nets import NETS, dropped, functional_mlp, mlp, normalised, sigmoid_mlp, tanh_mlp, transformer
from test_surgery import part, train
from torch import Tensor, nn
from torch.nn import functional as F
from wanting import shut, wanting

import relume
from relume.errors import RelumeError, RemedyError, SiteError
from relume.remedies import REMEDIES, Edit, Network, Remedy, swap_to, treat
from relume.sites import find_sites
from relume.surgery import KEEPS_FUNCTION
from relume.wiring import output_change, outputs

torch.set_num_threads(1)


NAMES = [
    *("leaky_relu", "prelu", "elu", "softplus", "batch_norm", "he_init", "xavier_init", "lower_learning_rate"),
    *("smaller_network", "mixed_activations", "recycle"),
]


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1)


def kill(model: nn.Module, share: float = 0.25) -> None:
    """Shut the first units of every hidden layer by their bias, or by the shift of the norm behind it."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d))]
    with torch.no_grad():
        for layer in layers:
            width = int(layer.weight.shape[0] * share)
            if layer.bias is not None and layer.weight.shape[0] > 3:
                layer.bias[:width] = -30


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    return copy.deepcopy((model.state_dict(), optimizer.state_dict(), [m.training for m in model.modules()]))


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def hooks(model: nn.Module) -> list[Any]:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    return [dict(getattr(m, n)) for m in model.modules() for n in names]


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("remedy", REMEDIES)
def test_the_contract(remedy: str, name: str, trained: bool):
    """The treated copy trains, all its parameters driven, or there is a reason; the originals stay bit-identical."""
    model, x = NETS[name](0)
    optimizer = adam(model)
    if trained:
        train(model, optimizer, x, 3)
        kill(model)
    before, before_hooks = snapshot(model, optimizer), hooks(model)
    dice = torch.get_rng_state(), dict(np.random.get_state(legacy=False))["state"]["key"].copy(), random.getstate()
    driven = {n for n, p in model.named_parameters() if p.requires_grad}

    try:
        treated = treat(model, optimizer, remedy, example_input=x)
    except RemedyError as error:
        treated, reason = None, str(error)
    else:
        reason = ""

    assert same(before, snapshot(model, optimizer))
    assert before_hooks == hooks(model)
    assert torch.equal(dice[0], torch.get_rng_state())
    assert np.array_equal(dice[1], dict(np.random.get_state(legacy=False))["state"]["key"])
    assert dice[2] == random.getstate()
    if treated is None:
        assert len(reason) > 20
        return
    assert treated.changes
    assert treated.optimizer is not None
    assert not {id(p) for p in model.parameters()} & {id(p) for p in treated.model.parameters()}
    held = [id(p) for group in treated.optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert {id(p) for p in treated.model.parameters() if p.requires_grad} == set(held)
    assert treated.output_change is not None
    if treated.keeps_function:
        assert treated.output_change <= KEEPS_FUNCTION
        assert output_change(outputs(model, [x]), outputs(treated.model, [x])) <= KEEPS_FUNCTION
    kept = {n for n in driven if n in dict(treated.model.named_parameters())}
    for n in kept:
        old, new = dict(model.named_parameters())[n], dict(treated.model.named_parameters())[n]
        if old.shape == new.shape and torch.equal(old, new):
            was, now = optimizer.state.get(old, {}), treated.optimizer.state.get(new, {})
            assert same(dict(was), dict(now)) or remedy in ("recycle", "batch_norm", "smaller_network")
    assert np.isfinite(train(treated.model, treated.optimizer, x, 5))


def test_the_table():
    """All the promised names are there, under their own names, with words and a snippet."""
    assert set(NAMES) <= set(REMEDIES)
    for name, remedy in REMEDIES.items():
        assert remedy.name == name
        assert all(len(text) > 10 for text in (remedy.when, remedy.code, remedy.paper))
        assert remedy.title


@pytest.mark.parametrize("remedy", REMEDIES.values(), ids=list(REMEDIES))
def test_snippets_run(remedy: Remedy, monkeypatch: pytest.MonkeyPatch):
    """What is shown to users works as pasted, given model, optimizer and example_input."""
    model, optimizer, x, y = wanting(remedy.name)
    if remedy.name == "recycle":
        shut(model)
    monkeypatch.setattr(relume, "treat", treat, raising=False)
    scope = {"model": model, "optimizer": optimizer, "example_input": x, "targets": y}

    exec(remedy.code, scope)

    assert np.isfinite(train(scope["model"], scope["optimizer"], x, 2))


# what each does -------------------------------------------------------------------------------------------------------


def died(name: str = "mlp") -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """A partly trained net with planted dead units."""
    model, x = NETS[name](0)
    optimizer = adam(model)
    train(model, optimizer, x, 3)
    kill(model)
    return model, optimizer, x


def test_prelu_starts_where_the_function_is_kept():
    """Fresh slopes are .25; trained ones 0 for a ReLU; they are per unit, and spared weight decay."""
    model, x = mlp(0)
    fresh = treat(model, adam(model), "prelu", example_input=x)
    assert part(fresh.model, "1").weight.tolist() == [0.25] * 16
    assert not fresh.keeps_function
    model, optimizer, x = died()
    kept = treat(model, optimizer, "prelu", example_input=x)
    assert part(kept.model, "1").weight.tolist() == [0.0] * 16
    assert (kept.keeps_function, kept.output_change) == (True, 0.0)
    assert kept.optimizer is not None
    decays = [group["weight_decay"] for group in kept.optimizer.param_groups]
    assert decays[0] == 0.1
    assert set(decays[1:]) == {0.0}


def test_prelu_has_one_slope_where_units_are_last_of_three():
    """nn.PReLU counts channels on axis 1, which in a sequence is time."""
    model, x = transformer(0)

    treated = treat(model, None, "prelu", example_input=x)

    assert treated.changes["layer.relu"] == "relu became PReLU with one slope, learnt from 0.25"


def test_batch_norm_on_a_trained_net_keeps_it_and_frees_the_dead():
    """Eval outputs stay, dead units fire on about half of a batch, and what they give is read by nobody yet."""
    model, optimizer, x = died()

    treated = treat(model, optimizer, "batch_norm", example_input=x)

    assert treated.keeps_function
    assert treated.output_change is not None
    assert 0 < treated.output_change <= KEEPS_FUNCTION
    z = part(treated.model, "1").norm(part(treated.model, "0")(x))
    assert bool(((z[:, :4] > 0).float().mean(0) > 0.2).all())
    assert not bool(part(treated.model, "2").weight[:, :4].any())


def test_batch_norm_refuses_what_is_normalised_and_sequences():
    """Both refusals say why, and the second names layer_norm."""
    model, x = normalised(0)
    with pytest.raises(RemedyError, match="already normalised"):
        treat(model, None, "batch_norm", example_input=x)
    model, x = transformer(0)
    with pytest.raises(RemedyError, match="use layer_norm"):
        treat(model, None, "batch_norm", example_input=x)


def test_he_init_matches_the_formula():
    """Standard deviation sqrt(2 / fan_in) before a ReLU, 1 / sqrt(fan_in) at the output, biases zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 400), nn.ReLU(), nn.Linear(400, 300))

    done = treat(model, None, "he_init").model

    first, last = part(done, "0"), part(done, "2")
    assert float(first.weight.detach().std()) == pytest.approx((2 / 300) ** 0.5, rel=0.02)
    assert float(last.weight.detach().std()) == pytest.approx((1 / 400) ** 0.5, rel=0.02)
    assert not bool(first.bias.any())


def test_xavier_makes_sigmoids_behave_as_tanh():
    """Six sigmoid layers pass the gradient that tanh layers pass under Glorot's rule, not a ten-thousandth of it."""

    def first_gradient(activation: type[nn.Module], rescale: bool) -> float:
        torch.manual_seed(0)
        layers = [part for _ in range(6) for part in (nn.Linear(200, 200), activation())]
        model: nn.Module = nn.Sequential(*layers, nn.Linear(200, 1))
        x = torch.randn(256, 200)
        if rescale:
            model = treat(model, None, "xavier_init", example_input=x).model
        else:
            for layer in layers:
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_normal_(layer.weight)
        model(x).sum().backward()
        return float(part(model, "0").weight.grad.norm())

    tanh, sigmoid, plain = (
        first_gradient(nn.Tanh, True), first_gradient(nn.Sigmoid, True), first_gradient(nn.Sigmoid, False)
    )  # fmt: skip
    assert 2 * sigmoid == pytest.approx(tanh, rel=1e-3)  # by W = 2 W_tanh, else the networks are the same
    assert sigmoid > 100 * plain


@pytest.mark.parametrize("remedy", ["he_init", "xavier_init", "lsuv_init"])
def test_initialisation_does_not_throw_learning_away(remedy: str):
    """On a trained network it refuses and names recycle."""
    model, optimizer, x = died()

    with pytest.raises(RemedyError, match="recycle"):
        treat(model, optimizer, remedy, example_input=x)


def test_lsuv_reaches_unit_variance():
    """Every layer's output has standard deviation 1 within the tolerance."""
    model, x = mlp(0)
    done = treat(model, None, "lsuv_init", example_input=x).model
    seen: list[float] = []
    for layer in done.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda m, args, out: seen.append(float(out.detach().std())))
    done(x)

    assert seen == pytest.approx([1.0] * 3, abs=0.1)


def test_lower_learning_rate_in_every_group():
    """A tenth in each group, for schedulers too."""
    model: Any = mlp(0)[0]
    optimizer = torch.optim.SGD(
        [{"params": part(model, "0").parameters(), "lr": 0.5}, {"params": part(model, "2").parameters()}],
        lr=0.1,
    )
    torch.optim.lr_scheduler.StepLR(optimizer, 10)

    treated = treat(model, optimizer, "lower_learning_rate")

    assert treated.optimizer is not None
    assert [g["lr"] for g in treated.optimizer.param_groups] == pytest.approx([0.05, 0.01])
    assert [g["initial_lr"] for g in treated.optimizer.param_groups] == pytest.approx([0.05, 0.01])
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.1]


def test_clipping_survives_a_second_treatment():
    """A step moves plain SGD by at most lr times the norm, also in a copy of the copy."""
    model, x = mlp(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    once = treat(model, optimizer, "clip_gradients")
    twice = treat(once.model, once.optimizer, "lower_learning_rate")
    before = [p.detach().clone() for p in twice.model.parameters()]

    assert twice.optimizer is not None
    train(twice.model, twice.optimizer, x * 1e4, 1)

    moved = torch.cat([(p - q).flatten() for p, q in zip(twice.model.parameters(), before, strict=True)]).norm()
    assert float(moved.detach()) == pytest.approx(0.1, rel=1e-3)


def test_tanh_for_sigmoid_is_exact_on_a_trained_net():
    """The weights take up the difference; fresh networks get plain tanh."""
    model, x = sigmoid_mlp(0)
    optimizer = adam(model)
    train(model, optimizer, x, 3)

    treated = treat(model, optimizer, "tanh", example_input=x)

    assert treated.keeps_function
    assert [s.activation for s in find_sites(treated.model, x)] == ["tanh", "tanh"]


def test_mixed_activations_take_turns():
    """Every second hidden site changes, a bounded function to an unbounded one."""
    model, x = functional_mlp(0)
    treated = treat(model, None, "mixed_activations", example_input=x)
    assert [s.activation for s in find_sites(treated.model, x)] == ["relu", "tanh", "relu"]
    model, x = tanh_mlp(0)
    treated = treat(model, None, "mixed_activations", example_input=x)
    assert [s.activation for s in find_sites(treated.model, x)] == ["tanh", "leaky_relu"]


@pytest.mark.parametrize("trained", [False, True])
def test_scaled_inputs_reach_the_first_layer(trained: bool):
    """The first layer reads standardised values; a trained network's function is kept all the same."""
    model, _ = mlp(0)
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 10, 100, 1e3, 5, 2.0]) + 7
    treated = treat(model, None, "scale_inputs", example_input=x, trained=trained)
    read: list[Tensor] = []
    part(treated.model, "0").register_forward_pre_hook(lambda m, args: read.append(args[0]))

    treated.model(x)
    copy.deepcopy(treated.model).load_state_dict(treated.model.state_dict())

    assert torch.allclose(read[0].std(0, correction=0), torch.ones(6), atol=1e-3)
    assert treated.keeps_function is trained


def test_reset_bias_clears_the_momentum_of_the_bias():
    """What drove the bias there must not drive it on; other moments stay."""
    model, x = mlp(0)
    optimizer = adam(model)
    train(model, optimizer, x, 3)

    treated = treat(model, optimizer, "reset_bias", example_input=x)

    assert treated.optimizer is not None
    assert not bool(treated.optimizer.state[treated.model.get_parameter("0.bias")]["exp_avg"].any())
    assert bool(treated.optimizer.state[treated.model.get_parameter("0.weight")]["exp_avg"].any())


class Augmenting(nn.Module):
    """Draws from NumPy and Python in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(0)[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + np.random.rand() + random.random()


def test_all_generators_are_left_as_they_were():
    """A model that draws from NumPy and Python is followed without moving either generator."""
    np.random.seed(0)
    random.seed(0)
    expected = np.random.rand(), random.random()
    np.random.seed(0)
    random.seed(0)

    treat(Augmenting(), None, "leaky_relu", ["net.1"], example_input=mlp(0)[1])

    assert (np.random.rand(), random.random()) == expected


def test_reset_bias_frees_units_that_a_bias_shut():
    """Hidden biases become zero; the output layer keeps its own."""
    model, x = mlp(0)
    kill(model)

    treated = treat(model, None, "reset_bias", example_input=x)

    assert not bool(treated.model.get_parameter("0.bias").any())
    assert bool(treated.model.get_parameter("4.bias").any())
    assert "-30" in treated.changes["1"]


# where it goes wrong --------------------------------------------------------------------------------------------------


def test_sites_are_chosen_by_name():
    """Only the named site is treated, and a wrong name lists the right ones."""
    model, x = functional_mlp(0)
    treated = treat(model, None, "elu", ["relu#2"], example_input=x)
    assert [s.activation for s in find_sites(treated.model, x)] == ["relu", "elu", "relu"]
    with pytest.raises(SiteError, match="relu#2, relu#3"):
        treat(model, None, "elu", ["relu#9"], example_input=x)


def test_unknown_remedies_and_wrong_inputs_say_what_there_is():
    """Both messages help."""
    model, _ = mlp(0)
    with pytest.raises(RemedyError, match=r"no remedy named 'prozac'\.\nRemedies: leaky_relu"):
        treat(model, None, "prozac")
    with pytest.raises(RemedyError, match="does not run on the example input"):
        treat(model, None, "elu", example_input=torch.zeros(3, 99))
    with pytest.raises(RemedyError, match="none was given"):
        treat(model, None, "lower_learning_rate")


@pytest.mark.parametrize("remedy", ["recycle", "lsuv_init", "scale_inputs"])
def test_sample_inputs_are_asked_for_where_needed(remedy: str):
    """A guessed input is never used for statistics."""
    model, _ = mlp(0)

    with pytest.raises(RemedyError, match="Pass example_input"):
        treat(model, None, remedy)


def test_without_an_input_one_is_guessed_or_modules_are_taken_as_they_stand():
    """A chain needs no example; two inputs leave only the activation modules, and functions are told to need one."""
    model, _ = functional_mlp(0)
    assert treat(model, adam(model), "prelu").output_change is None
    model, _ = NETS["tuple_output"](0)
    treated = treat(model, adam(model), "prelu")
    assert treated.changes == {"act": "relu became PReLU with one slope, learnt from 0.25"}
    with pytest.raises(RemedyError, match="no input could be guessed"):
        treat(model, None, "he_init")
    with pytest.raises(SiteError, match="Pass example_input"):
        treat(model, None, "elu", ["relu"])


def test_a_claim_that_does_not_hold_is_no_treatment():
    """A remedy that says it keeps the function and does not is an error, not a wrong network."""

    def apply(network: Network) -> Edit:
        with torch.no_grad():
            next(network.model.parameters()).add_(0.1)
        return Edit(changes={"all": "shifted"}, keeps_function=True)

    model, x = mlp(0)
    shift = Remedy(name="shift", title="", family="", apply=apply, when="", code="")
    with pytest.raises(RemedyError, match="should keep the function"):
        treat(model, None, shift, example_input=x)


class Stubborn(nn.Module):
    """Its code relies on the width of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.fc1(x))
        assert h.shape[1] == 8
        return self.fc2(h)


def test_a_network_that_no_longer_runs_is_no_treatment():
    """Code that relies on a width makes smaller_network refuse."""
    with pytest.raises(RemedyError, match="no longer runs"):
        treat(Stubborn(), None, "smaller_network", example_input=torch.zeros(4, 6))


def test_the_output_and_gates_are_left():
    """A sigmoid at the output and a sigmoid that multiplies other values are no hidden activations."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.c(torch.relu(self.a(x)) * torch.sigmoid(self.b(x))))

    changes = treat(Gated(), None, "leaky_relu", ["relu"], example_input=torch.randn(4, 6)).changes
    assert list(changes) == ["relu"]
    with pytest.raises(RemedyError, match=r"(?s)a gate.*network's own output"):
        treat(Gated(), None, "elu", example_input=torch.randn(4, 6))


def test_swap_to_any_row_of_the_catalogue():
    """To compare functions every hidden site gets the one asked for, a learnt slope in the optimizer."""
    model, x = dropped(0)
    optimizer = adam(model)
    for name in ("gelu", "prelu", "silu", "hardtanh"):
        treated = treat(model, optimizer, swap_to(name), example_input=x)
        assert [s.activation for s in find_sites(treated.model, x)] == [name, name]
        assert treated.optimizer is not None
        train(treated.model, treated.optimizer, x, 2)
    with pytest.raises(RelumeError, match="no activation named"):
        swap_to("reluu")
