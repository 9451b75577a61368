"""Attention kernels. Each declares its capabilities; the fastest one that supports a model is chosen."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from flagformer.flow import AttentionBias

# Names of operators of fused attention, whose outputs selective checkpointing saves.
FUSED_OPERATORS = {
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "flagformer::by_distance",
}


class Kernel(nn.Module, ABC):
    """Contract of the slot `kernel`, built as `(path)`: scale and score pipeline of eager attention."""

    reason = "given"  # why it was chosen, for `explain`

    def prepare(self, bias: AttentionBias, device: torch.device) -> None:
        """Make the form of `bias` that `forward` reads, before the executor runs."""
        bias.dense()

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias) -> Tensor:
        """q [B, H, T, K], k [B, G, P + S, K], v [B, G, P + S, V] -> [B, H, T, V], with P prefix keys."""
