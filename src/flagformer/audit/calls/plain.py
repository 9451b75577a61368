"""This library's calling convention, as far as a model follows it: a bare `ids -> logits` is the least."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from flagformer.audit.calls import (
    CACHE,
    LEFT_CACHE,
    MASK,
    PACKING,
    PREFIX,
    STARTS,
    Calls,
    Session,
    logits_in,
)

ARGUMENTS = {
    MASK: "mask",
    STARTS: "seq_start_pos",
    PACKING: "seq_lens",
    CACHE: "state",
    PREFIX: "prefix_attn_len",
}


class PlainCalls(Calls):
    """`model(ids, mask=, seq_start_pos=, seq_lens=, state=)`, each where its signature has it."""

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__(model)
        start = getattr(model, "init_state", None)
        self.init_state: Callable[..., Any] | None = start if callable(start) else None

    def missing(self, what: str) -> str:
        if what == LEFT_CACHE:
            return self.missing(CACHE) or self.missing(STARTS) or self._state_misses("seq_start_pos")
        argument = ARGUMENTS[what]
        if argument not in self.accepts:
            return f"this model's forward takes no `{argument}`"
        if what != CACHE:
            return ""
        if self.init_state is None:
            return "this model has no `init_state(batch, length)`"
        if not getattr(self.model, "can_cache", True):
            return "this model says that it cannot cache (`can_cache` is False)"
        return ""

    def forward(
        self,
        ids: Tensor,
        *,
        mask: Tensor | None = None,
        starts: Tensor | None = None,
        seq_lens: Sequence[Sequence[int]] | None = None,
        prefix: int = 0,
    ) -> Tensor:
        given = {
            "mask": mask,
            "seq_start_pos": starts,
            "seq_lens": seq_lens,
            "prefix_attn_len": prefix or None,
        }
        return logits_in(
            self.model(ids, **{name: value for name, value in given.items() if value is not None})
        )

    def session(self, batch: int, length: int, starts: Tensor | None = None) -> Session:
        assert self.init_state is not None, "checked by `missing`"
        given = {} if starts is None else {"seq_start_pos": starts}
        return PlainSession(self.model, self.init_state(batch, length, **given))

    def num_tokens(self) -> int | None:
        return getattr(self.model, "num_tokens", None)

    def longest(self) -> int | None:
        """`max_seq_len`, unless the model says that it binds nothing (`absolute_positions` is False)."""
        binds = getattr(self.model, "absolute_positions", True)
        return getattr(self.model, "max_seq_len", None) if binds else None

    def why_not_causal(self) -> str:
        layers = getattr(self.model, "attn_layers", self.model)
        return (
            "not causal: every token may see the whole row"
            if getattr(layers, "causal", True) is False
            else ""
        )

    def _state_misses(self, argument: str) -> str:
        assert self.init_state is not None, "checked by `missing`"
        taken = inspect.signature(self.init_state).parameters
        return "" if argument in taken else f"`init_state` takes no `{argument}`"


class PlainSession(Session):
    """A decode state that the model writes in place."""

    def __init__(self, model: Callable[..., Any], state: Any) -> None:
        self.model, self.state = model, state

    def step(self, ids: Tensor) -> Tensor:
        return logits_in(self.model(ids, state=self.state))

    def reorder(self, index: Tensor) -> bool:
        return self._try("reorder", index)

    def truncate(self, length: int) -> bool:
        return self._try("truncate", length)

    def _try(self, verb: str, value: Any) -> bool:
        act = getattr(self.state, verb, None)
        if act is None:
            return False
        try:
            act(value)
        except NotImplementedError:
            return False
        return True
