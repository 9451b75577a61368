"""The z-loss of attention (ST-MoE, arXiv:2202.08906): keeps scores near zero."""

from __future__ import annotations

from torch import Tensor

from flagformer.flow import AttentionBias, SideInputs
from flagformer.ops.full_precision import accum_dtype

NAME = "attn.z"  # of the loss on the collector


def add_z_loss(scores: Tensor, bias: AttentionBias, side: SideInputs) -> None:
    """Add `weight * mean(sum_heads(logsumexp(scores) ** 2))` to the losses of the collector.

    The mean is over valid queries; a fully masked query contributes zero. In the paper the loss is that of a
    router. Departure from x-transformers, which sums logarithms over all layers before squaring, so that
    layers may cancel each other, and which counts padded queries.

    Args:
        scores: [B, H, T, P + S], minus infinity where a query may not attend.
    """
    exact = scores.to(accum_dtype(scores.dtype))
    masked_rows = bias.dense().fully_masked_rows
    if masked_rows is None:
        logs = exact.logsumexp(dim=-1)  # [B, H, T]
    else:
        logs = exact.masked_fill(masked_rows, 0.0).logsumexp(dim=-1)
        logs = logs.masked_fill(masked_rows[..., 0], 0.0)
    squares = logs.square().sum(dim=1)  # [B, T]
    valid = side.layout.valid
    if valid is None:
        mean = squares.mean()
    else:
        counts = valid.expand_as(squares)
        mean = squares.masked_fill(~counts, 0.0).sum() / counts.sum().clamp(min=1)
    side.collector.add_loss(NAME, mean * side.collector.weights[NAME])
