"""Fused attention with a relative bias, for long rows on CPU: no tensor of queries times keys is saved."""

from __future__ import annotations

from torch import Tensor

from flagformer.attention.kernels.relative_bias.capability import is_supported
from flagformer.attention.kernels.relative_bias.operators import by_distance
from flagformer.flow import RelativeBias
from flagformer.ops.attend import one_width, repeat_kv
from flagformer.ops.full_precision import cast_together

__all__ = ["attend", "is_supported"]


def attend(q: Tensor, k: Tensor, v: Tensor, relative: RelativeBias, scale: float) -> Tensor:
    """softmax(scale q k^T + bias of the distance) v, where `is_supported`.

    Args:
        q: [B, H, T, K].
        k, v: [B, G, S, K] and [B, G, S, V]; a group serves H / G consecutive heads.

    Returns:
        [B, H, T, V].
    """
    heads, width = q.shape[1], v.shape[3]
    q, k, v = cast_together(q, k, v)
    q, k, v = one_width(q, repeat_kv(k, heads), repeat_kv(v, heads))
    out, _ = by_distance(q, k, v, relative.biases, relative.groups, relative.range, scale)
    return out[..., :width]
