"""The cache of routed cross-attention: the context tokens that each centroid selects."""

from __future__ import annotations

from torch import Tensor

from flagformer.ops.cluster_topk import ClusterTopK


class ContextSelectionCache:
    """Selections of the first block of tokens, for the whole decoding session: the context is constant."""

    selections: ClusterTopK | None = None

    def reorder(self, index: Tensor) -> None:
        if self.selections is not None:
            self.selections = ClusterTopK(*(part.index_select(0, index) for part in self.selections))

    def gather_positions(self, source: Tensor) -> None:
        """Do nothing: token positions do not affect the context."""

    def size_bytes(self) -> int:
        return 0 if self.selections is None else sum(part.nbytes for part in self.selections)
