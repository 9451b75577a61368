"""Hugging Face's convention: `input_ids, attention_mask, past_key_values`, logits at `.logits`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagformer.audit.calls import CACHE, LEFT_CACHE, MASK, NOTHING, STARTS, Calls, Given, Session, logits_in

LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx")


class HuggingFaceCalls(Calls):
    """A model whose forward takes `input_ids` and `attention_mask`."""

    def missing(self, what: str) -> str:
        if what == LEFT_CACHE:
            return "left padding with a cache is set up by `generate` here, not by the forward"
        if what == CACHE:
            return (
                "" if "past_key_values" in self.accepts else "this model's forward takes no `past_key_values`"
            )
        return "" if what in (MASK, STARTS) else super().missing(what)

    def forward(self, ids: Tensor, given: Given = NOTHING) -> Tensor:
        arguments: dict[str, Any] = {"use_cache": False} if "use_cache" in self.accepts else {}
        mask = given.mask
        if given.starts is not None:
            places = torch.arange(ids.shape[1], device=ids.device) - given.starts[:, None]  # [B, T]
            mask = places >= 0
            if "position_ids" in self.accepts:
                arguments["position_ids"] = places.clamp(min=0)
        if mask is not None:
            arguments["attention_mask"] = mask.long()
        return logits_in(self.model(input_ids=ids, **arguments))

    def session(
        self, batch: int, length: int, starts: Tensor | None = None, window: int | None = None
    ) -> Session:
        return HuggingFaceSession(self.model)

    def num_tokens(self) -> int | None:
        return getattr(getattr(self.model, "config", None), "vocab_size", None)

    def longest(self) -> int | None:
        config = getattr(self.model, "config", None)
        found = (getattr(config, name, None) for name in LENGTHS)
        return next((length for length in found if isinstance(length, int)), None)

    def why_not_causal(self) -> str:
        name = type(self.model).__name__
        decodes = getattr(getattr(self.model, "config", None), "is_decoder", False)
        masked = name.endswith("ForMaskedLM") and not decodes
        return "not causal: a masked language model sees the whole row" if masked else ""


class HuggingFaceSession(Session):
    """Hands the `past_key_values` of one output to the next call."""

    def __init__(self, model: Any) -> None:
        self.model, self.past = model, None

    def step(self, ids: Tensor) -> Tensor:
        output = self.model(input_ids=ids, past_key_values=self.past, use_cache=True)
        self.past = output.past_key_values
        if self.past is None:
            raise NotImplementedError("the output has no `past_key_values`")
        return output.logits
