"""What each function costs, as measured once on one machine and kept with the package."""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType


@lru_cache(maxsize=1)
def measured() -> Mapping[str, Mapping[str, float]]:
    """Row -> its `forward` and `both` (forward and backward), each over the time of a plain copy of the input.

    Measured by `benchmarks/catalogue.py`; the file itself says on which machine, when and with which torch.
    """
    text = files("relume").joinpath("data/costs.json").read_text(encoding="utf-8")
    return MappingProxyType(json.loads(text)["rows"])


def cost(name: str) -> float:
    """Time of forward and backward of the row's module over that of a plain copy; NaN where it was not measured.

    >>> cost("tanh") > cost("relu")
    True
    """
    return measured()[name]["both"] if name in measured() else math.nan
