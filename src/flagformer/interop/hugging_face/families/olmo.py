"""OLMo 1 to 3. 2 and 3: norms of branches, and one mean square over all heads of queries and keys."""

from __future__ import annotations

from flagformer.interop.hugging_face.families.llama import LLAMA, L, P
from flagformer.interop.hugging_face.families.qwen import QK_NORMS
from flagformer.interop.hugging_face.fields import Config, Field, on
from flagformer.interop.hugging_face.rope import FULL, SLIDING, rope, windows


def every_fourth(config: Config, depth: int) -> list[str]:
    """Every fourth layer attends to all tokens."""
    return [SLIDING if (i + 1) % 4 else FULL for i in range(depth)]


OLMO = LLAMA.but(
    model_type="olmo",
    architecture="OlmoForCausalLM",
    fields={"mlp_bias": ..., "rms_norm_eps": ..., "clip_qkv": Field("attn_clip_qkv", None)},
    fixed={"use_rmsnorm": ..., "norm_weight": False, "norm_eps": 1e-5, "ff_no_bias": True},
    tensors={
        "model.norm.weight": ...,
        P + "input_layernorm.weight": ...,
        P + "post_attention_layernorm.weight": ...,
    },
)
OLMO2 = LLAMA.but(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    fields={"mlp_bias": ..., "rms_norm_eps": Field("norm_eps attn_qk_rmsnorm_eps", 1e-5)},
    fixed=on("res_post_norm attn_qk_rmsnorm attn_qk_rmsnorm_all_heads ff_no_bias"),
    tensors={
        **QK_NORMS,
        P + "input_layernorm.weight": ...,
        P + "post_attention_layernorm.weight": L + "attn.branch_norm.weight",
        P + "post_feedforward_layernorm.weight": L + "ff.branch_norm.weight",
    },
)
OLMO3 = OLMO2.but(
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    fields={
        "rope_parameters": ...,
        "sliding_window": windows(4096, every_fourth, used=False),
        " rope": rope(5e5, {FULL: 5e5, SLIDING: 5e5}),
    },
)
FAMILIES = [OLMO, OLMO2, OLMO3]
