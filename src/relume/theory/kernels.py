"""The mean product of what a function gives for two inputs: E[f(u1) f(u2)] for normal u1 and u2 that are correlated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from relume.activations import Activation
from relume.activations.row import panels, shrinking
from relume.errors import RelumeError
from relume.theory.moments import second_moments

_REACH = 9  # standard deviations; beyond, the normal density is below 1e-18
_NODES = 8  # a panel, which is at most one standard deviation wide
_CLOSEST = 10  # panels shrink to 2^-10 around kinks, where close inputs make a step of the inner mean
_FINEST = 8  # panels to a standard deviation, at which a mean over two numbers still takes under a second
_RESOLVED = 1e-7  # relative: what a rule may miss of a mean square that is known
_SILENT = 6.0  # standard deviations; a function flat so far around 0 is all but never anywhere else
_SAME = 1e-12  # relative: numbers are equal within rounding

# Operands at which the structure of a function of two numbers is read.
_PROBES = np.array([-3.1, -1.7, -0.4, 0.3, 0.9, 2.6])


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A function brought back to functions of one number, and with it E[f(u1) f(u2)].

    With `gate`, f(a, b) is a g(b), and the mean is E[a1 a2] E[g g]. Else f(a, b) is `shift` (a + b) / 2 + g(a - b),
    where sum and difference are independent and a - b has `spread` = 2 times the variance of a; a function of one
    number is g itself. With several outputs it is the mean over them.
    """

    row: Activation
    arguments: dict[str, float]
    g: tuple[Callable[[Any], Any], ...]
    dg: tuple[Callable[[Any], Any], ...]
    kinks: tuple[float, ...]
    gate: bool = False
    shift: float = 0.0
    spread: float = 1.0

    def mean(self, c: float, q1: float, q2: float, finer: int = 1) -> float:
        """E[f(u1) f(u2)] for operands of variances q1 and q2 and correlation c, on panels 1 / finer wide."""
        both = c * math.sqrt(q1 * q2)
        alone = self._mean(self.g, c, q1, q2, finer)
        return both * alone if self.gate else self.shift**2 * both / 2 + alone

    def slope(self, c: float, q1: float, q2: float, finer: int = 1) -> float:
        """The derivative of `mean` by c."""
        scale = math.sqrt(q1 * q2)
        alone = self.spread * scale * self._mean(self.dg, c, q1, q2, finer)
        if self.gate:
            return scale * self._mean(self.g, c, q1, q2, finer) + c * scale * alone
        return self.shift**2 * scale / 2 + alone

    def _mean(self, parts: tuple[Callable[[Any], Any], ...], c: float, q1: float, q2: float, finer: int) -> float:
        with np.errstate(over="ignore", invalid="ignore"):  # exp outgrows the floats
            means = [_product_mean(g, self.kinks, c, self.spread * q1, self.spread * q2, finer) for g in parts]
        return sum(means) / len(means)

    def resolution(self, q: float) -> int:
        """How fine panels must be at this variance; 0 where the function is flat, and 0, for all but every input.

        Two equal inputs decide: their mean product is the mean square, which is known. Raises `RelumeError` where
        no panels are fine enough, or what counts lies beyond all of them.
        """
        second = second_moments(self.row, q, self.arguments)[0]
        finer = 1
        while finer <= _FINEST:
            if math.isfinite(second) and abs(self.mean(1.0, q, q, finer) - second) <= _RESOLVED * second:
                return finer if second else 0
            finer *= 2
        around = _SILENT * math.sqrt(q)
        stretches = self.row.dead_stretches(**self.arguments)
        if any(low <= -around and around <= high for low, high in stretches) and self.row.value(0.0) == 0:
            return 0
        raise RelumeError(
            f"correlations of {self.row.name} are not known at q = {q:g}: it turns too often there, or most of "
            f"its mean square, {second:g}, lies beyond {_REACH} standard deviations.\nGive smaller variances."
        )


def kernel(row: Activation, arguments: dict[str, float]) -> Kernel:
    """The function brought back to functions of one number; `RelumeError` where its structure is not known."""
    kinks = row.breaks(**arguments)
    if row.operands == 1:

        def output(index: int) -> Callable[[Any], Any]:
            return lambda x: _tuple(row.f(x, **arguments))[index]

        def partial(index: int) -> Callable[[Any], Any]:
            return lambda x: row.partials(x, **arguments)[index]

        outputs = range(row.outputs)
        return Kernel(
            row=row, arguments=arguments, kinks=kinks, g=tuple(map(output, outputs)), dg=tuple(map(partial, outputs))
        )
    if (row.operands, row.outputs) == (2, 1):
        a, b = (part.ravel() for part in np.meshgrid(_PROBES, _PROBES))
        found = row.f(a, b, **arguments)
        if _equal(found, a * row.f(np.ones_like(b), b, **arguments)):
            return Kernel(
                row=row, arguments=arguments, kinks=kinks, gate=True,
                g=(lambda x: row.f(np.ones_like(x), x, **arguments),),
                dg=(lambda x: row.partials(np.ones_like(x), x, **arguments)[1],),
            )  # fmt: skip

        def across(d: Any) -> Any:
            return row.f(d / 2, -d / 2, **arguments)

        def slope_across(d: Any) -> Any:
            first, second = row.partials(d / 2, -d / 2, **arguments)
            return (first - second) / 2

        for shift in (0.0, 1.0):
            if _equal(found, shift * (a + b) / 2 + across(a - b)):
                return Kernel(
                    row=row, arguments=arguments, g=(across,), dg=(slope_across,), kinks=(0.0,), shift=shift, spread=2.0
                )
    raise RelumeError(
        f"correlations of {row.name}, which reads {row.operands} numbers and gives {row.outputs}, are not known: it is "
        "neither a f(b) nor a sum and a function of the difference.\nmoments, chi and propagate take it."
    )


def _tuple(found: Any) -> tuple[Any, ...]:
    return found if isinstance(found, tuple) else (found,)


def _equal(found: Any, expected: Any) -> bool:
    return bool(np.allclose(found, expected, rtol=_SAME, atol=_SAME))


def _product_mean(
    g: Callable[[Any], Any], kinks: tuple[float, ...], c: float, q1: float, q2: float, finer: int
) -> float:
    """E[g(u1) g(u2)] for normal u1 and u2 of variances q1 and q2 and correlation c; g has its breaks at the kinks.

    u2 is c u1 and something independent. The mean over that is taken piece by piece between the breaks, and so is, on
    panels that shrink towards the breaks, the mean over u1: there the inner mean turns as quickly as u2 - c u1 is
    narrow.
    """
    rest = math.sqrt(max(0.0, (1 - c) * (1 + c)))
    width1, width2 = math.sqrt(q1), math.sqrt(q2)
    turns = [k / width1 for k in kinks] + ([k / (c * width2) for k in kinks] if c else [])
    away = 2.0 ** -np.arange(_CLOSEST + 1)
    wide = shrinking(max(width1, width2))
    steady = np.arange(-_REACH * finer, _REACH * finer + 1) / finer
    outer = [steady, wide, -wide, *(m + s * away for m in turns for s in (-1, 1)), turns]
    edges = np.unique(np.clip(np.concatenate(outer), -_REACH, _REACH))
    z, w = (part.ravel() for part in panels(edges[None, :], _NODES))
    first = g(width1 * z)
    if rest == 0:
        return float(w @ (first * g(math.copysign(width2, c) * z)))

    centres = np.unique([0.0, *(k / width2 for k in kinks)])
    points = np.unique(np.concatenate([centres, *(m + s * wide for m in centres for s in (-1, 1))]))
    moving = (points[None, :] - c * z[:, None]) / rest
    fixed = np.broadcast_to(steady, (z.size, steady.size))
    inner = np.sort(np.clip(np.concatenate([fixed, moving], axis=1), -_REACH, _REACH), axis=1)
    y, v = panels(inner, _NODES)
    second = (g(width2 * (c * z[:, None] + rest * y)) * v).sum(axis=1)
    return float(w @ (first * second))
