"""torch's fused attention (FlashAttention, arXiv:2205.14135)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.attention.kernels import Kernel, relative_bias
from flagformer.attention.kernels.eager import Dropout, Eager
from flagformer.attention.scores import ScorePipeline
from flagformer.flags import component
from flagformer.flow import AttentionBias
from flagformer.ops.attend import one_width
from flagformer.ops.full_precision import accum_dtype, cast_together, lowered, without_casts
from flagformer.ops.lengths import LONG
from flagformer.ops.traced import transformed

NO_GRADIENT = "the fused kernel computes no gradient for a learned bias"
NO_SCORES = "it reads the attention scores, which the fused kernel never materialises"


def _zeros_pay(q: Tensor, k: Tensor) -> bool:
    """Whether padding is faster than eager attention, which torch takes for two widths.

    2 rows of 8 heads, K 64, V 128 and 32, n 1024, 1 thread, ms, filled and eager: training 178 448, 132
    230; one query 2.4 1.4, 0.7 0.6; one query with 2 key heads 0.5 1.8, 0.2 1.0.
    """
    return q.device.type == "cpu" and (q.shape[2] > 1 or k.shape[1] < q.shape[1])


def _mask(bias: Tensor, q: Tensor) -> Tensor:
    """Return the bias in the dtype of the fused kernels: on CPU fp32, also for half precision queries."""
    return bias.to(accum_dtype(q.dtype) if q.device.type in ("cpu", "meta") else q.dtype)


@component(
    "kernel",
    select="attn_flash",
    when=True,
    paper="arXiv:2205.14135",
    lacks={"learned_bias": NO_GRADIENT, "scores": NO_SCORES},
)
class SDPA(Kernel):
    """torch.nn.functional.scaled_dot_product_attention; eager under transforms of `torch.func`."""

    reason = (
        "fused, and serves every slot that is filled; windows and biases of the distance are read from a "
        f"table, chunk by chunk, from {LONG} tokens on (on CPU, without dropout)"
    )

    def __init__(self, path: ScorePipeline, *, dropout: Dropout = 0.0) -> None:
        super().__init__()
        self.scale, self.dropout = path.scale, dropout
        self.eager = Eager(path, dropout=dropout)

    def prepare(self, bias: AttentionBias, device: torch.device) -> None:
        if transformed() or not (bias.is_plain_causal or self.reads_relative(bias, device)):
            bias.dense()

    def reads_relative(self, bias: AttentionBias, device: torch.device) -> bool:
        """Whether `relative_bias` is supported and faster."""
        supported = relative_bias.is_supported(device) and not (self.training and self.dropout)
        return supported and bias.relative() is not None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias) -> Tensor:
        if transformed():  # the fused operators have no rules for `vmap`, and no second derivatives
            return self.eager(q, k, v, bias)
        plain = bias.is_plain_causal
        # a single query has no table, and this test is faster than the question
        if not plain and q.shape[2] > 1 and self.reads_relative(bias, q.device):
            relative = bias.relative()
            assert relative is not None
            return relative_bias.attend(q, k, v, relative, self.scale)
        width = v.shape[3]
        if width != q.shape[3] and _zeros_pay(q, k):
            q, k, v = one_width(q, k, v)
        if plain:
            out = self._causal(q, k, v, bias.num_prefix_kv)
            return out if out.shape[3] == width else out[..., :width]
        allowed, added, _ = bias.dense()
        if added is None:
            out = self._fused(q, k, v, allowed)
        elif q.dtype is k.dtype is v.dtype and lowered(q.device) is None:
            out = self._fused(q, k, v, _mask(added, q))
        else:
            q, k, v = cast_together(q, k, v)
            with without_casts(q.device):
                out = self._fused(q, k, v, _mask(added, q))
        return out if out.shape[3] == width else out[..., :width]

    def _causal(self, q: Tensor, k: Tensor, v: Tensor, num_prefix_kv: int) -> Tensor:
        if not num_prefix_kv:
            return self._fused(q, k, v, None, is_causal=True)
        # torch aligns `is_causal` at the top left, so an empty query is added for each prefix key
        return self._fused(F.pad(q, (0, 0, num_prefix_kv, 0)), k, v, None, is_causal=True)[
            :, :, num_prefix_kv:
        ]

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool = False) -> Tensor:
        shares_keys = q.shape[1] != k.shape[1]
        if shares_keys and q.shape[2] == 1 and not is_causal:
            return self._one_token(q, k, v, mask)
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal,
            scale=self.scale,
            enable_gqa=shares_keys,
        )

    def _one_token(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """One query a head: the heads of a group are the queries of one head, which reads its keys once.

        4,096 keys, fp32, 1 thread, ms, with `enable_gqa` and so: 8 heads of 160 on 1 group 0.98 0.35, 16 of
        576 on 1 12.1 3.2, 8 of 64 on 2 0.55 0.26.
        """
        groups = k.shape[1]
        if mask is not None and mask.shape[1] > 1:
            mask = mask.reshape(mask.shape[0], groups, -1, mask.shape[3])
        by_group = q.reshape(q.shape[0], groups, -1, q.shape[3])
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(
            by_group, k, v, attn_mask=mask, dropout_p=dropout, scale=self.scale
        )
        return out.reshape(q.shape[0], q.shape[1], 1, out.shape[3])


@component("kernel", lacks={"scores": NO_SCORES})
class SDPATrainableBias(Kernel):
    """SDPA with gradients of a bias, which torch's fused kernels lack: by distance, or eager."""

    reason = (
        "SDPA; a learned bias has no gradient there: in training it is read from a table of distances, chunk "
        f"by chunk, from {LONG} tokens on (on CPU, without dropout), and eager otherwise"
    )

    def __init__(self, path: ScorePipeline, *, dropout: Dropout = 0.0) -> None:
        super().__init__()
        self.fused = SDPA(path, dropout=dropout)

    def prepare(self, bias: AttentionBias, device: torch.device) -> None:
        self.fused.prepare(bias, device)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias) -> Tensor:
        by_distance = q.shape[2] > 1 and self.fused.reads_relative(bias, q.device)
        kernel = self.fused.eager if not by_distance and bias.learned else self.fused
        return kernel(q, k, v, bias)
