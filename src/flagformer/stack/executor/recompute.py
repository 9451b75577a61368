"""A sublayer as one operator of autograd that keeps nothing and computes itself again for its gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flagformer.flow import Carry, SideInputs, unflatten
from flagformer.ops.first_gradients import refuse_second_gradients
from flagformer.ops.tensor_hooks import suspend_tensor_hooks
from flagformer.residual.reversible_streams import StreamPair
from flagformer.stack.executor.forward_context import ForwardContext, same_rng
from flagformer.stack.sublayer import Sublayer


class StreamSlot:
    """The two streams at the place that a backward has reached: each step finds its own and leaves the next.

    Args:
        exact: whether both streams must come out as the one input that they were.
    """

    def __init__(self, exact: bool) -> None:
        self.exact = exact
        self.streams: tuple[Tensor, Tensor] | None = None

    def take(self) -> tuple[Tensor, Tensor]:
        assert self.streams is not None
        streams, self.streams = self.streams, None
        return streams

    def close(self, read: Tensor, write: Tensor) -> None:
        """At the first sublayer: the way back has ended where the way there began."""
        if self.exact and not torch.equal(read, write):
            raise RuntimeError(
                "`reversible_exact` could not find the streams again: they must stay below 1024 and finite, "
                f"but the input came back {(read - write).abs().max().item():.2g} off; leave it out"
            )


class SublayerCall:
    """One sublayer at one step of a forward, and how to compute it again.

    Args:
        record: the side inputs, with holes for tensors.
        beside: how many tensors fill them.
        dtype: of the model.
        around: autocast and random numbers of the forward.
        handed: where the backward finds its streams.
    """

    def __init__(
        self,
        sublayer: Sublayer,
        record: SideInputs,
        beside: int,
        dtype: torch.dtype,
        around: ForwardContext,
        handed: StreamSlot,
    ) -> None:
        self.sublayer, self.record, self.beside, self.dtype = sublayer, record, beside, dtype
        self.around, self.handed = around, handed
        self.parameters = [p for p in sublayer.parameters() if p.requires_grad]
        self.training = sublayer.training
        self.draws: tuple[Tensor, ...] | None = None
        self.names: list[str] = []

    def first(self, read: Tensor, write: Tensor, tensors: Iterator[Tensor]) -> tuple[Tensor, ...]:
        """The forward: the written stream and the losses, whose names it notes; and whether it drew."""
        before = self.around.rng_state()
        out, losses = self._compute(read, write, tensors, recomputing=False)
        self.draws = None if same_rng(before, self.around.rng_state()) else before
        self.names = [name for name, values in losses.items() for _ in values]
        return out, *(value for values in losses.values() for value in values)

    def again(self, read: Tensor, tensors: Iterator[Tensor]) -> tuple[Tensor, ...]:
        """What it adds to the written stream, and the losses."""
        if self.sublayer.training != self.training:
            was, now = ("training", "eval") if self.training else ("eval", "training")
            raise RuntimeError(
                f"the model must be in one mode from forward to backward, but went from {was} to {now} mode: "
                "`reversible` computes activations again"
            )
        nothing = read.new_zeros(())  # a number takes no part in what dtype a sum has
        with self.around.autocast(), self.around.with_rng_state(self.draws):
            out, losses = self._compute(read, nothing, tensors, recomputing=True)
        return out, *(value for values in losses.values() for value in values)

    def _compute(
        self, read: Tensor, write: Tensor, tensors: Iterator[Tensor], recomputing: bool
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        side = replace(
            unflatten(self.record, tensors),
            collector=self.record.collector.fork(),
            carry=Carry(),
            recomputing=recomputing,
        )
        # the written stream is the next one to be read
        out = self.sublayer(StreamPair(read, write, self.dtype), side).read
        if names := side.carry.names():
            handed_on = ", ".join(f"`{name}`" for name in names)
            raise ValueError(
                f"`reversible` computes each sublayer again alone, but one of yours hands on {handed_on} "
                'to later ones: declare `needs={"carry"}` on its component, and use another executor'
            )
        return out, side.collector.losses


class RecomputeFunction(torch.autograd.Function):
    """`(write, read, side tensors, parameters) -> (write + f(read), losses)`; the backward computes f again.

    Everything that gets a gradient is an input and every gradient is returned, so that to autograd, hooks and
    DistributedDataParallel it is an operator like any other.
    """

    @staticmethod
    def forward(
        ctx: Any, step: SublayerCall, write: Tensor, read: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.step = step
        ctx.set_materialize_grads(False)
        # parameters too: a change before the backward is then an error, as for any operator
        ctx.save_for_backward(*tensors)
        out, *losses = step.first(read, write, iter(tensors))
        ctx.mark_non_differentiable(*(loss for loss in losses if not loss.is_floating_point()))
        return out, *losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *of_losses: Tensor | None) -> tuple[Tensor | None, ...]:
        step, (_, of_write, of_read, *of_rest) = ctx.step, ctx.needs_input_grad
        beside, parameters = ctx.saved_tensors[: step.beside], step.parameters
        after, read = step.handed.take()
        inputs = [read.detach().requires_grad_(of_read)]
        inputs += [side.detach().requires_grad_(needs) for side, needs in zip(beside, of_rest)]
        with torch.set_grad_enabled(any(one is not None for one in (grad, *of_losses))):
            out, *losses = step.again(inputs[0], iter(inputs[1:]))
        before = after - out.detach()
        step.handed.streams = (read, before)
        if step.record.step == 0:
            step.handed.close(*step.handed.take())
        found = gradients((out, *losses), (grad, *of_losses), [*inputs, *parameters])
        return None, grad if of_write else None, *found


class BackwardStart(torch.autograd.Function):
    """The streams, those of earlier steps that others read, and the losses, as they are; its backward, the
    first to run, hands over the streams."""

    @staticmethod
    def forward(
        ctx: Any, handed: StreamSlot, read: Tensor, write: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.handed = handed
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(read, write)
        ctx.mark_non_differentiable(*(one for one in rest if not one.is_floating_point()))
        return tuple(one.view_as(one) for one in (read, write, *rest))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_gradients("`reversible`", "build without it, or use `torch.func`")
        ctx.handed.streams = tuple(ctx.saved_tensors)
        return None, *grads


def gradients(
    outputs: Sequence[Tensor], grads: Sequence[Tensor | None], inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    """Of the outputs, weighed by `grads`, for each input; None where there is none."""
    pairs = [
        (out, grad.to(out.dtype))
        for out, grad in zip(outputs, grads)
        if grad is not None and out.requires_grad
    ]
    wanted = [one for one in inputs if one.requires_grad]
    if not pairs or not wanted:
        return [None for _ in inputs]
    with suspend_tensor_hooks(wanted):
        found = torch.autograd.grad(
            [out for out, _ in pairs], wanted, [grad for _, grad in pairs], allow_unused=True
        )
    rest = iter(found)
    return [next(rest) if one.requires_grad else None for one in inputs]
