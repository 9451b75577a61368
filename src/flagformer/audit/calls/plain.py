"""This library's calling convention, as far as a model supports it; the minimum is `ids -> logits`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flagformer.audit.calls import (
    CACHE,
    LEFT_CACHE,
    MASK,
    NOTHING,
    PACKING,
    PREFIX,
    STARTS,
    WINDOW,
    CallInputs,
    Calls,
    Session,
    logits_in,
    only_given,
)
from flagformer.ops.home import home_of
from flagformer.stack.layers import AttentionLayers
from flagformer.stack.long_rows import long_rows

ARGUMENTS = {
    MASK: "mask",
    STARTS: "seq_start_pos",
    PACKING: "seq_lens",
    CACHE: "state",
    PREFIX: "prefix_attn_len",
    WINDOW: "window",
}
CONTEXT_LENGTH = 5


class PlainCalls(Calls):
    """`model(ids, mask=, seq_start_pos=, seq_lens=, state=, ...)`; each argument if the signature has it.

    Layers with cross-attention get a random context, and those with `condition_dim` a condition, the same
    for every row.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__(model)
        start = getattr(model, "init_state", None)
        self.init_state: Callable[..., Any] | None = start if callable(start) else None
        self.layers: Any = getattr(model, "attn_layers", model)

    def missing(self, what: str) -> str:
        if what == LEFT_CACHE:
            return self.missing(CACHE) or self.missing(STARTS) or self._state_misses("seq_start_pos")
        if what not in ARGUMENTS:
            return super().missing(what)
        argument = ARGUMENTS[what]
        if argument not in self.accepts:
            return f"this model's forward takes no `{argument}`"
        if what == PREFIX and self.layers is not self.model and not self._has_prefix():
            return "only a PrefixDecoder has a prefix"
        if what == WINDOW:
            return self.missing(CACHE) or self._state_misses("window")
        if what != CACHE:
            return ""
        if self.init_state is None:
            return "this model has no `init_state(batch, length)`"
        if not getattr(self.model, "can_cache", True):
            return "this model does not support a cache (`can_cache` is False)"
        return ""

    def forward(self, ids: Tensor, given: CallInputs = NOTHING) -> Tensor:
        arguments = {
            "mask": given.mask,
            "seq_start_pos": given.starts,
            "seq_lens": given.seq_lens,
            "prefix_attn_len": given.prefix,
            "window": given.window,
            "context": self.context(ids),
            "condition": self.condition(ids),
        }
        return logits_in(self.call(ids, **only_given(arguments)))

    def call(self, ids: Tensor, **kwargs: Any) -> Any:
        """Call the model for ids [B, T]."""
        return self.model(ids, **kwargs)

    def session(self, batch: int, length: int, given: CallInputs = NOTHING) -> Session:
        assert self.init_state is not None, "checked by `missing`"
        wanted = only_given({"seq_start_pos": given.starts, "window": given.window})
        return PlainSession(self, self.init_state(batch, length, **wanted))

    def context(self, ids: Tensor) -> Tensor | None:
        """A context [B, 5, D] for layers with `has_cross`, unless memory slots are the context; else None."""
        if not getattr(self.layers, "has_cross", False) or getattr(self.model, "num_memory_slots", False):
            return None
        width = self.layers.dims.dim_context or self.layers.dims.dim
        rows = torch.randn(1, CONTEXT_LENGTH, width, generator=torch.Generator().manual_seed(0))
        return rows.to(*home_of(self.layers)).expand(ids.shape[0], -1, -1)

    def condition(self, ids: Tensor) -> Tensor | None:
        """A condition [B, C], the same for every row, for layers that read one; else None."""
        width = getattr(self.layers, "condition_dim", None)
        if width is None:
            return None
        row = torch.randn(1, width, generator=torch.Generator().manual_seed(0))
        return row.to(*home_of(self.layers)).expand(ids.shape[0], -1)

    def learn(self, ids: Tensor) -> Tensor:
        if not getattr(self.model, "num_memory_slots", False):
            return self.forward(ids)
        given = only_given({"condition": self.condition(ids)})
        _, mems = self.call(ids, return_mems=True, **given)
        return logits_in(self.call(ids, mems=mems, **given))

    def num_tokens(self) -> int | None:
        return getattr(self.model, "num_tokens", None)

    def longest(self) -> int | None:
        """`max_seq_len`, or None if it limits neither positions nor segments."""
        binds = getattr(self.model, "absolute_positions", True) or getattr(
            self.model, "num_memory_slots", False
        )
        return getattr(self.model, "max_seq_len", None) if binds else None

    def long_rows(self) -> tuple[int, ...]:
        """Lengths above those at which this library's layers change their algorithm, up to `max_seq_len`."""
        most = getattr(self.model, "max_seq_len", None)
        if most is None or not isinstance(self.layers, AttentionLayers):
            return ()
        return long_rows(self.layers, most)

    def why_not_causal(self) -> str:
        bidirectional = getattr(self.layers, "causal", True) is False and not self._has_prefix()
        return "not causal: every token may attend to the whole row" if bidirectional else ""

    def _has_prefix(self) -> bool:
        return any(kind.__name__ == "PrefixDecoder" for kind in type(self.layers).__mro__)

    def _state_misses(self, argument: str) -> str:
        assert self.init_state is not None, "checked by `missing`"
        taken = inspect.signature(self.init_state).parameters
        return "" if argument in taken else f"`init_state` takes no `{argument}`"


class PlainSession(Session):
    """A decode state that the model updates in place; a context is passed with the first block."""

    def __init__(self, calls: PlainCalls, state: Any) -> None:
        self.calls, self.state = calls, state
        self.begun = False

    def step(self, ids: Tensor) -> Tensor:
        context = None if self.begun else self.calls.context(ids)
        self.begun = True
        given = {"state": self.state, "context": context, "condition": self.calls.condition(ids)}
        return logits_in(self.calls.call(ids, **only_given(given)))

    def reorder(self, index: Tensor) -> bool:
        return self._try("reorder", index)

    def truncate(self, length: int) -> bool:
        return self._try("truncate", length)

    def mark(self) -> Any:
        mark = getattr(self.state, "mark", None)
        return None if mark is None else mark()

    def rollback(self, mark: Any) -> None:
        self.state.rollback(mark)

    def _try(self, verb: str, value: Any) -> bool:
        act = getattr(self.state, verb, None)
        if act is None:
            return False
        try:
            act(value)
        except NotImplementedError:
            return False
        return True
