"""The largest error of several comparisons, and the earliest position with an error above the tolerance."""

from __future__ import annotations

import math

from torch import Tensor

from flagformer.audit.tolerance import Tolerance


class MaxError:
    """Accumulates comparisons of logits.

    Args:
        tolerance: the largest error allowed, relative to `scale`.
        scale: the largest logit of the reference.
    """

    def __init__(self, tolerance: Tolerance, scale: float) -> None:
        self.tolerance, self.scale = tolerance, scale
        self.deviation = 0.0
        self.position: int | None = None
        self.words = ""
        self.compared = 0

    def compare(self, got: Tensor, wanted: Tensor, words: str, *, start: int = 0) -> None:
        """Compare logits `[..., T, V]` whose first position is `start`; `words` describe a failure."""
        if got.shape != wanted.shape:
            raise RuntimeError(f"logits have shape {list(got.shape)}, not {list(wanted.shape)} ({words})")
        if got.numel() == 0:
            return
        self.compared += got.numel()
        gap = (got.double() - wanted.double()).abs()
        gap = gap.masked_fill(got == wanted, 0.0).nan_to_num(nan=math.inf, posinf=math.inf)
        by_position = gap.amax(dim=(*range(gap.dim() - 2), -1)) / self.scale
        self.deviation = max(self.deviation, by_position.max().item())
        beyond = (by_position > self.tolerance.value).nonzero()
        if len(beyond) == 0:
            return
        position = start + int(beyond[0])
        if self.position is None or position < self.position:
            self.position, self.words = position, words

    @property
    def failed(self) -> bool:
        return self.deviation > self.tolerance.value
