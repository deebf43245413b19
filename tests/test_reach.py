"""What the loss could reach, against closed forms; and what is made of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_symptoms import mlp
from torch import Tensor, nn

import relume
from relume.reach import reach
from relume.training import Training

RNG = torch.Generator().manual_seed(0)
X = torch.randn(192, 16, generator=RNG)
NUMBERS = torch.randn(192, 4, generator=RNG)
CLASSES = torch.arange(192) % 4
LABELS = (NUMBERS > 0).float()


def behind(head: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(mlp()(), *([] if head is None else [head]))


def entropy(share: Tensor) -> float:
    return float(-(share * share.log() + (1 - share) * (1 - share).log()).mean())


CLOSED_FORMS: dict[str, tuple[nn.Module | None, Tensor, Callable[..., Tensor], float, float]] = {
    "squares, nothing behind": (None, NUMBERS, F.mse_loss, 0.0, 0.0),
    "squares behind a ReLU": (nn.ReLU(), NUMBERS, F.mse_loss, float(NUMBERS.clamp(max=0).square().mean()), 0.0),
    "squares behind a tanh": (
        nn.Tanh(), NUMBERS, F.mse_loss, float((NUMBERS.abs() - 1).clamp(min=0).square().mean()), 0.0,
    ),
    "classes, nothing behind": (None, CLASSES, F.cross_entropy, 0.0, 0.0),
    "classes behind a softmax": (nn.Softmax(-1), CLASSES, F.cross_entropy, math.log(math.e + 3) - 1, 0.0),
    "classes behind a ReLU": (nn.ReLU(), CLASSES, F.cross_entropy, 0.0, 0.0),
    "log-probabilities": (nn.LogSoftmax(-1), CLASSES, F.nll_loss, 0.0, 0.0),
    "probabilities": (nn.Sigmoid(), LABELS, F.binary_cross_entropy, 0.0, 0.0),
    "squares of probabilities": (nn.Sigmoid(), LABELS, F.mse_loss, 0.0, 0.0),
    "labels behind a ReLU": (
        nn.ReLU(), LABELS, F.binary_cross_entropy_with_logits, math.log(2) * float((LABELS == 0).float().mean()), 0.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_the_least_losses_are_those_of_closed_forms(name: str) -> None:
    """With what stands behind the last layer, and without it."""
    head, target, loss, floor, free = CLOSED_FORMS[name]
    found = reach(behind(head), [(X, target)], loss)
    assert found is not None
    assert found.floor == pytest.approx(floor, abs=1e-3) and found.free == pytest.approx(free, abs=1e-3)


@pytest.mark.parametrize(
    ("target", "loss", "expected"),
    [
        (NUMBERS, F.mse_loss, float(NUMBERS.var(0, correction=0).mean())),
        (NUMBERS * 1000, F.mse_loss, 1e6 * float(NUMBERS.var(0, correction=0).mean())),
        (CLASSES, F.cross_entropy, math.log(4)),
        (LABELS, F.binary_cross_entropy_with_logits, entropy(LABELS.mean(0))),
    ],
)
def test_the_best_constant_answer_is_that_of_closed_forms(
    target: Tensor, loss: Callable[..., Tensor], expected: float
) -> None:
    """The variance of numbers, the entropy of classes and labels; the same from many small batches as from one."""
    for size in (192, 8, 1):
        found = reach(behind(), list(zip(X.split(size), target.split(size), strict=True)), loss)
        assert found is not None and found.constant == pytest.approx(expected, rel=1e-3)


def test_too_few_samples_flatter_no_constant() -> None:
    """One sample is fitted by one answer; nothing is claimed from it."""
    found = reach(behind(), [(X[:8], NUMBERS[:8])], F.mse_loss)
    assert found is not None and found.constant is None


def test_a_loss_without_least_value_and_a_failing_model_give_nothing() -> None:
    """A policy gradient has no floor; a model that fails is the training's affair, and stays as it was."""
    assert reach(behind(), [(X, CLASSES)], lambda o, t: o.mean()) is None
    assert reach(behind(), [(X[:, :3], CLASSES)], F.cross_entropy) is None


def test_the_model_and_the_random_generator_stay_bit_identical() -> None:
    """BatchNorm's buffers, modes, hooks and gradients are as before."""
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 4))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    assert reach(model, [(X, CLASSES)], F.cross_entropy) is not None
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert not any(m._forward_hooks for m in model.modules()) and all(p.grad is None for p in model.parameters())


def diagnosed(
    model: Callable[[], nn.Module], target: Tensor, loss: Any, lr: float = 3e-3, steps: int = 200
) -> relume.Report:
    batches = list(zip(X.split(32), target.split(32), strict=True))
    return relume.diagnose(
        Training(model=model, optimizer=lambda p: torch.optim.Adam(p, lr=lr), loss=loss, batches=batches, steps=steps)
    )


def test_an_output_that_cannot_give_the_targets_is_named() -> None:
    """Half of the targets are below zero, which a ReLU never is; without it the same run is well."""
    target = X[:, :4].clone()
    ill = diagnosed(lambda: nn.Sequential(mlp()(), nn.ReLU()), target, F.mse_loss)
    assert ill.diagnoses[0].cause == "output_activation" and not ill.healthy, str(ill)
    assert any(s.site == "1" and s.kind == "not_learning" for s in ill.diagnoses[0].symptoms)
    assert diagnosed(mlp(), target, F.mse_loss).healthy


def test_a_softmax_before_cross_entropy_is_a_note_where_the_network_learns() -> None:
    """The right class still wins: the loss comes down most of the way that is left to it."""
    target = X[:, :4].argmax(1)
    report = diagnosed(lambda: nn.Sequential(mlp()(), nn.Softmax(-1)), target, F.cross_entropy, steps=400)
    assert report.healthy and any("least_loss" in s.evidence for s in report.symptoms)


def test_a_loss_at_its_floor_is_no_illness() -> None:
    """Targets that have nothing to do with the inputs cannot be learnt; a rate of 1e-9 on what can be is an illness."""
    torch.manual_seed(0)
    many = torch.randn(4096, 16), torch.randn(4096, 1)
    batches = list(zip(many[0].split(64), many[1].split(64), strict=True))

    def report(target: list[Any], lr: float) -> relume.Report:
        return relume.diagnose(
            Training(
                model=lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)),
                optimizer=lambda p: torch.optim.Adam(p, lr=lr), loss=F.mse_loss, batches=target, steps=200,
            )
        )  # fmt: skip

    noise = report(batches, 1e-3)
    assert noise.healthy and any(s.kind == "not_learning" and s.severity == "note" for s in noise.symptoms), str(noise)
    slow = report([(x, x[:, :1]) for x, _ in batches], 1e-7)
    assert slow.diagnoses[0].cause == "learning_rate_too_low" and not slow.healthy, str(slow)


def test_a_network_that_cannot_learn_what_a_plain_one_can_is_flagged() -> None:
    """Linear layers alone cannot tell inside from outside a circle; nothing that is changed in them helps."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(512, 2, generator=rng)
    y = (x.square().sum(1) > 1.4).long()
    report = relume.diagnose(
        Training(
            model=lambda: nn.Sequential(nn.Linear(2, 32), nn.Linear(32, 2)),
            optimizer=lambda p: torch.optim.Adam(p, lr=3e-3),
            loss=F.cross_entropy,
            batches=list(zip(x.split(64), y.split(64), strict=True)),
            steps=300,
        )
    )
    assert report.diagnoses[0].cause == "unknown" and not report.healthy, str(report)
    assert any("a plain network" in sentence for sentence in report.diagnoses[0].because)
