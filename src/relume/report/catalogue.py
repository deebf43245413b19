"""What is said of one function of the catalogue: its numbers, what speaks for and against it, and how to use it.

Sentences are derived from numbers by two tables of rules, so that nothing is praised or blamed by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from relume.activations import Activation, Tail, activation
from relume.activations.card import bounds, end, interval, number
from relume.activations.costs import saved_bytes
from relume.activations.flaws import FLAWS
from relume.activations.notation import as_text
from relume.recording import to_json as plain
from relume.report.numerals import number as short
from relume.theory import Moments, critical, moments, propagate

# --- thresholds -------------------------------------------------------------------------------------------------------

DEPTH = 30  # layers of the network that sentences speak of: deep enough that a factor a layer shows
XAVIER = 1.0  # variance of the weights times fan_in at Xavier's scale, for square layers (Glorot & Bengio 2010)
WITHIN = 10.0  # a gradient is kept where its size changes by less than this factor over DEPTH layers
OFF_CENTRE = 0.1  # mean output for N(0, 1) from which a function counts as off-centre: a fifth of sigmoid's
NEGLIGIBLE = 0.01  # of the steepest slope: below, a unit counts as saturated
UNEVEN = 1.0  # isometry of ReLU, which no initialisation makes an isometry (Pennington, Schoenholz & Ganguli 2017)
DEAR = 2.0  # times relu's cost
SAME_COST = 1.2
FLOAT16 = 2.0**-25  # half of float16's smallest number: what is smaller becomes 0


# --- the record -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A parameter as a user may set it."""

    default: float
    low: float
    high: float
    learned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One function with all its numbers, plain values only. Means and gains are for standard normal inputs."""

    name: str
    module: str
    formula: str
    tex: str
    layout: str
    operands: int
    outputs: int
    parameters: Mapping[str, Setting]
    range: tuple[float, float]
    left: Tail
    right: Tail
    corners: tuple[float, ...]
    monotone: bool
    smooth: bool
    bounded: bool
    zero_centred: bool
    can_die: bool
    saturates: bool
    gated: bool
    learnable: bool
    mean: float
    second_moment: float
    moments: Moments
    max_slope: float  # the Lipschitz constant
    gradient_at_xavier: float  # size of the gradient at the first of DEPTH layers over that at the last
    cost: float  # forward and backward over a plain copy; NaN where it was not measured
    relu_cost: float
    dead_below: float  # the slope is exactly 0 up to here, -inf where it is not
    dead_above: float
    flat_below: float  # the slope is NEGLIGIBLE up to here
    flat_above: float
    flat_inside: tuple[float, float] | None  # between its ends the slope is exactly 0 from here to there
    float16_below: float  # the slope rounds to 0 in float16 up to here
    float16_above: float
    when: str
    kept: str
    paper: str


@lru_cache(maxsize=256)
def profile(row: Activation) -> Profile:
    """Everything that is known of a function.

    >>> profile(activation("relu")).dead_below
    0.0
    """
    left, right = row.tails()
    dead, flat = row.flat_edges(0.0), row.flat_edges(NEGLIGIBLE)
    steepest = row.max_slope
    fine = row.flat_edges(FLOAT16 / steepest) if math.isfinite(steepest) and steepest > 0 else dead
    return Profile(
        name=row.name,
        module=row.module,
        formula=as_text(row.tex),
        tex=row.tex,
        layout=row.layout,
        operands=row.operands,
        outputs=row.outputs,
        parameters={
            name: Setting(default=p.default, low=p.low, high=p.high, learned=p.init_argument is not None)
            for name, p in row.parameters.items()
        },
        range=row.range,
        left=left,
        right=right,
        corners=row.corners(),
        monotone=row.monotone,
        smooth=row.smooth,
        bounded=row.bounded,
        zero_centred=row.zero_centred,
        can_die=row.can_die,
        saturates=row.saturates,
        gated=row.gated,
        learnable=row.learnable,
        mean=row.mean,
        second_moment=row.second_moment,
        moments=moments(row),
        max_slope=steepest,
        gradient_at_xavier=propagate(row, DEPTH, XAVIER).gradient_ratio,
        cost=row.cost,
        relu_cost=activation("relu").cost,
        dead_below=dead[0],
        dead_above=dead[1],
        flat_below=flat[0],
        flat_above=flat[1],
        flat_inside=next((s for s in row.dead_stretches() if all(map(math.isfinite, s))), None),
        float16_below=fine[0],
        float16_above=fine[1],
        when=row.when,
        kept=row.kept,
        paper=row.paper,
    )


# --- what speaks for it, and against it -------------------------------------------------------------------------------

# Each rule gives a sentence with the number that decided it, or none. In the order in which a reader should meet them.
Rule = Callable[[Profile], str]


def _where(below: float, above: float) -> str:
    """ "x <= 0", "x <= -3 and x >= 3"; empty where there is neither."""
    parts = [f"x <= {number(below)}"] * math.isfinite(below) + [f"x >= {number(above)}"] * math.isfinite(above)
    return " and ".join(parts)


def _over_depth(chi: float) -> float:
    """How the size of a gradient changes over DEPTH layers with this factor on its mean square."""
    return chi ** ((DEPTH - 1) / 2)


def _kept(ratio: float) -> bool:
    return 1 / WITHIN <= ratio <= WITHIN


def _fold(ratio: float) -> str:
    """ "shrink to 1e-17 of their size", "grow 11-fold"."""
    if ratio == 0:
        return "vanish altogether"
    return f"shrink to {short(ratio)} of their size" if ratio < 1 else f"grow {short(ratio)}-fold"


def _steady(ratio: float) -> str:
    """ "stay within a factor 2.7", "keep their size"."""
    factor = max(ratio, 1 / ratio)
    return "keep their size" if factor < 1.05 else f"stay within a factor {short(factor)}"


def _dies(p: Profile) -> str:
    where = _where(p.dead_below, p.dead_above)
    return f"Units can die: the slope is exactly 0 for {where}." if where else ""


def _saturates(p: Profile) -> str:
    where = _where(
        p.flat_below if math.isinf(p.dead_below) else -math.inf, p.flat_above if math.isinf(p.dead_above) else math.inf
    )
    return f"Saturates: the slope is under 1 % of its steepest for {where}." if p.saturates and where else ""


def _off_centre(p: Profile) -> str:
    off = math.isfinite(p.mean) and abs(p.mean) >= OFF_CENTRE
    return f"Off-centre: mean {p.mean:.2f} for standard normal inputs." if off else ""


def _vanishes(p: Profile) -> str:
    ratio = p.gradient_at_xavier
    if math.isnan(ratio) or _kept(ratio):
        return ""
    if not math.isfinite(ratio):
        return f"Through {DEPTH} layers at Xavier's scale signals outgrow the floats."
    return f"Through {DEPTH} layers at Xavier's scale gradients {_fold(ratio)}."


def _layer_norm_does_not_cure(p: Profile) -> str:
    if not math.isfinite(p.moments.chi_ln) or _kept(_over_depth(p.moments.chi_ln)):
        return ""
    chi = p.moments.chi_ln
    if chi < 1 and p.gradient_at_xavier < 1 / WITHIN:
        return f"LayerNorm before it does not cure that: squared gradients shrink to {short(chi, 3)} a layer."
    return (
        f"At its own gain, or with LayerNorm before it, gradients {_fold(_over_depth(chi))} through {DEPTH} layers: "
        f"squared, {short(chi, 3)}-fold a layer."
    )


def _batch_norm_does_not_cure(p: Profile) -> str:
    if not math.isfinite(p.moments.chi_bn) or _kept(_over_depth(p.moments.chi_bn)):
        return ""
    chi = p.moments.chi_bn
    return (
        f"With BatchNorm before it gradients {_fold(_over_depth(chi))} through {DEPTH} layers: "
        f"squared, {short(chi, 3)}-fold a layer."
    )


def _uneven(p: Profile) -> str:
    if not p.moments.isometry >= UNEVEN - 1e-9:
        return ""
    isometry = short(p.moments.isometry)
    return f"Gradients shrink unevenly: isometry {isometry} for standard normal inputs, 0 for a linear function."


def _has_corner(p: Profile) -> str:
    places = " and ".join(map(number, p.corners))
    return f"Not smooth: a corner or jump at {places}, where second derivatives fail." if p.corners else ""


def _turns(p: Profile) -> str:
    return "" if p.monotone else "Not monotone: somewhere a larger input gives a smaller output."


def _steep(p: Profile) -> str:
    return "Its slope has no bound: one large input can blow up the network." if math.isinf(p.max_slope) else ""


def _dear(p: Profile) -> str:
    return f"Costs {short(p.cost)} plain copies; relu {short(p.relu_cost)}." if p.cost > DEAR * p.relu_cost else ""


def _float16(p: Profile) -> str:
    where = _where(
        p.float16_below if math.isinf(p.dead_below) else -math.inf,
        p.float16_above if math.isinf(p.dead_above) else math.inf,
    )
    return f"In float16 its slope rounds to 0 for {where}." if where else ""


def _wide(p: Profile) -> str:
    widens = p.operands > 1 and p.layout != "across"  # softmax gives as many numbers as it reads
    return f"Reads {p.operands} numbers for each it gives: the layer before must be as much wider." if widens else ""


def _no_flat_end(p: Profile) -> str:
    slopes = (abs(p.left.slope), abs(p.right.slope))
    least = min(slopes)
    return (
        ""
        if p.saturates or any(map(math.isnan, slopes))
        else f"Neither end is flat: far out the slope is still {number(least)}."
    )


def _flat_middle(p: Profile) -> str:
    if p.flat_inside is None:
        return ""
    low, high = map(number, p.flat_inside)
    return f"Units can die: the slope is exactly 0 from {low} to {high}."


def _never_exactly_flat(p: Profile) -> str:
    return "No end is exactly flat: a unit that saturates keeps some gradient." if p.saturates and not p.can_die else ""


def _centred(p: Profile) -> str:
    return "Zero-centred: mean 0 for standard normal inputs." if p.zero_centred else ""


def _self_normalising(p: Profile) -> str:
    kept = p.zero_centred and abs(p.second_moment - 1) < 1e-3
    return "Self-normalising: standard normal inputs give mean 0 and mean square 1." if kept else ""


def _keeps_at_xavier(p: Profile) -> str:
    ratio = p.gradient_at_xavier
    if not _kept(ratio):
        return ""
    return f"Through {DEPTH} layers at Xavier's scale gradients {_steady(ratio)}."


def _keeps_at_own_gain(p: Profile) -> str:
    if math.isinf(p.max_slope) or not _kept(_over_depth(p.moments.chi_ln)):
        return ""
    gain, change = short(p.moments.gain_forward, 3), _steady(_over_depth(p.moments.chi_ln))
    return f"At its own gain, {gain}, or with LayerNorm before it, gradients {change} through {DEPTH} layers."


def _keeps_with_batch_norm(p: Profile) -> str:
    if not _kept(_over_depth(p.moments.chi_bn)):
        return ""
    return f"With BatchNorm before it gradients {_steady(_over_depth(p.moments.chi_bn))} through {DEPTH} layers."


def _bounded(p: Profile) -> str:
    return f"Bounded: outputs stay within {' and '.join(map(number, p.range))}." if p.bounded else ""


def _smooth(p: Profile) -> str:
    return "" if p.corners else "Smooth: function and slope are continuous."


def _lipschitz(p: Profile) -> str:
    return f"Its slope never exceeds {number(p.max_slope)}." if p.max_slope <= 1 + 1e-9 else ""


def _cheap(p: Profile) -> str:
    cheap = p.name != "relu" and p.cost <= SAME_COST * p.relu_cost
    return f"Costs about what relu costs: {short(p.cost)} plain copies against {short(p.relu_cost)}." if cheap else ""


def _learns_shape(p: Profile) -> str:
    learned = [f"{name} from {number(s.default)}" for name, s in p.parameters.items() if s.learned]
    return f"Training shapes it: {' and '.join(learned)}." if learned else ""


STRENGTHS: tuple[Rule, ...] = (
    _no_flat_end,
    _never_exactly_flat,
    _self_normalising,
    _centred,
    _keeps_at_xavier,
    _keeps_at_own_gain,
    _keeps_with_batch_norm,
    _bounded,
    _smooth,
    _lipschitz,
    _cheap,
    _learns_shape,
)
WEAKNESSES: tuple[Rule, ...] = (
    _dies,
    _flat_middle,
    _saturates,
    _off_centre,
    _vanishes,
    _layer_norm_does_not_cure,
    _batch_norm_does_not_cure,
    _uneven,
    _has_corner,
    _turns,
    _steep,
    _dear,
    _float16,
    _wide,
)


def strengths(p: Profile) -> list[str]:
    """What speaks for the function, most telling first.

    >>> strengths(profile(activation("leaky_relu")))[0]
    'Neither end is flat: far out the slope is still 0.01.'
    """
    return [sentence for rule in STRENGTHS if (sentence := rule(p))]


def weaknesses(p: Profile) -> list[str]:
    """What speaks against the function, most telling first.

    >>> weaknesses(profile(activation("relu")))[0]
    'Units can die: the slope is exactly 0 for x <= 0.'
    """
    return [sentence for rule in WEAKNESSES if (sentence := rule(p))]


def to_json(row: Activation) -> dict[str, Any]:
    """The profile as plain values for `json.dumps`, with what speaks for and against the function."""
    p = profile(row)
    return {
        **plain(p),
        "strengths": strengths(p),
        "weaknesses": weaknesses(p),
        "code": "\n".join(code(row)),
        "command": command(row),
    }


# --- facts by name, and code ------------------------------------------------------------------------------------------


def cost(p: Profile) -> str:
    """ "2.9 plain copies", or that nobody measured."""
    return "not measured" if math.isnan(p.cost) else f"{short(p.cost)} plain copies (relu {short(p.relu_cost)})"


def along(row: Activation) -> str:
    """What the curves of a function of several numbers show; empty for a function of one."""
    if row.operands == 1:
        return ""
    if row.layout == "across":
        return "of the first of two outputs, along the other one's input; so are the numbers"
    return "along the last operand, the others at 1; the slope is the size of all partial derivatives"


def facts(row: Activation) -> list[tuple[str, str]]:
    """Names and values for the list of numbers, as text."""
    p, m = profile(row), profile(row).moments
    found = [("curves", along(row))] * bool(along(row))
    found += [
        (name, f"{s.default:.6g}, {bounds(row.parameters[name])}{', learned' if s.learned else ''}")
        for name, s in p.parameters.items()
    ]
    found += [
        ("range", interval(row)),
        ("slope at the ends", f"left {end(p.left)}, right {end(p.right)}"),
        ("steepest slope", f"{number(p.max_slope)} (its Lipschitz constant)"),
        ("mean for N(0, 1)", number(round(p.mean, 12))),
        ("mean square", number(p.second_moment)),
    ]
    found += [
        ("gain, forward", f"{number(m.gain_forward)}: std of weights times sqrt(fan_in) that keeps signals"),
        ("gain, backward", f"{number(m.gain_backward)}: the same for gradients, with fan_out"),
        ("chi, LayerNorm", f"{number(m.chi_ln)} a layer on the squared gradient; 1 keeps it"),
        ("chi, BatchNorm", _chi_bn(m.chi_bn)),
        ("isometry", f"{number(m.isometry)}: how unevenly gradients shrink; 0 for a linear function"),
        ("critical point", _critical(row)),
    ]
    found.append(("cost", cost(p)))
    if not math.isnan(kept := saved_bytes(row.name)):
        found.append(("memory", f"backward keeps {short(kept)} bytes for each float32 of the input"))
    if row.name in FLAWS:
        kept = f"; {p.kept} has none of that" if p.kept else ""
        found.append(("numerics", f"{p.module} in float32: {', '.join(FLAWS[row.name])}{kept}"))
    return found


def _chi_bn(chi: float) -> str:
    if math.isnan(chi):
        return "not known: samples differ too much in size where a function outgrows lines"
    return f"{number(chi)} a layer on the squared gradient; 1 keeps it"


def _critical(row: Activation) -> str:
    """The scale of weights and biases at which signal and gradient keep their size, for pre-activations with q = 1."""
    point = critical(row)
    if point.why_not:
        return point.why_not.partition(" has ")[2].rstrip(".").replace("no critical point", "none", 1)
    held = "" if point.slope <= 1 + 1e-9 else "; the variance does not hold itself there"
    return f"sigma_w {number(math.sqrt(point.sigma_w2))}, sigma_b {number(math.sqrt(point.sigma_b2))} at q = 1{held}"


def code(row: Activation) -> list[str]:
    """Lines of Python: the module, and, unless it wants layers of another width, a trial of it in a network."""
    home, _, name = row.module.rpartition(".")
    arguments = [f"{key}={value!r}" for key, value in row.fixed.items()]
    arguments += [f"{p.init_argument or key}={p.default:.6g}" for key, p in row.parameters.items()]
    layer = [f"from {home} import {name}", f"layer = {name}({', '.join(arguments)})"]
    if row.layout != "elementwise":
        return layer
    return [
        *layer,
        "",
        "# in place of the activations of a network that is there",
        "import relume",
        "from relume.remedies import swap_to",
        f'treated = relume.treat(model, optimizer, swap_to("{row.name}"))',
    ]


def command(row: Activation) -> str:
    """The command that tries the function on a reader's own training; empty where it wants layers of another width."""
    return f"relume compare FILE:NAME --activation {row.name}" if row.layout == "elementwise" else ""
