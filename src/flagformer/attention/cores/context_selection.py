"""The cache of routed cross-attention: the context tokens that each centroid selects."""

from __future__ import annotations

from torch import Tensor

from flagformer.flow import ContextCache
from flagformer.ops.cluster_topk import ClusterTopK


class ContextSelectionCache(ContextCache):
    """Selections of the first block of tokens, for the whole decoding session: the context is constant."""

    selections: ClusterTopK | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {} if self.selections is None else self.selections._asdict()

    def replace(self, tensors: dict[str, Tensor]) -> None:
        self.selections = ClusterTopK(**tensors) if tensors else None
