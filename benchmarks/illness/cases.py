"""Training runs drawn by seed: well ones over the axes that people vary, and ill ones with one thing planted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.illness.runs import OPTIMIZERS, fed, training
from benchmarks.illness.spec import ANSWERS, Answer, Spec
from benchmarks.illness.tasks import NUMBERS, TASKS, task

__all__ = ["ANSWERS", "Answer", "Spec", "fed", "ill", "training", "well"]

USUAL_RATES = {"adam": 2e-3, "adamw": 2e-3, "sgd": 0.1, "momentum": 0.02, "rmsprop": 1e-3, "adagrad": 0.02}
STEPS = (100, 200, 400, 800, 1600, 3000)
BATCHES = (1, 8, 32, 64, 128, 0)
ACTIVATIONS = (
    *["relu"] * 6, *["tanh"] * 2, *["gelu"] * 2, "leaky_relu", "elu", "silu", "sigmoid", "selu", "prelu", "hardswish",
    "softsign", "mish", "swish", "celu", "relu6",
)  # fmt: skip
DEEPEST = {"mlp": 6, "batch_norm": 50, "residual": 50, "cnn": 4}
LONGEST = 5.0  # seconds that a run may train; what is dearer gets fewer steps
LAYER_COST = {"mlp": 1.2e-4, "batch_norm": 2.5e-4, "residual": 4e-4, "cnn": 1e-3}  # seconds a layer and step, about
FLOPS = 2e10  # of one core, a second


def _pick(rng: np.random.Generator, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number drawn evenly on a log scale."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _affordable(kind: str, width: int, depth: int, batch: int, samples: int) -> int:
    """Steps that such a network can train within `LONGEST`."""
    layers = 2 * depth if kind == "residual" else depth
    places = 9 * 16 if kind == "cnn" else 1
    work = 6 * layers * width**2 * (batch or samples) * places / FLOPS
    return max(100, round(LONGEST / (3e-4 + LAYER_COST[kind] * depth + work)))


def well(seed: int) -> Spec:
    """A run as people write it. That it is well is measured, not assumed: `truth.measure`."""
    rng = np.random.default_rng(seed)
    name = _pick(rng, sorted(TASKS))
    data = task(name)
    loss = _pick(rng, data.losses)
    kinds = ["mlp"] * 4 + ["batch_norm", "residual"] * 2 + ["cnn"] * (5 if name in ("digits", "digit_bits") else 0)
    kind = _pick(rng, kinds)
    activation = _pick(rng, ACTIVATIONS)
    depth = round(_between(rng, 1, DEEPEST[kind] + 0.49))
    if activation in ("sigmoid", "softsign") and kind == "mlp":
        depth = min(depth, 2)
    width = round(_between(rng, 4 if kind == "cnn" else 2, 48 if kind == "cnn" else 512))
    if depth > 3 and kind != "residual":
        width = max(width, 16)  # narrow and deep is an illness, not an axis
    optimizer = _pick(rng, sorted(OPTIMIZERS))
    batch = _pick(rng, BATCHES[2:] if kind == "batch_norm" else BATCHES)
    rate = USUAL_RATES[optimizer] * _between(rng, 0.4, 1.5)
    if batch in (1, 8):
        rate /= 4
    if optimizer in ("sgd", "momentum") and (loss in NUMBERS or depth > 4):
        rate /= 3
    if depth > 12 or width > 256:
        rate /= 2
    steps = _pick(rng, STEPS[1:] if batch != 1 else STEPS[4:])  # one sample a step is slow
    if width <= 32 and depth <= 2 and kind == "mlp" and rng.random() < 0.1:
        steps = 15_000
    else:
        steps = min(steps, _affordable(kind, width, depth, batch, len(data.x)))
    spec = Spec(
        seed=seed, task=name, loss=loss, kind=kind, width=width, depth=depth, activation=activation,
        init=_pick(rng, ("torch", "keras", "he" if activation in ("relu", "leaky_relu", "prelu") else "keras")),
        optimizer=optimizer, learning_rate=rate, batch=batch, steps=steps,
        dropout=_pick(rng, (0.2, 0.5)) if kind == "mlp" and rng.random() < 0.25 and width > 32 else 0.0,
        weight_decay=_weight_decay(optimizer, rng), schedule=_pick(rng, ("", "", "", "cosine", "step")),
        clip=_pick(rng, (0.0, 0.0, 0.0, 1.0)),
        smoothing=0.1 if loss == "cross_entropy" and rng.random() < 0.25 else 0.0,
    )  # fmt: skip
    if loss in NUMBERS and rng.random() < 0.3:  # targets as they come, and an output layer that starts at their size
        spec = replace(
            spec, loss="mse", target_scale=20.0, target_shift=150.0, fitted_output=True, optimizer="adam",
            learning_rate=USUAL_RATES["adam"] * 3, clip=0.0, weight_decay=0.0,
        )  # fmt: skip
    return spec


def _weight_decay(optimizer: str, rng: np.random.Generator) -> float:
    if rng.random() < 0.6:
        return 0.01 if optimizer == "adamw" else 0.0
    return _pick(rng, (0.01, 0.05)) if optimizer == "adamw" else _pick(rng, (1e-5, 1e-4))


# --- what can be planted ----------------------------------------------------------------------------------------------


def ill(seed: int) -> Spec:
    """A run with one thing planted, on the network and data of a well one where that can carry it."""
    rng = np.random.default_rng([seed, 1])
    base = well(seed)
    deepest = DEEPEST["cnn" if base.kind == "cnn" else "mlp"]
    plain = replace(
        base, kind="cnn" if base.kind == "cnn" else "mlp", depth=min(base.depth, deepest), width=max(base.width, 8),
        dropout=0.0, weight_decay=0.0, clip=0.0, schedule="",
    )  # fmt: skip
    if plain.target_shift:
        plain = replace(plain, target_scale=1.0, target_shift=0.0, fitted_output=False, learning_rate=2e-3)
    planted = sorted(ANSWERS)[seed // 2 % len(ANSWERS)]  # in turn: each comes as often as the others in either half
    factor = _between(rng, 3, 30)
    return replace(_PLANT[planted](plain, factor, rng), planted=planted)


def _late(spec: Spec, rng: np.random.Generator) -> Spec:
    """The same with something to come at a known step, after the network has learnt for a while."""
    steps = max(400, spec.steps)
    return replace(spec, steps=steps, planted_at=round(steps * float(rng.uniform(0.3, 0.5))))


def _relu(spec: Spec) -> Spec:
    return replace(spec, activation="relu")


def _bounded(spec: Spec, rng: np.random.Generator) -> Spec:
    return replace(spec, activation=_pick(rng, ("sigmoid", "tanh")))


def _either(spec: Spec, rng: np.random.Generator) -> Spec:
    return _pick(rng, (_relu(spec), _bounded(spec, rng)))


def _cut(spec: Spec, factor: float, rng: np.random.Generator) -> Spec:
    depth = max(2, spec.depth)
    return replace(spec, depth=depth, cut_after=depth - 1)


def _decayed(spec: Spec, factor: float, rng: np.random.Generator) -> Spec:
    """Weight decay that wins against the loss."""
    return replace(
        _relu(spec), optimizer="momentum", learning_rate=USUAL_RATES["momentum"], weight_decay=0.1 * factor,
        steps=max(400, spec.steps), depth=max(2, spec.depth),
    )  # fmt: skip


_PLANT: dict[str, Callable[[Spec, float, np.random.Generator], Spec]] = {
    "fast": lambda s, f, rng: replace(_relu(s), learning_rate=s.learning_rate * 10 * f),
    "late_rate": lambda s, f, rng: replace(_late(_relu(s), rng), rate_factor=60 * f),
    "rate_ramp": lambda s, f, rng: replace(_relu(s), rate_ramp=300 * f, steps=max(400, s.steps)),
    "momentum": lambda s, f, rng: replace(
        _relu(s), optimizer="momentum", momentum=1 - 0.01 / f, learning_rate=10 * USUAL_RATES["momentum"]
    ),
    "slow": lambda s, f, rng: replace(s, learning_rate=s.learning_rate / 1000 / f),
    "bias": lambda s, f, rng: replace(
        _relu(s) if rng.random() < 0.7 else _bounded(s, rng), bias=-3 * f, bias_layers=int(rng.integers(0, 2))
    ),
    "bias_both_ways": lambda s, f, rng: replace(_bounded(s, rng), bias=3 * f, bias_sign="both"),
    "large_weights": lambda s, f, rng: replace(_either(s, rng), weight_scale=2 * f, depth=max(3, s.depth)),
    "small_weights": lambda s, f, rng: replace(s, weight_scale=1 / (3 * f), depth=max(6, s.depth)),
    "zeros": lambda s, f, rng: replace(_either(s, rng), constant_weights=0.0, depth=max(2, s.depth)),
    "constant": lambda s, f, rng: replace(_either(s, rng), constant_weights=f / 30, depth=max(2, s.depth)),
    "inputs": lambda s, f, rng: replace(_either(s, rng), input_scale=30 * f),
    "offset": lambda s, f, rng: replace(_either(s, rng), input_shift=10 * f),
    "one_feature": lambda s, f, rng: replace(_either(s, rng), feature_scale=1000 * f),
    "corrupt_batch": lambda s, f, rng: replace(
        _late(_relu(s), rng), corrupt=1e4 * f,
        **({"optimizer": "sgd", "learning_rate": USUAL_RATES["sgd"] / 5} if rng.random() < 0.5 else {}),
    ),
    "nan_batch": lambda s, f, rng: replace(_late(s, rng), corrupt=math.nan),
    "targets": lambda s, f, rng: replace(
        _relu(s), task=_pick(rng, ("friedman", "diabetes")), loss="mse", kind="mlp", depth=max(2, s.depth),
        target_scale=300 * f, smoothing=0.0,
    ),
    "deep_sigmoid": lambda s, f, rng: replace(s, activation="sigmoid", kind="mlp", depth=int(rng.integers(6, 20))),
    "unbounded": lambda s, f, rng: replace(s, activation="exp", kind="mlp", depth=int(rng.integers(3, 7)), init="he"),
    "narrow": lambda s, f, rng: replace(
        _relu(s), kind="mlp", width=int(rng.integers(2, 4)), depth=int(rng.integers(10, 31)), init="he"
    ),
    "relu_on_output": lambda s, f, rng: replace(
        _relu(s), relu_on_output=True, loss=task(s.task).losses[0]
    ),
    "cut": _cut,
    "weight_decay": _decayed,
    "forgotten": lambda s, f, rng: replace(s, trained="output_bias"),
}  # fmt: skip
