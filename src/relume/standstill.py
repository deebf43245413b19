"""Which units got no gradient in any step between two looks, told from what the optimizer keeps of them.

A parameter whose gradient is zero still moves: momentum decays, weight decay pulls. But it moves exactly so. Where the
optimizer's state of a unit's bias (of its weights, where it has no bias) is after some steps what it would be had every
gradient been zero, every gradient was: a unit that fired once would show. This needs no hook, counts every sample of
every step, and holds under torch.compile, gradient scaling, clipping, accumulation and DDP, whose gradients are summed
before the optimizer sees them.

It says that no gradient came, not why. A closed layer behind the unit stops the gradient as well, and a sample whose
loss is at its floor sends none: so a unit is dead only if it is silent in the forward pass too, and a step counts for
as many samples as still have a gradient at the unit's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from relume.activations import ACTIVATIONS
from relume.recording import Site

ROUNDING = (
    4.0  # times the square root of the steps: units in the last place by which two orders of the same sums differ
)
UNDERFLOW = 1e-36  # decay ends in float32's subnormal numbers, near 1e-38, where rounding is no longer relative
EXACT = (torch.float32, torch.float64)  # in coarser types a small gradient is lost in the rounding of the decay
FEW = 512  # numbers that are sooner looked through in Python than by torch, whose kernels are not in the cache
RESOLVED = 100.0  # a hundredth of the usual gradient must move a number that is to tell that no gradient came

Array = NDArray[np.floating[Any]]  # in the parameter's own type: what rounding does to it must be repeated
Group = Mapping[str, Any]
State = dict[str, Array]  # the optimizer's tensors of some rows of a parameter; "" is the parameter itself


# What an optimizer makes of a gradient of zero ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How the state of one optimizer goes on where the gradient is zero.

    `decays` gives what must go as foretold, and its factor at each step; `pulled` does one step with the gradient that
    weight decay alone makes, given the learning rate and the number of the step.
    """

    decays: Callable[[Group], dict[str, float]]
    pulled: Callable[[State, Group, float, float], None] | None = None


def _sgd(state: State, group: Group, rate: float, step: float) -> None:
    update = group["weight_decay"] * state[""]
    if group["momentum"]:
        buffer = state["momentum_buffer"]
        buffer = state["momentum_buffer"] = group["momentum"] * buffer + (1 - group["dampening"]) * update
        update = update + group["momentum"] * buffer if group["nesterov"] else buffer
    state[""] = state[""] - rate * update


def _adam(state: State, group: Group, rate: float, step: float) -> None:
    first, second = group["betas"]
    gradient = group["weight_decay"] * state[""]
    state["exp_avg"] = first * state["exp_avg"] + (1 - first) * gradient
    size = state["exp_avg_sq"] = second * state["exp_avg_sq"] + (1 - second) * gradient**2
    if group["amsgrad"]:
        size = state["max_exp_avg_sq"] = np.maximum(state["max_exp_avg_sq"], size)
    scale = np.sqrt(size / (1 - second**step)) + group["eps"]
    state[""] = state[""] - rate * state["exp_avg"] / (1 - first**step) / scale


def _rmsprop(state: State, group: Group, rate: float, step: float) -> None:
    gradient = group["weight_decay"] * state[""]
    size = state["square_avg"] = group["alpha"] * state["square_avg"] + (1 - group["alpha"]) * gradient**2
    if group["centered"]:
        mean = state["grad_avg"] = group["alpha"] * state["grad_avg"] + (1 - group["alpha"]) * gradient
        size = size - mean**2
    update = gradient / (np.sqrt(size) + group["eps"])
    if group["momentum"]:
        update = state["momentum_buffer"] = group["momentum"] * state["momentum_buffer"] + update
    state[""] = state[""] - rate * update


def _adagrad(state: State, group: Group, rate: float, step: float) -> None:
    gradient = group["weight_decay"] * state[""]
    state["sum"] = state["sum"] + gradient**2
    state[""] = state[""] - rate / (1 + (step - 1) * group["lr_decay"]) * gradient / (
        np.sqrt(state["sum"]) + group["eps"]
    )


def _first_moment(group: Group) -> dict[str, float]:
    return {"exp_avg": group["betas"][0]}


def _sgd_decays(group: Group) -> dict[str, float]:
    return {"momentum_buffer": group["momentum"]} if group["momentum"] else {"": 1.0}


def _rmsprop_decays(group: Group) -> dict[str, float]:
    return {"momentum_buffer": group["momentum"]} if group["momentum"] else {"square_avg": group["alpha"], "": 1.0}


RULES: dict[type[Optimizer], Rule] = {
    optim.SGD: Rule(decays=_sgd_decays, pulled=_sgd),
    optim.Adam: Rule(decays=_first_moment, pulled=_adam),
    optim.AdamW: Rule(decays=_first_moment),
    optim.NAdam: Rule(decays=_first_moment),
    optim.RAdam: Rule(decays=_first_moment),
    optim.Adamax: Rule(decays=_first_moment),
    optim.RMSprop: Rule(decays=_rmsprop_decays, pulled=_rmsprop),
    optim.Adagrad: Rule(decays=lambda group: {"sum": 1.0, "": 1.0}, pulled=_adagrad),
}


def _is_pulled(optimizer: Optimizer, group: Group) -> bool:
    """Whether weight decay reaches the state as a gradient does."""
    decoupled = isinstance(optimizer, optim.AdamW) or bool(group.get("decoupled_weight_decay"))
    return bool(group.get("weight_decay")) and not decoupled


@dataclass(frozen=True, slots=True)
class _Kept:
    """What was there at a look: the state of some rows, and the settings of their group."""

    state: State
    settings: dict[str, Any]
    rate: float
    step: float  # of the optimizer, where it counts


def stands(rule: Rule, before: _Kept, now: _Kept, steps: int, *, pulled: bool, epsilon: float) -> NDArray[np.bool_]:
    """Per row: whether the state is what `steps` gradients of zero make of it.

    `epsilon` is the rounding of the parameter's type. Equality is asked for, up to the order in which torch's three
    implementations compute; where weight decay pulls and the learning rate changed, also up to what that may explain.
    """
    decays = rule.decays(now.settings)
    if before.settings != now.settings or steps < 1 or any(name not in before.state for name in decays):
        return np.zeros(len(now.state[""]), dtype=np.bool_)
    foretold = dict(before.state)
    scale = {name: np.abs(foretold[name]) * decay**steps for name, decay in decays.items()}
    if not pulled:
        foretold |= {name: foretold[name] * decay**steps for name, decay in decays.items()}
    for i in range(steps if pulled else 0):
        last = dict(foretold)
        assert rule.pulled is not None
        rate = before.rate + (now.rate - before.rate) * (i + 1) / steps
        rule.pulled(foretold, now.settings, rate, before.step + i + 1)
        for name, decay in decays.items():
            scale[name] += decay ** (steps - 1 - i) * np.abs(foretold[name] - decay * last[name])
    holds: NDArray[np.bool_] = np.ones(now.state[""].shape, dtype=np.bool_)
    for name, decay in decays.items():
        if decay == 1.0 and not pulled:
            holds &= now.state[name] == foretold[name]
            continue
        within = UNDERFLOW + ROUNDING * epsilon * steps**0.5 * scale[name]
        if pulled and name and before.rate != now.rate:
            change = abs(now.rate - before.rate) / max(now.rate, before.rate)
            within = within + now.settings["weight_decay"] * change * np.abs(now.state[""] - before.state[""])
        holds &= np.abs(now.state[name] - foretold[name]) <= within
    return np.all(holds, axis=1)


# Looking ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Bundle:
    """Parameters of one group that tell of units, a row each, looked at together."""

    names: list[str]  # the sites
    parameters: list[nn.Parameter]
    group: int
    ends: list[int]  # of each parameter's rows
    idle: NDArray[np.int64]  # steps in a row without a gradient, up to the last look
    zero: NDArray[np.bool_]  # no gradient in the very step of the last look
    moved: NDArray[np.int64]  # steps done at the last look at which there was one, -1 for none
    kept: _Kept | None = None  # of those rows

    def of(self, name: str) -> slice:
        at = self.names.index(name)
        return slice(self.ends[at - 1] if at else 0, self.ends[at])


@dataclass(slots=True)
class Standstill:
    """Looks at the optimizer's state now and then; `idle` tells how long each unit has had no gradient.

    `look(step)` is called after an optimizer step while the gradients are there, with the number of steps done. A look
    at which every unit has a gradient reads one number of each; only of units without one is the state compared.
    """

    model: nn.Module
    optimizer: Optimizer
    blind: list[str] = field(default_factory=list)
    _bundles: dict[Any, _Bundle] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)
    _few: list[nn.Parameter] = field(default_factory=list)  # all that are followed, if they have few numbers
    _step: int = 0
    _any: bool = False  # some row was without gradient at the last look

    def follow(self, sites: Iterable[Site]) -> None:
        """Follow the units of these sites, as far as their function can be flat and a parameter tells of each unit."""
        new = [site for site in sites if site.name not in self._seen and ACTIVATIONS[site.activation].can_die]
        if not new:
            return
        self._seen.update(site.name for site in new)
        kind = type(self.optimizer).__name__
        rule = RULES.get(type(self.optimizer))
        if rule is None:
            self.blind = [f"{kind}'s state says nothing to relume: units without gradient are found by readings alone"]
            return
        parameters, modules = dict(self.model.named_parameters()), dict(self.model.named_modules())
        groups = {id(p): i for i, group in enumerate(self.optimizer.param_groups) for p in group["params"]}
        for site in new:
            parameter = parameters.get(_telling(site, modules))
            if parameter is None or id(parameter) not in groups or parameter.dim() == 0:
                continue
            group = groups[id(parameter)]
            if parameter.shape[0] != site.units or parameter.dtype not in EXACT:
                continue
            if rule.pulled is None and _is_pulled(self.optimizer, self.optimizer.param_groups[group]):
                self.blind = [
                    f"{kind} mixes its weight decay with the gradient in a way that relume does not follow: "
                    "units without gradient are found by readings alone"
                ]
                continue
            alike = (group, parameter.dtype, parameter.device) if parameter.dim() == 1 else site.name
            self._bundles[alike] = _joined(self._bundles.get(alike), site.name, parameter, group)
        every = [p for bundle in self._bundles.values() for p in bundle.parameters]
        few = all(p.is_cpu and p.dim() == 1 for p in every) and sum(map(len, every)) <= FEW
        self._few = every if few else []

    @property
    def idle(self) -> dict[str, NDArray[np.int64]]:
        """By site, how many steps in a row up to the last look each unit got no gradient; sites with none left out."""
        if not self._any:
            return {}
        every = {name: b.idle[b.of(name)] for b in self._bundles.values() for name in b.names}
        return {name: idle for name, idle in every.items() if idle.any()}

    def moved(self, name: str) -> NDArray[np.int64] | None:
        """Steps done at the last look at which each unit of a site had a gradient, -1 for none; None: not followed."""
        bundle = next((b for b in self._bundles.values() if name in b.names), None)
        return None if bundle is None else bundle.moved[bundle.of(name)]

    @property
    def stopped(self) -> dict[str, NDArray[np.bool_]]:
        """By site, which units got no gradient in the very step of the last look; sites with none left out."""
        if not self._any:
            return {}
        every = {name: b.zero[b.of(name)] for b in self._bundles.values() for name in b.names}
        return {name: zero for name, zero in every.items() if zero.any()}

    def look(self, step: int) -> bool:
        """Compare with the last look; whether some unit has no gradient."""
        steps = step - self._step
        if not self._any and self._few and steps > 0 and _all_there(self._few):
            self._step = step
            for bundle in self._bundles.values():
                bundle.moved[:] = step
            return False
        gradients = [_gradients(bundle) for bundle in self._bundles.values()]
        if not gradients:
            self._step = step
        if steps < 1 or all(g is None for g in gradients):
            return self._any  # the gradients are cleared: nothing can be told
        self._step = step
        self._any = False
        for bundle, gradient in zip(self._bundles.values(), gradients, strict=True):
            self._compare(bundle, gradient, steps)
        return self._any

    def _compare(self, bundle: _Bundle, gradient: list[Tensor] | None, steps: int) -> None:
        before, was = bundle.kept, bundle.zero
        zero = np.zeros_like(was) if gradient is None else torch.cat(gradient).cpu().numpy() == 0
        bundle.zero, bundle.kept = zero, None
        if gradient is not None:
            known = np.concatenate([np.full(len(p), p.grad is not None) for p in bundle.parameters])
            bundle.moved[~zero & known] = self._step
        idle = np.zeros_like(bundle.idle)
        if zero.any():
            self._any = True
            bundle.kept = self._keep(bundle, np.flatnonzero(zero))
            both = was & zero
            if before is not None and both.any():
                old, new = _rows(before, both[was]), _rows(bundle.kept, both[zero])
                done = int(new.step - old.step) if new.step or old.step else steps  # an AMP scaler leaves steps out
                pulled = _is_pulled(self.optimizer, new.settings)
                rule = RULES[type(self.optimizer)]
                epsilon = torch.finfo(bundle.parameters[0].dtype).eps
                still = stands(rule, old, new, done, pulled=pulled, epsilon=epsilon)
                idle[both] = np.where(still, bundle.idle[both] + steps, 0)
        bundle.idle = idle

    def _keep(self, bundle: _Bundle, rows: NDArray[np.int64]) -> _Kept:
        group = self.optimizer.param_groups[bundle.group]
        states = [self.optimizer.state.get(p, {}) for p in bundle.parameters]
        wanted = set(RULES[type(self.optimizer)].decays(group))
        if _is_pulled(self.optimizer, group):
            wanted |= {name for name, value in states[0].items() if _is_like(value, bundle.parameters[0])}
        at = torch.from_numpy(rows).to(bundle.parameters[0].device)
        state = {}
        for name in {"", *wanted}:
            tensors = bundle.parameters if name == "" else [s.get(name) for s in states]
            if all(_is_like(t, p) for t, p in zip(tensors, bundle.parameters, strict=True)):
                together = torch.cat([t.detach() for t in tensors if t is not None])
                state[name] = together[at].reshape(len(rows), -1).cpu().numpy()
        settings = {k: v for k, v in group.items() if k not in ("params", "lr", "initial_lr")}
        return _Kept(state, settings, float(group["lr"]), float(states[0].get("step", 0)))

    def resolved(self, name: str) -> NDArray[np.bool_]:
        """Which units of a site would have moved, had they got a hundredth of the gradient that others get.

        Only plain SGD and its kind can tell too little: there the value itself is the witness, and a learning rate of
        zero, or a step below the value's own rounding, moves nothing.
        """
        bundle = next(b for b in self._bundles.values() if name in b.names)
        parameter = bundle.parameters[bundle.names.index(name)]
        group = self.optimizer.param_groups[bundle.group]
        if set(RULES[type(self.optimizer)].decays(group)) != {""}:
            return np.ones(len(parameter), dtype=np.bool_)
        others = [p.grad for p in (group["params"][-1], *bundle.parameters)]
        largest = max((float(g.detach().abs().max()) for g in others if g is not None), default=0.0)
        values = parameter.detach().abs().reshape(len(parameter), -1).amax(1).cpu().numpy()
        return float(group["lr"]) * largest / RESOLVED > torch.finfo(parameter.dtype).eps * values


def _joined(bundle: _Bundle | None, name: str, parameter: nn.Parameter, group: int) -> _Bundle:
    none = np.zeros(0, dtype=np.int64)
    old = bundle or _Bundle([], [], group, [], none, none.astype(np.bool_), none)
    rows = np.zeros(len(parameter), dtype=np.int64)
    return _Bundle(
        names=[*old.names, name],
        parameters=[*old.parameters, parameter],
        group=group,
        ends=[*old.ends, len(old.idle) + len(rows)],
        idle=np.concatenate([old.idle, rows]),
        zero=np.zeros(len(old.idle) + len(rows), dtype=np.bool_),  # nothing of the new rows was kept
        moved=np.concatenate([old.moved, rows - 1]),
    )


def _gradients(bundle: _Bundle) -> list[Tensor] | None:
    """One number for each row, zero where its gradient is; None where none of the gradients is there."""
    gradients = [p.grad if p.grad is not None and p.grad.layout == torch.strided else None for p in bundle.parameters]
    if all(g is None for g in gradients):
        return None
    return [
        torch.ones(len(p), device=p.device)  # not known: it may have been used in another pass
        if g is None
        else (g if g.dim() == 1 else g.detach().flatten(1).abs().amax(1))
        for p, g in zip(bundle.parameters, gradients, strict=True)
    ]


def _telling(site: Site, modules: Mapping[str, nn.Module]) -> str:
    """The parameter with one row for each unit whose gradient is zero exactly where the unit's is."""
    if site.normalised:  # a bias before the normalisation gets no gradient anyway
        return site.bias if site.layers and site.bias.rpartition(".")[0] == site.layers[0] else ""
    if site.bias:
        return site.bias
    layer = modules.get(site.weight.rpartition(".")[0])
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)  # whose rows are the inputs
    return "" if transposed else site.weight


def _all_there(parameters: list[nn.Parameter]) -> bool:
    """Whether none of the gradients has a zero; the usual case, which must cost next to nothing."""
    return not any(p.grad is None or 0.0 in p.grad.tolist() for p in parameters)


def _is_like(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _rows(kept: _Kept, which: NDArray[np.bool_]) -> _Kept:
    return _Kept({name: values[which] for name, values in kept.state.items()}, kept.settings, kept.rate, kept.step)
