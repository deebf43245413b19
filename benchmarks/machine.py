"""What a result has to say of where it was measured."""

from __future__ import annotations

import os
import platform
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def about() -> dict[str, Any]:
    """Date, machine, versions, command and load."""
    program = Path(sys.argv[0]).stem
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {processor()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **_versions("torch", "numpy", "ray")},
        "command": " ".join(["./dev bench", program, *sys.argv[1:]]),
        "load_at_end": [round(load, 2) for load in os.getloadavg()],  # over 1, 5 and 15 minutes
    }


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
