"""`relume activations`: the catalogue as a table, or one function explained. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from relume.cli.shared import outputs

F = TypeVar("F", bound=Callable[..., Any])

_HELP = {
    "zero-centred": "Mean output 0 for standard normal inputs.",
    "smooth": "Function and slope are continuous.",
    "monotone": "Never falls.",
    "bounded": "All values lie in a finite interval.",
    "gated": "One input scales another.",
    "learnable": "Training changes its shape.",
    "cannot-die": "Nowhere exactly flat.",
    "cannot-saturate": "The slope goes to zero at no end.",
}


def _filters(command: F) -> F:
    for option in reversed(_HELP):
        command = click.option(f"--{option}", is_flag=True, help=_HELP[option])(command)
    return command


@click.command()
@click.argument("name", required=False)
@_filters
@click.option("--cheaper-than", metavar="NAME", help="Takes less time, forward and backward, than this one.")
@outputs
def activations(
    name: str | None, cheaper_than: str | None, json_path: Path | None, html_path: Path | None, **asked: bool
) -> None:
    """The activation functions that relume knows, those with a property, or one of them by NAME."""
    from relume.activations import activation
    from relume.activations import activations as catalogue
    from relume.report import catalogue_page, catalogue_text, selection
    from relume.report.catalogue import to_json

    filters = [f for f in selection.FILTERS if asked[f.option.replace("-", "_")]]
    if cheaper_than is not None:
        filters.append(selection.cheaper_than(cheaper_than))
    if name is not None and filters:
        raise click.UsageError(f"{name!r} asks for one function, and --{filters[0].option} for many: give one of both.")

    if name is not None:
        row = activation(name)
        print_it, page = partial(catalogue_text.print_row, row), partial(catalogue_page.render_row, row)
        _show(to_json(row), print_it, page, json_path, html_path)
    else:
        chosen = selection.select(catalogue(), filters)
        print_it, page = partial(catalogue_text.print_table, chosen), partial(catalogue_page.render_table, chosen)
        _show([to_json(row) for row in chosen.rows], print_it, page, json_path, html_path)


def _show(
    numbers: Any,
    print_it: Callable[[], None],
    page: Callable[[], str],
    json_path: Path | None,
    html_path: Path | None,
) -> None:
    """As `show_page` does for results: text, unless the JSON goes to standard output; paths on standard error."""
    from relume.report.save import write

    if str(json_path) == "-":
        click.echo(json.dumps(numbers, allow_nan=False))
    else:
        print_it()
        if json_path is not None:
            text = json.dumps(numbers, allow_nan=False, separators=(",", ":")) + "\n"
            click.echo(f"Numbers: {write(text, json_path)}", err=True)
    if html_path is not None:
        click.echo(f"Report: {write(page(), html_path)}", err=True)
