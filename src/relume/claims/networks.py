"""The networks that experiments train: built by recipe, on handwritten digits, and read by relume's own machinery."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import cycle, islice
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from relume.activations import ACTIVATIONS
from relume.checkup import checkup
from relume.demo import Shuffled, digits
from relume.nn import module
from relume.randomness import isolated_rng, one_thread
from relume.recording import Recording
from relume.symptoms import find
from relume.theory import moments
from relume.training import Stream, Training, build, score, train
from relume.trial.arms import carry_out

MOMENTUM = 0.9
BINS = 10  # of stated probabilities, for the calibration error
FIRES = 0.01  # of the samples: a unit that fires on fewer is as good as dead
Parameters = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A plain fully connected network and how it is trained."""

    activations: tuple[str, ...] = ("relu",)  # of the hidden layers, repeated to fill them
    parameters: Parameters = ()  # of every hidden function that has them
    offset: float = 0.0  # added to the output of every hidden function
    depth: int = 2  # hidden layers
    width: int = 64
    norm: str = ""  # "batch_norm" or "layer_norm" before each hidden function
    init: str = "kept"  # see `_deviation`
    bias: float = 0.0  # of the hidden layers, before training
    optimizer: str = "sgd"  # with momentum, or "adam"
    rate: float = 0.1
    steps: int = 300
    task: str = "digits"  # or "odd", "centre"
    head: str = ""  # a function on the output
    watched: bool = False  # whether units are read: only then `dead` and `stuck` are known, and a run takes longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What one network learned."""

    score: float  # on held-out data, higher is better; -inf: diverged
    losses: tuple[float, ...]
    dead: float = math.nan  # share of all hidden units
    stuck: float = math.nan  # share of all hidden units that are dead or saturated
    calibration: float = math.nan  # of a binary task: mean distance of stated and true frequencies
    inside: bool = True  # whether every output lay in [0, 1]
    steps: int = 0  # that were asked for

    @property
    def diverged(self) -> bool:
        """Whether the run ended in NaN or infinity."""
        return not math.isfinite(self.score)

    @property
    def mean_loss(self) -> float:
        """Of the whole run: low where it falls early and deep; infinite where it diverged."""
        return math.inf if self.diverged else fmean(self.losses)


class Shifted(nn.Module):
    """A function with a constant added to its output."""

    def __init__(self, inner: nn.Module, offset: float) -> None:
        super().__init__()
        self.inner, self.offset = inner, offset

    def forward(self, input: Tensor) -> Tensor:
        return self.inner(input) + self.offset


def function(name: str, parameters: Parameters = (), width: int = 1) -> nn.Module:
    """A module of the catalogue, with those of the parameters that it has, a learned one for each of `width` units."""
    own = {key: value for key, value in parameters if key in ACTIVATIONS[name].parameters}
    return module(name, **own, **({"num_parameters": width} if name == "prelu" else {}))


def network(recipe: Recipe) -> nn.Sequential:
    """A fresh network; its weights are the same normal draws for every recipe of that shape, scaled by its init."""
    inputs, outputs = 64, OUTPUTS[recipe.task]
    parts: list[nn.Module] = []
    for name in islice(cycle(recipe.activations), recipe.depth):
        parts.append(layer(inputs, recipe.width, recipe.init, gain_of(name, recipe), recipe.bias))
        if recipe.norm:
            parts.append({"batch_norm": nn.BatchNorm1d, "layer_norm": nn.LayerNorm}[recipe.norm](recipe.width))
        chosen = function(name, recipe.parameters, recipe.width)
        parts.append(Shifted(chosen, recipe.offset) if recipe.offset else chosen)
        inputs = recipe.width
    parts.append(layer(inputs, outputs, "xavier"))
    return nn.Sequential(*parts, *([function(recipe.head)] if recipe.head else []))


def layer(inputs: int, outputs: int, init: str, gain: float = 1.0, bias: float = 0.0) -> nn.Linear:
    """A linear layer with normal weights of the deviation that `init` asks for, and constant biases.

    "kept" has the gain of the function, "he" and "xavier" are He et al. 2015 and Glorot & Bengio 2010, "unit" has
    weights of deviation 1 whatever the width, and "torch" is what `nn.Linear` does.
    """
    linear = nn.Linear(inputs, outputs)
    draws = torch.randn(outputs, inputs)  # drawn always, so that every init uses up the same numbers
    deviations = {
        "kept": gain / math.sqrt(inputs),
        "he": math.sqrt(2 / inputs),
        "xavier": math.sqrt(2 / (inputs + outputs)),
        "unit": 1.0,
    }
    with torch.no_grad():
        if init == "torch":
            linear.bias.add_(bias)
        else:
            linear.weight.copy_(draws * deviations[init])
            linear.bias.fill_(bias)
    return linear


def gain_of(name: str, recipe: Recipe) -> float:
    """The gain that keeps the variance of the pre-activations for this very function, with its offset."""
    own = {key: value for key, value in recipe.parameters if key in ACTIVATIONS[name].parameters}
    found = moments(name, **own)
    return (found.second + 2 * recipe.offset * found.mean + recipe.offset**2) ** -0.5


# Tasks ----------------------------------------------------------------------------------------------------------------

OUTPUTS = {"digits": 10, "odd": 1, "centre": 2}


@lru_cache
def data(task: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The digits with what the task asks of them: which digit, whether it is odd, or where its ink is centred.

    Centres are (across, down), scaled so that those of all images span -1 to 1.
    """
    (images, labels), (held_out, truth) = digits()
    if task == "digits":
        return (images, labels), (held_out, truth)
    if task == "odd":
        return (images, (labels % 2).float()[:, None]), (held_out, (truth % 2).float()[:, None])
    every = _centres(torch.cat([images, held_out]))
    low, high = every.min(0).values, every.max(0).values
    scaled = 2 * (every - low) / (high - low) - 1
    return (images, scaled[: len(images)]), (held_out, scaled[len(images) :])


def _centres(images: Tensor) -> Tensor:
    ink = images.reshape(-1, 8, 8)
    place = torch.arange(8.0)
    total = ink.sum((1, 2))
    return torch.stack([(ink.sum(1) @ place) / total, (ink.sum(2) @ place) / total], 1)


def loss_for(recipe: Recipe, output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy where the output can be read as probabilities, else the squared error."""
    if recipe.task == "digits":
        return nn.functional.cross_entropy(output, target)
    if recipe.head == "sigmoid" and recipe.task == "odd":
        return nn.functional.binary_cross_entropy(output, target)
    return nn.functional.mse_loss(output, target)


def score_for(recipe: Recipe, model: nn.Module) -> float:
    """On held-out data: accuracy, or for a regression the explained share of the variance."""
    _, (images, truth) = data(recipe.task)
    output = model(images)
    if recipe.task == "digits":
        return float((output.argmax(1) == truth).float().mean())
    if recipe.task == "odd":
        # A NaN is above nothing: it would count as "even".
        return float(((output > 0.5) == (truth > 0.5)).float().mean()) + 0 * float(output.sum())
    return 1 - float((output - truth).square().mean() / truth.var(0, correction=0).mean())


def training_for(recipe: Recipe) -> Training:
    """All that relume needs to train that network."""
    (images, target), _ = data(recipe.task)
    optimizers: dict[str, Any] = {
        "sgd": partial(torch.optim.SGD, lr=recipe.rate, momentum=MOMENTUM),
        "adam": partial(torch.optim.Adam, lr=recipe.rate),
    }
    return Training(
        model=partial(network, recipe),
        optimizer=optimizers[recipe.optimizer],
        loss=partial(loss_for, recipe),
        batches=Shuffled(images, target),
        score=partial(score_for, recipe),
        steps=recipe.steps,
    )


def attend(recipe: Recipe, seed: int) -> Lesson:
    """Train one network from a seed; draws, batches and their order depend on the seed alone."""
    training = training_for(recipe)
    units: dict[str, float] = {}
    if recipe.watched:
        trained = carry_out(training, recipe.steps, seed)
        model, losses, value = trained.model, trained.losses, trained.score
        units = {
            "dead": share(trained.recording, "dead"),
            "stuck": share(trained.recording, "dead", "saturated"),
        }
    else:
        with isolated_rng(), one_thread():
            model, optimizer = build(training, seed)
            losses = train(training, model, optimizer, Stream(training.batches, seed), recipe.steps)
            value = score(training, model) if math.isfinite(losses[-1]) else None
    calibration, inside = _calibration(model) if recipe.task == "odd" and value is not None else (math.nan, True)
    return Lesson(
        score=-math.inf if value is None else value,
        losses=tuple(losses),
        calibration=calibration,
        inside=inside,
        steps=recipe.steps,
        **units,
    )


def share(recording: Recording, *kinds: str) -> float:
    """Units with a symptom of these kinds, as a share of all units.

    Of all, also those that can have no such symptom: a mixture of functions must gain by what its other layers are.
    """
    ill = {(symptom.site, unit) for symptom in find(recording) if symptom.kind in kinds for unit in symptom.units}
    return len(ill) / sum(site.units for site in recording.sites)


def _calibration(model: nn.Module) -> tuple[float, bool]:
    """Expected calibration error on held-out data (Guo et al. 2017), and whether all outputs lie in [0, 1]."""
    _, (images, truth) = data("odd")
    with torch.no_grad():
        stated = model.eval()(images)
    error = 0.0
    place = (stated * BINS).long().clamp(0, BINS - 1)
    for index in place.unique():
        chosen = place == index
        gap = float((stated[chosen].mean() - truth[chosen].mean()).abs())
        error += gap * float(chosen.float().mean())
    return error, bool(((stated >= 0) & (stated <= 1)).all())


# Dead networks, treated -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Revival:
    """What became of the units that were dead before a treatment."""

    dead: int  # units dead before
    units: int
    revived: float  # share of the dead that fire afterwards on at least `FIRES` of the images
    score: float


def revive(ill: Recipe, treated: Recipe, seed: int) -> Revival:
    """Train the ill network, then go on as the treated recipe says: its function, norm, optimizer, rate and steps.

    Weights and biases are kept; the optimizer starts anew. Who is dead is judged by `relume.checkup` on all images.
    """
    (images, labels), _ = data(ill.task)
    trained = carry_out(training_for(ill), ill.steps, seed)
    found = find(checkup(trained.model, [(images, labels)]).recording)
    dead = {s.site: set(s.units) for s in found if s.kind == "dead"}
    places = [name for name, part in trained.model.named_modules() if type(part).__name__ == _class_of(ill)]
    with isolated_rng(), one_thread():
        torch.manual_seed(seed)
        model = network(replace(treated, depth=ill.depth, width=ill.width))
        for new, old in zip(_linears(model), _linears(trained.model), strict=True):
            new.load_state_dict(old.state_dict())
        training = training_for(treated)
        train(training, model, training.optimizer(model.parameters()), Stream(training.batches, seed), treated.steps)
        firing = _firing(model, images)
        score = score_for(treated, model)
    masks = [dead.get(name, set()) for name in places]
    count = sum(map(len, masks))
    back = sum(float(rates[unit]) >= FIRES for mask, rates in zip(masks, firing, strict=True) for unit in mask)
    return Revival(dead=count, units=ill.depth * ill.width, revived=back / count if count else math.nan, score=score)


def _class_of(recipe: Recipe) -> str:
    return type(function(recipe.activations[0])).__name__


def _linears(model: nn.Module) -> list[nn.Linear]:
    return [part for part in model.modules() if isinstance(part, nn.Linear)]


def _firing(model: nn.Module, images: Tensor) -> list[Tensor]:
    """For each hidden layer, the share of the images on which each unit's pre-activation is positive."""
    model.eval()
    found, x = [], images
    parts = list(model.children())
    with torch.no_grad():
        for part in parts[:-1]:
            if not isinstance(part, (nn.Linear, nn.BatchNorm1d, nn.LayerNorm)):
                found.append((x > 0).float().mean(0))
            x = part(x)
    return found


def born_dead(recipe: Recipe, seed: int) -> float:
    """Share of the units that are dead before any training, on all images of the digits."""
    (images, labels), _ = data(recipe.task)
    with isolated_rng(), one_thread():
        torch.manual_seed(seed)
        return share(checkup(network(recipe), [(images, labels)]).recording, "dead")


# Deep networks, before training ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A deep network of square layers, as it is before training."""

    activations: tuple[str, ...]
    weight_variance: float  # times fan_in: 1 is Xavier's on square layers, 2 is He's, 1/3 torch's default
    depth: int = 30
    width: int = 256
    samples: int = 128
    norm: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """How the signal and its gradient go through one such network, by layer from the first."""

    gradients: tuple[float, ...]  # rms of the gradient at the pre-activations
    means: tuple[float, ...]  # mean of the outputs over their rms
    flat: tuple[float, ...]  # share of units whose outputs are the same for every sample


def propagate_once(stack: Stack, seed: int) -> Signal:
    """Send normal inputs and a random direction of the output through one network, in float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    x = draw(stack.samples, stack.width)
    before, after = [], []
    with one_thread():
        for name in islice(cycle(stack.activations), stack.depth):
            weight = draw(stack.width, stack.width) * math.sqrt(stack.weight_variance / stack.width)
            z = (x @ weight).requires_grad_()
            z.retain_grad()
            if stack.norm == "batch_norm":
                x = (z - z.mean(0)) / z.std(0, correction=0)
            elif stack.norm == "layer_norm":
                x = (z - z.mean(1, keepdim=True)) / z.std(1, correction=0, keepdim=True)
            else:
                x = z
            x = function(name)(x) if name != "prelu" else function(name).double()(x)
            before.append(z)
            after.append(x)
        (x * draw(x.shape)).sum().backward()
    return Signal(
        gradients=tuple(float(z.grad.square().mean().sqrt()) for z in before if z.grad is not None),
        means=tuple(float(h.detach().mean() / h.detach().square().mean().sqrt()) for h in after),
        flat=tuple(float((h == h[0]).all(0).double().mean()) for h in after),
    )


def factor(signal: Signal) -> float:
    """The factor on the mean square of the gradient, a layer back: geometric mean without the first and last sixth."""
    first, last = len(signal.gradients) // 6, len(signal.gradients) - len(signal.gradients) // 6 - 1
    return (signal.gradients[first] / signal.gradients[last]) ** (2 / (last - first))
