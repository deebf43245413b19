"""The command line: `relume demo | diagnose | trial | compare | heal | show`. Torch loads when a command needs it."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from relume.errors import RelumeError

if TYPE_CHECKING:
    from relume.report.results import Page
    from relume.training import Training

F = TypeVar("F", bound=Callable[..., Any])

COULD_NOT_RUN, INTERRUPTED = 2, 130


class _Commands(click.Group):
    """Turns the errors of relume into a message and exit code 2, with the user's own traceback where there is one."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RelumeError as error:
            cause = error.__cause__
            if cause is not None:
                click.echo("".join(traceback.format_exception(cause)), err=True)
            click.secho("Error: ", fg="red", bold=True, nl=False, err=True)
            click.echo(str(error), err=True)
            ctx.exit(COULD_NOT_RUN)
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)
            ctx.exit(INTERRUPTED)


def _outputs(command: F) -> F:
    """`--json` and `--html`, the same for every command that has a result."""
    command = click.option(
        "--html",
        "html_path",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write the report as one offline page.",
    )(command)
    return click.option(
        "--json",
        "json_path",
        type=click.Path(dir_okay=False, path_type=Path),
        is_flag=False,
        flag_value=Path("-"),
        help="Write the numbers as JSON; '-' for standard output.",
    )(command)


def _seeds(default: int) -> Callable[[F], F]:
    return click.option("--seeds", type=click.IntRange(min=2), default=default, show_default=True, help="Paired seeds.")


_subject = click.argument("subject", metavar="FILE:NAME")
_steps = click.option("--steps", type=click.IntRange(min=1), help="Steps of each run; default: the training's own.")
_remedies = click.option(
    "--remedy", "remedies", multiple=True, metavar="NAME", help="Try this one only; may be repeated."
)
_engine = click.option(
    "--engine", type=click.Choice(["auto", "processes", "sequential"]), default="auto", show_default=True,
    help="Worker processes, or this process.",
)  # fmt: skip


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("relume"), prog_name="relume")
def main() -> None:
    """Find the units of a PyTorch network that stopped learning, why, and the remedy that brings them back.

    FILE:NAME is a Python file and the relume.Training in it, or a function without arguments that returns one.
    """


@main.command()
@_seeds(5)
@_outputs
def demo(seeds: int, json_path: Path | None, html_path: Path | None) -> None:
    """The whole job on a real data set, in about a minute."""
    from relume import demo as example

    with _progress() as (stage, on_progress):
        page = example.run(seeds, on_stage=stage, on_progress=on_progress)
    _show(page, json_path, html_path or Path("relume-demo.html"))
    if page.healed is None:
        sys.exit(INTERRUPTED)


@main.command()
@_subject
@_steps
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--fail-on", type=click.Choice(["note", "warning", "critical", "never"]), default="warning", show_default=True,
    help="Exit with 1 from this severity on.",
)  # fmt: skip
@_outputs
def diagnose(
    subject: str, steps: int | None, seed: int, fail_on: str, json_path: Path | None, html_path: Path | None
) -> None:
    """Train a fresh network under a watch; say what is wrong with it, and why. Exit 0: healthy, 1: findings."""
    training = load(subject)
    from relume.checkup import diagnose as examine
    from relume.report.results import Page
    from relume.symptoms import SEVERITIES

    with _progress() as (stage, _):
        stage("training a network and watching its units")
        report = examine(training, steps=steps, seed=seed)
    _show(Page.of(report), json_path, html_path)
    if not report.recording.finished:
        sys.exit(INTERRUPTED)
    failing = SEVERITIES[: SEVERITIES.index(fail_on) + 1] if fail_on in SEVERITIES else ()
    sys.exit(any(diagnosis.severity in failing for diagnosis in report.diagnoses))


@main.command()
@_subject
@_remedies
@_seeds(5)
@_steps
@_engine
@_outputs
def trial(
    subject: str,
    remedies: tuple[str, ...],
    seeds: int,
    steps: int | None,
    engine: str,
    json_path: Path | None,
    html_path: Path | None,
) -> None:
    """Train the network with and without each remedy, side by side, and judge them."""
    training = load(subject)
    from relume.report.results import Page
    from relume.trial import trial as run

    with _progress() as (stage, on_progress):
        stage("trying every remedy beside the untreated network")
        result = run(training, remedies or None, seeds=seeds, steps=steps, engine=engine, on_progress=on_progress)
    _show(Page.of(result), json_path, html_path)
    if not result.finished:
        sys.exit(INTERRUPTED)


@main.command()
@_subject
@click.option(
    "--activation", "activations", multiple=True, required=True, metavar="NAME", help="One to try; repeat it."
)
@_seeds(5)
@_steps
@_engine
@_outputs
def compare(
    subject: str,
    activations: tuple[str, ...],
    seeds: int,
    steps: int | None,
    engine: str,
    json_path: Path | None,
    html_path: Path | None,
) -> None:
    """Train the network with other activation functions, each at its own best learning rate, and judge them."""
    training = load(subject)
    from relume.report.results import Page
    from relume.trial import compare as run

    with _progress() as (stage, on_progress):
        stage("comparing activation functions, each at its own learning rate")
        result = run(training, list(activations), seeds=seeds, steps=steps, engine=engine, on_progress=on_progress)
    _show(Page.of(result), json_path, html_path)


@main.command()
@_subject
@_remedies
@_seeds(3)
@_steps
@_engine
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the healed network's state_dict (torch.save).",
)
@_outputs
def heal(
    subject: str,
    remedies: tuple[str, ...],
    seeds: int,
    steps: int | None,
    engine: str,
    save: Path | None,
    json_path: Path | None,
    html_path: Path | None,
) -> None:
    """Diagnose, try remedies, adopt the proven one, train; never worse than the untreated network."""
    training = load(subject)
    from relume.checkup import diagnose as examine
    from relume.heal import heal as run
    from relume.report.results import Page

    with _progress() as (stage, on_progress):
        stage("training a network and watching its units")
        report = examine(training, steps=steps)
        healed = None
        if report.recording.finished:
            stage("trying remedies beside the untreated network")
            asked = {"seeds": seeds, "steps": steps, "engine": engine, "remedies": remedies or None}
            with suppress(KeyboardInterrupt):
                healed = run(training, **asked, on_progress=on_progress, report=report)
    if healed is None:  # interrupted: what was found until then is not lost
        _show(Page.of(report), json_path, html_path)
        sys.exit(INTERRUPTED)
    if save is not None:
        import torch

        save.parent.mkdir(parents=True, exist_ok=True)
        torch.save(healed.model.state_dict(), save)
    _show(Page.of(healed), json_path, html_path)
    if save is not None:
        click.echo(f"Network: {save}", err=True)


@main.command()
@click.argument("journal", type=click.Path(path_type=Path))
@_outputs
def show(journal: Path, json_path: Path | None, html_path: Path | None) -> None:
    """The report of a recorded run (relume.watch(..., journal=PATH)), also one that crashed or still runs."""
    from relume.journal import read_journal
    from relume.report.results import Page, Report

    _show(Page.of(Report.of(read_journal(journal))), json_path, html_path)


# Loading ------------------------------------------------------------------------------------------------------------


def load(subject: str) -> Training:
    """The Training that FILE:NAME names. Raises TrainingError, with what there is instead."""
    from relume.loading import load_training

    return load_training(subject)


# Showing ------------------------------------------------------------------------------------------------------------


def _show(page: Page, json_path: Path | None, html_path: Path | None) -> None:
    """The report on standard output, unless the JSON goes there; the paths of what was written on standard error."""
    from relume.report.save import save
    from relume.report.text import print_rich

    to_stdout = json_path is not None and str(json_path) == "-"
    if to_stdout:
        click.echo(json.dumps(page.to_json(), allow_nan=False))
    else:
        print_rich(page)
        if json_path is not None:
            click.echo(f"Numbers: {save(page, json_path, '.json')}", err=True)
    if html_path is not None:
        click.echo(f"Report: {save(page, html_path, '.html')}", err=True)


@contextmanager
def _progress() -> Iterator[tuple[Callable[[str], None], Callable[[Any], None]]]:
    """Live progress on standard error; nothing but one line a stage where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
        TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal,
    ) as bars:  # fmt: skip
        task = bars.add_task("", total=None)

        def stage(text: str) -> None:
            bars.reset(task, total=None, description=text, visible=True)
            if not console.is_terminal:
                console.print(text, highlight=False)

        def on_progress(event: Any) -> None:
            bars.update(task, completed=event.done, total=event.total)

        yield stage, on_progress
