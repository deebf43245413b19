"""Trials: paired to the bit, the same in every engine, and honest about arms that fail."""

import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupts import alive, endless_trial, wait_until
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from relume.diagnosis import Coverage, Diagnosis
from relume.errors import RemedyError, TrainingError, TrialError
from relume.recording import Recording
from relume.remedies import REMEDIES
from relume.report.results import Report
from relume.training import Training
from relume.trial import Progress
from relume.trial.arms import CONTROL, Job, carry_out, thinned
from relume.trial.engine import opened
from relume.trial.proof import FAMILIES, collect, default_remedies, run_trial, seed_list, trial
from relume.verdicts import Difference, Run

Treated = tuple[nn.Module, Optimizer, Mapping[str, str]]


class Net(nn.Sequential):
    """A small network with dropout; with `bias` its hidden units start out dead or alive."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
        nn.init.constant_(self[0].bias, bias)  # type: ignore[arg-type]


def ill() -> nn.Module:
    return Net(bias=-30.0)


def sgd(parameters: Any) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def loader(**changes: Any) -> DataLoader[Any]:
    x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=32, shuffle=True, **changes)


def make(**changes: Any) -> Training:
    parts: dict[str, Any] = {
        "model": Net, "optimizer": sgd, "loss": nn.functional.cross_entropy, "batches": loader(), "steps": 60,
    }  # fmt: skip
    return Training(**{**parts, **changes})


def nothing(model: nn.Module, optimizer: Optimizer, inputs: Any, targets: Any) -> Treated:
    """A remedy that draws random numbers and spoils its inputs, and changes nothing."""
    torch.rand(17)
    with torch.no_grad():
        model(inputs[0].mul_(2))
    return model, optimizer, {"all": "nothing"}


def revive(model: nn.Module, optimizer: Optimizer, inputs: Any, targets: Any) -> Treated:
    nn.init.zeros_(model[0].bias)  # type: ignore[index]
    return model, optimizer, {"0": "bias at zero"}


def overshoot(model: nn.Module, optimizer: Optimizer, inputs: Any, targets: Any) -> Treated:
    for group in optimizer.param_groups:
        group["lr"] *= 10_000
    return model, optimizer, {}


def blank(model: nn.Module, optimizer: Optimizer, inputs: Any, targets: Any) -> Treated:
    """A remedy that freezes the network with all weights at zero."""
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    return model, optimizer, {}


def refuse(model: nn.Module, optimizer: Optimizer, inputs: Any, targets: Any) -> Treated:
    raise RemedyError("there is no convolution to widen.")


def stumble(model: nn.Module, optimizer: Optimizer, inputs: Any, targets: Any) -> Treated:
    raise ZeroDivisionError("a bug in a remedy")


def die(model: nn.Module, optimizer: Optimizer, inputs: Any, targets: Any) -> Treated:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class DieOnce:
    """A remedy whose worker is killed in mid-run, the first time only."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __call__(self, model: nn.Module, optimizer: Optimizer, inputs: Any, targets: Any) -> Treated:
        if not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return model, optimizer, {}


def plain(run: Run) -> Run:
    """A run without what may differ between two equal runs: the time it took, and where."""
    return dataclasses.replace(run, seconds=0.0, engine="")


def all_runs(training: Training, treatments: dict[str, Any], engine: str, seeds: int = 2) -> list[Run]:
    result = run_trial(training, treatments, tuple(range(seeds)), 40, engine, None)
    return [plain(run) for arm in sorted(result.arms, key=lambda arm: arm.name) for run in arm.runs]


# Pairing ------------------------------------------------------------------------------------------------------------


def test_an_arm_that_changes_nothing_equals_the_control():
    """Random draws of a remedy, and what it does to its inputs, leave data, dropout and losses as they are."""
    result = run_trial(make(), {"nothing": nothing}, (0, 1, 2), 40, "sequential", None)
    arm = result.arm("nothing")
    assert [run.losses for run in arm.runs] == [run.losses for run in result.control.runs]
    assert arm.scores == result.control.scores
    assert (arm.verdict, arm.difference) == ("no_effect", Difference(mean=0.0, low=0.0, high=0.0))
    assert arm.changes == {"all": "nothing"}
    assert result.winner is None


class Recorded(DataLoader[Any]):
    """A loader that shuffles from a generator of its own and writes down what it gives, a line per batch."""

    log: Path

    def __iter__(self):  # type: ignore[override]
        for x, y in super().__iter__():
            with self.log.open("a") as file:
                file.write(hashlib.sha256(x.numpy().tobytes()).hexdigest() + "\n")
            yield x, y


@pytest.mark.parametrize("own", [True, False], ids=["own generator", "global generator"])
def test_every_arm_sees_the_same_batches(tmp_path: Path, own: bool):
    """Neither dropout nor the state that the arm before left in the loader changes which batches an arm sees."""
    batches = Recorded(loader().dataset, batch_size=32, shuffle=True, generator=torch.Generator() if own else None)
    batches.log = tmp_path / "log"
    training = make(batches=batches, score=lambda model: 0.0)
    treatments = {"nothing": nothing, "revive": revive}
    jobs = [Job(CONTROL, 0), *(Job(name, 0, treatment) for name, treatment in treatments.items()), Job(CONTROL, 1)]
    with opened(training, 20, "sequential", 3, 0.0) as runner:
        collect(runner, jobs)
    lines = batches.log.read_text().split()
    first, second, third, other = (lines[i : i + 20] for i in range(0, 80, 20))
    assert len(lines) == 80
    assert first == second == third
    if not own:  # a generator of the loader's own is beyond the reach of a seed
        assert other != first


def test_the_callers_generators_and_loader_are_left_alone():
    """A trial in this process uses up no random numbers and does not move the loader on."""
    generator = torch.Generator().manual_seed(3)
    states = torch.get_rng_state(), generator.get_state()
    trial_of = run_trial(make(batches=loader(generator=generator)), {}, (0,), 5, "sequential", None)
    assert trial_of.engine == "in this process"
    assert torch.equal(states[0], torch.get_rng_state())
    assert torch.equal(states[1], generator.get_state())


# Engines ------------------------------------------------------------------------------------------------------------


def test_workers_give_the_same_numbers_bit_for_bit():
    """Losses, scores and burdens are equal in worker processes and in this one, with dropout and a stateful loader."""
    training = make(model=ill, batches=loader(generator=torch.Generator().manual_seed(1)))
    treatments = {"nothing": nothing, "revive": revive, "overshoot": overshoot, "refuse": refuse}
    events: list[Progress] = []
    here = all_runs(training, treatments, "sequential")
    result = run_trial(training, treatments, (0, 1), 40, "processes", events.append)
    there = [plain(run) for arm in sorted(result.arms, key=lambda arm: arm.name) for run in arm.runs]
    assert str(there) == str(here)  # by text: the losses end in NaN, which equals nothing
    assert "worker process" in result.engine
    assert [event.done for event in events] == list(range(1, 11))
    assert {event.total for event in events} == {10}
    pids = {run.engine for arm in result.arms for run in arm.runs}
    assert f"process {os.getpid()}" not in pids


def test_a_killed_worker_costs_no_run(tmp_path: Path):
    """Runs that were in a killed worker are run again, and the others keep their results."""
    result = run_trial(make(), {"once": DieOnce(tmp_path / "died")}, (0, 1), 20, "processes", None)
    assert (tmp_path / "died").exists()
    assert [run.lost for arm in result.arms for run in arm.runs] == [False] * 4
    assert result.arm("once").verdict == "no_effect"


def test_a_run_that_always_kills_its_worker_is_lost_alone():
    """After two retries the run is a failure with its reason, and no other run is lost with it."""
    result = run_trial(make(), {"die": die, "nothing": nothing}, (0,), 20, "processes", None)
    assert result.arm("die").failure == "its worker was killed 3 times"
    assert result.arm("nothing").verdict == "no_effect"


def test_an_interrupt_ends_the_workers(tmp_path: Path):
    """Ctrl-C in mid-trial raises KeyboardInterrupt, says nothing else, and leaves no worker behind."""
    script, log = endless_trial(tmp_path, "processes")
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert wait_until(lambda: log.exists() and log.read_text().endswith("\n")), "no worker has started"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group, workers included
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (3, "interrupted\n", "")
    workers = [int(pid) for pid in log.read_text().split()]
    assert process.pid not in workers
    assert wait_until(lambda: not any(map(alive, workers)))


def test_auto_stays_in_this_process_when_there_is_little_to_do():
    """Workers are not started for a fraction of a second of work."""
    assert run_trial(make(), {}, (0,), 5, "auto", None).engine == "in this process"


def test_what_cannot_be_sent_runs_here_or_says_so(tmp_path: Path):
    """A training that cannot be pickled is run in this process by "auto", and is an error for "processes"."""
    with (tmp_path / "file").open("w") as file:

        def loss(output: Tensor, target: Tensor) -> Tensor:
            file.write("")
            return nn.functional.cross_entropy(output, target)

        result = run_trial(make(loss=loss), {"nothing": nothing}, (0, 1), 10, "auto", None)
        assert result.engine.startswith("in this process (the training cannot be copied: ")
        assert result.arm("nothing").verdict == "no_effect"
        with pytest.raises(TrialError, match=r"worker processes cannot be sent this training: (?s:.*)'sequential'"):
            run_trial(make(loss=loss), {}, (0,), 10, "processes", None)


def test_an_unknown_engine_is_named():
    """An engine that there is not is refused with those that there are."""
    with pytest.raises(TrialError, match=r"no engine named 'ray2'.\nEngines: auto, processes, sequential, ray"):
        run_trial(make(), {}, (0,), 5, "ray2", None)


def test_a_file_given_by_path_reaches_the_workers(tmp_path: Path):
    """Classes and functions of a file loaded under a made-up module name are sent by value."""
    import importlib.util

    file = tmp_path / "mine.py"
    file.write_text(
        textwrap.dedent(
            """
            import torch
            from torch import nn

            class Mine(nn.Sequential):
                def __init__(self):
                    super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

            def optimizer(parameters):
                return torch.optim.SGD(parameters, lr=0.1)
            """
        )
    )
    spec = importlib.util.spec_from_file_location("relume_user_file", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["relume_user_file"] = module
    try:
        spec.loader.exec_module(module)
        training = make(model=module.Mine, optimizer=module.optimizer)
        assert len(all_runs(training, {}, "processes")) == 2
    finally:
        del sys.modules["relume_user_file"]


# Verdicts on real runs ----------------------------------------------------------------------------------------------


def test_planted_arms_get_their_verdicts():
    """An ill network: the arm that revives it cures, one that does nothing has no effect, one that blanks it harms."""
    training = make(model=ill)
    arms = {"revive": revive, "nothing": nothing, "refuse": refuse, "stumble": stumble}
    result = run_trial(training, arms, (0, 1, 2), None, "sequential", None)
    assert result.symptom.startswith("dead units")
    assert {arm.name: arm.verdict for arm in result.arms} == {
        CONTROL: None, "revive": "cured", "nothing": "no_effect", "refuse": "unproven", "stumble": "unproven",
    }  # fmt: skip
    assert result.winner == "revive"
    assert result.arms[1].name == "revive"
    assert result.control.dead_share == 1.0
    assert result.arm("revive").dead_share < 0.2
    assert result.arm("refuse").failure == "there is no convolution to widen."
    assert result.arm("stumble").failure == "ZeroDivisionError: a bug in a remedy"
    assert result.steps == 60
    assert result.because.startswith("revive: no longer ill with dead")


@pytest.mark.parametrize("arm", [overshoot, blank])
def test_a_harmful_arm_reads_harmed(arm: Any):
    """An arm that blows up, or that cannot learn, harms a healthy network."""
    result = run_trial(make(), {"arm": arm}, (0, 1, 2), None, "sequential", None)
    assert result.arm("arm").verdict == "harmed", result.arm("arm").because
    assert result.winner is None
    assert result.because == "The untreated network is healthy, and no arm scores reliably higher."


def test_a_divergent_run_says_when():
    """A run that ends in NaN has no score, and says at which step it was."""
    trained = carry_out(make(optimizer=lambda p: torch.optim.SGD(p, lr=1e30)), 50, 0)
    assert trained.score is None
    assert trained.failure.startswith(("diverged: loss is NaN at step ", "diverged: loss is infinite at step "))


def test_a_control_that_fails_is_an_error_with_its_traceback():
    """When the untreated network cannot be trained to the end there is nothing to compare with."""

    def score(model: nn.Module) -> float:
        raise LookupError("no such metric")

    with pytest.raises(TrialError, match=r"untreated network could not be trained with seed 0: (?s:.*)LookupError"):
        run_trial(make(score=score), {}, (0,), 5, "sequential", None)
    with pytest.raises(TrainingError, match=r"steps must be"):
        run_trial(make(), {}, (0,), 0, "sequential", None)


def test_losses_are_thinned_evenly():
    """Long runs keep 200 losses, the first and last among them, and short runs keep all."""
    assert thinned([1.0, 2.0]) == (1.0, 2.0)
    kept = thinned([float(i) for i in range(1001)])
    assert (len(kept), kept[0], kept[-1]) == (200, 0.0, 1000.0)


# What is asked for --------------------------------------------------------------------------------------------------


def test_seeds_are_a_number_or_the_seeds_themselves():
    """A number n means 0 to n-1."""
    assert seed_list(3) == (0, 1, 2)
    assert seed_list([7, 5]) == (7, 5)
    for wrong in (0, -1, [], [1, 1], 1.5, "ab", True):
        with pytest.raises(TrialError, match="seeds must be"):
            seed_list(wrong)  # type: ignore[arg-type]


def test_remedies_by_name_and_by_record():
    """A remedy of the table and a record of the user's own are tried alike, and the winner comes with its code."""
    own = dataclasses.replace(REMEDIES["reset_bias"], name="own", code="by hand")
    result = trial(make(model=ill), [own, "lower_learning_rate"], seeds=2, engine="sequential")
    assert (result.winner, result.code) == ("own", "by hand")
    assert [arm.name for arm in result.arms] == [CONTROL, "own", "lower_learning_rate"]
    assert result.arm("own").changes
    assert result.arm("lower_learning_rate").verdict == "no_effect"
    assert result.seeds == (0, 1)


def test_by_default_the_nine_families_are_tried():
    """Without a choice every family is there, and each arm ran or says why it could not."""
    result = trial(make(model=ill), seeds=[4], steps=3, engine="sequential")
    assert {arm.name for arm in result.arms} == {CONTROL, *FAMILIES}
    assert all(arm.failure or len(arm.scores) == 1 for arm in result.arms)


def test_a_report_adds_its_remedies():
    """What a diagnosis recommends is tried first, and the families after it."""
    diagnosis = Diagnosis(
        cause="bias", severity="critical", since=0, symptoms=(), because=(), remedies=("reset_bias", "prelu")
    )
    report = Report(diagnoses=(diagnosis,), coverage=Coverage(sites=(), watched=()), recording=Recording())
    names = default_remedies(report)
    assert names[:2] == ["reset_bias", "prelu"]
    assert sorted(names) == sorted({"reset_bias", *FAMILIES})


@pytest.mark.parametrize(
    ("remedies", "message"),
    [
        (["prelo"], "no remedy named 'prelo'.\nDid you mean prelu"),
        (["nonsense_zzz"], "no remedy named 'nonsense_zzz'.\nRemedies: leaky_relu, "),
        ([], "a trial needs at least one remedy"),
        ([3], "a remedy is a name or a Remedy; found a int"),
        (["elu", "elu"], "found elu twice"),
    ],
)
def test_a_wrong_choice_of_remedies_is_refused(remedies: Any, message: str):
    """Remedies that are not there are named, with the closest that are."""
    with pytest.raises(RemedyError, match=message):
        trial(make(), remedies, seeds=1)


def test_one_remedy_needs_no_list():
    """A single name or record will do."""
    for remedy in ("prelu", REMEDIES["prelu"]):
        result = trial(make(), remedy, seeds=1, steps=2, engine="sequential")  # type: ignore[arg-type]
        assert result.arms[1].name == "prelu"


def test_an_interrupted_trial_judges_the_seeds_that_are_done():
    """Ctrl-C in the third seed leaves a trial of two; in the second it leaves nothing to judge, and comes through."""

    def interrupt_after(runs: int):
        def on_progress(progress: Progress) -> None:
            if progress.done == runs:
                raise KeyboardInterrupt

        return on_progress

    asked = {"remedies": ["prelu", "elu"], "seeds": 4, "engine": "sequential"}
    result = trial(make(), **asked, on_progress=interrupt_after(4 + 2 * 2 + 1))
    assert result.seeds == (0, 1)
    assert not result.finished
    assert result.because.startswith("Interrupted after 2 of 4 seeds.")
    assert all(len(arm.scores) == 2 for arm in result.arms)
    with pytest.raises(KeyboardInterrupt):
        trial(make(), **asked, on_progress=interrupt_after(4 + 2 + 1))


class Uncopyable:
    """Batches from a generator of its own, held by an object that cannot be copied."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(7)
        self.lock = threading.Lock()

    def __iter__(self):
        x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
        y = (x[:, 0] > 0).long()
        for index in torch.randperm(len(x), generator=self.generator).split(32):
            yield x[index], y[index]


def test_a_loader_that_cannot_be_copied_gives_every_arm_the_same_batches():
    """A no-op arm equals the control exactly, also where the loader keeps a state that no copy can reset."""

    result = run_trial(make(batches=Uncopyable()), {"nothing": nothing}, (0, 1), 20, "sequential", None)
    assert result.arm("nothing").scores == result.control.scores
    assert result.arm("nothing").verdict == "no_effect"
