"""Small pieces of HTML: text made safe, tables, what can be folded away."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

_MINUS = re.compile(r"(?<![\w.\-])-(?=\d)")  # not the hyphen of "1e-5", "batch-1" or "2-3"
_PERCENT = re.compile(r"(?<=\d) ?%")
_ARROW = re.compile(r"(?<=\s)-&gt;(?=\s)")


def t(text: str) -> str:
    """Prose made safe for HTML, with the signs that typography has: a minus, an arrow, a space that does not break."""
    safe = escape(text)
    return _PERCENT.sub("\u202f%", _ARROW.sub("→", _MINUS.sub("−", safe)))


class Html(str):
    """Markup that is safe already; any other text is made safe before it goes into a page."""

    __slots__ = ()


def cell(value: str) -> str:
    """What goes into a table cell."""
    return value if isinstance(value, Html) else t(value)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, numbers: Sequence[int] = ()) -> str:
    """A table whose first column names the row; `numbers` are the columns to align at the right."""

    def css(column: int) -> str:
        return ' class="n"' if column in numbers else ""

    top = "".join(f'<th scope="col"{css(i)}>{t(name)}</th>' for i, name in enumerate(head))
    body = "".join(
        f'<tr><th scope="row">{cell(row[0])}</th>'
        + "".join(f"<td{css(i)}>{cell(value)}</td>" for i, value in enumerate(row[1:], start=1))
        + "</tr>"
        for row in rows
    )
    # Wide tables scroll in their own box, by keyboard too, and leave the page's width alone.
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{t(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def fold(summary: str, content: str, css: str = "") -> str:
    """What is there for who asks."""
    return f"<details{f' class={css!r}' if css else ''}><summary>{t(summary)}</summary>{content}</details>"


def figure(chart: str, label: str, caption: str = "", index: int | None = None, axis: str = "") -> str:
    """The place of a chart: the script draws into it; `label` says in words what is to be seen."""
    number = "" if index is None else f' data-index="{index}"'
    text = f"<figcaption>{caption}</figcaption>" if caption else ""
    # Axis names that come from the user's own words can be long: as a paragraph they wrap.
    under = f'<p class="axis">{t(axis)}\u00a0→</p>' if axis else ""
    return (
        f'<figure data-chart="{chart}"{number}>{text}'
        f'<div class="plot" role="img" aria-label="{escape(label)}"></div>{under}</figure>'
    )
