"""Results as one offline page, in the style of the report's, and as a page of the documentation."""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from typing import Any

from relume.claims.record import VERDICTS, Figure, Result, Results, plain
from relume.claims.words import INTERVAL, SIGNS, about, headline, sentence, subtitle, value
from relume.report.html import frame
from relume.report.markup import Html, figure, t, table

_HEAD = ("statement", "verdict", "measured", f"number ({INTERVAL})", "seeds")


def render(results: Results) -> str:
    """A page that needs no network: a table of all statements, and each with its figure."""
    data: dict[str, Any] = {"words": {}, "rows": [], "lines": []}
    sections = "".join(_section(result, data) for result in results.results)
    counts = {verdict: sum(r.finding.verdict == verdict for r in results.results) for verdict in VERDICTS}
    cards = "".join(
        f'<li class="{verdict}"><p class="big">{count}</p><p>{SIGNS[verdict]} {verdict}</p></li>'
        for verdict, count in counts.items()
    )
    lines = [
        (
            Html(f'<a href="#{escape(r.id)}">{t(r.statement)}</a>'),
            _badge(r),
            r.finding.measured,
            value(r.finding),
            str(r.finding.seeds),
        )
        for r in results.results
    ]
    how = "".join(f"<div><dt>{t(k)}</dt><dd>{t(v)}</dd></div>" for k, v in about(results).items())
    body = (
        f'<main class="claims"><header><p class="kicker">{t("relume claims")}</p><h1>{t(headline(results))}</h1>'
        f'<p class="sub">{t(subtitle(results))}</p><ul class="cards">{cards}</ul></header>'
        f"<section><h2>All statements</h2>{table(_HEAD, lines, 'Statements, verdicts and numbers', numbers=(4,))}"
        f"</section>{sections}<section><h2>How this was seen</h2><dl>{how}</dl></section></main>"
    )
    return frame(headline(results), body, data)


def _section(result: Result, data: dict[str, Any]) -> str:
    finding = result.finding
    kind = "rows" if finding.figure.kind == "dots" else "lines"
    index = len(data[kind])
    data[kind].append(plain(asdict(finding.figure)))
    on = f"<p>{t(f'{sentence(finding.depends_on)}.')}</p>" if finding.depends_on else ""
    return (
        f'<section id="{escape(result.id)}"><h2>{t(result.statement)}</h2>'
        f"<p>{_badge(result)} <strong>{t(value(finding))}</strong></p><p>{t(f'{sentence(finding.measured)}.')}</p>{on}"
        f"<p>{t(finding.because)}</p>"
        + figure(kind, described(finding.figure), t(finding.figure.title), index)
        + f'<p class="source">{t(f"Source of the statement: {result.source}. Id: {result.id}.")}</p></section>'
    )


def _badge(result: Result) -> Html:
    verdict = result.finding.verdict
    return Html(f'<span class="badge {verdict}">{SIGNS[verdict]} {verdict}</span>')


def described(shown: Figure) -> str:
    """A figure in words, for who does not see it."""
    if shown.kind == "lines":
        return f"{shown.title}: {shown.y} over {shown.x}, for {', '.join(s.name for s in shown.series)}."
    rows = "; ".join(f"{name} {y:.3g}" for s in shown.series for name, y in zip(s.x, s.y, strict=True))
    return f"{shown.title}, {shown.x}: {rows}."


def document(results: Results, figures: str) -> str:
    """The page of the documentation, in Markdown; `figures` is where the offline page lies beside it."""
    rows = [f"| {' | '.join(_HEAD)} |", "|---|---|---|---|---|"]
    rows += [
        f"| [{_md(r.statement)}](#{r.id}) | {r.finding.verdict} | {_md(r.finding.measured)} | {_md(value(r.finding))} "
        f"| {r.finding.seeds} |"
        for r in results.results
    ]
    parts = [
        "# What people say about activation functions",
        "`relume claims` tests each of these statements here and now: an experiment, a number with its interval, and a "
        "verdict. The experiments can show the opposite too; each has a test in which it does.",
        f"{headline(results)} {subtitle(results)}",
        f'<a href="{figures}">The same as one offline page, with a figure for each statement</a>',
        "## All statements",
        "\n".join(rows),
        "## One by one",
        *(_one(result) for result in results.results),
        "## How this was seen",
        "\n".join(f"- {key}: {f'`{text}`' if key == 'command' else _md(text)}" for key, text in about(results).items()),
    ]
    return "\n\n".join(parts) + "\n"


def _one(result: Result) -> str:
    finding = result.finding
    on = f" {_md(sentence(finding.depends_on))}." if finding.depends_on else ""
    return (
        f"({result.id})=\n### {_md(result.statement)}\n\n**{finding.verdict.capitalize()}.**{on} "
        f"{_md(sentence(finding.measured))}: {_md(value(finding))}.\n\n{_md(finding.because)}"
        f"\n\nSource of the statement: {_md(result.source)}."
    )


def _md(text: str) -> str:
    """Text in which nothing is Markdown."""
    for sign in "\\`*_[]<>|$":
        text = text.replace(sign, f"\\{sign}")
    return text
