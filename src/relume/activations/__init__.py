"""The catalogue of activation functions: one row per function, with its calculus and its tails.

A row declares the least: formula, derivative, tails, range, paper, and the names under which torch knows the function.
The rest (whether units can die, what is smooth, the mean under normal inputs) is derived from that. A new function is
one more row in `table/` and no code elsewhere. Nothing here imports torch.
"""

from relume.activations.catalogue import ACTIVATIONS, activation, activations
from relume.activations.row import Activation, Parameter, Tail, normal_points, normal_rule

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Parameter",
    "Tail",
    "activation",
    "activations",
    "normal_points",
    "normal_rule",
]
