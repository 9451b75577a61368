"""Align what accompanies tokens, such as token types, with left-padded prompts and new tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flagformer.generation.prompts import Prompts
from flagformer.stack.inputs import check_tensor


def align_token_ids(given: Mapping[str, Tensor], prompts: Prompts, total: int) -> dict[str, Tensor]:
    """For each name [B, total], one id for each column of left-padded rows.

    Args:
        given: [B, L] integers ([L] for one prompt without batch): the ids of the first, second, ... token of
            each row. L is at least the longest prompt; tokens beyond L get the last id.
    """
    batch, longest = prompts.ids.shape
    positions = _positions(prompts, total)
    aligned = {}
    for name, value in given.items():
        ids = value[None] if not prompts.batched and value.dim() == 1 else value
        if ids.dim() != 2 or len(ids) != batch or ids.shape[1] < longest or ids.is_floating_point():
            raise ValueError(
                f"`embed_ids['{name}']` must be integers of shape [{batch}, L] with L at least {longest}, "
                f"the longest prompt, but is {value.dtype} of shape {list(value.shape)}"
            )
        aligned[name] = ids.to(positions.device).gather(1, positions.clamp(0, ids.shape[1] - 1))
    return aligned


def align_condition(given: Tensor | None, prompts: Prompts, total: int) -> Tensor | None:
    """[B, C], or [B, total, C] with one condition for each column of left-padded rows; None for None.

    Args:
        given: [B, C] or [B, L, C]: the conditions of the first, second, ... token of each row. L is at least
            the longest prompt; tokens beyond L get the last one. For one prompt without batch [C] or [L, C].
    """
    if given is None:
        return None
    check_tensor("condition", given)
    batch, longest = prompts.ids.shape
    condition = given if prompts.batched else given[None]
    each = condition.dim() == 3
    if condition.dim() not in (2, 3) or len(condition) != batch or (each and condition.shape[1] < longest):
        raise ValueError(
            f"`condition` must have shape [{batch}, C], or [{batch}, L, C] with L at least {longest}, the "
            f"longest prompt, but has {list(given.shape)}"
        )
    condition = condition.to(prompts.ids.device)
    if not each:
        return condition
    index = _positions(prompts, total).clamp(0, condition.shape[1] - 1)
    return condition.gather(1, index[..., None].expand(-1, -1, condition.shape[2]))


def _positions(prompts: Prompts, total: int) -> Tensor:
    """[B, total], the index of each column in its row; negative before the row begins."""
    columns = torch.arange(total, device=prompts.ids.device)
    if prompts.starts is None:
        return columns[None].expand(len(prompts.ids), -1)
    return columns - prompts.starts[:, None]
