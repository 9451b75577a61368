"""What routed cross-attention remembers while decoding: which tokens of the context each centroid picked."""

from __future__ import annotations

from torch import Tensor

from flagformer.ops.cluster_topk import ClusterTopK


class ContextSelectionCache:
    """A context does not change while it is decoded: what the first block of tokens picked stays picked."""

    selections: ClusterTopK | None = None

    def reorder(self, index: Tensor) -> None:
        if self.selections is not None:
            self.selections = ClusterTopK(*(part.index_select(0, index) for part in self.selections))

    def gather_positions(self, source: Tensor) -> None:
        """Nothing of the context stands in places of the row."""

    def size_bytes(self) -> int:
        return 0 if self.selections is None else sum(part.nbytes for part in self.selections)
