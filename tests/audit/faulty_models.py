"""Language models with one planted fault each, and the position where the audit must find it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from audit_models import NUM_TOKENS, Bigram, Layer, State, TinyLM
from torch import Tensor, nn


class TopKOverTheSequence(TinyLM):
    """Keeps the half of the tokens with the largest first feature, selected over the whole row."""

    def between(self, x: Tensor) -> Tensor:
        kept = x[..., 0].topk(max(1, x.shape[1] // 2), dim=1).indices
        return x * torch.zeros_like(x[..., :1]).scatter(1, kept[..., None], 1.0)


class StatisticOfTheRow(TinyLM):
    """Subtracts the mean over all positions."""

    def between(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=1, keepdim=True)


class StatisticOfTheBatch(TinyLM):
    """Subtracts the mean over all rows at each position: no future leak."""

    def between(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0, keepdim=True)


class StatisticInTraining(TinyLM):
    """Batch normalisation: statistics over rows and positions while training, running ones in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_norm = nn.BatchNorm1d(24)

    def between(self, x: Tensor) -> Tensor:
        return self.batch_norm(x.transpose(1, 2)).transpose(1, 2)


class CentredPositions(TinyLM):
    """Counts positions from the middle of the input."""

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        return super().embed(ids, (positions - ids.shape[1] // 2) % 40)


class MaskOffByOne(TinyLM):
    """From position 5 on, each query attends to one later token."""

    def allowed(self, allowed: Tensor) -> Tensor:
        later = allowed.roll(1, dims=-1)
        later[..., :6] = False
        return allowed | (later & (torch.arange(allowed.shape[1]) >= 5)[:, None])


class GatedLeak(TinyLM):
    """The same mean over the row through a gate that starts at zero: no effect at initialisation."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))

    def between(self, x: Tensor) -> Tensor:
        return x + self.gate * x.mean(dim=1, keepdim=True)


class ShiftedKeyMask(TinyLM):
    """The padding mask masks the wrong keys."""

    def key_mask(self, mask: Tensor) -> Tensor:
        return mask.roll(1, dims=1)


class PadsMoveLeftPositions(TinyLM):
    """Counts the positions of left-padded rows from the padding."""

    def positions(self, batch: int, length: int, past: int, starts: Tensor | None) -> Tensor:
        return super().positions(batch, length, past, None)


class PackedSequencesMeet(TinyLM):
    """Packed sequences attend to each other."""

    def segments(self, batch: int, length: int, seq_lens: list[list[int]] | None) -> Tensor:
        return super().segments(batch, length, None)


class CacheForgetsPositions(TinyLM):
    """Every decoded block restarts at position 0."""

    def positions(self, batch: int, length: int, past: int, starts: Tensor | None) -> Tensor:
        return super().positions(batch, length, 0 if starts is None else past, starts)


class LosesTheOldest(State):
    """Overwrites the values of the first token when more than 8 are cached."""

    def lose(self) -> None:
        if self.length > 8:
            self.kv = [(k, torch.cat((v[:, :, 1:2], v[:, :, 1:]), dim=2)) for k, v in self.kv]


class CacheLosesTheOldest(TinyLM):
    def init_state(self, batch: int, length: int, seq_start_pos: Tensor | None = None) -> State:
        return LosesTheOldest(batch, length, seq_start_pos, len(self.layers))

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        seq_start_pos: Tensor | None = None,
        seq_lens: list[list[int]] | None = None,
        state: LosesTheOldest | None = None,
    ) -> Tensor:
        logits = super().forward(ids, mask, seq_start_pos, seq_lens, state)
        if state is not None:
            state.lose()
        return logits


class KeepsAll(State):
    def truncate(self, length: int) -> None:
        self.length = length - 1


class KeepsOrder(State):
    def reorder(self, index: Tensor) -> None:
        self.kv = [(k[index], v) for k, v in self.kv]


class WrongRollback(TinyLM):
    def init_state(self, batch: int, length: int, seq_start_pos: Tensor | None = None) -> State:
        state = State(batch, length, seq_start_pos, len(self.layers))
        state.truncate = lambda length: State.truncate(state, length - 1)
        return state


class RollbackWithinABlock(TinyLM):
    """Loses the values of the tokens of the last block that remain."""

    def init_state(self, batch: int, length: int, seq_start_pos: Tensor | None = None) -> State:
        state = State(batch, length, seq_start_pos, len(self.layers))

        def truncate(length: int) -> None:
            State.truncate(state, length)
            state.kv = [
                (k, torch.cat([v[:, :, : state.before], 0 * v[:, :, state.before :]], 2)) for k, v in state.kv
            ]

        state.before, state.truncate = 0, truncate
        return state

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        seq_start_pos: Tensor | None = None,
        seq_lens: list[list[int]] | None = None,
        state: State | None = None,
    ) -> Tensor:
        if state is not None:
            state.before = state.length
        return super().forward(ids, mask, seq_start_pos, seq_lens, state)


class RollbackForgetsPadding(TinyLM):
    def init_state(self, batch: int, length: int, seq_start_pos: Tensor | None = None) -> State:
        state = State(batch, length, seq_start_pos, len(self.layers))

        def truncate(length: int) -> None:
            State.truncate(state, length)
            state.starts = None

        state.truncate = truncate
        return state


class MarkWithoutItsLastLayer(TinyLM):
    """The last layer keeps the tokens after a mark in place of those before it."""

    def init_state(self, batch: int, length: int, seq_start_pos: Tensor | None = None) -> State:
        state = State(batch, length, seq_start_pos, len(self.layers))

        def rollback(mark: tuple) -> None:
            k, v = state.kv[-1]
            State.rollback(state, mark)
            state.kv[-1] = (k[:, :, -state.length :], v[:, :, -state.length :])

        state.rollback = rollback
        return state


class StateOnTheModel(TinyLM):
    """Every session continues the last one."""

    def init_state(self, batch: int, length: int, seq_start_pos: Tensor | None = None) -> State:
        self.last = super().init_state(batch, length, seq_start_pos)
        return self.last

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        seq_start_pos: Tensor | None = None,
        seq_lens: list[list[int]] | None = None,
        state: State | None = None,
    ) -> Tensor:
        return super().forward(ids, mask, seq_start_pos, seq_lens, None if state is None else self.last)


class WrongReorder(TinyLM):
    def init_state(self, batch: int, length: int, seq_start_pos: Tensor | None = None) -> State:
        return KeepsOrder(batch, length, seq_start_pos, len(self.layers))


class DropoutInEval(TinyLM):
    def between(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.1, training=True)


class RemembersTheLastInput(TinyLM):
    """Adds a running mean that eval forwards update."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.zeros(24))

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        x = super().embed(ids, positions)
        out = x + self.running
        self.running.mul_(0.9).add_(x.mean(dim=(0, 1)).detach(), alpha=0.1)
        return out


class DeadParameter(TinyLM):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.randn(3))


class TwoZeros(TinyLM):
    """A low-rank branch with both factors zero at initialisation: neither gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.zeros(24, 2)), nn.Parameter(torch.zeros(2, 24))

    def between(self, x: Tensor) -> Tensor:
        return x + x @ self.down @ self.up


class MaskOverflowsInLowPrecision(TinyLM):
    """Subtracts fp32's largest number, which bf16 rounds to infinity: a fully masked row becomes NaN."""

    def __init__(self) -> None:
        class Overflowing(Layer):
            def masked(self, scores: Tensor, allowed: Tensor) -> Tensor:
                hidden = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)
                return scores + hidden.to(scores.dtype)

        super().__init__(layer=Overflowing)


class NotANumberFromSevenOn(Bigram):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) / (torch.arange(ids.shape[1]) < 7)[:, None]


class GradientOfARoot(TinyLM):
    """A root at zero: the value is finite, its gradient is not."""

    def between(self, x: Tensor) -> Tensor:
        return x + (x - x.detach()).sqrt()


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(NUM_TOKENS))

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits.expand(*ids.shape, -1)


class MaskBreaksDown(Bigram):
    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(ids) if mask is None else super().forward(ids) @ mask.float()


@dataclass(frozen=True)
class Case:
    """A faulty model and the check that must fail.

    Attributes:
        position: the first position where it must fail; None if the check has no positions.
        words: text that the message must contain.
        along: other checks that the same fault breaks too.
    """

    model: Callable[[], nn.Module]
    check: str
    position: int | None
    words: str = ""
    along: frozenset[str] = frozenset()


SHAPES = frozenset({"length", "right_padding", "left_padding", "packing", "cache"})

CASES = (
    Case(TopKOverTheSequence, "future_leak", 0, "eval mode", SHAPES),
    Case(StatisticOfTheRow, "future_leak", 0, "eval mode", SHAPES),
    Case(StatisticInTraining, "future_leak", 0, "train mode"),
    Case(GatedLeak, "future_leak", 0, "eval mode", SHAPES),
    Case(MaskOffByOne, "future_leak", 5, "when token 6 or later", SHAPES),
    Case(CentredPositions, "length", 0, "1 tokens alone", SHAPES - {"length"}),
    Case(StatisticOfTheBatch, "batch", 0, "row 0 changes when the other rows", SHAPES - {"length"}),
    Case(ShiftedKeyMask, "right_padding", 0, "padded right"),
    Case(PadsMoveLeftPositions, "left_padding", 0, "24 tokens padded left"),
    Case(PackedSequencesMeet, "packing", 0, "sequence 1"),
    Case(CacheForgetsPositions, "cache", 1, "token by token"),
    Case(CacheLosesTheOldest, "cache", 9, "token by token"),
    Case(WrongRollback, "cache", 16, "truncate"),
    Case(RollbackWithinABlock, "cache", 17, "truncate(17)"),
    Case(RollbackForgetsPadding, "cache", 17, "padded left, after `truncate(17)`"),
    Case(MarkWithoutItsLastLayer, "cache", 16, "back at a mark after 16"),
    Case(StateOnTheModel, "cache", None, "in turns"),
    Case(WrongReorder, "cache", 16, "reorder"),
    Case(DropoutInEval, "determinism", 0, "random state"),
    Case(RemembersTheLastInput, "determinism", 0, "after another input"),
    Case(DeadParameter, "gradients", None, "unused"),
    Case(TwoZeros, "gradients", None, "down, up"),
    Case(MaskOverflowsInLowPrecision, "finite", 0, "padded left, under bf16"),
    Case(NotANumberFromSevenOn, "finite", 7, "in full precision"),
    Case(GradientOfARoot, "finite", None, "gradients are not finite"),
    Case(Constant, "sensitivity", 10, "other checks are meaningless"),
    Case(MaskBreaksDown, "right_padding", None, "raises RuntimeError"),
)
