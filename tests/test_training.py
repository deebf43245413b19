"""What a user hands over, the order of its data, and what is said of a training that cannot run."""

import dataclasses
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from relume.errors import DataError, TrainingError
from relume.nested import call
from relume.randomness import isolated_rng, one_thread, seed_all
from relume.training import (
    Stream,
    Training,
    build,
    check,
    require_finite,
    score,
    split,
    to_device,
    train,
)


def data(samples: int = 96, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 4, generator=generator)
    return x, (x[:, 0] > 0).long()


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))


def make(**changes: Any) -> Training:
    parts: dict[str, Any] = {
        "model": network,
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        "loss": nn.functional.cross_entropy,
        "batches": DataLoader(TensorDataset(*data()), batch_size=16, shuffle=True),
        "steps": 20,
    }
    return Training(**{**parts, **changes})


def prints(stream: Stream, count: int) -> list[float]:
    return [float(next(stream)[0].sum()) for _ in range(count)]


# What a training is made of -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": nn.Linear(2, 2)}, "model must be a function without arguments .* found a Linear"),
        ({"model": 3}, "found int 3"),
        ({"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters())}, "optimizer must be a function .* found a SGD"),
        ({"loss": nn.CrossEntropyLoss}, "loss must be a function .* the class CrossEntropyLoss"),
        ({"loss": "mse"}, "loss must be a function .* found str 'mse'"),
        ({"score": 0.5}, "score must be a function .* found float 0.5"),
        (
            {"batches": iter([])},
            "batches must be something that can be iterated more than once; found a list_iterator",
        ),
        ({"batches": torch.zeros(3)}, "batches must be an iterable of .* found a Tensor"),
        ({"batches": None}, "batches must be an iterable .* found a NoneType"),
        ({"validation": 7}, "validation must be an iterable .* found int 7"),
        ({"steps": 0}, "steps must be a whole number of at least 1; found 0"),
        ({"steps": 1.5}, "steps must be a whole number of at least 1; found 1.5"),
        ({"steps": True}, "steps must be a whole number of at least 1; found True"),
    ],
)
def test_a_wrong_part_is_named_at_once(changes: dict[str, Any], message: str):
    """A part of the wrong kind is refused where it is handed over, with what was found."""
    with pytest.raises(TrainingError, match=message):
        make(**changes)


def test_numpy_counts_as_a_number_of_steps():
    """A NumPy integer is as good as an int, and becomes one."""
    assert type(make(steps=np.int64(5)).steps) is int


def raises(error: Exception) -> Callable[..., Any]:
    def function(*_: Any) -> Any:
        raise error

    return function


X, Y = data()
NAN = X.clone()
NAN[3, 2] = float("nan")
INFINITE = X.clone()
INFINITE[0, 1] = float("inf")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": raises(KeyError("cfg"))}, TrainingError, r"model\(\) failed: KeyError: 'cfg'"),
        ({"model": lambda: 3}, TrainingError, r"model\(\) must return a torch.nn.Module; it returned int 3"),
        ({"model": nn.ReLU}, TrainingError, "ReLU has no parameters to train: it has none"),
        (
            {"model": lambda: nn.Linear(4, 2).requires_grad_(False)},
            TrainingError,
            "Linear has no parameters to train: all are frozen",
        ),
        ({"optimizer": raises(ValueError("lr"))}, TrainingError, r"optimizer\(parameters\) failed: ValueError: lr"),
        ({"optimizer": lambda p: None}, TrainingError, "must return a torch.optim.Optimizer; it returned a NoneType"),
        (
            {"optimizer": lambda p: torch.optim.SGD([nn.Parameter(X)])},
            TrainingError,
            "holds 1 parameters, none of them",
        ),
        ({"optimizer": torch.optim.LBFGS}, TrainingError, "LBFGS evaluates the loss several times a step"),
        (
            {"batches": [(X[:, :3], Y)]},
            TrainingError,
            r"failed on its input, float32 tensor of shape \(96, 3\)",
        ),
        ({"batches": [(X.numpy(), Y)]}, TrainingError, "failed on its input, a ndarray"),
        ({"loss": raises(ValueError("no"))}, TrainingError, r"(?s)loss\(output, target\) failed: .*shape \(96, 2\)"),
        ({"loss": lambda o, t: 1.0}, TrainingError, "must return a scalar tensor; it returned float 1.0"),
        ({"loss": lambda o, t: o}, TrainingError, r"it returned a tensor of shape \(\d+, 2\)"),
        ({"loss": lambda o, t: o.detach().mean()}, TrainingError, "the loss has no gradient"),
        ({"batches": []}, DataError, "batches yield nothing"),
        ({"batches": [(X,)]}, DataError, r"must be a pair \(input, target\); found tuple of 1 \(float32 tensor"),
        ({"batches": [{"x": X}]}, DataError, "must be a pair .* found dict with 'x': float32 tensor"),
        ({"batches": [X]}, DataError, r"must be a pair .* found float32 tensor of shape \(96, 4\)"),
        ({"batches": [(NAN, Y)]}, DataError, r"input of batch 0 contains NaN in 1 of 384 values, first at \(3, 2\)"),
        ({"batches": [(INFINITE, Y)]}, DataError, "input of batch 0 contains infinity in 1 of 384 values"),
        (
            {"batches": [(X, NAN[:, 1:3])], "loss": nn.functional.mse_loss},
            DataError,
            "target of batch 0 contains NaN",
        ),
        (
            {"batches": [(X, Y + 11)]},
            DataError,
            "has 2 outputs, so classes run from 0 to 1; found targets from 11 to 12",
        ),
        ({"validation": [(X, Y + 2)]}, DataError, "has 2 outputs"),
        ({"validation": []}, DataError, "batches yield nothing"),
    ],
)
def test_a_training_that_cannot_run_says_why(changes: dict[str, Any], error: type[Exception], message: str):
    """One step of a throw-away network finds each fault, and the message says what was found."""
    changes = {"batches": [(X, Y)], **changes}
    with pytest.raises(error, match=message):
        check(make(**changes))


def test_the_original_error_is_kept():
    """A failure in the user's own code keeps its traceback as the cause."""

    class Broken(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            raise ZeroDivisionError("my own bug")

    with pytest.raises(TrainingError, match="my own bug") as caught:
        check(make(model=lambda: Broken(4, 2)))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_loader_that_fails_names_the_batch():
    """An error in the data set says which batch, and keeps its cause."""

    class Broken:
        def __iter__(self):
            yield X, Y
            raise OSError("disk gone")

    stream = Stream(Broken(), 0)
    next(stream)
    with pytest.raises(DataError, match="batches failed at batch 1: OSError: disk gone") as caught:
        next(stream)
    assert isinstance(caught.value.__cause__, OSError)


def test_backward_failures_are_explained():
    """A forward that spoils what backward needs is reported as such."""

    class Spoiling(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            hidden = super().forward(input).exp()
            result = hidden * 2
            hidden.zero_()
            return result

    with pytest.raises(TrainingError, match="backward failed: RuntimeError: one of the variables needed"):
        check(make(model=lambda: Spoiling(4, 2)))


def test_a_check_leaves_the_generators_alone():
    """Checking draws nothing from the user's global generators."""
    seed_all(5)
    expected = torch.rand(1), np.random.rand(), random.random()
    seed_all(5)
    check(make())
    assert (torch.rand(1), np.random.rand(), random.random()) == expected


# Randomness and the order of the data -------------------------------------------------------------------------------


def test_equal_seeds_build_equal_networks():
    """A network is decided by its seed, and another seed gives another."""
    first, again, other = (build(make(), seed)[0].state_dict()["0.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class NumpyShuffled:
    """Batches shuffled by NumPy and Python rather than torch."""

    def __iter__(self):
        for i in np.random.permutation(12):
            yield X[i : i + 8] + random.random(), Y[i : i + 8]


@pytest.mark.parametrize("batches", [make().batches, NumpyShuffled()], ids=["torch", "numpy and random"])
def test_nothing_drawn_elsewhere_changes_the_order_of_the_data(batches: Any):
    """Draws between batches from any global generator, such as dropout's, leave the batches as they were."""
    quiet = prints(Stream(batches, 3), 30)
    stream, disturbed = Stream(batches, 3), []
    for i in range(30):
        disturbed += prints(stream, 1)
        for draw in (torch.rand, np.random.rand, random.randrange):
            draw(i + 1)
    assert disturbed == quiet
    assert prints(Stream(batches, 4), 30) != quiet


def test_the_data_change_nothing_drawn_elsewhere():
    """Reading batches uses up nothing of the global generators."""
    with isolated_rng():
        seed_all(1)
        expected = torch.rand(2).tolist(), np.random.rand(), random.random()
        seed_all(1)
        prints(Stream(NumpyShuffled(), 0), 20)
        prints(Stream(make().batches, 0), 20)
        assert (torch.rand(2).tolist(), np.random.rand(), random.random()) == expected


def test_a_stream_shuffles_each_pass_anew_and_numbers_its_batches():
    """A stream goes on after a pass, in a new order, with indices that start over."""
    stream = Stream(make().batches, 0)
    first, indices = [], []
    for _ in range(6):
        first += prints(stream, 1)
        indices.append(stream.index)
    second = prints(stream, 6)
    assert indices == [0, 1, 2, 3, 4, 5]
    assert sum(first) == pytest.approx(sum(second), abs=1e-3)
    assert first != second
    assert len(list(Stream(make().batches, 0, once=True))) == 6


def test_looking_ahead_changes_nothing():
    """The batches peeked at are the next ones, and the order after it is as without the look."""
    stream = Stream(make().batches, 0)
    ahead = [float(x.sum()) for x, _ in stream.peek(8)]
    assert [float(x.sum()) for x, _ in stream.peek(2)] == ahead[:2]
    assert stream.index == -1
    assert prints(stream, 9) == prints(Stream(make().batches, 0), 9)
    assert stream.index == 2


def test_one_thread_gives_the_threads_back():
    """The number of threads is one inside, and as before after it, also after an error."""
    before = torch.get_num_threads()
    inside: list[int] = []

    def fail() -> None:
        with one_thread():
            inside.append(torch.get_num_threads())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside == [1]
    assert torch.get_num_threads() == before


# Inputs and devices -------------------------------------------------------------------------------------------------


def test_inputs_can_be_one_tensor_several_or_named():
    """A tuple is passed on as arguments, a dict by name, a tensor alone."""

    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a - b

    a, b = torch.tensor(3.0), torch.tensor(1.0)
    assert call(Two(), (a, b)) == call(Two(), {"b": b, "a": a}) == 2
    assert call(nn.Identity(), a) == 3
    assert split([a, b]) == (a, b)


def test_nested_batches_move_to_the_device():
    """Tensors move wherever they are in a batch, and other values stay what they are."""
    meta = torch.device("meta")
    (x, named), label = to_device(((X, {"mask": X, "name": "a"}), [Y]), meta)
    assert {x.device, named["mask"].device, label[0].device} == {meta}
    assert named["name"] == "a"


# The loop and the score ---------------------------------------------------------------------------------------------


class Log:
    """A stand-in for a watch: keeps the losses, and whether gradients were there."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.losses = model, []

    def step(self, loss: Any = None) -> None:
        assert next(self.model.parameters()).grad is not None
        self.losses.append(float(loss.detach()))


def test_the_loop_is_the_plain_loop():
    """Parameters after `train` are bit for bit those of the loop every tutorial writes."""
    training = make()
    model, optimizer = build(training, 7)
    plain, steps = build(training, 7)
    log, seen = Log(model), []
    torch.manual_seed(1)
    losses = train(
        training, model, optimizer, Stream(training.batches, 7), 15, watch=log, after_step=lambda *a: seen.append(a)
    )
    torch.manual_seed(1)
    stream = Stream(training.batches, 7)
    for _ in range(15):
        x, y = next(stream)
        loss = nn.functional.cross_entropy(plain(x), y)
        steps.zero_grad()
        loss.backward()
        steps.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert losses == log.losses == [loss for _, loss in seen]
    assert [step for step, _ in seen] == list(range(1, 16))


def test_training_stops_at_the_first_loss_that_is_not_finite():
    """A run that blows up ends with that loss, and the watch has seen it."""
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    training = make(
        model=lambda: nn.Linear(4, 1),
        loss=nn.functional.mse_loss,
        batches=[(x, x[:, :1])],
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e6),
    )
    model, optimizer = build(training, 0)
    log = Log(model)
    losses = train(training, model, optimizer, Stream(training.batches, 0), 100, watch=log)
    assert len(losses) == len(log.losses) < 100
    assert not np.isfinite(losses[-1])
    assert np.isfinite(losses[:-1]).all()
    assert score(training, model) is None


def test_bad_values_in_a_later_batch_are_named():
    """NaN in the data is reported as a fault of that batch, not as a run that diverged."""
    training = make(batches=[(X, Y), (X, Y), (NAN, Y)])
    model, optimizer = build(training, 0)
    with pytest.raises(DataError, match="input of batch 2 contains NaN"):
        train(training, model, optimizer, Stream(training.batches, 0), 10)
    require_finite((X, Y), 0)


def test_an_interrupt_passes_through_with_what_was_recorded():
    """Ctrl-C ends the loop at once, and the watch keeps the steps before it."""

    def interrupt(step: int, _: float) -> None:
        if step == 4:
            raise KeyboardInterrupt

    training = make()
    model, optimizer = build(training, 0)
    log = Log(model)
    with pytest.raises(KeyboardInterrupt):
        train(training, model, optimizer, Stream(training.batches, 0), 9, watch=log, after_step=interrupt)
    assert len(log.losses) == 4


def test_the_default_score_is_minus_the_mean_loss_over_samples():
    """Batches count by their size, dropout is off, and no gradients are kept."""
    training = make(validation=[(X[:90], Y[:90]), (X[90:], Y[90:])])
    model, _ = build(training, 0)
    model[2].eval()  # type: ignore[index]  # a network whose parts are in different modes
    found = score(training, model)
    assert [module.training for module in model] == [True, True, False, True]  # type: ignore[union-attr]
    with torch.no_grad():
        expected = -float(nn.functional.cross_entropy(model.eval()(X), Y))
    assert found == pytest.approx(expected, rel=1e-6)
    assert training.score_in_words == "minus mean loss on the validation data"
    assert make().score_in_words == "minus mean loss on the training batches"


def test_scoring_stops_at_enough_samples(monkeypatch: pytest.MonkeyPatch):
    """A large set is scored on its first samples only, the same ones each time, and nothing global is used up."""
    monkeypatch.setattr("relume.training.loop.SCORED_SAMPLES", 32)
    seen: list[int] = []

    def counted(output: Tensor, target: Tensor) -> Tensor:
        seen.append(len(target))
        return nn.functional.cross_entropy(output, target)

    training = make(loss=counted)
    model, _ = build(training, 0)
    state = torch.get_rng_state()
    first = score(training, model)
    torch.rand(9)
    assert score(training, model) == first
    torch.set_rng_state(state)
    score(training, model)
    assert torch.equal(torch.get_rng_state(), state)
    assert seen == [16, 16] * 3


@pytest.mark.parametrize(
    ("function", "expected"),
    [(lambda model: 0.25, 0.25), (lambda model: torch.tensor(2.0), 2.0), (lambda model: float("nan"), None)],
)
def test_an_own_score_sees_the_model_in_eval_mode(function: Callable[[nn.Module], Any], expected: float | None):
    """The user's function gets the model as it is used, and any number it returns will do."""
    modes = []

    def accuracy(model: nn.Module) -> float:
        modes.append((model.training, torch.is_grad_enabled()))
        return function(model)

    model, _ = build(make(), 0)
    assert score(make(score=accuracy), model) == expected
    assert modes == [(False, False)]
    assert model.training
    assert make(score=accuracy).score_in_words == "accuracy"


def test_a_score_that_fails_says_so():
    """A score that raises, or returns no number, is a TrainingError."""
    model, _ = build(make(), 0)
    with pytest.raises(TrainingError, match=r"score\(model\) failed: KeyError"):
        score(make(score=raises(KeyError("x"))), model)
    with pytest.raises(TrainingError, match=r"must return a number; it returned a NoneType"):
        score(make(score=lambda model: None), model)  # type: ignore[arg-type, return-value]


def test_a_training_can_be_changed_and_checked_without_warnings():
    """`dataclasses.replace` gives a changed training, and a sound one passes the check in silence."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(dataclasses.replace(make(), steps=3, validation=[(X, Y)]))
