"""x-transformers' convention: `mask, seq_start_pos, cache`; intermediates are returned with the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flagformer.audit.calls import (
    CACHE,
    LEFT_CACHE,
    MASK,
    NOTHING,
    PREFIX,
    STARTS,
    CallInputs,
    Calls,
    Session,
    logits_in,
    only_given,
)


class XTransformersCalls(Calls):
    """A `TransformerWrapper` of the x-transformers package."""

    def missing(self, what: str) -> str:
        if what == CACHE:
            if self._causal_by_mask():
                return "a PrefixDecoder does not support a cache"
            able = getattr(self.model, "can_cache_kv", False) and not self.why_not_causal()
            return "" if able else "this model does not support a cache (`can_cache_kv` is False)"
        if what == PREFIX and self._causal_by_mask():
            return ""
        if what == LEFT_CACHE:
            return self.missing(CACHE)
        return "" if what in (MASK, STARTS) else super().missing(what)

    def forward(self, ids: Tensor, given: CallInputs = NOTHING) -> Tensor:
        arguments = {"mask": given.mask, "seq_start_pos": given.starts, "prefix_attn_len": given.prefix}
        return logits_in(self.model(ids, **only_given(arguments)))

    def session(self, batch: int, length: int, given: CallInputs = NOTHING) -> Session:
        return XTransformersSession(self.model, given.starts)

    def num_tokens(self) -> int | None:
        return getattr(self.model, "num_tokens", None)

    def longest(self) -> int | None:
        return getattr(self.model, "max_seq_len", None) or None

    def why_not_causal(self) -> str:
        causal = getattr(getattr(self.model, "attn_layers", None), "causal", True)
        return (
            "" if causal or self._causal_by_mask() else "not causal: every token may attend to the whole row"
        )

    def _causal_by_mask(self) -> bool:
        return type(getattr(self.model, "attn_layers", None)).__name__ == "PrefixDecoder"


class XTransformersSession(Session):
    """Every call receives all ids so far, the cache, and the number of new ids."""

    def __init__(self, model: Callable[..., Any], starts: Tensor | None) -> None:
        self.model, self.starts = model, starts
        self.ids: Tensor | None = None
        self.cache: Any = None

    def step(self, ids: Tensor) -> Tensor:
        given: dict[str, Any] = {} if self.starts is None else {"seq_start_pos": self.starts}
        if self.cache is not None:
            given.update(cache=self.cache, cache_age=ids.shape[1])
        self.ids = ids if self.ids is None else torch.cat((self.ids, ids), dim=1)
        logits, self.cache = self.model(self.ids, return_intermediates=True, **given)
        return logits[:, -ids.shape[1] :]
