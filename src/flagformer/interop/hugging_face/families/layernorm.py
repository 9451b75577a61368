"""Relatives of Llama with LayerNorm: StarCoder 2, StableLM, Nemotron."""

from __future__ import annotations

from flagformer.interop.hugging_face.families.llama import LLAMA, NO_BIASES, A, L, P
from flagformer.interop.hugging_face.fields import Field, Fields, activation
from flagformer.interop.hugging_face.rope import rope, windows
from flagformer.interop.hugging_face.tensors import OfHead

NORMS = {
    **dict.fromkeys(
        ("model.norm.weight", P + "input_layernorm.weight", P + "post_attention_layernorm.weight"), ...
    ),
    "model.norm.{p}": "norm.{p}",
    P + "input_layernorm.{p}": L + "attn.in_norm.{p}",
    P + "post_attention_layernorm.{p}": L + "ff.in_norm.{p}",
}
NO_GATE = {P + "mlp.gate_proj.{p}": ...}
LAYERNORM = {"use_rmsnorm": ..., "norm_bias": True}


def bias_fields(name: str, default: bool) -> Fields:
    """One field for the biases of attention and feedforward."""
    return Fields(
        {name: default},
        lambda c, f: {
            "attn_qkv_bias": c[name], "attn_out_bias": c[name], "ff_no_bias": not c[name],
        },
        lambda f: {name: f["attn_out_bias"]},
    )  # fmt: skip


STARCODER2 = LLAMA.but(
    model_type="starcoder2",
    architecture="Starcoder2ForCausalLM",
    fixed={**LAYERNORM, "ff_glu": ...},
    inert="embedding_dropout residual_dropout mlp_type norm_type",
    tensors={
        **NORMS,
        **{P + f"mlp.{n}_proj.{{p}}": ... for n in ("gate", "up", "down")},
        P + "mlp.c_fc.{p}": L + "ff.up.{p}",
        P + "mlp.c_proj.{p}": L + "ff.down.{p}",
    },
    fields={
        **NO_BIASES,
        "rms_norm_eps": ...,
        "norm_epsilon": Field("norm_eps", 1e-5),
        "use_bias": bias_fields("use_bias", True),
        "hidden_act": activation("ff_activation", "gelu_pytorch_tanh"),
        "num_key_value_heads": Field("attn_kv_heads", 2),
        "max_position_embeddings": Field("max_seq_len", 4096),
        "sliding_window": windows(None, types=False, used=False),
    },
)
STABLELM = LLAMA.but(
    model_type="stablelm",
    architecture="StableLmForCausalLM",
    fixed={**LAYERNORM, "ff_no_bias": True},
    inert="hidden_dropout",
    tensors={
        **NORMS,
        A + "q_layernorm.norms.{h}.weight": OfHead(L + "attn.q_norm.weight", "h"),
        A + "k_layernorm.norms.{g}.weight": OfHead(L + "attn.k_norm.weight", "g"),
    },
    fields={
        **NO_BIASES,
        "rms_norm_eps": ...,
        "layer_norm_eps": Field("norm_eps", 1e-5),
        "use_qkv_bias": Field("attn_qkv_bias", False),
        "use_parallel_residual": Field("parallel_block", False),
        "qk_layernorm": Fields(
            {"qk_layernorm": False},
            lambda c, f: (
                {"attn_qk_layernorm": True, "attn_qk_layernorm_eps": f["norm_eps"]}
                if c["qk_layernorm"]
                else {}
            ),
            lambda f: {"qk_layernorm": bool(f.get("attn_qk_layernorm"))},
        ),
        "num_key_value_heads": Field("attn_kv_heads", 32, absent=lambda f: f["heads"]),
        "rope_parameters": rope(1e4, partial=0.25),
        "max_position_embeddings": Field("max_seq_len", 4096),
    },
)
NEMOTRON = LLAMA.but(
    model_type="nemotron",
    architecture="NemotronForCausalLM",
    fixed={**LAYERNORM, "ff_glu": ..., "norm_weight_offset": 1.0},
    tensors={**NORMS, **NO_GATE},
    fields={
        "rms_norm_eps": ...,
        "norm_eps": Field("norm_eps", 1e-5),
        "hidden_act": activation("ff_activation", "relu2"),
        "rope_parameters": rope(1e4, partial=0.5),
        "max_position_embeddings": Field("max_seq_len", 4096),
    },
)
FAMILIES = [STARCODER2, STABLELM, NEMOTRON]
