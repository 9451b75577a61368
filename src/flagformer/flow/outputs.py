"""The side outputs of a forward, by name."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from flagformer.flow.recurrent_state import RecurrentState
from flagformer.ops.full_precision import accum_dtype


@dataclass(frozen=True)
class Outputs:
    """The side outputs of a forward.

    Attributes:
        embeddings: [B, T, D], the input of the head.
        logits: [B, T, V]; None if they were not computed.
        losses: weighted auxiliary losses by name: "attn.z" holds one for each attention sublayer that ran.
        attention: [B, H, T, prefix + S], the attention probabilities of each self- or cross-attention
            sublayer in order of execution; only on request.
        hiddens: [B, T, D], the residual stream before each sublayer and at the end; only on request.
        mems: the memories that the next segment's forward reads; only on request.
    """

    embeddings: Tensor
    logits: Tensor | None = None
    losses: dict[str, list[Tensor]] = field(default_factory=dict)
    attention: tuple[Tensor, ...] = ()
    hiddens: tuple[Tensor, ...] = ()
    mems: RecurrentState | None = None

    @property
    def attn_z_loss(self) -> Tensor | None:
        """The weighted sum of the z-losses of attention; None if it was not requested."""
        losses = self.losses.get("attn.z")
        return sum(losses[1:], losses[0]) if losses else None

    @property
    def extra_loss(self) -> Tensor | None:
        """The sum of all auxiliary losses; None if there are none."""
        losses = [value for values in self.losses.values() for value in values]
        terms = [loss.to(accum_dtype(loss.dtype)) for loss in losses]
        return sum(terms[1:], terms[0]) if terms else None
