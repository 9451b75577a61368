"""How a model reads the rows of a batch: whole, or in segments that hand their memory on."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flagformer.train.process_group import inner


class SegmentReading(NamedTuple):
    """Logits [B, T, V] of whole rows ([B, V] of images), and the auxiliary loss of a training forward that
    makes one.
    """

    logits: Tensor
    extra: Tensor | None


def read_rows(
    model: nn.Module, rows: Tensor, segment: int | None = None, losses: bool = False
) -> SegmentReading:
    """Every row from its start, without memory of other rows.

    Args:
        segment: tokens read at once; None: whole rows. What a segment leaves (`num_memory_slots`,
            `max_mem_len`) the next one reads, with the gradient that the model's paper lets through; a model
            without memory reads each segment alone.
        losses: whether auxiliary losses are asked for; that of segments is their mean, weighed by tokens.
    """
    losses = losses and getattr(inner(model), "has_losses", False)
    if segment is None or rows.shape[1] <= segment:
        return _read(model, rows, losses, {})[0]
    remembers = bool(inner(model).num_memory_slots or inner(model).max_mem_len)
    parts: list[SegmentReading] = []
    kept: Any = None
    for ids in rows.split(segment, dim=1):
        asked = {"mems": kept, "return_mems": True} if remembers else {}
        part, kept = _read(model, ids, losses, asked)
        share = ids.shape[1] / rows.shape[1]
        parts.append(SegmentReading(part.logits, None if part.extra is None else part.extra * share))
    extras = [part.extra for part in parts if part.extra is not None]
    return SegmentReading(
        torch.cat([part.logits for part in parts], dim=1), torch.stack(extras).sum() if extras else None
    )


def _read(model: nn.Module, rows: Tensor, losses: bool, asked: dict[str, Any]) -> tuple[SegmentReading, Any]:
    """One forward, and the memory that it leaves where it was asked for."""
    if losses:
        logits, outputs = model(rows, return_losses=True, **asked)
        return SegmentReading(logits, outputs.extra_loss), outputs.mems
    if not asked:
        return SegmentReading(model(rows), None), None
    logits, left = model(rows, **asked)
    return SegmentReading(logits, None), left
