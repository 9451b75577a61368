"""The logits of the next token, with a decode state or without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flagformer.generation.prompts import Prompts


class NextTokenLogits:
    """All tokens so far [B, n] -> logits of the next [B, V].

    Args:
        model: a `CausalModel`.
        prompts: the left-padded rows with which the tokens begin.
        cache_length: capacity of the decode state in tokens; 0: no state, every step reads the whole row.
        window: every token attends to at most this many of the last tokens.
        kwargs: further arguments of the first forward (context, prefix_attn_len, prepend_embeds), which a
            state stores.
        embed_ids: [B, all tokens] for each name, ids that accompany the tokens.
        condition: [B, C] or [B, all tokens, C], the condition of the rows or of the tokens; None for none.
    """

    def __init__(
        self,
        model: Any,
        prompts: Prompts,
        cache_length: int,
        window: int | None,
        kwargs: Mapping[str, Any],
        embed_ids: Mapping[str, Tensor],
        condition: Tensor | None = None,
    ) -> None:
        self.model, self.starts, self.window = model, prompts.starts, window
        self.kwargs, self.embed_ids, self.batch = dict(kwargs), dict(embed_ids), len(prompts.ids)
        self.condition = condition
        self.state = self._init_state(self.batch, cache_length) if cache_length else None

    def _init_state(self, batch: int, length: int) -> Any:
        prepended = self.kwargs.get("prepend_embeds")
        extra = {} if prepended is None else {"num_prepend_embeds": prepended.shape[1]}
        return self.model.init_state(batch, length, window=self.window, seq_start_pos=self.starts, **extra)

    def __call__(self, tokens: Tensor) -> Tensor:
        state = self.state
        start = 0 if state is None else state.length
        kwargs = dict(self.kwargs) if start == 0 else {}
        if self.embed_ids:
            end = tokens.shape[1]
            kwargs["embed_ids"] = {name: ids[:, start:end] for name, ids in self.embed_ids.items()}
        if self.condition is not None:
            each = self.condition.dim() == 3
            kwargs["condition"] = self.condition[:, start : tokens.shape[1]] if each else self.condition
        if state is None:
            kwargs |= {"seq_start_pos": self.starts, "window": self.window}
        else:
            kwargs["state"] = state
        embeddings = self.model(tokens[:, start:], return_embeddings=True, **kwargs)
        logits: Tensor = self.model.to_logits(embeddings[:, -1:])
        return logits[:, 0]

    def repeat(self, times: int) -> None:
        """Continue each row `times` times: row i becomes the rows i * times ... (i + 1) * times - 1."""
        batch = self.batch
        self.batch *= times
        self.starts = repeat_rows(self.starts, batch, times)
        self.embed_ids = {name: repeat_rows(ids, batch, times) for name, ids in self.embed_ids.items()}
        self.condition = repeat_rows(self.condition, batch, times)
        if self.state is None:
            self.kwargs = {name: repeat_rows(value, batch, times) for name, value in self.kwargs.items()}
        else:
            self.state = self.state.select(torch.arange(batch).repeat_interleave(times))

    def reorder(self, index: Tensor) -> None:
        """Replace row i by row index[i]; both must belong to one prompt."""
        if self.state is not None:
            self.state.reorder(index)


def repeat_rows(value: Any, batch: int, times: int) -> Any:
    """Repeat each row of a tensor [B, ...]; return other values unchanged."""
    if isinstance(value, Tensor) and value.dim() and len(value) == batch:
        return value.repeat_interleave(times, 0)
    return value
