"""One function at a glance: its facts in words, its curve as points, and both as text or as HTML for a notebook."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from relume.activations.notation import as_mathml, as_text

if TYPE_CHECKING:
    from relume.activations.row import Activation, Parameter, Tail

REACH = 4.0  # a plot shows -4 to 4, where nearly all normal pre-activations lie, or more where a kink lies further out
FURTHEST = 10.0  # softplus goes over to a line at 20, where there is nothing to be seen
STEEP = 1.5  # a plot shows values up to so many times its reach; beyond, exp would hide all else


# --- the curve --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
    """The function and its slope between two corners."""

    x: np.ndarray
    value: np.ndarray
    slope: np.ndarray


def reach(row: Activation) -> float:
    """How far to both sides a plot of the function goes.

    >>> from relume.activations import activation
    >>> reach(activation("gelu")), reach(activation("relu6"))
    (4.0, 8.0)
    """
    marks = [abs(x) for x in (*row.breaks(), *(tail.knee or 0.0 for tail in row.tails())) if abs(x) <= FURTHEST]
    return max(REACH, float(math.ceil(1.25 * max(marks, default=0.0))))


def curve(row: Activation, points: int = 241) -> tuple[Piece, ...]:
    """The function and its slope over its plot's reach, as one piece between each two corners.

    A jump lies between two pieces, so that no line is drawn through it. Points where the slope is infinite or unknown
    are NaN.
    """
    end = reach(row)
    corners = sorted({x for x in row.corners() if -end < x < end})
    edges = [-end, *corners, end]
    pieces = []
    for low, high in pairwise(edges):
        x = np.linspace(low, high, max(5, round(points * (high - low) / (2 * end))))
        at = x.copy()  # each side of a corner as the limit from that side
        at[0] = x[0] if low == -end else _aside(low, high)
        at[-1] = x[-1] if high == end else _aside(high, low)
        value, slope = (np.where(np.isfinite(y), y, np.nan) for y in (row.value(at), row.slope(at)))
        pieces.append(Piece(x=x, value=value, slope=slope))
    return tuple(pieces)


def _aside(corner: float, towards: float) -> float:
    # 1e-9 is less than a plot can show and more than rounding in a formula such as x + 3 can swallow
    return corner + math.copysign(1e-9, towards - corner)


def window(row: Activation, curves: Sequence[np.ndarray]) -> tuple[float, float]:
    """The lowest and the highest number that a plot of these curves shows, 0 among them."""
    most = STEEP * reach(row)
    shown = np.clip(np.concatenate(curves), -most, most)
    shown = shown[np.isfinite(shown)]
    low, high = min(0.0, float(shown.min(initial=0.0))), max(0.0, float(shown.max(initial=0.0)))
    return (low, high) if high - low > 1e-9 else (low, low + 1.0)


# --- facts in words ---------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """A number with at most four digits that say something: "0.1667", "-1", "inf"."""
    return f"{value + 0.0:.4g}" if abs(value) >= 1e-12 else "0"


def interval(row: Activation) -> str:
    """The range of the values: "0 to inf"."""
    return " to ".join(map(number, row.range))


def bounds(parameter: Parameter) -> str:
    """The values that a parameter may take: "any number", "0 or more", "0 to 1"."""
    low, high = parameter.low, parameter.high
    if math.isinf(low) and math.isinf(high):
        return "any number"
    if math.isinf(high):
        return f"{number(low)} or more"
    return f"{number(high)} or less" if math.isinf(low) else f"{number(low)} to {number(high)}"


def shape(row: Activation) -> str:
    """What kind of curve it is: "monotone, corner at 0"."""
    corners = row.corners()
    words = ["monotone" if row.monotone else "not monotone"]
    words += [f"corner{'s' * (len(corners) > 1)} at {' and '.join(map(number, corners))}" if corners else "smooth"]
    return ", ".join(words + ["zero-centred"] * row.zero_centred)


def end(tail: Tail) -> str:
    """The slope at one end: "0 beyond -3", "1 in the limit"."""
    if math.isnan(tail.slope):
        return "without a limit"
    return number(tail.slope) + (" in the limit" if tail.knee is None else f" beyond {number(tail.knee)}")


def ends(row: Activation) -> str:
    """The slopes at both ends, and what becomes of units there."""
    parts = [f"{side} slope {end(tail)}" for side, tail in zip(("left", "right"), row.tails(), strict=True)]
    fate = "units can die" if row.can_die else "units can saturate" if row.saturates else "no end is flat"
    return f"{', '.join(parts)}: {fate}"


def facts(row: Activation) -> Iterator[tuple[str, str]]:
    """What the row says about its function, by name."""
    yield "torch", row.module
    for name, parameter in row.parameters.items():
        learned = ", learned" if parameter.init_argument else ""
        yield name, f"{parameter.default:.6g}, {bounds(parameter)}{learned}"
    yield "values", interval(row)
    yield "shape", shape(row)
    yield "ends", ends(row)
    yield "N(0, 1)", f"mean {round(row.mean, 4) + 0.0:.4f}, mean square {row.second_moment:.4f}"
    if row.when:
        yield "when", row.when
    yield "source", row.paper


def text(row: Activation) -> str:
    """The facts as lines of text. The formula is in ASCII: `print` must not fail where the encoding is a small one."""
    width = max(9, *(len(name) for name, _ in facts(row)))
    lines = [f"  {name:{width}} {fact}" for name, fact in facts(row)]
    return "\n".join([f"{row.name}(x) = {as_text(row.tex, ascii=True)}", *lines])


# --- a picture, and HTML without scripts ------------------------------------------------------------------------------

_STYLE = (
    ".relume-row{max-width:52em;line-height:1.45}"
    ".relume-row>div{display:flex;flex-wrap:wrap;gap:.5em 2em;align-items:center}"
    ".relume-row math{font-size:1.15em}.relume-row p{margin:.5em 0}"
    ".relume-row svg{flex:none;width:300px;max-width:100%;height:auto}"
    ".relume-row dl{flex:1 1 18em;margin:0;font-size:.92em}"
    ".relume-row dl div{display:flex;gap:1em;padding:.15em 0}"
    ".relume-row dt{flex:none;width:7em;opacity:.7;overflow-wrap:anywhere}.relume-row dd{margin:0}"
)


def html(row: Activation) -> str:
    """A card for a notebook's output cell: formula, picture and facts, without scripts."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(fact)}</dd></div>" for name, fact in facts(row))
    return (
        f'<div class="relume-row"><style>{_STYLE}</style><strong>{escape(row.name)}</strong>'
        f"<p>{as_mathml(row.tex)}</p><div>{svg(row)}<dl>{items}</dl></div></div>"
    )


def svg(row: Activation, width: int = 300, height: int = 190, labels: bool = True) -> str:
    """The function as a line and its slope dashed, in the colour of the text around it.

    With `labels` the axes carry numbers and names; without, it is a small picture for a table.
    """
    left, right, top, bottom = (34, 10, 18, 20) if labels else (1, 1, 2, 2)
    pieces, end = curve(row), reach(row)
    low, high = window(row, [y for p in pieces for y in (p.value, p.slope)])

    def across(x: float) -> float:
        return left + (x + end) / (2 * end) * (width - left - right)

    def down(y: float) -> float:
        return top + (high - y) / (high - low) * (height - top - bottom)

    def path(x: np.ndarray, y: np.ndarray) -> str:
        """A line that is lifted where the curve leaves the picture."""
        drawn, pen = [], "M"
        for a, b in zip(x.tolist(), y.tolist(), strict=True):
            if not low - 1e-9 <= b <= high + 1e-9:
                pen = "M"
                continue
            drawn.append(f"{pen}{across(a):.1f},{down(b):.1f}")
            pen = "L"
        return "".join(drawn)

    value = "".join(path(p.x, p.value) for p in pieces)
    slope = "".join(path(p.x, p.slope) for p in pieces)
    axes = f"M{left},{down(0):.1f}H{width - right}M{across(0):.1f},{top}V{height - bottom}"
    name = escape(f"{row.name} from {-end:g} to {end:g}, and its slope dashed", quote=True)
    signs = ""
    if labels:
        # Two numbers that would stand on each other: the end matters more than the zero.
        heights = [y for y in (low, high) if y] + [0.0] * all(abs(down(y) - down(0)) > 14 for y in (low, high) if y)
        signs = "".join(
            f'<text x="{left - 5}" y="{down(y) + 3.5:.1f}" text-anchor="end">{_short(y)}</text>' for y in heights
        ) + "".join(
            f'<text x="{across(x):.1f}" y="{height - 6}" text-anchor="middle">{_short(x)}</text>'
            for x in (-end, 0.0, end)
        )
        signs += f'<text x="{left}" y="10">f(x)  and dashed f\u2032(x)</text>'
        signs = f'<g fill="currentColor" font-size="10.5" opacity=".8">{signs}</g>'
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{name}">'
        f'<g fill="none" stroke="currentColor"><path d="{axes}" opacity=".35" stroke-width="1"/>'
        f'<path d="{value}" stroke-width="{2.2 if labels else 1.6}" stroke-linejoin="round"/>'
        f'<path d="{slope}" stroke-width="{1.6 if labels else 1.1}" stroke-dasharray="{"5 3" if labels else "3 2"}" '
        f'opacity=".75"/></g>{signs}</svg>'
    )


def _short(y: float) -> str:
    return f"{y:.2g}".replace("-", "\u2212")
