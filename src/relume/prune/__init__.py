"""Takes provably dead units out of a trained network, and says what that changed and saved."""

from relume.prune.record import Pruned
from relume.prune.removal import prune

__all__ = ["Pruned", "prune"]
