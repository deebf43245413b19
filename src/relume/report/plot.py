"""Curves in a terminal: dots of Braille signs, or ASCII where the encoding has no others. No colour is needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from relume.activations.card import number

# Bits of the eight dots of a Braille sign, by row and column (Unicode 15, section 21.1).
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
_UNICODE, _ASCII = (
    {"side": "│", "base": "└", "line": "─", "zero": "·"},
    {"side": "|", "base": "+", "line": "-", "zero": "."},
)
_FINE = 8  # points looked at for each dot across, so that steep curves have no holes


def plot(
    title: str,
    pieces: Sequence[tuple[np.ndarray, np.ndarray]],
    low: float,
    high: float,
    width: int,
    height: int,
    ascii: bool = False,
) -> list[str]:
    """Lines of text: a title, `height` lines with the curve, the axis and its numbers; `width` columns at most.

    `pieces` are x and y of each part of the curve; between parts no line is drawn. Values outside of `low` to `high`
    and NaN are left out. A dotted line marks y = 0; x = 0 is in the middle.
    """
    signs = _ASCII if ascii else _UNICODE
    labels = {0: number(float(f"{high:.2g}")), height - 1: number(float(f"{low:.2g}"))}
    zero = round((high / (high - low)) * (height - 1))
    if zero not in labels:
        labels[zero] = "0"
    margin = max(map(len, labels.values()))
    across = width - margin - 1
    left, right = float(pieces[0][0][0]), float(pieces[-1][0][-1])

    rows, columns = (height, across) if ascii else (4 * height, 2 * across)
    dots = np.zeros((rows, columns), dtype=bool)
    for x, y in pieces:
        fine = np.linspace(x[0], x[-1], max(2, int(_FINE * columns * (x[-1] - x[0]) / (right - left))))
        values = np.interp(fine, x, y)
        shown = (values >= low - 1e-9) & (values <= high + 1e-9)
        column = np.round((fine[shown] - left) / (right - left) * (columns - 1)).astype(int)
        row = np.round((high - values[shown]) / (high - low) * (rows - 1)).astype(int)
        dots[row, column] = True

    lines = [f"{'':{margin + 1}}{title}"]
    for i in range(height):
        empty = signs["zero"] if i == zero and low < 0 else " "
        cells = dots[i] if ascii else _braille(dots[4 * i : 4 * i + 4])
        body = "".join(("*" if ascii else chr(0x2800 + int(c))) if c else empty for c in cells)
        lines.append(f"{labels.get(i, ''):>{margin}}{signs['side']}{body}".rstrip())
    lines.append(f"{'':{margin}}{signs['base']}{signs['line'] * (across - 1)}")
    first, last = number(left), number(right)
    numbers = f"{first}{'0':>{(across + 1) // 2 - len(first)}}"
    lines.append(f"{'':{margin + 1}}{numbers}{last:>{across - len(numbers)}}")
    return lines


def _braille(block: np.ndarray) -> list[int]:
    """The code of each sign in one line: four rows of dots, two columns each."""
    return [int((_DOTS * block[:, i : i + 2]).sum()) for i in range(0, block.shape[1], 2)]


def beside(left: Sequence[str], right: Sequence[str], gap: int = 3) -> list[str]:
    """Two pictures next to each other."""
    width = max(map(len, left)) + gap
    return [f"{a:{width}}{b}".rstrip() for a, b in zip(left, right, strict=True)]
