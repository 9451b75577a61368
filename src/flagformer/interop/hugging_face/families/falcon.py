"""Falcon: 7B, 40B, RW and 2 (11B), four models in one class."""

from __future__ import annotations

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.families.gpt2 import HEAD
from flagformer.interop.hugging_face.families.layernorm import bias_fields
from flagformer.interop.hugging_face.families.parallel import MLP
from flagformer.interop.hugging_face.family import Family
from flagformer.interop.hugging_face.fields import Config, Field, Fields, Flags, activation, names, on, under
from flagformer.interop.hugging_face.rope import rope
from flagformer.interop.hugging_face.tensors import Groups

H, L = "transformer.h.{i}.", "layers.{i}."
KINDS = {
    "new_decoder_architecture": False, "multi_query": True, "parallel_attn": True, "alibi": False,
    "num_kv_heads": None, "num_ln_in_parallel_attn": None,
}  # fmt: skip
NORMS = "input_layernorm.{p} attn.in_norm.{p}, post_attention_layernorm.{p} ff.in_norm.{p}"
OWN_NORMS = "ln_attn.{p} attn.in_norm.{p}, ln_mlp.{p} ff.in_norm.{p}"


def _kind(config: Config, flags: Flags) -> Flags:
    new, norms = config["new_decoder_architecture"], config["num_ln_in_parallel_attn"]
    if new and config["alibi"]:
        raise ConversionError(["config `alibi` must be False with `new_decoder_architecture`"])
    if not config["parallel_attn"] and new:
        raise ConversionError(["config `parallel_attn` must be True with `new_decoder_architecture`"])
    if norms not in ((None, 1, 2) if new else (None, 1)):
        raise ConversionError([f"config `num_ln_in_parallel_attn`: {norms!r} is not known to the class"])
    heads = flags["heads"]
    groups = (config["num_kv_heads"] or heads) if new else 1 if config["multi_query"] else heads
    found: Flags = {"attn_kv_heads": groups, "parallel_block": bool(new or config["parallel_attn"])}
    if new and norms != 1:
        found["parallel_block_own_norms"] = True
    if config["alibi"]:
        return {**found, **on("alibi_pos_bias alibi_before_scale")}
    return found


def _fields(flags: Flags) -> Config:
    groups, heads = flags["attn_kv_heads"], flags["heads"]
    own = bool(flags.get("parallel_block_own_norms"))
    new = own or groups not in (1, heads)
    return {
        "new_decoder_architecture": new,
        "multi_query": new or groups == 1,
        "parallel_attn": flags["parallel_block"],
        "alibi": bool(flags.get("alibi_pos_bias")),
        "num_kv_heads": groups if new else heads,
        "num_ln_in_parallel_attn": (2 if own else 1) if new else None,
    }


class _Rope:
    """Rotary positions of models without ALiBi."""

    rule = rope(1e4)

    def to_flags(self, config: Config, flags: Flags) -> Flags:
        return {} if flags.get("alibi_pos_bias") else self.rule.to_flags(config, flags)

    def to_fields(self, flags: Flags) -> Config:
        if flags.get("alibi_pos_bias"):
            return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
        return self.rule.to_fields(flags)


FALCON = Family(
    "falcon",
    "FalconForCausalLM",
    {
        "vocab_size": "num_tokens",
        "hidden_size": Field("dim", also="n_embed"),
        **names("num_hidden_layers depth, num_attention_heads heads"),
        " head": HEAD,
        "ffn_hidden_size": Field("ff_inner_dim", None, absent=lambda f: 4 * f["dim"]),
        "max_position_embeddings": Field("max_seq_len", 2048),
        "layer_norm_epsilon": Field("norm_eps", 1e-5),
        "activation": activation("ff_activation", "gelu"),
        "bias": bias_fields("bias", False),
        "alibi": Fields(KINDS, _kind, _fields),
        "rope_parameters": Fields(_Rope.rule.fields, _Rope().to_flags, _Rope().to_fields, _Rope.rule.old),
    },
    lambda f: {
        **names("transformer.word_embeddings.weight embed.weight, lm_head.weight head.weight"),
        "transformer.ln_f.{p}": "norm.{p}",
        **under(H, L, f"{MLP}, self_attention.dense.{{p}} attn.o.{{p}}"),
        **under(H, L, OWN_NORMS if f.get("parallel_block_own_norms") else NORMS),
        H + "self_attention.query_key_value.{p}": Groups(*(L + f"attn.{n}.{{p}}" for n in "qkv")),
    },
    fixed=on("norm_bias"),
    inert="hidden_dropout head_dim rotary",
    tied=("lm_head.weight", "transformer.word_embeddings.weight"),
    prefix="transformer.",
    missing="`alibi` with `new_decoder_architecture`",
)
FAMILIES = [FALCON]
