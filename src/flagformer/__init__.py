"""flagformer: one transformer core, configured by flags.

Names are imported on first use: `import flagformer` takes milliseconds and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flagformer import moved
from flagformer.flags import CATALOGUE, Finding, FlagError, Instance, Place, Spec, component

if TYPE_CHECKING:
    from flagformer.attention.cores.kmeans import update_kmeans
    from flagformer.audit import audit
    from flagformer.feedforward.balance_bias import update_router_bias
    from flagformer.interop.load import load
    from flagformer.models.build import build, check
    from flagformer.models.replay import memory_replay_backprop, train_segments
    from flagformer.presets import preset
    from flagformer.stack.layers import AttentionLayers, CrossAttender, Decoder, Encoder, PrefixDecoder
    from flagformer.wrappers.autoregressive import AutoregressiveWrapper
    from flagformer.wrappers.classifier import SequenceClassifier
    from flagformer.wrappers.continuous import ContinuousTransformerWrapper
    from flagformer.wrappers.memformer import Memformer
    from flagformer.wrappers.routing import RoutingTransformer, RoutingTransformerLM
    from flagformer.wrappers.routing_pair import RoutingTransformerEncDec
    from flagformer.wrappers.transformer import TransformerWrapper
    from flagformer.wrappers.vit import ViTransformerWrapper
    from flagformer.wrappers.xl import XLAutoregressiveWrapper
    from flagformer.wrappers.xtransformer import XTransformer

__version__ = "0.1.0"

__all__ = [
    "AttentionLayers",
    "AutoregressiveWrapper",
    "ContinuousTransformerWrapper",
    "CrossAttender",
    "Decoder",
    "Encoder",
    "Finding",
    "FlagError",
    "Instance",
    "Memformer",
    "Place",
    "PrefixDecoder",
    "RoutingTransformer",
    "RoutingTransformerEncDec",
    "RoutingTransformerLM",
    "SequenceClassifier",
    "Spec",
    "TransformerWrapper",
    "ViTransformerWrapper",
    "XLAutoregressiveWrapper",
    "XTransformer",
    "audit",
    "build",
    "check",
    "component",
    "load",
    "memory_replay_backprop",
    "preset",
    "train_segments",
    "update_kmeans",
    "update_router_bias",
]  # fmt: skip

MODULES = {
    "attention.cores.kmeans": ("update_kmeans",),
    "feedforward.balance_bias": ("update_router_bias",),
    "presets": ("preset",),
    "stack.layers": ("AttentionLayers", "CrossAttender", "Decoder", "Encoder", "PrefixDecoder"),
    "wrappers.autoregressive": ("AutoregressiveWrapper",),
    "interop.load": ("load",),
    "models.build": ("build", "check"),
    "wrappers.classifier": ("SequenceClassifier",),
    "wrappers.continuous": ("ContinuousTransformerWrapper",),
    "wrappers.memformer": ("Memformer",),
    "models.replay": ("memory_replay_backprop", "train_segments"),
    "wrappers.routing": ("RoutingTransformer", "RoutingTransformerLM"),
    "wrappers.routing_pair": ("RoutingTransformerEncDec",),
    "wrappers.transformer": ("TransformerWrapper",),
    "wrappers.vit": ("ViTransformerWrapper",),
    "wrappers.xl": ("XLAutoregressiveWrapper",),
    "wrappers.xtransformer": ("XTransformer",),
}
# submodules that are attributes of the package; `audit` is also a function
SUBMODULES = ("audit", "catalogue", "interop", "presets")

# every stack resolves its flags against it; the first look-up imports the components, and torch
CATALOGUE.fill_from("flagformer.catalogue")
moved.install()

if not TYPE_CHECKING:  # hidden from type checkers, so that they report unknown names

    def __getattr__(name: str) -> Any:
        if name in SUBMODULES:
            return import_module(f"flagformer.{name}")
        for module, names in MODULES.items():
            if name in names:
                found = globals()[name] = getattr(import_module(f"flagformer.{module}"), name)
                return found
        raise AttributeError(f"module 'flagformer' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
