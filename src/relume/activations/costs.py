"""What each function costs, as measured once on one machine and kept with the package."""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any


@lru_cache(maxsize=1)
def _file() -> Mapping[str, Any]:
    text = files("relume").joinpath("data/costs.json").read_text(encoding="utf-8")
    return MappingProxyType(json.loads(text))


def measured() -> Mapping[str, Mapping[str, float]]:
    """Row -> its `forward` and `both` (forward and backward), each over the time of a plain copy of the input.

    `kept` is `both` of relume's own class where torch has the function too, and `bytes` what backward keeps for each
    float32 of the input. Measured by `benchmarks/catalogue.py`; `measured_with` says on which machine and when.
    """
    return _file()["rows"]


def measured_with() -> str:
    """When, where and how, in one sentence."""
    said = _file()
    return (
        f"Measured on {said['date']} with torch {said['torch']} ({said['machine']}) on {said['elements']:,} numbers by "
        f"`{said['command']}`."
    )


def cost(name: str) -> float:
    """Time of forward and backward of the row's module over that of a plain copy; NaN where it was not measured.

    >>> cost("tanh") > cost("relu")
    True
    """
    return _number(name, "both")


def kept_cost(name: str) -> float:
    """The same of relume's own class that keeps what torch's loses; NaN where there is none."""
    return _number(name, "kept")


def saved_bytes(name: str) -> float:
    """Bytes that backward keeps for each float32 of the input; NaN where it was not measured."""
    return _number(name, "bytes")


def _number(name: str, key: str) -> float:
    return measured()[name].get(key, math.nan) if name in measured() else math.nan
