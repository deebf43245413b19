"""Takes units out of a network that are proven dead, and measures what that changed and saved."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.overrides import BaseTorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from relume.nested import call, tensors
from relume.proof import prove
from relume.prune.inputs import drawn_between, drawn_within, inputs_of
from relume.prune.record import Pruned
from relume.randomness import isolated_rng
from relume.recording import Proof
from relume.remedies.record import Network
from relume.remedies.units import dead_units, separable
from relume.sites import undisturbed
from relume.surgery import KEEPS_FUNCTION, duplicate, remove
from relume.training import batch_size
from relume.wiring import follow, output_change, outputs, require_runs

ROUNDS = 8  # of timing, each A B B A: what slows the machine for a while then slows both
UNPROVEN = "silent on every sample, but not proven closed between them"
OPENED = "opened by held-out inputs within the range of those seen"


def prune(
    model: nn.Module, batches: Iterable[Any], optimizer: Optimizer | None = None, *, all_dead: bool = False
) -> Pruned:
    """Copies of a network and its optimizer without the units that are provably dead.

    `batches` gives (input, target), or inputs alone; at most 10,000 samples are read, in eval mode. A unit goes when it
    is dead on all of them, proven closed for every input of its layer between those seen, gives one constant also on
    held-out inputs drawn between the samples and on noise within their range, and its readers can take that constant
    into their biases. With `all_dead` the proof and the held-out inputs are not asked for. What a layer saves is kept
    only if the outputs move by at most 1e-5 of their standard deviation on all of these inputs. The originals are
    untouched, and the optimizer's state of all that stays is carried along.

    Raises DataError where there are no batches, RemedyError where the model does not take them or cannot be copied.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> _ = nn.init.constant_(model[0].bias[:3], -100.0)
    >>> pruned = prune(model, [torch.randn(1000, 4)])
    >>> pruned.removed, pruned.model[0].out_features, pruned.parameters_after
    ({'1': (0, 1, 2)}, 5, 37)
    """
    inputs = inputs_of(model, batches)
    require_runs(model, inputs[0])
    held_out = (*(drawn_between(batch, seed) for seed, batch in enumerate(inputs)), *drawn_within(inputs))
    with isolated_rng():
        kept, new_optimizer = duplicate(model, optimizer)
    wiring = follow(kept, inputs[0])
    dead = dead_units(Network(model=kept, batches=inputs), wiring)
    with undisturbed(kept):
        proofs = prove(kept.eval(), inputs, dead)
    chosen, left = _chosen(dead, proofs, all_dead)
    removed: dict[str, tuple[int, ...]] = {}
    for site, units in chosen.items():
        trial, trial_optimizer = duplicate(kept, new_optimizer)
        gone, stay = _without(trial, trial_optimizer, site, units, inputs, () if all_dead else held_out)
        if gone and (broken := _broken(model, trial, inputs if all_dead else (*inputs, *held_out))):
            gone, stay = (), {**stay, **dict.fromkeys(gone, broken)}
        left[site] = {**left.get(site, {}), **stay}
        if gone:
            kept, new_optimizer, removed[site] = trial, trial_optimizer, gone
    seconds = _seconds(model, kept, inputs[0]) if removed else (None, None)
    return Pruned(
        model=kept,
        optimizer=new_optimizer,
        removed=removed,
        left={site: dict(sorted(reasons.items())) for site, reasons in left.items() if reasons},
        units={site.name: site.units for site in wiring.sites},
        proofs=proofs,
        samples=sum(map(batch_size, inputs)),
        batch=batch_size(inputs[0]),
        output_change=output_change(outputs(model, inputs), outputs(kept, inputs)),
        held_out_change=output_change(outputs(model, held_out), outputs(kept, held_out)),
        parameters_before=parameters(model),
        parameters_after=parameters(kept),
        flops_before=flops(model, inputs[0]),
        flops_after=flops(kept, inputs[0]),
        seconds_before=seconds[0],
        seconds_after=seconds[1],
    )


# which units ---------------------------------------------------------------------------------------------------------


def _chosen(
    dead: Mapping[str, Sequence[int]], proofs: Sequence[Proof], all_dead: bool
) -> tuple[dict[str, tuple[int, ...]], dict[str, dict[int, str]]]:
    """Site -> units that may go, and why the others may not."""
    if all_dead:
        return {site: tuple(units) for site, units in dead.items()}, {}
    chosen, left = {}, {}
    for proof in proofs:
        chosen[proof.site] = tuple(unit for unit, closed in zip(proof.units, proof.hull, strict=True) if closed)
        reason = "; ".join((UNPROVEN, *proof.reasons))
        left[proof.site] = {unit: reason for unit in proof.units if unit not in chosen[proof.site]}
    return {site: units for site, units in chosen.items() if units}, left


def _without(
    model: nn.Module,
    optimizer: Optimizer | None,
    site: str,
    units: Sequence[int],
    inputs: Sequence[Any],
    held_out: Sequence[Any],
) -> tuple[tuple[int, ...], dict[int, str]]:
    """Take units out of the model itself; gives back those that went, and why the others stayed."""
    wiring = follow(model, inputs[0])
    _, gone, stay = separable(model, wiring, site, units, inputs)
    layer, gone, open_ = separable(model, wiring, site, gone.tolist(), (*inputs, *held_out))
    stay |= dict.fromkeys(open_, OPENED)
    if layer is None or not len(gone):
        return (), stay
    went = remove(model, optimizer, wiring, layer, gone, inputs).tolist()
    return tuple(went), {**stay, **{unit: "a layer keeps one unit" for unit in gone.tolist() if unit not in went}}


def _broken(model: nn.Module, trial: nn.Module, samples: Sequence[Any]) -> str:
    """Why this network is none to keep; empty where its outputs are what they were."""
    try:
        change = output_change(outputs(model, samples), outputs(trial, samples))
    except Exception as error:  # the user's own code, at widths that it was not written for
        words = str(error).strip().split("\n")[0]
        return f"without them the network no longer runs ({type(error).__name__}: {words})"
    moved = f"without them the outputs move by {change:.2g} of their standard deviation"
    return "" if change <= KEEPS_FUNCTION else moved


# what it costs -------------------------------------------------------------------------------------------------------


def parameters(model: nn.Module) -> int:
    """Numbers that are trained, or could be."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops(model: nn.Module, inputs: Any) -> int:
    """Floating point operations of one pass over a batch, as torch counts them: products and sums of its layers."""
    with undisturbed(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()
        with BaseTorchFunctionMode():  # under a mode, nn.TransformerEncoderLayer takes no fused path, which counts as 0
            call(model, inputs)
    return counter.get_total_flops()


def _seconds(before: nn.Module, after: nn.Module, inputs: Any) -> tuple[float, float]:
    """Medians of a pass over the batch, measured in turns."""
    taken: tuple[list[float], list[float]] = [], []
    with undisturbed(before), undisturbed(after), torch.no_grad():
        pair = before.eval(), after.eval()
        for turn in [0, 1] + [0, 1, 1, 0] * ROUNDS:
            start = time.perf_counter()
            for y in tensors(call(pair[turn], inputs)):
                y.sum().item()  # waits for the device
            taken[turn].append(time.perf_counter() - start)
    first, second = (statistics.median(times[1:]) for times in taken)
    return first, second
