"""What a forward found out, by name."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """The side results of a forward.

    Attributes:
        embeddings: [B, T, D], what the head reads.
        logits: [B, T, V]; None where they were not computed.
        losses: auxiliary losses by name, weighted.
        attention: [B, H, T, seats + S] a self- or cross-attention sublayer, in the order they ran; only
            when asked for.
        hiddens: [B, T, D], the stream before each sublayer and at the end; only when asked for.
    """

    embeddings: Tensor
    logits: Tensor | None = None
    losses: dict[str, list[Tensor]] = field(default_factory=dict)
    attention: tuple[Tensor, ...] = ()
    hiddens: tuple[Tensor, ...] = ()

    @property
    def extra_loss(self) -> Tensor | None:
        """The sum of all auxiliary losses; None where there are none."""
        parts = [value for values in self.losses.values() for value in values]
        return torch.stack([part.float() for part in parts]).sum() if parts else None
