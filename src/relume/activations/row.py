"""What a row of the catalogue is made of, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from itertools import pairwise
from math import inf
from typing import Any, Literal, TypeVar, cast

import numpy as np

from relume.activations import card
from relume.activations.costs import cost
from relume.errors import ActivationError

T = TypeVar("T")

# How the numbers that one output reads lie in a tensor: each alone; two halves along one dimension (a gate); pieces
# side by side (maxout); each alone, with two results (CReLU); or all along one dimension (softmax).
Layout = Literal["elementwise", "halves", "pieces", "doubled", "across"]

# How far `f` and `df` of a row may be off on float32 tensors at the default parameters, for |x| <= 100, in units in the
# last place of the right result. Errors below 1e-6 count as none where terms cancel, and numbers below the smallest
# normal one, 1.2e-38, as 0.
ULPS = 8.0


# --- what a row is made of --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A number that shapes a function, under the name that torch gives it, with the values it may take (both ends in).

    `init_argument` is set where the torch module learns the number as a tensor: the constructor's name for its start.
    `derivative` is then that of the function by this number, of the input and all parameters, where torch has no
    operator that knows it.
    """

    default: float
    low: float = -inf
    high: float = inf
    init_argument: str | None = None
    derivative: Callable[..., Any] | None = None
    infinite: bool = False  # whether inf and -inf are values too: they switch something off


@dataclass(frozen=True, slots=True)
class Tail:
    """One end of a function: the limit of its derivative, and the point beyond which the derivative is exactly that.

    `knee` is None where the derivative only tends to `slope`. `slope` is NaN where it has no limit, as for a sine.
    """

    slope: float
    knee: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Activation:
    """One activation function: what it is, and what follows from that.

    `f` and `df` map float64 arrays to arrays, torch tensors to tensors, and take the parameters as keyword arguments:
    numbers, or tensors that broadcast. At a corner `df` is the derivative that torch uses there. NaN gives NaN; the
    ends at -inf and inf give the limits, and NaN where there is none. The properties describe the function at its
    default parameters; the methods take parameters.

    Most functions map one number to one. Others read several `operands` (a gate reads a value and what gates it) or
    give several `outputs`: `f` then takes so many arrays and gives a tuple, and `df` gives the tuple of all partial
    derivatives, output by output. Such a function is described along its last operand, with the others at 1, by the
    size of all its partial derivatives: `value` and `slope` are the same two functions of one number for every row.

    >>> from relume.activations import activation
    >>> row = activation("leaky_relu")
    >>> row.f(np.array([-2.0, 3.0]), negative_slope=0.5).tolist()
    [-1.0, 3.0]
    >>> row.tails(negative_slope=0.5)
    (Tail(slope=0.5, knee=0.0), Tail(slope=1.0, knee=0.0))
    """

    name: str
    module: str  # the class of the module that applies it, as a dotted name
    kept: str = ""  # relume's own class for what torch has, which keeps what torch's loses (`relume.nn.flaws`)
    layout: Layout = "elementwise"
    operands: int = 1
    outputs: int = 1
    functions: tuple[str, ...] = ()  # the callables that apply it; parameters follow the input in the order declared
    fixed: Mapping[str, str] = field(default_factory=dict)  # arguments that tell it from a row with the same names
    tex: str
    f: Callable[..., Any]
    df: Callable[..., Any]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    left: Tail | Callable[..., Tail]  # a callable where the tail depends on the parameters: read it with `tails`
    right: Tail | Callable[..., Tail]
    kinks: tuple[float, ...] | Callable[..., tuple[float, ...]] = ()  # where one formula gives way to the next
    range: tuple[float, float]  # the tightest interval that holds all values, at the default parameters
    monotone: bool  # never decreasing, at the default parameters
    ulps: float = ULPS  # bound on the error of `f` and `df` on float32 tensors
    when: str  # one sentence on when to use it
    paper: str

    def arguments(self, **parameters: float) -> dict[str, float]:
        """Every parameter of the function: the given ones, and the default for the rest.

        Raises `ActivationError` for a parameter that the function does not have, or a value outside its bounds,
        which are finite unless the row says so.
        """
        for name, value in parameters.items():
            if name not in self.parameters:
                known = ", ".join(self.parameters) or "none"
                raise ActivationError(f"{self.name} has no parameter {name!r}.\nIts parameters: {known}.")
            bounds = self.parameters[name]
            if math.isinf(value) and not bounds.infinite:
                raise ActivationError(f"{self.name}: {name} is {value!r}, but must be finite.")
            if not bounds.low <= value <= bounds.high:
                raise ActivationError(
                    f"{self.name}: {name} is {value!r}, but must lie between {bounds.low:g} and {bounds.high:g}."
                )
        return {name: float(parameters.get(name, p.default)) for name, p in self.parameters.items()}

    def value(self, x: Any, **parameters: float) -> Any:
        """The function along its last operand, the others at 1; of several outputs the first."""
        y = self.f(*self._section(x), **self.arguments(**parameters))
        return y if self.outputs == 1 else y[0]

    def slope(self, x: Any, **parameters: float) -> Any:
        """The derivative; of a function of several numbers, the root of the sum of squares of its partial ones."""
        partials = self.partials(*self._section(x), **parameters)
        return partials[0] if len(partials) == 1 else reduce(np.hypot, partials)

    def partials(self, *operands: Any, **parameters: float) -> tuple[Any, ...]:
        """The partial derivatives by every operand, output by output."""
        found = self.df(*operands, **self.arguments(**parameters))
        return found if isinstance(found, tuple) else (found,)

    def _section(self, x: Any) -> tuple[Any, ...]:
        return (*[np.ones_like(x)] * (self.operands - 1), x)

    def tails(self, **parameters: float) -> tuple[Tail, Tail]:
        """The left and the right end of the function."""
        arguments = self.arguments(**parameters)
        return _at(self.left, arguments), _at(self.right, arguments)

    def breaks(self, **parameters: float) -> tuple[float, ...]:
        """The points where one formula gives way to the next: integrate and search piece by piece."""
        return _at(self.kinks, self.arguments(**parameters))

    def corners(self, **parameters: float) -> tuple[float, ...]:
        """The points where the derivative, or the function itself, jumps."""
        arguments = self.arguments(**parameters)
        return tuple(
            x
            for x in _at(self.kinks, arguments)
            for around in [np.array([np.nextafter(x, -inf), np.nextafter(x, inf)])]
            if any(
                abs(np.diff(y)[0]) > _JUMP
                for y in (self.value(around, **arguments), *self.partials(*self._section(around), **arguments))
            )
        )

    def flat_edges(self, tolerance: float, **parameters: float) -> tuple[float, float]:
        """Where the function is flat: its slope is small for every x <= the first and every x >= the second number.

        Small means exactly zero, or less than `tolerance` times the steepest slope (where that is infinite, times the
        slope at 0). An end that is not flat gives -inf or inf. With tolerance 0 only exactly flat ends count.
        Raises `ActivationError` unless 0 <= tolerance < 1.

        >>> from relume.activations import activation
        >>> activation("relu").flat_edges(0.0)
        (0.0, inf)
        >>> [round(x, 2) for x in activation("sigmoid").flat_edges(0.01)]
        [-5.99, 5.99]
        """
        if not 0 <= tolerance < 1:
            raise ActivationError(
                f"flat_edges: tolerance is {tolerance!r}, but must lie in [0, 1): a share of a slope."
            )
        return _flat_edges(self, float(tolerance), tuple(self.arguments(**parameters).items()))

    def dead_stretches(self, **parameters: float) -> tuple[tuple[float, float], ...]:
        """Where the slope is exactly 0: from each first to each second number, from left to right.

        Flat ends reach to -inf or inf. Between them, stretches lie between breaks of the formula.

        >>> from relume.activations import activation
        >>> activation("relu6").dead_stretches()
        ((-inf, 0.0), (6.0, inf))
        >>> activation("softshrink").dead_stretches(lambd=0.2)
        ((-0.2, 0.2),)
        """
        return _dead_stretches(self, tuple(self.arguments(**parameters).items()))

    def steepest(self, **parameters: float) -> float:
        """The largest absolute slope, which is infinite for a function such as exp."""
        return _steepest(self, tuple(self.arguments(**parameters).items()))

    @property
    def can_die(self) -> bool:
        """Whether it is exactly flat somewhere, so that a unit that stays there gets no gradient at all."""
        return bool(self.dead_stretches())

    @property
    def saturates(self) -> bool:
        """Whether the slope goes to zero at an end, reached or not."""
        return any(tail.slope == 0 for tail in self.tails())

    @property
    def bounded(self) -> bool:
        """Whether all values lie in a finite interval."""
        return all(map(math.isfinite, self.range))

    @property
    def cost(self) -> float:
        """Time of forward and backward over that of a plain copy, as measured once (`relume.activations.costs`)."""
        return cost(self.name)

    @property
    def learnable(self) -> bool:
        """Whether a parameter is learnt with the weights."""
        return any(p.init_argument for p in self.parameters.values())

    @property
    def gated(self) -> bool:
        """Whether one half of the inputs decides how much of the other half passes."""
        return self.layout == "halves"

    @property
    def smooth(self) -> bool:
        """Whether function and derivative are continuous."""
        return not self.corners()

    @property
    def zero_centred(self) -> bool:
        """Whether the mean output is 0 for standard normal inputs."""
        return abs(self.mean) < 1e-6

    @property
    def max_slope(self) -> float:
        """The largest absolute slope."""
        return self.steepest()

    @property
    def mean(self) -> float:
        """The mean output for standard normal inputs."""
        return _normal_moments(self)[0]

    @property
    def second_moment(self) -> float:
        """The mean squared output for standard normal inputs."""
        return _normal_moments(self)[1]

    def __str__(self) -> str:
        return card.text(self)

    def _repr_html_(self) -> str:
        """What a notebook shows for the row: formula, picture and facts."""
        return card.html(self)


# --- what is derived from a row ---------------------------------------------------------------------------------------

_JUMP = 1e-8  # softplus jumps by 2e-9 where torch goes over to the straight line; that is no corner


def _at(value: T | Callable[..., T], arguments: Mapping[str, float]) -> T:
    return cast(T, value(**arguments) if callable(value) else value)


def _grid(row: Activation, arguments: Mapping[str, float]) -> np.ndarray:
    """Points that grow away from 0 and from every kink at a steady rate, so that no scale of a parameter is missed."""
    away = 2.0 ** np.arange(-20, 31, 1 / 64)
    kinks = _at(row.kinks, arguments)
    parts = [
        np.concatenate([c - away, [np.nextafter(c, -inf), c, np.nextafter(c, inf)], c + away]) for c in (0, *kinks)
    ]
    return np.unique(np.concatenate(parts))


@lru_cache(maxsize=4096)
def _steepest(row: Activation, items: tuple[tuple[str, float], ...]) -> float:
    arguments = dict(items)
    tails = row.tails(**arguments)
    if any(math.isinf(tail.slope) for tail in tails):
        return inf
    x = _grid(row, arguments)
    found = [abs(tail.slope) for tail in tails if not math.isnan(tail.slope)]
    for _ in range(5):  # each round looks closer around the steepest point of the one before
        slopes = np.abs(row.slope(x, **arguments))
        top = int(np.argmax(slopes))
        found.append(float(slopes[top]))
        x = np.linspace(x[max(top - 1, 0)], x[min(top + 1, len(x) - 1)], 1001)
    return max(found)


@lru_cache(maxsize=4096)
def _flat_edges(row: Activation, tolerance: float, items: tuple[tuple[str, float], ...]) -> tuple[float, float]:
    arguments = dict(items)
    left, right = row.tails(**arguments)
    if tolerance == 0:
        return (
            left.knee if left.slope == 0 and left.knee is not None else -inf,
            right.knee if right.slope == 0 and right.knee is not None else inf,
        )
    scale = _steepest(row, items)
    if math.isinf(scale):
        scale = abs(float(row.slope(np.float64(0.0), **arguments)))

    def flat(x: Any) -> Any:
        slope = np.abs(row.slope(x, **arguments))
        return (slope < tolerance * scale) | (slope == 0)

    def edge(x: np.ndarray) -> float:
        """From a flat end of x inwards, the last point before the first that is not flat."""
        steep = ~flat(x)
        first = int(np.argmax(steep))
        if first == 0:
            return float(np.sign(x[0]) * inf)
        inside, outside = float(x[first - 1]), float(x[first])
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if flat(np.float64(middle)) else (inside, middle)
        return inside

    x = _grid(row, arguments)
    return (
        -inf if math.isnan(left.slope) else edge(x),
        inf if math.isnan(right.slope) else edge(x[::-1]),
    )


@lru_cache(maxsize=4096)
def _dead_stretches(row: Activation, items: tuple[tuple[str, float], ...]) -> tuple[tuple[float, float], ...]:
    arguments = dict(items)
    low, high = row.flat_edges(0.0, **arguments)
    found = [(-inf, low)] if low > -inf else []
    for stretch in pairwise(sorted(filter(math.isfinite, row.breaks(**arguments)))):
        if low <= stretch[0] < stretch[1] <= high and not np.any(
            row.slope(np.linspace(*stretch, 7)[1:-1], **arguments)
        ):
            found.append(stretch)
    return (*found, (high, inf)) if high < inf else tuple(found)


def normal_rule(centres: tuple[float, ...] = (), q: float = 1.0, finer: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Points x and weights w such that sum(w g(x)) is the mean of g(x) for x ~ N(0, q).

    Gauss-Legendre panels, split at the centres and shrinking towards them and towards 0, so that kinks and functions
    much narrower than the normal density lose no digits. Where the density counts, panels are at most 1 / `finer`
    standard deviations wide, for functions that turn many times within one.
    """
    width = math.sqrt(q)
    finest = -16 - max(0, math.ceil(math.log2(width)))
    away = 2.0 ** np.arange(finest, 6)
    around = [np.concatenate([m - away, [m], m + away]) for m in (0.0, *(c / width for c in centres))]
    steady = [np.arange(-37, 38), np.arange(-9 * finer, 9 * finer + 1) / finer]
    edges = np.unique(np.clip(np.concatenate([*steady, *around]), -37, 37))  # beyond, the density is 0
    z, w = panels(edges[None, :], nodes=20)
    return width * z.ravel(), w.ravel()


def normal_points(operands: int, centres: tuple[float, ...] = (), q: float = 1.0) -> tuple[Any, np.ndarray]:
    """Points, an array for each operand, and weights: sum(w g(*points)) is the mean of g for independent N(0, q).

    One operand gives `normal_rule`. For two, panels shrink towards 0 as the normal grows wide, and those of the second
    also towards the first, so that a maximum or a softmax of both keeps its digits. Raises `ActivationError` for more.
    """
    if operands == 1:
        x, w = normal_rule(centres, q)
        return (x,), w
    if operands != 2:
        raise ActivationError(f"means over {operands} operands are not known; there are rules for 1 and 2.")
    width = math.sqrt(q)
    away = shrinking(width)
    fixed = np.unique(np.concatenate([np.arange(-9.0, 10.0), away, -away]))
    a, w_a = panels(fixed[None, :], nodes=12)
    own = np.clip(a.reshape(-1, 1) + np.concatenate([-away, [0.0], away]), -9, 9)
    edges = np.concatenate([np.broadcast_to(fixed, (a.size, fixed.size)), own], axis=1)
    b, w_b = panels(np.sort(edges, axis=1), nodes=12)
    first = np.broadcast_to(a.reshape(-1, 1), b.shape)
    return (width * first.ravel(), width * b.ravel()), (w_a.reshape(-1, 1) * w_b).ravel()


def panels(edges: np.ndarray, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes, and weights times the standard normal density, between neighbouring edges of each row."""
    at, weights = _legendre(nodes)
    half = np.diff(edges, axis=1)[:, :, None] / 2
    z = (edges[:, :-1, None] + half + half * at).reshape(len(edges), -1)
    return z, (half * weights).reshape(len(edges), -1) * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def shrinking(width: float) -> np.ndarray:
    """Distances from a centre, in standard deviations, down to where a function of unit scale is smooth."""
    return 2.0 ** -np.arange(max(0, math.ceil(math.log2(width))) + 1) if width > 1 else np.array([])


@lru_cache(maxsize=4)
def _legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(nodes)


@lru_cache(maxsize=1024)
def _normal_moments(row: Activation) -> tuple[float, float]:
    arguments = row.arguments()
    x, w = normal_points(row.operands, _at(row.kinks, arguments))
    y = row.f(*x, **arguments)
    outputs = y if isinstance(y, tuple) else (y,)
    return sum(float(w @ v) for v in outputs) / row.outputs, sum(float(w @ (v * v)) for v in outputs) / row.outputs
