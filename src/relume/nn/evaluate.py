"""Any row of the catalogue applied to a tensor, from its formula and its derivative alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from relume.activations import ACTIVATIONS, Activation, activation
from relume.activations.primitives import reusing_memory
from relume.errors import ActivationError
from relume.nn.kernels import GRADIENTS, VALUES, find

# Elements to a block and thread: a formula's temporaries then stay in the second cache of a core (2 ** 16 float32 are
# 256 KB), where an operation takes half of what it takes in main memory. Of 2 ** 13 to 2 ** 17 this was the fastest.
_BLOCK = 2**16

# Rows whose formula is one or two operators of torch. Under plain autograd these keep their digits, and
# for backward 4 bytes; tests/test_contract.py holds them to it.
PLAIN = frozenset({"arctan", "exp", "sine", "tailored_relu"})

# Rows whose value is so few operators that a walk through blocks, which ends with a copy, costs more than it saves.
SIMPLE = frozenset({"aptx", "gaussian", "quick_gelu"})

_HALVES = (torch.float16, torch.bfloat16)


def apply(input: Tensor, *parameters: float | Tensor, row: str, dim: int = -1) -> Tensor:
    """The function of that row of the catalogue, for a tensor of any shape; its dtype is kept.

    `parameters` are all of the row's, in its order: numbers, or tensors that may be learnt, of one number or of one for
    each channel (dimension 1, as in PReLU). Functions that read or write several numbers side by side do so along
    `dim`; softmax and its kin are here the first of two outputs, and the whole in torch. Of the input's size, backward
    keeps the input, or for rows in `PLAIN` one tensor in its place, and nothing else. Half precisions are computed in
    float32. Raises `ActivationError` for an unknown row, for another number of parameters than it has, for integer and
    complex tensors, for a `dim` that does not split evenly, and for as many numbers as there are no channels.

    >>> apply(torch.tensor([-20.0, 0.0]), row="sigmoid")
    tensor([2.0612e-09, 5.0000e-01])
    """
    tensors = [p for p in parameters if isinstance(p, Tensor)]
    if has_torch_function((input, *tensors)):  # so that a Trace sees one call of this, and none of what it is made of
        return handle_torch_function(apply, (input, *tensors), input, *parameters, row=row, dim=dim)
    if not input.is_floating_point():
        raise ActivationError(
            f"{row} takes a tensor of floating point numbers, not {input.dtype}.\nConvert it first: input.float()."
        )
    _check(activation(row), input, dim, parameters)
    if row in PLAIN and input.dtype not in _HALVES:  # autograd would keep the float32 copy of a half
        return _block_value(ACTIVATIONS[row], dim, input, parameters)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (input, *tensors)):
        return _Curve.apply(input, row, dim, *parameters)  # pyright: ignore[reportReturnType] - torch leaves it open
    return _value(ACTIVATIONS[row], dim, input, parameters)


def _check(row: Activation, input: Tensor, dim: int, parameters: Sequence[float | Tensor]) -> None:
    shape = tuple(input.shape)
    if len(parameters) != len(row.parameters):
        raise ActivationError(
            f"{row.name} takes {len(row.parameters)} parameters, and {len(parameters)} were given.\n"
            f"In this order: {', '.join(row.parameters) or 'none'}. module({row.name!r}) of relume.nn has the defaults."
        )
    if row.layout != "elementwise" and not -input.dim() <= dim < input.dim():
        raise ActivationError(f"{row.name} works along dimension {dim}, but the input has shape {shape}.\nSet dim.")
    if row.operands > 1 and shape[dim] % row.operands:
        raise ActivationError(
            f"{row.name} splits dimension {dim} into {row.operands} equal parts, but the input has shape {shape}.\n"
            f"Give the layer before it {row.operands} times as many units, or set dim."
        )
    for tensor in (p for p in parameters if isinstance(p, Tensor)):
        if tensor.numel() != 1 and (input.dim() < 2 or tensor.numel() != shape[1]):
            raise ActivationError(
                f"{row.name} has parameters for {tensor.numel()} channels, but the input has shape {shape}.\n"
                "Channels are dimension 1; set num_parameters to their number, or to 1 for all."
            )


class _Curve(torch.autograd.Function):
    """A row as one step of autograd; the derivative of its backward is that of the row's `df`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, row: str, dim: int, *parameters: float | Tensor) -> Tensor:  # pyright: ignore
        return _value(ACTIVATIONS[row], dim, input, parameters)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        input, ctx.row, ctx.dim, *parameters = inputs
        ctx.numbers = [None if isinstance(p, Tensor) else p for p in parameters]
        ctx.save_for_backward(input, *[p for p in parameters if isinstance(p, Tensor)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        input, *tensors = ctx.saved_tensors
        left = list(tensors)
        parameters = [left.pop(0) if number is None else number for number in ctx.numbers]
        wanted = ctx.needs_input_grad
        found = _gradients(ACTIVATIONS[ctx.row], ctx.dim, input, grad, parameters, [wanted[0], *wanted[3:]])
        return (found[0], None, None, *found[1:])


# --- a whole tensor ---------------------------------------------------------------------------------------------------


def _value(row: Activation, dim: int, input: Tensor, parameters: Sequence[float | Tensor]) -> Tensor:
    cut = _cut(row, dim, input, parameters)
    if cut is None:
        return _block_value(row, dim, input, parameters)
    numbers = _numbers(parameters)
    if row.name in SIMPLE:
        with reusing_memory():
            return _block_value(row, dim, input, numbers)
    shape = list(input.shape)
    if row.layout != "elementwise":
        shape[dim] = shape[dim] * row.outputs // row.operands
    result = torch.empty_like(input) if row.layout == "elementwise" else input.new_empty(shape)
    flat, rows = cut
    source, target = (input.view(-1), result.view(-1)) if flat else (input, result)
    kernel = find(VALUES, row.name, numbers)
    rows = len(source) if kernel and kernel.whole else rows
    spare = kernel.spare(source[:rows].chunk(row.operands, dim)[0]) if kernel else ()
    with reusing_memory():
        for x, y in zip(source.split(rows), target.split(rows), strict=True):
            operands, parts = x.chunk(row.operands, dim), y.chunk(row.outputs, dim)
            if kernel and kernel.serves(operands[-1]):
                kernel.fill(parts, operands, spare, numbers)
            else:
                for found, part in zip(_outputs(row, dim, x, numbers), parts, strict=True):
                    part.copy_(found)
    return result


def _gradients(
    row: Activation, dim: int, input: Tensor, grad: Tensor, parameters: Sequence[float | Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    cut = None if torch.is_grad_enabled() else _cut(row, dim, input, parameters)
    if cut is None:
        here, *sums = _block_gradients(row, dim, input, grad, parameters, wanted)
        return [here, *_cast(sums, parameters)]
    numbers = _numbers(parameters)
    result = torch.empty_like(input)
    flat, rows = cut
    source, above, target = (input.view(-1), grad.reshape(-1), result.view(-1)) if flat else (input, grad, result)
    kernel = find(GRADIENTS, row.name, numbers)
    rows = len(source) if kernel and kernel.whole else rows
    spare = kernel.spare(source[:rows].chunk(row.operands, dim)[0]) if kernel else ()
    sums: list[Tensor | None] = [None] * len(parameters)
    with reusing_memory():
        for x, g, y in zip(source.split(rows), above.split(rows), target.split(rows), strict=True):
            operands = x.chunk(row.operands, dim)
            if kernel and kernel.serves(operands[-1]):
                given = (*operands, *g.chunk(row.outputs, dim))
                found = kernel.fill(y.chunk(row.operands, dim), given, spare, numbers)
            else:
                _, *found = _block_gradients(row, dim, x, g, numbers, wanted, y)
            sums = [new if old is None or new is None else old + new for old, new in zip(sums, found, strict=True)]
    sums = [s if asked else None for s, asked in zip(sums, wanted[1:], strict=True)]
    return [result if wanted[0] else None, *_cast(sums, parameters)]


def _numbers(parameters: Sequence[float | Tensor]) -> list[float | Tensor]:
    """The parameters with a number for each tensor of one: what nobody differentiates is faster with it."""
    return [p.item() if isinstance(p, Tensor) and p.numel() == 1 else p for p in parameters]


def _cut(row: Activation, dim: int, input: Tensor, parameters: Sequence[float | Tensor]) -> tuple[bool, int] | None:
    """How to walk through a large tensor on the CPU: whether as one line, and how many rows of it at a time."""
    # blocks are written in place, which transforms of functions cannot follow; this question has no public name
    mapped = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    if torch.compiler.is_compiling() or mapped or input.device.type != "cpu":
        return None
    block = _BLOCK * torch.get_num_threads()
    if input.numel() < 2 * block:
        return None
    single = all(not isinstance(p, Tensor) or p.numel() == 1 for p in parameters)
    if row.layout == "elementwise" and single and input.is_contiguous():
        return True, block
    if input.dim() < 2 or (row.layout != "elementwise" and dim % input.dim() == 0):
        return None
    return False, max(1, block * input.shape[0] // input.numel())


def _cast(sums: Sequence[Tensor | None], parameters: Sequence[float | Tensor]) -> list[Tensor | None]:
    """Sums over all blocks in the parameters' dtype: only now, for a half would lose what each block adds."""
    return [
        s if s is None or not isinstance(p, Tensor) else s.reshape(p.shape).to(p.dtype)
        for s, p in zip(sums, parameters, strict=True)
    ]


# --- a block of it ----------------------------------------------------------------------------------------------------


def _block_value(row: Activation, dim: int, input: Tensor, parameters: Sequence[float | Tensor]) -> Tensor:
    outputs = _outputs(row, dim, input, parameters)
    return (outputs[0] if row.outputs == 1 else torch.cat(outputs, dim)).to(input.dtype)


def _outputs(row: Activation, dim: int, input: Tensor, parameters: Sequence[float | Tensor]) -> tuple[Tensor, ...]:
    operands, arguments = _prepared(row, dim, input, parameters)
    found = row.f(*operands, **arguments)
    return found if row.outputs > 1 else (found,)


def _block_gradients(
    row: Activation,
    dim: int,
    input: Tensor,
    grad: Tensor,
    parameters: Sequence[float | Tensor],
    wanted: Sequence[bool],
    target: Tensor | None = None,
) -> list[Tensor | None]:
    """The gradients by the input, which is written into `target` where one is given, and by the parameters, which stay
    in the precision they were computed in."""
    operands, arguments = _prepared(row, dim, input, parameters)
    above = grad.to(operands[0].dtype)
    here = None
    if wanted[0]:
        partials = row.df(*operands, **arguments)
        if row.outputs > 1:
            here = reduce(torch.add, [g * p for g, p in zip(above.chunk(row.outputs, dim), partials, strict=True)])
        elif target is not None:
            each = partials if row.operands > 1 else (partials,)
            for partial, part in zip(each, target.chunk(row.operands, dim), strict=True):
                torch.mul(above, partial, out=part)
            here = target
        elif row.operands > 1:
            here = torch.cat([above * p for p in partials], dim)
        else:
            here = above * partials
        if target is not None and here is not target:
            target.copy_(here)
        here = here.to(input.dtype)
    found: list[Tensor | None] = [here]
    for (name, parameter), value, asked in zip(row.parameters.items(), parameters, wanted[1:], strict=True):
        if asked and parameter.derivative is not None:
            slope = above * parameter.derivative(*operands, **arguments)
            shape = arguments[name].shape if isinstance(value, Tensor) else ()
            found.append(slope.sum_to_size(shape))
        else:
            found.append(None)
    return found


def _prepared(
    row: Activation, dim: int, input: Tensor, parameters: Sequence[float | Tensor]
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """The row's operands and parameters in the precision to compute in: that of the input, or float32 for halves."""
    dtype = torch.float32 if input.dtype in _HALVES else input.dtype
    x = input.to(dtype)
    operands = (x,) if row.operands == 1 else x.chunk(row.operands, dim)
    values = [_beside(x, p.to(dtype)) if isinstance(p, Tensor) else p for p in parameters]
    return operands, dict(zip(row.parameters, values, strict=True))


def _beside(x: Tensor, parameter: Tensor) -> Tensor:
    """The parameter, shaped to broadcast against x: one number for all, or one for each channel."""
    return parameter.view(-1, *[1] * (x.dim() - 2)) if parameter.numel() > 1 else parameter.view(())
