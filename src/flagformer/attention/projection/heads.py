"""Heads: as many key/value heads as queries (1706.03762), fewer (2305.13245), or one (1911.02150)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

from torch import Tensor, nn

from flagformer.attention.projection import Projection
from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.flow import Dims
from flagformer.ops.attend import split_heads
from flagformer.ops.identity import identity
from flagformer.ops.l2_normalize import l2_normalize
from flagformer.ops.linear import PartialBias

AttnBias = Annotated[bool, Flag("attn_bias", "biases in all projections of attention")]
QKVBias = Annotated[
    bool | None,
    Flag(
        "attn_qkv_bias",
        "biases in the projections to q, k and v; None: as `attn_bias`",
        example=True,
        neutral=True,
    ),
]
Clip = Annotated[
    float | None,
    Flag(
        "attn_clip_qkv",
        "queries, keys and values are clamped to +-this number after their projection; None: no limit",
        ge=1e-6,
        example=0.1,
    ),
]
KBias = Annotated[
    bool,
    Flag(
        "attn_k_bias",
        "biases of keys, where queries and values have them; a softmax cancels them (Whisper: none)",
        example=False,
        example_with={"attn_qkv_bias": True},
    ),
]


def has_bias(bias: bool, part: bool | None) -> bool:
    """`attn_bias`, unless the flag of a part is set."""
    return bias if part is None else part


def _sizes(inputs: int, parts: Sequence[tuple[int, bool]]) -> tuple[int, int, bool]:
    """Inputs, outputs and bias of the linear for outputs that are (a width, whether it has biases)."""
    return inputs, sum(width for width, _ in parts), all(biased for _, biased in parts)


def _rest_of_bias(inputs: int, parts: Sequence[tuple[int, bool]]) -> Callable[[Tensor], Tensor]:
    """The biases of some of the outputs, which a linear cannot have."""
    return PartialBias(inputs, parts) if len({biased for _, biased in parts}) > 1 else identity


class Heads(Projection):
    """H query heads over G key/value heads; each of these serves H / G consecutive query heads."""

    def __init__(
        self,
        dims: Dims,
        cross: bool,
        shared: bool,
        groups: int,
        bias: bool = False,
        clip: float | None = None,
        k_bias: bool = True,
    ) -> None:
        super().__init__()
        self.clip = clip
        if not (bias or k_bias):
            text = "`attn_k_bias` has no effect here, because queries and values have no biases; set"
            raise FlagError([Finding("attn_k_bias", f"{text} `attn_qkv_bias` too")])
        self.heads, self.groups, self.width = dims.heads, groups, dims.dim_head
        self.shared_kv = shared
        self.has_k_bias = bias and k_bias
        entries = [groups] if shared else [groups, groups]
        widths = [dims.dim_head, dims.dim_value][: len(entries)]
        queries = (dims.heads * dims.dim_head, bias)
        numbers = [(groups * width, bias) for width in widths]
        numbers[0] = (groups * dims.dim_head, self.has_k_bias)
        if cross:
            self.to_q = nn.Linear(*_sizes(dims.dim, [queries]))
            self.to_kv = nn.Linear(*_sizes(dims.dim_context or dims.dim, numbers))
            self.to_kv_bias = _rest_of_bias(dims.dim_context or dims.dim, numbers)
            self.of_x = split_heads([dims.heads], [dims.dim_head])
            self.of_keys = split_heads(entries, widths)
        else:
            self.to_qkv = nn.Linear(*_sizes(dims.dim, [queries, *numbers]))
            self.to_qkv_bias = _rest_of_bias(dims.dim, [queries, *numbers])
            self.of_x = split_heads([dims.heads, *entries], [dims.dim_head, *widths])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, *entries = self.of_x(self._clipped(self.to_qkv_bias(self.to_qkv(x))))
        return q, entries[0], entries[-1]  # k and v, one and the same where they are shared

    def queries(self, x: Tensor) -> Tensor:
        return self.of_x(self._clipped(self.to_q(x)))[0]

    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        entries = self.of_keys(self._clipped(self.to_kv_bias(self.to_kv(context))))
        return entries[0], entries[-1]

    def _clipped(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)


@component("projection", paper="arXiv:1706.03762, section 3.2.2")
class MultiHead(Heads):
    """Every head has keys and values of its own."""

    def __init__(
        self,
        dims: Dims,
        cross: bool,
        shared: bool,
        *,
        bias: AttnBias = False,
        qkv_bias: QKVBias = None,
        clip: Clip = None,
        k_bias: KBias = True,
    ) -> None:
        super().__init__(dims, cross, shared, dims.heads, has_bias(bias, qkv_bias), clip, k_bias)


@component("projection", select="attn_kv_heads", paper="arXiv:2305.13245")
class GroupedQuery(Heads):
    """Grouped-query attention: consecutive heads share keys and values."""

    def __init__(
        self,
        dims: Dims,
        cross: bool,
        shared: bool,
        *,
        groups: Annotated[int | None, Flag("attn_kv_heads", "key/value heads G, a divisor of `heads`", ge=1)],
        bias: AttnBias = False,
        qkv_bias: QKVBias = None,
        clip: Clip = None,
        k_bias: KBias = True,
    ) -> None:
        assert groups is not None
        if dims.heads % groups:
            text = f"`attn_kv_heads` must divide `heads` = {dims.heads}, but is {groups}"
            raise FlagError([Finding("attn_kv_heads", text)])
        super().__init__(dims, cross, shared, groups, has_bias(bias, qkv_bias), clip, k_bias)


@component("projection", select="attn_one_kv_head", paper="arXiv:1911.02150")
class MultiQuery(Heads):
    """Multi-query attention: all heads share one key and value head."""

    def __init__(
        self,
        dims: Dims,
        cross: bool,
        shared: bool,
        *,
        bias: AttnBias = False,
        qkv_bias: QKVBias = None,
        clip: Clip = None,
        k_bias: KBias = True,
    ) -> None:
        super().__init__(dims, cross, shared, 1, has_bias(bias, qkv_bias), clip, k_bias)


@component(
    "projection",
    select="shared_qk",
    paper="arXiv:2001.04451, section 2",
    kind="a",
    lacks={"own_keys": "queries would be what a token is found by and what it gives"},
)
class SharedQK(Projection):
    """Keys are the queries, of unit length; a token sees itself only where it sees nothing else.

    With a rotation each is turned by its own position as ever.
    """

    shared_qk = True

    def __init__(
        self, dims: Dims, cross: bool, shared: bool, *, bias: AttnBias = False, qkv_bias: QKVBias = None
    ) -> None:
        super().__init__()
        self.groups = dims.heads
        width = dims.heads * (dims.dim_head + dims.dim_value)
        self.to_qv = nn.Linear(dims.dim, width, bias=has_bias(bias, qkv_bias))
        self.of_x = split_heads([dims.heads, dims.heads], [dims.dim_head, dims.dim_value])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, v = self.of_x(self.to_qv(x))
        return q, l2_normalize(q), v

    def queries(self, x: Tensor) -> Tensor:
        raise NotImplementedError("a context has no queries")

    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("a context has no queries")


@component(
    "projection",
    select="context_shared_qk",
    paper="arXiv:2001.04451, section 2",
    kind="c",
    lacks={"own_keys": "keys would be queries and values at once"},
)
class ContextSharedQK(Projection):
    """Keys of cross-attention are made of the context as queries are of the tokens, by the same weights."""

    def __init__(
        self, dims: Dims, cross: bool, shared: bool, *, bias: AttnBias = False, qkv_bias: QKVBias = None
    ) -> None:
        super().__init__()
        if dims.dim_context not in (None, dims.dim):
            text = (
                "`context_shared_qk` and `cross_attn_dim_context` cannot be combined, because the same"
                f" weights read tokens of {dims.dim} numbers and a context of {dims.dim_context}; leave one"
                " of both out"
            )
            raise FlagError([Finding("context_shared_qk", text)])
        self.groups = dims.heads
        biased = has_bias(bias, qkv_bias)
        self.to_q = nn.Linear(dims.dim, dims.heads * dims.dim_head, bias=biased)
        self.to_v = nn.Linear(dims.dim, dims.heads * dims.dim_value, bias=biased)
        self.of_q = split_heads([dims.heads], [dims.dim_head])
        self.of_v = split_heads([dims.heads], [dims.dim_value])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError("only a context is read so")

    def queries(self, x: Tensor) -> Tensor:
        return self.of_q(self.to_q(x))[0]

    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.queries(context), self.of_v(self.to_v(context))[0]
