"""A seeded permutation of 0 ... n - 1 that is evaluated at single indices, without memory for all of them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

ROUNDS = 6
MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # of splitmix64


def permuted(indices: Any, size: int, *key: str | int) -> Any:
    """The images of `indices`, int64 [N] from 0 to `size` - 1, under the permutation of this key.

    A Feistel network permutes the next power of four; images beyond `size` are permuted again.
    """
    half = np.uint64(max(1, (size - 1).bit_length() + 1 >> 1))
    mask = np.uint64((1 << int(half)) - 1)
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8 * ROUNDS).digest()
    keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    found = _encrypted(np.asarray(indices, dtype=np.uint64), keys, half, mask)
    while (outside := found >= size).any():
        found[outside] = _encrypted(found[outside], keys, half, mask)
    return found.astype(np.int64)


def _encrypted(x: Any, keys: Any, half: Any, mask: Any) -> Any:
    left, right = x >> half, x & mask
    for key in keys:
        mixed = right + key
        for shift, factor in zip((30, 27), MIX):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * factor
        left, right = right, left ^ ((mixed >> np.uint64(31)) & mask)
    return left << half | right
