"""Align ids that accompany tokens, such as token types, with left-padded prompts and new tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flagformer.generation.prompts import Prompts


def align_token_ids(given: Mapping[str, Tensor], prompts: Prompts, total: int) -> dict[str, Tensor]:
    """For each name [B, total], one id for each column of left-padded rows.

    Args:
        given: [B, L] integers ([L] for one prompt without batch): the ids of the first, second, ... token of
            each row. L is at least the longest prompt; tokens beyond L get the last id.
    """
    batch, longest = prompts.ids.shape
    columns = torch.arange(total, device=prompts.ids.device)
    positions = columns[None].expand(batch, -1)
    if prompts.starts is not None:
        positions = columns - prompts.starts[:, None]
    aligned = {}
    for name, value in given.items():
        ids = value[None] if not prompts.batched and value.dim() == 1 else value
        if ids.dim() != 2 or len(ids) != batch or ids.shape[1] < longest or ids.is_floating_point():
            raise ValueError(
                f"`embed_ids['{name}']` must be integers of shape [{batch}, L] with L at least {longest}, "
                f"the longest prompt, but is {value.dtype} of shape {list(value.shape)}"
            )
        aligned[name] = ids.to(columns.device).gather(1, positions.clamp(0, ids.shape[1] - 1))
    return aligned
