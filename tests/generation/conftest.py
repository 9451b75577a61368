"""A minimal causal language model with the decode contract: only the loop is under test."""

import pytest
import torch
from torch import Tensor, nn


class StandInState:
    def __init__(self, batch: int, length: int, dim: int, window: int | None, starts: Tensor | None) -> None:
        self.seen = torch.zeros(batch, length, dim)
        self.length, self.window, self.starts = 0, window, starts


class StandIn(nn.Module):
    """A distance-weighted mean of the allowed tokens, then a linear map."""

    def __init__(self, num_tokens: int = 11, max_seq_len: int = 12, absolute_positions: bool = False) -> None:
        super().__init__()
        self.num_tokens, self.max_seq_len = num_tokens, max_seq_len
        self.absolute_positions, self.can_cache = absolute_positions, True
        self.attn_layers = nn.Module()
        self.attn_layers.causal = True
        self.attn_layers.has_mixers = False
        self.embed = nn.Embedding(num_tokens, 8)
        self.mix = nn.Linear(8, 8)
        self.to_logits = nn.Linear(8, num_tokens)
        self.dropout = nn.Dropout(0.5)
        self.reads: list[tuple[int, int]] = []
        self.contexts: list[Tensor | None] = []

    def init_state(self, batch, length, window=None, seq_start_pos=None):
        return StandInState(batch, length, 8, window, seq_start_pos)

    def forward(
        self,
        ids,
        return_embeddings=False,
        return_logits_and_embeddings=False,
        state=None,
        seq_start_pos=None,
        window=None,
        context=None,
        context_mask=None,
        mask=None,
    ):
        self.reads.append(tuple(ids.shape))
        self.contexts.append(context)
        x = self.embed(ids)
        if state is None:
            state = StandInState(*ids.shape, 8, window, seq_start_pos)
        first, last = state.length, state.length + ids.shape[1]
        state.seen[:, first:last] = x
        state.length = last
        queries, keys = torch.arange(first, last)[:, None], torch.arange(last)[None]
        distance = queries - keys  # [T, S]
        visible = distance >= 0
        if state.window is not None:
            visible = visible & (distance < state.window)
        visible = visible.expand(len(ids), -1, -1)
        if state.starts is not None:
            visible = visible & (keys[None] >= state.starts[:, None, None])
        weights = (-0.3 * distance.float()).expand_as(visible).masked_fill(~visible, -1e9).softmax(-1)
        x = self.dropout(torch.tanh(x + self.mix(weights @ state.seen[:, :last].clone())))
        if return_embeddings:
            return x
        return (self.to_logits(x), x) if return_logits_and_embeddings else self.to_logits(x)


@pytest.fixture
def stand_in():
    torch.manual_seed(0)
    model = StandIn()
    with torch.no_grad():
        model.to_logits.weight.mul_(4)  # distinct logits: greedy choices are not ties
    return model
