"""What a result says of where it was measured."""

from __future__ import annotations

import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch


def about(command: str) -> dict[str, Any]:
    """Date, command, machine and versions."""
    return {
        "date": date.today().isoformat(),
        "command": command,
        "machine": f"{platform.machine()}, {_processor()}, {os.cpu_count()} processors",
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "processor unknown"
    )
