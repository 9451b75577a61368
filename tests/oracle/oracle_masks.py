"""Where tokens and memory tokens of one row stand, and which keys each query may see."""

from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """One sequence without padding, memory tokens woven in.

    Attributes:
        token: [T] the number of the token at each place, of a memory token the number of the token behind it.
        memory: [T] the number of the memory token at each place, or -1.
        first: the place of the first one, which is the number of tokens of earlier segments.
        prefix: so many tokens are seen by all.
    """

    token: np.ndarray
    memory: np.ndarray
    first: int
    prefix: int

    @property
    def places(self):
        return self.first + np.arange(len(self.token))


def woven(settings, count, first=0, prefix=0):
    """arXiv:2006.11527: memory tokens in front of the row, or of every block of so many tokens."""
    number = settings["num_memory_tokens"] or 0
    every = settings["memory_tokens_interspersed_every"] or max(count, 1)
    token, memory = [], []
    for start in range(0, count, every):
        stop = min(start + every, count)
        token += [start] * number + list(range(start, stop))
        memory += list(range(number)) + [-1] * (stop - start)
    return Row(np.array(token), np.array(memory), first, prefix)


def seen(settings, module, row, past):
    """[T, past + T] bool: the keys that each query of self-attention may see; `past` tokens are memories."""
    count = len(row.token)
    token = np.concatenate([np.arange(-past, 0), row.token])
    learned = np.concatenate([np.full(past, -1), row.memory]) >= 0
    place = np.arange(-past, count)
    allowed = np.ones((count, past + count), bool)
    if settings.causal:
        allowed = place[None, :] <= place[past:, None]
        if row.prefix:
            allowed |= (token < row.prefix)[None, :] & ~(learned & (token >= row.prefix))[None, :]
    reach = settings.of("attn_max_attend_past", module)
    if reach:
        near = row.token[:, None] - token[None, :] <= reach
        allowed &= near | learned[None, :]
    return allowed
