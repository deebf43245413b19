"""The catalogue in a terminal: a table that fits its width, and one function with its curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from relume.activations import Activation
from relume.activations.card import curve, interval, window
from relume.activations.notation import as_text
from relume.report.catalogue import code, command, facts, profile, strengths, weaknesses
from relume.report.numerals import number as short
from relume.report.plot import beside, plot
from relume.report.selection import Selection, sentence
from relume.report.text import RULED

WIDE = 100  # columns from which the two curves stand side by side
HEIGHT = 9  # lines of a curve
MOST = 78  # columns of a curve and of a sentence, which does not read better for being longer


def _gain(row: Activation) -> str:
    return short(profile(row).moments.gain_forward, 3)


def _cost(row: Activation) -> str:
    return "" if math.isnan(row.cost) else short(row.cost)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """A column of the table. Where there is no room for all, those with the highest `rank` are left out first."""

    rank: int
    head: str
    show: Callable[[Activation, bool], str]  # the row, and whether only ASCII is to be had
    is_number: bool = False


_COLUMNS = (
    _Column(rank=0, head="name", show=lambda row, ascii: row.name),
    _Column(rank=8, head="f(x)", show=lambda row, ascii: as_text(row.tex, ascii)),
    _Column(rank=7, head="values", show=lambda row, ascii: interval(row)),
    _Column(rank=3, head="centred", show=lambda row, ascii: _yes(row.zero_centred)),
    _Column(rank=4, head="smooth", show=lambda row, ascii: _yes(row.smooth)),
    _Column(rank=1, head="dies", show=lambda row, ascii: _yes(row.can_die)),
    _Column(rank=6, head="saturates", show=lambda row, ascii: _yes(row.saturates)),
    _Column(rank=5, head="gain", show=lambda row, ascii: _gain(row), is_number=True),
    _Column(
        rank=2, head="cost", show=lambda row, ascii: "" if math.isnan(row.cost) else short(row.cost), is_number=True
    ),
)
_BETWEEN = 2  # columns of space between two of them
FORMULA = 40  # signs of a formula in the table; a longer one has its own page


def _yes(value: bool) -> str:
    return "yes" if value else "-"


def print_table(selection: Selection, console: Console | None = None) -> None:
    """The sentence and a table of the rows, in as many columns as the terminal has room for."""
    console = console or Console()
    console.print(Text(sentence(selection), style="bold"), highlight=False)
    if not selection.rows:
        return
    ascii = console.options.ascii_only
    cells = {c.head: [_cut(c.show(row, ascii), ascii) for row in selection.rows] for c in _COLUMNS}
    widths = {head: max(map(len, (head, *texts))) for head, texts in cells.items()}
    columns = list(_COLUMNS)
    while len(columns) > 1 and sum(widths[c.head] + _BETWEEN for c in columns) - _BETWEEN > console.width:
        columns.remove(max(columns, key=lambda c: c.rank))
    table = Table(box=RULED, show_edge=False, pad_edge=False, padding=(0, _BETWEEN - 1, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column.head, justify="right" if column.is_number else "left", no_wrap=True)
    for i in range(len(selection.rows)):
        table.add_row(*(Text(cells[c.head][i]) for c in columns))
    console.print()
    console.print(table)
    console.print()
    explained = "gain: std of weights times sqrt(fan_in) that keeps signals; cost: forward and backward over a copy."
    console.print(Text(explained, style="dim"), highlight=False)
    console.print(Text("One function: relume activations NAME", style="dim"), highlight=False)


def print_row(row: Activation, console: Console | None = None) -> None:
    """One function: formula, curves, numbers, what speaks for and against it, how to use it, where it comes from."""
    console = console or Console()
    for part in _parts(row, console):
        console.print(part, highlight=False, soft_wrap=isinstance(part, Text) and bool(part.no_wrap))


def _parts(row: Activation, console: Console) -> Iterator[RenderableType]:
    ascii = console.options.ascii_only
    yield Text.assemble((row.name, "bold"), f"(x) = {as_text(row.tex, ascii)}")
    if row.when:
        yield Text(row.when)
    yield Text()
    for line in _curves(row, console.width, ascii):
        yield Text(line, no_wrap=True)
    p = profile(row)
    for head, mark, sentences in (("For it", "+", strengths(p)), ("Against it", "-", weaknesses(p))):
        if sentences:
            yield Text()
            yield Text(head, style="bold")
        for one in sentences:
            yield _hanging(mark, one)
    yield Text()
    yield Text("Numbers", style="bold")
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column()
    for name, value in facts(row):
        grid.add_row(name, Text(value))
    yield Padding(grid, (0, 0, 0, 2))
    yield Text()
    yield Text("Use it", style="bold")
    tried = ["", "# on your own training, against what it has now", command(row)] if command(row) else []
    for line in [*code(row), *tried]:
        yield Text(f"  {line}".rstrip(), no_wrap=True)
    yield Text()
    yield Text.assemble(("Source  ", "dim"), row.paper)


def _cut(text: str, ascii: bool) -> str:
    more = "..." if ascii else "…"
    return text if len(text) <= FORMULA else text[: FORMULA - len(more)] + more


def _hanging(mark: str, text: str) -> RenderableType:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=1)
    grid.add_column(max_width=MOST)
    grid.add_row(mark, Text(text))
    return Padding(grid, (0, 0, 0, 2))


def _curves(row: Activation, width: int, ascii: bool) -> list[str]:
    pieces = curve(row, points=801)
    panels = []
    side_by_side = width >= WIDE
    room = min((width - 3) // 2 if side_by_side else width, MOST)
    for title, lines in (("f(x)", [(p.x, p.value) for p in pieces]), ("f'(x)", [(p.x, p.slope) for p in pieces])):
        low, high = window(row, [y for _, y in lines])
        panels.append(plot(title, lines, low, high, room, HEIGHT, ascii))
    return beside(*panels) if side_by_side else [*panels[0], "", *panels[1]]
