"""What reads tokens and says the logits of the next one, with a decode state or without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from flagformer.generation.prompts import Prompts


class NextTokenLogits:
    """All tokens so far [B, n] -> logits of the next [B, V].

    Args:
        model: a `CausalModel`.
        prompts: the left-padded rows that the tokens begin with.
        room: how many tokens a decode state shall hold; 0: no state, every step reads the whole row.
        window: every token sees at most the last so many.
        side: further keywords of the forward, which a state keeps (context, prefix_attn_len, prepend_embeds).
        embed_ids: [B, all tokens] for each name, ids beside the tokens.
    """

    def __init__(
        self,
        model: Any,
        prompts: Prompts,
        room: int,
        window: int | None,
        side: Mapping[str, Any],
        embed_ids: Mapping[str, Tensor],
    ) -> None:
        self.model, self.starts, self.window = model, prompts.starts, window
        self.side, self.embed_ids = dict(side), embed_ids
        self.state = self._session(len(prompts.ids), room) if room else None

    def _session(self, rows: int, room: int) -> Any:
        front = self.side.get("prepend_embeds")
        more = {} if front is None else {"num_prepend_embeds": front.shape[1]}
        return self.model.init_state(rows, room, window=self.window, seq_start_pos=self.starts, **more)

    def __call__(self, tokens: Tensor) -> Tensor:
        state = self.state
        first = 0 if state is None else state.length
        how = dict(self.side) if first == 0 else {}
        if self.embed_ids:
            end = tokens.shape[1]
            how["embed_ids"] = {name: ids[:, first:end] for name, ids in self.embed_ids.items()}
        if state is None:
            how |= {"seq_start_pos": self.starts, "window": self.window}
        else:
            how["state"] = state
        embeddings = self.model(tokens[:, first:], return_embeddings=True, **how)
        logits: Tensor = self.model.to_logits(embeddings[:, -1:])
        return logits[:, 0]

    def reorder(self, index: Tensor) -> None:
        """Row i becomes what row index[i] was; both must belong to one prompt."""
        if self.state is not None:
            self.state.reorder(index)
