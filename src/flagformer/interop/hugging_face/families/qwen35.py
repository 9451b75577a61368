"""Qwen 3.5, text: Qwen 3 Next with separate projections, and with or without experts."""

from __future__ import annotations

from flagformer.interop.hugging_face.families.hybrid import QWEN3_NEXT, D, X
from flagformer.interop.hugging_face.families.llama import P
from flagformer.interop.hugging_face.families.moe import GATED, NO_FF
from flagformer.interop.hugging_face.fields import Field, on
from flagformer.interop.hugging_face.rope import rope
from flagformer.interop.hugging_face.tensors import Cat, JoinedGroups

PARTS = ("gate", "up", "down")
SEPARATE = {
    D + "in_proj_qkvz.weight": ...,
    D + "in_proj_ba.weight": ...,
    D + "in_proj_qkv.weight": Cat(*(JoinedGroups(X + f"{n}.weight") for n in "qkv")),
    D + "in_proj_z.weight": JoinedGroups(X + "gate.weight"),
    D + "in_proj_b.weight": JoinedGroups(X + "beta.weight"),
    D + "in_proj_a.weight": JoinedGroups(X + "step.weight"),
}
ROPE = rope(1e4, partial=0.25, unread=("mrope_section", "mrope_interleaved"))
MOE = QWEN3_NEXT.but(
    model_type="qwen3_5_moe_text",
    architecture="Qwen3_5MoeForCausalLM",
    fixed=on("ff_moe"),
    tensors={
        **SEPARATE,
        **NO_FF,
    },
    fields={
        "rope_parameters": ROPE,
        "intermediate_size": ...,
        "norm_topk_prob": ...,
        "moe_intermediate_size": Field("ff_inner_dim", 512),
        "num_experts": Field("moe_num_experts", 256, also="num_local_experts"),
        "num_experts_per_tok": Field("moe_top_k", 8),
    },
)
DENSE = QWEN3_NEXT.but(
    model_type="qwen3_5_text",
    architecture="Qwen3_5ForCausalLM",
    fixed={"moe_num_shared_experts": ..., "moe_shared_gate": ...},
    tensors={
        **SEPARATE,
        **dict.fromkeys(GATED, ...),
        **{P + f"mlp.shared_expert.{n}_proj.weight": ... for n in PARTS},
        P + "mlp.shared_expert_gate.weight": ...,
    },
    fields={
        "rope_parameters": ROPE,
        "num_experts_per_tok": ...,
        "norm_topk_prob": ...,
        "shared_expert_intermediate_size": ...,
        "num_key_value_heads": Field("attn_kv_heads", 4),
        "intermediate_size": "ff_inner_dim",
    },
)
FAMILIES = [DENSE, MOE]
