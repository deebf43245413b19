"""The command line as a user meets it: results, exit codes, and what bad input gets."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from relume.cli import main
from relume.errors import RelumeError

GOOD = """
import sys
import torch
from torch import nn
import relume
from neighbour import LEARNING_RATE

x = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] > 0).long()

def make(bias=0.0):
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    nn.init.constant_(model[0].bias[:12], bias)
    return model

def training_with(**changes):
    parts = dict(
        model=make,
        optimizer=lambda p: torch.optim.Adam(p, lr=LEARNING_RATE),
        loss=nn.functional.cross_entropy,
        batches=[(x[i : i + 64], y[i : i + 64]) for i in range(0, 512, 64)],
        steps=60,
    )
    return relume.Training(**{**parts, **changes})

healthy = training_with()
ill = training_with(model=lambda: make(-50.0))
number = 3

def function():
    return training_with()

def wrong():
    return 3

class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 2)
    def forward(self, x):
        return self.fc(x) + my_typo

raises = training_with(model=Fails)
empty = training_with(batches=[])
vector_loss = training_with(loss=nn.CrossEntropyLoss(reduction="none"))
holes = training_with(batches=[(x.index_fill(1, torch.tensor(2), float("nan")), y)])
out_of_range = training_with(batches=[(x, y + 11)])

class Loud(list):
    passes = 0
    def __iter__(self):
        self.passes += 1
        if self.passes == 5:
            print("fifth", "pass", file=sys.stderr, flush=True)
        return list.__iter__(self)

long = training_with(steps=100_000, batches=Loud(healthy.batches))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("LEARNING_RATE = 0.01\n")
    (tmp_path / "my.py").write_text(GOOD)
    return tmp_path / "my.py"


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


def test_a_healthy_training_exits_with_0_and_says_so_first(file: Path) -> None:
    """The first line is the verdict."""
    result = call("diagnose", f"{file}:healthy")
    assert result.exit_code == 0, result.output
    assert result.stdout.lstrip().startswith("Healthy")


def test_an_ill_training_exits_with_1_and_names_the_cause(file: Path) -> None:
    """Findings give exit code 1, unless --fail-on says otherwise."""
    result = call("diagnose", f"{file}:ill")
    assert result.exit_code == 1
    assert "12 of 16 units" in result.stdout.splitlines()[0] and "bias" in result.stdout
    assert call("diagnose", f"{file}:ill", "--fail-on", "never").exit_code == 0


def test_json_and_html_are_written_where_asked(file: Path, tmp_path: Path) -> None:
    """Both files hold the report, in folders that did not exist before."""
    numbers, page = tmp_path / "new" / "out.json", tmp_path / "other" / "out.html"
    call("diagnose", f"{file}:ill", "--json", numbers, "--html", page)
    written = json.loads(numbers.read_text())
    assert written["healthy"] is False and written["diagnoses"][0]["cause"] == "bias"
    assert page.read_text().startswith("<!doctype html>")


def test_json_alone_goes_to_standard_output(file: Path) -> None:
    """`--json -` and `--json` at the end write nothing else there, so that a pipe can read it."""
    for words in (("--json", "-"), ("--json",)):
        result = call("diagnose", f"{file}:function", *words)
        assert json.loads(result.stdout)["healthy"] is True


BAD = {
    "nothing.py:training": ("no file", "my.py"),
    "my.py:helthy": ("no 'helthy'", "Did you mean 'healthy'?"),
    "my.py:number": ("not a relume.Training but a int", "FILE:NAME is"),
    "my.py:wrong": ("does not return a relume.Training but a int", "FILE:NAME is"),
    "my.py": ("name the training", "healthy, ill"),
    "my.py:raises": ("NameError", "my_typo"),
    "my.py:empty": ("yield nothing", "data set may be empty"),
    "my.py:vector_loss": ("scalar", "(64,)"),
    "my.py:holes": ("NaN", "input of batch 0"),
    "my.py:out_of_range": ("target out of range", "2 outputs"),
}


@pytest.mark.parametrize("subject", BAD)
@pytest.mark.parametrize("command", ["diagnose", "trial", "heal"])
def test_bad_input_is_named_and_exits_with_2(file: Path, subject: str, command: str) -> None:
    """Every mistake gets its own words, with what was found, and no command goes on."""
    words = ["--engine", "sequential"] if command != "diagnose" else []
    result = call(command, file.parent / subject, *words)
    assert result.exit_code == 2, result.output
    for part in BAD[subject]:
        assert part in result.stderr
    assert "Error:" in result.stderr


def test_the_traceback_of_the_users_own_model_is_kept(file: Path) -> None:
    """The line that failed in the user's file is shown."""
    error = call("diagnose", f"{file}:raises").stderr
    assert "return self.fc(x) + my_typo" in error and str(file) in error


def test_an_error_while_loading_shows_the_users_traceback(tmp_path: Path) -> None:
    """A file that cannot be loaded is named, with its own error."""
    path = tmp_path / "broken.py"
    path.write_text("import torch\nsettings = {}['missing']\n")
    result = call("diagnose", f"{path}:training")
    assert result.exit_code == 2 and "settings = {}['missing']" in result.stderr and "KeyError" in result.stderr


def test_trial_and_heal_work_on_a_users_own_file(file: Path, tmp_path: Path) -> None:
    """Trial finds a cure for planted biases in worker processes; heal writes the healed network."""
    result = call(
        "trial",
        f"{file}:ill",
        "--seeds",
        2,
        "--remedy",
        "reset_bias",
        "--remedy",
        "he_init",
        "--json",
        tmp_path / "t.json",
    )
    assert result.exit_code == 0, result.output
    trial = json.loads((tmp_path / "t.json").read_text())
    assert trial["arms"][0]["name"] == "untreated" and len(trial["arms"]) == 3
    assert trial["winner"] in ("reset_bias", "he_init")
    result = call("heal", f"{file}:ill", "--seeds", 2, "--remedy", "reset_bias", "--save", tmp_path / "healed.pt")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "healed.pt").stat().st_size > 100


def test_compare_tries_functions_on_a_users_own_file(file: Path) -> None:
    """Each function gets an arm; an unknown one is answered with the closest names."""
    asked = ["--seeds", 2, "--steps", 20, "--engine", "sequential"]
    result = call("compare", f"{file}:healthy", "--activation", "gelu", *asked)
    assert result.exit_code == 0 and "GELU" in result.stdout
    result = call("compare", f"{file}:healthy", "--activation", "geluu", *asked)
    assert result.exit_code == 2 and "gelu" in result.stderr


def test_the_engine_is_chosen_by_options(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers, address and what an arm takes arrive together; an address alone means Ray."""
    from relume.trial import Engine, proof

    asked: list[tuple[Any, bool]] = []

    def note(*arguments: Any, early: bool, **options: Any) -> None:
        asked.append((arguments[4], early))
        raise RelumeError("enough")

    monkeypatch.setattr(proof, "run_trial", note)
    for words in (
        [],
        ["--engine", "processes", "--workers", 3, "--early"],
        ["--ray-address", "auto", "--cpus-per-arm", 2, "--gpus-per-arm", 0.25],
        ["--engine", "sequential", "--ray-address", "auto"],
    ):
        assert call("trial", f"{file}:healthy", *words).exit_code == 2
    assert asked == [
        (Engine(), False),
        (Engine(name="processes", workers=3), True),
        (Engine(name="ray", ray_address="auto", cpus_per_arm=2.0, gpus_per_arm=0.25), False),
        (Engine(name="sequential", ray_address="auto"), False),
    ]
    result = call("trial", f"{file}:healthy", "--cpus-per-arm", 0)
    assert result.exit_code == 2 and "nor both zero" in result.stderr


def test_an_unknown_remedy_names_the_closest(file: Path) -> None:
    """A typo in a remedy's name is answered with the right one."""
    result = call("trial", f"{file}:ill", "--remedy", "leeky_relu")
    assert result.exit_code == 2 and "leaky_relu" in result.stderr


def test_show_reports_on_a_journal(file: Path, tmp_path: Path) -> None:
    """`relume show` gives the report of a recorded run; what is no journal exits with 2."""
    import torch
    from torch import nn

    import relume

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with relume.watch(model, optimizer, journal=tmp_path / "run.db") as watch:
        for _ in range(30):
            loss = model(torch.randn(64, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watch.step(loss)
    result = call("show", tmp_path / "run.db")
    assert result.exit_code == 0 and "1 of 1 activation call watched" in result.stdout
    result = call("show", file)
    assert result.exit_code == 2 and "not a relume journal" in result.stderr


def test_ctrl_c_leaves_the_report_of_what_was_seen(file: Path, tmp_path: Path) -> None:
    """An interrupted run reports on its first part, says that it was interrupted, and exits with 130."""
    page = tmp_path / "partial.html"
    process = subprocess.Popen(
        [sys.executable, "-m", "relume", "diagnose", f"{file}:long", "--html", str(page)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while "fifth pass" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "interrupted" in out.lower() and "1 of 1 activation call watched" in out
    assert page.exists() and "Traceback" not in err


def test_help_names_every_command() -> None:
    """The group's help lists what there is, and -h works."""
    for flag in ("-h", "--help"):
        result = call(flag)
        assert result.exit_code == 0
        for command in ("demo", "diagnose", "trial", "compare", "heal", "prune", "show"):
            assert command in result.output
