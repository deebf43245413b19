"""Any row of the catalogue applied to a tensor, from its formula and its derivative alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import handle_torch_function, has_torch_function

from relume.activations import ACTIVATIONS, Activation, activation
from relume.activations.primitives import reusing_memory
from relume.errors import ActivationError
from relume.nn.kernels import GRADIENTS, HALVES, VALUES, Kernel, find

# Elements to a block and thread: a formula's temporaries then stay in the second cache of a core (2 ** 16 float32 are
# 256 KB), where an operation takes half of what it takes in main memory. Of 2 ** 13 to 2 ** 17 this was the fastest.
_BLOCK = 2**16

# Rows without parameters whose value is one operator of torch, and those of them that autograd can have as they are: it
# keeps 4 bytes, and the digits.
SINGLE = frozenset({"arctan", "bilinear_glu", "exp", "maxout", "shifted_relu"})
PLAIN = frozenset({"exp"})

# Rows whose value is so few operators that a walk through blocks costs more than it saves.
SIMPLE = frozenset({"aptx", "gaussian", "quick_gelu", "sine"})


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
    known = activation(row)
    _check(known, input, dim, parameters)
    wanted = torch.is_grad_enabled() and (input.requires_grad or any(t.requires_grad for t in tensors))
    # of a half autograd would keep the float32 copy
    if row in SINGLE and (row in PLAIN or not wanted) and input.dtype not in HALVES:
        return known.f(*_parts(input, known.operands, dim))
    if wanted:
        curve = _Transformed if _is_transformed() else _Curve
        return curve.apply(input, row, dim, *parameters)  # pyright: ignore[reportReturnType] - torch leaves it open
    return _value(known, dim, input, parameters)


def _check(row: Activation, input: Tensor, dim: int, parameters: Sequence[float | Tensor]) -> None:
    if len(parameters) != len(row.parameters):
        raise ActivationError(
            f"{row.name} takes {len(row.parameters)} parameters, and {len(parameters)} were given.\n"
            f"In this order: {', '.join(row.parameters) or 'none'}. module({row.name!r}) of relume.nn has the defaults."
        )
    if row.layout != "elementwise" and not -input.dim() <= dim < input.dim():
        raise ActivationError(
            f"{row.name} works along dimension {dim}, but the input has shape {tuple(input.shape)}.\nSet dim."
        )
    if row.operands > 1 and input.shape[dim] % row.operands:
        shape = tuple(input.shape)
        raise ActivationError(
            f"{row.name} splits dimension {dim} into {row.operands} equal parts, but the input has shape {shape}.\n"
            f"Give the layer before it {row.operands} times as many units, or set dim."
        )
    for tensor in (p for p in parameters if isinstance(p, Tensor)):
        if tensor.numel() != 1 and (input.dim() < 2 or tensor.numel() != input.shape[1]):
            shape = tuple(input.shape)
            raise ActivationError(
                f"{row.name} has parameters for {tensor.numel()} channels, but the input has shape {shape}.\n"
                "Channels are dimension 1; set num_parameters to their number, or to 1 for all."
            )


class _Curve(torch.autograd.Function):
    """A row as one step of autograd; the derivative of its backward is that of the row's `df`."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, row: str, dim: int, *parameters: float | Tensor) -> Tensor:  # pyright: ignore
        _keep(ctx, input, row, dim, *parameters)
        return _value(ACTIVATIONS[row], dim, input, parameters)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _chain(ctx, grad)


class _Transformed(torch.autograd.Function):
    """The same where functions are transformed or compiled, which takes autograd three times as long to set up."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, row: str, dim: int, *parameters: float | Tensor) -> Tensor:  # pyright: ignore
        return _value(ACTIVATIONS[row], dim, input, parameters)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _keep(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _chain(ctx, grad)


def _keep(ctx: Any, input: Tensor, row: str, dim: int, *parameters: float | Tensor) -> None:
    ctx.row, ctx.dim = row, dim
    ctx.numbers = [None if isinstance(p, Tensor) else p for p in parameters]
    ctx.save_for_backward(input, *[p for p in parameters if isinstance(p, Tensor)])


def _chain(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, *tensors = ctx.saved_tensors
    parameters = [tensors.pop(0) if number is None else number for number in ctx.numbers]
    wanted = ctx.needs_input_grad
    found = _gradients(ACTIVATIONS[ctx.row], ctx.dim, input, grad, parameters, [wanted[0], *wanted[3:]])
    return (found[0], None, None, *found[1:])


def _is_transformed() -> bool:
    """Whether a function is being compiled, mapped or differentiated, so that nothing may be written in place."""
    # of the transforms of torch.func there is no public question to ask
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


# --- a large tensor, block by block -----------------------------------------------------------------------------------


def _value(row: Activation, dim: int, input: Tensor, parameters: Sequence[float | Tensor]) -> Tensor:
    if row.name in SINGLE:
        return _whole_value(row, dim, input, parameters)
    cut = _cut(row, dim, input, parameters)
    if cut is None:
        return _whole_value(row, dim, input, parameters)
    numbers = _numbers(parameters)
    if row.name in SIMPLE:
        with reusing_memory():
            return _whole_value(row, dim, input, numbers)
    shape = list(input.shape)
    if row.layout != "elementwise":
        shape[dim] = shape[dim] * row.outputs // row.operands
    result = torch.empty_like(input) if row.layout == "elementwise" else input.new_empty(shape)
    flat, rows = cut
    source, target = (input.view(-1), result.view(-1)) if flat else (input, result)
    arguments = _arguments(row, source, numbers)
    given = row.operands + row.outputs

    def by_formula(*blocks: Tensor) -> None:  # of operands and outputs; what else a kernel is given it leaves alone
        found = row.f(*map(_wide, blocks[: row.operands]), **arguments)
        for part, y in zip(found if row.outputs > 1 else (found,), blocks[row.operands : given], strict=True):
            y.copy_(part)

    parts = (*_parts(source, row.operands, dim), *_parts(target, row.outputs, dim))
    kernel = find(VALUES, row.name, input.dtype, numbers)
    if kernel:  # writes where it computes: a block is of so many outputs
        rows *= row.operands
    _walk(kernel, by_formula, parts, rows, numbers)
    return result


def _gradients(
    row: Activation, dim: int, input: Tensor, grad: Tensor, parameters: Sequence[float | Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    cut = None if torch.is_grad_enabled() else _cut(row, dim, input, parameters)
    if cut is None:
        return _whole_gradients(row, dim, input, grad, parameters, wanted)
    numbers = _numbers(parameters)
    result = torch.empty_like(input)
    flat, rows = cut
    source, above, target = (input.view(-1), grad.reshape(-1), result.view(-1)) if flat else (input, grad, result)
    arguments = _arguments(row, source, numbers)
    given = row.operands + row.outputs

    def by_formula(*blocks: Tensor) -> list[Tensor | None]:
        wide = [*map(_wide, blocks[:given])]
        operands, above = wide[: row.operands], wide[row.operands :]
        if wanted[0]:
            _chained(row, operands, above, arguments, blocks[given : given + row.operands])
        return _sums(row, operands, above, arguments, wanted[1:])

    parts = (*_parts(source, row.operands, dim), *_parts(above, row.outputs, dim), *_parts(target, row.operands, dim))
    kernel = find(GRADIENTS, row.name, input.dtype, numbers)
    sums = _walk(kernel, by_formula, parts, rows, numbers)
    return [result if wanted[0] else None, *_cast(sums, parameters, wanted[1:])]


def _walk(
    kernel: Kernel | None,
    by_formula: Callable[..., Sequence[Tensor | None] | None],
    parts: Sequence[Tensor],
    rows: int,
    numbers: Sequence[float | Tensor],
) -> list[Tensor | None]:
    """Through the blocks of all parts at once; the sums of what is to be summed for each parameter.

    Of Python there is as little as can be between blocks: beside a cache full of numbers, every line takes long.
    """
    if kernel:  # needs less memory than a formula
        rows = len(parts[0]) if kernel.whole else 2 * rows
    pieces: list[Sequence[Tensor]] = [part.split(rows) for part in parts]
    if kernel:
        pieces += kernel.spare(pieces[0])
    run = kernel.run if kernel else by_formula
    sums: list[Tensor | None] = [None] * len(numbers)
    with reusing_memory():
        for blocks in zip(*pieces, strict=True):
            found = run(*blocks, *numbers)
            if found is NotImplemented:
                found = by_formula(*blocks)
            if found:
                pairs = zip(sums, found, strict=True)
                sums = [old if new is None else new if old is None else old + new for old, new in pairs]
    return sums


def _numbers(parameters: Sequence[float | Tensor]) -> list[float | Tensor]:
    """The parameters with a number for each tensor of one: what nobody differentiates is faster with it."""
    return [p.item() if isinstance(p, Tensor) and p.numel() == 1 else p for p in parameters]


def _cut(row: Activation, dim: int, input: Tensor, parameters: Sequence[float | Tensor]) -> tuple[bool, int] | None:
    """How to walk through a large tensor on the CPU: whether as one line, and how many rows of it at a time."""
    if type(input) not in (Tensor, Parameter) or input.device.type != "cpu" or _is_transformed():
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


def _cast(
    sums: Sequence[Tensor | None], parameters: Sequence[float | Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Sums over all blocks in the parameters' dtype: only now, for a half would lose what each block adds."""
    return [
        s.reshape(p.shape).to(p.dtype) if asked and s is not None and isinstance(p, Tensor) else None
        for s, p, asked in zip(sums, parameters, wanted, strict=True)
    ]


# --- a tensor as a whole ----------------------------------------------------------------------------------------------


def _whole_value(row: Activation, dim: int, input: Tensor, parameters: Sequence[float | Tensor]) -> Tensor:
    found = row.f(*_parts(_wide(input), row.operands, dim), **_arguments(row, input, parameters))
    return (torch.cat(found, dim) if row.outputs > 1 else found).to(input.dtype)


def _whole_gradients(
    row: Activation, dim: int, input: Tensor, grad: Tensor, parameters: Sequence[float | Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    operands, above = _parts(_wide(input), row.operands, dim), _parts(_wide(grad), row.outputs, dim)
    arguments = _arguments(row, input, parameters)
    here = None
    if wanted[0]:
        each = _chained(row, operands, above, arguments)
        here = (torch.cat(each, dim) if row.operands > 1 else each[0]).to(input.dtype)
    return [here, *_cast(_sums(row, operands, above, arguments, wanted[1:]), parameters, wanted[1:])]


def _chained(
    row: Activation,
    operands: Sequence[Tensor],
    above: Sequence[Tensor],
    arguments: Mapping[str, Any],
    into: Sequence[Tensor] = (),
) -> list[Tensor]:
    """The gradients of the operands, which are written into the given tensors, if any."""
    partials = row.df(*operands, **arguments)
    if row.outputs == 1:
        each = partials if row.operands > 1 else (partials,)
        return [torch.mul(above[0], p, out=y) for p, y in zip(each, into or [None] * row.operands, strict=True)]
    here = reduce(torch.add, [g * p for g, p in zip(above, partials, strict=True)])
    return [into[0].copy_(here) if into else here]


def _sums(
    row: Activation,
    operands: Sequence[Tensor],
    above: Sequence[Tensor],
    arguments: Mapping[str, Any],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients by the parameters, in the precision that they were computed in."""
    found: list[Tensor | None] = []
    for (name, parameter), asked in zip(row.parameters.items(), wanted, strict=True):
        if asked and parameter.derivative is not None:
            slope = above[0] * parameter.derivative(*operands, **arguments)
            found.append(slope.sum_to_size(getattr(arguments[name], "shape", ())))
        else:
            found.append(None)
    return found


def _arguments(row: Activation, x: Tensor, parameters: Sequence[float | Tensor]) -> dict[str, Any]:
    """The row's parameters by name, tensors in the precision to compute in and shaped to broadcast against x."""
    if not parameters:
        return {}
    dtype = torch.float32 if x.dtype in HALVES else x.dtype
    values = [_beside(x, p.to(dtype)) if isinstance(p, Tensor) else p for p in parameters]
    return dict(zip(row.parameters, values, strict=True))


def _parts(x: Tensor, count: int, dim: int) -> tuple[Tensor, ...]:
    return x.chunk(count, dim) if count > 1 else (x,)


def _wide(x: Tensor) -> Tensor:
    """What to compute with in the place of x: float32 for a half."""
    return x.float() if x.dtype in HALVES else x


def _beside(x: Tensor, parameter: Tensor) -> Tensor:
    """The parameter, shaped to broadcast against x: one number for all, or one for each channel."""
    return parameter.view(-1, *[1] * (x.dim() - 2)) if parameter.numel() > 1 else parameter.view(())
