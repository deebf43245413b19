"""Results in a terminal: the sentence first, then one block a statement."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from relume.claims.record import Results
from relume.claims.table import CLAIMS
from relume.claims.words import SIGNS, headline, sentence, subtitle, value

# Only the sixteen basic colours: the reader's terminal theme decides how they look on its background.
STYLES = {"supported": "bold green", "refuted": "bold red", "depends": "bold yellow"}


def print_results(results: Results, console: Console | None = None) -> None:
    """Print what was found, with colours where the terminal has them."""
    console = console or Console()
    _print(console, Text(headline(results), style="bold"))
    _print(console, Text(subtitle(results)))
    for result in results.results:
        finding = result.finding
        mark = f"{SIGNS[finding.verdict]} {finding.verdict}"
        console.print()
        _print(console, Text.assemble((mark, STYLES[finding.verdict]), "  ", (result.id, "bold")))
        _print(console, Text(result.statement, style="italic"), 2)
        if finding.depends_on:
            _print(console, Text(f"{sentence(finding.depends_on)}."), 2)
        _print(console, Text(f"{sentence(finding.measured)}: {value(finding)}."), 2)
        _print(console, Text(finding.because, style="dim"), 2)


def print_list(console: Console | None = None) -> None:
    """Print all statements with their ids."""
    console = console or Console()
    _print(console, Text(f"{len(CLAIMS)} statements; `relume claims ID` tests one, `relume claims` all.", style="bold"))
    for claim in CLAIMS.values():
        _print(console, Text(claim.id, style="bold cyan"))
        _print(console, Text(claim.statement), 2)


def _print(console: Console, text: Text, indent: int = 0) -> None:
    # Lines end where their words do: a padded line would be as wide as the terminal.
    for line in text.wrap(console, max(20, console.width - indent)):
        line.rstrip()
        console.print(Text(" " * indent) + line, highlight=False, soft_wrap=True)
