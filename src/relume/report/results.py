"""The three results, with what all of them can do: print, turn into JSON, save, show in a notebook."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relume.diagnosis import Coverage, Diagnosis
from relume.recording import Recording, to_json
from relume.symptoms import Symptom
from relume.verdicts import Arm


class _Result:
    """Printing, saving and showing, the same for every result."""

    __slots__ = ()

    def document(self) -> dict[str, Any]:
        """The parts of a page: some of "report", "trial", "healed"."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; keys are the attribute names."""
        raise NotImplementedError

    def save(self, path: str | Path) -> Path:
        """Write `.html` (one offline file) or `.json`, by the suffix, and return the path."""
        from relume.report.save import save

        return save(self, Path(path))

    def __str__(self) -> str:
        from relume.report.text import render

        return render(self)
