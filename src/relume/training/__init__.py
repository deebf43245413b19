"""Training: what a user hands over, its batches in an order of their own, and the one loop that runs it."""

from relume.training.batches import batch_size, call, describe, device_of, require_finite, split, tensors, to_device
from relume.training.loop import Watching, build, check, fresh, loss_of, score, train
from relume.training.record import Training, require_steps
from relume.training.stream import Stream, isolated_rng, one_thread, seed_all

__all__ = [
    "Stream", "Training", "Watching", "batch_size", "build", "call", "check", "describe", "device_of", "fresh",
    "isolated_rng", "loss_of", "one_thread", "require_finite", "require_steps", "score", "seed_all", "split", "tensors",
    "to_device", "train",
]  # fmt: skip
