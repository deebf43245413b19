"""Experiments on dead units: what kills them, what prevents it, and what brings them back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from relume.activations import activation
from relume.claims.judging import Answer, answer, dots, exact, fact, geometric, judge, said
from relume.claims.lab import Lab, steps_to_learn
from relume.claims.networks import Lesson, Parameters, Recipe, born_dead, revive
from relume.claims.record import Figure, Finding
from relume.theory import born_dead_chance
from relume.verdicts import EASED, Difference, mean_interval

HIGH, LOW = 0.03, 0.003  # Adam's learning rates: the first is that of `relume demo`, ten times what the task wants
AFTERWARDS = {"Adam": ("adam", LOW), "SGD": ("sgd", 0.03)}  # how a network with dead units is trained on
MANY_DEAD = 0.05  # share of all units: a deep network has a few at its start
SPEED_KEPT = 1 / 1.1  # a mixture may need a tenth more steps than the faster of its parts


def relu_dies(lab: Lab, name: str = "relu") -> Finding:
    """The slope for negative inputs, the dead units after training too fast, and who comes back when it is slower."""
    zero = float(activation(name).slope(-1.0)) == 0
    (lessons,) = lab.lessons(_ill(lab, activations=(name,)))
    share = mean_interval([lesson.dead for lesson in lessons])
    stays = {f"stay dead with {way}": _stay_dead(lab, name, way) for way in AFTERWARDS}
    verdict, on = judge(
        {
            "gradient 0 for x < 0": fact(zero),
            "units die": answer(share, MANY_DEAD),
            **{way: answer(value, 1 - EASED) for way, value in stays.items()},
        }
    )
    return Finding(
        verdict=verdict,
        because=f"The slope at -1 is {float(activation(name).slope(-1.0)):.2g}. Adam at {HIGH:g} leaves "
        f"{said(share, 2)} of the units dead; trained on at a lower rate, this share of them stays dead: "
        + "; ".join(f"{way.removeprefix('stay dead with ')} {said(value, 2)}" for way, value in stays.items()) + ".",
        measured=f"share of units dead after training at a high rate, {name}",
        number=share.mean, low=share.low, high=share.high, seeds=len(lab.seeds), depends_on=on,
        figure=dots("Dead units", "share", {"dead, of all units": share, **stays}),
    )  # fmt: skip


def leaky_revives(lab: Lab, slopes: Sequence[float] = (0.01, 0.2)) -> Finding:
    """Dead units that fire again, by the slope that the network gets."""
    ways = {f"slope {slope:g}": ("leaky_relu", (("negative_slope", slope),), "") for slope in slopes}
    return _revival(lab, ways, "leaky ReLU")


def prelu_revives(lab: Lab, name: str = "prelu", starts: Sequence[float] = (0.25, 0.0)) -> Finding:
    """Dead units that fire again, by the slope that the learnable one starts from."""
    ways = {f"start {start:g}": (name, (("weight", start),), "") for start in starts}
    return _revival(lab, ways, name)


def elu_revives(lab: Lab, name: str = "elu") -> Finding:
    """Dead units that fire again after the change, and units that get stuck when it is there from the start."""
    return _revival(lab, {name: (name, (), "")}, name, {"from the start": _ill(lab, activations=(name,))})


def batch_norm_revives(lab: Lab, norm: str = "batch_norm") -> Finding:
    """Dead units that fire again after it is put in, and units that die when it is there from the start."""
    label = norm or "no norm"
    return _revival(lab, {label: ("relu", (), norm)}, label, {"from the start": _ill(lab, norm=norm)})


def init_prevents(
    lab: Lab, inits: Sequence[str] = ("he", "xavier"), baselines: Sequence[str] = ("torch", "unit"), bias: float = 0.0
) -> Finding:
    """Dead units before training and after training too fast, against torch's own and weights of deviation 1."""
    found = {}
    for init in inits:
        for baseline in baselines:
            own, other = _ill(lab, init=init), _ill(lab, init=baseline, bias=bias)
            pair = f"{init} against {baseline}"
            found[f"{pair} before training"] = _fall(_born(lab, other), _born(lab, own))
            found[f"{pair} after training"] = _fall_of_dead(lab, other, own)
    return _prevention(
        lab, found, "initialisation", f"Before training, the share of dead units does not depend on the scale of "
        f"the weights where biases are zero: unit, weights of deviation 1, has the same as He's; torch's default has "
        f"biases. On these images it is {fmean(_born(lab, _ill(lab, init='he'))):.2g} with He's. ",
    )  # fmt: skip


def learning_rate_prevents(lab: Lab, name: str = "relu", high: float = HIGH, low: float = LOW) -> Finding:
    """Dead units at both learning rates, and whether the lower one brings the dead back."""
    rates = sorted({high, low, 0.01, 0.001})
    recipes = {rate: _ill(lab, activations=(name,), rate=rate) for rate in rates}
    shares = {r: _dead(lessons) for r, lessons in zip(rates, lab.lessons(*recipes.values()), strict=True)}
    found = {f"{low:g} against {high:g}": _fall(shares[high], shares[low])}
    back = 1 - fmean(1 if math.isnan(v := _stay_dead(lab, name, way).mean) else v for way in AFTERWARDS)
    finding = _prevention(
        lab, found, "learning rate", f"It prevents, and cures little: at a lower rate {100 * back:.0f} % of the dead "
        "fire again. ",
    )  # fmt: skip
    by_rate = {f"Adam at {rate:g}": mean_interval(values) for rate, values in shares.items()}
    return replace(finding, figure=dots("Dead units by learning rate", "share of units", by_rate))


def smaller_prevents(lab: Lab, smaller: Mapping[str, tuple[float, float]] | None = None) -> Finding:
    """Dead units in smaller networks, before training and after; sizes are times (depth, width) of 6 layers."""
    smaller = smaller or {"shallower": (1 / 3, 1.0), "narrower": (1.0, 1 / 4)}
    large = _ill(lab, depth=6)
    found = {}
    for way, (deep, wide) in smaller.items():
        small = _ill(lab, depth=round(6 * deep), width=round(lab.setting.width * wide))
        found[f"{way} before training"] = _fall(_born(lab, large), _born(lab, small))
        found[f"{way} after training"] = _fall_of_dead(lab, large, small)
    closed = [born_dead_chance([width] * 6).chance for width in (8, 4)]
    return _prevention(
        lab, found, "which way it is smaller", f"Narrow networks can be closed as a whole: with 6 layers the chance is "
        f"{closed[0]:.2g} at 8 units and {closed[1]:.2g} at 4. ",
    )  # fmt: skip


def mixing_prevents(
    lab: Lab,
    pairs: Sequence[tuple[str, str]] = (("relu", "tanh"), ("relu", "elu")),
    mixed: Sequence[str] = (),
) -> Finding:
    """Layers of two functions in turn: units stuck against the first, steps to learn against the faster of both."""
    falls, speeds, steps = {}, {}, {}
    for first, second in pairs:
        both = tuple(mixed) or (first, second)
        label = f"{' with '.join(both)}"
        one, two = lab.lessons(*(_ill(lab, depth=6, activations=names) for names in ((first,), both)))
        falls[label] = _fall(_stuck(one), _stuck(two))
        recipes = [lab.recipe(depth=6, activations=names) for names in ((first,), (second,), both)]
        a, b, c = ([steps_to_learn(lesson) for lesson in lessons] for lessons in lab.tuned_lessons(*recipes))
        speeds[label] = geometric([x / y for x, y in zip(min((a, b), key=fmean), c, strict=True)])
        steps |= {first: mean_interval(a), second: mean_interval(b), label: mean_interval(c)}
    verdict, on = judge(
        {
            **{f"fewer units stuck in {label}": answer(value, EASED) for label, value in falls.items()},
            **{f"{label} as fast as its faster part": answer(value, SPEED_KEPT) for label, value in speeds.items()},
        }
    )
    fall = next(iter(falls.values()))
    return Finding(
        verdict=verdict,
        because="In six layers, in turn. Fall of the share of dead or saturated units after training at a high rate, "
        f"as a share of that with {' and '.join(dict.fromkeys(a for a, _ in pairs))} alone (below 0: it rises): "
        + "; ".join(f"{label} {said(value, 2)}" for label, value in falls.items())
        + f". At the best rates, steps of the faster part over the mixture's (as fast: above {SPEED_KEPT:.2g}): "
        + "; ".join(f"{label} {said(value)}" for label, value in speeds.items()) + ".",
        measured=f"fall of the share of units stuck, {next(iter(falls))}",
        number=fall.mean, low=fall.low, high=fall.high, seeds=len(lab.seeds), depends_on=on,
        figure=dots("Mixtures beside their parts", "steps to learn", steps),
    )  # fmt: skip


# What these share -----------------------------------------------------------------------------------------------------


def _ill(lab: Lab, **choices: Any) -> Recipe:
    """A ReLU network that is trained too fast, unless the choices say otherwise."""
    return lab.recipe(**{"depth": 4, "optimizer": "adam", "rate": HIGH, "watched": True, **choices})


def _dead(lessons: Sequence[Lesson]) -> list[float]:
    """Dead shares; a run that diverged has no unit that learns."""
    return [1.0 if lesson.diverged else lesson.dead for lesson in lessons]


def _stuck(lessons: Sequence[Lesson]) -> list[float]:
    return [1.0 if lesson.diverged else lesson.stuck for lesson in lessons]


def _born(lab: Lab, recipe: Recipe) -> list[float]:
    return lab.map(born_dead, [(recipe, seed) for seed in lab.seeds])


def _fall(control: Sequence[float], other: Sequence[float]) -> Difference:
    """How far a share falls, in the mean over paired seeds, as a share of the control's mean."""
    falls = [a - b for a, b in zip(control, other, strict=True)]
    if not any(falls) or not any(control):
        return exact(0.0)
    return mean_interval([fall / fmean(control) for fall in falls])


def _fall_of_dead(lab: Lab, control: Recipe, other: Recipe) -> Difference:
    before, after = lab.lessons(control, other)
    return _fall(_dead(before), _dead(after))


def _back(lab: Lab, way: str, treated: tuple[str, Parameters, str], ill: str = "relu") -> list[float]:
    """For each seed, the share of dead units that fire again when the treated network is trained on that way."""
    optimizer, rate = AFTERWARDS[way]
    name, parameters, norm = treated
    recipe = lab.recipe(
        depth=4, activations=(name,), parameters=parameters, norm=norm, optimizer=optimizer, rate=rate
    )  # fmt: skip
    rows = lab.map(revive, [(_ill(lab, activations=(ill,)), recipe, seed) for seed in lab.seeds])
    return [row.revived for row in rows]


def _stay_dead(lab: Lab, name: str, way: str) -> Difference:
    """The share of dead units that stay so untreated; no share where none was dead."""
    stay = [1 - back for back in _back(lab, way, (name, (), ""), ill=name) if not math.isnan(back)]
    return mean_interval(stay) if stay else Difference(mean=math.nan, low=-math.inf, high=0.0)


def _revival(
    lab: Lab,
    ways: Mapping[str, tuple[str, Parameters, str]],
    name: str,
    prevention: Mapping[str, Recipe] | None = None,
) -> Finding:
    """Networks with dead ReLU units, trained on treated and untreated; and treated from the start."""
    found = {}
    for label, treated in ways.items():
        for way in AFTERWARDS:
            control, other = _back(lab, way, ("relu", (), "")), _back(lab, way, treated)
            known = [b - a for a, b in zip(control, other, strict=True) if not math.isnan(a)]
            found[f"{label} with {way}"] = mean_interval(known) if any(known) else exact(0.0)
    for label, recipe in (prevention or {}).items():
        before, after = lab.lessons(_ill(lab), recipe)
        found[label] = _fall(_stuck(before), _stuck(after))
    verdict, on = judge({key: answer(value, EASED) for key, value in found.items()})
    first = next(iter(found.values()))
    text = "; ".join(f"{key} {said(value, 2)}" for key, value in found.items() if key not in (prevention or {}))
    more = "".join(
        f" There from the start, it lowers the share of dead or saturated units by {said(found[key], 2)} of it."
        for key in prevention or {}
    )
    return Finding(
        verdict=verdict,
        because=f"Of units that Adam at {HIGH:g} had killed, this share fires again beyond those that do so untreated, "
        f"by how training goes on: {text}.{more} A share counts from {EASED:g} on.",
        measured=f"share of dead units that fire again, beyond the untreated, {next(iter(found))}",
        number=first.mean, low=first.low, high=first.high, seeds=len(lab.seeds), depends_on=on,
        figure=_falls(f"Dead units that fire again: {name}", "share, beyond the untreated", found),
    )  # fmt: skip


def _prevention(lab: Lab, found: Mapping[str, Difference], what: str, words: str) -> Finding:
    answers: dict[str, Answer] = {key: answer(value, EASED) for key, value in found.items()}
    verdict, on = judge(answers)
    first = next(iter(found.values()))
    return Finding(
        verdict=verdict,
        because=words + "Fall of the share of dead units, as a share of it: "
        + "; ".join(f"{key} {said(value, 2)}" for key, value in found.items())
        + f" (it counts from {EASED:g} on; below 0 it rises).",
        measured=f"fall of the share of dead units, {next(iter(found))}",
        number=first.mean, low=first.low, high=first.high, seeds=len(lab.seeds), depends_on=on,
        figure=_falls(f"Fewer dead units: {what}", "fall, as a share of the dead", found),
    )  # fmt: skip


def _falls(title: str, axis: str, found: Mapping[str, Difference]) -> Figure:
    return dots(title, axis, found, mark=EASED, mark_name="counts")
