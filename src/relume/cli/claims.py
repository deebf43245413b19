"""`relume claims`: what people say about activation functions, tested here and now."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from relume.cli.shared import INTERRUPTED, outputs, progress


@click.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--quick", is_flag=True, help="Within a minute: small networks, few seeds, wide intervals.")
@click.option("--seeds", type=click.IntRange(min=2), help="Paired seeds; default: 10, or 3 with --quick.")
@click.option("--list", "listed", is_flag=True, help="Name the statements, and test none.")
@outputs
def claims(
    ids: tuple[str, ...], quick: bool, seeds: int | None, listed: bool, json_path: Path | None, html_path: Path | None
) -> None:
    """Test what people say about activation functions: supported, refuted, or it depends, with numbers.

    All statements take a few minutes; Ctrl-C keeps those that are done.
    """
    from relume.claims import run
    from relume.claims.page import render
    from relume.claims.text import print_list, print_results
    from relume.report.save import write

    if listed:
        print_list()
        return
    with progress() as (stage, on_progress):
        results = run(ids, quick=quick, seeds=seeds, on_stage=stage, on_progress=on_progress)
    text = json.dumps(results.to_json(), allow_nan=False, separators=(",", ":")) + "\n"
    if json_path is not None and str(json_path) == "-":
        click.echo(text, nl=False)
    else:
        print_results(results)
        if json_path is not None:
            click.echo(f"Numbers: {write(text, json_path)}", err=True)
    if html_path is not None:
        click.echo(f"Report: {write(render(results), html_path)}", err=True)
    if not results.finished:
        sys.exit(INTERRUPTED)
