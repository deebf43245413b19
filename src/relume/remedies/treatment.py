"""How a remedy is applied: to copies, with what was done, and how far the outputs moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from relume.errors import RemedyError
from relume.randomness import isolated_rng
from relume.recording import Site
from relume.remedies.combination import find_remedy
from relume.remedies.record import Network, Remedy, Treated
from relume.surgery import KEEPS_FUNCTION, duplicate
from relume.wiring import guess_input, output_change, outputs, require_runs


def treat(
    model: nn.Module,
    optimizer: Optimizer | None,
    remedy: str | Remedy,
    sites: Sequence[str | Site] | str | None = None,
    *,
    example_input: Any = None,
    batches: Sequence[Any] = (),
    targets: Sequence[Any] = (),
    trained: bool | None = None,
    dead: Mapping[str, Sequence[int]] | None = None,
) -> Treated:
    """Apply a remedy to copies of a model and its optimizer; the originals and the random generators are untouched.

    `sites` are names as `relume.find_sites` gives them (default: all that the remedy is meant for). `example_input` is
    one input of the model, `batches` are more of them, for statistics; a tuple or a dict is passed on as the model's
    arguments. Without any, an input is guessed from the first layer. `targets` are those of the batches, which
    `scale_targets` measures. `trained` defaults to whether the optimizer has a
    state; `dead` names the units known to be dead, which else are found on the sample inputs.

    Several remedies, one after the other, are named with plus signs: "lower_learning_rate+recycle".

    Raises RemedyError where the remedy is unknown or cannot be applied, SiteError for a site that is not there.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> treated = treat(model, optimizer, "prelu")
    >>> treated.model[1], len(treated.optimizer.param_groups[0]["params"])
    (PReLU(num_parameters=8), 5)
    """
    chosen = remedy if isinstance(remedy, Remedy) else find_remedy(remedy)
    samples = (*(() if example_input is None else (example_input,)), *batches)
    if isinstance(sites, (str, Site)):
        sites = (sites,)
    names = None if sites is None else tuple(s.name if isinstance(s, Site) else s for s in sites)
    with isolated_rng():
        new_model, new_optimizer = duplicate(model, optimizer)
        if trained is None:
            trained = optimizer is not None and bool(optimizer.state)
        network = Network(
            model=new_model, optimizer=new_optimizer, batches=samples, targets=tuple(targets), sites=names,
            trained=trained, dead=dead,
        )  # fmt: skip
        return operate(network, chosen)


def operate(network: Network, remedy: Remedy) -> Treated:
    """Apply a remedy to the network itself, and measure what that did to its outputs.

    Raises RemedyError where an edit that claims to keep the function does not, or leaves a network that does not run.
    """
    example = network.example
    if network.batches:
        example = network.batches[0]
        require_runs(network.model, example)
    elif example is None:
        with isolated_rng():
            example = guess_input(network.model)
    network = replace(network, example=example)
    before = None if example is None else outputs(network.model, network.batches or (example,))
    edit = remedy.apply(network)
    change = None
    if before is not None:
        try:
            after = outputs(network.model, network.batches or (example,))
        except Exception as error:
            raise RemedyError(
                f"{remedy.name}: the treated {type(network.model).__name__} no longer runs: {error}.\n"
                "Its code seems to rely on sizes or attributes that the remedy changed; treat fewer sites, by name."
            ) from None
        change = output_change(before, after)
        if edit.keeps_function and not change <= KEEPS_FUNCTION:
            raise RemedyError(
                f"{remedy.name} should keep the function, but moved the outputs by {change:.2g} of their standard "
                "deviation.\nThe network uses the treated units in a way that was not seen; treat fewer sites."
            )
    return Treated(
        model=network.model,
        optimizer=network.optimizer,
        remedy=remedy.name,
        changes=dict(edit.changes),
        keeps_function=edit.keeps_function,
        output_change=change if network.batches else None,
    )
