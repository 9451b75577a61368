"""Conversion of the wrappers of x-transformers: embeddings, patches, heads, and encoder-decoders."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.embedding.memory import MemoryTokens
from flagformer.embedding.patches import Registers
from flagformer.head.heads import LinearHead, TiedHead
from flagformer.interop.conversion import Conversion
from flagformer.interop.stack import convert_layers
from flagformer.interop.sublayers import convert_norm
from flagformer.norm.layernorm import LayerNorm
from flagformer.norm.rmsnorm import RMSNorm
from flagformer.norm.scalenorm import ScaleNorm
from flagformer.position.absolute import Learned, Sinusoidal
from flagformer.wrappers.transformer import TransformerWrapper
from flagformer.wrappers.vit import ViTransformerWrapper
from flagformer.wrappers.xtransformer import XTransformer


def convert_transformer(weights: Conversion, model: TransformerWrapper) -> None:
    """Convert a TransformerWrapper."""
    weights.copy(model.token_emb.weight, "token_emb.emb.weight")
    _convert_positions(weights, model)
    for name, kind in model.embedding.kinds.items():
        weights.copy(kind.weight, f"embeds.{name}.weight")
    convert_norm(weights, "post_emb_norm", model.embedding.norm)
    if isinstance(model.embedding.project, nn.Linear):
        weights.copy_module(model.embedding.project, "project_emb")
    if isinstance(model.memory, MemoryTokens):
        weights.copy(model.memory.tokens, "memory_tokens")
    convert_layers(weights.under("attn_layers."), model.attn_layers)
    if isinstance(model.head, LinearHead):
        weights.copy(model.head.project.weight, "to_logits.weight")
    elif isinstance(model.head, TiedHead) and weights.dialect.plain_tied_logits:
        _restore_tied_scale(weights, model)


def _convert_positions(weights: Conversion, model: Any) -> None:
    if isinstance(model.pos_emb, Learned):
        factor = 1.0 if model.resolved.flags["l2norm_embed"] else model.embedding.width**-0.5  # at use
        weights.copy(model.pos_emb.table.weight, "pos_emb.emb.weight", lambda table: table * factor)
    elif isinstance(model.pos_emb, Sinusoidal):
        weights.copy(model.pos_emb.scale, "pos_emb.scale")


def _restore_tied_scale(weights: Conversion, model: Any) -> None:
    """Scale the weight of the final norm by sqrt(D), as tied logits of 1.27 have no factor."""
    layers = model.attn_layers
    placement = layers.resolved.one("norm_position").name
    if isinstance(layers.final_norm, LayerNorm | RMSNorm | ScaleNorm) and placement != "DualNorm":
        weights.multiply(layers.final_norm.weight, model.head.scale**-1)
    else:
        weights.refuse(
            "`tie_embedding` of x-transformers 1.27 does not divide logits by sqrt(D) as this library does, "
            "and there is no final norm whose weight could absorb it (pre-norm with LayerNorm, RMSNorm or "
            "ScaleNorm)"
        )


def convert_vision(weights: Conversion, model: ViTransformerWrapper) -> None:
    """Convert a ViTransformerWrapper, whose own norms store their weight without offset."""
    grid: Any = model.patches.pos_emb
    if grid is not None:
        weights.copy(grid, "pos_embedding", lambda x: x.view_as(grid) if x.numel() == grid.numel() else x)
    if isinstance(model.registers, Registers):
        weights.copy(model.registers.tokens, "register_tokens")
    convert_norm(weights, "patch_to_embedding.0", model.patches.in_norm)
    weights.copy_module(model.patches.project, "patch_to_embedding.1")
    convert_norm(weights, "patch_to_embedding.2", model.patches.out_norm)
    convert_norm(weights, "post_emb_norm", model.post_emb_norm)
    convert_layers(weights.under("attn_layers."), model.attn_layers)
    if isinstance(model.head, nn.Linear):
        weights.copy_module(model.head, "mlp_head")


def convert_encoder_decoder(weights: Conversion, model: XTransformer) -> None:
    """Convert an XTransformer; the unused logits of its encoder are dropped with a warning."""
    encoder = weights.under("encoder.", weights.dialect.half("enc_"))
    decoder = weights.under("decoder.net.", weights.dialect.half("dec_"))
    if model.own["tie_token_emb"]:
        first, second = encoder.peek("token_emb.emb.weight"), decoder.peek("token_emb.emb.weight")
        if first is not None and second is not None and not torch.equal(first, second):
            decoder.refuse(
                "differs from the encoder's: build without `tie_token_emb`", "token_emb.emb.weight"
            )
    convert_transformer(encoder, model.encoder)
    convert_transformer(decoder, model.decoder.net)
    if encoder.peek("to_logits.weight") is not None:
        text = "`encoder.to_logits.weight` is dropped: the XTransformer of x-transformers does not use it"
        warnings.warn(text, stacklevel=2)


def without_net(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the model in an AutoregressiveWrapper, or the weights as they are."""
    inside = bool(tensors) and all(key.startswith("net.") for key in tensors)
    return {key.removeprefix("net."): value for key, value in tensors.items()} if inside else tensors
