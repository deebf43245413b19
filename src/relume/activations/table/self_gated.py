"""Functions that multiply x by a gate made of x itself, as gelu, silu and mish do."""

import math
from typing import Any

from relume.activations.calculus import (
    SQRT_TAU,
    cut,
    cut_left,
    expit,
    far_where,
    gated,
    gelu,
    gelu_slope,
    gelu_tanh_slope,
    logistic_slope,
    mish_slope,
    rough_ndtr,
    silu,
    silu_slope,
    tanh_argument,
    tanh_slope,
    tanh_soft_relu,
)
from relume.activations.primitives import (
    capped_exp,
    clip,
    erf,
    exp,
    expm1,
    log1p,
    maximum,
    minimum,
    over,
    plus,
    square,
    step,
    tanh,
    times,
)
from relume.activations.row import Activation, Parameter, Tail


def _swish_tail(side: float, beta: float) -> Tail:
    return Tail(0.5, knee=0.0) if beta == 0 else Tail(1.0 if side * beta > 0 else 0.0)


def _swish_by_beta(x: Any, beta: Any) -> Any:
    x = clip(x, -1e15, 1e15)  # whose square is no infinity
    return logistic_slope(beta * x, square(x))


def _tanh_log(s: Any) -> Any:
    """tanh(ln(1 + s))."""
    t = times(2 + s, s)
    return over(t, 2 + t)


def _logistic_rest(s: Any, x: Any) -> Any:
    """x times the derivative of the logistic function s: right of 0 with the digits of s, which suffice beside 1."""
    return times(times(1 - s, s), cut(x))


def _logish_slope(x: Any) -> Any:
    s = expit(x)
    return plus(over(_logistic_rest(s, x), 1 + s), log1p(s, own=True))


def _smish_slope(x: Any) -> Any:
    s = expit(x)
    t = times(2 + s, s)
    d = 2 + t
    rest = over(times(times(_logistic_rest(s, x), 1 + s), 4.0), d)
    return over(plus(t, rest), d)


def _serf_slope(x: Any) -> Any:
    p = log1p(capped_exp(x), own=True)  # ln(1 + e^x), capped where its error function has long been 1
    rest = gated(times(exp(times(square(p), -1.0), own=True), cut(x)), x)
    return plus(times(rest, 2 / math.sqrt(math.pi)), erf(p))


def _aptx(x: Any, alpha: float, beta: float, gamma: float) -> Any:
    if alpha == 1:
        return times(gated(cut_left(x), x, 2 * beta), 2 * gamma)
    gate = plus(times(expit(2 * beta * x), 2.0), alpha - 1)
    return times(times(gate, gamma), clip(x, -math.inf, far_where(alpha == -1)))


def _telu_slope(x: Any) -> Any:
    u = exp(minimum(x, 50.0), own=True)
    return plus(times(tanh_slope(u, u), cut(x)), tanh(u))


def _lisht_slope(x: Any) -> Any:
    t = tanh(x)
    return plus(times(1 - square(t), cut(x)), t)


def _phish_slope(x: Any) -> Any:
    x, p = cut(x), rough_ndtr(x)
    t = tanh(x * p, own=True)
    gate_slope = plus(times(times(exp(times(square(x), -0.5), own=True), x), 1 / SQRT_TAU), p)
    return plus(times(times(gate_slope, x), 1 - square(t)), t)


_LOGISTIC = (
    Activation(
        name="silu",
        module="torch.nn.SiLU",
        kept="relume.nn.SiLU",
        functions=("torch.nn.functional.silu",),
        tex=r"\frac{x}{1 + e^{-x}}",
        f=silu,
        df=silu_slope,
        left=Tail(0.0),
        right=Tail(1.0),
        range=(-0.278464542761073795109, math.inf),
        monotone=False,
        when="For modern convolutional networks and diffusion models; a smooth relu whose units hardly die.",
        paper="Elfwing, Uchibe & Doya 2018, Sigmoid-weighted linear units, arXiv:1702.03118",
    ),
    Activation(
        name="swish",
        module="relume.nn.Swish",
        tex=r"\frac{x}{1 + e^{-\beta x}}",
        f=lambda x, beta: gated(clip(x, -far_where(beta > 0), far_where(beta < 0)), beta * cut(x)),
        df=lambda x, beta: silu_slope(beta * cut(x)),
        parameters={
            "beta": Parameter(
                default=1.0,
                init_argument="beta",
                derivative=_swish_by_beta,
            )
        },
        left=lambda beta: _swish_tail(-1.0, beta),
        right=lambda beta: _swish_tail(1.0, beta),
        range=(-0.278464542761073795109, math.inf),
        monotone=False,
        when="Instead of silu where the sharpness of the gate should be learnt; with beta at 1 take silu.",
        paper="Ramachandran, Zoph & Le 2017, Searching for activation functions, arXiv:1710.05941",
    ),
    Activation(
        name="quick_gelu",
        module="relume.nn.QuickGELU",
        tex=r"\frac{x}{1 + e^{-1.702 x}}",
        f=lambda x: gated(cut_left(x), x, 1.702),
        df=lambda x: silu_slope(1.702 * x),
        left=Tail(0.0),
        right=Tail(1.0),
        range=(-0.278464542761073795109 / 1.702, math.inf),
        monotone=False,
        ulps=100.0,  # 1.702 x is rounded before it becomes an exponent
        when="To run weights that were trained with it, such as CLIP's; for new networks take gelu.",
        paper="Hendrycks & Gimpel 2016, Gaussian error linear units, arXiv:1606.08415, section 2",
    ),
    Activation(
        name="hardswish",
        module="torch.nn.Hardswish",
        kept="relume.nn.Hardswish",
        functions=("torch.nn.functional.hardswish",),
        tex=r"x \min(\max(0, x + 3), 6) / 6",
        f=lambda x: cut_left(x) * (clip(x + 3, 0.0, 6.0) / 6),
        df=lambda x: (clip(x, -3.0, 3.0) / 3 + 0.5) * step(x + 3) * step(3 - x) + (1 - step(3 - x)),
        left=Tail(0.0, knee=-3.0),
        right=Tail(1.0, knee=3.0),
        kinks=(-3.0, 3.0),
        range=(-0.375, math.inf),
        monotone=False,
        when="Instead of silu on small devices and in few bits; below -3 a unit gets no gradient.",
        paper="Howard et al. 2019, Searching for MobileNetV3, arXiv:1905.02244",
    ),
    Activation(
        name="flatten_t_swish",
        module="relume.nn.FlattenTSwish",
        tex=r"\begin{cases} \frac{x}{1 + e^{-x}} + T & x \ge 0 \\ T & x < 0 \end{cases}",
        f=lambda x, threshold: silu(maximum(x, 0.0)) + threshold,
        df=lambda x, threshold: step(x) * silu_slope(maximum(x, 0.0)),
        parameters={"threshold": Parameter(default=-0.2)},
        left=Tail(0.0, knee=0.0),
        right=Tail(1.0),
        kinks=(0.0,),
        range=(-0.2, math.inf),
        monotone=True,
        when="Where relu's exact zeros are wanted with silu's bend and a mean nearer 0; units can die.",
        paper="Chieng, Wahid, Ong & Perla 2018, Flatten-T Swish, arXiv:1812.06247",
    ),
    Activation(
        name="aptx",
        module="relume.nn.APTx",
        tex=r"(\alpha + \tanh(\beta x)) \gamma x",
        f=_aptx,
        df=lambda x, alpha, beta, gamma: plus(times(silu_slope(2 * beta * x), 2 * gamma), gamma * (alpha - 1)),
        parameters={
            "alpha": Parameter(default=1.0),
            "beta": Parameter(default=1.0, low=1e-6),
            "gamma": Parameter(default=0.5, low=1e-6),
        },
        left=lambda alpha, beta, gamma: Tail(gamma * (alpha - 1)),
        right=lambda alpha, beta, gamma: Tail(gamma * (alpha - 1 + 2)),
        range=(-0.278464542761073795109 / 2, math.inf),
        monotone=False,
        when="Instead of mish where its price matters: much the same curve from one tanh.",
        paper="Kumar 2022, APTx: better activation function than MISH, SWISH, and ReLU's variants, arXiv:2209.06119",
    ),
    Activation(
        name="logish",
        module="relume.nn.Logish",
        tex=r"x \ln(1 + \frac{1}{1 + e^{-x}})",
        f=lambda x: times(log1p(expit(x), own=True), cut_left(x)),
        df=_logish_slope,
        left=Tail(0.0),
        right=Tail(math.log(2)),
        range=(-0.252768816789440353091, math.inf),
        monotone=False,
        ulps=16.0,  # right of 0 the derivative has the digits of 1 - s, a difference
        when="Where silu is used and a smaller slope on the right is no harm; scale the initialisation for it.",
        paper="Zhu, Zeng, Liu & Zhang 2021, Logish: a new nonlinear nonmonotonic activation function for "
        "convolutional neural network, Neurocomputing, doi:10.1016/j.neucom.2021.06.067",
    ),
    Activation(
        name="smish",
        module="relume.nn.Smish",
        tex=r"x \tanh(\ln(1 + \frac{1}{1 + e^{-x}}))",
        f=lambda x: times(_tanh_log(expit(x)), cut_left(x)),
        df=_smish_slope,
        left=Tail(0.0),
        right=Tail(0.6),
        range=(-0.249993663660129495394, math.inf),
        monotone=False,
        ulps=16.0,  # the derivative is the difference of two products left of the minimum
        when="Where mish is used and a slope of .6 on the right is no harm; scale the initialisation for it.",
        paper="Wang, Ren & Wang 2022, Smish: a novel activation function for deep learning methods, Electronics 11",
    ),
    Activation(
        name="elish",
        module="relume.nn.ELiSH",
        tex=r"\begin{cases} \frac{x}{1 + e^{-x}} & x \ge 0 \\ \frac{e^x - 1}{1 + e^{-x}} & x < 0 \end{cases}",
        f=lambda x: (maximum(x, 0.0) + expm1(minimum(x, 0.0))) * expit(x),
        df=lambda x: (
            exp(minimum(x, 0.0)) * expit(x) + (maximum(cut(x), 0.0) + expm1(minimum(x, 0.0))) * logistic_slope(x)
        ),
        left=Tail(0.0),
        right=Tail(1.0),
        kinks=(0.0,),
        range=(-0.171572875253809902397, math.inf),
        monotone=False,
        when="Where silu is used, as one more candidate in a comparison; it was found by search on image classes.",
        paper="Basirat & Roth 2018, The quest for the golden activation function, arXiv:1808.00783",
    ),
    Activation(
        name="hard_elish",
        module="relume.nn.HardELiSH",
        tex=r"\max(0, \min(1, \frac{x + 1}{2})) \begin{cases} x & x \ge 0 \\ e^x - 1 & x < 0 \end{cases}",
        f=lambda x: (maximum(x, 0.0) + expm1(minimum(x, 0.0))) * (clip(x + 1, 0.0, 2.0) / 2),
        df=lambda x: (
            exp(minimum(x, 0.0)) * (clip(x + 1, 0.0, 2.0) / 2)
            + (maximum(cut(x), 0.0) + expm1(minimum(x, 0.0))) * (step(x + 1) * (1 - step(x - 1)) / 2)
        ),
        left=Tail(0.0, knee=-1.0),
        right=Tail(1.0, knee=1.0),
        kinks=(-1.0, 0.0, 1.0),
        range=(-0.099673151528742617937, math.inf),
        monotone=False,
        when="Instead of elish where a logistic function is too dear; below -1 a unit gets no gradient.",
        paper="Basirat & Roth 2018, The quest for the golden activation function, arXiv:1808.00783",
    ),
)

_OTHERS = (
    Activation(
        name="gelu",
        module="torch.nn.GELU",
        kept="relume.nn.GELU",
        functions=("torch.nn.functional.gelu",),
        fixed={"approximate": "none"},
        tex=r"x \Phi(x)",
        f=gelu,
        df=gelu_slope,
        left=Tail(0.0),
        right=Tail(1.0),
        range=(-0.169971207479903661694, math.inf),
        monotone=False,
        when="The first choice for transformers; a smooth relu whose units hardly die.",
        paper="Hendrycks & Gimpel 2016, Gaussian error linear units, arXiv:1606.08415",
    ),
    Activation(
        name="gelu_tanh",
        module="torch.nn.GELU",
        kept="relume.nn.GELUTanh",
        functions=("torch.nn.functional.gelu",),
        fixed={"approximate": "tanh"},
        tex=r"\frac{x}{2} (1 + \tanh(\sqrt{2 / \pi} (x + 0.044715 x^3)))",
        f=lambda x: cut_left(x) * expit(tanh_argument(x)),
        df=gelu_tanh_slope,
        left=Tail(0.0),
        right=Tail(1.0),
        range=(-0.170040750571254050639, math.inf),
        monotone=False,
        ulps=200.0,  # the polynomial is rounded before it becomes an exponent
        when="To run weights that were trained with it, such as GPT-2's; for new networks take gelu.",
        paper="Hendrycks & Gimpel 2016, Gaussian error linear units, arXiv:1606.08415, section 2",
    ),
    Activation(
        name="mish",
        module="torch.nn.Mish",
        kept="relume.nn.Mish",
        functions=("torch.nn.functional.mish",),
        tex=r"x \tanh(\ln(1 + e^x))",
        f=lambda x: cut_left(x) * tanh_soft_relu(x),
        df=mish_slope,
        left=Tail(0.0),
        right=Tail(1.0),
        range=(-0.308843413017250406629, math.inf),
        monotone=False,
        when="For object detectors of the YOLO family and where silu does well; it costs a little more.",
        paper="Misra 2019, Mish: a self regularized non-monotonic activation function, arXiv:1908.08681",
    ),
    Activation(
        name="serf",
        module="relume.nn.Serf",
        tex=r"x \, \mathrm{erf}(\ln(1 + e^x))",
        f=lambda x: times(erf(log1p(capped_exp(x), own=True), own=True), cut_left(x)),
        df=_serf_slope,
        left=Tail(0.0),
        right=Tail(1.0),
        range=(-0.348437458759606420222, math.inf),
        monotone=False,
        ulps=16.0,  # the derivative is the difference of two products left of the minimum
        when="Where mish does well, as one more candidate in a comparison.",
        paper="Nag & Bhattacharyya 2021, Serf: towards better training of deep neural networks using log-softplus "
        "ERror activation function, arXiv:2108.09598",
    ),
    Activation(
        name="telu",
        module="relume.nn.TeLU",
        tex=r"x \tanh(e^x)",
        f=lambda x: times(tanh(exp(minimum(x, 50.0), own=True), own=True), cut_left(x)),
        df=_telu_slope,
        left=Tail(0.0),
        right=Tail(1.0),
        range=(-0.353285777848211270987, math.inf),
        monotone=False,
        when="Where silu or mish does well and the right side should be nearly straight from 1 on.",
        paper="Liu & Di 2020, TanhExp, arXiv:2003.09855; Fernandez & Mali 2024, TeLU activation function, "
        "arXiv:2412.20269",
    ),
    Activation(
        name="phish",
        module="relume.nn.Phish",
        tex=r"x \tanh(x \Phi(x))",
        f=lambda x: times(tanh(times(rough_ndtr(x), cut_left(x)), own=True), cut_left(x)),
        df=_phish_slope,
        left=Tail(0.0),
        right=Tail(1.0),
        range=(0.0, math.inf),
        monotone=False,
        ulps=256.0,  # x / sqrt(2) is rounded before it becomes an exponent
        when="Where gelu does well, as one more candidate in a comparison; it is flat at 0.",
        paper="Naveen 2022, Phish: a novel hyper-optimizable activation function, TechRxiv",
    ),
    Activation(
        name="lisht",
        module="relume.nn.LiSHT",
        tex=r"x \tanh x",
        f=lambda x: times(tanh(x), x),
        df=_lisht_slope,
        left=Tail(-1.0),
        right=Tail(1.0),
        range=(0.0, math.inf),
        monotone=False,
        when="Where the sign of an input carries no meaning: it is even, so that both signs learn alike.",
        paper="Roy, Manna, Dubey & Chaudhuri 2019, LiSHT: non-parametric linearly scaled hyperbolic tangent, "
        "arXiv:1901.05894",
    ),
)

SELF_GATED = _LOGISTIC + _OTHERS
