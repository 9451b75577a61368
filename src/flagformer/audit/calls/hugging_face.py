"""Hugging Face's convention: `input_ids, attention_mask`, a cache under one of several names, `.logits`."""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flagformer.audit.calls import (
    CACHE,
    FIRST,
    LEFT_CACHE,
    MASK,
    NOTHING,
    STARTS,
    CallInputs,
    Calls,
    Session,
    logits_in,
)

LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx")
# transformers uses `cache` since 5.24, `past_key_values` and `cache_params` before; RWKV uses `state`.
CACHES = ("cache", "past_key_values", "cache_params", "state", "past_buckets_states")
ORIGINAL = "original_max_position_embeddings"


class CacheNames(NamedTuple):
    """The names of a model's cache, as an argument and in the output."""

    argument: str
    output: str


class HuggingFaceCalls(Calls):
    """A model whose forward takes `input_ids` and `attention_mask`."""

    def missing(self, what: str) -> str:
        if what == LEFT_CACHE:
            return "left padding with a cache is handled by `generate` in this convention, not by the forward"
        if what == CACHE:
            names = ", ".join(f"`{name}`" for name in CACHES)
            return "" if self.cache else f"this model takes and returns no cache by any of the names {names}"
        if what == FIRST:
            return "" if "position_ids" in self.accepts else "this model's forward takes no `position_ids`"
        return "" if what in (MASK, STARTS) else super().missing(what)

    def forward(self, ids: Tensor, given: CallInputs = NOTHING) -> Tensor:
        arguments: dict[str, Any] = {"use_cache": False} if "use_cache" in self.accepts else {}
        mask = given.mask
        if given.first:
            arguments["position_ids"] = positions(ids, given.first)
        if given.starts is not None:
            position_ids = torch.arange(ids.shape[1], device=ids.device) - given.starts[:, None]  # [B, T]
            mask = position_ids >= 0
            if "position_ids" in self.accepts:
                arguments["position_ids"] = position_ids.clamp(min=0)
        if mask is not None:
            arguments["attention_mask"] = mask.long()
        return logits_in(self.model(input_ids=ids, **arguments))

    @cached_property
    def cache(self) -> CacheNames | None:
        """Inferred from the output of a call with `use_cache=True`, and from the signature."""
        options = {"use_cache": True} if self._takes("use_cache") else {}
        device = next((p.device for p in getattr(self.model, "parameters", list)()), None)
        with torch.no_grad():
            output = self.model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=device), **options)
        returned = next((name for name in CACHES if getattr(output, name, None) is not None), None)
        if returned is None:
            return None
        names = (name for name in (returned, *CACHES) if name in self.accepts)
        argument = next(names, returned if self._takes(returned) else None)
        return None if argument is None else CacheNames(argument, returned)

    def session(self, batch: int, length: int, given: CallInputs = NOTHING) -> Session:
        assert self.cache is not None, "checked by `missing`"
        return HuggingFaceSession(self, self.cache, given.first)

    def num_tokens(self) -> int | None:
        return getattr(self._config, "vocab_size", None)

    def longest(self) -> int | None:
        """The length in the config; None for rotary positions, which have no limit."""
        return None if self._rotation else self._stated

    def path_change_positions(self) -> tuple[int, ...]:
        """Lengths at which rotary positions change their frequencies (`dynamic`, `longrope`)."""
        if not self._rotation:
            return ()
        by_kind = [self._rotation, *(v for v in self._rotation.values() if isinstance(v, dict))]
        found = {self._stated, getattr(self._config, ORIGINAL, None), *(r.get(ORIGINAL) for r in by_kind)}
        return tuple(sorted(length for length in found if isinstance(length, int) and length > 0))

    def promises(self, check: str) -> str:
        caches = check == "cache" and getattr(self._config, "use_cache", False)
        return "the model's config has `use_cache`" if caches else ""

    def why_not_causal(self) -> str:
        name = type(self.model).__name__
        decodes = getattr(getattr(self.model, "config", None), "is_decoder", False)
        masked = name.endswith("ForMaskedLM") and not decodes
        return "not causal: a masked language model attends to the whole row" if masked else ""

    @property
    def _config(self) -> Any:
        """The config of the text decoder."""
        config = getattr(self.model, "config", None)
        of_text = getattr(config, "get_text_config", None)
        return of_text(decoder=True) if callable(of_text) else config

    @property
    def _rotation(self) -> dict[str, Any]:
        """The rotary parameters of the config; empty without rotary positions."""
        found = getattr(self._config, "rope_parameters", None) or getattr(self._config, "rope_scaling", None)
        return found if isinstance(found, dict) else {}

    @property
    def _stated(self) -> int | None:
        """The longest input that the config states; None for no limit (None or -1 in the config)."""
        found = (getattr(self._config, name, None) for name in LENGTHS)
        return next((length for length in found if isinstance(length, int) and length > 0), None)

    def _takes(self, name: str) -> bool:
        """Whether the forward accepts this keyword, by name or through `**kwargs`."""
        if name in self.accepts:
            return True
        parameters = inspect.signature(getattr(self.model, "forward", self.model)).parameters.values()
        return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


class HuggingFaceSession(Session):
    """Passes the cache of one output to the next call.

    Args:
        first: the position of the first token; positions are passed only if it is not 0.
    """

    def __init__(self, calls: HuggingFaceCalls, names: CacheNames, first: int) -> None:
        self.calls, self.names, self.first = calls, names, first
        self.cache, self.read = None, 0

    def step(self, ids: Tensor) -> Tensor:
        given: dict[str, Any] = {"use_cache": True} if self.calls._takes("use_cache") else {}
        if self.first:
            given["position_ids"] = positions(ids, self.first + self.read)
        if self.cache is not None:
            given[self.names.argument] = self.cache
        output = self.calls.model(input_ids=ids, **given)
        self.cache = getattr(output, self.names.output, None)
        self.read += ids.shape[1]
        if self.cache is None:
            raise NotImplementedError(f"the output has no `{self.names.output}`")
        return logits_in(output)


def positions(ids: Tensor, first: int) -> Tensor:
    """Position ids [B, T] that begin with `first`."""
    return torch.arange(first, first + ids.shape[1], device=ids.device).expand_as(ids)
