"""The one thing that a replay changes: the table of changes, and what each does to a copy of a network or its data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from relume.activations import ACTIVATIONS
from relume.adoption import scale_rates
from relume.grafts import graft
from relume.initialise import init_
from relume.nested import first_float
from relume.reach import last_layer
from relume.recording import ONE_CONSTANT, Recording, Site
from relume.surgery import left_out, register
from relume.suspicions import PLAIN, Cause, sound_gain
from relume.symptoms import usual_update
from relume.wiring import follow

USUAL_UPDATE = 1e-3  # of a weight's size per step: the rule of thumb for a sound learning rate
OUT_OF_PROPORTION = 100  # times the root mean square of the median batch: single samples may differ tenfold
OTHERWISE = 3.0  # times the size, or standard deviations of the mean, by which data are no longer what they were
ADAM_RATE = 1e-3  # Kingma & Ba 2015, section 2: their default, and torch's

Batch = tuple[Any, Any]


class CannotChange(Exception):
    """This change cannot be made to this network; the replay is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What a change is made to: a fresh copy, and an input that it takes."""

    recording: Recording
    model: nn.Module
    optimizer: Optimizer
    input: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing to change before a replay."""

    words: str
    cause: Cause
    fits: Callable[[Recording, Mapping[Cause, float]], bool]  # whether it is worth a replay; given the suspicions
    network: Callable[[Copied], Optimizer | None] | None = None  # an optimizer that it gives back takes over
    data: Callable[[Sequence[Batch]], Sequence[Batch]] | None = None
    back: int | None = None  # the place in a batch that is brought back to what it was in the run's first steps
    covers: tuple[Cause, ...] = ()  # other causes that it takes away too, so that it cannot tell them apart


# the optimizer ------------------------------------------------------------------------------------------------------


def _times(factor: float) -> Callable[[Copied], None]:
    def change(copied: Copied) -> None:
        scale_rates(copied.optimizer, [factor] * len(copied.optimizer.param_groups))

    return change


def _usual_pace(copied: Copied) -> None:
    """The learning rate under which the first steps move the weights by a thousandth of their size."""
    _times(USUAL_UPDATE / max(usual_update(copied.recording), 1e-12))(copied)


def _hand_over(copied: Copied) -> None:
    """What wants gradients and is in no group joins the first."""
    left = left_out(copied.model, copied.optimizer)
    if not left:
        raise CannotChange
    register(copied.optimizer, left, None)


# the start ----------------------------------------------------------------------------------------------------------


def _zero_biases(copied: Copied) -> None:
    parameters = dict(copied.model.named_parameters())
    with torch.no_grad():
        for site in copied.recording.sites:
            if site.bias in parameters and not site.normalised:
                parameters[site.bias].zero_()


def _sound_scale(copied: Copied) -> None:
    """Rescale every layer before an activation to the standard deviation that keeps the signal; the draw stays."""
    gains = {site.weight: sound_gain(site) for site in copied.recording.sites if site.weight}
    with torch.no_grad():
        for name, p in copied.model.named_parameters():
            if p.dim() < 2 or not p.requires_grad:
                continue
            fan_in = p[0].numel()
            std = float(p.std(correction=0))
            if name in gains and std > ONE_CONSTANT * abs(float(p.mean())):
                p.sub_(p.mean()).mul_(gains[name] / math.sqrt(fan_in) / std)
            elif name in gains:  # all units alike: there is no draw to keep
                p.normal_(0.0, gains[name] / math.sqrt(fan_in))
            elif std * math.sqrt(fan_in) > 2:  # a layer without an activation, such as the last
                p.mul_(1 / (math.sqrt(fan_in) * std))


# the data -----------------------------------------------------------------------------------------------------------


def _values(batches: Sequence[Batch], place: int) -> tuple[Tensor, bool] | None:
    """The rows of a table; of images and sequences all numbers in one column, and False; None where none is a float."""
    firsts = [t.detach().float() for batch in batches if (t := first_float(batch[place])) is not None]
    if not firsts:
        return None
    table = all(t.dim() == 2 for t in firsts) and len({t.shape[1] for t in firsts}) == 1
    return (torch.cat(firsts) if table else torch.cat([t.reshape(-1) for t in firsts])[:, None]), table


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column; of a constant one the latter is 1."""
    known = torch.isfinite(values)
    count = known.sum(0).clamp(min=1)
    mean = values.where(known, 0.0).sum(0) / count
    std = ((values - mean).where(known, 0.0).square().sum(0) / count).sqrt()
    return mean, std.where(std > ONE_CONSTANT * mean.abs().clamp(min=1e-12), 1.0)


def _as_before(batches: Sequence[Batch], usual: Sequence[Batch], place: int) -> Sequence[Batch]:
    """At the mean and standard deviation that they had, feature by feature, where these are no longer alike."""
    now, before = _values(batches, place), _values(usual, place)
    if now is None or before is None or now[0].shape[1] != before[0].shape[1]:
        raise CannotChange
    (mean, std), (old_mean, old_std) = (_moments(values.reshape(-1, 1)) for values, _ in (now, before))
    if 1 / OTHERWISE <= std / old_std <= OTHERWISE and abs(mean - old_mean) <= OTHERWISE * old_std:
        raise CannotChange
    return _standardise(batches, place, _moments(before[0]))


def _standardise(
    batches: Sequence[Batch], place: int, to: tuple[Tensor, Tensor] | tuple[float, float] = (0.0, 1.0)
) -> Sequence[Batch]:
    """Mean 0 and standard deviation 1: each feature of a table by itself, images and sequences as a whole.

    `to` gives another mean and another standard deviation.
    """
    found = _values(batches, place)
    if found is None:
        return batches
    values, table = found
    (mean, std), (new_mean, new_std) = _moments(values), to

    def scaled(value: Any) -> Any:
        if isinstance(value, Tensor):
            fits = value.is_floating_point() and (not table or value.shape[-1:] == mean.shape)
            return ((value - mean) / std).nan_to_num(0.0, 0.0, 0.0) * new_std + new_mean if fits else value
        if isinstance(value, (tuple, list)):
            return type(value)(scaled(v) for v in value)
        return {k: scaled(v) for k, v in value.items()} if isinstance(value, dict) else value

    return [tuple(scaled(part) if i == place else part for i, part in enumerate(batch)) for batch in batches]  # type: ignore[misc]


def _without_outliers(batches: Sequence[Batch]) -> Sequence[Batch]:
    """The batches but for those whose inputs are out of all proportion to the others'."""
    firsts = [first_float(batch[0]) for batch in batches]
    sizes = [float(t.detach().float().square().mean().sqrt()) if t is not None else 0.0 for t in firsts]
    usual = sorted(sizes)[len(sizes) // 2]
    kept = [batch for batch, size in zip(batches, sizes, strict=True) if size <= OUT_OF_PROPORTION * usual]
    if not usual > 0 or len(kept) in (0, len(batches)):
        raise CannotChange
    return kept


# the functions ------------------------------------------------------------------------------------------------------


def _exchange(copied: Copied, chosen: Callable[[Site], bool], make: Callable[[], nn.Module]) -> None:
    """Put another function in the place of some calls, however they are written."""
    wiring = follow(copied.model, copied.input)
    targets = [index for index, site in enumerate(wiring.sites) if chosen(site)]
    if not targets or not graft(copied.model, copied.input, targets, lambda places: make())[0]:
        raise CannotChange


def _relu_instead(copied: Copied) -> None:
    """ReLU with He's gain at every hidden site."""
    _exchange(copied, lambda site: not site.output and site.activation != "relu", nn.ReLU)
    sites = tuple(replace(s, activation="relu", parameters={}) for s in copied.recording.sites if not s.output)
    _sound_scale(replace(copied, recording=replace(copied.recording, sites=sites)))


def _no_function_on_the_output(copied: Copied) -> None:
    _exchange(copied, lambda site: site.output, nn.Identity)


def _by_the_book(copied: Copied) -> Optimizer:
    """What a textbook would begin with; of functions that are flat on both ends, ReLU in their place."""
    if any(_flat_ended(site) for site in copied.recording.sites):
        _exchange(copied, _flat_ended, nn.ReLU)
    init_(copied.model, "he", example_input=copied.input)
    return torch.optim.Adam([p for p in copied.model.parameters() if p.requires_grad], lr=ADAM_RATE)


def _flat_ended(site: Site) -> bool:
    row = ACTIVATIONS[site.activation]
    return not site.output and row.saturates and all(tail.slope == 0 for tail in row.tails(**site.parameters))


# the table ----------------------------------------------------------------------------------------------------------


def _suspected(*causes: Cause) -> Callable[[Recording, Mapping[Cause, float]], bool]:
    return lambda recording, strength: any(strength.get(cause, 0.0) > 0 for cause in causes)


_PARTS: tuple[tuple[int, str, Cause], ...] = ((0, "inputs", "unscaled_inputs"), (1, "targets", "unscaled_targets"))
CHANGES: tuple[Change, ...] = (
    Change(
        words="the learning rate divided by 10",
        cause="learning_rate_too_high",
        fits=lambda recording, strength: True,  # tried always: it is what people try first
        network=_times(0.1),
    ),
    *(
        Change(
            words=f"the learning rate divided by {factor}",
            cause="learning_rate_too_high",
            fits=lambda recording, strength: strength.get("learning_rate_too_high", 0.0) >= PLAIN,
            network=_times(1 / factor),
        )
        for factor in (100, 1000)
    ),
    Change(
        words="inputs at mean 0 and standard deviation 1",
        cause="unscaled_inputs",
        fits=_suspected("unscaled_inputs"),
        data=lambda batches: _standardise(batches, 0),
    ),
    Change(
        words=f"the batches left out whose inputs are over {OUT_OF_PROPORTION} times the usual",
        cause="unscaled_inputs",
        fits=lambda recording, strength: True,  # made only where there are such
        data=_without_outliers,
    ),
    Change(
        words="all parameters handed to the optimizer",
        cause="no_gradient",
        fits=_suspected("no_gradient"),
        network=_hand_over,
    ),
    *(
        Change(
            words=f"{what} at the scale of the first steps",
            cause=cause,
            fits=lambda recording, strength: True,  # made only where they are no longer what they were
            back=place,
        )
        for place, what, cause in _PARTS
    ),
    Change(words="biases at zero", cause="bias", fits=_suspected("bias"), network=_zero_biases),
    Change(
        words="initial weights at the scale that keeps signals",
        cause="initial_scale",
        fits=_suspected("initial_scale"),
        network=_sound_scale,
    ),
    Change(
        words="targets at mean 0 and standard deviation 1",
        cause="unscaled_targets",
        fits=_suspected("unscaled_targets"),
        data=lambda batches: _standardise(batches, 1),
    ),
    *(
        Change(
            words="ReLU at He's scale as the activation",
            cause=cause,
            fits=_suspected(cause),
            network=_relu_instead,
            covers=("initial_scale",),
        )
        for cause in ("saturating_activation", "unbounded_activation")
    ),
    Change(
        words="no function on the output",
        cause="output_activation",
        fits=_suspected("output_activation"),
        network=_no_function_on_the_output,
    ),
    *(
        Change(
            words=f"the learning rate times {factor}",
            cause="learning_rate_too_low",
            fits=lambda recording, strength: False,  # where nothing else helps: see `interventions.RATES`
            network=_times(factor),
        )
        for factor in (10, 100)
    ),
    Change(
        words="steps of a thousandth of the weights' size",
        cause="learning_rate_too_low",
        fits=_suspected("learning_rate_too_low"),
        network=_usual_pace,
    ),
)

# Names no cause: it asks whether this network can learn these data at all.
BY_THE_BOOK = Change(
    words="Adam at 0.001, He's initialisation and standardised inputs",
    cause="unknown",
    fits=lambda recording, strength: True,
    network=_by_the_book,
    data=lambda batches: _standardise(batches, 0),
    covers=("initial_scale", "bias", "unscaled_inputs", "learning_rate_too_low", "saturating_activation"),
)


PLAIN_WIDTH = 64


def _plain_network(copied: Copied) -> Optimizer:
    """Two ReLU layers from the flattened input to what the last layer gives; what stands behind it stays."""
    if not isinstance(copied.input, Tensor) or not copied.input.is_floating_point():
        raise CannotChange
    layer, given, _ = last_layer(copied.model, copied.input)
    if not isinstance(given, Tensor) or len(given) != len(copied.input):
        raise CannotChange
    sizes = (copied.input[0].numel(), PLAIN_WIDTH, PLAIN_WIDTH)
    hidden = [part for i, o in pairwise(sizes) for part in (nn.Linear(i, o), nn.ReLU())]
    plain = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(PLAIN_WIDTH, given[0].numel())).to(given)
    fed: list[Tensor] = []
    copied.model.register_forward_pre_hook(lambda module, args: fed.append(args[0]))
    layer.register_forward_hook(lambda module, args, output: plain(fed.pop()).reshape(output.shape))
    return torch.optim.Adam(plain.parameters(), lr=ADAM_RATE)


# Asks whether anything can learn these data, where this network cannot by any change.
PLAIN_NETWORK = Change(
    words=f"a plain network of two layers of {PLAIN_WIDTH} ReLU units in its place",
    cause="unknown",
    fits=lambda recording, strength: True,
    network=_plain_network,
    data=lambda batches: _standardise(batches, 0),
    covers=(*BY_THE_BOOK.covers, "narrow_and_deep"),
)


def changed(
    change: Change | None,
    recording: Recording,
    model: nn.Module,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    usual: Sequence[Batch] = (),
) -> tuple[Optimizer, Sequence[Batch]]:
    """Make a change to a copy and its data; the optimizer and the batches to go on with.

    `usual` are batches of the run's first steps, where the others are later ones.
    Raises `CannotChange` where there is nothing to change, and whatever the user's network makes of the change.
    """
    if change is None:
        return optimizer, batches
    if change.back is not None:
        batches = _as_before(batches, usual, change.back)
    if change.data is not None:
        batches = change.data(batches)
    if change.network is not None:
        copied = Copied(recording=recording, model=model, optimizer=optimizer, input=batches[0][0])
        optimizer = change.network(copied) or optimizer
    return optimizer, batches
