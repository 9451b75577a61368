"""Everything a sublayer may know beside its input: one closed record."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from flagformer.flow.collector import OutputCollector
from flagformer.flow.decode_state import DecodeState
from flagformer.flow.key_values import Sight
from flagformer.flow.layout import Layout
from flagformer.flow.pairs import Pairs
from flagformer.flow.terms import Terms


class Carry:
    """What sublayers hand on to later ones: tensors by name.

    Neither a dict nor a dataclass: FSDP2 gives a sharded module copies of those, and what one sublayer wrote
    into its copy no later one would read.
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
class SideInputs:
    """Made once a forward, before the first sublayer runs.

    Attributes:
        pairs: self-attention's pairs, by the seats a sublayer puts in front and its window.
        context_pairs: the same for cross-attention.
        angles: each [1 or B, 1, T, R], what the rotation turns by; None for none.
        context: [B, S, D_context], what cross-attention reads; None when a state holds it.
        state: the decoding session; None in a plain forward.
        collector: auxiliary losses and kept tensors.
        layout: the standing of the tokens.
        later: whether tokens may see later ones.
        carry: what sublayers hand on to later ones, by name.
        step: which execution step runs now (the executor sets it; tied modules run at several).
        memories: [B, M, D], what steps read of the segments before, by execution step.
        keys: the standing of memories and tokens in a row; None without memories.
        memory_angles: what the rotation turns memories by, as `angles`.
        earlier: [B, M, D], the memories of the step that runs, behind its norm; None for none.
        replay: whether this is a forward's second computation, for its gradient: statistics have counted it.
        terms: how self-attention's queries and keys meet, by the window of a sublayer, for cores that look at
            few pairs.
        heads: the heads that the core which runs now serves.
    """

    pairs: dict[Sight, Pairs]
    context_pairs: dict[Sight, Pairs]
    cos_sin: tuple[Tensor, ...] | None
    context: Tensor | None
    state: DecodeState | None
    collector: OutputCollector
    layout: Layout
    bidirectional: bool
    # a function, as a compiler does not trace a class here
    carry: Carry = field(default_factory=lambda: Carry())
    step: int = 0
    mems: dict[int, Tensor] = field(default_factory=dict)
    kv_layout: Layout | None = None
    mem_cos_sin: tuple[Tensor, ...] | None = None
    mem: Tensor | None = None
    recomputing: bool = False
    terms: dict[int | None, Terms] = field(default_factory=dict)
    heads: slice = field(default_factory=lambda: slice(None))
