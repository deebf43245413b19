"""Functions of several numbers: gates, maxout, pairs and softmax. `row.py` says how they are described."""

import math
from typing import Any

from relume.activations.calculus import (
    SQRT_TAU,
    cut,
    cut_left,
    expit,
    logistic_slope,
    rough_ndtr,
    silu,
    silu_slope,
    soft_relu,
)
from relume.activations.primitives import exp, maximum, plus, square, step, times, where_positive
from relume.activations.row import Activation, Tail


def _geglu_slopes(a: Any, b: Any) -> tuple[Any, Any]:
    share = rough_ndtr(b)
    slope = plus(times(times(exp(times(square(b), -0.5), own=True), cut(b)), 1 / SQRT_TAU), share)
    return times(share, cut_left(b)), times(slope, a)


def _swiglu_slopes(a: Any, b: Any) -> tuple[Any, Any]:
    return silu(b), times(silu_slope(b), a)


SEVERAL = (
    Activation(
        name="glu",
        module="torch.nn.GLU",
        layout="halves",
        operands=2,
        functions=("torch.nn.functional.glu",),
        tex=r"\frac{a}{1 + e^{-b}}",
        f=lambda a, b: a * expit(b),
        df=lambda a, b: (expit(b), a * logistic_slope(b)),
        left=Tail(0.0),
        right=Tail(1.0),
        range=(-math.inf, math.inf),
        monotone=True,
        when="For convolutional sequence models, and for one more gate wherever a layer can be twice as wide.",
        paper="Dauphin, Fan, Auli & Grangier 2017, Language modeling with gated convolutional networks, "
        "arXiv:1612.08083",
    ),
    Activation(
        name="bilinear_glu",
        module="relume.nn.BilinearGLU",
        layout="halves",
        operands=2,
        tex=r"a b",
        f=lambda a, b: a * b,
        df=lambda a, b: (b, a),
        left=Tail(math.inf),
        right=Tail(math.inf),
        range=(-math.inf, math.inf),
        monotone=True,
        when="In transformer blocks that should be easy to analyse: all that is not linear is one product.",
        paper="Shazeer 2020, GLU variants improve transformer, arXiv:2002.05202, equation 5",
    ),
    Activation(
        name="reglu",
        module="relume.nn.ReGLU",
        layout="halves",
        operands=2,
        tex=r"a \max(0, b)",
        f=lambda a, b: times(maximum(b, 0.0), a),
        df=lambda a, b: (maximum(b, 0.0), where_positive(a, b)),
        left=Tail(0.0, knee=0.0),
        right=Tail(math.inf),
        kinks=(0.0,),
        range=(-math.inf, math.inf),
        monotone=True,
        when="In transformer blocks where exact zeros save work; a gate that is always closed is dead.",
        paper="Shazeer 2020, GLU variants improve transformer, arXiv:2002.05202, equation 5",
    ),
    Activation(
        name="geglu",
        module="relume.nn.GEGLU",
        layout="halves",
        operands=2,
        tex=r"a \, b \Phi(b)",
        f=lambda a, b: times(times(rough_ndtr(b), cut_left(b)), a),
        df=_geglu_slopes,
        left=Tail(0.0),
        right=Tail(math.inf),
        range=(-math.inf, math.inf),
        monotone=False,
        ulps=256.0,  # b / sqrt(2) is rounded before it becomes an exponent
        when="In the feed-forward blocks of transformers, with two thirds of the usual width.",
        paper="Shazeer 2020, GLU variants improve transformer, arXiv:2002.05202, equation 5",
    ),
    Activation(
        name="swiglu",
        module="relume.nn.SwiGLU",
        layout="halves",
        operands=2,
        tex=r"a \frac{b}{1 + e^{-b}}",
        f=lambda a, b: times(silu(b), a),
        df=_swiglu_slopes,
        left=Tail(0.0),
        right=Tail(math.inf),
        range=(-math.inf, math.inf),
        monotone=False,
        ulps=16.0,  # torch's operator for the derivative of silu has no better bound
        when="The first choice in the blocks of large language models, with two thirds of the usual width.",
        paper="Shazeer 2020, GLU variants improve transformer, arXiv:2002.05202, equation 5",
    ),
    Activation(
        name="maxout",
        module="relume.nn.Maxout",
        layout="pieces",
        operands=2,
        tex=r"\max(a, b)",
        f=maximum,
        df=lambda a, b: (step(a - b), 1 - step(a - b)),
        left=Tail(1.0, knee=1.0),
        right=Tail(1.0, knee=1.0),
        kinks=(1.0,),
        range=(-math.inf, math.inf),
        monotone=True,
        when="With dropout, where doubling the weights of a layer is affordable: no unit can die.",
        paper="Goodfellow, Warde-Farley, Mirza, Courville & Bengio 2013, Maxout networks, arXiv:1302.4389",
    ),
    Activation(
        name="crelu",
        module="relume.nn.CReLU",
        layout="doubled",
        outputs=2,
        tex=r"(\max(0, x), \max(0, -x))",
        f=lambda x: (maximum(x, 0.0), maximum(-x, 0.0)),
        df=lambda x: (step(x), -step(-x)),
        left=Tail(1.0, knee=0.0),
        right=Tail(1.0, knee=0.0),
        kinks=(0.0,),
        range=(0.0, math.inf),
        monotone=True,
        when="In the first layers of convolutional networks, whose filters otherwise come in pairs of opposite sign.",
        paper="Shang, Sohn, Almeida & Lee 2016, Understanding and improving convolutional neural networks via "
        "concatenated rectified linear units, arXiv:1603.05201",
    ),
    Activation(
        name="softmax",
        module="torch.nn.Softmax",
        layout="across",
        operands=2,
        functions=(
            "torch.softmax",
            "torch.nn.functional.softmax",
            "torch.Tensor.softmax",
            "torch.special.softmax",
        ),
        tex=r"\frac{e^{x_i}}{\sum_j e^{x_j}}",
        f=lambda a, b: expit(a - b),
        df=lambda a, b: (logistic_slope(a - b), -logistic_slope(a - b)),
        left=Tail(0.0),
        right=Tail(0.0),
        range=(0.0, 1.0),
        monotone=False,
        ulps=100.0,  # the difference is rounded before it becomes an exponent
        when="For attention weights and class probabilities; in a loss take log_softmax or cross entropy on logits.",
        paper="Bridle 1990, Probabilistic interpretation of feedforward classification network outputs, NATO ASI F68",
    ),
    Activation(
        name="softmin",
        module="torch.nn.Softmin",
        layout="across",
        operands=2,
        functions=("torch.nn.functional.softmin",),
        tex=r"\frac{e^{-x_i}}{\sum_j e^{-x_j}}",
        f=lambda a, b: expit(b - a),
        df=lambda a, b: (-logistic_slope(b - a), logistic_slope(b - a)),
        left=Tail(0.0),
        right=Tail(0.0),
        range=(0.0, 1.0),
        monotone=True,
        ulps=100.0,  # the difference is rounded before it becomes an exponent
        when="For weights that favour the smallest of several costs or distances.",
        paper="Bridle 1990, Probabilistic interpretation of feedforward classification network outputs, NATO ASI F68",
    ),
    Activation(
        name="log_softmax",
        module="torch.nn.LogSoftmax",
        layout="across",
        operands=2,
        functions=(
            "torch.log_softmax",
            "torch.nn.functional.log_softmax",
            "torch.Tensor.log_softmax",
            "torch.special.log_softmax",
        ),
        tex=r"x_i - \ln \sum_j e^{x_j}",
        f=lambda a, b: -soft_relu(b - a),
        df=lambda a, b: (expit(b - a), -expit(b - a)),
        left=Tail(0.0),
        right=Tail(math.sqrt(2)),
        range=(-math.inf, 0.0),
        monotone=False,
        ulps=100.0,  # the difference is rounded before it becomes an exponent
        when="For log probabilities in front of a likelihood loss.",
        paper="Bridle 1990, Probabilistic interpretation of feedforward classification network outputs, NATO ASI F68",
    ),
)
