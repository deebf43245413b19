"""What a result is called, in text, page and documentation alike. No torch here."""

from __future__ import annotations

import math

from relume.claims.record import VERDICTS, Finding, Results
from relume.report.numerals import count, number, seconds

# A sign beside each word, so that nothing is told by colour alone.
SIGNS = {"supported": "+", "refuted": "x", "depends": "~"}
DIGITS = 3
INTERVAL = "95 % interval"


def headline(results: Results) -> str:
    """ "Of 30 statements 12 are supported, 3 are refuted, and 15 depend on something." """
    found = [result.finding.verdict for result in results.results]
    if len(found) == 1:
        return f'"{results.results[0].statement}" {VERDICT_WORDS[found[0]]}.'
    counts = {verdict: found.count(verdict) for verdict in VERDICTS}
    said = f"{counts['supported']} supported, {counts['refuted']} refuted, {counts['depends']} that depend"
    return f"{count(len(found), 'statement')}: {said}." if found else "No statement was tested."


VERDICT_WORDS = {"supported": "is supported", "refuted": "is refuted", "depends": "depends"}


def subtitle(results: Results) -> str:
    """How it was done, and whether to the end."""
    size = "quick, with wide intervals" if results.quick else "in full"
    parts = [
        f"Tested {size}, {count(results.seeds, 'seed')}, in {seconds(results.seconds)}, {results.date[:10]}.",
        "" if results.finished else "Interrupted: the rest was not tested.",
    ]
    return " ".join(filter(None, parts))


def value(finding: Finding) -> str:
    """ "2.1 (1.8 to 2.4) times"."""
    text = number(finding.number, DIGITS)
    if finding.low != finding.high:
        text += f" ({_end(finding.low)} to {_end(finding.high)})"
    return f"{text} {finding.unit}".strip()


def _end(end: float) -> str:
    return "?" if math.isnan(end) else number(end, DIGITS)


def sentence(text: str) -> str:
    """The text with a capital."""
    return text[:1].upper() + text[1:]


def about(results: Results) -> dict[str, str]:
    """Machine, versions, date and the command that does it again."""
    ids = " ".join(result.id for result in results.results) if len(results.results) < FEW else ""
    command = " ".join(filter(None, ["relume claims", ids, "--quick" if results.quick else ""]))
    return {"date": results.date, "time": seconds(results.seconds), "seeds": str(results.seeds), **results.about,
            "command": command}  # fmt: skip


FEW = 6  # ids that a command line may name
