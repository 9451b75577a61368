"""Forward passes over the rows of a batch: whole rows, or segments with recurrent memory."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flagformer.lab.objectives.wrapped import inner
from flagformer.wrappers.routing import RoutingTransformerLM


class Reading(NamedTuple):
    """Outputs of a model for a batch: logits [B, T, V], or [B, V] for one target a row, or vectors [B, T, C];
    and its auxiliary loss, if there is one."""

    logits: Tensor
    extra: Tensor | None


def read_rows(
    model: nn.Module,
    rows: Tensor,
    segment: int | None = None,
    losses: bool = False,
    seq_lens: Tensor | None = None,
    mask: Tensor | None = None,
) -> Reading:
    """Run the model on every row from its start, without memory of other rows.

    Args:
        segment: tokens per forward; None: whole rows. Each segment reads the memory of the previous one
            (`num_memory_slots`, `max_mem_len`), with gradients as in the model's paper; a model without
            memory reads segments independently.
        losses: whether to compute auxiliary losses; over segments their mean, weighted by tokens.
        seq_lens: [B, N], lengths of the sequences in each row, with whole rows only; None: one in each.
        mask: bool [B, T], True for tokens, with whole rows only; None: rows have no padding.
    """
    losses = losses and getattr(inner(model), "has_losses", False)
    if segment is None or rows.shape[1] <= segment:
        given = {"seq_lens": seq_lens, "mask": mask}
        return _read(model, rows, losses, {}, {key: one for key, one in given.items() if one is not None})[0]
    has_memory = any(getattr(inner(model), name, 0) for name in ("num_memory_slots", "max_mem_len"))
    parts: list[Reading] = []
    mems: Any = None
    for ids in rows.split(segment, dim=1):
        options = {"mems": mems, "return_mems": True} if has_memory else {}
        part, mems = _read(model, ids, losses, options)
        share = ids.shape[1] / rows.shape[1]
        parts.append(Reading(part.logits, None if part.extra is None else part.extra * share))
    extras = [part.extra for part in parts if part.extra is not None]
    return Reading(
        torch.cat([part.logits for part in parts], dim=1), torch.stack(extras).sum() if extras else None
    )


def _read(
    model: nn.Module,
    rows: Tensor,
    losses: bool,
    options: dict[str, Any],
    packed: Mapping[str, Tensor] = MappingProxyType({}),
) -> tuple[Reading, Any]:
    """One forward, with the next memory if requested."""
    if isinstance(inner(model), RoutingTransformerLM):
        logits, extra = model(rows)
        return Reading(logits, extra if losses else None), None
    if losses:
        logits, outputs = model(rows, return_losses=True, **options, **packed)
        return Reading(logits, outputs.extra_loss), outputs.mems
    if not options:
        return Reading(model(rows, **packed), None), None
    logits, next_mems = model(rows, **options)
    return Reading(logits, None), next_mems
