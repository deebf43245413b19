"""relume says which units of a PyTorch network stopped learning, why, and which remedy brings them back."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from relume.errors import RelumeError

if TYPE_CHECKING:
    from relume.activations import activation, activations
    from relume.checkup import checkup, diagnose
    from relume.forecast import forecast
    from relume.heal import heal
    from relume.initialise import Initialised, init_
    from relume.journal import read_journal
    from relume.prune import Pruned, prune
    from relume.remedies import treat
    from relume.report import Healed, Report, Trial
    from relume.report.forecast import Forecast
    from relume.sites import find_sites
    from relume.training import Training
    from relume.trial import compare, trial
    from relume.watch import watch

__all__ = [
    "Forecast",
    "Healed",
    "Initialised",
    "Pruned",
    "RelumeError",
    "Report",
    "Training",
    "Trial",
    "activation",
    "activations",
    "checkup",
    "compare",
    "diagnose",
    "find_sites",
    "forecast",
    "heal",
    "init_",
    "prune",
    "read_journal",
    "treat",
    "trial",
    "watch",
]

# Where the names live; imported on first use, so that `import relume` and `relume --help` load no torch.
_HOMES = {
    "Forecast": "relume.report.forecast",
    "Healed": "relume.report",
    "Initialised": "relume.initialise",
    "Pruned": "relume.prune",
    "Report": "relume.report",
    "Training": "relume.training",
    "Trial": "relume.report",
    "activation": "relume.activations",
    "activations": "relume.activations",
    "checkup": "relume.checkup",
    "compare": "relume.trial",
    "diagnose": "relume.checkup",
    "find_sites": "relume.sites",
    "forecast": "relume.forecast",
    "heal": "relume.heal",
    "init_": "relume.initialise",
    "prune": "relume.prune",
    "read_journal": "relume.journal",
    "treat": "relume.remedies",
    "trial": "relume.trial",
    "watch": "relume.watch",
}


class _Package(ModuleType):
    """`relume.watch` is the function also after `relume/watch.py` was imported, which would bind the module there."""

    def __getattr__(self, name: str) -> Any:
        if name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
            super().__setattr__(name, value)
            return value
        raise AttributeError(f"module 'relume' has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*__all__, *(name for name in super().__dir__() if name.startswith("__"))})


sys.modules[__name__].__class__ = _Package
