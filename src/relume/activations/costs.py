"""What each function costs, as measured once on one machine and kept with the package."""

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType

from relume.errors import ActivationError


@lru_cache(maxsize=1)
def measured() -> Mapping[str, Mapping[str, float]]:
    """Row -> its `forward` and `both` (forward and backward), each over the time of a plain copy of the input.

    Measured by `benchmarks/catalogue.py`; the file itself says on which machine, when and with which torch.
    """
    text = files("relume").joinpath("data/costs.json").read_text(encoding="utf-8")
    return MappingProxyType(json.loads(text)["rows"])


def cost(name: str) -> float:
    """Time of forward and backward of the row's module over that of a plain copy.

    Raises `ActivationError` for a row that was never measured.

    >>> cost("tanh") > cost("relu")
    True
    """
    if name not in measured():
        raise ActivationError(
            f"the cost of {name!r} was never measured.\nRun benchmarks/catalogue.py --costs, which measures all rows."
        )
    return measured()[name]["both"]
