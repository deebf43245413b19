"""`relume forecast` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from relume.cli import main

FILE = """
import torch
from torch import nn
import relume

x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))

def make(act=nn.Sigmoid, depth=20):
    return nn.Sequential(*[p for _ in range(depth) for p in (nn.Linear(16, 16), act())], nn.Linear(16, 2))

def training_with(model):
    return relume.Training(
        model=model,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        loss=nn.functional.cross_entropy,
        batches=[(x[i : i + 64], (x[i : i + 64, 0] > 0).long()) for i in range(0, 256, 64)],
    )

deep = training_with(make)
shallow = training_with(lambda: make(nn.ReLU, 2))
empty = training_with(make)
empty = relume.Training(model=make, optimizer=empty.optimizer, loss=empty.loss, batches=[])
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_a_deep_sigmoid_network_is_foreseen(file: Path):
    """The first line is the verdict, equal layers share a row, and nothing is wider than 60 columns; exit code 0."""
    result = CliRunner(env={"COLUMNS": "60"}).invoke(main, ["forecast", f"{file}:deep"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Gradients shrink ")
    assert "PyTorch's default scale" in " ".join(result.output.split("\n- ")[0].split())
    assert "sigmoid x" in result.output
    assert max(map(len, result.output.splitlines())) <= 60


def test_the_numbers_and_the_page_are_written(file: Path, tmp_path: Path):
    """--json and --html write what the record holds; '-' sends the JSON alone to standard output."""
    asked = ["forecast", f"{file}:shallow", "--json", str(tmp_path / "f.json"), "--html", str(tmp_path / "f.html")]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, result.output
    saved = json.loads((tmp_path / "f.json").read_text())
    assert [layer["name"] for layer in saved["layers"]] == ["0", "2", "4"]
    assert saved["healthy"] is True
    assert "<table>" in (tmp_path / "f.html").read_text()
    alone = CliRunner().invoke(main, ["forecast", f"{file}:shallow", "--json", "-"])
    assert json.loads(alone.stdout) == saved


def test_a_seed_draws_other_weights(file: Path):
    """The weights come from the seed: the same seed gives the same numbers, another one others."""
    first, again, other = (
        json.loads(CliRunner().invoke(main, ["forecast", f"{file}:deep", "--json", "-", "--seed", seed]).stdout)
        for seed in ("0", "0", "1")
    )
    assert first == again
    assert first["layers"][0]["gradient"] != other["layers"][0]["gradient"]


def test_what_cannot_run_exits_with_two(file: Path):
    """No batch: the message says so, and the exit code is 2."""
    result = CliRunner().invoke(main, ["forecast", f"{file}:empty"])
    assert result.exit_code == 2
    assert "batches yield nothing" in result.output


def test_a_model_that_fails_exits_with_two_and_shows_what_came_before(tmp_path: Path):
    """A model whose forward pass fails is told with exit code 2, after what was foreseen up to there."""
    path = tmp_path / "broken.py"
    path.write_text(
        "import torch\nfrom torch import nn\nfrom relume import Training\n\n\n"
        "def build():\n"
        "    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(9, 2))\n\n\n"
        "training = Training(\n"
        "    model=build, batches=[(torch.randn(4, 8), torch.zeros(4, 2))], loss=nn.MSELoss(),\n"
        "    optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1), steps=1,\n"
        ")\n"
    )
    result = CliRunner().invoke(main, ["forecast", f"{path}:training"])
    assert result.exit_code == 2, result.output
    assert "2: the forward pass fails" in result.output
