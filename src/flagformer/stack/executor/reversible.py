"""Reversible execution (RevNet, arXiv:1707.04585; Reformer, arXiv:2001.04451, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor

from flagformer.flags import Flag, Requirement, component
from flagformer.flow import SideInputs, flatten
from flagformer.residual import Residual
from flagformer.residual.reversible_streams import ReversibleStreams, StreamPair
from flagformer.stack.executor import Executor, recomputes
from flagformer.stack.executor.forward_context import ForwardContext
from flagformer.stack.executor.recompute import BackwardStart, RecomputeFunction, StreamSlot, SublayerCall
from flagformer.stack.executor.sequential import Sequential
from flagformer.stack.sublayer import Sublayer


def refuse_pieces(sublayers: Sequence[Sublayer]) -> None:
    """FSDP2 gathers the parameters of a sharded module when it is called, and they are wanted before."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    sharded = [type(part).__name__ for one in sublayers for part in one.modules()]
    if any(name.startswith("FSDP") for name in sharded):
        raise ValueError(
            "`reversible` layers cannot be sharded piece by piece, as gradients go to the parameters "
            "themselves: call `fully_shard` on the stack (`model.attn_layers`) or the model only"
        )


@component(
    "executor",
    select="reversible",
    paper="arXiv:1707.04585, section 3",
    requires=[
        Requirement(
            "scale_residual_constant",
            1.0,
            "a stream multiplied at each sublayer, and divided on the way back, multiplies its rounding",
        )
    ],
)
class Reversible(Executor):
    """Two streams take turns, and the backward finds each from those behind it: no activation is kept.

    Every sublayer reads one stream and adds to the other, in whatever order the plan says; the output is
    their mean (Reformer's is their concatenation). The model is another one than without this flag, with the
    same parameters. Without gradients, while decoding, when tensors are asked for by name, or under
    transforms of `torch.func`, the same two streams run in plain order.
    """

    saves = "the two streams behind the last sublayer; each sublayer is computed again from them"

    def __init__(
        self,
        *,
        exact: Annotated[
            bool,
            Flag(
                "reversible_exact",
                "round what is added to a grid, so that streams below 1024 are found again to the bit",
            ),
        ] = False,
    ) -> None:
        self.exact = exact
        self.plain = Sequential()

    def wrap_residual(self, residual: Residual) -> ReversibleStreams:
        return ReversibleStreams(self.exact)

    def run(self, sublayers: Sequence[Sublayer], residual: Residual, h: StreamPair, side: SideInputs) -> Any:
        if not recomputes(side):
            return self.plain.run(sublayers, residual, h, side)
        return self._run(sublayers, h, side)

    # a graph cannot replay random numbers: sublayers are compiled, each by itself, and this is not. (What
    # `torch.compiler.disable` does, without loading the compiler before it is needed.)
    @torch._disable_dynamo(recursive=False)
    def _run(self, sublayers: Sequence[Sublayer], h: StreamPair, side: SideInputs) -> StreamPair:
        refuse_pieces(sublayers)
        around, handed = ForwardContext(h.read.device), StreamSlot(self.exact)
        record, beside = flatten(replace(side, collector=side.collector.fork(), recomputing=True))
        names: list[str] = []
        losses: list[Tensor] = []
        read, write = h.read, h.write
        with around.autocast():
            for number, sublayer in enumerate(sublayers):
                side.collector.record_hidden(number, read.to(h.dtype))
                step = SublayerCall(
                    sublayer, replace(record, step=number), len(beside), h.dtype, around, handed
                )
                out, *said = RecomputeFunction.apply(step, write, read, *beside, *step.parameters)
                names += step.names
                losses += said
                read, write = out, read
        kept = side.collector.hiddens  # gradients of memories, too, arrive where the streams are known
        read, write, *rest = BackwardStart.apply(handed, read, write, *kept.values(), *losses)
        kept.update(zip(kept, rest))
        for name, loss in zip(names, rest[len(kept) :]):
            side.collector.add_loss(name, loss)
        return StreamPair(read, write, h.dtype)
