"""Experiments on how fast and how well networks learn, each function at its own best learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from relume.activations import activation
from relume.claims.judging import Answer, answer, below, dots, exact, fact, geometric, judge, said
from relume.claims.lab import Lab, steps_to_learn
from relume.claims.networks import Lesson, Recipe
from relume.claims.record import Finding, Verdict
from relume.claims.values import CENTRED
from relume.verdicts import Difference, mean_interval

MATTERS = 1.1  # times the steps: who saves less than a tenth of them gains nothing by the choice
POINTS = 0.01  # of accuracy, or of the explained variance: a hundredth matters to nobody, as in `verdicts`
CALIBRATED = 0.05  # mean distance of stated and true frequencies: a stated 80 % means 75 to 85
SETTINGS = ((2, ""), (2, "batch_norm"), (6, ""), (6, "batch_norm"))  # hidden layers, norm


def relu_faster_convergence(
    lab: Lab, name: str = "relu", rival: str = "sigmoid", settings: Sequence[tuple[int, str]] = SETTINGS
) -> Finding:
    """Steps that both need to learn the digits, at two depths, with and without BatchNorm."""
    pairs = {_where(d, n): (_recipe(lab, rival, d, n), _recipe(lab, name, d, n)) for d, n in settings}
    found = _ratios_of_steps(lab, pairs)
    verdict, on = judge({where: answer(value, MATTERS) for where, value in found.items()})
    return _speed(lab, f"{rival} over {name}", found, verdict, on)


def tanh_centred_faster(lab: Lab, name: str = "tanh", rival: str = "sigmoid", offset: float = 1.0) -> Finding:
    """Steps of the rival, and of the function itself moved off centre, over its own."""
    pairs = {}
    for depth in (2, 6):
        own = _recipe(lab, name, depth)
        pairs[f"{rival} at {_where(depth)}"] = (_recipe(lab, rival, depth), own)
        pairs[f"{name} {offset:+g} at {_where(depth)}"] = (_recipe(lab, name, depth, offset=offset), own)
    found = _ratios_of_steps(lab, pairs)
    verdict, on = judge({where: answer(value, MATTERS) for where, value in found.items()})
    return _speed(lab, f"rivals over {name}", found, verdict, on)


def sigmoid_off_centre(lab: Lab, name: str = "sigmoid") -> Finding:
    """The mean of its outputs, and the steps it needs over those of the same function moved to mean zero."""
    row = activation(name)
    mean = exact(abs(row.mean) / row.second_moment**0.5)
    offset = -round(row.mean, 12) + 0.0
    pairs = {_where(depth): (_recipe(lab, name, depth), _recipe(lab, name, depth, offset=offset)) for depth in (2, 6)}
    found = _ratios_of_steps(lab, pairs)
    verdict, on = judge(
        {"off centre": answer(mean, CENTRED), **{where: answer(value, MATTERS) for where, value in found.items()}}
    )
    finding = _speed(lab, f"{name} over the same with mean zero", found, verdict, on)
    return _with_words(finding, f"Its mean output for normal inputs is {mean.mean:.2g} of the rms. ")


def deep_relu_preferred(lab: Lab, name: str = "relu", rival: str = "sigmoid", depth: int = 6) -> Finding:
    """Held-out accuracy of both in a network of six hidden layers, with and without BatchNorm."""
    found = {
        _where(depth, norm): _gain(lab, _recipe(lab, rival, depth, norm), _recipe(lab, name, depth, norm))
        for norm in ("", "batch_norm")
    }
    verdict, on = judge({where: answer(value, POINTS) for where, value in found.items()})
    return _accuracy(lab, f"{name} minus {rival}", found, verdict, on)


def relu_default(
    lab: Lab, name: str = "relu", rivals: Sequence[str] = ("leaky_relu", "elu", "gelu", "tanh", "sigmoid"),
    depth: int = 6,
) -> Finding:  # fmt: skip
    """Whether any of the usual functions beats it in held-out accuracy: the custom itself cannot be tested here."""
    found = {rival: _gain(lab, _recipe(lab, rival, depth), _recipe(lab, name, depth)) for rival in rivals}
    verdict, on = judge({f"against {rival}": answer(value, -POINTS) for rival, value in found.items()})
    finding = _accuracy(lab, f"{name} minus others, {_where(depth)}", found, verdict, on)
    return _with_words(
        finding, "That it is the custom cannot be tested here; whether it is a safe choice can: "
        f"no other function may be more than {100 * POINTS:g} point of accuracy better. ",
    )  # fmt: skip


def sigmoid_probability(lab: Lab, head: str = "sigmoid") -> Finding:
    """Whether the digit is odd: the range of the outputs, and how far stated probabilities are from frequencies."""
    values = activation(head).value(np.linspace(-30, 30, 601))
    inside = bool(values.min() > 0 and values.max() < 1)
    (lessons,) = lab.tuned_lessons(lab.recipe(task="odd", head=head))
    error = mean_interval([lesson.calibration for lesson in lessons])
    accuracy = mean_interval(_scores(lessons))
    can = below(error, CALIBRATED) if all(lesson.inside for lesson in lessons) else fact(False)
    verdict, on = judge({"values in (0, 1)": fact(inside), "a probability": can})
    return Finding(
        verdict=verdict,
        because=f"For |x| up to 30 its values {'stay' if inside else 'do not stay'} inside (0, 1); float32 rounds "
        f"sigmoid to 1 from 16.6 on. As the output of a network that says whether a digit is odd "
        f"({100 * accuracy.mean:.1f} % right on held-out images) its values differ from the true frequencies "
        f"by {said(error, 2)} in the mean (calibrated: below {CALIBRATED:g}).",
        measured=f"expected calibration error on held-out images, {head} output",
        number=error.mean, low=error.low, high=error.high, seeds=len(lab.seeds), depends_on=on,
        figure=dots("Calibration, one row a seed", "expected calibration error", {
            f"seed {seed}": exact(lesson.calibration) for seed, lesson in zip(lab.seeds, lessons, strict=True)},
            mark=CALIBRATED, mark_name="calibrated"),
    )  # fmt: skip


def output_scenarios(
    lab: Lab, head: str = "sigmoid", other_head: str = "identity", hidden: str = "relu", other_hidden: str = "sigmoid"
) -> Finding:
    """Both heads on a binary task, both hidden functions on ten classes."""
    binary, other = lab.tuned_lessons(
        lab.recipe(task="odd", head=head), lab.recipe(task="odd", head=other_head)
    )  # fmt: skip
    gain = _difference(other, binary)
    inside = all(lesson.inside for lesson in binary)
    classes = _gain(lab, _recipe(lab, other_hidden, 6), _recipe(lab, hidden, 6))
    found = {f"output: {head} minus {other_head}": gain, f"hidden: {hidden} minus {other_hidden}": classes}
    verdict, on = judge(
        {
            f"{head} for a binary output": answer(gain, -POINTS) if inside else "no",
            f"{hidden} for hidden layers": answer(classes, POINTS),
        }
    )
    finding = _accuracy(lab, "in the output layer and in six hidden ones",
                        dict(reversed(found.items())), verdict, on)  # fmt: skip
    where = "stay" if inside else "do not stay"
    return _with_words(
        finding, f"The outputs of the {head} head {where} in [0, 1]. Tested on images of 8 x 8 pixels alone: "
        "text and large images are beyond this experiment. ",
    )  # fmt: skip


def tanh_scenarios(lab: Lab, head: str = "tanh", hidden: str = "tanh", other: str = "sigmoid") -> Finding:
    """Targets in [-1, 1] with this head and a plain one; and hidden layers against sigmoid's."""
    with_head, plain = lab.tuned_lessons(lab.recipe(task="centre", head=head), lab.recipe(task="centre"))
    gain = _difference(plain, with_head)
    steps = _ratios_of_steps(
        lab, {_where(depth): (_recipe(lab, other, depth), _recipe(lab, hidden, depth)) for depth in (2, 6)}
    )
    verdict, on = judge(
        {
            f"{head} for outputs in [-1, 1]": answer(gain, -POINTS),
            **{f"{hidden} hidden at {where}": answer(value, MATTERS) for where, value in steps.items()},
        }
    )
    return Finding(
        verdict=verdict,
        because=f"Where the ink of a digit is centred, in [-1, 1]: with a {head} head the explained variance is "
        f"{said(gain, 2)} above that of a plain output. In hidden layers, {other} needs "
        + " and ".join(f"{said(value)} times the steps of {hidden} at {where}" for where, value in steps.items()) + ".",
        measured=f"explained variance, {head} head minus plain output",
        number=gain.mean, low=gain.low, high=gain.high, seeds=len(lab.seeds), depends_on=on,
        figure=dots(f"Steps to learn: {other} over {hidden}, hidden", "ratio of steps", steps, mark=1,
                    mark_name="same", log=True),
    )  # fmt: skip


def choose_by_experiment(
    lab: Lab,
    names: Sequence[str] = ("relu", "tanh", "sigmoid", "gelu"),
    tasks: Sequence[tuple[str, int, str]] = (
        ("digits", 2, ""),
        ("digits", 6, "batch_norm"),
        ("digits", 6, ""),
        ("centre", 2, ""),
    ),
) -> Finding:
    """Whether two functions change places: the first learns reliably better on one task, the second on another.

    Better is a mean loss over the run that is lower by a tenth.
    """
    recipes = {
        (task, depth, norm, name): lab.recipe(task=task, depth=depth, norm=norm, activations=(name,))
        for task, depth, norm in tasks
        for name in names
    }
    lessons = dict(zip(recipes, lab.tuned_lessons(*recipes.values()), strict=True))
    ratios: dict[tuple[str, str], dict[str, Difference]] = {}
    for a, b in combinations(names, 2):
        ratios[a, b] = {
            f"{task} at {_where(depth, norm)}": _ratio_of_loss(
                lessons[task, depth, norm, a], lessons[task, depth, norm, b]
            )
            for task, depth, norm in tasks
        }
    # Of each pair, how reliably they change places: by the weaker of both leads.
    places: dict[tuple[str, str], Answer] = {
        pair: _changes_places(list(by_task.values())) for pair, by_task in ratios.items()
    }
    pair = max(places, key=lambda each: _lead(list(ratios[each].values())))
    a, b = pair
    verdict, on = judge({f"{a} and {b} change places": places[pair]})
    shown = ratios[pair]
    best = {f"{t} at {_where(d, n)}": min(names, key=lambda x: sum(v.mean_loss for v in lessons[t, d, n, x]))
            for t, d, n in tasks}  # fmt: skip
    first = max(shown.values(), key=lambda value: value.mean)
    return Finding(
        verdict=verdict,
        because="Best by mean loss over the run: " + "; ".join(f"{k}: {v}" for k, v in best.items()) + ". "
        f"Loss of {a} over that of {b}: " + "; ".join(f"{k} {said(v)}" for k, v in shown.items()) + ".",
        measured=f"loss of {a} over that of {b}, where that is largest",
        number=first.mean, low=first.low, high=first.high, unit="times", seeds=len(lab.seeds), depends_on=on,
        figure=dots(f"Mean loss over the run: {a} over {b}", "ratio of losses", shown, mark=1, mark_name="same",
                    log=True),
    )  # fmt: skip


def _changes_places(by_task: Sequence[Difference]) -> Answer:
    first = [answer(value, MATTERS) for value in by_task]
    second = [below(value, 1 / MATTERS) for value in by_task]
    if "yes" in first and "yes" in second:
        return "yes"
    return "no" if all(word == "no" for word in first) or all(word == "no" for word in second) else "open"


def _lead(by_task: Sequence[Difference]) -> float:
    return min(max(value.low for value in by_task), 1 / min(value.high for value in by_task))


# What these share -----------------------------------------------------------------------------------------------------


def _recipe(lab: Lab, name: str, depth: int, norm: str = "", offset: float = 0.0) -> Recipe:
    return lab.recipe(activations=(name,), depth=depth, norm=norm, offset=offset)


def _where(depth: int, norm: str = "") -> str:
    return f"{depth} layers" + (" with BatchNorm" if norm else "")


def _scores(lessons: Sequence[Lesson]) -> list[float]:
    """Scores with 0 for a run that diverged: below a guess, for accuracy and explained variance alike."""
    return [0.0 if lesson.diverged else lesson.score for lesson in lessons]


def _difference(control: Sequence[Lesson], other: Sequence[Lesson]) -> Difference:
    return mean_interval([b - a for a, b in zip(_scores(control), _scores(other), strict=True)])


def _gain(lab: Lab, control: Recipe, other: Recipe) -> Difference:
    return _difference(*lab.tuned_lessons(control, other))


def _ratio_of_loss(a: Sequence[Lesson], b: Sequence[Lesson]) -> Difference:
    # A run that diverged counts as a hundred times the loss of the other, which no run that learns comes near.
    losses = [(x.mean_loss, y.mean_loss) for x, y in zip(a, b, strict=True)]
    worst = 100 * max([v for pair in losses for v in pair if v < float("inf")], default=1.0)
    return geometric([min(x, worst) / min(y, worst) for x, y in losses])


def _ratios_of_steps(lab: Lab, pairs: Mapping[str, tuple[Recipe, Recipe]]) -> dict[str, Difference]:
    """Steps that the first needs to learn over those of the second: geometric mean over paired seeds."""
    recipes = list(dict.fromkeys(recipe for pair in pairs.values() for recipe in pair))
    lessons = dict(zip(recipes, lab.tuned_lessons(*recipes), strict=True))
    return {
        where: geometric(
            [steps_to_learn(x) / steps_to_learn(y) for x, y in zip(lessons[a], lessons[b], strict=True)]
        )
        for where, (a, b) in pairs.items()
    }  # fmt: skip


def _speed(lab: Lab, what: str, found: Mapping[str, Difference], verdict: Verdict, on: str) -> Finding:
    first = next(iter(found.values()))
    return Finding(
        verdict=verdict,
        because=f"Steps to learn the digits, {what}: "
        + "; ".join(f"{where} {said(value)}" for where, value in found.items())
        + f". Each at its own best learning rate; a run that never learns counts as {lab.setting.steps} steps.",
        measured=f"ratio of steps to learn, {what}, {next(iter(found))}",
        number=first.mean, low=first.low, high=first.high, unit="times", seeds=len(lab.seeds), depends_on=on,
        figure=dots(f"Steps to learn: {what}", "ratio of steps", found, mark=1, mark_name="same", log=True),
    )  # fmt: skip


def _accuracy(lab: Lab, what: str, found: Mapping[str, Difference], verdict: Verdict, on: str) -> Finding:
    points = {
        where: Difference(mean=100 * v.mean, low=100 * v.low, high=100 * v.high) for where, v in found.items()
    }  # fmt: skip
    first = next(iter(points.values()))
    return Finding(
        verdict=verdict,
        because="Points of held-out accuracy, each function at its own best learning rate: "
        + "; ".join(f"{where} {said(value, 2)}" for where, value in points.items()) + ".",
        measured=f"difference of held-out accuracy, {what}, {next(iter(points))}",
        number=first.mean, low=first.low, high=first.high, unit="points", seeds=len(lab.seeds), depends_on=on,
        figure=dots(f"Held-out accuracy: {what}", "points of 100", points, mark=0, mark_name="same"),
    )  # fmt: skip


def _with_words(finding: Finding, words: str) -> Finding:
    return replace(finding, because=words + finding.because)
