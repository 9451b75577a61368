"""Base of wrappers around one TransformerWrapper."""

from __future__ import annotations

from flagformer.attention.cores.kmeans import update_kmeans
from flagformer.stack.layers import AttentionLayers
from flagformer.stack.whole import Whole
from flagformer.storage.saved import Saved
from flagformer.wrappers.transformer import TransformerWrapper


class Delegating(Whole, Saved):
    """A wrapper whose sizes and abilities are those of one TransformerWrapper in it.

    Attributes:
        inner: the name of the attribute that holds it.
    """

    inner: str

    @property
    def _inner(self) -> TransformerWrapper:
        found: TransformerWrapper = getattr(self, self.inner)
        return found

    @property
    def attn_layers(self) -> AttentionLayers:
        """The layers."""
        return self._inner.attn_layers

    @property
    def max_seq_len(self) -> int:
        """Size of a learned position table."""
        return self._inner.max_seq_len

    @property
    def absolute_positions(self) -> bool:
        """Whether positions are limited to `max_seq_len` by a table."""
        return self._inner.absolute_positions

    @property
    def has_losses(self) -> bool:
        """Whether training forwards compute auxiliary losses, which `return_losses` returns."""
        return self._inner.has_losses

    def num_params(self, *, embedding: bool = True) -> int:
        """Number of parameters; without the embeddings of tokens and positions under `embedding=False`."""
        outside = self._inner.num_params() - self._inner.num_params(embedding=False)
        return sum(parameter.numel() for parameter in self.parameters()) - (0 if embedding else outside)

    def update_kmeans(self) -> None:
        """Update the centroids of routing attention; call it after each optimizer step, on all ranks."""
        update_kmeans(self)
