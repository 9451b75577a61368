"""Routing transformers (arXiv:2003.05997) with the argument names of the package routing-transformer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.attention.cores.kmeans import update_kmeans
from flagformer.flags import Finding, FlagError
from flagformer.flags.argument_names import named
from flagformer.flags.routing_names import MODEL_ONLY, as_typed, is_size, translate
from flagformer.flow import DecodeState, InterleavedDecodeState, OutputCollector, Outputs
from flagformer.generation import LogitsFilter, PromptLike
from flagformer.ops.sharded import as_forward, as_session
from flagformer.sessions.saved_state import InnerStates
from flagformer.stack.layers import AttentionLayers
from flagformer.stack.whole import Whole
from flagformer.storage.saved import Saved, Unsaved
from flagformer.wrappers.autoregressive import AutoregressiveWrapper
from flagformer.wrappers.transformer import TransformerWrapper


class RoutingNames(nn.Module):
    """Base of models with the argument names of routing-transformer that are saved with these names.

    Attributes:
        kind: the value of `model` in flags.
        own: the flags as typed.
    """

    kind: str
    own: dict[str, Any]

    @property
    def flags(self) -> dict[str, Any]:
        """The flat flags, with the names of routing-transformer, from which `flagformer.build` builds this
        model."""
        return {"model": self.kind, **self.own}

    @abstractmethod
    def halves(self) -> tuple[TransformerWrapper, ...]:
        """The language models, the decoder last."""

    def num_params(self, *, embedding: bool = True) -> int:
        """Number of parameters; without token and position embeddings under `embedding=False`."""
        return sum(half.num_params(embedding=embedding) for half in self.halves())

    def explain(self) -> str:
        """Describe the components of each half, and the reason for each kernel."""
        title = f"{type(self).__name__}: {self.num_params():,} parameters"
        return "\n".join([title, *(half.explain() for half in self.halves())])


class RoutingTransformer(Unsaved, Whole):
    """Routing and local attention over vectors: `model(x)` is (vectors, auxiliary loss).

    Args:
        **flags: `dim`, `depth` and `max_seq_len` (a multiple of `window_size`; there is a cluster for each
            window) are required. Defaults: `heads=8, dim_head=dim // heads, window_size=64,
            local_attn_window_size=window_size, local_attn_radius_blocks=1, causal=False,
            n_local_attn_heads=0, rel_pos_emb=True` (rotary positions), `kmeans_ema_decay=0.999,
            commitment_factor=1e-4, pkm_layers=(), pkm_num_keys=128, moe_layers=(), moe_num_experts=4,
            moe_loss_coef=0.01, num_mem_kv=0, shared_qk=False, receives_context=False, weight_tie=False,
            use_scale_norm=False, shift_tokens=False, ff_glu=False, ff_activation=None` and dropouts of 0.
            Layers of `pkm_layers` and `moe_layers` are counted from 1. All flags of `docs/flags.md` are
            accepted too.

    Departures from the package: causal clusters contain no later tokens; `shared_qk` is False for causal
    models too, because shared vectors did not learn recall; memory keys belong to a head, and to a cluster
    only by `cluster_num_mem_kv` with `routing_selection="topk"`; values are not rotated; the whole context is
    read unless `context_window_size` sets how many tokens of it a centroid selects. Unsupported arguments are
    refused with the reason.

    Raises:
        FlagError: lists every mistake, with the names as typed.
    """

    layers: AttentionLayers
    saving = (
        "`torch.save(model.state_dict(), path)` writes the weights, and "
        "`RoutingTransformer(**flags).load_state_dict(torch.load(path))` reads them"
    )

    def __init__(self, **flags: Any) -> None:
        super().__init__()
        refused = [name for name in MODEL_ONLY if name in flags]
        if refused:
            text = "is for RoutingTransformerLM: this model has no tokens"
            raise FlagError(Finding(name, f"`{name}` {text}") for name in refused)
        self.layers = build_language_model({**_width(flags), **flags, "num_tokens": 1}).attn_layers
        self.max_seq_len = flags["max_seq_len"]

    def forward(
        self,
        x: Tensor,
        *,
        input_mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x [B, T, D], masks [B, T] and [B, S] bool, context [B, S, D] -> ([B, T, D], loss).

        The loss is zero in eval mode. The length T is arbitrary. `condition` is [B, C] or [B, T, C], for
        layers that read one.
        """
        collector = OutputCollector()
        with named({"mask": "input_mask"}):
            out = self.layers(
                x,
                mask=input_mask,
                context=context,
                context_mask=context_mask,
                condition=condition,
                collector=collector,
            )
        return out, _summed(Outputs(out, losses=collector.losses))

    def update_kmeans(self) -> None:
        """Update the centroids; call it after each optimizer step, on all ranks."""
        update_kmeans(self)


class RoutingTransformerLM(InnerStates, RoutingNames, Whole, Saved):
    """A routing transformer over tokens: `model(ids)` is (logits, auxiliary loss).

    `model.net` is the `TransformerWrapper` with the same weights, for `AutoregressiveWrapper` and `explain`.
    `flagformer.build` builds the model with `model: routing_lm`.

    Args:
        **flags: those of `RoutingTransformer`, with `dim_head=64`; `num_tokens`, required; `emb_dim=dim,
            tie_embedding=False, use_absolute_pos_emb=False, return_embeddings=False`.

    Raises:
        FlagError: lists every mistake, with the names as typed.
    """

    kind = "routing_lm"

    def __init__(self, **flags: Any) -> None:
        super().__init__()
        self.net = build_language_model(flags)
        self.max_seq_len = self.net.max_seq_len
        self.own = flags

    @staticmethod
    def from_flags(flags: Mapping[str, Any]) -> RoutingTransformerLM:
        """The model that `flagformer.build` returns for `model: routing_lm`."""
        return RoutingTransformerLM(**{name: value for name, value in flags.items() if name != "model"})

    @property
    def num_tokens(self) -> int:
        """Size V of the vocabulary."""
        return self.net.num_tokens

    @property
    def has_losses(self) -> bool:
        """Whether training forwards compute auxiliary losses."""
        return self.net.has_losses

    @property
    def absolute_positions(self) -> bool:
        """Whether positions are limited to `max_seq_len` by a table."""
        return self.net.absolute_positions

    def halves(self) -> tuple[TransformerWrapper, ...]:
        return (self.net,)

    @property
    def _of_states(self) -> TransformerWrapper:
        return self.net

    def forward(
        self,
        x: Tensor,
        *,
        input_mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        condition: Tensor | None = None,
        state: DecodeState | InterleavedDecodeState | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Ids [B, T], masks [B, T] and [B, S] bool, context [B, S, D] -> (logits [B, T, V], loss).

        With `return_embeddings` vectors [B, T, D] in place of logits. The loss is zero in eval mode.
        `condition` is [B, C] or [B, T, C], for layers that read one. `state` is a result of `init_state`,
        whose tokens x continues.
        """
        kwargs: dict[str, Any] = {"context": context, "context_mask": context_mask}
        kwargs |= {"condition": condition, "state": state}
        with named({"mask": "input_mask"}):
            logits, outputs = self.net(x, mask=input_mask, return_losses=True, **kwargs)
        return logits, _summed(outputs)

    @as_forward
    def loss(self, x: Tensor, *, input_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """The next-token loss with auxiliary losses, that of `AutoregressiveWrapper(model.net)`."""
        with named({"mask": "input_mask"}):
            return AutoregressiveWrapper(self.net)(x, mask=input_mask, **kwargs)

    @as_session
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
        condition: Tensor | None = None,
    ) -> Tensor:
        """New tokens [B, seq_len] after each prompt: see `AutoregressiveWrapper.generate`."""
        with named({"prompts": "start_tokens"}):
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
                condition=condition,
            )

    def update_kmeans(self) -> None:
        """Update the centroids; call it after each optimizer step, on all ranks."""
        update_kmeans(self)


def build_language_model(
    flags: Mapping[str, Any], prefix: str = "", bare: Collection[str] = ()
) -> TransformerWrapper:
    """Build a TransformerWrapper from names of routing-transformer; `bare` names have no `prefix`."""
    if "num_tokens" not in flags:
        text = f"`{prefix}num_tokens` is required: size V of the vocabulary"
        raise FlagError([Finding(prefix + "num_tokens", text)])
    translated, findings = translate(flags, prefix)
    known = {finding.flag for finding in findings}
    try:
        model = TransformerWrapper.from_flags(translated)
    except FlagError as error:
        found = as_typed(error.findings, prefix, flags, bare)
        raise FlagError([*findings, *(one for one in found if one.flag not in known)]) from None
    if findings:
        raise FlagError(dict.fromkeys(findings))
    return model


def _width(flags: Mapping[str, Any]) -> dict[str, int]:
    """The default width of a head, `dim // heads`; empty if a size is invalid."""
    dim, heads = flags.get("dim"), flags.get("heads", 8)
    if {"dim_head", "attn_dim_head"} & set(flags) or not (is_size(dim) and is_size(heads)):
        return {}
    if dim % heads:
        text = f"`dim` must be a multiple of `heads` = {heads}, but is {dim}; or set `dim_head`"
        raise FlagError([Finding("dim", text)])
    return {"dim_head": dim // heads}


def _summed(outputs: Outputs) -> Tensor:
    if outputs.extra_loss is not None:
        return outputs.extra_loss
    return torch.zeros((), device=outputs.embeddings.device)
