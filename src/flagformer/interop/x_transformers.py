"""Weights of x-transformers 2.31.10, carried into a model built with the same flags.

The two libraries order some things differently: neighbouring against half-split rotated pairs, interleaved
against consecutive grouped heads, three projections against a fused one, gains stored minus one, learned
positions that are scaled at use. All of that is a permutation or a factor, and is undone here. What is not is
refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.attention.attention import Attention
from flagformer.embedding.memory import MemoryTokens
from flagformer.embedding.patches import Registers
from flagformer.head.heads import LinearHead
from flagformer.interop.source import Carried, Source
from flagformer.interop.sublayers import (
    carry_attention,
    carry_branch,
    carry_feedforward,
    carry_norm,
    head_order,
    rotary_of,
)
from flagformer.norm import Norm
from flagformer.position.absolute import Learned, Sinusoidal
from flagformer.position.alibi import ALiBi
from flagformer.position.dynamic import Dynamic
from flagformer.position.t5 import T5
from flagformer.position.xpos import XPos
from flagformer.residual.additive import Scaled
from flagformer.residual.gru import GRUGate
from flagformer.wrappers.transformer import TransformerWrapper
from flagformer.wrappers.vit import ViTransformerWrapper


@torch.no_grad()
def load_x_transformers(
    weights: Mapping[str, Tensor] | nn.Module,
    model: TransformerWrapper | ViTransformerWrapper,
    *,
    norm_add_unit_offset: bool = True,
) -> None:
    """Writes the weights of an x-transformers wrapper of the same class into `model`: equal logits.

    Args:
        weights: the wrapper, or its `state_dict()`.
        model: built with the same flags. Where the two libraries start from other values, say them:
            x-transformers rotates half of each head (`rotary_emb_dim`) and keeps learned positions beside
            ALiBi and dynamic biases (`use_abs_pos_emb`). Its `ff_no_bias` beside `ff_glu` keeps one bias:
            build without `ff_no_bias`, the other biases are then written as zeros.
        norm_add_unit_offset: as the weights were trained; the default of x-transformers.

    Raises:
        ValueError: naming every weight that has no place here and every parameter that gets none; the model
            is then unchanged. Flags without weights (the activation, the scale of `attn_qk_norm`, ALiBi's
            number of heads, interpolation) leave no trace in weights and are not checked.
    """
    if not isinstance(model, (TransformerWrapper, ViTransformerWrapper)):
        known = "a TransformerWrapper or ViTransformerWrapper (of an XTransformer, each half)"
        raise ValueError(f"`model` must be {known}, but is {type(model).__name__}")
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    source, carried = Source(tensors), Carried(model)
    offset = 1.0 if norm_add_unit_offset else 0.0
    if isinstance(model, ViTransformerWrapper):
        _carry_patches(source, carried, model)
    else:
        _carry_embedding(source, carried, model)
    _carry_layers(source, carried, model.attn_layers, offset)
    reasons = source.refused + [f"`{key}` has no place in this model" for key in source.rest()]
    reasons += carried.problems()
    if reasons:
        lines = "\n".join(f"  {reason}" for reason in reasons)
        text = "these x-transformers weights do not fit this model; build it with the same flags"
        raise ValueError(f"{text}\n{lines}")
    carried.write()


def _carry_embedding(source: Source, carried: Carried, model: Any) -> None:
    carried.put(model.token_emb.weight, source.take("token_emb.emb.weight"))
    if isinstance(model.pos_emb, Learned):
        table = source.take("pos_emb.emb.weight")
        factor = 1.0 if model.resolved.flags["l2norm_embed"] else model.embedding.width**-0.5  # at use
        scaled = None if table is None else table * factor
        carried.put(model.pos_emb.table.weight, scaled)
    elif isinstance(model.pos_emb, Sinusoidal):
        carried.put(model.pos_emb.scale, source.take("pos_emb.scale"))
    for name, kind in model.embedding.kinds.items():
        carried.put(kind.weight, source.take(f"embeds.{name}.weight"))
    carry_norm(source, carried, "post_emb_norm", model.embedding.norm, 0.0)
    if isinstance(model.embedding.project, nn.Linear):
        carried.put(model.embedding.project.weight, source.take("project_emb.weight"))
        carried.put(model.embedding.project.bias, source.take("project_emb.bias"))
    if isinstance(model.memory, MemoryTokens):
        carried.put(model.memory.tokens, source.take("memory_tokens"))
    if isinstance(model.head, LinearHead):
        carried.put(model.head.project.weight, source.take("to_logits.weight"))


def _carry_patches(source: Source, carried: Carried, model: ViTransformerWrapper) -> None:
    plain = 0.0  # these norms store their gain as it is
    places = source.take("pos_embedding")
    carried.put(model.patches.places, None if places is None else places.view_as(model.patches.places))
    if isinstance(model.registers, Registers):
        carried.put(model.registers.tokens, source.take("register_tokens"))
    carry_norm(source, carried, "patch_to_embedding.0", model.patches.in_norm, plain)
    carried.put(model.patches.project.weight, source.take("patch_to_embedding.1.weight"))
    carried.put(model.patches.project.bias, source.take("patch_to_embedding.1.bias"))
    carry_norm(source, carried, "patch_to_embedding.2", model.patches.out_norm, plain)
    carry_norm(source, carried, "post_emb_norm", model.post_emb_norm, plain)
    if isinstance(model.head, nn.Linear):
        carried.put(model.head.weight, source.take("mlp_head.weight"))
        carried.put(model.head.bias, source.take("mlp_head.bias"))


def _carry_layers(source: Source, carried: Carried, layers: Any, offset: float) -> None:
    for index, sublayer in enumerate(layers.sublayers):
        norms = f"attn_layers.layers.{index}.0"
        for place, norm in enumerate((sublayer.in_norm, sublayer.branch_norm, sublayer.out_norm)):
            carry_norm(source, carried, f"{norms}.{place}", norm, offset)
        prefix = carry_branch(source, carried, f"attn_layers.layers.{index}.1", sublayer, offset)
        if isinstance(sublayer.fn, Attention):
            carry_attention(source, carried, prefix, sublayer.fn)
        else:
            carry_feedforward(source, carried, prefix, sublayer.fn)
        _carry_residual(source, carried, f"attn_layers.layers.{index}.2", layers.residual, index)
    carry_norm(source, carried, "attn_layers.final_norm", layers.final_norm, offset)
    _carry_bias(source, carried, layers)
    _check_rotation(source, layers.rotation)


def _carry_residual(source: Source, carried: Carried, prefix: str, residual: nn.Module, index: int) -> None:
    if isinstance(residual, Scaled):
        carried.put_row(residual.gains, index, source.take(f"{prefix}.residual_scale"))
    elif isinstance(residual, GRUGate):
        linear: Any
        for linear, name in ((residual.of_out[index], "ih"), (residual.of_stream[index], "hh")):
            carried.put(linear.weight, source.take(f"{prefix}.gru.weight_{name}"))
            carried.put(linear.bias, source.take(f"{prefix}.gru.bias_{name}"))


def _bias_heads(source: Source, layers: Any) -> Tensor:
    """The order of heads in a bias that all self-attention shares."""
    heads = torch.arange(layers.dims.heads)
    orders = [head_order(s.fn) for s in layers.sublayers if s.kind == "a"]
    found = [heads if order is None else order for order in orders] or [heads]
    if any(not torch.equal(order, found[0]) for order in found):
        source.refuse(
            "`attn_kv_heads` differs between layers, which share one position bias with its own heads"
        )
    return found[0]


def _carry_bias(source: Source, carried: Carried, layers: Any) -> None:
    bias, prefix = layers.position_bias, "attn_layers.rel_pos"
    if isinstance(bias, ALiBi):
        if not torch.equal(_bias_heads(source, layers), torch.arange(layers.dims.heads)):
            source.refuse(
                "`attn_kv_heads` with ALiBi: slopes belong to heads, which grouping orders differently"
            )
    elif isinstance(bias, T5):
        table = source.take(f"{prefix}.relative_attention_bias.weight")
        carried.put(bias.table, None if table is None else table[:, _bias_heads(source, layers)])
    elif isinstance(bias, Dynamic):
        _carry_dynamic(source, carried, bias, _bias_heads(source, layers))


def _carry_dynamic(source: Source, carried: Carried, bias: Any, heads: Tensor) -> None:
    for index, (linear, norm, _) in enumerate(bias.hidden):
        prefix = f"attn_layers.rel_pos.mlp.{index}"
        carried.put(linear.weight, source.take(f"{prefix}.0.weight"))
        carried.put(linear.bias, source.take(f"{prefix}.0.bias"))
        if isinstance(norm, Norm):
            # its first norm is its own, the later ones are torch's, with a bias
            carried.put(norm.gain, source.take(f"{prefix}.1.{'weight' if index else 'gamma'}"))
            extra = source.peek(f"{prefix}.1.bias")
            if extra is not None and extra.count_nonzero():
                source.refuse(f"`{prefix}.1.bias` is not zero: norms have no bias in this library")
    for name in ("weight", "bias"):
        value = source.take(f"attn_layers.rel_pos.mlp.{len(bias.hidden)}.{name}")
        carried.put(getattr(bias.out, name), None if value is None else value[heads])


def _check_rotation(source: Source, rotation: nn.Module) -> None:
    """Frequencies are not learned, but tell how many dimensions were turned, and by which base."""
    if isinstance(rotation, XPos):
        source.peek("attn_layers.rotary_pos_emb.scale")  # a constant
    turning = rotary_of(rotation)
    if turning is None:
        return
    theirs = source.take("attn_layers.rotary_pos_emb.inv_freq")
    if theirs is None:
        return
    ours = turning.frequencies.value / turning.frequencies.value[0]  # without the interpolation
    if len(theirs) != len(ours):
        turned = f"these weights turn {2 * len(theirs)} dims of a head, this model {2 * len(ours)}"
        source.refuse(f"{turned}: set `rotary_emb_dim`")
    elif not torch.allclose(theirs.float().to(ours.device), ours, rtol=1e-4):
        source.refuse("these weights turn by other frequencies: set `rotary_base_rescale_factor` as theirs")
