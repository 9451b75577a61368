"""The `return_` arguments of a forward: check them, collect outputs, and pack the result."""

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
        ValueError: for arguments that cannot be combined.
    """

    embeddings: bool
    logits_and_embeddings: bool
    intermediates: bool
    attn: bool
    losses: bool
    mems: bool

    def __post_init__(self) -> None:
        only_embeddings = self.embeddings and not self.losses
        several = sum((only_embeddings, self.logits_and_embeddings, self.outputs, self.attn)) > 1
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
        """Whether `Outputs` are returned."""
        return self.intermediates or self.losses

    def collector(
        self, weights: Mapping[str, float], steps: Iterable[int], mixed: Iterable[int]
    ) -> OutputCollector:
        """Return a collector for the requested outputs.

        Args:
            steps: the recurrent steps.
            mixed: the steps whose hidden states `layer_mix` reads.
        """
        maps = ["attn.weights"] if self.attn or self.intermediates else []
        hiddens = ["stack.stream"] if self.intermediates else []
        return OutputCollector([*maps, *hiddens], weights, {*mixed, *(steps if self.mems else ())})

    def pack(
        self,
        out: Tensor,
        to_logits: Callable[[Tensor], Tensor],
        collector: OutputCollector,
        mems: RecurrentState | None,
    ) -> Any:
        """Return the result of the forward, from the last layer's `out` [B, T, D] and requested memories."""
        if self.embeddings and self.losses:
            return out, Outputs(out, None, collector.losses, mems=mems)
        if self.embeddings:
            return _with_mems(out, mems)
        logits = to_logits(out)
        if self.logits_and_embeddings:
            return _with_mems((logits, out), mems)
        maps = tuple(collector.recorded.get("attn.weights", ()))
        if self.attn:
            return logits, list(maps)
        if not self.outputs:
            return _with_mems(logits, mems)
        hiddens = tuple(collector.recorded.get("stack.stream", ()))
        return logits, Outputs(out, logits, collector.losses, maps, hiddens, mems)


def _with_mems(result: Any, mems: RecurrentState | None) -> Any:
    return result if mems is None else (result, mems)
