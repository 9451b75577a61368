"""Llama 1 to 3.3, and families that differ from it in a few lines."""

from __future__ import annotations

from flagformer.interop.hugging_face.family import Family
from flagformer.interop.hugging_face.fields import Field, activation, names, on
from flagformer.interop.hugging_face.rope import rope

P = "model.layers.{i}."
A = P + "self_attn."
L = "layers.{i}."
SIZES = {
    **names("vocab_size num_tokens, hidden_size dim, num_hidden_layers depth, num_attention_heads heads"),
    "num_key_value_heads": Field("attn_kv_heads", absent=lambda f: f["heads"]),
    "intermediate_size": "ff_inner_dim",
    "max_position_embeddings": Field("max_seq_len", 2048),
    "head_dim": Field("attn_dim_head", absent=lambda f: f["dim"] // f["heads"]),
    "rms_norm_eps": Field("norm_eps", 1e-6),
    "hidden_act": activation("ff_activation", "silu"),
    "rope_parameters": rope(1e4),
}
NO_FF_BIAS = {False: True, True: False}
BIASES = {
    "attention_bias": Field("attn_qkv_bias attn_out_bias", False),
    "mlp_bias": Field("ff_no_bias", False, NO_FF_BIAS),
}
LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    {**SIZES, **BIASES},
    {
        "model.embed_tokens.weight": "embed.weight",
        "lm_head.weight": "head.weight",
        "model.norm.weight": "norm.weight",
        P + "input_layernorm.weight": L + "attn.in_norm.weight",
        P + "post_attention_layernorm.weight": L + "ff.in_norm.weight",
        **{A + f"{n}_proj.{{p}}": L + f"attn.{n}.{{p}}" for n in "qkvo"},
        **{P + f"mlp.{n}_proj.{{p}}": L + f"ff.{n}.{{p}}" for n in ("gate", "up", "down")},
    },
    fixed=on("use_rmsnorm ff_glu"),
    tied=("lm_head.weight", "model.embed_tokens.weight"),
    prefix="model.",
    drop=(r".*rotary_emb\.inv_freq",),
)
FAMILIES = [LLAMA]
