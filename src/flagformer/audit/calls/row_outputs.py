"""The calling conventions of models with one output a row: classifiers of tokens and of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagformer.audit.calls import NOTHING, CallInputs, only_given
from flagformer.audit.calls.plain import PlainCalls
from flagformer.ops.home import home_of

COUNT = 16  # ids of an audit of images


def logits_of_row(output: Tensor, length: int, count: int) -> Tensor:
    """Outputs [B, K] -> `count` random linear functions of them, the same at all positions, [B, T, count]."""
    mixing = torch.randn(output.shape[-1], count, generator=torch.Generator().manual_seed(0))
    mixed = output @ mixing.to(output) / output.shape[-1] ** 0.5
    return mixed[:, None].expand(-1, length, -1)


class RowCalls(PlainCalls):
    """`model(ids, mask=, seq_start_pos=, ...)` with one output a row, [B, K]: a SequenceClassifier."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.layers = model.encoder.attn_layers

    def call(self, ids: Tensor, **kwargs: Any) -> Any:
        output = self.model(ids, **kwargs)
        return logits_of_row(output, ids.shape[1], self.num_tokens() or 2)

    def longest(self) -> int | None:
        encoder = self.model.encoder  # type: ignore[attr-defined]
        return encoder.max_seq_len if encoder.absolute_positions else None

    def why_not_causal(self) -> str:
        return "not causal: one output of the whole row"


class ImageCalls(PlainCalls):
    """`model(images)`: an id of an audit adds a random image, moved by its position.

    Args:
        model: a ViTransformerWrapper.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        rows, columns = model.patches.grid
        height, width = model.patches.patch
        shape = (COUNT, model.own["channels"], rows * height, columns * width)
        self.images = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def forward(self, ids: Tensor, given: CallInputs = NOTHING) -> Tensor:
        table = self.images.to(*home_of(self.layers))
        moved = [table[column].roll(step, dims=-1) for step, column in enumerate(ids.T)]
        condition = only_given({"condition": self.condition(ids)})
        output = self.model(torch.stack(moved).sum(0) / len(moved) ** 0.5, **condition)
        row = output if output.dim() == 2 else output.mean(1)
        return logits_of_row(row, ids.shape[1], COUNT)

    def num_tokens(self) -> int:
        return COUNT

    def longest(self) -> int | None:
        return None

    def long_rows(self) -> tuple[int, ...]:
        return ()

    def why_not_causal(self) -> str:
        return "not causal: one output of the whole image"


class SegmentCalls(PlainCalls):
    """`model(src, src_mask=)` without a decoder: the encoder's output of a segment, [B, S, D].

    Args:
        model: a Memformer with `encoder_only`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model.encoder)
        self.whole = model

    def forward(self, ids: Tensor, given: CallInputs = NOTHING) -> Tensor:
        if given != NOTHING:
            return super().forward(ids, given)
        encoded: Tensor = self.whole(ids, **only_given({"condition": self.condition(ids)})).enc_out
        return encoded

    def learn(self, ids: Tensor) -> Tensor:
        given = only_given({"condition": self.condition(ids)})
        read = self.whole(ids, **given)
        again = self.whole(ids, mems=read.mem, **given)
        logits: Tensor = again.enc_out
        return logits
