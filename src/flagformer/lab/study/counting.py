"""FLOPs and memory of attention that torch's counters miss: custom operators, fused kernels on meta."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from flagformer.attention.cores import Core
from flagformer.attention.kernels import key_ranges, relative_bias  # noqa: F401  # they register operators
from flagformer.attention.kernels.relative_bias.capability import HAS_OPERATORS, fused
from flagformer.flow import RelativeRange
from flagformer.ops import grouped_linear  # noqa: F401  # it registers operators
from flagformer.ops.attend import one_width


def _by_distance_flops(
    q: Tensor, k: Tensor, v: Tensor, biases: Tensor, groups: Any, span: Any, scale: float, out_val: Any = None
) -> int:
    """FLOPs of the keys within the bias table; of all keys if the table saturates."""
    keys = k.shape[2] if RelativeRange(*span).same_from >= 0 else min(k.shape[2], biases.shape[-1])
    return _attention_flops(q, v, keys)


def _attention_flops(q: Tensor, v: Tensor, keys: int) -> int:
    """FLOPs of attention with `keys` keys per query."""
    return 2 * q.shape[0] * q.shape[1] * q.shape[2] * keys * (q.shape[3] + v.shape[3])


def _grouped_flops(x: Tensor, weight: Tensor, offsets: Tensor, out_val: Any = None) -> int:
    """FLOPs of the product of each row [N, I] with one of the matrices [E, O, I]."""
    return 2 * x.numel() * weight.shape[1]


def _outer_flops(y: Tensor, x: Tensor, offsets: Tensor, out_val: Any = None) -> int:
    """FLOPs of the outer products of rows [N, O] and [N, I]."""
    return 2 * y.numel() * x.shape[1]


class FusedOnMeta(TorchFunctionMode):
    """Makes `scaled_dot_product_attention` of meta tensors save the tensors of the fused kernel.

    torch uses eager attention on the meta device, so that all attention weights would be counted. With
    dropout, and for masks with a gradient, attention is eager on CPU too.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        dropout, mask = kwargs.get("dropout_p", 0.0), kwargs.get("attn_mask")
        if func is F.scaled_dot_product_attention and HAS_OPERATORS and _is_fused(args[0], mask, dropout):
            return _fused(*args, **kwargs)
        return func(*args, **kwargs)


def _is_fused(q: Tensor, attn_mask: Tensor | None, dropout_p: float) -> bool:
    learned = attn_mask is not None and attn_mask.requires_grad
    return q.is_meta and not dropout_p and not learned


def _fused(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype)
    width = v.shape[3]
    q, k, v = one_width(q, k, v)
    out: Tensor = fused(q, k, v, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return out[..., :width]


class AttentionFlops:
    """Counts every kernel of a model's attention in `counter`; `more` is the number of FLOPs that dense
    attention in all heads would add."""

    def __init__(self, model: nn.Module) -> None:
        self.cores = [part for part in model.modules() if isinstance(part, Core)]
        self.active: list[nn.Module] = []  # cores may be nested
        self.more, self.before = 0, 0
        formulas: dict[Any, Any] = {
            torch.ops.flagformer.by_distance: _by_distance_flops,
            torch.ops.flagformer.attend_sorted: self._sorted_flops,
            torch.ops.flagformer.grouped_linear: _grouped_flops,
            torch.ops.flagformer.grouped_outer: _outer_flops,
        }
        for formula in (_by_distance_flops, AttentionFlops._sorted_flops, _grouped_flops, _outer_flops):
            setattr(formula, "_get_raw", True)  # noqa: B010  # called with tensors in place of shapes
        self.counter = FlopCounterMode(display=False, custom_mapping=formulas)

    def __enter__(self) -> AttentionFlops:
        self.hooks: list[Any] = []
        for core in self.cores:
            self.hooks += [
                core.register_forward_pre_hook(self._enter),
                core.register_forward_hook(self._leave),
            ]
        self.counter.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.counter.__exit__(*error)
        for hook in self.hooks:
            hook.remove()

    @property
    def total(self) -> int:
        return self.counter.get_total_flops()

    def _sorted_flops(self, q: Tensor, k: Tensor, v: Tensor, *rest: Any, out_val: Any = None) -> int:
        """Each query attends to at most the window of its cluster."""
        window: Any = self.active[-1].window
        return _attention_flops(q, v, min(k.shape[2], window))

    def _enter(self, core: nn.Module, args: Any) -> None:
        if not self.active:
            self.before = self.total
        self.active.append(core)

    def _leave(self, core: nn.Module, args: Any, out: Any) -> None:
        self.active.pop()
        if not self.active:
            q, kv = args[0], args[1]
            self.more += max(0, _attention_flops(q, kv.v, kv.k.shape[2]) - (self.total - self.before))
