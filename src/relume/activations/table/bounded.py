"""Functions that stay in an interval: sigmoids, their piecewise forms, and waves."""

import math
from typing import Any

from relume.activations.calculus import cut, expit, logistic_slope, silu_slope, softsign, tanh_slope
from relume.activations.primitives import (
    absolute,
    arctan,
    choose,
    clip,
    cos,
    exp,
    log1p,
    maximum,
    minimum,
    over,
    plus,
    sided,
    sin,
    sqrt,
    square,
    tanh,
    times,
)
from relume.activations.row import Activation, Parameter, Tail

_LOG_TINY = -87.3


def _soft_clipping(x: Any, alpha: float) -> Any:
    # held where exp would give numbers below the smallest normal one, with which processors are slow
    rises, levels = (log1p(exp(maximum(-alpha * absolute(z), _LOG_TINY))) for z in (x, x - 1))
    return clip(x, 0.0, 1.0) + (rises - levels) / alpha


def _elliott(x: Any) -> Any:
    x = cut(x)
    return over(plus(maximum(x, 0.0), 0.5), 1 + absolute(x))


def _isru(x: Any, alpha: float) -> Any:
    far = 1e18 / max(1.0, math.sqrt(alpha))  # alpha times its square is no infinity, in float32 too
    x = clip(x, -far, far)
    return over(x, sqrt(plus(times(square(x), alpha), 1.0)))


def _sqnl(x: Any) -> Any:
    x = clip(x, -2.0, 2.0)
    return x * (1 - absolute(x) / 4)


BOUNDED = (
    Activation(
        name="sigmoid",
        module="torch.nn.Sigmoid",
        kept="relume.nn.Sigmoid",
        functions=(
            "torch.sigmoid",
            "torch.sigmoid_",
            "torch.special.expit",
            "torch.nn.functional.sigmoid",
            "torch.Tensor.sigmoid",
            "torch.Tensor.sigmoid_",
        ),
        tex=r"\frac{1}{1 + e^{-x}}",
        f=expit,
        df=logistic_slope,
        left=Tail(0.0),
        right=Tail(0.0),
        range=(0.0, 1.0),
        monotone=True,
        when="For a probability at the output or a gate; not between layers, where it shrinks gradients fourfold.",
        paper="Rumelhart, Hinton & Williams 1986, Learning representations by back-propagating errors, Nature 323",
    ),
    Activation(
        name="tanh",
        module="torch.nn.Tanh",
        kept="relume.nn.Tanh",
        functions=(
            "torch.tanh",
            "torch.tanh_",
            "torch.nn.functional.tanh",
            "torch.Tensor.tanh",
            "torch.Tensor.tanh_",
        ),
        tex=r"\tanh x",
        f=tanh,
        df=tanh_slope,
        left=Tail(0.0),
        right=Tail(0.0),
        range=(-1.0, 1.0),
        monotone=True,
        when="For recurrent states, bounded outputs and smooth fields; deep stacks need a critical initialisation.",
        paper="LeCun, Bottou, Orr & Mueller 1998, Efficient BackProp",
    ),
    Activation(
        name="scaled_tanh",
        module="relume.nn.ScaledTanh",
        tex=r"1.7159 \tanh(\frac{2}{3} x)",
        f=lambda x: times(tanh(2 / 3 * x), 1.7159),
        df=lambda x: tanh_slope(2 / 3 * x, 1.7159 * 2 / 3),
        left=Tail(0.0),
        right=Tail(0.0),
        range=(-1.7159, 1.7159),
        monotone=True,
        ulps=100.0,  # 2/3 x is rounded before it becomes an exponent
        when="For nets trained on targets of +-1, which it reaches well before its ends; mostly of the past.",
        paper="LeCun, Bottou, Orr & Mueller 1998, Efficient BackProp, section 4.4",
    ),
    Activation(
        name="penalized_tanh",
        module="relume.nn.PenalizedTanh",
        tex=r"\begin{cases} \tanh x & x > 0 \\ a \tanh x & x \le 0 \end{cases}",
        f=lambda x, slope: sided(x, slope, 1.0) * tanh(x),
        df=lambda x, slope: sided(x, slope, 1.0) * tanh_slope(x),
        parameters={"slope": Parameter(default=0.25, low=0.0, high=1.0)},
        left=lambda slope: Tail(0.0, knee=None if slope else 0.0),
        right=Tail(0.0),
        kinks=(0.0,),
        range=(-0.25, 1.0),
        monotone=True,
        when="Where tanh is wanted but its two equally steep sides train too slowly, as in language tagging models.",
        paper="Xu, Huang & Li 2016, Revise saturated activation functions, arXiv:1602.05980",
    ),
    Activation(
        name="hardtanh",
        module="torch.nn.Hardtanh",
        functions=(
            "torch.nn.functional.hardtanh",
            "torch.nn.functional.hardtanh_",
        ),
        tex=r"\min(\max(l, x), u)",
        f=lambda x, min_val, max_val: minimum(maximum(x, min_val), max_val),
        df=lambda x, min_val, max_val: choose(x, (x > min_val) & (x < max_val), 1.0, 0.0),
        parameters={
            "min_val": Parameter(default=-1.0, infinite=True),
            "max_val": Parameter(default=1.0, infinite=True),
        },
        left=lambda min_val, max_val: Tail(0.0, knee=min_val),
        right=lambda min_val, max_val: Tail(0.0, knee=max_val),
        kinks=lambda min_val, max_val: (min_val, max_val),
        range=(-1.0, 1.0),
        monotone=True,
        when="For cheap or quantised bounded units; outside its interval a unit gets no gradient.",
        paper="Collobert 2004, Large scale machine learning, PhD thesis, Universite Paris VI",
    ),
    Activation(
        name="hardsigmoid",
        module="torch.nn.Hardsigmoid",
        functions=("torch.nn.functional.hardsigmoid",),
        tex=r"\min(\max(0, x + 3), 6) / 6",
        f=lambda x: clip(x + 3, 0.0, 6.0) / 6,
        df=lambda x: choose(x, (x > -3) & (x < 3), 1 / 6, 0.0),
        left=Tail(0.0, knee=-3.0),
        right=Tail(0.0, knee=3.0),
        kinks=(-3.0, 3.0),
        range=(0.0, 1.0),
        monotone=True,
        when="For cheap gates on small devices; beyond +-3 a gate gets no gradient.",
        paper="Howard et al. 2019, Searching for MobileNetV3, arXiv:1905.02244",
    ),
    Activation(
        name="relu6",
        module="torch.nn.ReLU6",
        functions=("torch.nn.functional.relu6",),
        tex=r"\min(\max(0, x), 6)",
        f=lambda x: clip(x, 0.0, 6.0),
        df=lambda x: choose(x, (x > 0) & (x < 6), 1.0, 0.0),
        left=Tail(0.0, knee=0.0),
        right=Tail(0.0, knee=6.0),
        kinks=(0.0, 6.0),
        range=(0.0, 6.0),
        monotone=True,
        when="For networks that will run in few bits; units can die on both sides.",
        paper="Krizhevsky 2010, Convolutional deep belief networks on CIFAR-10",
    ),
    Activation(
        name="soft_clipping",
        module="relume.nn.SoftClipping",
        tex=r"\frac{1}{\alpha} \ln \frac{1 + e^{\alpha x}}{1 + e^{\alpha (x - 1)}}",
        f=_soft_clipping,
        df=lambda x, alpha: expit(alpha * x) * expit(alpha * (1 - x)) * -math.expm1(-alpha),
        parameters={"alpha": Parameter(default=50.0, low=1e-3)},
        left=Tail(0.0),
        right=Tail(0.0),
        kinks=(0.0, 1.0),
        range=(0.0, 1.0),
        monotone=True,
        ulps=200.0,  # 50 x is rounded before it becomes an exponent
        when="For an output in [0, 1] that should be nearly linear inside, as for samples of a unit cube.",
        paper="Klimek & Perelstein 2018, Neural network-based approach to phase space integration, arXiv:1810.11509",
    ),
    Activation(
        name="softsign",
        module="torch.nn.Softsign",
        kept="relume.nn.Softsign",
        functions=("torch.nn.functional.softsign",),
        tex=r"\frac{x}{1 + |x|}",
        f=softsign,
        df=lambda x: square(1 / (1 + absolute(x))),
        left=Tail(0.0),
        right=Tail(0.0),
        kinks=(0.0,),
        range=(-1.0, 1.0),
        monotone=True,
        when="Instead of tanh where saturation hurts: its slope fades as 1 / x^2 and not exponentially.",
        paper="Turian, Bergstra & Bengio 2009, Quadratic features and deep architectures for chunking, NAACL-HLT",
    ),
    Activation(
        name="elliott",
        module="relume.nn.Elliott",
        tex=r"\frac{1}{2} + \frac{x}{2 (1 + |x|)}",
        f=_elliott,
        df=lambda x: square(1 / (1 + absolute(x))) / 2,
        left=Tail(0.0),
        right=Tail(0.0),
        kinks=(0.0,),
        range=(0.0, 1.0),
        monotone=True,
        when="For a sigmoid without exponentials, on hardware that has none; its ends are slow to reach.",
        paper="Elliott 1993, A better activation function for artificial neural networks, ISR Tech. Report 93-8",
    ),
    Activation(
        name="arctan",
        module="relume.nn.Arctan",
        tex=r"\arctan x",
        f=arctan,
        df=lambda x: 1 / (1 + square(x)),
        left=Tail(0.0),
        right=Tail(0.0),
        range=(-math.pi / 2, math.pi / 2),
        monotone=True,
        when="Instead of tanh where slower saturation is wanted, or its slope as a surrogate gradient of spikes.",
        paper="Kunc & Klema 2024, Three decades of activations, arXiv:2402.09092, section 3.2.4 (a survey)",
    ),
    Activation(
        name="isru",
        module="relume.nn.ISRU",
        tex=r"\frac{x}{\sqrt{1 + \alpha x^2}}",
        f=_isru,
        df=lambda x, alpha: (1 / sqrt(1 + alpha * square(x))) ** 3,
        parameters={"alpha": Parameter(default=1.0, low=1e-6)},
        left=Tail(0.0),
        right=Tail(0.0),
        range=(-1.0, 1.0),
        monotone=True,
        when="Instead of tanh in recurrent nets where an inverse square root is cheaper than an exponential.",
        paper="Carlile, Delamarter, Kinney, Marti & Whitney 2017, Inverse square root linear units, arXiv:1710.09967",
    ),
    Activation(
        name="sqnl",
        module="relume.nn.SQNL",
        tex=r"u - \frac{u |u|}{4}, \; u = \min(\max(-2, x), 2)",
        f=_sqnl,
        df=lambda x: 1 - absolute(clip(x, -2.0, 2.0)) / 2,
        left=Tail(0.0, knee=-2.0),
        right=Tail(0.0, knee=2.0),
        kinks=(-2.0, 0.0, 2.0),
        range=(-1.0, 1.0),
        monotone=True,
        when="For a tanh-like unit in fixed-point hardware; beyond +-2 a unit gets no gradient.",
        paper="Wuraola & Patel 2018, SQNL: a new computationally efficient activation function, IJCNN",
    ),
    Activation(
        name="gaussian",
        module="relume.nn.Gaussian",
        tex=r"e^{-x^2}",
        f=lambda x: exp(times(square(x), -1.0), own=True),
        df=lambda x: times(times(exp(times(square(x), -1.0), own=True), cut(x)), -2.0),
        left=Tail(0.0),
        right=Tail(0.0),
        range=(0.0, 1.0),
        monotone=False,
        ulps=128.0,  # x^2 is rounded before it becomes an exponent
        when="For radial basis units and for coordinate networks; units far from 0 get almost no gradient.",
        paper="Broomhead & Lowe 1988, Multivariable functional interpolation and adaptive networks, Complex Systems 2",
    ),
    Activation(
        name="sine",
        module="relume.nn.Sine",
        tex=r"\sin(\omega x)",
        f=lambda x, omega: sin(omega * x, own=True),
        df=lambda x, omega: cos(omega * x) * omega,
        parameters={"omega": Parameter(default=1.0, low=1e-6)},
        left=Tail(math.nan),
        right=Tail(math.nan),
        range=(-1.0, 1.0),
        monotone=False,
        when="For signals given by coordinates (images, fields), with SIREN's initialisation and omega 30 at first.",
        paper="Sitzmann et al. 2020, Implicit neural representations with periodic activation functions, "
        "arXiv:2006.09661",
    ),
    Activation(
        name="dsilu",
        module="relume.nn.DSiLU",
        tex=r"\sigma(x) (1 + x (1 - \sigma(x))), \; \sigma(x) = \frac{1}{1 + e^{-x}}",
        f=silu_slope,
        df=lambda x: logistic_slope(x) * (2 - cut(x) * tanh(x / 2)),
        left=Tail(0.0),
        right=Tail(0.0),
        range=(-0.0998393201288669169582, 1.0998393201288669169582),
        monotone=False,
        when="Instead of sigmoid in value networks of reinforcement learning, for which it was proposed.",
        paper="Elfwing, Uchibe & Doya 2018, Sigmoid-weighted linear units, arXiv:1702.03118, equation 5",
    ),
)
