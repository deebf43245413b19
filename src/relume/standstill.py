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
    scale = {name: np.abs(foretold[name]) for name in decays}
    for i in range(steps):
        last = dict(foretold)
        if pulled:
            assert rule.pulled is not None
            rate = before.rate + (now.rate - before.rate) * (i + 1) / steps
            rule.pulled(foretold, now.settings, rate, before.step + i + 1)
        else:
            foretold |= {name: foretold[name] * decay for name, decay in decays.items() if decay != 1.0}
        for name, decay in decays.items():
            scale[name] = decay * scale[name] + np.abs(foretold[name] - decay * last[name])
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
class _Followed:
    """The parameter that tells of one site's units, a row each."""

    parameter: nn.Parameter
    group: int
    idle: NDArray[np.int64]  # steps in a row without a gradient, up to the last look
    zero: NDArray[np.bool_]  # no gradient in the very step of the last look
    kept: _Kept | None = None  # of those rows


@dataclass(slots=True)
class Standstill:
    """Looks at the optimizer's state now and then; `idle` tells how long each unit has had no gradient.

    `look(step)` is called after an optimizer step while the gradients are there, with the number of steps done. A look
    at which every unit has a gradient reads one number of each; only of units without one is the state compared.
    """

    model: nn.Module
    optimizer: Optimizer
    blind: list[str] = field(default_factory=list)
    _followed: dict[str, _Followed] = field(default_factory=dict)
    _sites: int = 0
    _step: int = 0
    _any: bool = False  # some row was without gradient at the last look

    def follow(self, sites: Iterable[Site]) -> None:
        """Follow the units of these sites, as far as their function can be flat and a parameter tells of each unit."""
        rule = RULES.get(type(self.optimizer))
        if rule is None:
            self.blind = [
                f"{type(self.optimizer).__name__} is an optimizer whose state says nothing to relume: "
                "units without gradient are found by readings alone"
            ]
            return
        parameters = dict(self.model.named_parameters())
        groups = {id(p): i for i, group in enumerate(self.optimizer.param_groups) for p in group["params"]}
        for site in sites:
            if site.name in self._followed or not ACTIVATIONS[site.activation].can_die:
                continue
            parameter = parameters.get(_telling(site, self.model))
            if parameter is None or id(parameter) not in groups or parameter.dim() == 0:
                continue
            group = groups[id(parameter)]
            if parameter.shape[0] != site.units or parameter.dtype not in EXACT:
                continue
            if rule.pulled is None and _is_pulled(self.optimizer, self.optimizer.param_groups[group]):
                self.blind = [
                    f"{type(self.optimizer).__name__} mixes its weight decay with the gradient in a way that relume "
                    "does not follow: units without gradient are found by readings alone"
                ]
                continue
            self._followed[site.name] = _Followed(
                parameter, group, np.zeros(site.units, dtype=np.int64), np.zeros(site.units, dtype=np.bool_)
            )

    @property
    def idle(self) -> dict[str, NDArray[np.int64]]:
        """By site, how many steps in a row up to the last look each unit got no gradient; sites with none left out."""
        return {name: f.idle for name, f in self._followed.items() if self._any and f.idle.any()}

    def look(self, step: int) -> None:
        """Compare with the last look."""
        steps = step - self._step
        if not self._followed:
            self._step = step
            return
        gradients = self._gradients()
        if steps < 1 or not gradients:
            return  # the gradients are cleared: nothing can be told
        self._step = step
        if not self._any and _all_there(gradients.values()):
            return
        device = next(iter(gradients.values())).device
        together = torch.cat([g if g.device == device else g.to(device) for g in gradients.values()])
        zeros, start = together.cpu().numpy() == 0, 0
        self._any = bool(zeros.any())
        for name, f in self._followed.items():
            if name not in gradients:
                self._compare(f, np.zeros(len(f.idle), dtype=np.bool_), steps)
                continue
            self._compare(f, zeros[start : start + len(f.idle)], steps)
            start += len(f.idle)

    def _gradients(self) -> dict[str, Tensor]:
        """One number for each row that is followed, zero where its gradient is; sites whose gradient is there."""
        found = {}
        for name, f in self._followed.items():
            gradient = f.parameter.grad
            if gradient is not None and gradient.layout == torch.strided:
                found[name] = gradient if gradient.dim() == 1 else gradient.detach().flatten(1).abs().amax(1)
        return found

    def _compare(self, f: _Followed, zero: NDArray[np.bool_], steps: int) -> None:
        before, was = f.kept, f.zero
        f.zero, f.kept = zero, None
        if not zero.any():
            f.idle[:] = 0
            return
        f.kept = self._keep(f, np.flatnonzero(zero))
        both = was & zero
        idle = np.zeros_like(f.idle)
        if before is not None and f.kept is not None and both.any():
            old, new = _rows(before, both[was]), _rows(f.kept, both[zero])
            done = int(new.step - old.step) if new.step or old.step else steps  # an AMP scaler leaves steps out
            pulled = _is_pulled(self.optimizer, new.settings)
            rule = RULES[type(self.optimizer)]
            still = stands(rule, old, new, done, pulled=pulled, epsilon=torch.finfo(f.parameter.dtype).eps)
            idle[both] = np.where(still, f.idle[both] + steps, 0)
        f.idle = idle

    def _keep(self, f: _Followed, rows: NDArray[np.int64]) -> _Kept | None:
        group = self.optimizer.param_groups[f.group]
        state = self.optimizer.state.get(f.parameter, {})
        at = torch.from_numpy(rows).to(f.parameter.device)
        like = {"": f.parameter, **{n: t for n, t in state.items() if _is_like(t, f.parameter)}}
        counted = state.get("step", 0)
        return _Kept(
            state={n: t.detach()[at].reshape(len(rows), -1).cpu().numpy() for n, t in like.items()},
            settings={k: v for k, v in group.items() if k not in ("params", "lr", "initial_lr")},
            rate=float(group["lr"]),
            step=float(counted),
        )

    def resolved(self, name: str) -> NDArray[np.bool_]:
        """Which units of a site would have moved, had they got a hundredth of the gradient that others get.

        Only plain SGD and its kind can tell too little: there the value itself is the witness, and a learning rate of
        zero, or a step below the value's own rounding, moves nothing.
        """
        f = self._followed[name]
        group = self.optimizer.param_groups[f.group]
        decays = RULES[type(self.optimizer)].decays(group)
        if set(decays) != {""}:
            return np.ones(len(f.idle), dtype=np.bool_)
        others = [p.grad for p in (group["params"][-1], *(o.parameter for o in self._followed.values()))]
        largest = max((float(g.detach().abs().max()) for g in others if g is not None), default=0.0)
        values = f.parameter.detach().abs().reshape(len(f.idle), -1).amax(1).cpu().double().numpy()
        return float(group["lr"]) * largest / RESOLVED > torch.finfo(f.parameter.dtype).eps * values


def _telling(site: Site, model: nn.Module) -> str:
    """The parameter with one row for each unit whose gradient is zero exactly where the unit's is."""
    if site.normalised:  # a bias before the normalisation gets no gradient anyway
        return site.bias if site.layers and site.bias.rpartition(".")[0] == site.layers[0] else ""
    if site.bias:
        return site.bias
    layer = dict(model.named_modules()).get(site.weight.rpartition(".")[0])
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)  # whose rows are the inputs
    return "" if transposed else site.weight


def _all_there(gradients: Iterable[Tensor]) -> bool:
    """Whether none of the numbers is zero; the usual case, which must cost next to nothing."""
    gradients = list(gradients)
    if all(g.is_cpu for g in gradients) and sum(map(len, gradients)) <= FEW:
        return not any(0.0 in g.tolist() for g in gradients)
    return all(int(torch.count_nonzero(g)) == len(g) for g in gradients)


def _is_like(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _rows(kept: _Kept, which: NDArray[np.bool_]) -> _Kept:
    return _Kept({name: values[which] for name, values in kept.state.items()}, kept.settings, kept.rate, kept.step)
