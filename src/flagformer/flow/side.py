"""The inputs of a sublayer in addition to its tokens: one record."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from flagformer.flow.attention_bias import AttentionBias
from flagformer.flow.collector import OutputCollector
from flagformer.flow.decode_state import DecodeState
from flagformer.flow.layout import Layout


class Carry:
    """Tensors by name that a sublayer passes to later ones.

    This is neither a dict nor a dataclass, of which FSDP2 passes copies to sharded modules: later sublayers
    would not read the tensors written to a copy.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def __getitem__(self, name: str) -> Tensor:
        return self._held[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        self._held[name] = value

    def names(self) -> tuple[str, ...]:
        return tuple(self._held)


@dataclass
class SegmentMemory:
    """Transformer-XL memories of a forward.

    Attributes:
        hiddens: [B, M, D], inputs of earlier segments, by execution step; `side.bias.kv` is the layout of
            memories and tokens together.
        cos_sin: those of the memories' positions, as in `SideInputs`.
        mem: [B, M, D], the memories of the current step, after its norm; None: it reads none.
    """

    hiddens: dict[int, Tensor]
    cos_sin: tuple[tuple[Tensor, ...] | None, ...]
    mem: Tensor | None = None


@dataclass
class SideInputs:
    """Inputs of sublayers in addition to x; made once per forward, before the first sublayer runs.

    Attributes:
        bias: mask and position bias of self-attention.
        context_bias: mask of cross-attention; None without cross-attention.
        cos_sin: cos and sin of each rotation of the stack, [1 or B, 1, T, R]; None for no rotation.
        context: [B, S, D_context] for cross-attention; None if the decode state holds it.
        state: the decode state; None in a plain forward.
        collector: auxiliary losses and requested tensors.
        layout: layout of the tokens.
        carry: tensors that sublayers pass to later ones, by name.
        step: the current execution step (the executor sets it; tied modules run at several).
        memory: Transformer-XL memories; None: there are none.
        cached_cos_sin: `cos_sin` of all tokens of the decode state and of x, for keys that are rotated when
            they are read from the cache; empty if there are none.
        token_ids: [1 or B, T] long, the ids of the tokens, -1 for memory tokens and prepended embeddings;
            None for layers that are called with vectors.
        condition: [B, 1 or T, C], the condition of the row or of each token, zeros for memory tokens and
            prepended embeddings in the second form; None: there is none.
        recomputing: whether a sublayer is recomputed for the backward; statistics count the first run only.
    """

    bias: AttentionBias
    context_bias: AttentionBias | None
    cos_sin: tuple[tuple[Tensor, ...] | None, ...]
    context: Tensor | None
    state: DecodeState | None
    collector: OutputCollector
    layout: Layout
    # a function, as compilers do not trace a class here
    carry: Carry = field(default_factory=lambda: Carry())
    step: int = 0
    memory: SegmentMemory | None = None
    cached_cos_sin: tuple[tuple[Tensor, ...] | None, ...] = ()
    token_ids: Tensor | None = None
    condition: Tensor | None = None
    recomputing: bool = False
