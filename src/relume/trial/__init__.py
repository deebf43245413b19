"""Arms trained side by side from paired seeds, in worker processes or in this one, and judged against the untreated."""

from relume.trial.proof import OnProgress, Progress, trial
from relume.trial.tuning import compare

__all__ = ["OnProgress", "Progress", "compare", "trial"]
