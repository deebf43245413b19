"""The command line. Torch loads when a command needs it."""

from importlib.metadata import version

import click

from relume.cli.activations import activations
from relume.cli.claims import claims
from relume.cli.forecast import forecast
from relume.cli.prune import prune
from relume.cli.runs import compare, demo, diagnose, heal, show, trial
from relume.cli.shared import Commands

__all__ = ["main"]

COMMANDS = (demo, diagnose, trial, compare, heal, prune, show, activations, forecast, claims)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("relume"), prog_name="relume")
def main() -> None:
    """Find the units of a PyTorch network that stopped learning, why, and the remedy that brings them back.

    FILE:NAME is a Python file and the relume.Training in it, or a function without arguments that returns one.
    """


for _command in COMMANDS:
    main.add_command(_command)
