"""The calling convention of models of vectors, such as ContinuousTransformerWrapper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flagformer.audit.calls.plain import PlainCalls
from flagformer.ops.home import home_of

COUNT = 16  # vectors of an audit, and numbers that are made of an output


class VectorCalls(PlainCalls):
    """`model(x, ...)` with vectors x [B, T, C]: an id of an audit is one random vector, and a logit a random
    linear function of an output.

    Args:
        model: a model with an attribute `dim_in`, the width C.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__(model)
        self.inputs = self._random(COUNT, model.dim_in)  # type: ignore[attr-defined]

    def call(self, ids: Tensor, **kwargs: Any) -> Any:
        result = self.model(self.inputs.to(*home_of(self.layers))[ids], **kwargs)
        outputs, *others = result if isinstance(result, tuple) else (result,)
        width = outputs.shape[-1]
        logits = outputs @ self._random(width, COUNT).to(outputs) / width**0.5
        return (logits, *others)

    def num_tokens(self) -> int:
        return COUNT

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))
