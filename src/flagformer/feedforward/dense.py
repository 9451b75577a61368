"""The feedforward of the transformer (arXiv:1706.03762, section 3.3) and its gated form (2002.05202)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from flagformer.feedforward import Activation, FeedForward
from flagformer.feedforward.gated import Gated, GateScale, Limit, Offset
from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.flow import Dims, SideInputs
from flagformer.norm.layernorm import LayerNorm
from flagformer.ops.checkpointed_chunks import checkpointed_chunks
from flagformer.ops.identity import identity
from flagformer.ops.linear import Linear

MULT = 4.0
Mult = Annotated[float, Flag("ff_mult", "inner width F = int(D * mult)", ge=1e-3)]
InnerDim = Annotated[
    int | None, Flag("ff_inner_dim", "inner width F, in place of `ff_mult`", ge=1, example=20)
]
Dropout = Annotated[float, Flag("ff_dropout", "dropout before the output projection", ge=0, lt=1)]
NoBias = Annotated[bool, Flag("ff_no_bias", "no biases in the feedforward (PaLM, 2204.02311)", neutral=False)]
Chunks = Annotated[
    int,
    Flag(
        "ff_chunks", "number of chunks of tokens, computed in sequence and recomputed in the backward", ge=1
    ),
]
PostActLN = Annotated[bool, Flag("ff_post_act_ln", "LayerNorm after the activation (2110.09456)")]


def inner_width(dim: int, mult: float, inner_dim: int | None) -> int:
    """F of a model of width D; raise FlagError if both flags set it."""
    if inner_dim is None:
        return max(int(dim * mult), 1)
    if mult != MULT:
        text = f"`ff_inner_dim` and `ff_mult` cannot be combined (they are {inner_dim} and {mult}), because"
        raise FlagError([Finding("ff_inner_dim", f"{text} both set the inner width; leave one of them out")])
    return inner_dim


class _Options(NamedTuple):
    width: int
    dropout: float
    no_bias: bool
    post_act_ln: bool
    chunks: int


class _Projections(FeedForward):
    """Base of both forms: input projection, norm, dropout, output projection, and chunks of tokens."""

    def __init__(self, dims: Dims, activation: Activation, halves: int, options: _Options) -> None:
        super().__init__()
        width = options.width
        self.w_in = nn.Linear(dims.dim, halves * width, bias=not options.no_bias)
        self.activation = activation
        self.norm = LayerNorm(width) if options.post_act_ln else identity
        self.dropout = nn.Dropout(options.dropout) if options.dropout else identity
        self.w_out = Linear(width, dims.dim, bias=not options.no_bias)
        self.chunks = options.chunks

    def forward(self, x: Tensor, side: SideInputs) -> Tensor:
        return self.compute(x) if self.chunks == 1 else checkpointed_chunks(self.compute, x, self.chunks)

    def compute(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D], for any number of tokens."""
        hidden = self.hidden(x)
        if self.norm is not identity:
            hidden = self.norm(hidden)
        return self.w_out(hidden if self.dropout is identity else self.dropout(hidden))

    @abstractmethod
    def hidden(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, F], after the activation."""


@component("feedforward", paper="arXiv:1706.03762, section 3.3")
class Dense(_Projections):
    """Two projections with an activation in between."""

    def __init__(
        self,
        dims: Dims,
        activation: Activation,
        *,
        mult: Mult = MULT,
        inner_dim: InnerDim = None,
        dropout: Dropout = 0.0,
        no_bias: NoBias = False,
        post_act_ln: PostActLN = False,
        chunks: Chunks = 1,
    ) -> None:
        width = inner_width(dims.dim, mult, inner_dim)
        super().__init__(dims, activation, 1, _Options(width, dropout, no_bias, post_act_ln, chunks))

    def hidden(self, x: Tensor) -> Tensor:
        return self.activation(self.w_in(x))


class Gain(nn.Module):
    """A learned scale per inner dimension, [F], initially one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


@component("feedforward", select="ff_glu", paper="arXiv:2002.05202")
class GLU(_Projections):
    """Gated linear unit: half of the input projection is multiplied by the activation of the other half.

    `ff_glu` is GEGLU by default and SwiGLU with `ff_swish`. The inner width is not reduced by 2/3 as in the
    paper: use `ff_mult=8/3` for an equal number of parameters.
    """

    def __init__(
        self,
        dims: Dims,
        activation: Activation,
        *,
        mult: Mult = MULT,
        inner_dim: InnerDim = None,
        dropout: Dropout = 0.0,
        no_bias: NoBias = False,
        post_act_ln: PostActLN = False,
        mult_bias: Annotated[
            bool,
            Flag("ff_glu_mult_bias", "a learned scale per inner dimension, after the gate", neutral=True),
        ] = False,
        limit: Limit = None,
        offset: Offset = 0.0,
        gate_scale: GateScale = 1.0,
        chunks: Chunks = 1,
    ) -> None:
        width = inner_width(dims.dim, mult, inner_dim)
        super().__init__(dims, activation, 2, _Options(width, dropout, no_bias, post_act_ln, chunks))
        self.gated = Gated(limit, offset, float(gate_scale))
        self.gain = Gain(self.w_out.in_features) if mult_bias else identity

    def hidden(self, x: Tensor) -> Tensor:
        return self.gain(self.gated.of(self.w_in(x), self.activation))
