"""The catalogue: all rows, and how to look one up."""

import difflib

from relume.activations.row import Activation
from relume.activations.table.bounded import BOUNDED
from relume.activations.table.rectified import RECTIFIED
from relume.activations.table.self_gated import SELF_GATED
from relume.activations.table.several import SEVERAL
from relume.activations.table.smooth import SMOOTH
from relume.errors import ActivationError

ACTIVATIONS: dict[str, Activation] = {row.name: row for row in (*BOUNDED, *RECTIFIED, *SMOOTH, *SELF_GATED, *SEVERAL)}


def activation(name: str | Activation) -> Activation:
    """The catalogue's row of that name; a row is handed back as it is.

    Raises `ActivationError`, with the closest names, where there is no such row.

    >>> from relume.activations import activation
    >>> activation("elu").module
    'torch.nn.ELU'
    """
    if isinstance(name, Activation):
        return name
    if not isinstance(name, str):
        raise ActivationError(
            f"an activation is asked for by its name, a string such as 'relu', not by {name!r} ({type(name).__name__})."
        )
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    wanted = name.strip().lower().rpartition(".")[2].replace("-", "_")
    close = difflib.get_close_matches(wanted, ACTIVATIONS, n=3, cutoff=0.5)
    hint = f"Closest: {', '.join(close)}." if close else f"There are: {', '.join(ACTIVATIONS)}."
    raise ActivationError(f"no activation named {name!r}.\n{hint}\nrelume.activations() lists all rows.")


def activations() -> tuple[Activation, ...]:
    """All rows of the catalogue.

    >>> from relume.activations import activations
    >>> activations()[0].name
    'sigmoid'
    """
    return tuple(ACTIVATIONS.values())
