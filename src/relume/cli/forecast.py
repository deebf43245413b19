"""`relume forecast`: what the initial weights of a Training's model will do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from relume.cli.shared import COULD_NOT_RUN, load, outputs


@click.command()
@click.argument("subject", metavar="FILE:NAME")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed that the weights are drawn from.")
@outputs
def forecast(subject: str, seed: int, json_path: Path | None, html_path: Path | None) -> None:
    """Foresee, without training, where gradients vanish or explode and which units start dead."""
    training = load(subject)
    from relume.forecast import forecast as foresee
    from relume.randomness import isolated_rng
    from relume.report.forecast import write
    from relume.training import Stream, build, device_of, fresh, to_device
    from relume.training.batches import split

    with isolated_rng():
        copied = fresh(training)
        model, _ = build(copied, seed)
        model.train()
        input, _ = split(next(iter(Stream(copied.batches, seed))))
        foreseen = foresee(model, to_device(input, device_of(model)))
    if json_path is not None and str(json_path) == "-":
        click.echo(json.dumps(foreseen.to_json(), allow_nan=False))
    else:
        click.echo(foreseen.text(_columns()))
        if json_path is not None:
            click.echo(f"Numbers: {write(foreseen, json_path, '.json')}", err=True)
    failed = any("the forward pass fails" in sentence for sentence in foreseen.not_modelled)
    if html_path is not None:
        click.echo(f"Report: {write(foreseen, html_path, '.html')}", err=True)
    if failed:
        sys.exit(COULD_NOT_RUN)  # what was foreseen is shown, but the model could not run


def _columns() -> int:
    from rich.console import Console

    return Console().width
