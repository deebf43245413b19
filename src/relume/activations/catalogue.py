"""The rows of the catalogue, and how to look one up."""

import difflib
from math import inf

import numpy as np

from relume.activations.calculus import (
    SELU_ALPHA,
    SELU_SCALE,
    cut_left,
    expit,
    gelu_slope,
    gelu_tanh_slope,
    leaky,
    logistic_slope,
    mish_slope,
    ndtr,
    near,
    silu_slope,
    soft_relu,
    softsign,
    tanh_argument,
)
from relume.activations.primitives import choose, exp
from relume.activations.row import Activation, Parameter, Tail
from relume.errors import ActivationError


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# --- the rows ---------------------------------------------------------------------------------------------------------

_ROWS = (
    Activation(
        name="sigmoid",
        module="torch.nn.Sigmoid",
        functions=_names(
            "torch.sigmoid torch.sigmoid_ torch.special.expit torch.nn.functional.sigmoid "
            "torch.Tensor.sigmoid torch.Tensor.sigmoid_"
        ),
        tex=r"\frac{1}{1 + e^{-x}}",
        f=expit,
        df=logistic_slope,
        left=Tail(0.0),
        right=Tail(0.0),
        range=(0.0, 1.0),
        monotone=True,
        paper="Rumelhart, Hinton & Williams 1986, Learning representations by back-propagating errors, Nature 323",
    ),
    Activation(
        name="relu",
        module="torch.nn.ReLU",
        functions=_names(
            "torch.relu torch.relu_ torch.nn.functional.relu torch.nn.functional.relu_ torch.Tensor.relu "
            "torch.Tensor.relu_"
        ),
        tex=r"\max(0, x)",
        f=lambda x: np.maximum(x, 0.0),
        df=lambda x: choose(x, x > 0, 1.0, 0.0),
        left=Tail(0.0, knee=0.0),
        right=Tail(1.0, knee=0.0),
        kinks=(0.0,),
        range=(0.0, inf),
        monotone=True,
        paper="Nair & Hinton 2010, Rectified linear units improve restricted Boltzmann machines, ICML",
    ),
    Activation(
        name="tanh",
        module="torch.nn.Tanh",
        functions=_names("torch.tanh torch.tanh_ torch.nn.functional.tanh torch.Tensor.tanh torch.Tensor.tanh_"),
        tex=r"\tanh x",
        f=np.tanh,
        df=lambda x: 4 * logistic_slope(2 * x),
        left=Tail(0.0),
        right=Tail(0.0),
        range=(-1.0, 1.0),
        monotone=True,
        paper="LeCun, Bottou, Orr & Mueller 1998, Efficient BackProp",
    ),
    Activation(
        name="leaky_relu",
        module="torch.nn.LeakyReLU",
        functions=_names("torch.nn.functional.leaky_relu torch.nn.functional.leaky_relu_"),
        tex=r"\max(0, x) + a \min(0, x)",
        f=lambda x, negative_slope: leaky(x, slope=negative_slope),
        df=lambda x, negative_slope: choose(x, x > 0, 1.0, negative_slope),
        parameters={"negative_slope": Parameter(default=0.01)},
        left=lambda negative_slope: Tail(negative_slope, knee=0.0),
        right=Tail(1.0, knee=0.0),
        kinks=(0.0,),
        range=(-inf, inf),
        monotone=True,
        paper="Maas, Hannun & Ng 2013, Rectifier nonlinearities improve neural network acoustic models, ICML",
    ),
    Activation(
        name="prelu",
        module="torch.nn.PReLU",
        functions=_names("torch.prelu torch.nn.functional.prelu torch.Tensor.prelu"),
        tex=r"\max(0, x) + a \min(0, x)",
        f=lambda x, weight: leaky(x, slope=weight),
        df=lambda x, weight: choose(x, x > 0, 1.0, weight),
        parameters={"weight": Parameter(default=0.25, init_argument="init")},
        left=lambda weight: Tail(weight, knee=0.0),
        right=Tail(1.0, knee=0.0),
        kinks=(0.0,),
        range=(-inf, inf),
        monotone=True,
        paper="He, Zhang, Ren & Sun 2015, Delving deep into rectifiers, arXiv:1502.01852",
    ),
    Activation(
        name="rrelu",
        module="torch.nn.RReLU",
        functions=_names("torch.rrelu torch.rrelu_ torch.nn.functional.rrelu torch.nn.functional.rrelu_"),
        tex=r"\max(0, x) + \frac{l + u}{2} \min(0, x)",
        f=lambda x, lower, upper: leaky(x, (lower + upper) / 2),
        df=lambda x, lower, upper: choose(x, x > 0, 1.0, (lower + upper) / 2),
        parameters={"lower": Parameter(default=1 / 8), "upper": Parameter(default=1 / 3)},
        left=lambda lower, upper: Tail((lower + upper) / 2, knee=0.0),
        right=Tail(1.0, knee=0.0),
        kinks=(0.0,),
        range=(-inf, inf),
        monotone=True,
        paper="Xu, Wang, Chen & Li 2015, Empirical evaluation of rectified activations, arXiv:1505.00853, as evaluated",
    ),
    Activation(
        name="elu",
        module="torch.nn.ELU",
        functions=_names("torch.nn.functional.elu torch.nn.functional.elu_"),
        tex=r"\begin{cases} x & x > 0 \\ \alpha (e^x - 1) & x \le 0 \end{cases}",
        f=lambda x, alpha: choose(x, x > 0, x, alpha * np.expm1(np.minimum(x, 0.0))),
        df=lambda x, alpha: choose(x, x > 0, 1.0, alpha * np.exp(np.minimum(x, 0.0))),
        parameters={"alpha": Parameter(default=1.0, low=0.0)},
        left=Tail(0.0),
        right=Tail(1.0, knee=0.0),
        kinks=(0.0,),
        range=(-1.0, inf),
        monotone=True,
        paper="Clevert, Unterthiner & Hochreiter 2016, Fast and accurate deep learning by ELUs, arXiv:1511.07289",
    ),
    Activation(
        name="celu",
        module="torch.nn.CELU",
        functions=_names("torch.celu torch.celu_ torch.nn.functional.celu torch.nn.functional.celu_"),
        tex=r"\max(0, x) + \min(0, \alpha (e^{x/\alpha} - 1))",
        f=lambda x, alpha: choose(x, x > 0, x, alpha * np.expm1(np.minimum(x, 0.0) / alpha)),
        df=lambda x, alpha: choose(x, x > 0, 1.0, np.exp(np.minimum(x, 0.0) / alpha)),
        parameters={"alpha": Parameter(default=1.0, low=1e-6)},
        left=Tail(0.0),
        right=Tail(1.0, knee=0.0),
        kinks=(0.0,),
        range=(-1.0, inf),
        monotone=True,
        paper="Barron 2017, Continuously differentiable exponential linear units, arXiv:1704.07483",
    ),
    Activation(
        name="selu",
        module="torch.nn.SELU",
        functions=_names("torch.selu torch.selu_ torch.nn.functional.selu torch.nn.functional.selu_"),
        tex=r"\lambda \begin{cases} x & x > 0 \\ \alpha (e^x - 1) & x \le 0 \end{cases}",
        f=lambda x: SELU_SCALE * choose(x, x > 0, x, SELU_ALPHA * np.expm1(np.minimum(x, 0.0))),
        df=lambda x: SELU_SCALE * choose(x, x > 0, 1.0, SELU_ALPHA * np.exp(np.minimum(x, 0.0))),
        left=Tail(0.0),
        right=Tail(SELU_SCALE, knee=0.0),
        kinks=(0.0,),
        range=(-SELU_SCALE * SELU_ALPHA, inf),
        monotone=True,
        paper="Klambauer, Unterthiner, Mayr & Hochreiter 2017, Self-normalizing neural networks, arXiv:1706.02515",
    ),
    Activation(
        name="softplus",
        module="torch.nn.Softplus",
        functions=_names("torch.nn.functional.softplus"),
        tex=r"\frac{1}{\beta} \ln(1 + e^{\beta x})",
        f=lambda x, beta, threshold: choose(x, x * beta > threshold, x, soft_relu(x * beta) / beta),
        df=lambda x, beta, threshold: choose(x, x * beta > threshold, 1.0, expit(x * beta)),
        parameters={"beta": Parameter(default=1.0, low=1e-6), "threshold": Parameter(default=20.0, low=0.0)},
        left=Tail(0.0),
        right=lambda beta, threshold: Tail(1.0, knee=threshold / beta),
        kinks=lambda beta, threshold: (threshold / beta,),
        range=(0.0, inf),
        monotone=True,
        paper="Dugas, Bengio, Belisle, Nadeau & Garcia 2001, Incorporating second-order functional knowledge, NIPS 13",
    ),
    Activation(
        name="gelu",
        module="torch.nn.GELU",
        functions=_names("torch.nn.functional.gelu"),
        fixed={"approximate": "none"},
        tex=r"x \Phi(x)",
        f=lambda x: cut_left(x) * ndtr(x),
        df=gelu_slope,
        left=Tail(0.0),
        right=Tail(1.0),
        range=(-0.169971207479903661694, inf),
        monotone=False,
        paper="Hendrycks & Gimpel 2016, Gaussian error linear units, arXiv:1606.08415",
    ),
    Activation(
        name="gelu_tanh",
        module="torch.nn.GELU",
        functions=_names("torch.nn.functional.gelu"),
        fixed={"approximate": "tanh"},
        tex=r"\frac{x}{2} (1 + \tanh(\sqrt{2 / \pi} (x + 0.044715 x^3)))",
        f=lambda x: cut_left(x) * expit(tanh_argument(x)),
        df=gelu_tanh_slope,
        left=Tail(0.0),
        right=Tail(1.0),
        range=(-0.170040750571254050639, inf),
        monotone=False,
        paper="Hendrycks & Gimpel 2016, Gaussian error linear units, arXiv:1606.08415, section 2",
    ),
    Activation(
        name="silu",
        module="torch.nn.SiLU",
        functions=_names("torch.nn.functional.silu"),
        tex=r"\frac{x}{1 + e^{-x}}",
        f=lambda x: cut_left(x) * expit(x),
        df=silu_slope,
        left=Tail(0.0),
        right=Tail(1.0),
        range=(-0.278464542761073795109, inf),
        monotone=False,
        paper="Elfwing, Uchibe & Doya 2018, Sigmoid-weighted linear units, arXiv:1702.03118",
    ),
    Activation(
        name="mish",
        module="torch.nn.Mish",
        functions=_names("torch.nn.functional.mish"),
        tex=r"x \tanh(\ln(1 + e^x))",
        f=lambda x: cut_left(x) * np.tanh(soft_relu(x)),
        df=mish_slope,
        left=Tail(0.0),
        right=Tail(1.0),
        range=(-0.308843413017250406629, inf),
        monotone=False,
        paper="Misra 2019, Mish: a self regularized non-monotonic activation function, arXiv:1908.08681",
    ),
    Activation(
        name="identity",
        module="torch.nn.Identity",
        tex=r"x",
        f=np.positive,
        df=lambda x: choose(x, True, 1.0, 0.0),
        left=Tail(1.0, knee=0.0),
        right=Tail(1.0, knee=0.0),
        range=(-inf, inf),
        monotone=True,
        paper="Widrow & Hoff 1960, Adaptive switching circuits, IRE WESCON (the linear unit)",
    ),
    Activation(
        name="exp",
        module="relume.nn.Exp",
        functions=_names("torch.exp torch.exp_ torch.Tensor.exp torch.Tensor.exp_"),
        tex=r"e^x",
        f=exp,
        df=exp,
        left=Tail(0.0),
        right=Tail(inf),
        range=(0.0, inf),
        monotone=True,
        paper="Nelder & Wedderburn 1972, Generalized linear models, J. R. Stat. Soc. A 135",
    ),
    Activation(
        name="relu6",
        module="torch.nn.ReLU6",
        functions=_names("torch.nn.functional.relu6"),
        tex=r"\min(\max(0, x), 6)",
        f=lambda x: np.clip(x, 0.0, 6.0),
        df=lambda x: choose(x, (x > 0) & (x < 6), 1.0, 0.0),
        left=Tail(0.0, knee=0.0),
        right=Tail(0.0, knee=6.0),
        kinks=(0.0, 6.0),
        range=(0.0, 6.0),
        monotone=True,
        paper="Krizhevsky 2010, Convolutional deep belief networks on CIFAR-10",
    ),
    Activation(
        name="hardtanh",
        module="torch.nn.Hardtanh",
        functions=_names("torch.nn.functional.hardtanh torch.nn.functional.hardtanh_"),
        tex=r"\min(\max(l, x), u)",
        f=lambda x, min_val, max_val: np.minimum(np.maximum(x, min_val), max_val),
        df=lambda x, min_val, max_val: choose(x, (x > min_val) & (x < max_val), 1.0, 0.0),
        parameters={"min_val": Parameter(default=-1.0), "max_val": Parameter(default=1.0)},
        left=lambda min_val, max_val: Tail(0.0, knee=min_val),
        right=lambda min_val, max_val: Tail(0.0, knee=max_val),
        kinks=lambda min_val, max_val: (min_val, max_val),
        range=(-1.0, 1.0),
        monotone=True,
        paper="Collobert 2004, Large scale machine learning, PhD thesis, Universite Paris VI",
    ),
    Activation(
        name="hardsigmoid",
        module="torch.nn.Hardsigmoid",
        functions=_names("torch.nn.functional.hardsigmoid"),
        tex=r"\min(\max(0, x + 3), 6) / 6",
        f=lambda x: np.clip(x + 3, 0.0, 6.0) / 6,
        df=lambda x: choose(x, (x > -3) & (x < 3), 1 / 6, 0.0),
        left=Tail(0.0, knee=-3.0),
        right=Tail(0.0, knee=3.0),
        kinks=(-3.0, 3.0),
        range=(0.0, 1.0),
        monotone=True,
        paper="Howard et al. 2019, Searching for MobileNetV3, arXiv:1905.02244",
    ),
    Activation(
        name="hardswish",
        module="torch.nn.Hardswish",
        functions=_names("torch.nn.functional.hardswish"),
        tex=r"x \min(\max(0, x + 3), 6) / 6",
        f=lambda x: cut_left(x) * np.clip(x + 3, 0.0, 6.0) / 6,
        df=lambda x: choose(x, x >= 3, 1.0, np.where(x <= -3, 0.0, near(x) / 3 + 0.5)),
        left=Tail(0.0, knee=-3.0),
        right=Tail(1.0, knee=3.0),
        kinks=(-3.0, 3.0),
        range=(-0.375, inf),
        monotone=False,
        paper="Howard et al. 2019, Searching for MobileNetV3, arXiv:1905.02244",
    ),
    Activation(
        name="softsign",
        module="torch.nn.Softsign",
        functions=_names("torch.nn.functional.softsign"),
        tex=r"\frac{x}{1 + |x|}",
        f=softsign,
        df=lambda x: (1 / (1 + np.abs(x))) ** 2,
        left=Tail(0.0),
        right=Tail(0.0),
        kinks=(0.0,),
        range=(-1.0, 1.0),
        monotone=True,
        paper="Turian, Bergstra & Bengio 2009, Quadratic features and deep architectures for chunking, NAACL-HLT",
    ),
    Activation(
        name="logsigmoid",
        module="torch.nn.LogSigmoid",
        functions=_names("torch.nn.functional.logsigmoid"),
        tex=r"-\ln(1 + e^{-x})",
        f=lambda x: -soft_relu(-x),
        df=lambda x: expit(-x),
        left=Tail(1.0),
        right=Tail(0.0),
        range=(-inf, 0.0),
        monotone=True,
        paper="Mikolov et al. 2013, Distributed representations of words and phrases, arXiv:1310.4546, equation 4",
    ),
    Activation(
        name="tanhshrink",
        module="torch.nn.Tanhshrink",
        functions=_names("torch.nn.functional.tanhshrink"),
        tex=r"x - \tanh x",
        f=lambda x: x - np.tanh(x),
        df=lambda x: np.tanh(x) ** 2,
        left=Tail(1.0),
        right=Tail(1.0),
        range=(-inf, inf),
        monotone=True,
        paper="Collobert, Kavukcuoglu & Farabet 2011, Torch7: a Matlab-like environment for machine learning",
    ),
    Activation(
        name="softshrink",
        module="torch.nn.Softshrink",
        functions=_names("torch.nn.functional.softshrink"),
        tex=r"\mathrm{sign}(x) \max(0, |x| - \lambda)",
        f=lambda x, lambd: x - np.clip(x, -lambd, lambd),
        df=lambda x, lambd: choose(x, np.abs(x) > lambd, 1.0, 0.0),
        parameters={"lambd": Parameter(default=0.5, low=0.0)},
        left=lambda lambd: Tail(1.0, knee=-lambd),
        right=lambda lambd: Tail(1.0, knee=lambd),
        kinks=lambda lambd: (-lambd, lambd),
        range=(-inf, inf),
        monotone=True,
        paper="Donoho 1995, De-noising by soft-thresholding, IEEE Trans. Information Theory 41",
    ),
    Activation(
        name="hardshrink",
        module="torch.nn.Hardshrink",
        functions=_names("torch.hardshrink torch.nn.functional.hardshrink torch.Tensor.hardshrink"),
        tex=r"\begin{cases} x & |x| > \lambda \\ 0 & |x| \le \lambda \end{cases}",
        f=lambda x, lambd: np.where(np.abs(x) <= lambd, 0.0, x),
        df=lambda x, lambd: choose(x, np.abs(x) > lambd, 1.0, 0.0),
        parameters={"lambd": Parameter(default=0.5, low=0.0)},
        left=lambda lambd: Tail(1.0, knee=-lambd),
        right=lambda lambd: Tail(1.0, knee=lambd),
        kinks=lambda lambd: (-lambd, lambd),
        range=(-inf, inf),
        monotone=True,
        paper="Donoho & Johnstone 1994, Ideal spatial adaptation by wavelet shrinkage, Biometrika 81",
    ),
)

ACTIVATIONS: dict[str, Activation] = {row.name: row for row in _ROWS}


# --- look-up ----------------------------------------------------------------------------------------------------------


def activation(name: str | Activation) -> Activation:
    """The catalogue's row of that name; a row is handed back as it is.

    Raises `ActivationError`, with the closest names, where there is no such row.

    >>> from relume.activations import activation
    >>> activation("elu").module
    'torch.nn.ELU'
    """
    if isinstance(name, Activation):
        return name
    if not isinstance(name, str):
        raise ActivationError(
            f"an activation is asked for by its name, a string such as 'relu', not by {name!r} ({type(name).__name__})."
        )
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    wanted = name.strip().lower().rpartition(".")[2].replace("-", "_")
    close = difflib.get_close_matches(wanted, ACTIVATIONS, n=3, cutoff=0.5)
    hint = f"Closest: {', '.join(close)}." if close else f"There are: {', '.join(ACTIVATIONS)}."
    raise ActivationError(f"no activation named {name!r}.\n{hint}\nrelume.activations() lists all rows.")


def activations() -> tuple[Activation, ...]:
    """All rows of the catalogue.

    >>> from relume.activations import activations
    >>> activations()[0].name
    'sigmoid'
    """
    return tuple(ACTIVATIONS.values())
