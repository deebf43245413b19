"""What one training run is, and what may be said of the things planted in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One training run. The last block is what can be planted; its defaults leave a run as people would write it."""

    seed: int
    task: str
    loss: str
    kind: str  # "mlp", "cnn", "batch_norm", "residual"
    width: int
    depth: int
    activation: str
    init: str  # "torch", "keras" (Glorot's uniform, biases zero), "he"
    optimizer: str
    learning_rate: float
    batch: int  # 0: the whole data set
    steps: int
    dropout: float = 0.0
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: str = ""  # "cosine" to zero, "step": a tenth from the middle on
    clip: float = 0.0  # norm to which gradients are clipped; 0: not at all
    smoothing: float = 0.0  # of the labels
    fitted_output: bool = False  # the output layer starts at the targets' mean and spread, as large targets want it

    planted: str = ""
    planted_at: int = 0  # the step with which it begins
    weight_scale: float = 1.0
    constant_weights: float | None = None
    bias: float | None = None
    bias_sign: str = "same"  # "both": drawn for each unit
    bias_layers: int = 0  # the first so many hidden layers; 0: all
    input_scale: float = 1.0
    input_shift: float = 0.0
    feature_scale: float = 1.0  # of one feature alone
    target_scale: float = 1.0
    target_shift: float = 0.0
    relu_on_output: bool = False
    cut_after: int = -1  # hidden layer behind which the gradient is cut
    rate_factor: float = 1.0  # of the learning rate from `planted_at` on
    rate_ramp: float = 1.0  # by which the learning rate has grown at the end
    corrupt: float | None = None  # factor of the inputs of the one batch at `planted_at`
    trained: str = "all"  # "output_bias": the optimizer was given nothing else


@dataclass(frozen=True, slots=True)
class Answer:
    """What may be said of a run with that planted: kinds of which one must be named, causes of which one is first."""

    kinds: frozenset[str]
    causes: frozenset[str]


def _answer(kinds: str, causes: str) -> Answer:
    return Answer(frozenset(kinds.split()), frozenset(causes.split()))


_ANY = "dead saturated exploding non_finite not_learning oscillating"

# Causes are those of docs/design.md; `unknown` is right where none of them fits.
ANSWERS: dict[str, Answer] = {
    "fast": _answer(_ANY, "learning_rate_too_high"),
    "late_rate": _answer(_ANY, "learning_rate_too_high"),
    "rate_ramp": _answer(_ANY, "learning_rate_too_high"),
    "momentum": _answer(_ANY, "learning_rate_too_high unknown"),  # the step is too large, by another setting
    "slow": _answer("not_learning", "learning_rate_too_low"),
    "bias": _answer("dead saturated not_learning", "bias"),
    "bias_both_ways": _answer("saturated not_learning", "bias"),
    "large_weights": _answer(_ANY, "initial_scale"),
    "small_weights": _answer("vanishing not_learning", "initial_scale"),
    "zeros": _answer("dead vanishing not_learning saturated", "initial_scale"),
    "constant": _answer("dead vanishing exploding not_learning saturated", "initial_scale unknown"),
    "inputs": _answer(_ANY, "unscaled_inputs"),
    "offset": _answer(_ANY, "unscaled_inputs"),
    "one_feature": _answer(_ANY, "unscaled_inputs"),
    "corrupt_batch": _answer(_ANY, "unscaled_inputs unknown"),
    "nan_batch": _answer("non_finite", "unscaled_inputs unknown"),
    "targets": _answer(_ANY, "unscaled_targets"),
    "deep_sigmoid": _answer("vanishing saturated not_learning", "saturating_activation"),
    "unbounded": _answer("exploding non_finite dead saturated not_learning", "unbounded_activation"),
    "narrow": _answer("dead vanishing not_learning", "narrow_and_deep"),
    "relu_on_output": _answer("dead not_learning", "output_activation"),
    "cut": _answer("not_learning vanishing", "no_gradient"),
    "weight_decay": _answer("dead vanishing not_learning", "unknown"),
    "forgotten": _answer("not_learning vanishing", "no_gradient unknown"),
}
