"""A copy of a network and its optimizer that can be put back into the originals, whatever was done to either since.

A loop of the user's own holds its model and its optimizer, so a treated copy can only be adopted in place: what there
was gets the copy's numbers, new modules are set on the same parents, new parameters join the user's optimizer, and
those that are gone leave it. The same way leads back: a copy made before is put back when a remedy did harm.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from relume.surgery import STEP_HOOKS, duplicate

# What a scheduler sets at each of its steps. It knows the groups by their number, and starts from rates of its own.
_SCHEDULED = ("lr", "initial_lr", "momentum", "betas")


class Twin:
    """Copies of a model and its optimizer; `settle` makes the originals like them, the same objects as far as they go.

    Buffers, optimizer state, hooks and attributes come along; gradients stay where the shape does. Raises RemedyError
    where the model cannot be copied.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> twin, weight = Twin(model, optimizer), model[0].weight
    >>> twin.model[1] = nn.Tanh()
    >>> twin.settle()
    >>> model[1], model[0].weight is weight
    (Tanh(), True)
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        memo: dict[int, Any] = {}
        twins = duplicate(model, optimizer, memo)
        assert twins[1] is not None
        self.model, self.optimizer = twins[0], twins[1]
        self._into = optimizer
        originals = [x for x in memo[id(memo)] if id(x) in memo]  # deepcopy keeps what it copied alive in there
        self._pairs = [(x, memo[id(x)]) for x in originals]
        self._modules = [(m, memo[id(m)]) for m in model.modules()]
        self._only_here = [set(vars(m)) - set(vars(t)) for m, t in self._modules]  # such as what torch.compile made

    def settle(self) -> None:
        """Make the originals like this copy; it stays as it is, and may settle again."""
        memo = {id(twin): original for original, twin in self._pairs}
        for (module, twin), only_here in zip(self._modules, self._only_here, strict=True):
            own = vars(module)
            for key in set(own) - set(vars(twin)) - only_here:
                del own[key]
            for key, value in vars(twin).items():
                _put(own, key, value, memo)
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


# learning rates under a scheduler -----------------------------------------------------------------------------------


def scheduled(optimizer: Optimizer) -> bool:
    """Whether a scheduler sets the optimizer's learning rates."""
    return any("initial_lr" in group for group in optimizer.param_groups)


class ScaledRates:
    """Step hooks that multiply the learning rate of each group during the step, whatever a scheduler sets it to."""

    def __init__(self, factors: list[float]) -> None:
        self.factors = factors
        self._rates: list[Any] = []

    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Step pre-hook."""
        self._rates = [group["lr"] for group in optimizer.param_groups]
        for group, factor in zip(optimizer.param_groups, self.factors, strict=False):
            group["lr"] = group["lr"] * factor

    def after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Step post-hook."""
        for group, rate in zip(optimizer.param_groups, self._rates, strict=False):
            group["lr"] = rate


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


def scale_rates(optimizer: Optimizer, factors: list[float]) -> None:
    """Let each group step at so many times its learning rate, whatever sets that, hooks of the user's own included."""
    before, after = (vars(optimizer)[name] for name in STEP_HOOKS)
    known = next((h.__self__ for h in before.values() if isinstance(getattr(h, "__self__", None), ScaledRates)), None)
    if known is not None:
        known.factors = [old * new for old, new in zip(known.factors, factors, strict=True)]
        return
    scale = ScaledRates(factors)
    optimizer.register_step_pre_hook(scale.before)
    after.move_to_end(optimizer.register_step_post_hook(scale.after).id, last=False)  # before one that sets the next
