"""Functions of the catalogue as torch modules: those that torch lacks or loses digits of, and a way to build any.

A class stands here for each row whose function torch does not have, such as `relume.nn.Swish`, and for some that torch
has (`relume.nn.Sigmoid`, `relume.nn.GELU`), with the gradient that torch rounds to zero. All of them keep nothing but
their input for backward.
"""

import importlib
import inspect
from functools import reduce
from typing import Any

from torch import nn

from relume.activations import Activation, activation
from relume.errors import ActivationError
from relume.nn.evaluate import apply
from relume.nn.modules import Curve, classes

_CLASSES = classes()
globals().update(_CLASSES)

__all__ = ["Curve", "apply", "module", "resolve", *_CLASSES]  # noqa: PLE0604 # pyright: ignore[reportUnsupportedDunderAll] - from the table


def __getattr__(name: str) -> Any:
    # only for names that are not here: it also tells type checkers that there are more than they see
    raise AttributeError(f"relume.nn has no {name!r}. It has: {', '.join(__all__)}.")


def resolve(dotted_name: str) -> Any:
    """The object of that dotted name, as rows of the catalogue use for modules and functions.

    >>> resolve("torch.nn.ReLU") is nn.ReLU
    True
    """
    # relume.nn is this module; all else is an attribute of torch, or of one of its attributes
    root = "relume.nn" if dotted_name.startswith("relume.nn.") else "torch"
    return reduce(getattr, dotted_name.removeprefix(f"{root}.").split("."), importlib.import_module(root))


def module(row: str | Activation, **arguments: Any) -> nn.Module:
    """A new torch module that applies a function of the catalogue.

    Takes the row's parameters, and whatever else the module's constructor takes, such as `num_parameters` of `PReLU`.
    For a learned parameter the number is its start. Raises `ActivationError` for an unknown function or argument, or a
    parameter outside its bounds.

    >>> module("prelu", weight=0.1, num_parameters=64)
    PReLU(num_parameters=64)
    """
    row = activation(row)
    build = resolve(row.module)
    spoken_for = {*row.fixed, *(p.init_argument for p in row.parameters.values())}
    others = [
        name
        for name, argument in inspect.signature(build).parameters.items()
        if name not in spoken_for and argument.kind is argument.POSITIONAL_OR_KEYWORD
    ]
    known = list(dict.fromkeys([*row.parameters, *others]))
    for name in arguments:
        if name not in known:
            raise ActivationError(
                f"{row.name} takes no argument {name!r}.\nIts arguments: {', '.join(known) or 'none'}."
            )
    shape = row.arguments(**{name: value for name, value in arguments.items() if name in row.parameters})
    start = {row.parameters[name].init_argument or name: value for name, value in shape.items()}
    rest = {name: value for name, value in arguments.items() if name not in shape}
    # torch's own default for a dimension is None, which it warns of, or the last
    return build(**row.fixed, **start, **({"dim": -1, **rest} if "dim" in others else rest))
