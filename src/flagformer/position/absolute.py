"""Vectors added to the token embedding: learned, sinusoidal (arXiv:1706.03762), or none."""

from __future__ import annotations

import operator
from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn

from flagformer.embedding.tokens import TokenEmbedding
from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.flow import Constant
from flagformer.ops.counter import counted
from flagformer.ops.identity import identity
from flagformer.ops.l2_normalize import l2_normalize
from flagformer.position import AbsolutePosition

UNIT = Flag("l2norm_embed", "L2-normalize token and learned position embeddings, with a small initial scale")


@component("absolute", select="use_abs_pos_emb", when=True, paper="arXiv:1706.03762, section 3.5")
class Learned(AbsolutePosition):
    """A learned embedding per position below `max_seq_len`; L2-normalized with `l2norm_embed`."""

    def __init__(
        self,
        dim: int,
        max_seq_len: int,
        *,
        unit: Annotated[bool, UNIT] = False,
        offset: Annotated[
            int,
            Flag(
                "abs_pos_emb_offset",
                "rows of the position table before that of position 0 (OPT, RoBERTa: 2)",
                ge=0,
                example=2,
            ),
        ] = 0,
    ) -> None:
        super().__init__()
        if not max_seq_len:
            text = "`max_seq_len` must be at least 1 with `use_abs_pos_emb=True`, but is 0"
            raise FlagError([Finding("max_seq_len", text)])
        self.limit = max_seq_len
        self.row_of = partial(operator.add, offset) if offset else identity
        self.table = TokenEmbedding(max_seq_len + offset, dim, 1e-5 if unit else None)
        self.normalize = l2_normalize if unit else identity

    def init_neutral(self) -> float:
        """Start with zeros; normalized vectors have no zero."""
        if self.normalize is l2_normalize:
            return 0.0
        nn.init.zeros_(self.table.weight)
        return 1.0

    def forward(self, positions: Tensor) -> Tensor:
        return self.normalize(self.table(self.row_of(positions)))


@component("absolute", select="scaled_sinu_pos_emb", paper="arXiv:1706.03762, section 3.5")
class Sinusoidal(AbsolutePosition):
    """Sines and cosines of the position, times one learned scale, initially D ** -0.5.

    Sines fill the first half of the dimensions and cosines the second; the paper interleaves them. Its scale
    is 1: `sinu_pos_emb_scale` fixes it.
    """

    limit = None
    scale: nn.Parameter | float

    def __init__(
        self,
        dim: int,
        max_seq_len: int,
        *,
        scale: Annotated[
            float | None,
            Flag("sinu_pos_emb_scale", "a fixed scale; None: a learned one", ge=1e-6, example=1.0),
        ] = None,
        endpoint: Annotated[
            bool,
            Flag(
                "sinu_pos_emb_endpoint",
                "rates from 1 to 1 / 10000, both included (tensor2tensor, M2M-100); False: without the last",
            ),
        ] = False,
        offset: Annotated[
            int, Flag("sinu_pos_emb_offset", "the number of position 0 (M2M-100: 2)", ge=0, example=2)
        ] = 0,
    ) -> None:
        super().__init__()
        if dim % 2:
            text = f"`dim` (`emb_dim` where it is set) must be even with `scaled_sinu_pos_emb`, but is {dim}"
            raise FlagError([Finding("dim", text)])
        half = dim // 2
        last = max(half - 1, 1) if endpoint else half
        self.frequencies = Constant(counted((10000.0 ** (-i / last) for i in range(half)), half))
        self.number_of = partial(operator.add, offset) if offset else identity
        self.width = dim
        self.scale = nn.Parameter(torch.empty(1)) if scale is None else float(scale)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if isinstance(self.scale, nn.Parameter):
            nn.init.constant_(self.scale, self.width**-0.5)

    def init_neutral(self) -> float:
        """Start with the learned scale 0; a fixed one has no such start."""
        if isinstance(self.scale, float):
            return 0.0
        nn.init.zeros_(self.scale)
        return 1.0

    def forward(self, positions: Tensor) -> Tensor:
        """[1 or B, T] long -> [1 or B, T, D], of the dtype of the learned scale, or fp32."""
        angles = self.number_of(positions)[..., None] * self.frequencies.on(positions.device)
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return (waves if isinstance(self.scale, float) else waves.to(self.scale.dtype)) * self.scale


@component("absolute", select="use_abs_pos_emb", when=False)
class NoAbsolute(AbsolutePosition):
    """No absolute positions; the default with a relative position scheme."""

    limit = None

    def __init__(self, dim: int, max_seq_len: int) -> None:
        super().__init__()

    def forward(self, positions: Tensor) -> float:
        return 0.0
