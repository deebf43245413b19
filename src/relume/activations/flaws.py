"""What torch's own modules lose, as measured once; `relume.nn.flaws` measures it, and says what the words mean."""

from collections.abc import Mapping
from typing import Literal

Flaw = Literal[
    "nan at -inf",
    "nan at inf",
    "value lost on the left",
    "value lost on the right",
    "gradient lost on the left",
    "gradient lost on the right",
    "value lost near 0",
    "gradient lost near 0",
    "more than 4 bytes",
    "float64 as float32",
    "no second derivative",
    "no vmap",
]

# What torch's modules lose (measured with torch 2.13; a test holds that it is exactly this): every row with a flaw.
FLAWS: Mapping[str, tuple[Flaw, ...]] = {
    "sigmoid": ("gradient lost on the right",),
    "tanh": ("gradient lost on the left", "gradient lost on the right"),
    "rrelu": ("more than 4 bytes", "no vmap"),
    "gelu": ("nan at -inf", "nan at inf", "value lost on the left", "gradient lost on the left"),
    "gelu_tanh": ("nan at -inf", "nan at inf", "value lost on the left", "gradient lost on the left"),
    "silu": ("nan at -inf", "nan at inf", "value lost on the left", "gradient lost on the left"),
    "mish": ("nan at -inf", "nan at inf", "gradient lost on the left"),
    "hardsigmoid": ("float64 as float32", "no second derivative"),
    "hardswish": ("nan at -inf",),
    "softsign": ("nan at -inf", "nan at inf", "more than 4 bytes"),
    "logsigmoid": ("more than 4 bytes",),
    "tanhshrink": ("value lost near 0", "gradient lost near 0"),
    "glu": ("gradient lost on the right",),
    "softmax": ("nan at inf", "gradient lost on the left"),
    "softmin": ("nan at -inf", "gradient lost on the right"),
    "log_softmax": ("nan at inf", "value lost on the left", "gradient lost on the left"),
}
