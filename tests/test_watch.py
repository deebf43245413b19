"""Watching a loop changes nothing, leaves nothing on, and sees what happens."""

from __future__ import annotations

import copy
import logging
import pickle
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relume
from relume.errors import JournalError
from relume.journal import Journal, read_journal
from relume.probe import Probe
from relume.recording import Recording, from_json, to_json


def data(samples: int = 256, features: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, features, generator=rng)
    return x, (x[:, 0] > 0).long()


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)
    )


def loop(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, watch: Any = None, seed: int = 1) -> None:
    x, y = data()
    torch.manual_seed(seed)
    for _ in range(steps):
        index = torch.randint(0, len(x), (32,))
        loss = F.cross_entropy(model(x[index]), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if watch is not None:
            watch.step(loss)


@pytest.mark.parametrize("budget", [0.01, 10.0])
@pytest.mark.parametrize("loss", [None, F.cross_entropy, nn.CrossEntropyLoss()])
def test_the_parameters_are_bit_identical_with_and_without_the_watch(budget: float, loss: Any) -> None:
    """Dropout, BatchNorm and Adam give the same numbers to the last bit whether watched or not."""
    plain, watched = network(), network()
    loop(plain, torch.optim.Adam(plain.parameters()), 60)
    optimizer = torch.optim.Adam(watched.parameters())
    with relume.watch(watched, optimizer, loss=loss, budget=budget) as watch:
        loop(watched, optimizer, 60, watch)
    report = watch.report()
    assert len(report.recording.readings) > 3
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name


def test_nothing_is_left_on_between_probes_and_afterwards() -> None:
    """On an ordinary step the model carries no hook and no mode is on."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with relume.watch(model, optimizer, budget=1e-6) as watch:
        loop(model, optimizer, 60, watch)
        assert not model._forward_hooks and not model._forward_pre_hooks
        assert not torch.overrides._get_current_function_mode_stack()
    assert not model._forward_hooks and not nn.modules.module._global_forward_hooks


def test_statistics_are_those_of_a_plain_forward_pass() -> None:
    """What a probe reads is what NumPy-like arithmetic on hooked tensors gives."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    x, y = data()
    probe = Probe(model)
    z = model[0](x).detach()
    with probe.trace:
        output = model(x)
    loss = F.cross_entropy(output, y)
    loss.backward()
    read = probe.reading(loss).sites["1"]
    hidden = z.clamp(min=0).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model[2](hidden), y), hidden)
    digits: Any = {"rtol": 6e-4, "atol": 0.0}  # four of them
    torch.testing.assert_close(torch.tensor(read.flat_share), (z <= 0).float().mean(0), **digits)
    torch.testing.assert_close(torch.tensor(read.pre_mean), z.mean(0), **digits)
    torch.testing.assert_close(torch.tensor(read.pre_std), z.std(0, correction=0), **digits)
    torch.testing.assert_close(torch.tensor(read.gradient), gradient.square().mean(0).sqrt(), **digits)
    assert read.samples == len(x) and (torch.tensor(read.silent) == (z <= 0).all(0)).all()


def test_in_place_activations_are_read_before_they_overwrite_their_input() -> None:
    """An in-place ReLU gives the same reading as a plain one."""
    readings = []
    for in_place in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(in_place), nn.Linear(16, 2))
        probe = Probe(model)
        with probe.trace:
            output = model(data()[0])
        output.sum().backward()
        readings.append(to_json(probe.reading().sites["1"]))
    assert readings[0] == readings[1] and min(readings[0]["pre_mean"]) < 0


def test_units_that_stay_where_softshrink_is_flat_are_dead() -> None:
    """Silent are units on the flat ends, and those between them where the slope is 0 too: they get no gradient."""
    layer = nn.Linear(1, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.4], [0.6], [-0.45]]))
    model = nn.Sequential(layer, nn.Softshrink(), nn.Linear(3, 1))
    probe = Probe(model)
    with probe.trace:
        output = model(torch.linspace(0, 1, 65)[:, None])
    output.sum().backward()
    assert layer.weight.grad is not None
    read = probe.reading().sites["1"]
    assert list(read.silent) == (layer.weight.grad == 0).flatten().tolist() == [True, False, True]
    assert read.flat_share[0] == 1


def test_a_unit_that_fires_on_two_percent_is_sparse_not_dead() -> None:
    """Sparse units never count as dead, however rarely they fire in one batch."""
    torch.manual_seed(0)
    first = nn.Linear(8, 32)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(32, 2))
    with torch.no_grad():
        first.weight.div_(first.weight.norm(dim=1, keepdim=True))
        first.bias.fill_(-2.05)  # a standard normal exceeds 2.05 with 2 %
    report = relume.checkup(model, [torch.randn(4000, 8)])
    assert report.healthy and not any(s.kind == "dead" for s in report.symptoms)


def test_units_that_die_in_mid_run_are_dated() -> None:
    """The step at which planted units die is found to within the probes' spacing, and the others live."""
    torch.manual_seed(0)
    first = nn.Linear(8, 16)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with relume.watch(model, optimizer, budget=10.0) as watch:
        loop(model, optimizer, 50, watch)
        with torch.no_grad():
            first.bias[:12] = -1000.0
        loop(model, optimizer, 60, watch)
    (symptom,) = [s for s in watch.report().symptoms if s.kind == "dead"]
    assert symptom.units == tuple(range(12)) and symptom.site == "1" and not symptom.born
    assert 48 <= symptom.since <= 55 and symptom.evidence["samples"] >= 1000


def test_an_error_inside_relume_retires_the_watch_and_not_the_training(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of ours is logged once; the run goes on, bit-identical."""
    plain, watched = network(), network()
    loop(plain, torch.optim.SGD(plain.parameters(), lr=0.1), 30)
    monkeypatch.setattr(Probe, "_observe", lambda *args: 1 / 0)
    optimizer = torch.optim.SGD(watched.parameters(), lr=0.1)
    with caplog.at_level(logging.WARNING, "relume"), relume.watch(watched, optimizer) as watch:
        loop(watched, optimizer, 30, watch)
    assert len(caplog.records) == 1 and "unwatched" in caplog.records[0].message
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    assert "the watch stopped" in watch.report().recording.note


def test_validation_passes_are_not_read() -> None:
    """Passes in eval mode or without gradients are no training passes."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, _ = data()
    with relume.watch(model, optimizer, budget=10.0) as watch:
        model.eval()(x * 1e6)
        with torch.no_grad():
            model.train()(x * 1e6)
        loop(model, optimizer, 5, watch)
    inputs = [r.input for r in watch.report().recording.readings]
    assert all(i is not None and i.rms < 10 for i in inputs)


def test_a_loop_that_skips_the_forward_pass_is_watched_on() -> None:
    """Steps without a training pass through the model give no reading and no error."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with relume.watch(model, optimizer) as watch:
        for _ in range(10):
            watch.step(1.0)
        loop(model, optimizer, 20, watch)
    assert watch.report().recording.steps == 30


def test_a_watched_model_can_be_copied_in_mid_run() -> None:
    """A model with an armed probe can be copied and pickled, and the copies run unwatched."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with relume.watch(model, optimizer, budget=10.0) as watch:
        twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        for twin in twins:
            assert twin(data()[0] * 1e6).shape == (256, 2)
        loop(model, optimizer, 3, watch)
    assert all(r.input is not None and r.input.rms < 10 for r in watch.recording.readings)


def test_bad_arguments_are_named() -> None:
    """A class instead of a module, or a budget of nothing, is refused with what was found."""
    with pytest.raises(TypeError, match="found type"):
        relume.watch(nn.Linear)  # pyright: ignore[reportArgumentType] - the mistake under test
    with pytest.raises(ValueError, match="above 0; found 0"):
        relume.watch(nn.Linear(2, 2), budget=0)


@pytest.mark.filterwarnings("ignore:.*torch.compile.*global hooks:UserWarning")  # torch's own, where hooks were once
def test_a_compiled_model_is_watched_and_not_compiled_again() -> None:
    """Under torch.compile the calls are seen, the parameters stay bit-identical, and nothing is recompiled."""
    from torch._dynamo.testing import CompileCounter

    def train(watched: bool) -> tuple[nn.Module, int, Any]:
        counter = CompileCounter()
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        model: Any = torch.compile(plain, backend=counter)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if not watched:
            loop(model, optimizer, 20)
            return plain, counter.frame_count, None
        with relume.watch(model, optimizer, budget=10.0) as watch:
            loop(model, optimizer, 20, watch)
        return plain, counter.frame_count, watch.report()

    alone, compiled, _ = train(False)
    torch._dynamo.reset()
    seen, compiled_watched, report = train(True)
    assert report.coverage.watched == ("1",) and len(report.recording.readings) > 3 and not report.recording.note
    assert compiled_watched == compiled
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), seen.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_scripted_model_is_a_blind_spot_and_no_error() -> None:
    """TorchScript takes no hooks: the loop runs on, and the report says what it could not see."""
    model = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with relume.watch(model, optimizer) as watch:
        loop(model, optimizer, 10, watch)
    assert any("TorchScript" in sentence for sentence in watch.report().coverage.blind)


def test_watching_another_module_than_the_loop_calls_is_said() -> None:
    """A run in which no pass was seen is not called healthy without a word."""
    model = network()
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with relume.watch(twin, optimizer) as watch:
        loop(model, optimizer, 10, watch)
    assert any("no training pass went through" in sentence for sentence in watch.report().coverage.blind)


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss()])
def test_nothing_is_left_on_when_the_users_step_fails(loss: Any) -> None:
    """A model that raises in mid-run, or a step that never ends, leaves no mode and no hook, and still a report."""

    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.calls = network(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 20:
                raise ValueError("bad mood")
            return self.body(x)

    model = Moody()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="bad mood"), relume.watch(model, optimizer, loss=loss) as watch:
        loop(model, optimizer, 40, watch)
    assert "stopped by ValueError at step 20" in watch.recording.note
    assert "bad mood" in " ".join(watch.report().coverage.blind)
    other = network()
    with relume.watch(other, optimizer, loss=loss):
        other(data()[0])
        torch.set_default_device("cpu")
    torch.set_default_device(None)
    assert not any("relume" in type(m).__module__ for m in torch.overrides._get_current_function_mode_stack())
    assert not isinstance(loss, nn.Module) or not loss._forward_pre_hooks


def test_a_forward_that_writes_its_own_parameters_is_put_back() -> None:
    """Closing readings and check-ups undo what a forward pass writes into parameters and buffers."""

    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 2)
            self.codebook = nn.Parameter(torch.ones(3), requires_grad=False)
            self.register_buffer("seen", None)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.codebook.mul_(0.9)
            self.seen = x.mean()
            return self.fc(torch.relu(x))

    model = Writes()
    relume.checkup(model, [data()[0]])
    assert torch.equal(model.codebook, torch.ones(3)) and model.seen is None


def test_an_empty_batch_is_passed_over() -> None:
    """A batch without samples is not read, and does not end the watch."""
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with relume.watch(model, optimizer, budget=10.0) as watch:
        model(torch.zeros(0, 8)).sum().backward()
        watch.step(0.0)
        loop(model, optimizer, 5, watch)
    assert not watch.recording.note and len(watch.recording.readings) >= 5


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")  # torch's own: that they may change
def test_lazy_layers_are_watched() -> None:
    """Layers that learn their size in the first pass are no error."""
    model = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(2))
    with relume.watch(model, None, budget=10.0) as watch:
        model(data()[0])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loop(model, optimizer, 10, watch)
    assert watch.report().coverage.watched == ("1",) and not watch.recording.note


def test_an_error_of_ours_in_a_hook_does_not_reach_the_users_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails in the hooks around the forward pass or in backward, the user's step runs on."""
    for name in ("keep_weights", "read_output"):
        with monkeypatch.context() as patch:
            patch.setattr(Probe, name, lambda *args: 1 / 0)
            model = network()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            with relume.watch(model, optimizer) as watch:
                loop(model, optimizer, 5, watch)
            assert "ZeroDivisionError" in watch.report().recording.note


# The journal --------------------------------------------------------------------------------------------------------


def test_a_finished_journal_gives_the_same_report(tmp_path: Path) -> None:
    """What is read back from the file equals what was in memory, reading for reading."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with relume.watch(model, optimizer, journal=tmp_path / "run.db", budget=0.5) as watch:
        loop(model, optimizer, 40, watch)
    kept, read = watch.recording, read_journal(tmp_path / "run.db")
    assert read.finished and read.steps == 40 and read.losses == kept.losses
    assert to_json(read)["readings"] == to_json(kept)["readings"] and to_json(read)["sites"] == to_json(kept)["sites"]
    assert list(tmp_path.iterdir()) == [tmp_path / "run.db"]  # no stray write-ahead log


def test_a_journal_is_readable_while_it_is_written_and_after_a_crash(tmp_path: Path) -> None:
    """Every probe is committed: another reader sees it at once, and an exception leaves the rest in place."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path = tmp_path / "run.db"
    with pytest.raises(KeyboardInterrupt), relume.watch(model, optimizer, journal=path, budget=10.0) as watch:
        loop(model, optimizer, 20, watch)
        half = read_journal(path)
        assert not half.finished and 0 < half.steps <= 20
        raise KeyboardInterrupt
    ended = read_journal(path)
    assert not ended.finished and "interrupted at step 20" in ended.note and ended.steps == 20


@pytest.mark.parametrize("damage", ["UPDATE run SET value = '[1'", "UPDATE run SET value = '3'", "DELETE FROM run"])
def test_a_damaged_journal_is_named(tmp_path: Path, damage: str) -> None:
    """A journal that was tampered with is an error with its path, never a traceback."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path = tmp_path / "run.db"
    with relume.watch(model, optimizer, journal=path) as watch:
        loop(model, optimizer, 5, watch)
    with closing(sqlite3.connect(path)) as file, file:
        file.execute(damage)
    with pytest.raises(JournalError, match=r"run\.db"):
        read_journal(path)


def test_the_next_run_replaces_a_journal(tmp_path: Path) -> None:
    """A journal at the same path holds the latest run alone."""
    path = tmp_path / "run.db"
    for steps in (12, 5):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with relume.watch(model, optimizer, journal=path) as watch:
            loop(model, optimizer, steps, watch)
    assert read_journal(path).steps == 5 and len(read_journal(path).losses) == 5


def test_what_is_no_journal_is_refused_and_kept(tmp_path: Path) -> None:
    """A file that is something else is neither read nor overwritten."""
    with pytest.raises(JournalError, match="no such file"):
        read_journal(tmp_path / "none.db")
    other = tmp_path / "notes.txt"
    other.write_text("my notes, long enough to be no database")
    for act in (read_journal, Journal):
        with pytest.raises(JournalError, match="not a relume journal"):
            act(other)
    assert other.read_text().startswith("my notes")


def test_a_recording_survives_json() -> None:
    """Records convert to JSON and back without loss, NaN and infinities included."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e12)
    with relume.watch(model, optimizer, budget=10.0) as watch:
        loop(model, optimizer, 5, watch)
    recording = watch.recording
    again = from_json(to_json(recording), Recording)
    assert to_json(again) == to_json(recording) and "nan" in str(to_json(recording)["losses"])


# Alarms and standstill ----------------------------------------------------------------------------------------------


def plain(bias: float = 0.0) -> tuple[nn.Sequential, nn.Linear]:
    torch.manual_seed(0)
    middle = nn.Linear(16, 16)
    with torch.no_grad():
        middle.bias.fill_(0.5).add_(bias)  # so that none is dead that was not killed
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), middle, nn.ReLU(), nn.Linear(16, 2)), middle


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.filterwarnings("ignore:.*torch.compile.*global hooks:UserWarning")  # torch's own, where hooks were once
def test_a_layer_that_dies_is_told_within_sixty_steps(
    optimizer: Any, compiled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """At the default budget an alarm is logged once, names the layer, and dates its death to some steps."""
    model, middle = plain()
    called: Any = torch.compile(model, backend="eager") if compiled else model
    own = optimizer(model.parameters(), lr=1e-3)
    with caplog.at_level(logging.WARNING, "relume"), relume.watch(called, own) as watch:
        loop(called, own, 130, watch)
        assert not watch.alarms
        with torch.no_grad():
            middle.bias.sub_(100.0)
        loop(called, own, 60, watch)
        (alarm,) = watch.alarms
        loop(called, own, 100, watch)
    assert watch.alarms == (alarm,) and [r.message for r in caplog.records] == [f"relume: {alarm}"]
    assert alarm.site == "3" and alarm.units == 16 and 130 <= alarm.since <= alarm.step <= 190
    assert "all 16 units of layer 2 are dead since step" in str(alarm)
    (symptom,) = [s for s in watch.report().symptoms if s.kind == "dead"]
    assert symptom.share == 1.0 and 130 <= symptom.since <= 190


@pytest.mark.parametrize("way", ["scaled", "autocast", "clipped", "accumulated"])
def test_a_death_is_told_however_the_step_is_made(way: str) -> None:
    """Under a gradient scaler, bfloat16 autocast, clipping and accumulation: no alarm before, one within 60 steps."""
    model, middle = plain()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", enabled=way == "scaled", init_scale=2.0**10)
    generator = torch.Generator().manual_seed(1)
    parts = 2 if way == "accumulated" else 1
    with relume.watch(model, optimizer) as watch:
        for step in range(190):
            if step == 130:
                assert not watch.alarms
                with torch.no_grad():
                    middle.bias.sub_(100.0)
            optimizer.zero_grad()
            loss = torch.zeros(())
            for _ in range(parts):
                x = torch.randn(32, 8, generator=generator)
                with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
                    loss = F.cross_entropy(model(x), (x[:, 0] > 0).long()) / parts
                scaler.scale(loss).backward()
            if way == "clipped":
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            watch.step(loss)
    (alarm,) = watch.alarms
    assert alarm.site == "3" and alarm.units == 16 and 130 <= alarm.since <= alarm.step <= 190
    assert watch.recording.finished and not watch.recording.note


def test_a_layer_born_dead_is_told_at_once() -> None:
    """The alarm says from the start, and comes as soon as a hundred samples were seen."""
    model, _ = plain(-100.0)
    optimizer = torch.optim.Adam(model.parameters())
    with relume.watch(model, optimizer) as watch:
        loop(model, optimizer, 12, watch)
    (alarm,) = watch.alarms
    assert "are dead from the start" in str(alarm) and alarm.step <= 12


def test_layers_that_die_together_are_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """An alarm for each layer, and one line for all; a diagnosis, which reports in the end, logs none."""

    def shut() -> nn.Module:
        torch.manual_seed(0)
        layers = [part for _ in range(6) for part in (nn.Linear(8, 8), nn.ReLU())]
        for layer in layers[::2]:
            nn.init.constant_(layer.get_parameter("bias"), -50.0)
        return nn.Sequential(*layers, nn.Linear(8, 2))

    model = shut()
    optimizer = torch.optim.Adam(model.parameters())
    with caplog.at_level(logging.WARNING, "relume"):
        with relume.watch(model, optimizer) as watch:
            loop(model, optimizer, 60, watch)
        assert len(watch.alarms) == 6
        (line,) = [r.message for r in caplog.records]
        assert "all units of layer 0, layer 2, layer 4, layer 6 and 2 more are dead from the start" in line
        caplog.clear()
        x = torch.randn(64, 8)
        relume.diagnose(
            relume.Training(model=shut, optimizer=torch.optim.Adam, loss=F.mse_loss, batches=[(x, x[:, :2])], steps=60),
            replays=False,
        )
        assert not caplog.records


def test_a_loss_that_is_not_finite_is_told() -> None:
    """The alarm carries the first such step; later ones are not told again."""
    model, _ = plain()
    with relume.watch(model, None) as watch:
        for step in range(120):
            watch.step(float("nan") if step >= 70 else 1.0)
    (alarm,) = watch.alarms
    assert alarm.kind == "non_finite" and alarm.since == 70 and "NaN or infinite since step 70" in str(alarm)


def test_units_that_die_between_two_readings_are_dated_by_standstill() -> None:
    """Some dead units of a layer that is seldom read are known to be dead on a thousand samples, and since when."""
    model, middle = plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    with relume.watch(model, optimizer, budget=1e-6) as watch:
        loop(model, optimizer, 400, watch)
        with torch.no_grad():
            middle.bias[:6].sub_(100.0)
        loop(model, optimizer, 300, watch)
        watch._next_reading, watch._left = 0, 1  # as the pace does by and by
        loop(model, optimizer, 2, watch)
    recording = watch.recording
    assert not [r.step for r in recording.readings if 100 < r.step < 700]
    (symptom,) = [s for s in watch.report().symptoms if s.kind == "dead" and s.site == "3"]
    assert set(range(6)) <= set(symptom.units)
    told = {u.unit: u for u in watch.report().timeline if u.site == "3"}
    assert all(400 <= (told[unit].since or 0) <= 460 for unit in range(6))
    assert symptom.evidence["samples"] >= 1000


def test_old_journals_without_standstill_are_read(tmp_path: Path) -> None:
    """What was recorded before `idle` was there is read as not known."""
    model, _ = plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with relume.watch(model, optimizer) as watch:
        loop(model, optimizer, 30, watch)
    values = to_json(watch.recording)
    for reading in values["readings"]:
        for site in reading["sites"].values():
            del site["idle"], site["idle_samples"], site["moved"]
    again = from_json(values, Recording)
    assert all(read.idle is None for reading in again.readings for read in reading.sites.values())


def test_what_is_kept_of_a_long_run_stays_small() -> None:
    """Over ten thousand steps readings are thinned, kept batches stay few, and a loss takes eight bytes."""
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with relume.watch(model, optimizer, budget=10.0) as watch:
        loop(model, optimizer, 10_000, watch)
        recorder = watch._recorder
        assert len(recorder.readings) <= 512 and len(recorder.kept.batches) <= 33 and len(recorder.pending) <= 256
        assert recorder.losses.itemsize == 8 and recorder.step == 10_000
    steps = [reading.step for reading in watch.recording.readings]
    assert steps[0] == 0 and max(b - a for a, b in pairwise(steps)) < 1500


def test_a_loop_that_fills_the_same_buffers_again_is_read_as_it_was() -> None:
    """What is kept of a batch is a copy: the loop may overwrite its own tensors with the next one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.empty(32, 8), torch.empty(32, dtype=torch.long)
    with relume.watch(model, optimizer, loss=nn.functional.cross_entropy) as watch:
        for _ in range(40):
            x.normal_()
            y.random_(2)
            value = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            watch.step(value)
    assert watch.recording.distinct_samples is None or watch.recording.distinct_samples >= 64
    firsts = [input[0] for input, _ in watch._recorder.first]
    assert len(firsts) > 1 and not torch.equal(firsts[0], firsts[1])
