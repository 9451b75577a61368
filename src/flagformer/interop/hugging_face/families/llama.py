"""Llama 1 to 3.3, and families that differ from it in a few lines: Mistral, SmolLM 3, Granite, Phi 3."""

from __future__ import annotations

from flagformer.interop.hugging_face.family import Family
from flagformer.interop.hugging_face.fields import Field, Fields, activation, names, on
from flagformer.interop.hugging_face.rope import FULL, rope, windows
from flagformer.interop.hugging_face.settings import at, collapse
from flagformer.interop.hugging_face.tensors import Cat

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
# Relatives without biases.
NO_BIASES = {"attention_bias": ..., "mlp_bias": ...}
MISTRAL = LLAMA.but(
    model_type="mistral",
    architecture="MistralForCausalLM",
    fixed=on("ff_no_bias"),
    fields={
        **NO_BIASES,
        "num_key_value_heads": Field("attn_kv_heads", 8, absent=lambda f: f["heads"]),
        "max_position_embeddings": Field("max_seq_len", 131072),
        "sliding_window": windows(4096, types=False, used=False),
    },
)
NOPE = Fields(
    {"no_rope_layers": None, "no_rope_layer_interval": 4},
    lambda c, f: {
        "rotary_pos_emb": collapse(
            bool(one)
            for one in c["no_rope_layers"]
            or [(i + 1) % c["no_rope_layer_interval"] for i in range(f["depth"])]
        )
    },
    lambda f: {"no_rope_layers": [int(bool(at(f, "rotary_pos_emb", i))) for i in range(f["depth"])]},
)
SMOLLM3 = LLAMA.but(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    fields={
        "no_rope_layers": NOPE,
        "rope_parameters": rope(2e6),
        "num_key_value_heads": Field("attn_kv_heads", 4),
        "max_position_embeddings": Field("max_seq_len", 32768),
        "sliding_window": windows(None, lambda c, n: [FULL] * n),
    },
)
GRANITE = LLAMA.but(
    model_type="granite",
    architecture="GraniteForCausalLM",
    fields={
        "embedding_multiplier": Field("embedding_scale", 1.0),
        "attention_multiplier": Field("attn_scale", 1.0),
        "residual_multiplier": Field("residual_scale", 1.0),
        "logits_scaling": Fields(
            {"logits_scaling": 1.0},
            lambda c, f: {"logits_scale": 1 / c["logits_scaling"]},
            lambda f: {"logits_scaling": 1 / f["logits_scale"]},
        ),
    },
)
QKV = Cat(*(L + f"attn.{n}.weight" for n in "qkv"))
PHI3 = LLAMA.but(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    fixed=on("ff_no_bias"),
    inert="embd_pdrop resid_pdrop",
    fields={
        **NO_BIASES,
        "rms_norm_eps": Field("norm_eps", 1e-5),
        "max_position_embeddings": Field("max_seq_len", 4096),
        "rope_parameters": rope(1e4, partial=1.0, types=("default", "longrope"), original=4096),
        "sliding_window": windows(None, types=False, used=False),
    },
    tensors={
        **{A + f"{n}_proj.{{p}}": ... for n in "qkv"},
        **{P + f"mlp.{n}_proj.{{p}}": ... for n in ("gate", "up")},
        A + "qkv_proj.weight": QKV,
        P + "mlp.gate_up_proj.weight": Cat(L + "ff.gate.weight", L + "ff.up.weight"),
    },
    missing="a decode state that begins within the original length and grows beyond it (longrope)",
)
FAMILIES = [LLAMA, MISTRAL, SMOLLM3, GRANITE, PHI3]
