"""A small language model that passes every audit check, with methods to override for planted faults."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_TOKENS, LONGEST = 19, 40


class State:
    """Cached keys and values of every layer."""

    def __init__(self, batch: int, length: int, seq_start_pos: Tensor | None, depth: int) -> None:
        self.length, self.starts = 0, seq_start_pos
        self.kv: list[tuple[Tensor, Tensor] | None] = [None] * depth

    def truncate(self, length: int) -> None:
        self.kv = [(k[:, :, :length], v[:, :, :length]) for k, v in self.kv]
        self.length = length

    def mark(self) -> tuple:
        return self.length, list(self.kv)

    def rollback(self, mark: tuple) -> None:
        self.length, self.kv = mark

    def reorder(self, index: Tensor) -> None:
        self.kv = [(k[index], v[index]) for k, v in self.kv]


class Layer(nn.Module):
    """Pre-norm attention with a head-wise slope on distance, then a feedforward."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.out_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.ff = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, allowed: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple]:
        q, k, v = (
            self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # [B,H,T,K]
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        scores = self.masked(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, allowed[:, None])
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.ff(self.out_norm(x)), (k, v)

    def masked(self, scores: Tensor, allowed: Tensor) -> Tensor:
        return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)


class TinyLM(nn.Module):
    """Learned positions, two layers, every argument of the library's calling convention."""

    num_tokens, max_seq_len = NUM_TOKENS, LONGEST

    def __init__(self, dim: int = 24, depth: int = 2, heads: int = 2, layer: type[Layer] = Layer) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(NUM_TOKENS, dim), nn.Embedding(LONGEST, dim)
        self.layers = nn.ModuleList(layer(dim, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, NUM_TOKENS)

    def init_state(self, batch: int, length: int, seq_start_pos: Tensor | None = None) -> State:
        return State(batch, length, seq_start_pos, len(self.layers))

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        seq_start_pos: Tensor | None = None,
        seq_lens: list[list[int]] | None = None,
        state: State | None = None,
    ) -> Tensor:
        past = state.length if state is not None else 0
        starts = state.starts if state is not None else seq_start_pos
        batch, length = ids.shape
        positions = self.positions(batch, length, past, starts)  # [B, T]
        segments = self.segments(batch, length, seq_lens)  # [B, T]
        if seq_lens is not None:
            positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in seq_lens])
        keys = torch.arange(past + length)
        allowed = (keys <= keys[past:, None]).expand(batch, length, -1)  # [B, T, S]
        if starts is not None:
            allowed = allowed & (keys >= starts[:, None])[:, None]
        if mask is not None:
            allowed = allowed & self.key_mask(mask)[:, None]
        if seq_lens is not None:
            allowed = allowed & (segments[:, :, None] == segments[:, None])
        x = self.embed(ids, positions)
        for i, layer in enumerate(self.layers):
            x, kv = layer(x, self.allowed(allowed), state.kv[i] if state is not None else None)
            x = self.between(x)
            if state is not None:
                state.kv[i] = kv
        if state is not None:
            state.length += length
        return self.head(self.norm(x))

    def positions(self, batch: int, length: int, past: int, starts: Tensor | None) -> Tensor:
        places = torch.arange(past, past + length).expand(batch, -1)
        return places if starts is None else (places - starts[:, None]).clamp(min=0)

    def segments(self, batch: int, length: int, seq_lens: list[list[int]] | None) -> Tensor:
        if seq_lens is None:
            return torch.zeros(batch, length, dtype=torch.long)
        return torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in seq_lens])

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        return self.tokens(ids) + self.places(positions)

    def key_mask(self, mask: Tensor) -> Tensor:
        return mask

    def allowed(self, allowed: Tensor) -> Tensor:
        return allowed

    def between(self, x: Tensor) -> Tensor:
        return x


class Bigram(nn.Module):
    """The minimum an audit accepts: ids -> logits; every logit depends on its own and the previous token."""

    def __init__(self, num_tokens: int = NUM_TOKENS) -> None:
        super().__init__()
        self.own, self.before = nn.Embedding(num_tokens, num_tokens), nn.Embedding(num_tokens, num_tokens)

    def forward(self, ids: Tensor) -> Tensor:
        return self.own(ids) + F.pad(self.before(ids)[:, :-1], (0, 0, 1, 0))
