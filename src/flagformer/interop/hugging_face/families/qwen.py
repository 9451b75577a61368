"""Qwen 2, 2.5 and 3."""

from __future__ import annotations

from flagformer.interop.hugging_face.families.llama import BIASES, LLAMA, NO_BIASES, A, L
from flagformer.interop.hugging_face.fields import Config, Field, on
from flagformer.interop.hugging_face.rope import FULL, SLIDING, windows

SHARED_QK_NORM = {"attn_qk_rmsnorm": True, "attn_qk_rmsnorm_weight": "shared"}
QK_NORMS = {A + f"{n}_norm.weight": L + f"attn.{n}_norm.weight" for n in "qk"}
EPS = Field("norm_eps attn_qk_rmsnorm_eps", 1e-6)


def _kinds(config: Config, depth: int) -> list[str]:
    """Windows from `max_window_layers` on."""
    used = config["sliding_window"] and config["use_sliding_window"]
    return [SLIDING if used and i >= config["max_window_layers"] else FULL for i in range(depth)]


QWEN2 = LLAMA.but(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    fixed=on("attn_qkv_bias ff_no_bias"),
    fields={
        **NO_BIASES,
        "max_position_embeddings": Field("max_seq_len", 32768),
        "num_key_value_heads": Field("attn_kv_heads", 32, absent=lambda f: f["heads"]),
        "sliding_window": windows(4096, _kinds),
    },
)
QWEN3 = QWEN2.but(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    fields={
        "attention_bias": BIASES["attention_bias"],
        "head_dim": Field("attn_dim_head", 128),
        "rms_norm_eps": EPS,
    },
    fixed={"attn_qkv_bias": ..., **SHARED_QK_NORM},
    tensors=QK_NORMS,
)
FAMILIES = [QWEN2, QWEN3]
