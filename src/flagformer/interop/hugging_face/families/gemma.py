"""Gemma 1, 2 and 3 (text)."""

from __future__ import annotations

from flagformer.interop.hugging_face.families.llama import LLAMA, L, P
from flagformer.interop.hugging_face.families.qwen import EPS, QK_NORMS, SHARED_QK_NORM
from flagformer.interop.hugging_face.fields import (
    Config,
    Field,
    Fields,
    activation,
    derived,
    on,
    square,
)
from flagformer.interop.hugging_face.rope import FULL, SLIDING, rope, windows

TANH = "gelu_pytorch_tanh"
GEMMA = LLAMA.but(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    fixed={"norm_weight_offset": 1.0, "ff_no_bias": True},
    fields={
        "mlp_bias": ...,
        "max_position_embeddings": Field("max_seq_len", 8192),
        "head_dim": Field("attn_dim_head", 256),
        "num_key_value_heads": Field("attn_kv_heads", 16),
        "hidden_act": activation("ff_activation", TANH, {"gelu": "gelu_tanh"}),
        " scale": derived(lambda f: {"embedding_scale": f["dim"] ** 0.5}),
    },
    must={"use_bidirectional_attention": None},
)
SANDWICH = {
    P + "post_attention_layernorm.weight": L + "attn.branch_norm.weight",
    P + "pre_feedforward_layernorm.weight": L + "ff.in_norm.weight",
    P + "post_feedforward_layernorm.weight": L + "ff.branch_norm.weight",
}
SOFT_CAP = Fields(
    {"attn_logit_softcapping": 50.0},
    lambda c, f: {
        "attn_softclamp_logits": c["attn_logit_softcapping"] is not None,
        "attn_logit_softclamp_value": c["attn_logit_softcapping"],
    },
    lambda f: {
        "attn_logit_softcapping": f["attn_logit_softclamp_value"] if f.get("attn_softclamp_logits") else None
    },
)


def _alternate(config: Config, depth: int) -> list[str]:
    return [FULL if i % 2 else SLIDING for i in range(depth)]


def _every_sixth(config: Config, depth: int) -> list[str]:
    period = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    return [SLIDING if (i + 1) % period else FULL for i in range(depth)]


GEMMA2 = GEMMA.but(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    tensors=SANDWICH,
    fixed=on("sandwich_norm"),
    fields={
        "hidden_act": ...,
        "hidden_activation": activation("ff_activation", TANH),
        "num_key_value_heads": Field("attn_kv_heads", 4),
        "query_pre_attn_scalar": square("query_pre_attn_scalar", 256),
        "attn_logit_softcapping": SOFT_CAP,
        "final_logit_softcapping": Field("logits_softcap", 30.0, absent=lambda f: None),
        "sliding_window": windows(4096, _alternate, used=False),
    },
)
GEMMA3 = GEMMA2.but(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    tensors=QK_NORMS,
    fixed={**SHARED_QK_NORM, "attn_qk_rmsnorm_weight_offset": 1.0},
    must={"use_bidirectional_attention": False, "attn_logit_softcapping": None},
    inert="_sliding_window_pattern",
    fields={
        "max_position_embeddings": Field("max_seq_len", 131072),
        "attn_logit_softcapping": ...,
        "final_logit_softcapping": Field("logits_softcap", None),
        "rms_norm_eps": EPS,
        "rope_parameters": ...,
        "sliding_window": windows(4096, _every_sixth, used=False),
        " rope": rope(1e6, {FULL: 1e6, SLIDING: 1e4}),
    },
)
FAMILIES = [GEMMA, GEMMA2, GEMMA3]
