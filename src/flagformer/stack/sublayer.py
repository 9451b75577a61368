"""One sublayer: norm, function, norm, branch, stream, norm; unfilled places hold `identity`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.flow import SideInputs
from flagformer.input_mixer import InputMixer
from flagformer.input_mixer.identity import Identity
from flagformer.ops.borrow import borrow
from flagformer.ops.identity import identity
from flagformer.residual import Residual
from flagformer.residual.additive import Additive

Step = Callable[[Tensor], Tensor]


class Sublayer(nn.Module):
    """`(h, side) -> h`: reads the stream, computes, writes the stream.

    Args:
        index: which of the stack's modules it is.
        kind: "a", "c" or "f".
        input_mixer: `(x, side) -> x`, before the function and behind the norm.
        fn: attention or feedforward, `(x, side) -> x`.
        in_norm, branch_norm, out_norm: of what is read, of what is added, of the stream.
        branch: what happens to the output before it joins the stream.
    """

    residual: Residual

    def __init__(
        self,
        index: int,
        kind: str,
        input_mixer: InputMixer,
        fn: Any,
        in_norm: Step,
        branch_norm: Step,
        out_norm: Step,
        branch: Step,
        residual: Residual,
    ) -> None:
        super().__init__()
        self.input_mixer = input_mixer
        self.index, self.kind, self.fn, self.branch = index, kind, fn, branch
        borrow(self, {"residual": residual})
        self.in_norm, self.branch_norm, self.out_norm = in_norm, branch_norm, out_norm

    def forward(self, h: Any, side: SideInputs) -> Any:
        x = self.in_norm(self.residual.read(h, self.index))
        if side.step in side.mems:
            x, side = self._with_memory(side.mems[side.step], x, side)
        else:
            x = self.input_mixer(x, side)
        out = self.branch(self.branch_norm(self.fn(x, side)))
        return self.residual.apply_norm(self.residual.write(h, out, self.index), self.out_norm)

    def _with_memory(self, memory: Tensor, x: Tensor, side: SideInputs) -> tuple[Tensor, SideInputs]:
        """Tokens that stand behind memories [B, M, D]: both pass the norm and the input mixer, in a row."""
        assert side.kv_layout is not None
        both = torch.cat([self.in_norm(memory.to(x.dtype)), x], dim=1)
        both = self.input_mixer(both, replace(side, layout=side.kv_layout))
        count = memory.shape[1]
        return both[:, count:], replace(side, mem=both[:, :count])


class PreNormAdditive(Sublayer):
    """What most models are made of, h + fn(norm(h)), without the calls of places where nothing stands."""

    def forward(self, h: Tensor, side: SideInputs) -> Tensor:
        if side.mems:
            return super().forward(h, side)
        return h + self.fn(self.in_norm(h), side)


def sublayer_class(input_mixer: InputMixer, steps: Sequence[Step], residual: Residual) -> type[Sublayer]:
    """`Plain` where nothing but the norm in front is filled; `steps` are the branch and the norms behind."""
    adds = type(residual) is Additive and residual.constant == 1.0
    straight = type(input_mixer) is Identity and all(step is identity for step in steps)
    return PreNormAdditive if adds and straight else Sublayer
