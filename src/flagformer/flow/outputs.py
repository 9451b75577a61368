"""What a forward found out, by name."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from flagformer.flow.recurrent_state import RecurrentState
from flagformer.ops.full_precision import accum_dtype


@dataclass(frozen=True)
class Outputs:
    """The side results of a forward.

    Attributes:
        embeddings: [B, T, D], what the head reads.
        logits: [B, T, V]; None where they were not computed.
        losses: auxiliary losses by name, weighted: "attn.z" holds one for each attention sublayer that ran.
        attention: [B, H, T, seats + S] a self- or cross-attention sublayer, in the order they ran; only
            when asked for.
        hiddens: [B, T, D], the stream before each sublayer and at the end; only when asked for.
        mems: what the next segment's forward reads; only when asked for.
    """

    embeddings: Tensor
    logits: Tensor | None = None
    losses: dict[str, list[Tensor]] = field(default_factory=dict)
    attention: tuple[Tensor, ...] = ()
    hiddens: tuple[Tensor, ...] = ()
    mems: RecurrentState | None = None

    @property
    def attn_z_loss(self) -> Tensor | None:
        """The z-loss of all attention, weighted; None where nobody asked for it."""
        parts = self.losses.get("attn.z")
        return sum(parts[1:], parts[0]) if parts else None

    @property
    def extra_loss(self) -> Tensor | None:
        """The sum of all auxiliary losses; None where there are none."""
        parts = [value for values in self.losses.values() for value in values]
        wider = [part.to(accum_dtype(part.dtype)) for part in parts]
        return sum(wider[1:], wider[0]) if wider else None
