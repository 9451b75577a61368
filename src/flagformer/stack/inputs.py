"""Checks of the arguments of a stack: types, shapes and dtypes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagformer.flow import DecodeState, InterleavedDecodeState
from flagformer.ops.traced import readable

INTEGERS = (torch.int64, torch.int32)


def check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"`{name}` must be a tensor, but is {type(value).__name__}: {str(value)[:60]}")


def check_size(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be a whole number of at least 1, but is {value!r}")


def check_padding(name: str, mask: Tensor, batch: int, length: int) -> Tensor:
    """Check a padding mask [B, T] bool, True for valid tokens."""
    check_tensor(name, mask)
    if mask.dtype != torch.bool:
        raise ValueError(f"`{name}` must be boolean (True = valid token), but is {mask.dtype}")
    if tuple(mask.shape) != (batch, length):
        raise ValueError(f"`{name}` must have shape [{batch}, {length}], but has {list(mask.shape)}")
    return mask


def check_starts(name: str, starts: Tensor, batch: int) -> Tensor:
    """Check row starts [B]: the index of each row's first valid token."""
    check_tensor(name, starts)
    if starts.dtype not in INTEGERS or tuple(starts.shape) != (batch,):
        raise ValueError(
            f"`{name}` must be {batch} integers, one per row, "
            f"but is {starts.dtype} of shape {list(starts.shape)}"
        )
    if readable(starts) and bool((starts < 0).any()):
        raise ValueError(f"`{name}` must hold indices of at least 0, but is {starts.tolist()}")
    return starts.long()


def check_attention_mask(mask: Tensor, batch: int, heads: int, queries: int, keys: int) -> Tensor:
    """Check an attention mask: [T,S], [H,T,S], [B,T,S] or [1 or B,1 or H,T,S] bool -> four dimensions.

    A first dimension of three is H or B, by its size; if H == B, four dimensions are required.
    """
    check_tensor("attn_mask", mask)
    shapes = (
        f"[{queries}, {keys}], [{heads}, {queries}, {keys}] (heads) or [{batch}, {heads}, {queries}, {keys}]"
    )
    if mask.dtype != torch.bool:
        raise ValueError(f"`attn_mask` must be boolean (True = may attend), but is {mask.dtype}")
    if mask.shape[-2:] != (queries, keys) or mask.dim() > 4:
        raise ValueError(f"`attn_mask` must have shape {shapes}, but has {list(mask.shape)}")
    if mask.dim() == 2:
        return mask[None, None]
    if mask.dim() == 4 and mask.shape[0] in (1, batch) and mask.shape[1] in (1, heads):
        return mask
    if mask.dim() == 3 and mask.shape[0] in (heads, batch):
        if heads == batch != 1:
            raise ValueError(
                f"`attn_mask` of shape {list(mask.shape)} could mean {heads} heads or {batch} rows: "
                "give four dimensions, [1, H, T, S] or [B, 1, T, S]"
            )
        return mask[None] if mask.shape[0] == heads else mask[:, None]
    raise ValueError(f"`attn_mask` must have shape {shapes}, but has {list(mask.shape)}")


def check_window(window: Any, causal: bool, decoding: bool) -> None:
    """Check a window: the number of last tokens that a query attends to; for causal layers only."""
    check_size("window", window)
    if decoding:
        raise ValueError("`window` cannot be passed with `state`: pass it to `init_state`")
    if not causal:
        raise ValueError(
            "`window` needs causal layers (Decoder, PrefixDecoder), but these attend to later tokens"
        )


def check_context(
    context: Tensor | None, mask: Tensor | None, has_cross: bool, cached: bool, dim: int, batch: int
) -> None:
    """Check that a context is passed exactly if cross-attention needs one that is not cached."""
    if not has_cross and context is not None:
        raise ValueError(
            "`context` was passed, but the model has no cross-attention: build it with `cross_attend=True`"
        )
    if has_cross and context is None and not cached:
        raise ValueError("`context` is required, because the model has cross-attention (`cross_attend`)")
    if context is None:
        if mask is not None:
            raise ValueError(
                "`context_mask` must come with the `context` that it masks, but `context` is None"
            )
        return
    check_tensor("context", context)
    if context.dim() != 3 or context.shape[0] != batch or context.shape[2] != dim:
        raise ValueError(f"`context` must have shape [{batch}, S, {dim}], but has {list(context.shape)}")
    if mask is not None:
        check_padding("context_mask", mask, batch, context.shape[1])


def check_condition(
    condition: Tensor | None, width: int | None, batch: int, length: int, has_memory: bool, state: Any
) -> None:
    """Check a condition, [B, C] or [B, T, C].

    Args:
        width: C, which the layers read; None: no component reads a condition.
        has_memory: whether memories of earlier segments precede the tokens.
        state: the decode state of the layers; None in a plain forward.
    """
    if state is not None and state.length and (condition is None) == state.has_condition:
        before, now = ("with", "without") if condition is None else ("without", "with")
        raise ValueError(
            f"`condition` must be given in all calls of a decoding session or in none, but `state` holds "
            f"tokens {before} one, and this call is {now}"
        )
    if condition is None:
        return
    check_tensor("condition", condition)
    if width is None:
        raise ValueError(
            "`condition` was passed, but no component reads it: build with `adaptive_layernorm`, "
            "`adaptive_rmsnorm` or `adaptive_gate`, or give a component of your own the attribute "
            "`condition_dim`"
        )
    shapes = ((batch, width), (batch, length, width))
    if tuple(condition.shape) not in shapes or not condition.is_floating_point():
        raise ValueError(
            f"`condition` must be floating-point numbers of shape [{batch}, {width}], one for each row, or "
            f"[{batch}, {length}, {width}], but is {condition.dtype} of shape {list(condition.shape)}"
        )
    if has_memory and condition.dim() == 3:
        raise ValueError(
            f"`condition` must have shape [{batch}, {width}] with `mems`, because memories of earlier tokens "
            "have no condition of their own"
        )


def check_row_condition(condition: Any) -> None:
    """Check that a condition has the form [B, C], in a model whose parts have different numbers of tokens."""
    if not isinstance(condition, Tensor) or condition.dim() != 2:
        found = list(condition.shape) if isinstance(condition, Tensor) else repr(condition)
        raise ValueError(f"`condition` must have shape [B, C], one for each row, but is {found}")


def check_vectors(x: Tensor, dim: int) -> None:
    """Check the tokens x [B, T, `dim`] of a stack."""
    check_tensor("x", x)
    if x.dim() != 3 or x.shape[2] != dim:
        raise ValueError(f"`x` must have shape [B, T, {dim}], but has {list(x.shape)}")


def check_capacity(state: DecodeState | InterleavedDecodeState, batch: int, length: int) -> None:
    """Check that a decode state has capacity for T more tokens of B rows."""
    if batch != state.batch or state.length + length > state.capacity:
        raise ValueError(
            f"`state` holds {state.length} of {state.capacity} tokens of {state.batch} rows; "
            f"`x` with {length} more of {batch} rows does not fit: "
            "init_state(batch, length) sets the capacity"
        )
