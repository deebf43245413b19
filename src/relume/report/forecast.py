"""A forecast as a record, and as text, JSON, page and notebook cell."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from relume.recording import layer_name, to_json
from relume.report.history import function_name
from relume.report.markup import figure, table
from relume.report.numerals import count, number, percent
from relume.report.words import CHART, joined
from relume.symptoms.record import BORN_EXCESS, DEAD_OF_SITE, ENOUGH_SAMPLES, FEWEST_SITES, GRADIENT_RATIO

WIDTH = 100  # of plain text
LIKE = 0.15  # relative: neighbouring rows of the text that differ by less are shown as one
GAINS = {math.sqrt(1 / 3): "PyTorch's default", 1.0: "Xavier's", math.sqrt(2): "He's"}  # root of fan-in * mean square
GRADIENT = "relative gradient (rms)"
NEAR_GAIN = 0.05  # relative: a drawn weight matrix is as far from its distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerForecast:
    """What is foreseen at the output of one layer with weights."""

    name: str
    kind: str  # the function that applies the weights: "linear", "conv2d"
    activation: str | None  # the catalogue's name; None where none follows
    units: int
    gain: float  # of the weights: root of fan-in times their mean square
    q: float  # mean square of what the activation reads; of the layer's output where there is none
    gradient: float | None  # rms of the gradient, relative to the last layer's; None where none arrives
    factor: float | None  # gradient here over that at the next layer
    dead_share: float | None  # of units that are silent on 1000 samples; None where the function cannot die
    saturated_share: float | None  # of values on a flat end; None where not both ends are flat
    off_critical: bool  # that factor, at every layer of this network, would carry the gradient out of bounds
    scale: float = 1.0  # multiply the weights by this; 1 where that helps nothing, or nothing is wrong
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Forecast:
    """What initial weights will do to signal and gradient, before any training."""

    layers: tuple[LayerForecast, ...]
    gradient_ratio: float | None  # first over last hidden layer, rms; None where no gradient could be followed
    because: tuple[str, ...] = ()  # sentences with numbers
    advice: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()  # operations without a rule, whose effect was measured on the example
    not_modelled: tuple[str, ...] = ()  # what could not be followed, and why
    born_dead_chance: float | None = None  # that initialisation closes a whole layer; None but for chains of ReLU

    @property
    def healthy(self) -> bool:
        """Gradients stay in bounds, values are finite, and no layer has many dead or saturated units."""
        return not self.because

    @property
    def hidden(self) -> tuple[LayerForecast, ...]:
        """The layers that an activation follows; all, where there are none."""
        return hidden(self.layers)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; keys are the attribute names."""
        return {"healthy": self.healthy, **to_json(self)}

    def save(self, path: str | Path) -> Path:
        """Write one offline page (`.html`) or the numbers (`.json`), by the suffix; returns the path."""
        return write(self, Path(path))

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int = WIDTH) -> str:
        """Plain text of at most `width` columns; neighbouring layers that are alike share a row."""
        return render(self, width)

    def _repr_html_(self) -> str:
        return f'<div class="relume"><style>{_CELL}</style>{_body(self, cell=True)}</div>'


def hidden(layers: Sequence[LayerForecast]) -> tuple[LayerForecast, ...]:
    """The layers that an activation follows; all, where there are none."""
    return tuple(layer for layer in layers if layer.activation) or tuple(layers)


# Sentences ------------------------------------------------------------------------------------------------------------


def headline(forecast: Forecast) -> str:
    """The verdict in words."""
    layers = forecast.hidden
    if not layers:
        return "No layer with weights was reached: there is nothing to foresee."
    depth, ratio = len(layers), forecast.gradient_ratio
    over = f"over {count(depth, 'layer')}: {_recipe(layers)}."
    if any(not math.isfinite(layer.q) for layer in layers):
        return f"Values are not finite {over}"
    if ratio is None:
        return f"No gradient could be followed {over}"
    if ratio == 0:
        return f"No gradient reaches the first layer {over}"
    if ratio < 1 / GRADIENT_RATIO:
        return f"Gradients shrink {number(1 / ratio)}-fold {over}"
    if ratio > GRADIENT_RATIO:
        return f"Gradients grow {number(ratio)}-fold {over}"
    dead = [layer for layer in layers if (layer.dead_share or 0.0) >= DEAD_OF_SITE]
    if dead:
        return f"{percent(dead[0].dead_share or 0.0)} of the units of {layer_name(dead[0].name)} are born dead."
    saturated = [layer for layer in layers if (layer.saturated_share or 0.0) >= DEAD_OF_SITE]
    if saturated:
        worst = max(saturated, key=lambda layer: layer.saturated_share or 0.0)
        return f"{percent(worst.saturated_share or 0.0)} of the values of {layer_name(worst.name)} are saturated."
    if depth == 1:
        return f"Nothing stands in the way of training {over}"
    return f"Gradients keep their size within a factor of {number(max(ratio, 1 / ratio))} {over}"


def because_of(
    layers: Sequence[LayerForecast], ratio: float | None, stopped: Sequence[str] = (), broken: str = ""
) -> tuple[str, ...]:
    """What is wrong, one sentence each, gravest first.

    `stopped` are the places where the model itself lets no gradient back; `broken` says what holds NaN beforehand.
    """
    inner = hidden(layers)
    found = [broken] if broken else []
    overflows = [layer for layer in layers if not math.isfinite(layer.q)]
    if overflows and not broken:
        found.append(f"Values overflow: at {layer_name(overflows[0].name)} they are no longer finite.")
    zero = [layer for layer in layers if layer.gain == 0]
    if ratio == 0:
        why = f": {joined(stopped)} {'let' if len(stopped) > 1 else 'lets'} none back" if stopped else ""
        why = f": the weights of {layer_name(zero[-1].name)} are all 0" if zero and not stopped else why
        found.append(f"No gradient arrives at {layer_name(inner[0].name)}{why}.")
    elif ratio is not None and not 1 / GRADIENT_RATIO <= ratio <= GRADIENT_RATIO:
        per_layer = ratio ** (1 / max(1, len(inner) - 1))
        found.append(
            f"The gradient at {layer_name(inner[0].name)} is {number(ratio)} times that at "
            f"{layer_name(inner[-1].name)}: a factor of {number(per_layer, 3)} a layer on average."
        )
    dead = [layer for layer in inner if (layer.dead_share or 0.0) >= max(BORN_EXCESS, 1.5 / layer.units)]
    if dead:
        worst = max(dead, key=lambda layer: layer.dead_share or 0.0)
        found.append(
            f"{percent(worst.dead_share or 0.0)} of the {count(worst.units, 'unit')} of {layer_name(worst.name)} will "
            f"be silent on {ENOUGH_SAMPLES:,} samples{_others(len(dead), len(inner))}."
        )
    saturated = [layer for layer in inner if (layer.saturated_share or 0.0) >= DEAD_OF_SITE]
    if saturated:
        worst = max(saturated, key=lambda layer: layer.saturated_share or 0.0)
        found.append(
            f"{percent(worst.saturated_share or 0.0)} of the values of {layer_name(worst.name)} lie where "
            f"{function_name(worst.activation or '')} is flat{_others(len(saturated), len(inner))}."
        )
    return tuple(found)


def _others(ill: int, layers: int) -> str:
    return f", the worst of {ill} such layers among {layers}" if ill > 1 else ""


def is_off(factor: float | None, depth: int) -> bool:
    """Whether that factor at every one of `depth` layers would carry the gradient out of bounds."""
    if factor is None or depth < FEWEST_SITES:
        return False
    return factor == 0 or abs(math.log(factor)) * (depth - 1) > math.log(GRADIENT_RATIO)


def _recipe(layers: Sequence[LayerForecast]) -> str:
    names = list(dict.fromkeys(function_name(layer.activation) for layer in layers if layer.activation))
    what = joined(names) if names else "no activation"
    gains = sorted(layer.gain for layer in layers)
    for gain, who in GAINS.items():
        if all(abs(g / gain - 1) <= NEAR_GAIN for g in (gains[len(gains) // 4], gains[-1 - len(gains) // 4])):
            return f"{what} with weights of {who} scale"
    return f"{what} with weights of gain {number(gains[len(gains) // 2])}"


# Text -----------------------------------------------------------------------------------------------------------------

_HEAD = ("layer", "function", "q", "gradient", "factor", "dead", "saturated", "scale")
_NUMBERS = tuple(range(2, len(_HEAD)))


def _like(a: LayerForecast, b: LayerForecast) -> bool:
    def near(x: float | None, y: float | None) -> bool:
        if x is None or y is None or x == 0 or y == 0:
            return x == y
        return abs(x / y - 1) < LIKE

    same = (a.kind, a.activation, a.units, a.off_critical, a.note) == (
        b.kind, b.activation, b.units, b.off_critical, b.note
    )  # fmt: skip
    shares = [(a.dead_share, b.dead_share), (a.saturated_share, b.saturated_share)]
    return same and near(a.factor, b.factor) and near(a.scale, b.scale) and all(
        (x is None) == (y is None) and abs((x or 0) - (y or 0)) < LIKE for x, y in shares
    )  # fmt: skip


def _runs(layers: Sequence[LayerForecast]) -> list[list[LayerForecast]]:
    runs: list[list[LayerForecast]] = []
    for layer in layers:
        if runs and _like(runs[-1][0], layer):
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return runs


def _cells(run: Sequence[LayerForecast]) -> tuple[str, ...]:
    first, last = run[0], run[-1]

    def span(a: float | None, b: float | None, show: Any) -> str:
        texts = ["-" if v is None else show(v) for v in (a, b)]
        return texts[0] if len(run) == 1 or texts[0] == texts[1] else f"{texts[0]}..{texts[1]}"

    return (
        first.name if len(run) == 1 else f"{first.name}..{last.name}",
        (first.activation or "-") + (f" x{len(run)}" if len(run) > 1 else ""),
        span(first.q, last.q, number),
        span(first.gradient, last.gradient, number),
        ("! " if first.off_critical else "") + ("-" if first.factor is None else number(first.factor)),
        span(first.dead_share, last.dead_share, percent),
        span(first.saturated_share, last.saturated_share, percent),
        "-" if first.scale == 1 else number(first.scale, 3),
    )


def _telling(rows: Sequence[tuple[str, ...]]) -> list[int]:
    """The columns that say something of a layer."""
    return [i for i in range(len(_HEAD)) if i < 5 or any(row[i] not in ("-", "0 %") for row in rows)]


def render(forecast: Forecast, width: int) -> str:
    """The forecast as plain text."""
    lines = textwrap.wrap(headline(forecast), width)
    for sentence in (*forecast.because, *forecast.advice):
        lines += textwrap.wrap(sentence, width, initial_indent="- ", subsequent_indent="  ")
    rows = [_HEAD, *(_cells(run) for run in _runs(forecast.layers))]
    columns = _telling(rows[1:])
    # What fits no more is left out, the least telling column first.
    for spare in (2, 6, 5, 7, 1):
        widths = [max(len(row[i]) for row in rows) for i in columns]
        if sum(widths) + 2 * (len(widths) - 1) > width and spare in columns:
            columns.remove(spare)
    if forecast.layers:
        lines.append("")
        widths = {i: max(len(row[i]) for row in rows) for i in columns}
        for row in rows:
            cells = [row[i].rjust(widths[i]) if i in _NUMBERS else row[i].ljust(widths[i]) for i in columns]
            lines.append("  ".join(cells).rstrip())
    for title, sentences in _rest(forecast):
        lines += ["", title]
        for sentence in sentences:
            lines += textwrap.wrap(sentence, width, initial_indent="- ", subsequent_indent="  ")
    return "".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in "\n".join(lines))


def _rest(forecast: Forecast) -> list[tuple[str, tuple[str, ...]]]:
    notes = tuple(
        f"{joined([layer_name(layer.name) for layer in group])}: {note}"
        for note, group in ((n, list(g)) for n, g in groupby(forecast.layers, key=lambda layer: layer.note))
        if note
    )
    parts = [("Notes", notes), ("Measured on the example", forecast.measured), ("Not modelled", forecast.not_modelled)]
    return [(title, sentences) for title, sentences in parts if sentences]


# HTML -----------------------------------------------------------------------------------------------------------------


# A notebook has its own headings, and draws no chart.
_CELL = (
    ".relume{max-width:60em;line-height:1.45}.relume .verdict{font-weight:600;font-size:1.15em;margin:.4em 0}"
    ".relume h2{font-size:1em;margin:1.2em 0 .3em}.relume .scroll{overflow-x:auto}"
    ".relume table{border-collapse:collapse;margin:.4em 0}.relume caption{text-align:left;opacity:.7;padding:0 0 .3em}"
    ".relume th,.relume td{text-align:left;font-weight:400;padding:.2em .9em .2em 0;"
    "border-bottom:1px solid rgba(128,128,128,.3)}.relume th.n,.relume td.n{text-align:right;white-space:nowrap}"
)


def _body(forecast: Forecast, cell: bool = False) -> str:
    rows = [_cells(run) for run in _runs(forecast.layers)]
    columns = _telling(rows)
    head, *shown = [[row[i] for i in columns] for row in (_HEAD, *rows)]
    items = "".join(f"<li>{escape(s)}</li>" for s in (*forecast.because, *forecast.advice))
    rest = "".join(
        f"<h2>{escape(title)}</h2><ul>{''.join(f'<li>{escape(s)}</li>' for s in sentences)}</ul>"
        for title, sentences in _rest(forecast)
    )
    caption = "gradient: relative to the last layer; factor: to the next layer"
    verdict = escape(headline(forecast))
    chart = not cell and _curve(forecast)
    return (
        (f'<p class="verdict">{verdict}</p>' if cell else f'<p class="kicker">relume forecast</p><h1>{verdict}</h1>')
        + (f"<ul>{items}</ul>" if items else "")
        + (figure("gradients", f"{GRADIENT}, by layer: {headline(forecast)}") if chart else "")
        + ("<h2>Layer by layer</h2>" + table(head, shown, caption, _NUMBERS) if rows else "") + rest
    )  # fmt: skip


def page(forecast: Forecast) -> str:
    """One offline page."""
    from relume.report.html import frame

    data = {"words": {**CHART, "gradient": GRADIENT}, "gradients": _curve(forecast)}
    return frame(headline(forecast), f'<main class="forecast">{_body(forecast)}</main>', data)


def _curve(forecast: Forecast) -> dict[str, Any] | None:
    """Gradients by layer as the page's script draws them; None where there is nothing to draw."""
    sizes = [layer.gradient for layer in forecast.layers]
    seen = [size for size in sizes if size]
    if len(seen) < 2:
        return None
    points = [
        {"layer": layer.name, "depth": depth, "norm": layer.gradient, "when": 0}
        for depth, layer in enumerate(forecast.layers, start=1)
        if layer.gradient is not None
    ]
    names = [layer.name for layer in forecast.layers]  # as the table has them
    shared = {"points": points, "steps": [0], "layers": len(sizes), "names": names}
    return {**shared, "low": min(seen), "high": max(seen)}


def write(forecast: Forecast, path: Path, kind: str = "") -> Path:
    """Write the forecast by the suffix of `path`, or as `kind`, ".html" or ".json"; returns the path.

    A folder that is missing is made. Raises RelumeError for another suffix, or where nothing can be written.
    """
    from relume.report.save import by_suffix

    def numbers() -> str:
        return json.dumps(forecast.to_json(), allow_nan=False) + "\n"

    return by_suffix(path, {".html": lambda: page(forecast), ".json": numbers}, kind)
