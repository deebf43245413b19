"""Commands that train: `demo`, `diagnose`, `trial`, `compare`, `heal`; and `show`, for a run that was recorded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from relume.cli.shared import INTERRUPTED, load, outputs, progress, show_page

if TYPE_CHECKING:
    from relume.trial import Engine

F = TypeVar("F", bound=Callable[..., Any])


def _seeds(default: int) -> Callable[[F], F]:
    return click.option("--seeds", type=click.IntRange(min=2), default=default, show_default=True, help="Paired seeds.")


_subject = click.argument("subject", metavar="FILE:NAME")
_steps = click.option("--steps", type=click.IntRange(min=1), help="Steps of each run; default: the training's own.")
_remedies = click.option(
    "--remedy", "remedies", multiple=True, metavar="NAME", help="Try this one only; a+b is both. May be repeated."
)
_early = click.option("--early", is_flag=True, help="No further seeds for an arm whose verdict is plain.")


def _engine(command: F) -> F:
    """Where runs are run: five options that become one `Engine`."""

    @wraps(command)
    def with_engine(
        *arguments: Any,
        engine: str,
        workers: int | None,
        ray_address: str | None,
        cpus_per_arm: float,
        gpus_per_arm: float,
        **options: Any,
    ) -> None:
        from relume.trial import Engine

        chosen = Engine(
            name="ray" if ray_address is not None and engine == "auto" else engine,
            workers=workers,
            ray_address=ray_address,
            cpus_per_arm=cpus_per_arm,
            gpus_per_arm=gpus_per_arm,
        )
        command(*arguments, engine=chosen, **options)

    for option in (
        click.option("--gpus-per-arm", type=click.FloatRange(min=0), default=0.0, help="GPUs of each Ray task."),
        click.option("--cpus-per-arm", type=click.FloatRange(min=0), default=1.0, help="CPUs of each Ray task."),
        click.option("--ray-address", metavar="ADDRESS", help="The Ray cluster: auto, HOST:6379, ray://HOST:10001."),
        click.option("--workers", type=click.IntRange(min=1), help="Worker processes; default: one per core."),
        click.option(
            "--engine", type=click.Choice(["auto", "processes", "sequential", "ray"]), default="auto",
            show_default=True, help="Worker processes, this process, or Ray.",
        ),
    ):  # fmt: skip
        with_engine = option(with_engine)
    return cast(F, with_engine)


@click.command()
@_seeds(5)
@outputs
def demo(seeds: int, json_path: Path | None, html_path: Path | None) -> None:
    """The whole job on a real data set, in about a minute."""
    from relume import demo as example

    with progress() as (stage, on_progress):
        page = example.run(seeds, on_stage=stage, on_progress=on_progress)
    show_page(page, json_path, html_path or Path("relume-demo.html"))
    if page.healed is None:
        sys.exit(INTERRUPTED)


@click.command()
@_subject
@_steps
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--fail-on", type=click.Choice(["note", "warning", "critical", "never"]), default="warning", show_default=True,
    help="Exit with 1 from this severity on.",
)  # fmt: skip
@outputs
def diagnose(
    subject: str, steps: int | None, seed: int, fail_on: str, json_path: Path | None, html_path: Path | None
) -> None:
    """Train a fresh network under a watch; say what is wrong with it, and why. Exit 0: healthy, 1: findings."""
    training = load(subject)
    from relume.checkup import diagnose as examine
    from relume.report.results import Page
    from relume.symptoms import SEVERITIES

    with progress() as (stage, _):
        stage("training a network and watching its units")
        report = examine(training, steps=steps, seed=seed)
    show_page(Page.of(report), json_path, html_path)
    if not report.recording.finished:
        sys.exit(INTERRUPTED)
    failing = SEVERITIES[: SEVERITIES.index(fail_on) + 1] if fail_on in SEVERITIES else ()
    sys.exit(any(diagnosis.severity in failing for diagnosis in report.diagnoses))


@click.command()
@_subject
@_remedies
@_seeds(5)
@_steps
@_engine
@_early
@outputs
def trial(
    subject: str,
    remedies: tuple[str, ...],
    seeds: int,
    steps: int | None,
    engine: Engine,
    early: bool,
    json_path: Path | None,
    html_path: Path | None,
) -> None:
    """Train the network with and without each remedy, side by side, and judge them."""
    training = load(subject)
    from relume.report.results import Page
    from relume.trial import trial as run

    with progress() as (stage, on_progress):
        stage("trying every remedy beside the untreated network")
        asked = {"seeds": seeds, "steps": steps, "engine": engine, "early": early}
        result = run(training, remedies or None, **asked, on_progress=on_progress)
    show_page(Page.of(result), json_path, html_path)
    if not result.finished:
        sys.exit(INTERRUPTED)


@click.command()
@_subject
@click.option(
    "--activation", "activations", multiple=True, required=True, metavar="NAME", help="One to try; repeat it."
)
@_seeds(5)
@_steps
@_engine
@outputs
def compare(
    subject: str,
    activations: tuple[str, ...],
    seeds: int,
    steps: int | None,
    engine: Engine,
    json_path: Path | None,
    html_path: Path | None,
) -> None:
    """Train the network with other activation functions, each at its own best learning rate, and judge them."""
    training = load(subject)
    from relume.report.results import Page
    from relume.trial import compare as run

    with progress() as (stage, on_progress):
        stage("comparing activation functions, each at its own learning rate")
        result = run(training, list(activations), seeds=seeds, steps=steps, engine=engine, on_progress=on_progress)
    show_page(Page.of(result), json_path, html_path)


@click.command()
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
@outputs
def heal(
    subject: str,
    remedies: tuple[str, ...],
    seeds: int,
    steps: int | None,
    engine: Engine,
    save: Path | None,
    json_path: Path | None,
    html_path: Path | None,
) -> None:
    """Diagnose, try remedies, adopt the proven one, train; never worse than the untreated network."""
    training = load(subject)
    from relume.checkup import diagnose as examine
    from relume.heal import heal as run
    from relume.report.results import Page

    with progress() as (stage, on_progress):
        stage("training a network and watching its units")
        report = examine(training, steps=steps)
        healed = None
        if report.recording.finished:
            stage("trying remedies beside the untreated network")
            asked = {"seeds": seeds, "steps": steps, "engine": engine, "remedies": remedies or None}
            with suppress(KeyboardInterrupt):
                healed = run(training, **asked, on_progress=on_progress, report=report)
    if healed is None:  # interrupted: what was found until then is not lost
        show_page(Page.of(report), json_path, html_path)
        sys.exit(INTERRUPTED)
    if save is not None:
        import torch

        save.parent.mkdir(parents=True, exist_ok=True)
        torch.save(healed.model.state_dict(), save)
    show_page(Page.of(healed), json_path, html_path)
    if save is not None:
        click.echo(f"Network: {save}", err=True)


@click.command()
@click.argument("journal", type=click.Path(path_type=Path))
@outputs
def show(journal: Path, json_path: Path | None, html_path: Path | None) -> None:
    """The report of a recorded run (relume.watch(..., journal=PATH)), also one that crashed or still runs."""
    from relume.journal import read_journal
    from relume.report.results import Page, Report

    show_page(Page.of(Report.of(read_journal(journal))), json_path, html_path)
