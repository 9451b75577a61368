"""Distances whose weights are lost in rounding: a steep bias leaves a head only its neighbourhood.

Left in, they cost twice: whole chunks of keys, and numbers below 1e-38, which processors multiply a hundred
times slower. With ALiBi at n 2048 these were three quarters of the backward.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def prune_bias(
    biases: Tensor, q: Tensor, k: Tensor, at_self: int, scale: float, dtype: torch.dtype
) -> Tensor:
    """Biases [H, L] with minus infinity where no weight can matter.

    All weights that a query loses make up less than `dtype`'s eps: it sees itself, with a score of at least
    `bias[at_self] - top`, and nothing scores more than `bias + top`, where `top` is the product of the
    longest query and the longest key (Cauchy and Schwarz). Padding does not see itself, and may lose all.

    Args:
        biases: of distances, one of which, `at_self`, is that of a query to itself.
        q, k: [B, H, T, K], [B, H, S, K].
        scale: of the products.
        dtype: what weights are summed in.
    """
    longest = [torch.linalg.vector_norm(x, dim=-1, dtype=dtype).amax(dim=(0, 2)) for x in (q, k)]
    top = abs(scale) * longest[0] * longest[1]  # [H]
    margin = math.log(k.shape[2] / torch.finfo(dtype).eps)
    floor = biases[:, at_self] - 2 * top - margin
    return biases.masked_fill(biases < floor[:, None], float("-inf"))


def strips(biases: Tensor, least: int) -> list[tuple[slice, slice]]:
    """Neighbouring heads that see about as far, at least `least` of them, and the distances that they see.

    Args:
        biases: [H, L], minus infinity out of sight.
        least: heads of a strip, so that they keep all threads busy; a rest joins the strip before.
    """
    seen = biases > float("-inf")
    numbers = torch.arange(seen.shape[1])
    lows = torch.where(seen, numbers, seen.shape[1]).amin(dim=1).tolist()
    highs = torch.where(seen, numbers, -1).amax(dim=1).tolist()
    found: list[tuple[slice, slice]] = []
    for start in range(0, len(lows), least):
        heads = slice(start, start + least)
        distances = slice(min(lows[heads]), max(highs[heads]) + 1)
        if found and (len(lows) - start < least or _alike(found[-1][1], distances)):
            before, wide = found.pop()
            heads = slice(before.start, start + least)
            distances = slice(min(wide.start, distances.start), max(wide.stop, distances.stop))
        found.append((heads, distances))
    return found


def _alike(one: slice, other: slice) -> bool:
    """Whether two calls would save less than a quarter of one."""
    counts = sorted([one.stop - one.start, other.stop - other.start])
    return counts[0] * 4 > counts[1] * 3
