"""Vocabularies of another size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from flagformer.flags import CATALOGUE, resolve
from flagformer.head.heads import LogitBias
from flagformer.models.build import build

# Tensors that are resized; any other that depends on the vocabulary is refused.
RESIZED = {"token_emb.weight", "head.project.weight", "head.project.bias", "head.add_bias.bias"}


def refuse_fixed(flags: Mapping[str, Any], count: int) -> None:
    """Raise ValueError for a model in which more than embedding and head depends on the vocabulary."""
    if flags.get("logits_dim") is not None:
        raise ValueError(f"`logits_dim` = {flags['logits_dim']} fixes the number of logits: leave it out")
    old, new = shapes(flags), shapes({**flags, "num_tokens": count})
    fixed = [name for name, shape in old.items() if name not in RESIZED and shape != new.get(name)]
    if fixed:
        raise ValueError(
            f"`new_num_tokens` must stay {flags['num_tokens']}, but is {count}: `{'`, `'.join(fixed)}` "
            "depends on it and is not resized"
        )


def shapes(flags: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Name of a tensor -> shape in the model of flags, which is not allocated."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in build(flags).state_dict().items()}


def set_num_tokens(model: Any, count: int) -> None:
    """Let a TransformerWrapper, whose embedding and projection were resized, have `count` tokens."""
    model.num_tokens = count
    model.resolved = resolve({**model.resolved.flags, "num_tokens": count}, CATALOGUE, {"model"})
    logit_bias = getattr(model.head, "add_bias", None)
    if isinstance(logit_bias, LogitBias):
        old = logit_bias.bias.detach()
        new = old.new_zeros(count)
        kept = min(count, len(old))
        new[:kept] = old[:kept]
        logit_bias.bias = nn.Parameter(new, requires_grad=logit_bias.bias.requires_grad)
