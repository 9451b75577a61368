"""What routed cross-attention remembers while decoding: which tokens of the context each centroid picked."""

from __future__ import annotations

from torch import Tensor

from flagformer.ops.picks import Picks


class PickedContext:
    """A context does not change while it is decoded: what the first block of tokens picked stays picked."""

    picks: Picks | None = None

    def reorder(self, index: Tensor) -> None:
        if self.picks is not None:
            self.picks = Picks(*(part.index_select(0, index) for part in self.picks))

    def move(self, source: Tensor) -> None:
        """Nothing of the context stands in places of the row."""

    def size_bytes(self) -> int:
        return 0 if self.picks is None else sum(part.nbytes for part in self.picks)
