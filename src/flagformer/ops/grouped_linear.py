"""One matrix product for each group of rows, in one operator: the linear layers of sorted experts.

Operators of the library are opaque to torch's tracing, so that a compiled graph has no data-dependent sizes.
Their gradients are made of the same two operators, and so are gradients of gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# torch's fused kernel reads rows of a multiple of 16 bytes.
ALIGNED = 8
OLDEST = (8, 0)  # compute capability


def has_grouped_mm(x: Tensor, weight: Tensor) -> bool:
    """Whether torch's fused kernel computes the products of x [N, I] and weight [E, O, I]: bf16 on CUDA.

    Elsewhere its fallback runs a loop as `_slices` does, and refuses fp64.
    """
    if x.device.type != "cuda" or x.dtype != torch.bfloat16 or not hasattr(F, "grouped_mm"):
        return False
    aligned = not any(width % ALIGNED for width in weight.shape[1:])
    return aligned and torch.cuda.get_device_capability(x.device) >= OLDEST


def _slices(offsets: Tensor) -> Iterator[tuple[int, slice]]:
    """The groups that have rows."""
    start = 0
    for number, end in enumerate(offsets.tolist()):
        if end > start:
            yield number, slice(start, end)
        start = end


@torch.library.custom_op(
    "flagformer::grouped_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor offsets) -> Tensor",
)
def _linear(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    # the offsets end at the last row, after which `grouped_mm` would leave rows unwritten
    if has_grouped_mm(x, weight):
        return F.grouped_mm(x, weight.transpose(1, 2), offs=offsets)
    out = x.new_empty(x.shape[0], weight.shape[1])
    for number, rows in _slices(offsets):
        torch.mm(x[rows], weight[number].t(), out=out[rows])
    return out


@_linear.register_fake
def _(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.custom_op(
    "flagformer::grouped_outer",
    mutates_args=(),
    schema="(Tensor y, Tensor x, Tensor offsets) -> Tensor",
)
def _outer(y: Tensor, x: Tensor, offsets: Tensor) -> Tensor:
    """y [N, O] and x [N, I] -> [E, O, I], the sum of the outer products of the rows of each group."""
    if has_grouped_mm(x, x.new_empty(1, y.shape[1], x.shape[1], device="meta")):
        return F.grouped_mm(y.t(), x, offs=offsets)
    out = x.new_zeros(len(offsets), y.shape[1], x.shape[1])
    for number, rows in _slices(offsets):
        torch.mm(y[rows].t(), x[rows], out=out[number])
    return out


@_outer.register_fake
def _(y: Tensor, x: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty(offsets.shape[0], y.shape[1], x.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _only(needed: bool, gradient: Callable[..., Tensor], *tensors: Tensor) -> Tensor | None:
    return gradient(*tensors) if needed else None


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight, offsets = ctx.saved_tensors
    grad = grad.contiguous()  # `grouped_mm` refuses expanded tensors
    return (
        _only(ctx.needs_input_grad[0], _linear, grad, weight.transpose(1, 2), offsets),
        _only(ctx.needs_input_grad[1], _outer, grad, x, offsets),
        None,
    )


def _outer_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    y, x, offsets = ctx.saved_tensors
    grad = grad.contiguous()
    return (
        _only(ctx.needs_input_grad[0], _linear, x, grad, offsets),
        _only(ctx.needs_input_grad[1], _linear, y, grad.transpose(1, 2), offsets),
        None,
    )


_linear.register_autograd(_linear_backward, setup_context=_save)
_outer.register_autograd(_outer_backward, setup_context=_save)


def grouped_linear(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """x [N, I] and weight [E, O, I] -> [N, O]: each row times the transposed weight of its group.

    Args:
        x: the rows of the first group, then those of the second, and so on, in the dtype of `weight`.
        offsets: [E] int32, the end of each group in x; the last is N.
    """
    out: Tensor = _linear(x, weight, offsets)
    return out
