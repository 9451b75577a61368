"""The source of an encoder-decoder: token ids, or vectors such as the frames of a spectrogram."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flagformer.embedding.convolutions import halved
from flagformer.flags import Finding, FlagError
from flagformer.wrappers.continuous import ContinuousTransformerWrapper

# Arguments of an encoder of token ids alone.
OF_IDS = ("embed_ids", "prepend_embeds", "prepend_mask")


def vector_encoder(flags: Mapping[str, Any], src_dim: int, src_conv: bool) -> ContinuousTransformerWrapper:
    """The encoder of vectors [B, S, `src_dim`]; `flags` are those of an encoder of token ids."""
    rest = {name: value for name, value in flags.items() if name not in ("model", "return_only_embed")}
    try:
        return ContinuousTransformerWrapper(dim_in=src_dim, conv_stem=src_conv, causal=False, **rest)
    except FlagError as error:  # `src_dim` and `src_conv` are checked already
        raise FlagError(one for one in error.findings if one.flag not in ("dim_in", "conv_stem")) from None


def source_errors(src_dim: int | None, src_conv: bool) -> list[Finding]:
    """Findings for convolutions of a source without a width."""
    if src_dim is not None or not src_conv:
        return []
    text = "`src_conv` has no effect here, because `src_dim` is not set; set that too"
    return [Finding("src_conv", text)]


def encoder_arguments(encoder: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the encoder; ValueError for those that its vectors cannot have."""
    if not isinstance(encoder, ContinuousTransformerWrapper):
        return dict(given)
    for name in OF_IDS:
        if given.get(name) is not None:
            raise ValueError(
                f"`{name}` must be None, because the source is vectors (`src_dim`), not token ids"
            )
    return {name: value for name, value in given.items() if name not in OF_IDS}


def encoder_flags(encoder: Any) -> dict[str, Any]:
    """The flags of the encoder's layers and positions."""
    own = encoder.own if isinstance(encoder, ContinuousTransformerWrapper) else ()
    return {name: value for name, value in encoder.flags.items() if name not in own}


def context_mask_of(
    src: Tensor, mask: Tensor | None, prepend_embeds: Tensor | None, prepend_mask: Tensor | None, conv: bool
) -> Tensor | None:
    """[B, P + S] bool, True for valid entries of the context; None: all are valid.

    Args:
        conv: whether convolutions halve the source.
    """
    if conv:
        return halved(mask)
    if prepend_embeds is None or (mask is None and prepend_mask is None):
        return mask
    valid = torch.ones_like(src, dtype=torch.bool) if mask is None else mask
    prepended = valid.new_ones(prepend_embeds.shape[:2]) if prepend_mask is None else prepend_mask
    return torch.cat([prepended, valid], dim=1)
