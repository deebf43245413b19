"""The arithmetic that formulas of the catalogue are made of, for NumPy arrays and torch tensors alike.

A formula written with these runs on float64 arrays without torch, and on tensors of any floating type and device, where
it can be compiled, vectorised and differentiated again. Nothing here imports torch.

On a tensor `where`, `choose` and comparisons cost ten times what other arithmetic does, so that formulas for use in
training are built from `maximum`, `minimum` and `absolute` instead. Differentiated at 0, `absolute` gives 0, and so
does the maximum of x and 0, while other bounds count a tie as passed. Smooth functions are built from `capped_exp`,
which has no corner near 0, or from `above` and `below`, whose derivative there is 1/2.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

# The smallest normal number of float32, and what has the product 1 with it; both are powers of two.
TINY, HUGE = 2.0**-126, 2.0**126
FAR = 1e30  # as good as infinity in every formula, but 0 * FAR is 0, and FAR / (1 + FAR) is 1, in float32 too


def is_array(x: Any) -> bool:
    """Whether x is NumPy's or Python's, and so not a tensor."""
    return isinstance(x, (np.ndarray, np.generic, float, int))


def _either(numpy_form: Callable[[Any], Any], method: str) -> Callable[..., Any]:
    """NumPy's function for arrays, the tensor's method for tensors; with `own`, in their memory as `plus` does."""

    def primitive(x: Any, *, own: bool = False) -> Any:
        if is_array(x):
            with np.errstate(over="ignore", invalid="ignore"):  # inf, and NaN for sin(inf), are the right answers
                return numpy_form(x)
        return getattr(x, f"{method}_" if own and _memory.reused else method)()

    return primitive


def _scipy(name: str) -> Callable[[Any], Any]:
    def special_function(x: Any) -> Any:
        from scipy import special  # here, because it takes longer to load than all else in the catalogue

        return getattr(special, name)(x)

    return special_function


exp = _either(np.exp, "exp")
expm1 = _either(np.expm1, "expm1")
log1p = _either(np.log1p, "log1p")
tanh = _either(np.tanh, "tanh")
sqrt = _either(np.sqrt, "sqrt")
sin = _either(np.sin, "sin")
cos = _either(np.cos, "cos")
arctan = _either(np.arctan, "arctan")
square = _either(np.square, "square")
rounded = _either(np.round, "round")
isnan = _either(np.isnan, "isnan")
erf = _either(_scipy("erf"), "erf")
erfc = _either(_scipy("erfc"), "erfc")
absolute = _either(np.abs, "abs")
sign = _either(np.sign, "sign")


def maximum(x: Any, low: Any) -> Any:
    """The larger of both, NaN where x is NaN; `low` may be a number, or broadcast."""
    if is_array(x):
        return np.maximum(x, low)
    if is_array(low):
        return x.relu() if low == 0 else x.clamp(min=low)  # the backward of clamp is slow
    return x.max(low) if memory_is_reused(x) else x.clamp(min=low)  # the same values, faster; it halves a tie's slope


def minimum(x: Any, high: Any) -> Any:
    """The smaller of both, NaN where x is NaN; `high` may be a number, or broadcast."""
    return np.minimum(x, high) if is_array(x) else x.clamp(max=high)


def clip(x: Any, low: Any, high: Any) -> Any:
    """x, but never below `low` nor above `high`; both may be numbers, or broadcast."""
    if is_array(x):
        return np.clip(x, low, high)
    if is_array(low) != is_array(high):  # torch takes two numbers or two tensors
        low, high = (x.new_full((), bound) if is_array(bound) else bound.to(x.dtype) for bound in (low, high))
    return x.clamp(low, high)


def capped_exp(x: Any) -> Any:
    """e^x, but never infinite: its reciprocal is 0 for every purpose, and so is FAR times it."""
    if is_array(x):
        return np.exp(np.minimum(x, 709.0))
    return x.clamp(max=88.0 if x.element_size() < 8 else 709.0).exp_()  # in place: fewer tensors to keep in the cache


class _Memory(threading.local):
    reused = False


_memory = _Memory()


@contextmanager
def reusing_memory() -> Iterator[None]:
    """Within it `plus`, `times` and `over` overwrite their first tensor: only for what nobody differentiates."""
    before, _memory.reused = _memory.reused, True
    try:
        yield
    finally:
        _memory.reused = before


def memory_is_reused(x: Any) -> bool:
    """Whether x is a tensor of a block that nobody differentiates."""
    return _memory.reused and not is_array(x)


def plus(own: Any, other: Any) -> Any:
    """The sum, in the memory of the first, which must be the formula's own and of full size."""
    return own.add_(other) if memory_is_reused(own) else own + other


def times(own: Any, other: Any) -> Any:
    """The product, in the memory of the first, which must be the formula's own and of full size."""
    return own.mul_(other) if memory_is_reused(own) else own * other


def over(own: Any, other: Any) -> Any:
    """The quotient, in the memory of the first, which must be the formula's own and of full size."""
    return own.div_(other) if memory_is_reused(own) else own / other


def where(condition: Any, yes: Any, no: Any) -> Any:
    """`yes` where the condition holds, `no` elsewhere; one of them may be a number."""
    if is_array(condition):
        return np.where(condition, yes, no)
    return no.where(~condition, yes) if is_array(yes) else yes.where(condition, no)


def choose(x: Any, condition: Any, yes: Any, no: Any) -> Any:
    """`yes` where the condition holds and `no` elsewhere, but NaN where x is NaN; both may be numbers."""
    if is_array(x):
        return np.where(np.isnan(x), np.nan, np.where(condition, yes, no))
    # a number as a tensor of x's type, because torch would take it for float32
    yes = x.new_full((), yes) if is_array(yes) else yes
    return where(isnan(x), x, where(condition, yes, no))


def step(x: Any) -> Any:
    """1 where x > 0, 0 elsewhere, and NaN where x is NaN."""
    if is_array(x):
        return np.heaviside(x, 0.0)
    # not the sign, which is 0 for NaN; detached, because the ramp from 0 to TINY stands for a jump without a derivative
    return clip(x.detach(), 0.0, TINY) * HUGE


def where_positive(factor: Any, x: Any) -> Any:
    """The factor where x > 0, and 0 elsewhere."""
    if memory_is_reused(x):
        import torch  # here, because the catalogue works without torch

        return torch.ops.aten.threshold_backward(factor, x, 0.0)  # one pass; beside a NaN it leaves the factor
    return factor * step(x)


def sided(x: Any, left: Any, right: Any) -> Any:
    """`right` where x > 0 and `left` elsewhere, but NaN where x is NaN."""
    return left + (right - left) * step(x)


def above(x: Any) -> Any:
    """max(x, 0), with the derivative 1/2 at 0."""
    x = maximum(x, -FAR)
    return (x + absolute(x)) / 2


def below(x: Any) -> Any:
    """min(x, 0), with the derivative 1/2 at 0."""
    x = minimum(x, FAR)
    return (x - absolute(x)) / 2
