"""Positions of the tokens and memory tokens of one row, and which keys each query may attend to."""

from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """One sequence without padding, with interleaved memory tokens.

    Attributes:
        token: [T] the index of the token at each position; of the next token for a memory token.
        memory: [T] the index of the memory token at each position, or -1.
        first: the position of the first token, which is the number of tokens of earlier segments.
        prefix: the number of tokens that every query may attend to.
    """

    token: np.ndarray
    memory: np.ndarray
    first: int
    prefix: int

    @property
    def positions(self):
        return self.first + np.arange(len(self.token))


def interleaved(settings, count, first=0, prefix=0):
    """arXiv:2006.11527: memory tokens in front of the row, or of every block of tokens."""
    number = settings["num_memory_tokens"] or 0
    every = settings["memory_tokens_interspersed_every"] or max(count, 1)
    token, memory = [], []
    for start in range(0, count, every):
        stop = min(start + every, count)
        token += [start] * number + list(range(start, stop))
        memory += list(range(number)) + [-1] * (stop - start)
    return Row(np.array(token), np.array(memory), first, prefix)


def allowed_keys(settings, module, row, past):
    """[T, past + T] bool: keys allowed in self-attention; the first `past` are memories."""
    count = len(row.token)
    token = np.concatenate([np.arange(-past, 0), row.token])
    learned = np.concatenate([np.full(past, -1), row.memory]) >= 0
    position = np.arange(-past, count)
    allowed = np.ones((count, past + count), bool)
    if settings.causal:
        allowed = position[None, :] <= position[past:, None]
        if row.prefix:
            allowed |= (token < row.prefix)[None, :] & ~(learned & (token >= row.prefix))[None, :]
    window = settings.of("attn_max_attend_past", module)
    if window:
        in_window = row.token[:, None] - token[None, :] <= window
        allowed &= in_window | learned[None, :]
    return allowed
