"""Conversion of the wrappers of x-transformers: embeddings, patches, heads, and encoder-decoders."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.embedding.memory import MemoryTokens
from flagformer.embedding.patches import Registers
from flagformer.head.heads import LinearHead, TiedHead
from flagformer.interop.source import ConvertedWeights, SourceWeights
from flagformer.interop.stack import convert_layers
from flagformer.interop.sublayers import convert_norm
from flagformer.norm.layernorm import LayerNorm
from flagformer.norm.rmsnorm import RMSNorm
from flagformer.norm.scalenorm import ScaleNorm
from flagformer.position.absolute import Learned, Sinusoidal
from flagformer.wrappers.transformer import TransformerWrapper
from flagformer.wrappers.vit import ViTransformerWrapper
from flagformer.wrappers.xtransformer import XTransformer


def convert_transformer(
    source: SourceWeights, converted: ConvertedWeights, model: TransformerWrapper
) -> None:
    """Convert a TransformerWrapper."""
    converted.put(model.token_emb.weight, source.take("token_emb.emb.weight"))
    _convert_positions(source, converted, model)
    for name, kind in model.embedding.kinds.items():
        converted.put(kind.weight, source.take(f"embeds.{name}.weight"))
    convert_norm(source, converted, "post_emb_norm", model.embedding.norm)
    if isinstance(model.embedding.project, nn.Linear):
        converted.put(model.embedding.project.weight, source.take("project_emb.weight"))
        converted.put(model.embedding.project.bias, source.take("project_emb.bias"))
    if isinstance(model.memory, MemoryTokens):
        converted.put(model.memory.tokens, source.take("memory_tokens"))
    convert_layers(source.under("attn_layers."), converted, model.attn_layers)
    if isinstance(model.head, LinearHead):
        converted.put(model.head.project.weight, source.take("to_logits.weight"))
    elif isinstance(model.head, TiedHead) and source.dialect.plain_tied_logits:
        _restore_tied_scale(source, converted, model)


def _convert_positions(source: SourceWeights, converted: ConvertedWeights, model: Any) -> None:
    if isinstance(model.pos_emb, Learned):
        table = source.take("pos_emb.emb.weight")
        factor = 1.0 if model.resolved.flags["l2norm_embed"] else model.embedding.width**-0.5  # at use
        converted.put(model.pos_emb.table.weight, None if table is None else table * factor)
    elif isinstance(model.pos_emb, Sinusoidal):
        converted.put(model.pos_emb.scale, source.take("pos_emb.scale"))


def _restore_tied_scale(source: SourceWeights, converted: ConvertedWeights, model: Any) -> None:
    """Scale the weight of the final norm by sqrt(D), as tied logits of 1.27 have no factor."""
    layers = model.attn_layers
    placement = layers.resolved.one("norm_position").name
    if isinstance(layers.final_norm, LayerNorm | RMSNorm | ScaleNorm) and placement != "DualNorm":
        converted.multiply(layers.final_norm.weight, model.head.scale**-1)
    else:
        source.refuse(
            "`tie_embedding` of x-transformers 1.27 does not divide logits by sqrt(D) as this library does, "
            "and there is no final norm whose weight could absorb it (pre-norm with LayerNorm, RMSNorm or "
            "ScaleNorm)"
        )


def convert_vision(source: SourceWeights, converted: ConvertedWeights, model: ViTransformerWrapper) -> None:
    """Convert a ViTransformerWrapper, whose own norms store their weight without offset."""
    grid: Any = model.patches.pos_emb
    table = None if grid is None else source.take("pos_embedding")
    if table is not None:
        converted.put(grid, table.view_as(grid) if table.numel() == grid.numel() else table)
    if isinstance(model.registers, Registers):
        converted.put(model.registers.tokens, source.take("register_tokens"))
    convert_norm(source, converted, "patch_to_embedding.0", model.patches.in_norm)
    converted.put(model.patches.project.weight, source.take("patch_to_embedding.1.weight"))
    converted.put(model.patches.project.bias, source.take("patch_to_embedding.1.bias"))
    convert_norm(source, converted, "patch_to_embedding.2", model.patches.out_norm)
    convert_norm(source, converted, "post_emb_norm", model.post_emb_norm)
    convert_layers(source.under("attn_layers."), converted, model.attn_layers)
    if isinstance(model.head, nn.Linear):
        converted.put(model.head.weight, source.take("mlp_head.weight"))
        converted.put(model.head.bias, source.take("mlp_head.bias"))


def convert_encoder_decoder(source: SourceWeights, converted: ConvertedWeights, model: XTransformer) -> None:
    """Convert an XTransformer; the unused logits of its encoder are dropped with a warning."""
    encoder = source.under("encoder.", source.dialect.half("enc_"))
    decoder = source.under("decoder.net.", source.dialect.half("dec_"))
    if model.own["tie_token_emb"]:
        first, second = encoder.peek("token_emb.emb.weight"), decoder.peek("token_emb.emb.weight")
        if first is not None and second is not None and not torch.equal(first, second):
            decoder.refuse(
                "differs from the encoder's: build without `tie_token_emb`", "token_emb.emb.weight"
            )
    convert_transformer(encoder, converted, model.encoder)
    convert_transformer(decoder, converted, model.decoder.net)
    if encoder.peek("to_logits.weight") is not None:
        text = "`encoder.to_logits.weight` is dropped: the XTransformer of x-transformers does not use it"
        warnings.warn(text, stacklevel=2)


def without_net(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the model in an AutoregressiveWrapper, or the weights as they are."""
    inside = bool(tensors) and all(key.startswith("net.") for key in tensors)
    return {key.removeprefix("net."): value for key, value in tensors.items()} if inside else tensors
