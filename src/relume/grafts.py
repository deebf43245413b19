"""Grafts: a module put in the place of an activation call, or before it, wherever in the code the call is."""

from __future__ import annotations

import copy
import types
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from relume.activations import ACTIVATIONS
from relume.nn import module as catalogue_module
from relume.nn import resolve
from relume.recording import Site
from relume.rewriting import Refusal, first_arguments, rewrite
from relume.sites import Call, Trace, is_site
from relume.surgery import KEEPS_FUNCTION
from relume.wiring import Place, Wiring, follow, output_change, outputs

Maker = Callable[[Sequence[Place]], nn.Module]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graft:
    """A module that now stands where activation calls were, or before them."""

    path: str
    module: nn.Module
    calls: tuple[int, ...]


# grafting -----------------------------------------------------------------------------------------------------------


class _Repeat(nn.Module):
    """The same call again, leaving its input alone: what a rehearsal puts in."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.again = (place.func, place.args, place.kwargs)

    def forward(self, x: Tensor) -> Tensor:
        func, args, kwargs = self.again
        return func(x.clone(), *args, **kwargs)


class _Clone(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def graft(
    model: nn.Module, inputs: Any, targets: Sequence[int], make: Maker, *, before: bool = False, separate: bool = False
) -> tuple[list[Graft], dict[int, str]]:
    """Put a module in the place of each activation call in `targets`, or before it; changes `model`.

    `make` is given the calls that the module will serve: several where they share one module or one line of code.
    With `separate` every call gets its own. Each graft is rehearsed first, with a module that does what was there:
    if that moves an output, in training or in eval mode, the place is refused. Gives back the grafts, and for each
    call that was left the reason.
    """
    left: dict[int, str] = {}
    accepted: list[int] = list(targets)
    expected = {training: _safe_outputs(model, inputs, training) for training in (False, True)}
    same: Maker = (lambda places: _Clone()) if before else (lambda places: _Repeat(places[0]))
    forced: set[int] = set()  # calls that can only be reached by rewriting the code around them
    own = {index for index, place in enumerate(follow(model, inputs).places) if place.own and place.in_place}
    while accepted:
        trial = copy.deepcopy(model)
        grafts, refused = _graft(trial, inputs, accepted, same, before, separate, forced)
        left.update(refused)
        accepted = [index for index in accepted if index not in refused]
        moved = _moved(trial, inputs, expected)
        if not moved:
            break
        guilty = _guilty(model, inputs, grafts, same, before, separate, forced, expected)
        if again := (guilty & own) - forced:  # an in-place module whose result nobody takes
            forced |= again
            continue
        for index in guilty:
            left[index] = f"putting the same function there again {moved}"
        accepted = [index for index in accepted if index not in guilty]
    if not accepted:
        return [], left
    grafts, refused = _graft(model, inputs, accepted, make, before, separate, forced)
    return grafts, {**left, **refused}


def _safe_outputs(model: nn.Module, inputs: Any, training: bool) -> list[Tensor] | None:
    try:
        return outputs(model, [inputs], training=training)
    except Exception:
        if not training:
            raise
        return None  # BatchNorm refuses a single sample in training; then eval mode alone is compared


def _moved(trial: nn.Module, inputs: Any, expected: Mapping[bool, list[Tensor] | None]) -> str:
    for training, old in expected.items():
        if old is None:
            continue
        mode = "in training" if training else "in eval mode"
        try:
            change = output_change(old, outputs(trial, [inputs], training=training))
        except Exception as error:
            return f"fails {mode} ({type(error).__name__}: {error})"
        if not change <= KEEPS_FUNCTION:
            return f"changes the network's output {mode}"
    return ""


def _guilty(
    model: nn.Module,
    inputs: Any,
    grafts: Sequence[Graft],
    same: Maker,
    before: bool,
    separate: bool,
    forced: set[int],
    expected: Any,
) -> set[int]:
    """The calls whose rehearsal, each on its own, moves the output; all of them where none does so alone."""
    found: set[int] = set()
    for done in grafts:
        trial = copy.deepcopy(model)
        _graft(trial, inputs, done.calls, same, before, separate, forced)
        if _moved(trial, inputs, expected):
            found.update(done.calls)
    return found or {index for done in grafts for index in done.calls}


def _graft(
    model: nn.Module, inputs: Any, targets: Sequence[int], make: Maker, before: bool, separate: bool, forced: set[int]
) -> tuple[list[Graft], dict[int, str]]:
    _unshare(model)
    wiring = follow(model, inputs)
    places, chosen = wiring.places, set(targets)
    left: dict[int, str] = {}
    grafts: list[Graft] = []
    rewrites: dict[str, list[int]] = defaultdict(list)
    done: set[int] = set()
    for index in targets:
        if index in done:
            continue
        place = places[index]
        path = place.frames[-1][0] if place.frames else ""
        owner = model.get_submodule(path)
        if place.own:
            group = [i for i, p in enumerate(places) if p.own and p.frames[-1][0] == path]
        else:
            group = [
                i for i, p in enumerate(places)
                if not p.own and (p.frames[-1][0] if p.frames else "") == path
                and p.call.site.activation == place.call.site.activation
            ]  # fmt: skip
        together = set(group) <= chosen and (len(group) == 1 or not separate)
        attribute = None if place.own else _attribute(owner, place)
        if together and place.own and path and index not in forced:
            module = make([places[i] for i in group])
            new = _before(module, owner) if before else module
            put_everywhere(model, owner, new)
            grafts.append(Graft(path=f"{path}.norm" if before else path, module=module, calls=tuple(group)))
        elif together and attribute and index not in forced:
            module = make([places[i] for i in group])
            new = _before(module, function_module(place)) if before else module
            setattr(owner, attribute, new.train(owner.training))
            if hasattr(owner, "activation_relu_or_gelu"):
                owner.__dict__["activation_relu_or_gelu"] = (
                    0  # else torch's fused kernel would go on applying the old function
                )
            name = f"{path}.{attribute}".lstrip(".") + (".norm" if before else "")
            grafts.append(Graft(path=name, module=module, calls=tuple(group)))
        else:
            rewrites[_code_of(place)[0]].append(index)
            continue
        done.update(group)
    for path, indices in rewrites.items():
        new, refused = _rewrite_calls(model, inputs, wiring, path, indices, make, before)
        grafts += new
        left.update(refused)
    return grafts, left


def _code_of(place: Place) -> tuple[str, int]:
    """The module whose code makes the call, and the number of calls made before it began."""
    frames = place.frames[:-1] if place.own else place.frames
    return frames[-1] if frames else ("", 0)


def _rewrite_calls(
    model: nn.Module, inputs: Any, wiring: Wiring, path: str, indices: Sequence[int], make: Maker, before: bool
) -> tuple[list[Graft], dict[int, str]]:
    owner = model.get_submodule(path)
    name = f"{type(owner).__name__}.forward" + (f" ({path})" if path else "")
    try:
        if type(owner).__module__.startswith("torch.nn."):
            raise Refusal(f"the call is inside torch's own {type(owner).__name__}")
        arguments = first_arguments(model, path, inputs)
        lines: dict[int, list[int]] = defaultdict(list)  # offset in the code -> calls, one for each visit
        for index, place in enumerate(wiring.places):
            where, begun = _code_of(place)
            if where == path:
                lines[index - begun].append(index)
        chosen = {offset: calls for offset, calls in lines.items() if set(calls) & set(indices)}
        partly = [i for calls in chosen.values() for i in calls if i not in indices]
        if partly:
            others = ", ".join(wiring.places[i].call.site.name for i in partly)
            raise Refusal(f"its code also makes the calls {others}, which were not chosen")
        new, grafts = {}, []
        for offset, calls in chosen.items():
            place = wiring.places[calls[0]]
            module = make([wiring.places[i] for i in calls]).train(owner.training)
            label = _free_name(owner, place.call.site.name, {n for n, _, _ in new.values()}, "norm_" if before else "")
            new[offset] = (label, module, place.in_place)
            grafts.append(Graft(path=f"{path}.{label}".lstrip("."), module=module, calls=tuple(calls)))
        rewrite(owner, arguments, new, before)
        return grafts, {}
    except Refusal as refusal:
        reason = f"in {name}: {refusal}; write the activation as its own module, self.act = nn.ReLU()"
        return [], dict.fromkeys(indices, reason)


def _free_name(owner: nn.Module, site: str, taken: set[str], prefix: str) -> str:
    base = prefix + site.rsplit(".", 1)[-1].split("#", maxsplit=1)[0]
    base = base if base.isidentifier() else f"act{base}"
    name, number = base, 2
    while hasattr(owner, name) or name in taken:
        name, number = f"{base}_{number}", number + 1
    return name


def function_module(place: Place) -> nn.Module:
    """The function that is called there, as a module of the catalogue."""
    return catalogue_module(place.call.site.activation, **place.call.site.parameters)


def _before(module: nn.Module, activation: nn.Module) -> nn.Sequential:
    new = nn.Sequential()
    new.add_module("norm", module)
    new.add_module("act", activation)
    return new.train(activation.training)


def put_everywhere(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` under every name under which `old` is registered."""
    new.train(old.training)
    for parent in list(model.modules()):
        if parent is new:
            continue
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new


def standing_activations(model: nn.Module) -> list[Place]:
    """Activation modules in the order of registration, for a model that cannot be run.

    A module's units are those of the linear, convolutional or normalising layer registered before it in the same
    container; after a linear layer their axis is not certain, so the shape is left empty.
    """
    kinds = {}
    for row in ACTIVATIONS.values():
        if is_site(row):
            for dotted in filter(None, (row.module, row.kept)):
                kinds.setdefault(resolve(dotted), row)
    leaves = [name for name, module in model.named_modules() if not list(module.children())]
    parameters = {id(p): name for name, p in model.named_parameters()}
    found: list[Place] = []
    for path, parent in model.named_modules():
        before: Any = None
        for name, child in parent.named_children():
            if isinstance(child, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, _BatchNorm)):
                before = child
            row = kinds.get(type(child))
            if row is None:
                continue
            where = f"{path}.{name}".lstrip(".")
            weight = getattr(before, "weight", None)
            dims = len(before.kernel_size) if isinstance(before, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else 0
            units = 1 if weight is None else weight.shape[0]
            numbers = {
                k: getattr(child, k) for k in row.parameters if isinstance(getattr(child, k, None), (int, float))
            }
            site = Site(
                name=where,
                activation=row.name,
                parameters=numbers,
                units=units,
                axis=-1 - dims,
                order=len(found),
                weight=parameters.get(id(weight), ""),
                normalised=isinstance(before, _BatchNorm),
                output=where == leaves[-1],
            )
            found.append(
                Place(
                    call=Call(len(found), site),
                    frames=((path, len(found)), (where, len(found))),
                    own=True,
                    shape=(1, units, *[1] * dims) if dims else (),
                    device=weight.device if weight is not None else torch.device("cpu"),
                    dtype=weight.dtype if weight is not None else torch.get_default_dtype(),
                    in_place=bool(getattr(child, "inplace", False)),
                    layer=None,
                    func=child,
                    args=(),
                    kwargs={},
                )
            )
    return found


def _unshare(model: nn.Module) -> None:
    """In each nn.Sequential, an activation module that stands at several positions becomes one module each."""
    for parent in model.modules():
        if isinstance(parent, nn.Sequential):
            seen: set[int] = set()
            for name, child in list(parent._modules.items()):
                if child is None or next(child.parameters(), None) is not None:
                    continue
                if id(child) in seen:
                    parent._modules[name] = copy.deepcopy(child)
                seen.add(id(child))


def _attribute(owner: nn.Module, place: Place) -> str | None:
    """The attribute in which the module keeps the function that it calls, such as `self.activation = F.relu`."""
    found = []
    for name, value in vars(owner).items():
        function = getattr(value, "func", value)  # of a functools.partial
        home = getattr(function, "__module__", None) or ""
        if isinstance(value, nn.Module) or not callable(value):
            continue
        if home.startswith("torch") or isinstance(function, types.BuiltinFunctionType):
            with torch.no_grad(), Trace(nn.Identity()) as trace:
                try:
                    value(torch.zeros(2, 2))
                except Exception:  # some other function that wants other arguments
                    continue
            if [call.site.activation for call in trace.calls] == [place.call.site.activation]:
                found.append(name)
    return found[0] if len(found) == 1 else None
