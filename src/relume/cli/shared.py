"""What all commands share: errors in words, the options for results, showing them, and progress."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from relume.errors import RelumeError

if TYPE_CHECKING:
    from relume.report.results import Page
    from relume.training import Training

F = TypeVar("F", bound=Callable[..., Any])

COULD_NOT_RUN, INTERRUPTED = 2, 130


class Commands(click.Group):
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


def outputs(command: F) -> F:
    """`--json` and `--html`, the same for every command that has a result."""
    command = click.option(
        "--html",
        "html_path",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write the report as one offline page.",
    )(command)
    return json_option(command)


json_option = click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, path_type=Path),
    is_flag=False,
    flag_value=Path("-"),
    help="Write the numbers as JSON; '-' for standard output.",
)


# Loading ------------------------------------------------------------------------------------------------------------


def load(subject: str) -> Training:
    """The Training that FILE:NAME names. Raises TrainingError, with what there is instead."""
    from relume.loading import load_training

    return load_training(subject)


# Showing ------------------------------------------------------------------------------------------------------------


def show_page(page: Page, json_path: Path | None, html_path: Path | None) -> None:
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
def progress() -> Iterator[tuple[Callable[[str], None], Callable[[Any], None]]]:
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
