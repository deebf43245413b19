"""A copy of a network and its optimizer that can be put back into the originals, whatever was done to either since.

A loop of the user's own holds its model and its optimizer, so a treated copy can only be adopted in place: what there
was gets the copy's numbers, new modules are set on the same parents, new parameters join the user's optimizer, and
those that are gone leave it. The same way leads back: a copy made before is put back when a remedy did harm.
"""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from relume.attributes import Attributes, contents, refill
from relume.surgery import STEP_HOOKS, copied_loss, duplicate

# What a scheduler sets at each of its steps. It knows the groups by their number, and starts from rates of its own.
_SCHEDULED = ("lr", "initial_lr", "momentum", "betas")


class Twin:
    """Copies of a model and its optimizer; `settle` makes the originals like them, the same objects as far as they go.

    Buffers, optimizer state, hooks and attributes come along; gradients stay where the shape does. So does a `loss`
    that is a module. Raises RemedyError where one of them cannot be copied.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> twin, weight = Twin(model, optimizer), model[0].weight
    >>> twin.model[1] = nn.Tanh()
    >>> twin.settle()
    >>> model[1], model[0].weight is weight
    (Tanh(), True)
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, loss: Any = None) -> None:
        memo: dict[int, Any] = {}
        self.loss = copied_loss(loss, memo)
        twins = duplicate(model, optimizer, memo)
        assert twins[1] is not None
        self.model, self.optimizer = twins[0], twins[1]
        self._into = optimizer
        originals = [x for x in memo[id(memo)] if id(x) in memo]  # deepcopy keeps what it copied alive in there
        self._pairs = [(x, memo[id(x)]) for x in originals]
        modules = dict.fromkeys((*model.modules(), *(loss.modules() if isinstance(loss, nn.Module) else ())))
        self._modules = [(m, memo[id(m)]) for m in modules]
        self._attributes = Attributes(modules, *(hook for key in STEP_HOOKS for hook in vars(optimizer)[key].values()))
        held = {id(value) for value in self._attributes.held if not isinstance(value, Tensor)}
        self._filled = [(x, twin) for x, twin in self._pairs if id(x) in held or isinstance(x, ScaledRates)]
        self._only_here = [set(vars(m)) - set(vars(t)) for m, t in self._modules]  # such as what torch.compile made

    def lost(self) -> tuple[str, ...]:
        """Attributes of the originals that have changed since, and that `settle` cannot make like the copy's."""
        twins = dict(self._modules)
        names = ((m, name, vars(m).get(name), vars(twins[m]).get(name)) for m, name in self._attributes.foreign())
        return tuple(f"{name} of {type(m).__name__}" for m, name, mine, other in names if _differ(mine, other))

    def settle(self) -> None:
        """Make the originals like this copy; it stays as it is, and may settle again."""
        memo = {id(twin): original for original, twin in self._pairs}
        for (module, twin), only_here in zip(self._modules, self._only_here, strict=True):
            own = vars(module)
            for key in set(own) - set(vars(twin)) - only_here:
                del own[key]
            for key, value in vars(twin).items():
                _put(own, key, value, memo)
        for value, twin in self._filled:
            refill(value, copy.deepcopy(contents(twin), memo))
        with torch.no_grad():
            for original, twin in self._pairs:
                if isinstance(original, Tensor):
                    _fill(original, twin)
        self._settle_optimizer(memo)

    def _settle_optimizer(self, memo: dict[int, Any]) -> None:
        mine, theirs = self.optimizer, self._into
        skipped = _SCHEDULED if scheduled(theirs) else ()
        for group, new in zip(theirs.param_groups, mine.param_groups, strict=False):
            for key, value in new.items():
                if isinstance(value, list) and isinstance(group.get(key), list):
                    group[key][:] = [copy.deepcopy(item, memo) for item in value]
                elif key not in skipped:
                    group[key] = copy.deepcopy(value, memo)
        count = len(theirs.param_groups)
        del theirs.param_groups[len(mine.param_groups) :]
        for new in mine.param_groups[count:]:
            theirs.param_groups.append({key: copy.deepcopy(value, memo) for key, value in new.items()})
        theirs.state.clear()
        for parameter, state in mine.state.items():
            known = {k: copy.deepcopy(v, memo) for k, v in state.items()} if isinstance(state, dict) else state
            theirs.state[copy.deepcopy(parameter, memo)] = known
        for key in STEP_HOOKS:
            _put(vars(theirs), key, vars(mine)[key], memo)


def _put(own: dict[str, Any], key: str, value: Any, memo: dict[int, Any]) -> None:
    """Set one attribute; a dictionary stays the same one, since handles of hooks refer to it."""
    if isinstance(value, dict) and isinstance(own.get(key), dict):
        new = {k: copy.deepcopy(v, memo) for k, v in value.items()}
        own[key].clear()
        own[key].update(new)
    else:
        own[key] = copy.deepcopy(value, memo)


def _differ(mine: Any, other: Any) -> bool:
    try:
        return pickle.dumps(mine) != pickle.dumps(other)
    except Exception:  # whatever an object of the user's raises when it is pickled
        return True


def _fill(original: Tensor, twin: Tensor) -> None:
    if original.shape != twin.shape or original.dtype != twin.dtype:
        original.grad = None
        original.data = twin.detach().clone()
    elif not original.is_meta and not torch.equal(original, twin):  # what is equal may be a view that takes no copy
        original.copy_(twin)


def structure(model: nn.Module) -> list[tuple[Any, ...]]:
    """What a compiled network was compiled for: its modules, their hooks and functions, the shapes of its tensors."""
    modules: list[tuple[Any, ...]] = [
        (
            name,
            type(m),
            m.extra_repr(),
            "forward" in vars(m),
            len(m._forward_hooks),
            len(m._forward_pre_hooks),
        )
        for name, m in model.named_modules()
    ]
    return modules + [(name, t.shape) for name, t in (*model.named_parameters(), *model.named_buffers())]


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile stands before the network, or before a part of it."""
    return any(
        getattr(m, "_orig_mod", None) is not None or getattr(m, "_compiled_call_impl", None) is not None
        for m in model.modules()
    )


# learning rates that the loop sets -----------------------------------------------------------------------------------


def scheduled(optimizer: Optimizer) -> bool:
    """Whether a scheduler sets the optimizer's learning rates, or the loop was seen to do so."""
    known = _scaled_rates(optimizer)
    return any("initial_lr" in group for group in optimizer.param_groups) or (known is not None and known.by_loop)


class ScaledRates:
    """Step hooks that multiply the learning rate of each group during the step, whatever sets it.

    `adopted` are rates that stand in the groups as they are, each after the one it replaced: once the loop sets a group
    back to something nearer to that one, their ratio joins the group's factor.
    """

    def __init__(self, factors: list[float], adopted: list[tuple[float, float]] | None = None) -> None:
        self.factors = factors
        self.adopted = adopted or []
        self.by_loop = False  # it was seen to set a rate itself
        self._rates: list[tuple[dict[str, Any], Any]] = []  # of groups, while a step is taken

    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Step pre-hook."""
        self.look(optimizer)
        self._rates = []
        for group, factor in zip(optimizer.param_groups, self.factors, strict=False):
            if factor != 1.0:
                self._rates.append((group, group["lr"]))
                group["lr"] = group["lr"] * factor

    def after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Step post-hook."""
        for group, rate in self._rates:
            group["lr"] = rate
        self._rates = []

    def look(self, optimizer: Optimizer) -> None:
        """See which rates the loop has set since."""
        for number, (group, (old, new)) in enumerate(zip(optimizer.param_groups, self.adopted, strict=False)):
            rate = float(group["lr"])
            if rate == new or old == new or min(rate, old, new) <= 0:
                continue
            if abs(math.log(rate / old)) < abs(math.log(rate / new)):
                self.factors[number] *= new / old
                self.adopted[number] = (rate, rate)
                self.by_loop = True
            else:  # it goes on from the one adopted, as `lr *= 0.99` does
                self.adopted[number] = (old * rate / new, rate)


def settings_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What each parameter group is set to, without its parameters."""
    return [{k: v for k, v in g.items() if k not in ("params", "param_names")} for g in optimizer.param_groups]


def keep_schedule(optimizer: Optimizer, before: list[dict[str, Any]]) -> None:
    """Leave the groups of an optimizer that was treated to its scheduler; `before` are their settings before it.

    A scheduler would set changed rates back and stumble over new groups: the change becomes a factor that is applied
    during each step, and parameters of new groups join the first.
    """
    groups = optimizer.param_groups
    for extra in groups[len(before) :]:
        for key in ("params", "param_names"):
            if key in extra:
                groups[0][key] = [*groups[0][key], *extra[key]]
    del groups[len(before) :]
    factors = [float(g["lr"]) / float(old["lr"]) if old["lr"] else 1.0 for g, old in zip(groups, before, strict=True)]
    for group, old in zip(groups, before, strict=True):
        group.update({key: old[key] for key in ("lr", "initial_lr") if key in old})
    if all(factor == 1.0 for factor in factors):
        return
    scale_rates(optimizer, factors)


def hold_rates(optimizer: Optimizer, before: list[dict[str, Any]], *, moving: bool = False) -> None:
    """Let changed rates of an optimizer that was treated hold where the loop sets its own by hand in a later step.

    They stay in the groups, for whoever reads them, and become factors once the loop sets others; at once where it was
    seen to do so before (`moving`). `before` are the settings before the treatment.
    """
    old, new = rates_of(before), rates_of(optimizer.param_groups)
    if old == new[: len(old)] or not (old and new[0]):
        return
    count = len(old)
    old += [rate * old[0] / new[0] for rate in new[count:]]  # groups that are new have the settings of another
    known = _scaled_rates(optimizer) or _hook_on(optimizer, ScaledRates([]))
    _widen(known, len(new))
    if moving:
        for index, group in enumerate(optimizer.param_groups):
            group["lr"] = before[index]["lr"] if index < count else old[index]
    else:  # what was adopted before, and has stood in the group since, is part of the change
        earlier = dict(enumerate(known.adopted))
        old = [earlier[i][0] if i in earlier and earlier[i][1] == rate else rate for i, rate in enumerate(old)]
    known.adopted = list(zip(old, new, strict=True))
    known.look(optimizer)


def rates_of(groups: list[dict[str, Any]]) -> list[float]:
    """The learning rate of each group of parameters."""
    return [float(group.get("lr", 0.0)) for group in groups]


def loop_rates(optimizer: Optimizer) -> str:
    """What became of rates that the loop sets by hand, in words; empty where it was not seen to."""
    known = _scaled_rates(optimizer)
    if known is None or not known.by_loop:
        return ""
    factors = ", ".join(dict.fromkeys(f"{factor:.3g}" for factor in known.factors))
    return f"learning rate: the loop sets it by hand; each step is taken at {factors} times what it sets"


def scale_rates(optimizer: Optimizer, factors: list[float]) -> None:
    """Let each group step at so many times its learning rate, whatever sets that, hooks of the user's own included."""
    known = _scaled_rates(optimizer)
    if known is None:
        _hook_on(optimizer, ScaledRates(factors))
    else:
        _widen(known, len(factors))
        known.factors = [old * new for old, new in zip(known.factors, factors, strict=True)]


def _scaled_rates(optimizer: Optimizer) -> ScaledRates | None:
    hooks = vars(optimizer)[STEP_HOOKS[0]].values()
    return next((h.__self__ for h in hooks if isinstance(getattr(h, "__self__", None), ScaledRates)), None)


def _widen(scale: ScaledRates, count: int) -> None:
    """Groups that have come since step at their own rates."""
    scale.factors = [*scale.factors, *[1.0] * (count - len(scale.factors))]


def _hook_on(optimizer: Optimizer, scale: ScaledRates) -> ScaledRates:
    optimizer.register_step_pre_hook(scale.before)
    after = vars(optimizer)[STEP_HOOKS[1]]
    after.move_to_end(optimizer.register_step_post_hook(scale.after).id, last=False)  # before one that sets the next
    return scale
