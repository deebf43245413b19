"""Comparisons of activation functions: fair learning rates, and the network's own function as a check on itself."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from relume.errors import ActivationError, TrialError
from relume.training import Training
from relume.trial import Progress, compare, engine
from relume.trial.arms import Job, Outcome
from relume.trial.tuning import best_factor
from relume.verdicts import Difference, Run


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


def make(**changes: Any) -> Training:
    x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    parts: dict[str, Any] = {
        "model": network,
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        "loss": nn.functional.cross_entropy,
        "batches": DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=32, shuffle=True),
    }
    return Training(**{**parts, **changes})


def test_functions_are_compared_at_their_own_learning_rates(monkeypatch: pytest.MonkeyPatch):
    """Each arm is tuned on seeds that are not compared, the network's own function equals the control to the bit."""
    jobs: list[Job] = []
    work = engine.work

    def noted(payload: Any, job: Job, where: str) -> Any:
        jobs.append(job)
        return work(payload, job, where)

    monkeypatch.setattr(engine, "work", noted)
    events: list[Progress] = []
    training = make(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.02))
    result = compare(training, ["relu", "sigmoid"], seeds=2, steps=30, engine="sequential", on_progress=events.append)
    relu = result.arm("relu")
    assert relu.scores == result.control.scores
    assert (relu.verdict, relu.difference) == ("no_effect", Difference(mean=0.0, low=0.0, high=0.0))
    assert relu.changes["activations"] == "are relu already"
    assert result.control.changes == {"learning rate": "10 times the training's own"}
    assert result.arm("sigmoid").changes["1"].startswith("relu became Sigmoid")
    assert {job.seed for job in jobs if " at " in job.arm} == {2, 3}
    assert {job.seed for job in jobs if " at " not in job.arm} == {0, 1}
    assert [event.done for event in events] == list(range(1, len(jobs) + 1))
    assert events[-1].total == len(jobs)


def test_a_better_function_wins_with_its_code():
    """In a network whose sigmoids are flat everywhere ReLU scores higher, and the code says how to get there."""

    def flat() -> nn.Module:
        layers = nn.Sequential(nn.Linear(4, 16), nn.Sigmoid(), nn.Linear(16, 2))
        nn.init.constant_(layers[0].bias, 40.0)  # type: ignore[arg-type]
        return layers

    result = compare(make(model=flat), "relu", seeds=3, steps=40, engine="sequential")
    assert result.winner == "relu", result.arm("relu").because
    assert 'swap_to("relu")' in result.code
    compile(result.code, "code", "exec")


def outcomes(*scores: float | None, lost: bool = False) -> list[Outcome]:
    runs = [Run(arm="a", seed=seed, score=score, burden=0.0, lost=lost) for seed, score in enumerate(scores)]
    return [Outcome(run=run) for run in runs]


@pytest.mark.parametrize(
    ("tried", "best"),
    [
        ({0.1: outcomes(0.5, 0.5), 0.3: outcomes(0.7, 0.6), 1.0: outcomes(0.6, 0.6)}, 0.3),
        ({0.3: outcomes(0.6, 0.6), 1.0: outcomes(0.6, 0.6), 3.0: outcomes(0.6, 0.6)}, 1.0),
        ({1.0: outcomes(0.5, 0.5), 3.0: outcomes(0.9, None)}, 1.0),
        ({0.1: outcomes(None, None), 1.0: outcomes(None, None)}, 1.0),
        ({0.1: outcomes(None, lost=True), 3.0: outcomes(None, lost=True)}, 1.0),
    ],
)
def test_the_best_rate_is_the_one_that_diverges_least(tried: dict[float, list[Outcome]], best: float):
    """Divergence counts before the mean score, and equals go to the rate nearest to the training's own."""
    assert best_factor(tried) == best


def test_functions_to_compare_must_be_known_and_distinct():
    """An unknown function is named, and so are doubles."""
    with pytest.raises(ActivationError, match="rellu"):
        compare(make(), ["rellu"])
    with pytest.raises(TrialError, match=r"activations must be distinct names, at least one; found \['relu', 'relu'\]"):
        compare(make(), ["relu", "relu"])


def test_a_network_without_the_means_to_swap_says_so():
    """Where no activation can be swapped the arm is a failure with its reason, and the trial goes on."""
    linear = make(model=lambda: nn.Linear(4, 2))
    result = compare(linear, ["gelu"], seeds=1, steps=3, engine="sequential")
    assert "gelu" in result.arm("gelu").failure


class Pair(nn.Module):
    """A network with two inputs by name, and an activation that is a function call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(a + b)))


def test_networks_with_named_inputs_are_compared():
    """Inputs that are a dict reach the network by name, also where the function is there already."""
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    training = make(model=Pair, batches=[({"b": x, "a": x}, (x[:, 0] > 0).long())])
    result = compare(training, ["relu", "tanh"], seeds=1, steps=3, engine="sequential")
    assert result.arm("relu").scores == result.control.scores
    assert not result.arm("tanh").failure
