"""Edits to a network and its optimizer that can be trusted: copies, parameters that come and go, units that leave."""

from __future__ import annotations

import copy
import types
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from relume.attributes import Attributes
from relume.errors import RemedyError
from relume.nested import call
from relume.nn import Curve
from relume.recording import ONE_CONSTANT
from relume.sites import undisturbed
from relume.wiring import Layer, Wiring

# "Keeps the function": outputs move by at most this share of their standard deviation, in float32 and eval mode.
KEEPS_FUNCTION = 1e-5

# What an optimizer carries in its __dict__ that belongs to it alone: `step` is there when a scheduler has wrapped it,
# and the wrapper steps the optimizer it was made for, whoever holds it.
_OWN = {"step", "_opt_called", "state", "param_groups", "defaults", "_warned_capturable_if_run_uncaptured"}
_OF_THE_LOOP = (nn.Module, Tensor, Optimizer, LRScheduler)  # what a hook of a copy must not reach
STEP_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


# copies -------------------------------------------------------------------------------------------------------------


def duplicate(
    model: nn.Module, optimizer: Optimizer | None, memo: dict[int, Any] | None = None
) -> tuple[nn.Module, Optimizer | None]:
    """Copies of both, the copied optimizer driving the copied parameters with its state carried along.

    Forward and step hooks come along; gradients do not. `memo` is filled as by `copy.deepcopy`, for those who want to
    know which copy is of what. Raises RemedyError where the model cannot be copied.
    """
    memo = {} if memo is None else memo
    for tensor in Attributes(model.modules()).of_graphs:  # such as activations that `forward` keeps; none can be copied
        memo[id(tensor)] = tensor.detach().clone()
        memo.setdefault(id(memo), []).append(tensor)
    try:
        new_model = copy.deepcopy(model, memo)
    except Exception as error:
        raise RemedyError(
            f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}.\n"
            "A treatment works on a copy: keep no open files, generators or graph tensors as attributes of the model."
        ) from None
    for module, twin in zip(model.modules(), new_model.modules(), strict=True):
        if module.training != twin.training:
            twin.training = module.training
    if optimizer is None:
        return new_model, None
    new_optimizer = _copy_optimizer(optimizer, memo)
    _require_driven(model, optimizer, new_model, new_optimizer)
    return new_model, new_optimizer


def copied_loss(loss: Any, memo: dict[int, Any] | None = None) -> Any:
    """A loss to train copies with: its own, where it is a module, which may have parameters and keep a state.

    `memo` is as for `duplicate`: an optimizer that drives the loss's parameters is then copied to drive the copy's.
    Raises RemedyError where it cannot be copied.
    """
    if not isinstance(loss, nn.Module):
        return loss
    try:
        return copy.deepcopy(loss, memo)
    except Exception as error:
        raise RemedyError(
            f"the loss {type(loss).__name__} cannot be copied: {type(error).__name__}: {error}.\n"
            "Give a loss that copy.deepcopy can copy, or a function."
        ) from None


def require_own_hooks(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose step hooks are functions that hold objects of the loop: a copy's would drive those.

    A function is not copied with the optimizer, and a scheduler or a parameter that it closes over is the loop's own.
    Raises RemedyError.
    """
    for name in STEP_HOOKS:
        for hook in vars(optimizer).get(name, {}).values():
            held = _held_by(hook)
            if held is not None:
                raise RemedyError(
                    f"a step hook of {type(optimizer).__name__} holds a {type(held).__name__} of your loop, which "
                    "copies of the optimizer would drive.\nMake the hook an object that copy.deepcopy copies, or step "
                    "your scheduler in the loop."
                )


def _held_by(hook: Any) -> Any:
    """What of the loop a plain function reaches: by its closure, its defaults, or its module's globals."""
    if not isinstance(hook, types.FunctionType):
        return None
    inside = [cell.cell_contents for cell in hook.__closure__ or ()] + list(hook.__defaults__ or ())
    inside += [hook.__globals__[name] for name in hook.__code__.co_names if name in hook.__globals__]
    held = [part for value in inside for part in (value if isinstance(value, (list, tuple)) else (value,))]
    return next((value for value in held if isinstance(value, _OF_THE_LOOP)), None)


def _copy_optimizer(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    try:
        twin = copy.deepcopy(optimizer, memo)
        for name, value in vars(optimizer).items():
            if name in STEP_HOOKS or (name not in _OWN and name not in vars(twin)):
                setattr(twin, name, copy.deepcopy(value, memo))
        return twin
    except Exception as error:
        try:  # by class and state, the way a checkpoint is read
            groups = [
                {
                    k: [copy.deepcopy(p, memo) for p in v] if k == "params" else copy.deepcopy(v)
                    for k, v in group.items()
                }
                for group in optimizer.param_groups
            ]
            twin = type(optimizer)(groups, **optimizer.defaults)
            twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            return twin
        except Exception:
            raise RemedyError(
                f"the optimizer {type(optimizer).__name__} cannot be copied: {type(error).__name__}: {error}.\n"
                "Treat the model with optimizer=None and make a new optimizer for the treated copy."
            ) from None


def _require_driven(model: nn.Module, optimizer: Optimizer, twin: nn.Module, new_optimizer: Optimizer) -> None:
    """Every parameter of the model that the optimizer drives must be driven by its copy, in the same group."""
    pairs = {id(p): q for p, q in zip(model.parameters(), twin.parameters(), strict=True)}
    for group, new_group in zip(optimizer.param_groups, new_optimizer.param_groups, strict=True):
        for p, q in zip(group["params"], new_group["params"], strict=True):
            if pairs.get(id(p), q) is not q:
                raise RemedyError(
                    f"the copy of {type(optimizer).__name__} does not drive the copied model.\n"
                    "Treat the model with optimizer=None and make a new optimizer for the treated copy."
                )


# parameters in the optimizer ----------------------------------------------------------------------------------------


def group_of(optimizer: Optimizer, parameter: Tensor | None) -> dict[str, Any] | None:
    """The parameter group that holds `parameter`."""
    return next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), None)


def left_out(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """The parameters that want gradients and that the optimizer was not given, by name."""
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) not in known}


def register(
    optimizer: Optimizer | None, named: Mapping[str, nn.Parameter], near: Tensor | None, *, decay: bool = True
) -> None:
    """Hand new parameters to the optimizer, with the settings of the group that holds `near`.

    Without `decay` they get no weight decay, in a group of their own where the group of `near` has some.
    """
    if optimizer is None or not named:
        return
    group = group_of(optimizer, near) or optimizer.param_groups[0]
    if decay or not group.get("weight_decay"):
        group["params"].extend(named.values())
        if "param_names" in group:
            group["param_names"].extend(named)
        return
    settings = {k: copy.deepcopy(v) for k, v in group.items() if k not in ("params", "param_names")}
    named_too = "param_names" in group
    params: Any = list(named.items()) if named_too else list(named.values())
    optimizer.add_param_group({**settings, "weight_decay": 0.0, "params": params})


def _state(optimizer: Optimizer | None, parameter: Tensor) -> dict[str, Any]:
    return optimizer.state[parameter] if optimizer is not None and parameter in optimizer.state else {}


def select(optimizer: Optimizer | None, parameter: nn.Parameter, dim: int, index: Tensor) -> None:
    """Keep the slices `index` of a parameter, and of what the optimizer remembers of it; it stays the same object."""
    state, shape = _state(optimizer, parameter), parameter.shape
    sliced = {}
    for key, value in state.items():
        if isinstance(value, Tensor) and value.dim() and value.numel() > 1:
            if value.shape != shape:  # factored moments (Adafactor) do not slice: they start anew
                sliced = None
                break
            sliced[key] = value.index_select(dim, index.to(value.device)).clone()
    parameter.grad = None
    parameter.data = parameter.data.index_select(dim, index.to(parameter.device)).clone()
    if optimizer is not None and state:
        if sliced is None:
            del optimizer.state[parameter]
        else:
            state.update(sliced)


def forget(optimizer: Optimizer | None, parameter: Tensor, dim: int = 0, index: Tensor | None = None) -> None:
    """Clear what the optimizer remembers of the slices `index` of a parameter, or of all of it."""
    state = _state(optimizer, parameter)
    for value in state.values():
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim():
            if index is None:
                value.zero_()
            else:
                value.index_fill_(dim, index.to(value.device), 0)


# units --------------------------------------------------------------------------------------------------------------


def columns_of(units: Tensor, block: int) -> Tensor:
    """The columns in which a reader sees these units."""
    return (units[:, None] * block + torch.arange(block, device=units.device)).reshape(-1)


def plain_layer(model: nn.Module, layer: Layer) -> Any:
    """The nn.Linear or nn.Conv module of a layer."""
    return model.get_submodule(layer.path)


def constants(model: nn.Module, layer: Layer, batches: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
    """Least and greatest value each column of each reader of `layer` gets over the batches, in eval mode."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []

    def watch(path: str) -> Any:
        def note(module: nn.Module, args: Any) -> None:
            x = args[0].detach()
            x = x.reshape(-1, x.shape[-1]) if isinstance(module, nn.Linear) else x.transpose(1, -1)
            x = x.reshape(-1, x.shape[-1])
            low, high = x.amin(0), x.amax(0)
            if path in seen:
                low, high = torch.minimum(low, seen[path][0]), torch.maximum(high, seen[path][1])
            seen[path] = low, high

        return note

    try:
        for reader in layer.readers:
            handles.append(model.get_submodule(reader.path).register_forward_pre_hook(watch(reader.path)))
        with undisturbed(model), torch.no_grad():
            model.eval()
            for inputs in batches:
                call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [seen[reader.path] for reader in layer.readers]


def why_not_constant(
    model: nn.Module, layer: Layer, units: Tensor, ranges: Sequence[tuple[Tensor, Tensor]]
) -> dict[int, str]:
    """Those of the units whose output cannot be moved into the readers' biases, and why."""
    found: dict[int, str] = {}
    for reader, (low, high) in zip(layer.readers, ranges, strict=True):
        columns = columns_of(units.to(low.device), reader.block)
        least, most = (side[columns].reshape(-1, reader.block) for side in (low, high))
        size = torch.maximum(least.abs(), most.abs())
        varies = (~(most - least <= ONE_CONSTANT * size)).any(1)  # NaN varies
        module: Any = model.get_submodule(reader.path)
        stuck = "has no bias to take it" if module.bias is None else "pads its input with zeros" * reader.padded
        for unit, moves, given in zip(units.tolist(), varies.tolist(), (size != 0).any(1).tolist(), strict=True):
            if moves:
                found[unit] = f"they still vary where {reader.path} reads them"
            elif given and stuck:
                found[unit] = f"they give a constant other than zero and {reader.path} {stuck}"
    return found


@torch.no_grad()
def cut_outgoing(
    model: nn.Module,
    optimizer: Optimizer | None,
    layer: Layer,
    units: Tensor,
    ranges: Sequence[tuple[Tensor, Tensor]] | None,
) -> None:
    """Zero the weights with which other layers read these units; a constant they gave goes into the readers' biases."""
    for number, reader in enumerate(layer.readers):
        module: Any = model.get_submodule(reader.path)
        columns = columns_of(units.to(module.weight.device), reader.block)
        if ranges is not None and module.bias is not None:
            constant = torch.stack(ranges[number]).double().mean(0)[columns]
            sums = module.weight[:, columns].double().flatten(2).sum(2) if module.weight.dim() > 2 else None
            sums = module.weight[:, columns].double() if sums is None else sums
            module.bias += (sums @ constant.to(sums)).to(module.bias)
        module.weight[:, columns] = 0
        forget(optimizer, module.weight, 1, columns)


@torch.no_grad()
def narrow(model: nn.Module, optimizer: Optimizer | None, layer: Layer, keep: Tensor) -> None:
    """Keep only the units `keep` of a layer: its rows, their norms and slopes, and the columns of its readers."""
    module = plain_layer(model, layer)
    select(optimizer, module.weight, 0, keep)
    if module.bias is not None:
        select(optimizer, module.bias, 0, keep)
    _resize(module, "out", len(keep))
    for path, block in layer.norms:
        norm: Any = model.get_submodule(path)
        index = columns_of(keep, block)
        if norm.affine:
            select(optimizer, norm.weight, 0, index)
            select(optimizer, norm.bias, 0, index)
        if norm.running_mean is not None:
            norm.running_mean = norm.running_mean[index].clone()
            norm.running_var = norm.running_var[index].clone()
        norm.num_features = len(index)
    for reader in layer.readers:
        reading: Any = model.get_submodule(reader.path)
        columns = columns_of(keep, reader.block)
        select(optimizer, reading.weight, 1, columns)
        _resize(reading, "in", len(columns))


def narrow_slopes(optimizer: Optimizer | None, module: nn.Module, units: int, keep: Tensor) -> None:
    """Keep the learnt parameters of a PReLU, or the like, that stands between a narrowed layer and its readers."""
    if not isinstance(module, (nn.PReLU, Curve)):
        return
    for parameter in list(module.parameters()):
        if parameter.numel() > 1:
            block = parameter.numel() // units
            with torch.no_grad():
                select(optimizer, parameter, 0, columns_of(keep, block))
            if isinstance(module, nn.PReLU):
                module.num_parameters = len(keep) * block


def remove(
    model: nn.Module, optimizer: Optimizer | None, wiring: Wiring, layer: Layer, gone: Tensor, batches: Sequence[Any]
) -> Tensor:
    """Take dead units out of a layer; what they gave the readers goes into their biases. Gives back who is gone.

    A layer keeps one unit, whatever is asked. `batches` show what the units give; without any, that is zero.
    """
    alive = torch.ones(layer.units, dtype=torch.bool, device=gone.device)
    alive[gone] = False
    alive[0] |= not bool(alive.any())
    keep, gone = torch.nonzero(alive).flatten(), torch.nonzero(~alive).flatten()
    if batches and len(gone):
        cut_outgoing(model, optimizer, layer, gone, constants(model, layer, batches))
    shrink(model, optimizer, wiring, layer, keep)
    return gone


def shrink(model: nn.Module, optimizer: Optimizer | None, wiring: Wiring, layer: Layer, keep: Tensor) -> None:
    """Keep only the units `keep` of a layer, its norms, the activations behind it and its readers."""
    units = layer.units
    narrow(model, optimizer, layer, keep)
    for index in layer.sites:
        place = wiring.places[index]
        if place.own:
            narrow_slopes(optimizer, model.get_submodule(place.frames[-1][0]), units, keep)


def _resize(module: Any, side: str, width: int) -> None:
    setattr(module, f"{side}_features" if isinstance(module, nn.Linear) else f"{side}_channels", width)


def why_not_narrow(model: nn.Module, layer: Layer) -> str:
    """Why a layer's units cannot be removed; empty where they can."""
    return layer.stops[0] if layer.stops else _grouped(model, layer)


def why_not_cut(model: nn.Module, layer: Layer) -> str:
    """Why a layer's units cannot be cut off from their readers and drawn anew; empty where they can."""
    stops = [stop for stop in layer.stops if stop not in layer.shared]
    return stops[0] if stops else _grouped(model, layer)


def _grouped(model: nn.Module, layer: Layer) -> str:
    return "its channels are in groups" if getattr(plain_layer(model, layer), "groups", 1) != 1 else ""


def layer_norms_of(model: nn.Module, layer: Layer) -> list[tuple[nn.LayerNorm, int]]:
    """As `norms_of`, the layer normalisations over its units."""
    found = []
    for path, block in layer.layer_norms:
        norm = model.get_submodule(path)
        assert isinstance(norm, nn.LayerNorm)
        found.append((norm, block))
    return found


def norms_of(model: nn.Module, layer: Layer) -> list[tuple[_BatchNorm, int]]:
    """The batch normalisations between a layer and its readers, with the number of features per unit."""
    found = []
    for path, block in layer.norms:
        norm = model.get_submodule(path)
        assert isinstance(norm, _BatchNorm)
        found.append((norm, block))
    return found
