"""Arms trained side by side from paired seeds, in worker processes or in this one, and judged against the untreated."""

from relume.trial.proof import Progress, trial

__all__ = ["Progress", "trial"]
