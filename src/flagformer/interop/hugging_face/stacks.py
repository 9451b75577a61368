"""The stacks of each kind of model, and the flags of the model around them."""

from __future__ import annotations

from typing import Any, NamedTuple

from flagformer.wrappers.classifier import SequenceClassifier
from flagformer.wrappers.transformer import TransformerWrapper
from flagformer.wrappers.vit import ViTransformerWrapper
from flagformer.wrappers.xtransformer import XTransformer

KINDS = (TransformerWrapper, SequenceClassifier, XTransformer, ViTransformerWrapper)
# Flags of the model around the stacks that have a part in the function of inference.
OWN = {
    "classifier": ("num_classes", "pooling", "pooler", "pooler_activation"),
    "xtransformer": ("dim", "tie_token_emb", "src_dim", "src_conv"),
    "vit": (
        "image_size", "patch_size", "channels", "num_classes", "patch_norm", "patch_bias", "class_token",
        "class_token_position", "distillation_token",
        "pooling", "pooler", "pooler_activation", "post_emb_norm",
        "post_emb_norm_eps",        "post_emb_norm_bias", "num_register_tokens",
    ),
}  # fmt: skip


class Stack(NamedTuple):
    """A part of a model with layers of its own.

    Attributes:
        flags: the prefix of its flags.
        plain: the prefix of its plain names.
        state: the prefix of its names in the state dict.
        model: the part, with `attn_layers`.
    """

    flags: str
    plain: str
    state: str
    model: Any


def stacks_of(model: Any) -> list[Stack]:
    """The stacks of a model."""
    if isinstance(model, XTransformer):
        decoder = Stack("dec_", "dec.", "decoder.net.", model.decoder.net)
        if model.own["src_dim"]:  # a model of vectors around the layers
            return [Stack("enc_", "enc.", "encoder.net.", model.encoder.net), decoder]
        return [Stack("enc_", "enc.", "encoder.", model.encoder), decoder]
    if isinstance(model, SequenceClassifier):
        return [Stack("", "", "encoder.", model.encoder)]
    return [Stack("", "", "", model)]


def own_settings(model: Any) -> dict[str, Any]:
    """The flags of the model around its stacks."""
    kind = model.flags["model"]
    return {"model": kind, **{name: model.own[name] for name in OWN.get(kind, ())}}
