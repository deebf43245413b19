"""What remedies are made of: the records, and what they all need to know of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from relume.errors import RemedyError, SiteError
from relume.recording import Site
from relume.wiring import Place, Wiring, follow


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What a remedy is given: a copy it may change, and what is known of it."""

    model: nn.Module
    optimizer: Optimizer | None = None
    batches: tuple[Any, ...] = ()  # sample inputs; a tuple or a dict among them is passed on as the model's arguments
    targets: tuple[Any, ...] = ()  # of the same batches, where they are known
    example: Any = None  # an input to follow the network with; not meant for statistics
    sites: tuple[str, ...] | None = None  # names of the sites to treat; None: all that the remedy is meant for
    trained: bool = False
    dead: Mapping[str, Sequence[int]] | None = None  # site -> units known to be dead; None: to be found on the batches


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """What a remedy did."""

    changes: Mapping[str, str]  # place -> what was done there, or why it was left
    keeps_function: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """A change to the network, its optimizer or its inputs that treats a cause."""

    name: str
    title: str
    family: (
        str  # "activation", "normalisation", "initialisation", "optimizer", "gradient", "size", "revival", "inputs",
    )
    # "output", "connections"
    apply: Callable[[Network], Edit]  # changes the network it is given; RemedyError where it cannot
    when: str
    code: str  # Python that does it, given `model`, `optimizer` and, where sample inputs are needed, `example_input`
    paper: str = ""
    needs_batches: bool = False  # True: sample inputs are needed even for a fresh network


@dataclass(frozen=True, slots=True, kw_only=True)
class Treated:
    """Treated copies, and what was done to them."""

    model: nn.Module
    optimizer: Optimizer | None
    remedy: str
    changes: Mapping[str, str]
    keeps_function: bool
    output_change: float | None = None  # max |dy| / std(y) in eval mode on the sample inputs; None without any

    def __str__(self) -> str:
        lines = [f"{self.remedy}: {len(self.changes)} places"]
        lines += [f"  {place}: {words}" for place, words in self.changes.items()]
        if self.output_change is not None:
            kept = "the function is kept" if self.keeps_function else "the function changes"
            lines.append(f"  {kept}: outputs move by at most {self.output_change:.2g} of their standard deviation")
        return "\n".join(lines)


def require_optimizer(network: Network, what: str) -> Optimizer:
    if network.optimizer is None:
        raise RemedyError(
            f"{what} changes the optimizer, and none was given.\nPass the optimizer that trains the model."
        )
    return network.optimizer


def nothing_fits(what: str, reasons: Mapping[str, str], advice: str) -> RemedyError:
    found = "\n".join(f"  {place}: {reason}" for place, reason in reasons.items()) or "  no activation was found"
    return RemedyError(f"{what} cannot be applied.\n{found}\n{advice}")


def wiring_of(network: Network, what: str) -> Wiring:
    if network.example is None:
        raise RemedyError(
            f"{what} has to follow one forward pass of {type(network.model).__name__}, and no input could be guessed.\n"
            "Pass example_input; a tuple or a dict is passed on as the model's arguments."
        )
    wiring = follow(network.model, network.example)
    known = [site.name for site in wiring.sites]
    for name in network.sites or ():
        if name not in known:
            raise SiteError(
                f"no site named {name!r} in {type(network.model).__name__}.\n"
                f"Sites: {', '.join(known) or 'none'}.\n"
                "List them with relume.find_sites(model, example_input)."
            )
    return wiring


def targets_of(
    network: Network, wiring: Wiring, unfit: Callable[[Site, Place], str]
) -> tuple[list[int], dict[str, str]]:
    """Calls to treat, and why the others are left; sites that were named are not questioned for being the output."""
    chosen, left = [], {}
    for index, site in enumerate(wiring.sites):
        if network.sites is not None and site.name not in network.sites:
            continue
        place = wiring.places[index]
        reason = unfit(site, place)
        if network.sites is None and not reason:
            layer = place.layer
            if site.output:
                reason = "the network's own output"
            elif layer is not None and layer.steps["mul"] and any("goes into mul" in stop for stop in layer.stops):
                reason = "a gate: its output multiplies other values"
        if reason:
            left[site.name] = f"left as it is: {reason}"
        else:
            chosen.append(index)
    return chosen, left


def producing_weight(model: nn.Module, site: Site) -> Tensor | None:
    return dict(model.named_parameters(remove_duplicate=False)).get(site.weight)


def by_unit(x: Tensor, axis: int) -> Tensor:
    """Samples by units."""
    return x.detach().movedim(axis, -1).reshape(-1, x.shape[axis])


def snippet(name: str, *, example: bool = False, targets: bool = False, by_hand: str = "") -> str:
    """Python that a user can paste."""
    given = ", example_input=example_input" * example + ", targets=[targets]" * targets
    lines = [
        "import relume",
        "",
        *(["# targets: those of one batch, such as next(iter(loader))[1]"] if targets else []),
        *(["# example_input: one batch of your inputs, such as next(iter(loader))[0]"] if example else []),
        f'treated = relume.treat(model, optimizer, "{name}"{given})',
        "model, optimizer = treated.model, treated.optimizer",
    ]
    return "\n".join([*([f"# by hand: {by_hand}"] if by_hand else []), *lines])
