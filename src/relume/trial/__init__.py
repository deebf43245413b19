"""Arms trained side by side from paired seeds, in worker processes or in this one, and judged against the untreated."""

from relume.trial.proof import OnProgress, Progress, trial

__all__ = ["OnProgress", "Progress", "trial"]
