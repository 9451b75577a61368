"""Routing transformers (arXiv:2003.05997) with the names of routing-transformer: names over the same core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flagformer.attention.cores.kmeans import update_kmeans
from flagformer.flags import Finding, FlagError
from flagformer.flow import Outputs, Tape
from flagformer.generation import LogitsFilter, PromptLike
from flagformer.ops.reset import Whole
from flagformer.stack.layers import AttentionLayers
from flagformer.wrappers.autoregressive import AutoregressiveWrapper
from flagformer.wrappers.flat import build_flat
from flagformer.wrappers.routing_names import MODEL_ONLY, as_typed, translate
from flagformer.wrappers.transformer import TransformerWrapper


class RoutingTransformer(Whole):
    """Routing and local attention over vectors: `model(x)` is (vectors, auxiliary loss).

    Args:
        **flags: `dim`, `depth` and `max_seq_len` (a multiple of `window_size`; there is a cluster for each
            window) are required. Taken when nothing is said: `heads=8, dim_head=dim // heads, window_size=64,
            local_attn_window_size=window_size, local_attn_radius_blocks=1, causal=False,
            n_local_attn_heads=0, rel_pos_emb=True` (rotary positions), `kmeans_ema_decay=0.999,
            commitment_factor=1e-4, pkm_layers=(), pkm_num_keys=128, moe_layers=(), moe_num_experts=4,
            moe_loss_coef=0.01, num_mem_kv=0, shared_qk=False, receives_context=False, weight_tie=False,
            use_scale_norm=False, shift_tokens=False, ff_glu=False, ff_activation=None` and dropouts of 0.
            Layers of `pkm_layers` and `moe_layers` are counted from 1. Any flag of `docs/flags.md` may join.

    Departures from the package: clusters never see the future; `shared_qk` is False for causal models too, as
    shared vectors did not learn to look things up; memory keys are those of a head, not of each cluster
    (`cluster_num_mem_kv` under `routing_selection="topk"`); values are not rotated; the context is read whole
    unless `context_window_size` says how much of it a centroid picks. What cannot be given is refused with
    its reason.

    Raises:
        FlagError: every mistake at once, with the names as typed.
    """

    layers: AttentionLayers

    def __init__(self, **flags: Any) -> None:
        super().__init__()
        foreign = [name for name in MODEL_ONLY if name in flags]
        if foreign:
            text = "is for RoutingTransformerLM: this model has no tokens"
            raise FlagError(Finding(name, f"`{name}` {text}") for name in foreign)
        self.layers = build_language_model({**flags, "dim_head": _width(flags), "num_tokens": 1}).attn_layers
        self.max_seq_len = flags["max_seq_len"]

    def forward(
        self,
        x: Tensor,
        *,
        input_mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x [B, T, D], masks [B, T] and [B, S] bool, context [B, S, D] -> ([B, T, D], loss).

        The loss is zero in eval mode. Any length is taken, of whatever multiple.
        """
        tape = Tape()
        out = self.layers(x, mask=input_mask, context=context, context_mask=context_mask, tape=tape)
        return out, _summed(Outputs(out, losses=tape.losses))

    def update_kmeans(self) -> None:
        """Moves the centroids: once for each step of the optimizer, after it, on all ranks."""
        update_kmeans(self)


class RoutingTransformerLM(Whole):
    """A routing transformer over tokens: `model(ids)` is (logits, auxiliary loss).

    `model.net` is the `TransformerWrapper` of the same weights, for whatever takes one
    (`AutoregressiveWrapper`, `save`, `explain`).

    Args:
        **flags: those of `RoutingTransformer`, with `dim_head=64`; `num_tokens`, required; `emb_dim=dim,
            tie_embedding=False, use_absolute_pos_emb=False, return_embeddings=False`.

    Raises:
        FlagError: every mistake at once, with the names as typed.
    """

    def __init__(self, **flags: Any) -> None:
        super().__init__()
        self.net = build_language_model(flags)
        self.max_seq_len = self.net.max_seq_len

    def forward(
        self,
        x: Tensor,
        *,
        input_mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Ids [B, T], masks [B, T] and [B, S] bool, context [B, S, D] -> (logits [B, T, V], loss).

        With `return_embeddings` vectors [B, T, D] in place of logits. The loss is zero in eval mode.
        """
        logits, outputs = self.net(
            x, mask=input_mask, context=context, context_mask=context_mask, return_losses=True
        )
        return logits, _summed(outputs)

    def loss(self, x: Tensor, *, input_mask: Tensor | None = None, **how: Any) -> Tensor:
        """The loss of next tokens with the auxiliary ones: that of `AutoregressiveWrapper(model.net)`."""
        return AutoregressiveWrapper(self.net)(x, mask=input_mask, **how)

    def generate(
        self,
        start_tokens: PromptLike,
        seq_len: int,
        eos_token: int | None = None,
        temperature: float = 1.0,
        filter_logits_fn: str | LogitsFilter | None = "top_k",
        filter_kwargs: Mapping[str, Any] | None = None,
        cache_kv: bool = True,
        seed: int | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """New tokens [B, seq_len] after each prompt: see `AutoregressiveWrapper.generate`."""
        return AutoregressiveWrapper(self.net).generate(
            start_tokens,
            seq_len,
            eos_token,
            temperature,
            filter_logits_fn=filter_logits_fn,
            filter_kwargs=filter_kwargs,
            cache_kv=cache_kv,
            seed=seed,
            context=context,
            context_mask=context_mask,
        )

    def update_kmeans(self) -> None:
        """Moves the centroids: once for each step of the optimizer, after it, on all ranks."""
        update_kmeans(self)


def build_language_model(flags: Mapping[str, Any], prefix: str = "") -> TransformerWrapper:
    """The TransformerWrapper that names of routing-transformer say."""
    if "num_tokens" not in flags:
        text = f"`{prefix}num_tokens` is required: size V of the vocabulary"
        raise FlagError([Finding(prefix + "num_tokens", text)])
    translated = translate(flags, prefix)
    kind = translated.pop("model")
    try:
        return build_flat(kind, translated)
    except FlagError as error:
        raise FlagError(as_typed(error.findings, prefix, flags)) from None


def _width(flags: Mapping[str, Any]) -> Any:
    """What each head is wide: a share of `dim` unless said."""
    dim, heads = flags.get("dim"), flags.get("heads", 8)
    if (
        flags.get("dim_head") is not None
        or not isinstance(dim, int)
        or not isinstance(heads, int)
        or heads < 1
    ):
        return 64 if flags.get("dim_head") is None else flags["dim_head"]
    if dim % heads:
        text = f"`dim` must be a multiple of `heads` = {heads}, but is {dim}; or say `dim_head`"
        raise FlagError([Finding("dim", text)])
    return dim // heads


def _summed(outputs: Outputs) -> Tensor:
    if outputs.extra_loss is not None:
        return outputs.extra_loss
    return torch.zeros((), device=outputs.embeddings.device)
