"""Gradients of leaf tensors, accumulated over several graphs in one buffer for each leaf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from flagformer.ops.full_precision import accum_dtype, lowered

PLAIN = (Tensor, nn.Parameter)
BLOCKS = 8


class LeafSums(TorchFunctionMode):
    """The sum of each leaf's gradients, in fp32 or fp64.

    Inside the `with` block, `F.linear` adds the gradient of a leaf weight to the weight's sum, and autograd
    receives None for it: torch would allocate a gradient for each graph, a second tensor of the weight's
    size. Other gradients are added with `add`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}
        self._casts: dict[tuple[int, torch.dtype], Tensor] = {}

    def add(self, leaf: Tensor, grad: Tensor) -> None:
        """Add `grad`, of the shape of `leaf`."""
        if id(leaf) in self._sums:
            self._sums[id(leaf)][1].add_(grad)
        else:
            # a copy: autograd may give one tensor to two leaves
            self._sums[id(leaf)] = leaf, grad.to(accum_dtype(grad.dtype), copy=True)

    def add_product(self, leaf: Tensor, left: Tensor, right: Tensor) -> None:
        """Add left [V, n] @ right [n, E] to the sum of `leaf` [V, E]."""
        if id(leaf) not in self._sums:
            self._sums[id(leaf)] = leaf, torch.zeros_like(leaf, dtype=accum_dtype(leaf.dtype))
        into = self._sums[id(leaf)][1]
        if into.dtype == left.dtype:
            into.addmm_(left, right)
        else:
            # in blocks: on CPU a product in another dtype is cast as a whole before it is added
            for block, rows in zip(into.chunk(BLOCKS), left.chunk(BLOCKS)):
                block.add_(rows @ right)

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Each leaf and its sum."""
        return [*self._sums.values()]

    def cast(self, leaf: Tensor, dtype: torch.dtype) -> Tensor:
        """`leaf` in another dtype, cast once."""
        if leaf.dtype == dtype:
            return leaf.detach()
        key = id(leaf), dtype
        if key not in self._casts:
            self._casts[key] = leaf.detach().to(dtype)
        return self._casts[key]

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and not torch.compiler.is_compiling():
            return self._linear(*args, **kwargs)
        return func(*args, **kwargs)

    def _linear(
        self, input: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:  # names of F.linear
        tensors = [one for one in (input, weight, bias) if one is not None]
        dtype = _product_dtype(tensors)
        # checkpointing recomputes outside of this mode and compares the saved tensors of both forwards
        hooked = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
        plain = all(type(one) in PLAIN for one in tensors)
        if not plain or dtype is None or hooked or not (weight.is_leaf and weight.requires_grad):
            return F.linear(input, weight, bias)
        low_bias = None if bias is None else bias.to(dtype)
        out: Tensor = _Linear.apply(input.to(dtype), weight, low_bias, self)
        return out


class _Linear(torch.autograd.Function):
    """`F.linear` that adds the gradient of its weight to `LeafSums`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sums: LeafSums) -> Tensor:
        ctx.sums = sums
        ctx.save_for_backward(x, weight)
        return F.linear(x, sums.cast(weight, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_dx, needs_dweight, needs_dbias, _ = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        if needs_dweight:
            ctx.sums.add_product(weight, rows.T, x.reshape(-1, x.shape[-1]))
        return (
            grad @ ctx.sums.cast(weight, x.dtype) if needs_dx else None,
            None,
            rows.sum(dim=0) if needs_dbias else None,
            None,
        )


def _product_dtype(tensors: Sequence[Tensor]) -> torch.dtype | None:
    """The dtype of a product: that of autocast, or that of the tensors; None where theirs differ."""
    low, types = lowered(tensors[0].device), {one.dtype for one in tensors}
    if low is not None and torch.float64 not in types:
        return low
    return types.pop() if len(types) == 1 else None
