"""The examples: what each diagnosis names first, and the command line on two of them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner

import relume
from relume.cli import main
from relume.loading import load_training

EXAMPLES = Path(__file__).parent.parent / "examples"

FIRST_CAUSE = {
    "conv_healthy.py": None,
    "cut_gradient.py": "no_gradient",
    "dead_by_bias.py": "bias",
    "dying_relu.py": "learning_rate_too_high",
    "exploding.py": "learning_rate_too_high",
    "healthy.py": None,
    "narrow_and_deep.py": "narrow_and_deep",
    "saturated_tanh.py": "initial_scale",
    "too_slow.py": "learning_rate_too_low",
    "unscaled_inputs.py": "unscaled_inputs",
    "vanishing_sigmoid.py": "saturating_activation",
}


def test_every_example_is_in_the_table() -> None:
    """No example goes without a stated cause, or a test of its own."""
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted([*FIRST_CAUSE, "autopilot.py"])


@pytest.mark.parametrize(("file", "cause"), FIRST_CAUSE.items())
def test_the_diagnosis_names_the_cause(file: str, cause: str | None) -> None:
    """The first diagnosis names what the example's docstring says is wrong; a healthy example has none but notes."""
    report = relume.diagnose(load_training(f"{EXAMPLES / file}:training"))
    assert report.coverage.sites and report.coverage.watched == report.coverage.sites and not report.coverage.blind
    first = next((diagnosis.cause for diagnosis in report.diagnoses if diagnosis.severity != "note"), None)
    assert first == cause, str(report)
    assert report.healthy == (cause is None)


def test_the_loop_that_heals_itself_learns() -> None:
    """With the autopilot the example's loop ends far better than without."""
    example = runpy.run_path(str(EXAMPLES / "autopilot.py"))
    without, healed = (example["accuracy_after"](300, seed=0, heal=heal) for heal in (False, True))
    assert healed > without + 0.3 and healed > 0.85


@pytest.mark.parametrize(("file", "code"), [("healthy.py", 0), ("dead_by_bias.py", 1)])
def test_the_command_line_on_an_example(file: str, code: int, tmp_path: Path) -> None:
    """`relume diagnose` exits with 0 for a healthy training and 1 for an ill one, and writes page and numbers."""
    page, numbers = tmp_path / "report.html", tmp_path / "report.json"
    subject = f"{EXAMPLES / file}:training"
    done = CliRunner().invoke(main, ["diagnose", subject, "--html", str(page), "--json", str(numbers)])
    assert done.exit_code == code, done.output
    assert json.loads(numbers.read_text())["healthy"] == (code == 0)
    assert page.read_text().startswith("<!doctype html>")
