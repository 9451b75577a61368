"""MPT and Persimmon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.families.gpt2 import BIASED, HEAD
from flagformer.interop.hugging_face.families.parallel import (
    BUFFERS,
    NEOX_SIZES,
    QK_LAYERNORMS,
    head_norms,
    neox_layer,
)
from flagformer.interop.hugging_face.family import INERT, MUST, Family
from flagformer.interop.hugging_face.fields import (
    Config,
    Field,
    Fields,
    Flags,
    activation,
    derived,
    names,
    on,
    under,
)
from flagformer.interop.hugging_face.rope import rope
from flagformer.interop.hugging_face.tensors import Cat

L = "layers.{i}."
# Fields of `attn_config` that the class does not read; others must have one value.
UNREAD = [*f"attn_pdrop attn_impl {INERT}".split(), *MUST]
ATTENTION: Mapping[str, Any] = {
    "attn_type": "multihead_attention", "prefix_lm": False, "qk_ln": False,
    "attn_uses_sequence_id": False, "alibi": True, "alibi_bias_max": 8,
}  # fmt: skip


def _attention(config: Config, flags: Flags) -> Flags:
    given = dict(config["attn_config"] or {})
    scale, clip = given.pop("softmax_scale", None), given.pop("clip_qkv", None)
    why = [
        f"config `attn_config`: `{name}` must be {ATTENTION[name]!r}, but is {value!r}"
        if name in ATTENTION
        else f"config `attn_config`: `{name}` is not known to the table of mpt"
        for name, value in given.items()
        if name not in UNREAD and (name not in ATTENTION or value != ATTENTION[name])
    ]
    if why:
        raise ConversionError(why)
    return {"attn_scale": scale, "attn_clip_qkv": clip or None}


def _attn_config(flags: Flags) -> Config:
    usual = flags.get("attn_scale") in (None, flags["attn_dim_head"] ** -0.5)
    scale = None if usual else flags["attn_scale"]
    return {"attn_config": {**ATTENTION, "softmax_scale": scale, "clip_qkv": flags.get("attn_clip_qkv")}}


B = "transformer.blocks.{i}."
MPT = Family(
    "mpt",
    "MptForCausalLM",
    {
        **names("vocab_size num_tokens, d_model dim, n_layers depth, n_heads heads"),
        " head": HEAD,
        " inner": derived(lambda f: {"ff_inner_dim": 4 * f["dim"]}),
        "max_seq_len": Field("max_seq_len", 2048),
        "layer_norm_epsilon": Field("norm_eps", 1e-5),
        "attn_config": Fields({"attn_config": None}, _attention, _attn_config),
    },
    {
        **names("transformer.wte.weight embed.weight, transformer.norm_f.weight norm.weight"),
        "lm_head.weight": "head.weight",
        **under(B, L, "norm_1.weight attn.in_norm.weight, norm_2.weight ff.in_norm.weight"),
        **under(B, L, "ffn.up_proj.weight ff.up.weight, ffn.down_proj.weight ff.down.weight"),
        B + "attn.Wqkv.weight": Cat(*(L + f"attn.{n}.weight" for n in "qkv")),
        B + "attn.out_proj.weight": L + "attn.o.weight",
    },
    fixed={**on("alibi_pos_bias ff_no_bias"), "ff_activation": "gelu"},
    must={
        "expansion_ratio": 4, "no_bias": True, "logit_scale": None, "norm_type": "low_precision_layernorm",
    },
    inert="resid_pdrop emb_pdrop learned_pos_emb init_device embedding_fraction verbose",
    tied=("lm_head.weight", "transformer.wte.weight"),
    prefix="transformer.",
    missing="`qk_ln`",
)  # fmt: skip
P = "model.layers.{i}."
PERSIMMON = Family(
    "persimmon",
    "PersimmonForCausalLM",
    {
        **NEOX_SIZES,
        "max_position_embeddings": Field("max_seq_len", 16384),
        "hidden_act": activation("ff_activation", "relu2"),
        "qk_layernorm": head_norms(True),
        "rope_parameters": rope(1e4, partial=0.5),
    },
    {
        **names("model.embed_tokens.weight embed.weight, lm_head.weight head.weight"),
        "model.final_layernorm.{p}": "norm.{p}",
        **QK_LAYERNORMS,
        **neox_layer(P, "self_attn"),
    },
    fixed=BIASED,
    inert="hidden_dropout",
    tied=("lm_head.weight", "model.embed_tokens.weight"),
    prefix="model.",
    drop=(BUFFERS,),
)
FAMILIES = [MPT, PERSIMMON]
