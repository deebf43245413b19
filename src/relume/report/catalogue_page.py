"""The catalogue as one offline page: all functions that were asked for, or one of them."""

from __future__ import annotations

import math
import re
from html import escape
from typing import Any

import numpy as np

from relume.activations import Activation
from relume.activations.card import Piece, curve, interval, number, reach, svg, window
from relume.activations.notation import as_mathml
from relume.report import words
from relume.report.catalogue import DEPTH, Profile, along, code, command, facts, profile, strengths, weaknesses
from relume.report.html import frame
from relume.report.markup import Html, figure, fold, t, table
from relume.report.numerals import number as short
from relume.report.selection import Selection, sentence

_WORDS = {**words.CHART, "x": "input x"}
_NAMES = (("f(x)", "value"), ("f\u2032(x)", "slope"))
_LEGEND = (
    "Shaded: how often a standard normal input falls there. Dots: corners and jumps. Dashed: from there on the slope "
    "is exactly its limit."
)


def render_row(row: Activation) -> str:
    """A page for one function."""
    body = (
        f'<main><header><p class="kicker">{t("relume · activation function")}</p><h1>{escape(row.name)}</h1>'
        f'<p class="formula">{as_mathml(row.tex)}</p>{_lead(row)}{_cards(profile(row))}'
        f"</header>{_sections(row, 0)}</main>"
    )
    return frame(row.name, body, {"words": _WORDS, "curves": curves(row)})


def render_table(selection: Selection) -> str:
    """A page for many functions: a table, and each of them to unfold."""
    head = ("function", "curve", "values", "zero-centred", "smooth", "can die", "saturates", "gain", "cost")
    lines = [_line(row) for row in selection.rows]
    title = sentence(selection)
    body = (
        f'<main class="functions"><header><p class="kicker">{t("relume · activation functions")}</p><h1>{t(title)}</h1>'
        f'<p class="sub">{t(_TABLE_INTRO)}</p></header>'
        + (f"<section><p>{t(_COLUMNS)}</p>{table(head, lines, _CAPTION, numbers=(7, 8))}</section>" if lines else "")
        + "".join(_folded(row, i) for i, row in enumerate(selection.rows))
        + "</main>"
    )
    return frame(title, body, {"words": _WORDS, "curves": [one for row in selection.rows for one in curves(row)]})


_TABLE_INTRO = (
    "Each name leads to the function: curves, numbers, what speaks for it and against it, and how to use it. Means and "
    "gains are for standard normal inputs."
)
_CAPTION = "Functions and their properties"
_COLUMNS = (
    "Curve: value, and slope dashed. Gain: std of weights times sqrt(fan_in) that keeps signals. Cost: forward and "
    "backward over a plain copy."
)


def _line(row: Activation) -> list[str]:
    p = profile(row)
    yes = ["yes" if holds else "" for holds in (p.zero_centred, p.smooth, p.can_die, p.saturates)]
    return [
        Html(f'<a href="#{escape(row.name)}">{escape(row.name)}</a>'),
        Html(svg(row, width=84, height=44, labels=False)),
        Html(_signs(interval(row))),
        *yes,
        short(p.moments.gain_forward, 3),
        "" if math.isnan(p.cost) else short(p.cost),
    ]


def _folded(row: Activation, index: int) -> str:
    # The name as the target lies within the fold: browsers open what hides the place that a link leads to.
    inside = (
        f'<h2 id="{escape(row.name)}">{escape(row.name)}</h2><p class="formula">{as_mathml(row.tex)}</p>{_lead(row)}'
        f"{_sections(row, index)}"
    )
    return fold(row.name, inside, "many")


def _signs(text: str) -> str:
    """Prose made safe, with the mathematical signs that plain text spells with several."""
    for plain, sign in ((" <= ", "\u00a0≤\u00a0"), (" >= ", "\u00a0≥\u00a0"), ("-inf", "\u2212∞")):
        text = text.replace(plain, sign)
    return t(re.sub(r"\binf\b", "∞", text))


def _lead(row: Activation) -> str:
    return f'<p class="sub">{t(row.when)}</p>' if row.when else ""


def _cards(p: Profile) -> str:
    """At most three numbers that a reader should take away."""
    found = [(number(round(p.mean, 2)), "mean output for standard normal inputs")]
    if p.moments is not None:
        found.append((short(p.moments.gain_forward, 3), "gain that keeps signals"))
    if math.isfinite(p.gradient_at_xavier):
        found.append(
            (short(p.gradient_at_xavier), f"of a gradient's size is left after {DEPTH} layers at Xavier's scale")
        )
    cards = "".join(f'<li><p class="big">{t(big)}</p><p>{t(label)}</p></li>' for big, label in found)
    return f'<ul class="cards">{cards}</ul>'


def _sections(row: Activation, index: int) -> str:
    p, name = profile(row), escape(row.name)
    charts = "".join(
        figure("curve", f"{row.name}: {noun} from {-reach(row):g} to {reach(row):g}", index=2 * index + i)
        for i, (_, noun) in enumerate(_NAMES)
    )
    judged = "".join(
        f'<div><h3>{head}</h3><ul class="judged {css}">{"".join(f"<li>{_signs(s)}</li>" for s in found)}</ul></div>'
        for head, css, found in (("For it", "for", strengths(p)), ("Against it", "against", weaknesses(p)))
        if found
    )
    items = "".join(f"<div><dt>{t(key)}</dt><dd>{_signs(value)}</dd></div>" for key, value in facts(row))
    python = "\n".join(code(row))
    legend = f"Curves {along(row)}. {_LEGEND}" if along(row) else _LEGEND
    parts = (
        ("curve", "Value and slope", f'<div class="pair">{charts}</div><p class="axis">{t(legend)}</p>'),
        ("judged", "For and against", f'<div class="pair">{judged}</div>'),
        ("numbers", "Numbers", f"<dl>{items}</dl>"),
        (
            "use",
            "Use it",
            _code(python)
            + (
                f"<p>On your own training, against what it has now:</p>{_code(tried)}"
                if (tried := command(row))
                else ""
            ),
        ),
        ("source", "Source", f"<p>{t(row.paper)}</p><p>The formula in TeX:</p>{_code(row.tex)}"),
    )
    return "".join(
        f'<section aria-labelledby="{name}-{key}"><h2 id="{name}-{key}">{head}</h2>{content}</section>'
        for key, head, content in parts
    )


def _code(text: str) -> str:
    return f'<div class="code"><pre tabindex="0"><code>{escape(text)}</code></pre></div>'


# What the script draws ------------------------------------------------------------------------------------------------


def curves(row: Activation) -> list[dict[str, Any]]:
    """The value and the slope, as the page's script wants them."""
    pieces, knees = curve(row, points=161), {tail.knee for tail in row.tails() if tail.knee is not None}
    found = []
    for (name, _), pick in zip(_NAMES, ("value", "slope"), strict=True):
        ys = [getattr(piece, pick) for piece in pieces]
        low, high = window(row, ys)
        found.append(
            {
                "name": name,
                "reach": reach(row),
                "low": low,
                "high": high,
                "pieces": [_points(piece, y) for piece, y in zip(pieces, ys, strict=True)],
                "ends": _corners(pieces, ys),
                "knees": sorted(knee for knee in knees if abs(knee) < reach(row)),
            }
        )
    return found


def _points(piece: Piece, y: np.ndarray) -> list[list[float | None]]:
    return [
        [round(float(a), 4), float(f"{b:.4g}") if math.isfinite(b) else None] for a, b in zip(piece.x, y, strict=True)
    ]


def _corners(pieces: tuple[Piece, ...], ys: list[np.ndarray]) -> list[tuple[float, float]]:
    """Where one piece meets the next: both sides of each corner."""
    inner = [(piece.x[0], y[0]) for piece, y in zip(pieces[1:], ys[1:], strict=True)]
    inner += [(piece.x[-1], y[-1]) for piece, y in zip(pieces[:-1], ys[:-1], strict=True)]
    return sorted({(float(x), round(float(y), 6)) for x, y in inner if math.isfinite(y)})
