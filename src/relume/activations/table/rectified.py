"""Functions made of straight or squared pieces, and the identity."""

import math
from typing import Any

from relume.activations.calculus import bent_ends, cut, far_where, leaky
from relume.activations.primitives import (
    absolute,
    choose,
    clip,
    log1p,
    maximum,
    minimum,
    over,
    plus,
    sided,
    square,
    step,
    times,
)
from relume.activations.row import Activation, Parameter, Tail


def _star_relu(x: Any, scale: Any, bias: Any) -> Any:
    x = clip(x, 0.0, far_where(scale == 0))
    return plus(times(scale * x, x), bias)


# Training may move the left threshold past the right one, of which the paper says nothing: then the two count as one.
def _srelu(x: Any, t_left: Any, a_left: Any, t_right: Any, a_right: Any) -> Any:
    t_left = minimum(t_left, t_right)
    return clip(x, t_left, t_right) + bent_ends(x, t_left, a_left, t_right, a_right)


def _srelu_slope(x: Any, t_left: Any, a_left: Any, t_right: Any, a_right: Any) -> Any:
    inner, outer = step(x - minimum(t_left, t_right)), step(x - t_right)
    return a_left * (1 - inner) + inner * (1 - outer) + a_right * outer


_STRAIGHT = (
    Activation(
        name="relu",
        module="torch.nn.ReLU",
        functions=(
            "torch.relu",
            "torch.relu_",
            "torch.nn.functional.relu",
            "torch.nn.functional.relu_",
            "torch.Tensor.relu",
            "torch.Tensor.relu_",
        ),
        tex=r"\max(0, x)",
        f=lambda x: maximum(x, 0.0),
        df=step,
        left=Tail(0.0, knee=0.0),
        right=Tail(1.0, knee=0.0),
        kinks=(0.0,),
        range=(0.0, math.inf),
        monotone=True,
        when="The first choice for convolutional and plain networks with He's initialisation; watch for dead units.",
        paper="Nair & Hinton 2010, Rectified linear units improve restricted Boltzmann machines, ICML",
    ),
    Activation(
        name="leaky_relu",
        module="torch.nn.LeakyReLU",
        functions=(
            "torch.nn.functional.leaky_relu",
            "torch.nn.functional.leaky_relu_",
        ),
        tex=r"\max(0, x) + a \min(0, x)",
        f=lambda x, negative_slope: leaky(x, slope=negative_slope),
        df=lambda x, negative_slope: sided(x, negative_slope, 1.0),
        parameters={"negative_slope": Parameter(default=0.01)},
        left=lambda negative_slope: Tail(negative_slope, knee=0.0),
        right=Tail(1.0, knee=0.0),
        kinks=(0.0,),
        range=(-math.inf, math.inf),
        monotone=True,
        when="Where ReLU units die, at the same price; slopes of .1 to .3 help more than the usual .01.",
        paper="Maas, Hannun & Ng 2013, Rectifier nonlinearities improve neural network acoustic models, ICML",
    ),
    Activation(
        name="prelu",
        module="torch.nn.PReLU",
        functions=(
            "torch.prelu",
            "torch.nn.functional.prelu",
            "torch.Tensor.prelu",
        ),
        tex=r"\max(0, x) + a \min(0, x)",
        f=lambda x, weight: leaky(x, slope=weight),
        df=lambda x, weight: sided(x, weight, 1.0),
        parameters={
            "weight": Parameter(default=0.25, init_argument="init", derivative=lambda x, weight: minimum(x, 0.0))
        },
        left=lambda weight: Tail(weight, knee=0.0),
        right=Tail(1.0, knee=0.0),
        kinks=(0.0,),
        range=(-math.inf, math.inf),
        monotone=True,
        when="Where data are plenty and the negative slope may be learnt; exempt it from weight decay.",
        paper="He, Zhang, Ren & Sun 2015, Delving deep into rectifiers, arXiv:1502.01852",
    ),
    Activation(
        name="rrelu",
        module="torch.nn.RReLU",
        functions=(
            "torch.rrelu",
            "torch.rrelu_",
            "torch.nn.functional.rrelu",
            "torch.nn.functional.rrelu_",
        ),
        tex=r"\max(0, x) + \frac{l + u}{2} \min(0, x)",
        f=lambda x, lower, upper: leaky(x, (lower + upper) / 2),
        df=lambda x, lower, upper: sided(x, (lower + upper) / 2, 1.0),
        parameters={"lower": Parameter(default=1 / 8), "upper": Parameter(default=1 / 3)},
        left=lambda lower, upper: Tail((lower + upper) / 2, knee=0.0),
        right=Tail(1.0, knee=0.0),
        kinks=(0.0,),
        range=(-math.inf, math.inf),
        monotone=True,
        when="On small data sets, where drawing the negative slope at random in training regularises.",
        paper="Xu, Wang, Chen & Li 2015, Empirical evaluation of rectified activations, arXiv:1505.00853, as evaluated",
    ),
    Activation(
        name="tailored_relu",
        module="relume.nn.TailoredReLU",
        tex=r"\sqrt{\frac{2}{1 + a^2}} (\max(0, x) + a \min(0, x))",
        f=lambda x, negative_slope: leaky(x, negative_slope) * math.sqrt(2 / (1 + negative_slope**2)),
        df=lambda x, negative_slope: sided(x, negative_slope, 1.0) * math.sqrt(2 / (1 + negative_slope**2)),
        parameters={"negative_slope": Parameter(default=0.1814, low=0.0, high=1.0)},
        left=lambda negative_slope: Tail(negative_slope * math.sqrt(2 / (1 + negative_slope**2)), knee=0.0),
        right=lambda negative_slope: Tail(math.sqrt(2 / (1 + negative_slope**2)), knee=0.0),
        kinks=(0.0,),
        range=(-math.inf, math.inf),
        monotone=True,
        when="For deep plain networks without shortcuts or normalisation; the slope grows with depth (.18 is for 20).",
        paper="Zhang, Botev & Martens 2022, Deep learning without shortcuts, arXiv:2203.08120",
    ),
    Activation(
        name="threshold",
        module="torch.nn.Threshold",
        functions=(
            "torch.threshold",
            "torch.threshold_",
            "torch.nn.functional.threshold",
            "torch.nn.functional.threshold_",
        ),
        tex=r"\begin{cases} x & x > \theta \\ v & x \le \theta \end{cases}",
        f=lambda x, threshold, value: choose(x, x > threshold, x, value),
        df=lambda x, threshold, value: choose(x, x > threshold, 1.0, 0.0),
        parameters={"threshold": Parameter(default=1.0), "value": Parameter(default=0.0)},
        left=lambda threshold, value: Tail(0.0, knee=threshold),
        right=lambda threshold, value: Tail(1.0, knee=threshold),
        kinks=lambda threshold, value: (threshold,),
        range=(0.0, math.inf),
        monotone=True,
        when="For sparse codes of autoencoders without biases; its jump passes no gradient, so elsewhere prefer relu.",
        paper="Konda, Memisevic & Krueger 2015, Zero-bias autoencoders and the benefits of co-adapting features, "
        "arXiv:1402.3337",
    ),
    Activation(
        name="shifted_relu",
        module="relume.nn.ShiftedReLU",
        tex=r"\max(-1, x)",
        f=lambda x: maximum(x, -1.0),
        df=lambda x: step(x + 1),
        left=Tail(0.0, knee=-1.0),
        right=Tail(1.0, knee=-1.0),
        kinks=(-1.0,),
        range=(-1.0, math.inf),
        monotone=True,
        when="Where relu's outputs should have a mean near 0 at no extra cost; units can die as relu's do.",
        paper="Clevert, Unterthiner & Hochreiter 2016, Fast and accurate deep learning by ELUs, arXiv:1511.07289",
    ),
    Activation(
        name="srelu",
        module="relume.nn.SReLU",
        tex=r"\begin{cases} t_r + a_r (x - t_r) & x > t_r \\ x & t_l < x \le t_r \\ t_l + a_l (x - t_l) & x \le t_l "
        r"\end{cases}",
        f=_srelu,
        df=_srelu_slope,
        parameters={
            "t_left": Parameter(
                default=0.0,
                init_argument="t_left",
                derivative=lambda x, t_left, a_left, t_right, a_right: (
                    (1 - a_left) * (1 - step(x - t_left)) * (1 - step(t_left - t_right))
                ),
            ),
            "a_left": Parameter(
                default=0.2,
                init_argument="a_left",
                derivative=lambda x, t_left, a_left, t_right, a_right: minimum(x - minimum(t_left, t_right), 0.0),
            ),
            "t_right": Parameter(
                default=1.0,
                init_argument="t_right",
                derivative=lambda x, t_left, a_left, t_right, a_right: (
                    (1 - a_right) * step(x - t_right) + (1 - a_left) * (1 - step(x - t_right)) * step(t_left - t_right)
                ),
            ),
            "a_right": Parameter(
                default=0.5,
                init_argument="a_right",
                derivative=lambda x, t_left, a_left, t_right, a_right: maximum(x - t_right, 0.0),
            ),
        },
        left=lambda t_left, a_left, t_right, a_right: Tail(
            a_left, knee=min(t_left, t_right) if a_left != 1 else t_right
        ),
        right=lambda t_left, a_left, t_right, a_right: Tail(
            a_right, knee=t_right if a_right != 1 else min(t_left, t_right)
        ),
        kinks=lambda t_left, a_left, t_right, a_right: (min(t_left, t_right), t_right),
        range=(-math.inf, math.inf),
        monotone=True,
        when="For convolutional networks with parameters to spare: four learnt numbers a channel bend both sides.",
        paper="Jin, Xu, Feng, Wei, Xiong & Yan 2016, Deep learning with S-shaped rectified linear activation units, "
        "arXiv:1512.07030",
    ),
    Activation(
        name="plu",
        module="relume.nn.PLU",
        tex=r"\max(\alpha (x + c) - c, \min(\alpha (x - c) + c, x))",
        f=lambda x, alpha, c: clip(x, -c, c) + bent_ends(x, -c, alpha, c, alpha),
        df=lambda x, alpha, c: alpha * (1 - step(x + c)) + step(x + c) * (1 - step(x - c)) + alpha * step(x - c),
        parameters={"alpha": Parameter(default=0.1, low=0.0, high=1.0), "c": Parameter(default=1.0, low=1e-6)},
        left=lambda alpha, c: Tail(alpha, knee=-c),
        right=lambda alpha, c: Tail(alpha, knee=c),
        kinks=lambda alpha, c: (-c, c),
        range=(-math.inf, math.inf),
        monotone=True,
        when="Instead of tanh where its vanishing ends hurt and three straight pieces are enough.",
        paper="Nicolae 2018, PLU: the piecewise linear unit activation function, arXiv:1809.09534",
    ),
    Activation(
        name="softshrink",
        module="torch.nn.Softshrink",
        functions=("torch.nn.functional.softshrink",),
        tex=r"\mathrm{sign}(x) \max(0, |x| - \lambda)",
        f=lambda x, lambd: x - clip(x, -lambd, lambd),
        df=lambda x, lambd: step(absolute(x) - lambd),
        parameters={"lambd": Parameter(default=0.5, low=0.0)},
        left=lambda lambd: Tail(1.0, knee=-lambd),
        right=lambda lambd: Tail(1.0, knee=lambd),
        kinks=lambda lambd: (-lambd, lambd),
        range=(-math.inf, math.inf),
        monotone=True,
        when="For sparse coding and denoising layers: the step of ISTA for an L1 penalty.",
        paper="Donoho 1995, De-noising by soft-thresholding, IEEE Trans. Information Theory 41",
    ),
    Activation(
        name="hardshrink",
        module="torch.nn.Hardshrink",
        functions=(
            "torch.hardshrink",
            "torch.nn.functional.hardshrink",
            "torch.Tensor.hardshrink",
        ),
        tex=r"\begin{cases} x & |x| > \lambda \\ 0 & |x| \le \lambda \end{cases}",
        f=lambda x, lambd: choose(x, absolute(x) > lambd, x, 0.0),
        df=lambda x, lambd: step(absolute(x) - lambd),
        parameters={"lambd": Parameter(default=0.5, low=0.0)},
        left=lambda lambd: Tail(1.0, knee=-lambd),
        right=lambda lambd: Tail(1.0, knee=lambd),
        kinks=lambda lambd: (-lambd, lambd),
        range=(-math.inf, math.inf),
        monotone=True,
        when="For sparse coding and denoising layers where large values must keep their size; it jumps.",
        paper="Donoho & Johnstone 1994, Ideal spatial adaptation by wavelet shrinkage, Biometrika 81",
    ),
    Activation(
        name="identity",
        module="torch.nn.Identity",
        tex=r"x",
        f=lambda x: 1.0 * x,
        df=lambda x: 1.0 + 0.0 * cut(x),
        left=Tail(1.0, knee=0.0),
        right=Tail(1.0, knee=0.0),
        range=(-math.inf, math.inf),
        monotone=True,
        when="At the output of a regression, or to switch an activation off.",
        paper="Widrow & Hoff 1960, Adaptive switching circuits, IRE WESCON (the linear unit)",
    ),
)

_CURVED = (
    Activation(
        name="relu_squared",
        module="relume.nn.ReLUSquared",
        tex=r"\max(0, x)^2",
        f=lambda x: square(maximum(x, 0.0)),
        df=lambda x: 2 * maximum(x, 0.0),
        left=Tail(0.0, knee=0.0),
        right=Tail(math.inf),
        kinks=(0.0,),
        range=(0.0, math.inf),
        monotone=True,
        when="In the feed-forward blocks of transformers with normalisation; without it large inputs explode.",
        paper="So et al. 2021, Primer: searching for efficient transformers for language modeling, arXiv:2109.08668",
    ),
    Activation(
        name="star_relu",
        module="relume.nn.StarReLU",
        tex=r"s \max(0, x)^2 + b",
        f=_star_relu,
        df=lambda x, scale, bias: times(clip(x, 0.0, far_where(scale == 0)), 2 * scale),
        parameters={
            "scale": Parameter(
                default=0.8944,
                init_argument="scale",
                derivative=lambda x, scale, bias: square(maximum(x, 0.0)),
            ),
            "bias": Parameter(
                default=-0.4472, init_argument="bias", derivative=lambda x, scale, bias: 1.0 + 0.0 * cut(x)
            ),
        },
        left=Tail(0.0, knee=0.0),
        right=lambda scale, bias: Tail(math.copysign(math.inf, scale) if scale else 0.0),
        kinks=(0.0,),
        range=(-0.4472, math.inf),
        monotone=True,
        when="In MetaFormer-like vision models with normalisation: cheaper than gelu, mean 0 and variance 1 at first.",
        paper="Yu et al. 2022, MetaFormer baselines for vision, arXiv:2210.13452",
    ),
    Activation(
        name="smelu",
        module="relume.nn.SmeLU",
        tex=r"\begin{cases} 0 & x \le -\beta \\ \frac{(x + \beta)^2}{4 \beta} & |x| < \beta \\ x & x \ge \beta "
        r"\end{cases}",
        f=lambda x, beta: square(clip(x + beta, 0.0, 2 * beta)) / (4 * beta) + maximum(x - beta, 0.0),
        df=lambda x, beta: clip(x + beta, 0.0, 2 * beta) / (2 * beta),
        parameters={"beta": Parameter(default=1.0, low=1e-6)},
        left=lambda beta: Tail(0.0, knee=-beta),
        right=lambda beta: Tail(1.0, knee=beta),
        kinks=lambda beta: (-beta, beta),
        range=(0.0, math.inf),
        monotone=True,
        when="Where relu's price matters and two trainings should agree more closely than relu's corner lets them.",
        paper="Shamir, Lin & Coviello 2020, Smooth activations and reproducibility in deep networks, arXiv:2010.09931",
    ),
    Activation(
        name="nlrelu",
        module="relume.nn.NLReLU",
        tex=r"\ln(1 + \beta \max(0, x))",
        f=lambda x, beta: log1p(times(maximum(x, 0.0), beta), own=True),
        df=lambda x, beta: over(times(step(x), beta), plus(times(maximum(x, 0.0), beta), 1.0)),
        parameters={"beta": Parameter(default=1.0, low=1e-6)},
        left=Tail(0.0, knee=0.0),
        right=Tail(0.0),
        kinks=(0.0,),
        range=(0.0, math.inf),
        monotone=True,
        when="Where relu's outputs grow too large and spread too far; units can die as relu's do.",
        paper="Liu, Zhang, Dai, Ma, Qu & Wang 2019, Natural-logarithm-rectified activation function in convolutional "
        "neural networks, arXiv:1908.03682",
    ),
)

RECTIFIED = _STRAIGHT + _CURVED
