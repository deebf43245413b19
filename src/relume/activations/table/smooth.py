"""Functions that are linear on one side and level off or bend on the other: exponential, root and log units."""

import math
from typing import Any

from relume.activations.calculus import SELU_ALPHA, SELU_SCALE, cut, expit, soft_relu, tanh_shrink
from relume.activations.primitives import (
    absolute,
    choose,
    clip,
    exp,
    expm1,
    log1p,
    maximum,
    minimum,
    over,
    plus,
    sided,
    sign,
    sin,
    sqrt,
    square,
    tanh,
    times,
)
from relume.activations.row import Activation, Parameter, Tail


def _isrlu(x: Any, alpha: float) -> Any:
    # alpha times the square of what is left is no infinity, in float32 too
    left = clip(x, -1e18 / max(1.0, math.sqrt(alpha)), 0.0)
    return maximum(x, 0.0) + left / sqrt(1 + alpha * square(left))


def _squareplus_slope(x: Any, b: float) -> Any:
    root, near = sqrt(plus(square(x), b), own=True), clip(x, -1e18, 1e18)
    right = over(plus(absolute(near), near), minimum(root, 1e18))
    return plus(times(right, 0.5), over(b / 2 / plus(absolute(x), root), root))


def _bent_identity(x: Any) -> Any:
    near = clip(x, -1e18, 1e18)
    bend = plus(times(sqrt(plus(square(near), 1.0), own=True), 2.0), 2.0)
    return times(plus(over(near, bend), 1.0), x)


def _bent_identity_slope(x: Any) -> Any:
    x = clip(x, -1e18, 1e18)
    return plus(over(x, times(sqrt(plus(square(x), 1.0), own=True), 2.0)), 1.0)


SMOOTH = (
    Activation(
        name="elu",
        module="torch.nn.ELU",
        functions=(
            "torch.nn.functional.elu",
            "torch.nn.functional.elu_",
        ),
        tex=r"\begin{cases} x & x > 0 \\ \alpha (e^x - 1) & x \le 0 \end{cases}",
        f=lambda x, alpha: maximum(x, 0.0) + alpha * expm1(minimum(x, 0.0)),
        df=lambda x, alpha: sided(x, alpha * exp(minimum(x, 0.0)), 1.0),
        parameters={"alpha": Parameter(default=1.0, low=0.0)},
        left=lambda alpha: Tail(0.0, knee=None if alpha else 0.0),
        right=Tail(1.0, knee=0.0),
        kinks=(0.0,),
        range=(-1.0, math.inf),
        monotone=True,
        when="Where relu units die and no normalisation centres the outputs.",
        paper="Clevert, Unterthiner & Hochreiter 2016, Fast and accurate deep learning by ELUs, arXiv:1511.07289",
    ),
    Activation(
        name="celu",
        module="torch.nn.CELU",
        functions=(
            "torch.celu",
            "torch.celu_",
            "torch.nn.functional.celu",
            "torch.nn.functional.celu_",
        ),
        tex=r"\max(0, x) + \min(0, \alpha (e^{x/\alpha} - 1))",
        f=lambda x, alpha: maximum(x, 0.0) + alpha * expm1(minimum(x, 0.0) / alpha),
        df=lambda x, alpha: exp(minimum(x, 0.0) / alpha),
        parameters={"alpha": Parameter(default=1.0, low=1e-6)},
        left=Tail(0.0),
        right=Tail(1.0, knee=0.0),
        kinks=(0.0,),
        range=(-1.0, math.inf),
        monotone=True,
        when="Instead of elu when alpha is not 1: its slope has no jump at 0.",
        paper="Barron 2017, Continuously differentiable exponential linear units, arXiv:1704.07483",
    ),
    Activation(
        name="selu",
        module="torch.nn.SELU",
        functions=(
            "torch.selu",
            "torch.selu_",
            "torch.nn.functional.selu",
            "torch.nn.functional.selu_",
        ),
        tex=r"\lambda \begin{cases} x & x > 0 \\ \alpha (e^x - 1) & x \le 0 \end{cases}",
        f=lambda x: SELU_SCALE * (maximum(x, 0.0) + SELU_ALPHA * expm1(minimum(x, 0.0))),
        df=lambda x: SELU_SCALE * sided(x, SELU_ALPHA * exp(minimum(x, 0.0)), 1.0),
        left=Tail(0.0),
        right=Tail(SELU_SCALE, knee=0.0),
        kinks=(0.0,),
        range=(-SELU_SCALE * SELU_ALPHA, math.inf),
        monotone=True,
        when="For deep plain networks on tables, with LeCun's initialisation and alpha dropout.",
        paper="Klambauer, Unterthiner, Mayr & Hochreiter 2017, Self-normalizing neural networks, arXiv:1706.02515",
    ),
    Activation(
        name="pelu",
        module="relume.nn.PELU",
        tex=r"\begin{cases} \frac{a}{b} x & x \ge 0 \\ a (e^{x/b} - 1) & x < 0 \end{cases}",
        f=lambda x, a, b: maximum(x, 0.0) * (a / b) + a * expm1(minimum(x, 0.0) / b),
        df=lambda x, a, b: exp(minimum(x, 0.0) / b) * (a / b),
        parameters={
            "a": Parameter(
                default=1.0,
                low=0.1,
                init_argument="a",
                derivative=lambda x, a, b: maximum(x, 0.0) / b + expm1(minimum(x, 0.0) / b),
            ),
            "b": Parameter(
                default=1.0,
                low=0.1,
                init_argument="b",
                derivative=lambda x, a, b: (
                    (maximum(x, 0.0) + minimum(cut(x), 0.0) * exp(minimum(x, 0.0) / b)) * (-a / (b * b))
                ),
            ),
        },
        left=Tail(0.0),
        right=lambda a, b: Tail(a / b, knee=0.0),
        kinks=(0.0,),
        range=(-1.0, math.inf),
        monotone=True,
        when="Instead of elu where its scale and decay should be learnt; keep both parameters at .1 or more.",
        paper="Trottier, Giguere & Chaib-draa 2016, Parametric exponential linear unit, arXiv:1605.09332",
    ),
    Activation(
        name="isrlu",
        module="relume.nn.ISRLU",
        tex=r"\begin{cases} x & x \ge 0 \\ \frac{x}{\sqrt{1 + \alpha x^2}} & x < 0 \end{cases}",
        f=_isrlu,
        df=lambda x, alpha: (1 / sqrt(1 + alpha * square(minimum(x, 0.0)))) ** 3,
        parameters={"alpha": Parameter(default=1.0, low=1e-6)},
        left=Tail(0.0),
        right=Tail(1.0, knee=0.0),
        kinks=(0.0,),
        range=(-1.0, math.inf),
        monotone=True,
        when="Instead of elu where an inverse square root is cheaper than an exponential.",
        paper="Carlile, Delamarter, Kinney, Marti & Whitney 2017, Inverse square root linear units, arXiv:1710.09967",
    ),
    Activation(
        name="softplus",
        module="torch.nn.Softplus",
        functions=("torch.nn.functional.softplus",),
        tex=r"\frac{1}{\beta} \ln(1 + e^{\beta x})",
        f=lambda x, beta, threshold: choose(x, x * beta > threshold, x, soft_relu(x * beta) / beta),
        df=lambda x, beta, threshold: choose(x, x * beta > threshold, 1.0, expit(x * beta)),
        parameters={"beta": Parameter(default=1.0, low=1e-6), "threshold": Parameter(default=20.0, low=0.0)},
        left=Tail(0.0),
        right=lambda beta, threshold: Tail(1.0, knee=threshold / beta),
        kinks=lambda beta, threshold: (threshold / beta,),
        range=(0.0, math.inf),
        monotone=True,
        when="For a positive output such as a variance or a rate; between layers its mean is far from 0.",
        paper="Dugas, Bengio, Belisle, Nadeau & Garcia 2001, Incorporating second-order functional knowledge, NIPS 13",
    ),
    Activation(
        name="shifted_softplus",
        module="relume.nn.ShiftedSoftplus",
        tex=r"\ln(\frac{1}{2} e^x + \frac{1}{2})",
        f=lambda x: plus(maximum(x, 0.0), -log1p(tanh(absolute(x / 2, own=True), own=True), own=True)),
        df=expit,
        left=Tail(0.0),
        right=Tail(1.0),
        range=(-math.log(2), math.inf),
        monotone=True,
        when="For models of molecules whose forces are derivatives of the network and must be smooth.",
        paper="Schuett et al. 2017, SchNet: a continuous-filter convolutional neural network, arXiv:1706.08566",
    ),
    Activation(
        name="squareplus",
        module="relume.nn.Squareplus",
        tex=r"\frac{1}{2} (x + \sqrt{x^2 + b})",
        f=lambda x, b: plus(b / 2 / plus(sqrt(plus(square(x), b), own=True), absolute(x)), maximum(x, 0.0)),
        df=_squareplus_slope,
        parameters={"b": Parameter(default=4.0, low=1e-6)},
        left=Tail(0.0),
        right=Tail(1.0),
        range=(0.0, math.inf),
        monotone=True,
        when="Instead of softplus where exponentials are dear; its left tail falls only as 1 / |x|.",
        paper="Barron 2021, Squareplus: a softplus-like algebraic rectifier, arXiv:2112.11687",
    ),
    Activation(
        name="bent_identity",
        module="relume.nn.BentIdentity",
        tex=r"\frac{\sqrt{x^2 + 1} - 1}{2} + x",
        f=_bent_identity,
        df=_bent_identity_slope,
        left=Tail(0.5),
        right=Tail(1.5),
        range=(-math.inf, math.inf),
        monotone=True,
        when="Where every slope must stay between 1/2 and 3/2; it bends little, so that deep stacks are nearly linear.",
        paper="Kunc & Klema 2024, Three decades of activations, arXiv:2402.09092 (a survey; the origin is not known)",
    ),
    Activation(
        name="exp",
        module="relume.nn.Exp",
        functions=(
            "torch.exp",
            "torch.exp_",
            "torch.Tensor.exp",
            "torch.Tensor.exp_",
        ),
        tex=r"e^x",
        f=exp,
        df=exp,
        left=Tail(0.0),
        right=Tail(math.inf),
        range=(0.0, math.inf),
        monotone=True,
        when="For a positive rate at the output, with the log likelihood as the loss; never between layers.",
        paper="Nelder & Wedderburn 1972, Generalized linear models, J. R. Stat. Soc. A 135",
    ),
    Activation(
        name="logsigmoid",
        module="torch.nn.LogSigmoid",
        kept="relume.nn.LogSigmoid",
        functions=("torch.nn.functional.logsigmoid",),
        tex=r"-\ln(1 + e^{-x})",
        f=lambda x: -soft_relu(-x),
        df=lambda x: expit(-x),
        left=Tail(1.0),
        right=Tail(0.0),
        range=(-math.inf, 0.0),
        monotone=True,
        when="For the log of a probability in a loss; not between layers.",
        paper="Mikolov et al. 2013, Distributed representations of words and phrases, arXiv:1310.4546, equation 4",
    ),
    Activation(
        name="tanhshrink",
        module="torch.nn.Tanhshrink",
        functions=("torch.nn.functional.tanhshrink",),
        tex=r"x - \tanh x",
        f=tanh_shrink,
        df=lambda x: square(tanh(x)),
        left=Tail(1.0),
        right=Tail(1.0),
        range=(-math.inf, math.inf),
        monotone=True,
        when="For sparse coding layers; near 0 its slope vanishes, so that small inputs learn slowly.",
        paper="Collobert, Kavukcuoglu & Farabet 2011, Torch7: a Matlab-like environment for machine learning",
    ),
    Activation(
        name="symlog",
        module="relume.nn.Symlog",
        tex=r"\mathrm{sign}(x) \ln(1 + |x|)",
        f=lambda x: times(log1p(absolute(x)), sign(x)),
        df=lambda x: 1 / (1 + absolute(x)),
        left=Tail(0.0),
        right=Tail(0.0),
        kinks=(0.0,),
        range=(-math.inf, math.inf),
        monotone=True,
        when="To squash inputs or targets whose scales differ by orders of magnitude.",
        paper="Hafner, Pasukonis, Ba & Lillicrap 2023, Mastering diverse domains through world models, "
        "arXiv:2301.04104",
    ),
    Activation(
        name="snake",
        module="relume.nn.Snake",
        tex=r"x + \frac{1}{a} \sin^2(a x)",
        f=lambda x, a: plus(over(square(sin(a * cut(x), own=True), own=True), a), x),
        df=lambda x, a: 1 + sin(2 * a * x),
        parameters={
            "a": Parameter(
                default=1.0,
                low=1e-6,
                init_argument="a",
                derivative=lambda x, a: (cut(x) * sin(2 * a * cut(x)) - square(sin(a * cut(x))) / a) / a,
            )
        },
        left=Tail(math.nan),
        right=Tail(math.nan),
        range=(-math.inf, math.inf),
        monotone=True,
        ulps=32.0,  # the derivative, 1 + sin(2 a x), loses digits on its way to touching 0
        when="For periodic signals such as audio and seasons, also beyond the range of the training data.",
        paper="Ziyin, Hartwig & Ueda 2020, Neural networks fail to learn periodic functions and how to fix it, "
        "arXiv:2006.08195",
    ),
)
