"""Everything a sublayer may know beside its input: one closed record."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flagformer.flow.decode_state import DecodeState
from flagformer.flow.pairs import Pairs
from flagformer.flow.tape import Tape


@dataclass
class SideInputs:
    """Made once a forward, before the first sublayer runs.

    Attributes:
        pairs: self-attention's pairs, by the number of seats a sublayer puts in front.
        context_pairs: the same for cross-attention.
        angles: two of [1 or B, 1, T, R], what the rotation turns by; None for none.
        context: [B, S, D_context], what cross-attention reads; None when a state holds it.
        state: the decoding session; None in a plain forward.
        tape: auxiliary losses and kept tensors.
        step: which execution step runs now (the executor sets it; tied modules run at several).
    """

    pairs: dict[int, Pairs]
    context_pairs: dict[int, Pairs]
    angles: tuple[Tensor, Tensor] | None
    context: Tensor | None
    state: DecodeState | None
    tape: Tape
    step: int = 0
