"""The errors relume raises: each says what was asked, what was found and what to do."""


class RelumeError(Exception):
    """Base of every error that relume raises on purpose."""


class ActivationError(RelumeError):
    """An activation function that the catalogue does not have, or a parameter out of its range."""


class TrainingError(RelumeError):
    """A `Training` that cannot run: its model, loss, optimizer or batches do not fit together."""


class DataError(TrainingError):
    """Batches that cannot be learned from: none at all, NaN in them, a target out of range."""


class SiteError(RelumeError):
    """A site that the network does not have."""


class RemedyError(RelumeError):
    """A remedy that is unknown, or that cannot be applied to this network; the message says why."""


NOTHING_TO_DO = "has nothing to do"  # what a RemedyError says where there is no illness of the remedy's kind


class JournalError(RelumeError):
    """A journal file that cannot be read or written."""


class TrialError(RelumeError):
    """A trial that cannot be run or judged."""
