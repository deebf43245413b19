"""Arms trained side by side from paired seeds, in this process, others or Ray, and judged against the untreated."""

from relume.trial.engine import Engine
from relume.trial.proof import OnProgress, Progress, trial
from relume.trial.tuning import compare

__all__ = ["Engine", "OnProgress", "Progress", "compare", "trial"]
