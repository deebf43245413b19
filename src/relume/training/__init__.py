"""Training: what a user hands over, its batches in an order of their own, and the one loop that runs it."""

from relume.training.batches import Several, batch_size, describe, device_of, parts, require_finite, split, to_device
from relume.training.loop import Watching, build, check, fresh, loss_of, repeatable, score, train
from relume.training.record import Training, require_steps
from relume.training.stream import Stream

__all__ = [
    "Several", "Stream", "Training", "Watching", "batch_size", "build", "check", "describe", "device_of", "fresh",
    "loss_of", "parts", "repeatable", "require_finite", "require_steps", "score", "split", "to_device", "train",
]  # fmt: skip
