"""flagformer: one transformer core, configured by flags."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flagformer.catalogue  # noqa: F401  fills the registry that every stack resolves its flags against
from flagformer.attention.cores.kmeans import update_kmeans
from flagformer.flags import Finding, FlagError, Ready, Spec, component
from flagformer.presets import preset
from flagformer.stack.layers import AttentionLayers, CrossAttender, Decoder, Encoder, PrefixDecoder
from flagformer.wrappers.autoregressive import AutoregressiveWrapper
from flagformer.wrappers.build import build, check, load
from flagformer.wrappers.memformer import Memformer
from flagformer.wrappers.replay import memory_replay_backprop, train_segments
from flagformer.wrappers.routing import RoutingTransformer, RoutingTransformerLM
from flagformer.wrappers.routing_pair import RoutingTransformerEncDec
from flagformer.wrappers.transformer import TransformerWrapper
from flagformer.wrappers.vit import ViTransformerWrapper
from flagformer.wrappers.xl import XLAutoregressiveWrapper
from flagformer.wrappers.xtransformer import XTransformer

if TYPE_CHECKING:
    from flagformer.audit import audit

__version__ = "0.1.0"

__all__ = [
    "AttentionLayers", "AutoregressiveWrapper", "CrossAttender", "Decoder", "Encoder", "Finding", "FlagError",
    "Memformer", "PrefixDecoder", "Ready", "RoutingTransformer", "RoutingTransformerEncDec",
    "RoutingTransformerLM", "Spec", "TransformerWrapper", "ViTransformerWrapper", "XLAutoregressiveWrapper",
    "XTransformer", "audit", "build", "check", "component", "load", "memory_replay_backprop", "preset",
    "train_segments", "update_kmeans",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # the audit is an application, loaded when somebody asks for it
    if name == "audit":
        from flagformer.audit import audit

        return audit
    raise AttributeError(f"module 'flagformer' has no attribute {name!r}")
