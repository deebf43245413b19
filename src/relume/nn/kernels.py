"""Rows written out for large tensors on the CPU, where their formulas would take longer than torch's own operators do.

A formula of the catalogue makes a new tensor at each step, because it must be differentiated, compiled and mapped. The
functions here compute the same numbers for one block of a tensor that nobody differentiates, in as few passes as there
can be, in memory that is handed to them. `evaluate` walks through a tensor with them; tests/test_contract.py holds both
ways of computing a row to the same bounds.

A function in `VALUES` takes the operands, then the outputs, which it fills. One in `GRADIENTS` takes the operands, the
gradients from above, one for each output, and those of the operands, which it fills; it returns the sums for what the
row learns. Both may overwrite two more tensors, s and t, of an operand's size; then come the row's parameters. What
gives NotImplemented has no digits for this block, which is left to the formula.
"""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relume.activations.calculus import SQRT_HALF, SQRT_TAU
from relume.activations.primitives import FAR

_aten = torch.ops.aten
_MOST = float(torch.finfo(torch.float32).max)
_LN2 = math.log(2)
_SPARE = 2
_KEPT = 2**21  # numbers of spare memory that are kept at most, two times; more than 16 threads work on at a time
_ONE = torch.ones(())
_NOUGHT = torch.zeros(())  # addcmul with it is a product of three in one pass
HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """How a row's value, or its gradient, is computed in the memory that is given."""

    run: Callable[..., Sequence[Tensor] | None]
    whole: bool = False  # a single operator gains nothing from blocks

    def spare(self, pieces: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """Memory to compute in beside each block, the same for all, with its order of dimensions."""
        first, last = pieces[0], pieces[-1]
        size = 0 if self.whole else first.numel()
        held = _held.memory.get(first.dtype)
        if held is None or held.shape[1] < size:
            with torch.inference_mode(False):  # what is made within it could not be written to outside
                held = torch.empty(_SPARE, size, dtype=first.dtype)
            if size <= _KEPT:
                _held.memory[first.dtype] = held
        if not size:
            return [[memory] * len(pieces) for memory in held]
        dense = 1 + sum((n - 1) * k for n, k in zip(first.shape, first.stride(), strict=True)) == size
        full = [
            memory.as_strided(first.shape, first.stride()) if dense else memory[:size].view(first.shape)
            for memory in held
        ]
        return [[memory] * (len(pieces) - 1) + [memory[: len(last)]] for memory in full]


class _Held(threading.local):
    """What each thread keeps: to ask the system for new pages takes as long as an operation on them."""

    def __init__(self) -> None:
        self.memory: dict[torch.dtype, Tensor] = {}


_held = _Held()


def find(
    table: Mapping[str, Kernel], name: str, dtype: torch.dtype, numbers: Sequence[float | Tensor]
) -> Kernel | None:
    """The row's kernel, where there is one, no parameter differs between channels, and nothing has to be widened."""
    return None if dtype in HALVES or any(isinstance(number, Tensor) for number in numbers) else table.get(name)


def _gated(factor: Tensor, x: Tensor, rate: float, y: Tensor) -> Tensor:
    """factor / (1 + e^(-rate x)), with its digits as far left as the type has numbers: softplus has this backward."""
    return _aten.softplus_backward.grad_input(factor, x, rate, 80.0, grad_input=y)


def _is_far_left(x: Tensor) -> bool:
    """Whether torch.sigmoid, and silu, have no digits for some of x; also where there is a NaN."""
    return not x.amin().item() > -80.0  # at -88 they overflow


def _reaches_infinity(x: Tensor) -> bool:
    """Whether some of x is infinite, or its sum; also where there is a NaN. A sum takes half the time of a clamp."""
    return not math.isfinite(x.sum().item())


def _positive(factor: Tensor, x: Tensor, y: Tensor, edge: float = 0.0) -> Tensor:
    """The factor where x > edge, and 0 elsewhere."""
    return _aten.threshold_backward.grad_input(factor, x, edge, grad_input=y)


def _bell(x: Tensor, y: Tensor) -> Tensor:
    """e^(-x^2 / 2)."""
    return torch.addcmul(_NOUGHT, x, x, value=-0.5, out=y).exp_()


# --- bounded ----------------------------------------------------------------------------------------------------------


def _scaled_tanh(x: Tensor, y: Tensor, s: Tensor, t: Tensor) -> None:
    torch.mul(x, 2 / 3, out=y).tanh_().mul_(1.7159)


def _scaled_tanh_gradient(x: Tensor, g: Tensor, y: Tensor, s: Tensor, t: Tensor) -> None:
    # the slope of tanh(u) is 4 s (1 - s) for the logistic s of 2u; it is even in u, and left of 0 keeps its digits
    share = _gated(_ONE, torch.abs(x, out=s), -4 / 3, s)
    _aten.sigmoid_backward.grad_input(g, share, grad_input=y).mul_(4 * 1.7159 * 2 / 3)


def _arctan_gradient(x: Tensor, g: Tensor, y: Tensor, s: Tensor, t: Tensor) -> None:
    torch.div(g, torch.square(x, out=s).add_(1), out=y)


def _elliott(x: Tensor, y: Tensor, s: Tensor, t: Tensor) -> None:
    below = torch.abs(torch.clamp(x, -FAR, FAR, out=y), out=s).add_(1)
    y.clamp_(min=0).add_(0.5).div_(below)


def _isru(x: Tensor, y: Tensor, s: Tensor, t: Tensor, alpha: float) -> None:
    far = 1e18 / max(1.0, math.sqrt(alpha))  # alpha times its square is no infinity, in float32 too
    near = torch.clamp(x, -far, far, out=y)
    torch.square(near, out=s)
    near.div_((s if alpha == 1 else s.mul_(alpha)).add_(1).sqrt_())


def _sine_gradient(x: Tensor, g: Tensor, y: Tensor, s: Tensor, t: Tensor, omega: float) -> None:
    torch.mul(x, omega, out=y).cos_().mul_(g).mul_(omega)


# --- rectified --------------------------------------------------------------------------------------------------------


def _tailored_relu(x: Tensor, y: Tensor, s: Tensor, t: Tensor, negative_slope: float) -> None:
    if negative_slope:
        _aten.leaky_relu.out(x, negative_slope, out=y)
    else:  # 0 times infinity is no number
        torch.clamp(x, min=0, out=y)
    y.mul_(math.sqrt(2 / (1 + negative_slope**2)))


def _tailored_relu_gradient(x: Tensor, g: Tensor, y: Tensor, s: Tensor, t: Tensor, negative_slope: float) -> None:
    _aten.leaky_relu_backward.grad_input(g, x, negative_slope, False, grad_input=y)
    y.mul_(math.sqrt(2 / (1 + negative_slope**2)))


def _shifted_relu_gradient(x: Tensor, g: Tensor, y: Tensor, s: Tensor, t: Tensor) -> None:
    _positive(g, x, y, -1.0)


def _plu(x: Tensor, y: Tensor, s: Tensor, t: Tensor, alpha: float, c: float) -> None:
    rest = torch.sub(x, torch.clamp(x, -c, c, out=y), out=s)
    if alpha:  # 0 times infinity is no number
        y.add_(rest, alpha=alpha)


def _relu_squared(x: Tensor, y: Tensor, s: Tensor, t: Tensor) -> None:
    torch.clamp(x, min=0, out=y).square_()


def _relu_squared_gradient(x: Tensor, g: Tensor, y: Tensor, s: Tensor, t: Tensor) -> None:
    torch.clamp(x, min=0, out=y).mul_(g).mul_(2)


def _star_relu(x: Tensor, y: Tensor, s: Tensor, t: Tensor, scale: float, bias: float) -> None:
    relu = torch.clamp(x, 0, math.inf if scale else FAR, out=s)
    torch.mul(relu, scale, out=y).mul_(relu).add_(bias)


def _star_relu_gradient(
    x: Tensor, g: Tensor, y: Tensor, s: Tensor, t: Tensor, scale: float, bias: float
) -> Sequence[Tensor]:
    relu = torch.clamp(x, 0, math.inf if scale else FAR, out=s)
    above = torch.mul(relu, g, out=t)
    torch.mul(above, 2 * scale, out=y)
    return relu.mul_(above).sum(), g.sum()


def _nlrelu(x: Tensor, y: Tensor, s: Tensor, t: Tensor, beta: float) -> None:
    torch.clamp(x, min=0, out=y)
    (y if beta == 1 else y.mul_(beta)).log1p_()


def _nlrelu_gradient(x: Tensor, g: Tensor, y: Tensor, s: Tensor, t: Tensor, beta: float) -> None:
    torch.clamp(x, min=0, out=y)
    torch.div(g, (y if beta == 1 else y.mul_(beta)).add_(1), out=y)
    _positive(y, x, y)
    if beta != 1:
        y.mul_(beta)


# --- smooth -----------------------------------------------------------------------------------------------------------


def _shifted_softplus(x: Tensor, y: Tensor, s: Tensor, t: Tensor) -> None:
    _aten.softplus.out(x, 1, 20, out=y).sub_(_LN2)  # within 1e-7; the formula has relative digits near 0 too


def _shifted_softplus_gradient(x: Tensor, g: Tensor, y: Tensor, s: Tensor, t: Tensor) -> None:
    _gated(g, x, 1.0, y)


def _squareplus(x: Tensor, y: Tensor, s: Tensor, t: Tensor, b: float) -> None:
    torch.square(x, out=y).add_(b).sqrt_().add_(torch.abs(x, out=s)).reciprocal_()
    torch.add(torch.clamp(x, min=0, out=s), y, alpha=b / 2, out=y)


def _squareplus_gradient(x: Tensor, g: Tensor, y: Tensor, s: Tensor, t: Tensor, b: float) -> None:
    # the slope on the left is q = b / 2 / (root (root + |x|)), and on the right 1 - q
    root = torch.square(x, out=y).add_(b).sqrt_()
    torch.div(g, torch.abs(x, out=s).add_(root).mul_(root), out=y).mul_(b / 2)
    y.add_(_positive(torch.sub(g, y, alpha=2, out=s), x, s))


def _snake(x: Tensor, y: Tensor, s: Tensor, t: Tensor, a: float) -> None:
    torch.clamp(x, -FAR, FAR, out=y).mul_(a).sin_().square_()
    torch.add(x, y, alpha=1 / a, out=y)


# --- self gated -------------------------------------------------------------------------------------------------------


def _swish(x: Tensor, y: Tensor, s: Tensor, t: Tensor, beta: float) -> None:
    if beta == 0:
        torch.mul(x, 0.5, out=y)
        return
    near = torch.clamp(x, -FAR if beta > 0 else -math.inf, FAR if beta < 0 else math.inf, out=s)
    _gated(near, x, beta, y)


def _swish_gradient(x: Tensor, g: Tensor, y: Tensor, s: Tensor, t: Tensor, beta: float) -> Sequence[Tensor]:
    near = torch.clamp(x, -FAR, FAR, out=s)
    rest = _gated(_gated(near, near, beta, t), near, -beta, t)  # x times the slope of the logistic function of beta x
    torch.mul(near, beta, out=y).sigmoid_().add_(rest, alpha=beta).mul_(g)
    return (rest.mul_(near).mul_(g).sum(),)


def _logish(x: Tensor, y: Tensor, s: Tensor, t: Tensor) -> Sequence[Tensor] | None:
    if _is_far_left(x):
        return NotImplemented
    torch.sigmoid(x, out=y).log1p_().mul_(x)
    return None


def _logish_gradient(x: Tensor, g: Tensor, y: Tensor, s: Tensor, t: Tensor) -> Sequence[Tensor] | None:
    if _is_far_left(x):
        return NotImplemented
    share, near = torch.sigmoid(x, out=s), torch.clamp(x, max=FAR, out=t)
    rest = _aten.sigmoid_backward.grad_input(near, share, grad_input=t)
    torch.log1p(share, out=y).add_(rest.div_(share.add_(1))).mul_(g)
    return None


def _smish(x: Tensor, y: Tensor, s: Tensor, t: Tensor) -> Sequence[Tensor] | None:
    if _is_far_left(x):
        return NotImplemented
    share = torch.sigmoid(x, out=s)
    torch.add(share, 2, out=y).mul_(share)
    y.div_(torch.add(y, 2, out=s)).mul_(x)
    return None


def _smish_gradient(x: Tensor, g: Tensor, y: Tensor, s: Tensor, t: Tensor) -> Sequence[Tensor] | None:
    if _is_far_left(x):
        return NotImplemented
    share, near = torch.sigmoid(x, out=s), torch.clamp(x, max=FAR, out=t)
    rest = _aten.sigmoid_backward.grad_input(near, share, grad_input=t).mul_(torch.add(share, 1, out=y))
    y.add_(1).mul_(share)
    below = torch.add(y, 2, out=s)
    y.add_(rest.div_(below), alpha=4).div_(below).mul_(g)
    return None


def _serf(x: Tensor, y: Tensor, s: Tensor, t: Tensor) -> None:
    torch.clamp(x, max=88, out=y).exp_().log1p_().erf_().mul_(torch.clamp(x, min=-FAR, out=s))


def _serf_gradient(x: Tensor, g: Tensor, y: Tensor, s: Tensor, t: Tensor) -> None:
    near = torch.clamp(x, -FAR, FAR, out=s)
    torch.clamp(x, max=88, out=y).exp_().log1p_()
    rest = torch.square(y, out=t).neg_().exp_().mul_(_gated(near, near, 1.0, s))
    y.erf_().add_(rest, alpha=2 / math.sqrt(math.pi)).mul_(g)


def _telu(x: Tensor, y: Tensor, s: Tensor, t: Tensor) -> None:
    torch.exp(x, out=y).tanh_().mul_(torch.clamp(x, min=-FAR, out=s))


def _telu_gradient(x: Tensor, g: Tensor, y: Tensor, s: Tensor, t: Tensor) -> None:
    near = torch.clamp(x, -FAR, 50, out=s)  # at 50 the slope has long been 1
    u = torch.exp(near, out=y)
    share = torch.mul(u, -2, out=t).sigmoid_()  # as in scaled_tanh
    near.mul_(_aten.sigmoid_backward.grad_input(u, share, grad_input=t))
    u.tanh_().add_(near, alpha=4).mul_(g)


def _phish(x: Tensor, y: Tensor, s: Tensor, t: Tensor) -> Sequence[Tensor] | None:
    if _reaches_infinity(x):
        return NotImplemented
    torch.mul(x, -SQRT_HALF, out=y).erfc_()
    torch.addcmul(_NOUGHT, x, y, value=0.5, out=y).tanh_().mul_(x)
    return None


def _phish_gradient(x: Tensor, g: Tensor, y: Tensor, s: Tensor, t: Tensor) -> None:
    near = torch.clamp(x, -FAR, FAR, out=s)
    torch.mul(near, -SQRT_HALF, out=t).erfc_()
    gelu = torch.addcmul(_NOUGHT, near, t, value=0.5, out=t)
    rest = torch.addcmul(gelu, _bell(near, y).mul_(near), near, value=1 / SQRT_TAU, out=y)  # x times the slope of gelu
    gate = gelu.tanh_()
    _aten.tanh_backward.grad_input(rest, gate, grad_input=y).add_(gate).mul_(g)


def _lisht(x: Tensor, y: Tensor, s: Tensor, t: Tensor) -> None:
    torch.tanh(x, out=y).mul_(x)


def _lisht_gradient(x: Tensor, g: Tensor, y: Tensor, s: Tensor, t: Tensor) -> None:
    near, gate = torch.clamp(x, -FAR, FAR, out=s), torch.tanh(x, out=t)
    _aten.tanh_backward.grad_input(near, gate, grad_input=y).add_(gate).mul_(g)


# --- several ----------------------------------------------------------------------------------------------------------


def _bilinear_glu_gradient(a: Tensor, b: Tensor, g: Tensor, y_a: Tensor, y_b: Tensor, s: Tensor, t: Tensor) -> None:
    torch.mul(g, b, out=y_a)
    torch.mul(g, a, out=y_b)


def _reglu(a: Tensor, b: Tensor, y: Tensor, s: Tensor, t: Tensor) -> None:
    torch.clamp(b, min=0, out=y).mul_(a)


def _reglu_gradient(a: Tensor, b: Tensor, g: Tensor, y_a: Tensor, y_b: Tensor, s: Tensor, t: Tensor) -> None:
    torch.mul(torch.clamp(b, min=0, out=s), g, out=y_a)
    torch.mul(_positive(a, b, t), g, out=y_b)


def _geglu(a: Tensor, b: Tensor, y: Tensor, s: Tensor, t: Tensor) -> Sequence[Tensor] | None:
    if _reaches_infinity(b):
        return NotImplemented
    torch.mul(b, -SQRT_HALF, out=y).erfc_()
    torch.addcmul(_NOUGHT, b, y, value=0.5, out=y).mul_(a)
    return None


def _geglu_gradient(a: Tensor, b: Tensor, g: Tensor, y_a: Tensor, y_b: Tensor, s: Tensor, t: Tensor) -> None:
    near = torch.clamp(b, -_MOST, _MOST, out=s)
    twice = torch.mul(near, -SQRT_HALF, out=t).erfc_()
    gelu = torch.mul(near, twice)  # twice that, and infinite again at infinity
    torch.addcmul(_NOUGHT, gelu, g, value=0.5, out=y_a)
    twice.addcmul_(_bell(near, gelu), near, value=2 / SQRT_TAU)
    torch.addcmul(_NOUGHT, twice.mul_(g), a, value=0.5, out=y_b)


def _swiglu(a: Tensor, b: Tensor, y: Tensor, s: Tensor, t: Tensor) -> None:
    torch.clamp(b, min=-FAR, out=y)
    _gated(y, y, 1.0, y).mul_(a)


def _swiglu_gradient(
    a: Tensor, b: Tensor, g: Tensor, y_a: Tensor, y_b: Tensor, s: Tensor, t: Tensor
) -> Sequence[Tensor] | None:
    near = torch.clamp(b, min=-FAR, out=s)
    share = _gated(_ONE, near, 1.0, t)
    silu = near.mul_(share)
    if _reaches_infinity(silu):
        return NotImplemented
    torch.mul(silu, g, out=y_a)
    slope = silu.addcmul_(silu, share, value=-1).add_(share)
    torch.mul(slope.mul_(g), a, out=y_b)
    return None


def _crelu(x: Tensor, y_plus: Tensor, y_minus: Tensor, s: Tensor, t: Tensor) -> None:
    torch.clamp(x, min=0, out=y_plus)
    torch.clamp(torch.neg(x, out=s), min=0, out=y_minus)


def _crelu_gradient(x: Tensor, g_plus: Tensor, g_minus: Tensor, y: Tensor, s: Tensor, t: Tensor) -> None:
    minus = torch.neg(x, out=s)
    torch.sub(_positive(g_plus, x, y), _positive(g_minus, minus, s), out=y)


VALUES: dict[str, Kernel] = {
    "scaled_tanh": Kernel(run=_scaled_tanh),
    "elliott": Kernel(run=_elliott),
    "isru": Kernel(run=_isru),
    "tailored_relu": Kernel(run=_tailored_relu),
    "plu": Kernel(run=_plu),
    "relu_squared": Kernel(run=_relu_squared),
    "star_relu": Kernel(run=_star_relu),
    "nlrelu": Kernel(run=_nlrelu),
    "shifted_softplus": Kernel(run=_shifted_softplus),
    "squareplus": Kernel(run=_squareplus),
    "snake": Kernel(run=_snake),
    "swish": Kernel(run=_swish),
    "logish": Kernel(run=_logish),
    "smish": Kernel(run=_smish),
    "serf": Kernel(run=_serf),
    "telu": Kernel(run=_telu),
    "phish": Kernel(run=_phish),
    "lisht": Kernel(run=_lisht),
    "reglu": Kernel(run=_reglu),
    "geglu": Kernel(run=_geglu),
    "swiglu": Kernel(run=_swiglu),
    "crelu": Kernel(run=_crelu),
}

GRADIENTS: dict[str, Kernel] = {
    "scaled_tanh": Kernel(run=_scaled_tanh_gradient),
    "arctan": Kernel(run=_arctan_gradient),
    "sine": Kernel(run=_sine_gradient),
    "tailored_relu": Kernel(run=_tailored_relu_gradient),
    "shifted_relu": Kernel(run=_shifted_relu_gradient, whole=True),
    "relu_squared": Kernel(run=_relu_squared_gradient),
    "star_relu": Kernel(run=_star_relu_gradient),
    "nlrelu": Kernel(run=_nlrelu_gradient),
    "shifted_softplus": Kernel(run=_shifted_softplus_gradient, whole=True),
    "squareplus": Kernel(run=_squareplus_gradient),
    "swish": Kernel(run=_swish_gradient),
    "logish": Kernel(run=_logish_gradient),
    "smish": Kernel(run=_smish_gradient),
    "serf": Kernel(run=_serf_gradient),
    "telu": Kernel(run=_telu_gradient),
    "phish": Kernel(run=_phish_gradient),
    "lisht": Kernel(run=_lisht_gradient),
    "bilinear_glu": Kernel(run=_bilinear_glu_gradient),
    "reglu": Kernel(run=_reglu_gradient),
    "geglu": Kernel(run=_geglu_gradient),
    "swiglu": Kernel(run=_swiglu_gradient),
    "crelu": Kernel(run=_crelu_gradient),
}
