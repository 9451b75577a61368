"""One sublayer: norm, function, norm, branch, residual, norm; empty positions hold `identity`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.flow import SegmentMemory, SideInputs
from flagformer.input_mixer import InputMixer
from flagformer.input_mixer.identity import Identity
from flagformer.ops.borrow import borrow
from flagformer.ops.identity import identity
from flagformer.residual import Residual
from flagformer.residual.additive import Additive
from flagformer.residual.parallel_streams import ParallelStream

TensorFn = Callable[[Tensor], Tensor]


def reads_side(part: TensorFn) -> bool:
    """Whether a norm or a branch is called as `part(x, side)`."""
    return bool(getattr(part, "reads_side", False))


def with_side(part: Any, side: SideInputs) -> TensorFn:
    """The norm or the branch as a function of x alone."""
    return partial(part, side=side) if reads_side(part) else part


class BranchesWithSide(nn.Sequential):
    """Several branches, one after the other, some of which read `side`."""

    reads_side = True

    def forward(self, out: Tensor, side: SideInputs) -> Tensor:  # type: ignore[override]
        for branch in self:
            out = with_side(branch, side)(out)
        return out


class Sublayer(nn.Module):
    """`(h, side) -> h`: reads the stream, computes, writes the stream.

    Args:
        index: index of this module in the stack.
        kind: "a", "c" or "f".
        input_mixer: `(x, side) -> x`, after the norm and before the function.
        fn: attention or feedforward, `(x, side) -> x`.
        in_norm, branch_norm, out_norm: norms of the input, of the output, and of the stream after the sum.
        branch: modules on the output before the residual sum.
    """

    residual: Residual

    def __init__(
        self,
        index: int,
        kind: str,
        input_mixer: InputMixer,
        fn: Any,
        in_norm: TensorFn,
        branch_norm: TensorFn,
        out_norm: TensorFn,
        branch: TensorFn,
        residual: Residual,
    ) -> None:
        super().__init__()
        self.input_mixer = input_mixer
        self.index, self.kind, self.fn, self.branch = index, kind, fn, branch
        borrow(self, {"residual": residual})
        self.in_norm, self.branch_norm, self.out_norm = in_norm, branch_norm, out_norm
        self.norms_read_side = any(map(reads_side, (in_norm, branch_norm, out_norm)))
        self.branch_reads_side = reads_side(branch)

    def forward(self, h: Any, side: SideInputs) -> Any:
        return self._update(h, self._norms(side)[0](self.residual.read(h, self.index)), side)

    def _update(self, h: Any, x: Tensor, side: SideInputs) -> Any:
        """Return the stream after this sublayer, which reads x, the norm of its input."""
        in_norm, branch_norm, out_norm = self._norms(side)
        memory = side.memory
        if memory is not None and side.step in memory.hiddens:
            x, side = self._with_memory(in_norm, memory, x, side)
        else:
            x = self.input_mixer(x, side)
        branch = with_side(self.branch, side) if self.branch_reads_side else self.branch
        out = branch(branch_norm(self.fn(x, side)))
        return self.residual.apply_norm(self.residual.write(h, out, self.index), out_norm)

    def _norms(self, side: SideInputs) -> tuple[TensorFn, TensorFn, TensorFn]:
        if not self.norms_read_side:
            return self.in_norm, self.branch_norm, self.out_norm
        return (
            with_side(self.in_norm, side),
            with_side(self.branch_norm, side),
            with_side(self.out_norm, side),
        )

    def _with_memory(
        self, in_norm: TensorFn, memory: SegmentMemory, x: Tensor, side: SideInputs
    ) -> tuple[Tensor, SideInputs]:
        """Apply norm and input mixer to XL memories [B, M, D] and tokens, concatenated in one row."""
        mem = memory.hiddens[side.step]
        both = torch.cat([in_norm(mem.to(x.dtype)), x], dim=1)
        both = self.input_mixer(both, replace(side, layout=side.bias.kv))
        count = mem.shape[1]
        return both[:, count:], replace(side, memory=replace(memory, mem=both[:, :count]))


class PreNormAdditive(Sublayer):
    """The common case h + fn(norm(h)), without calls of identities."""

    def forward(self, h: Tensor, side: SideInputs) -> Tensor:
        if side.memory is not None:
            return super().forward(h, side)
        return h + self.fn(self.in_norm(h), side)


class SharedNorm(Sublayer):
    """A sublayer of a parallel group that shares the norm of its input: the first one to run computes it.

    Args:
        owner: the first sublayer of the group, which owns the norm; None for the first itself.
    """

    def __init__(self, *parts: Any, owner: Sublayer | None) -> None:
        super().__init__(*parts)
        if owner is not None:
            norm: Any = owner.in_norm
            borrow(self, {"in_norm": norm})

    def forward(self, h: ParallelStream, side: SideInputs) -> ParallelStream:
        x = h.normed
        if x is None:
            x = self._norms(side)[0](self.residual.read(h, self.index))
        after: ParallelStream = self._update(h._replace(normed=x), x, side)
        return after


def sublayer_class(
    input_mixer: InputMixer, in_norm: TensorFn, fns: Sequence[TensorFn], residual: Residual
) -> type[Sublayer]:
    """Return `PreNormAdditive` if only the input norm is filled, by a function of x, else `Sublayer`.

    Args:
        fns: the branch, the branch norm and the output norm.
    """
    adds = type(residual) is Additive and residual.constant == 1.0
    is_plain = type(input_mixer) is Identity and all(fn is identity for fn in fns)
    return PreNormAdditive if adds and is_plain and not reads_side(in_norm) else Sublayer
