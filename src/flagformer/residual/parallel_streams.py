"""The residual stream of sublayers that run in parallel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from flagformer.residual import Residual


class ParallelStream(NamedTuple):
    """The stream that the sublayers of a group read, and their outputs.

    Attributes:
        stream: the stream of the inner residual, before the group.
        normed: [B, T, D], the norm of its input, where the sublayers share it; None before the first.
        total: [B, T, D], the sum of the outputs so far; None before the first.
    """

    stream: Any
    normed: Tensor | None = None
    total: Tensor | None = None


class ParallelStreams(Residual):
    """Sublayers of a group read the same stream; the sum of their outputs is written once.

    The inner residual is built for the number of groups: for it a group is one sublayer.

    Args:
        inner: any residual.
        groups: the index of the group of each sublayer module.
        is_last: whether a module is the last of its group.
    """

    def __init__(self, inner: Residual, groups: Sequence[int], is_last: Sequence[bool]) -> None:
        super().__init__()
        self.inner, self.groups, self.is_last = inner, tuple(groups), tuple(is_last)

    def open(self, x: Tensor) -> ParallelStream:
        return ParallelStream(self.inner.open(x))

    def read(self, h: ParallelStream, module: int) -> Tensor:
        return self.inner.read(h.stream, self.groups[module])

    def write(self, h: ParallelStream, out: Tensor, module: int) -> ParallelStream:
        total = out if h.total is None else h.total + out
        if not self.is_last[module]:
            return h._replace(total=total)
        return ParallelStream(self.inner.write(h.stream, total, self.groups[module]))

    def apply_norm(self, h: ParallelStream, norm: Callable[[Tensor], Tensor]) -> ParallelStream:
        """Return the stream after a group with the norm of its input; within a group the stream itself."""
        return h if h.total is not None else ParallelStream(self.inner.apply_norm(h.stream, norm))

    def close(self, h: ParallelStream, norm: Callable[[Tensor], Tensor]) -> Tensor:
        return self.inner.close(h.stream, norm)
