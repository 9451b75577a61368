"""What a forward is asked to return: checked, gathered while the layers run, and put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flagformer.flow import OutputCollector, Outputs, RecurrentState


@dataclass(frozen=True)
class ReturnOptions:
    """The `return_` arguments of a forward; see `TransformerWrapper.forward`.

    Raises:
        ValueError: for arguments that cannot be said together.
    """

    embeddings: bool
    logits_and_embeddings: bool
    intermediates: bool
    attn: bool
    losses: bool
    mems: bool

    def __post_init__(self) -> None:
        alone = self.embeddings and not self.losses
        several = sum((alone, self.logits_and_embeddings, self.outputs, self.attn)) > 1
        if several or (self.embeddings and self.intermediates):
            raise ValueError(
                "only one `return_` argument can be True, but several are: `return_intermediates` holds all"
            )
        if self.attn and self.mems:
            raise ValueError(
                "`return_attn` and `return_mems` cannot be combined: `return_intermediates` holds both"
            )

    @property
    def outputs(self) -> bool:
        """Whether the whole record is returned."""
        return self.intermediates or self.losses

    def collector(self, weights: Mapping[str, float], steps: Iterable[int]) -> OutputCollector:
        """What gathers it; `steps` are those that memories are made of."""
        maps = ["attn.weights"] if self.attn or self.intermediates else []
        streams = ["stack.stream"] if self.intermediates else []
        return OutputCollector([*maps, *streams], weights, steps if self.mems else ())

    def pack(
        self,
        out: Tensor,
        to_logits: Callable[[Tensor], Tensor],
        collector: OutputCollector,
        left: RecurrentState | None,
    ) -> Any:
        """What the caller gets: of the last layer's `out` [B, T, D], and memories where asked for."""
        if self.embeddings and self.losses:
            return out, Outputs(out, None, collector.losses, mems=left)
        if self.embeddings:
            return _beside(out, left)
        logits = to_logits(out)
        if self.logits_and_embeddings:
            return _beside((logits, out), left)
        maps = tuple(collector.recorded.get("attn.weights", ()))
        if self.attn:
            return logits, list(maps)
        if not self.outputs:
            return _beside(logits, left)
        streams = tuple(collector.recorded.get("stack.stream", ()))
        return logits, Outputs(out, logits, collector.losses, maps, streams, left)


def _beside(result: Any, left: RecurrentState | None) -> Any:
    return result if left is None else (result, left)
