"""Reversible execution (RevNet, arXiv:1707.04585; Reformer, arXiv:2001.04451, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor

from flagformer.flags import Flag, Need, component
from flagformer.flow import SideInputs, lift
from flagformer.residual import Residual
from flagformer.residual.two_streams import Streams, TwoStreams
from flagformer.stack.executor import Executor, recomputes
from flagformer.stack.executor.recompute import Again, HandOver, Seed, Step
from flagformer.stack.executor.replay import Surroundings
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
        Need(
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

    def over(self, residual: Residual) -> TwoStreams:
        return TwoStreams(self.exact)

    def run(self, sublayers: Sequence[Sublayer], residual: Residual, h: Streams, side: SideInputs) -> Any:
        if not recomputes(side):
            return self.plain.run(sublayers, residual, h, side)
        return self._run(sublayers, h, side)

    # a graph cannot replay random numbers: sublayers are compiled, each by itself, and this is not. (What
    # `torch.compiler.disable` does, without loading the compiler before it is needed.)
    @torch._disable_dynamo(recursive=False)
    def _run(self, sublayers: Sequence[Sublayer], h: Streams, side: SideInputs) -> Streams:
        refuse_pieces(sublayers)
        around, handed = Surroundings(h.read.device), HandOver(self.exact)
        record, beside = lift(replace(side, tape=side.tape.part(), replay=True))
        names: list[str] = []
        losses: list[Tensor] = []
        read, write = h.read, h.write
        with around.autocast():
            for number, sublayer in enumerate(sublayers):
                side.tape.remember(number, read.to(h.dtype))
                step = Step(sublayer, replace(record, step=number), len(beside), h.dtype, around, handed)
                out, *said = Again.apply(step, write, read, *beside, *step.parameters)
                names += step.names
                losses += said
                read, write = out, read
        kept = side.tape.streams  # gradients of memories, too, arrive where the streams are known
        read, write, *rest = Seed.apply(handed, read, write, *kept.values(), *losses)
        kept.update(zip(kept, rest))
        for name, loss in zip(names, rest[len(kept) :]):
            side.tape.add_loss(name, loss)
        return Streams(read, write, h.dtype)
