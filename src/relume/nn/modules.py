"""The classes of `relume.nn`, made from the rows of the catalogue that name one."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from relume.activations import Activation, activations
from relume.nn.evaluate import apply

_HOME = "relume.nn"


class Curve(nn.Module):
    """A function of the catalogue as a module: what all classes of `relume.nn` share."""

    row: ClassVar[Activation]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        given = inspect.signature(type(self)).bind(*args, **kwargs)
        given.apply_defaults()
        shape = {name: given.arguments[p.init_argument or name] for name, p in self.row.parameters.items()}
        count = given.arguments.get("num_parameters", 1)
        for name, value in self.row.arguments(**shape).items():
            learnt = self.row.parameters[name].init_argument is not None
            setattr(self, name, nn.Parameter(torch.full((count,), value)) if learnt else value)
        self.dim: int = given.arguments.get("dim", -1)

    def forward(self, input: Tensor) -> Tensor:
        return apply(input, *[getattr(self, name) for name in self.row.parameters], row=self.row.name, dim=self.dim)

    def extra_repr(self) -> str:
        values = {name: getattr(self, name) for name in self.row.parameters}
        words = [f"{name}={value:g}" for name, value in values.items() if not isinstance(value, Tensor)]
        words += [f"num_parameters={value.numel()}" for value in values.values() if isinstance(value, Tensor)][:1]
        words += [f"dim={self.dim}"] if self.row.layout != "elementwise" else []
        return ", ".join(words)


def classes() -> dict[str, type[Curve]]:
    """A class for each name in `relume.nn` that the catalogue uses."""
    names = [(dotted, row) for row in activations() for dotted in (row.module, row.kept)]
    return {
        name: _class(name, row) for dotted, row in names for home, _, name in [dotted.rpartition(".")] if home == _HOME
    }


def _class(name: str, row: Activation) -> type[Curve]:
    space = {"row": row, "__doc__": _docstring(name, row), "__signature__": _signature(row), "__module__": _HOME}
    return type(name, (Curve,), space)


def _signature(row: Activation) -> inspect.Signature:
    defaults: dict[str, float] = {p.init_argument or name: p.default for name, p in row.parameters.items()}
    if any(p.init_argument for p in row.parameters.values()):
        defaults["num_parameters"] = 1
    if row.layout != "elementwise":
        defaults["dim"] = -1
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature([inspect.Parameter(name, kind, default=value) for name, value in defaults.items()])


_READS = {
    "elementwise": "Works on each element, for inputs of any shape.",
    "halves": "The first half of dimension `dim` is the value, the second half gates it; the result is half as wide.",
    "pieces": "Reads {operands} equal parts of dimension `dim`; the result is that much narrower.",
    "doubled": "Writes its {outputs} results side by side along `dim`; the result is that much wider.",
    "across": "Works along dimension `dim`.",
}


def _docstring(name: str, row: Activation) -> str:
    """The formula, what it reads, its parameters, the source, and an example whose answer is the row's in float64."""
    lines = [
        f"Applies {row.name}: {row.tex}",
        "",
        _READS[row.layout].format(operands=row.operands, outputs=row.outputs),
    ]
    if row.module != f"{_HOME}.{name}":
        lines += [f"It keeps what {row.module} loses; `relume.nn.flaws.FLAWS` says what that is."]
    learnt = [key for key, p in row.parameters.items() if p.init_argument]
    if learnt:
        lines += [f"Learns {', '.join(learnt)}: one for all, or `num_parameters`, one for each channel (dimension 1)."]
    lines += ["", row.when, "", f"Source: {row.paper}.", ""]
    x = [-1.0, 1.0]
    arguments = row.arguments()
    found = row.f(*(np.array(x)[:, None] if row.operands > 1 else [np.array(x)]), **arguments)
    values = np.concatenate(found) if row.outputs > 1 else found
    shown = [round(float(v), 3) + 0.0 for v in values]
    lines += [">>> import torch", f">>> from {_HOME} import {name}"]
    lines += [f">>> y = {name}()(torch.tensor({x}))", ">>> [round(v, 3) + 0.0 for v in y.tolist()]", str(shown)]
    return "\n".join(lines)
