"""The z-loss of attention (ST-MoE, arXiv:2202.08906): scores are held near zero."""

from __future__ import annotations

from torch import Tensor

from flagformer.flow import AttentionBias, SideInputs
from flagformer.ops.full_precision import accum_dtype

NAME = "attn.z"  # of the loss on the collector


def add_z_loss(scores: Tensor, bias: AttentionBias, side: SideInputs) -> None:
    """Puts one attention's loss on the collector: `weight * mean(sum_heads(logsumexp(scores) ** 2))`.

    The mean is over the rows' real queries; a query that sees no key adds nothing. The paper's loss is that
    of a router. Departure from x-transformers: it adds up the logarithms of all layers before it squares, so
    that layers may cancel each other, and it counts padded queries.

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
    real = side.layout.valid
    if real is None:
        mean = squares.mean()
    else:
        counts = real.expand_as(squares)
        mean = squares.masked_fill(~counts, 0.0).sum() / counts.sum().clamp(min=1)
    side.collector.add_loss(NAME, mean * side.collector.weights[NAME])
