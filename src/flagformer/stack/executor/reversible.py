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
from flagformer.residual.parallel_streams import ParallelStream, ParallelStreams
from flagformer.residual.reversible_streams import ReversibleStreams, StreamPair
from flagformer.stack.executor import NO_CARRY, Executor, recomputes
from flagformer.stack.executor.forward_context import ForwardContext
from flagformer.stack.executor.recompute import BackwardStart, RecomputeFunction, StreamSlot, SublayerCall
from flagformer.stack.executor.sequential import Sequential
from flagformer.stack.sublayer import Sublayer


def refuse_sharded_parts(sublayers: Sequence[Sublayer]) -> None:
    """Raise ValueError for sharded modules inside sublayers: FSDP2 gathers their parameters only in calls."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    sharded = [type(part).__name__ for one in sublayers for part in one.modules()]
    if any(name.startswith("FSDP") for name in sharded):
        raise ValueError(
            "the parts of `reversible` layers cannot be sharded one by one, as autograd needs their whole "
            "parameters: call `fully_shard` on the stack (`model.attn_layers`) or the model only"
        )


SUMS = "reversible execution recovers the residual stream by subtraction, so only sums may change it"


@component(
    "executor",
    select="reversible",
    paper="arXiv:1707.04585, section 3",
    requires=[
        Requirement(
            "scale_residual_constant",
            1.0,
            "dividing the stream by it in the backward amplifies rounding errors",
        )
    ],
    lacks={
        "carry": NO_CARRY,
        "stream": SUMS,
    },
)
class Reversible(Executor):
    """Two residual streams, from which the backward recomputes all activations: none are saved.

    Sublayers alternately read one stream and add to the other, in the order of the plan; the output is the
    mean of both (Reformer concatenates them). The function differs from that of a model without this flag;
    the parameters are the same. Without gradients, while decoding, when tensors are requested by name, or
    under transforms of `torch.func`, the two streams run without recomputation.
    """

    saves = "the two streams after the last sublayer; each sublayer is recomputed from them"

    def __init__(
        self,
        *,
        exact: Annotated[
            bool,
            Flag(
                "reversible_exact",
                "round outputs to a grid, so that streams below 1024 are recovered bit by bit",
            ),
        ] = False,
    ) -> None:
        self.exact = exact
        self.sequential = Sequential()

    def wrap_residual(self, residual: Residual) -> ReversibleStreams:
        return ReversibleStreams(self.exact)

    def run(self, sublayers: Sequence[Sublayer], residual: Residual, h: Any, side: SideInputs) -> Any:
        if not recomputes(side):
            return self.sequential.run(sublayers, residual, h, side)
        if not isinstance(residual, ParallelStreams):
            return self._run([[sublayer] for sublayer in sublayers], h, side)
        groups: list[list[Sublayer]] = [[]]
        for sublayer in sublayers:
            groups[-1].append(sublayer)
            if residual.is_last[sublayer.index]:
                groups.append([])
        return ParallelStream(self._run(groups[:-1], h.stream, side, in_parallel=True))

    # graphs cannot restore the RNG state: sublayers are compiled one by one, this loop is not. (Like
    # `torch.compiler.disable`, without importing the compiler.)
    @torch._disable_dynamo(recursive=False)
    def _run(
        self, groups: Sequence[Sequence[Sublayer]], h: StreamPair, side: SideInputs, in_parallel: bool = False
    ) -> StreamPair:
        """Run groups of sublayers that read the same stream; without parallel ones, each of one sublayer."""
        refuse_sharded_parts([sublayer for group in groups for sublayer in group])
        context, streams = ForwardContext(h.read.device), StreamSlot(self.exact)
        record, tensors = flatten(replace(side, collector=side.collector.fork(), recomputing=True))
        names: list[str] = []
        losses: list[Tensor] = []
        read, write, step = h.read, h.write, 0
        with context.autocast():
            for group in groups:
                here = replace(record, step=step)
                for _ in group:
                    side.collector.record_hidden(step, read.to(h.dtype))
                    step += 1
                call = SublayerCall(group, here, len(tensors), h.dtype, context, streams, in_parallel)
                out, *new_losses = RecomputeFunction.apply(call, write, read, *tensors, *call.parameters)
                names += call.loss_names
                losses += new_losses
                read, write = out, read
        hiddens = side.collector.hiddens  # so that gradients of XL memories arrive after the streams
        read, write, *rest = BackwardStart.apply(streams, read, write, *hiddens.values(), *losses)
        hiddens.update(zip(hiddens, rest))
        for name, loss in zip(names, rest[len(hiddens) :]):
            side.collector.add_loss(name, loss)
        return StreamPair(read, write, h.dtype)
