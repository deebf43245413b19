"""Healing: the proven remedy is adopted, and nobody is left worse off."""

import dataclasses
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from relume.diagnosis import REMEDIES_FOR, Coverage, Diagnosis
from relume.errors import RemedyError, TrialError
from relume.heal import heal, likeliest, no_worse, worth_adopting
from relume.recording import Recording
from relume.remedies import REMEDIES, Edit, Network, Remedy
from relume.report.results import Report
from relume.training import Training
from relume.trial import Progress, trial
from relume.trial.screening import ROUND, WORTH_PROVING, screen


def network(bias: float) -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    nn.init.constant_(layers[0].bias, bias)  # type: ignore[arg-type]
    return layers


def ill() -> nn.Module:
    return network(-30.0)


def well() -> nn.Module:
    return network(0.0)


def accuracy(model: nn.Module) -> float:
    x, y = data(seed=1)
    return float((model(x).argmax(1) == y).float().mean())


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(512, 4, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] + x[:, 1] > 0).long()


def make(model: Any, **changes: Any) -> Training:
    parts: dict[str, Any] = {
        "model": model,
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.2),
        "loss": nn.functional.cross_entropy,
        "batches": DataLoader(TensorDataset(*data()), batch_size=64, shuffle=True),
        "score": accuracy,
        "steps": 80,
    }
    return Training(**{**parts, **changes})


def own(name: str, change: Any) -> Remedy:
    def apply(net: Network) -> Edit:
        change(net)
        return Edit(changes={"all": name})

    return dataclasses.replace(REMEDIES["reset_bias"], name=name, apply=apply)


def ill_report() -> Report:
    diagnosis = Diagnosis(
        cause="bias", severity="critical", since=0, symptoms=(), because=(), remedies=("reset_bias", "no_such_remedy")
    )
    note = Diagnosis(cause="bias", severity="note", since=0, symptoms=(), because=(), remedies=("elu",))
    return Report(diagnoses=(diagnosis, note), coverage=Coverage(sites=(), watched=()), recording=Recording())


def test_an_ill_network_is_healed():
    """Dead units are found, a remedy is proven and adopted, and the trained network is healthy and better."""
    events: list[Progress] = []
    healed = heal(
        make(ill),
        seeds=2,
        engine="sequential",
        remedies=["reset_bias", "lower_learning_rate"],
        on_progress=events.append,
    )
    assert not healed.report_before.healthy
    assert healed.remedy == "reset_bias"
    assert healed.trial is not None
    assert healed.trial.winner == "reset_bias"
    assert healed.score_before is not None
    assert healed.score_after is not None
    assert healed.score_after > healed.score_before + 0.2
    assert healed.score_after == pytest.approx(accuracy(healed.model.eval()))
    assert healed.report_after.healthy
    assert healed.because.startswith("reset_bias was proven in the trial (No longer ill with dead units ")
    assert "Afresh with seed 2: reset_bias scores" in healed.because
    assert {id(p) for p in healed.model.parameters()} == {
        id(p) for group in healed.optimizer.param_groups for p in group["params"]
    }
    assert events[-1].done == events[-1].total == 6


def test_a_healthy_network_is_only_trained():
    """Without an illness there is no trial and no remedy, and the network that comes back is trained."""
    healed = heal(make(well), seeds=2, engine="sequential")
    assert (healed.remedy, healed.trial) == (None, None)
    assert healed.because == "The untreated network is healthy."
    assert healed.score_before == healed.score_after
    assert healed.score_after is not None
    assert healed.score_after > 0.9


def test_without_a_proven_remedy_the_network_is_left_untreated():
    """Remedies that do not help are not adopted, and the reason is given."""
    healed = heal(make(ill), seeds=2, engine="sequential", remedies=["lower_learning_rate"])
    assert healed.remedy is None
    assert healed.trial is not None
    assert healed.score_before == healed.score_after
    assert healed.because.startswith("Left untreated. None of 1 arms cures or eases dead units")
    assert not healed.report_after.healthy


def test_a_remedy_that_does_worse_afresh_is_not_kept(monkeypatch: pytest.MonkeyPatch):
    """The treated network must score at least as well as the untreated one, from a seed the trial has not seen."""
    training = make(ill)
    result = trial(training, ["reset_bias"], seeds=2, engine="sequential")
    assert result.winner == "reset_bias"

    def zero(net: Network) -> None:
        for parameter in net.model.parameters():
            nn.init.constant_(parameter, float("nan"))

    seeds = []
    healing: Any = sys.modules["relume.heal"]  # `relume.heal` itself is the function
    carry_out = healing.carry_out

    def noted(training: Training, steps: int, seed: int, *treatment: Any) -> Any:
        seeds.append(seed)
        return carry_out(training, steps, seed, *treatment)

    monkeypatch.setattr(healing, "carry_out", noted)
    healed = heal(training, remedies=[own("reset_bias", zero)], report=ill_report(), trial=result)
    assert healed.remedy is None
    assert healed.score_after == healed.score_before
    assert "reset_bias diverged: loss is NaN at step 1, untreated scores" in healed.because
    assert seeds == [2, 2]


def test_the_next_proven_remedy_is_tried(monkeypatch: pytest.MonkeyPatch):
    """When the winner fails afresh, the next arm that the trial has proven takes its place."""
    training = make(ill)
    result = trial(training, ["reset_bias", "he_init"], seeds=2, engine="sequential")
    winner = result.winner
    other = {"reset_bias": "he_init", "he_init": "reset_bias"}[str(winner)]
    assert result.arm(other).verdict == "cured"

    def spoil(net: Network) -> None:
        for parameter in net.model.parameters():
            nn.init.constant_(parameter, float("nan"))

    healed = heal(training, remedies=[own(str(winner), spoil)], report=ill_report(), trial=result)
    assert healed.remedy == other


def test_a_trial_of_unknown_arms_needs_their_records():
    """A trial that was run elsewhere with the user's own remedy is adopted only together with that remedy."""
    training = make(ill)
    result = trial(training, [dataclasses.replace(REMEDIES["reset_bias"], name="mine")], seeds=2, engine="sequential")
    with pytest.raises(RemedyError, match=r"arm 'mine' is no remedy that is known here"):
        heal(training, report=ill_report(), trial=result)


def test_what_is_tried_begins_with_what_the_grave_diagnoses_name():
    """Their remedies first, then the first for each other cause, then both together; notes recommend nothing."""
    names = [remedy.name for remedy in likeliest(ill_report())]
    assert names[0] == "reset_bias"
    assert "no_such_remedy" not in names
    assert {first for first, *_ in REMEDIES_FOR.values()} <= set(names)
    assert len(names) == len(set(names))
    assert names[-1].startswith("reset_bias+") and "reset_bias+raise_learning_rate" in names


def test_without_named_remedies_the_likeliest_are_screened_and_the_best_proven():
    """The trial holds only arms that did well on another seed; the network is healed by one of them."""
    healed = heal(make(ill), seeds=2, engine="sequential", report=ill_report())
    assert healed.trial is not None
    assert 1 <= len(healed.trial.arms) - 1 <= WORTH_PROVING
    assert healed.trial.seeds == (0, 1)
    assert healed.remedy == "reset_bias"
    assert no_worse(healed.score_after, healed.score_before)


def test_screening_stops_where_one_will_do_and_goes_on_where_none_does():
    """A round that holds a cure is the last one; without any, the best scores come first."""
    done: list[str] = []
    useless = [own(f"useless{i}", lambda net: None) for i in range(ROUND)]
    cure, never = REMEDIES["reset_bias"], REMEDIES["he_init"]

    def note(progress: Progress) -> None:
        done.append(progress.run.arm)

    found, rest = screen(make(ill), [*useless, cure, never], 80, 7, "sequential", on_progress=note)
    assert found[0] in (cure, never) and not rest
    assert done == ["untreated", *(remedy.name for remedy in useless), "reset_bias", "he_init"]

    done.clear()
    found, rest = screen(make(ill), [cure, *useless, never], 80, 7, "sequential", on_progress=note)
    assert found == [cure] and rest == [useless[-1], never]
    assert done == ["untreated", "reset_bias", *(remedy.name for remedy in useless[:-1])]

    found, rest = screen(make(ill), useless, 80, 7, "sequential")
    assert len(found) == WORTH_PROVING and not rest


def test_what_did_well_on_one_seed_only_is_not_the_last_word(monkeypatch: pytest.MonkeyPatch):
    """Where no arm keeps what its first seed promised, the remedies that were not tried yet are."""
    lucky = own("lucky", lambda net: nn.init.zeros_(net.model[0].bias) if torch.initial_seed() == 4 else None)
    useless = [own(f"useless{i}", lambda net: None) for i in range(ROUND - 1)]
    listed = [lucky, *useless, REMEDIES["reset_bias"]]
    monkeypatch.setattr(sys.modules["relume.heal"], "likeliest", lambda report: listed)
    arms: list[str] = []
    healed = heal(make(ill), seeds=3, engine="sequential", on_progress=lambda progress: arms.append(progress.run.arm))
    assert arms.count("lucky") == 4 and healed.remedy == "reset_bias"


def test_an_arm_better_in_every_seed_may_be_kept_though_unproven():
    """Two seeds cannot prove a rise that differs; where it is there in both, and afresh, the user gets it."""
    training = make(ill)
    result = trial(training, ["reset_bias", "lower_learning_rate"], seeds=2, engine="sequential")
    doubtful = dataclasses.replace(result.arm("reset_bias"), verdict="unproven")
    same = result.arm("lower_learning_rate")
    result = dataclasses.replace(result, arms=(result.control, doubtful, same))
    assert [arm.name for arm in worth_adopting(result)] == ["reset_bias"]
    healed = heal(training, report=ill_report(), trial=result)
    assert healed.remedy == "reset_bias"
    assert "was not proven, but scored higher in every seed" in healed.because


@pytest.mark.parametrize(
    ("treated", "untreated", "kept"),
    [(1.0, 1.0, True), (0.9, 1.0, False), (None, None, False), (0.1, None, True), (None, 0.1, False)],
)
def test_divergence_is_worse_than_any_score(treated: float | None, untreated: float | None, kept: bool):
    """A treated network without a score is never kept, and any score beats an untreated one without."""
    assert no_worse(treated, untreated) is kept


def test_wrong_seeds_are_refused_before_any_training():
    """Seeds that are none are an error at once."""
    with pytest.raises(TrialError, match="seeds must be"):
        heal(make(ill), seeds=0)
