"""The sizes, abilities and components of a language model."""

from __future__ import annotations

from typing import Any

from torch import nn

from flagformer.attention.cores.kmeans import update_kmeans
from flagformer.embedding.stage import EmbeddingStage
from flagformer.flags import Resolved
from flagformer.flags.model_flags import MODEL_SLOTS
from flagformer.memory import Recurrence
from flagformer.position import AbsolutePosition
from flagformer.sessions.sessions import Sessions


class LanguageModel(Sessions):
    """Base of `TransformerWrapper` that describes it.

    Attributes:
        num_tokens: size V of the vocabulary.
        attn_z_loss_weight: weight of the z-loss of attention in training; 0: none.
        resolved: the components of the slots of the model.
    """

    num_tokens: int
    attn_z_loss_weight: float
    resolved: Resolved
    embedding: EmbeddingStage
    pos_emb: AbsolutePosition
    recurrence: Recurrence
    head: nn.Module

    def _one(self, slot: str) -> Any:
        return self.resolved.one(slot)

    @property
    def can_cache(self) -> bool:
        return self.attn_layers.can_cache

    @property
    def has_losses(self) -> bool:
        """Whether training forwards compute auxiliary losses, which `return_losses` returns."""
        in_layers = any(getattr(module, "has_aux_loss", False) for module in self.attn_layers.modules())
        return in_layers or bool(self.attn_z_loss_weight)

    def update_kmeans(self) -> None:
        """Update the centroids of routing attention; call it after each optimizer step, on all ranks."""
        update_kmeans(self)

    @property
    def logits_dim(self) -> int:
        """Number of logits of a token."""
        return getattr(self.head, "logits_dim", None) or self.num_tokens

    @property
    def max_mem_len(self) -> int:
        """Maximum number of tokens of earlier segments in the result of `return_mems`."""
        return self.recurrence.most

    @property
    def num_memory_slots(self) -> int:
        """Number of memory slots of a row."""
        return self.slots.count

    @property
    def absolute_positions(self) -> bool:
        """Whether positions are limited to `max_seq_len` by a table."""
        return self.pos_emb.limit is not None

    def num_params(self, *, embedding: bool = True) -> int:
        """Number of parameters; without token and position embeddings under `embedding=False`."""
        total = sum(parameter.numel() for parameter in self.parameters())
        tables = (self.token_emb, self.pos_emb, self.embedding.kinds)
        outside = [parameter for table in tables for parameter in table.parameters()]
        return total if embedding else total - sum(parameter.numel() for parameter in outside)

    def explain(self) -> str:
        """Describe the components, slot by slot, and the reason for each kernel."""
        slots = [f"  {slot}: {self._one(slot).describe()}" for slot in MODEL_SLOTS]
        title = f"TransformerWrapper: {self.num_params():,} parameters, vocabulary {self.num_tokens}"
        return "\n".join([title, *slots, self.attn_layers.explain()])
