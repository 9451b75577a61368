"""DeepSeek V2 and V3, Kimi K2: latent attention, shared experts, first layers without experts."""

from __future__ import annotations

import math

from flagformer.interop.hugging_face.families.llama import LLAMA, A, L, P
from flagformer.interop.hugging_face.families.moe import GATED, M, by_layer
from flagformer.interop.hugging_face.fields import Config, Field, Fields, Flags, derived, on
from flagformer.interop.hugging_face.rope import rope
from flagformer.interop.hugging_face.settings import at
from flagformer.interop.hugging_face.tensors import PerHead


def _scale(flags: Flags) -> Flags:
    """YaRN's second factor enters the scores squared."""
    scaling = flags.get("rotary_scaling") or {}
    weight, factor = scaling.get("mscale_all_dim"), scaling.get("factor", 1)
    grown = 0.1 * weight * math.log(factor) + 1 if weight and factor > 1 else 1.0
    return {"attn_scale": flags["attn_dim_head"] ** -0.5 * grown * grown}


WIDTHS = Fields(
    {"qk_rope_head_dim": 64, "qk_nope_head_dim": 128},
    lambda c, f: {
        "attn_rope_dim": c["qk_rope_head_dim"],
        "attn_dim_head": c["qk_rope_head_dim"] + c["qk_nope_head_dim"],
    },
    lambda f: {
        "qk_rope_head_dim": f["attn_rope_dim"],
        "qk_nope_head_dim": f["attn_dim_head"] - f["attn_rope_dim"],
    },
)


def _first_dense(dense: list[int]) -> Config:
    return {"first_k_dense_replace": len(dense)}


def _groups(config: Config, flags: Flags) -> Flags:
    """Groups of which all may be chosen are none."""
    groups, best = config["n_group"] or 1, config["topk_group"] or 1
    return {"moe_num_groups": groups, "moe_top_groups": best} if groups != best else {}


def _experts(first: int, wide: int, narrow: int, count: int) -> Fields:
    sizes = {"intermediate_size": wide, "moe_intermediate_size": narrow, "n_routed_experts": count}
    return by_layer(
        {**sizes, "first_k_dense_replace": first}, lambda c, i: i < c["first_k_dense_replace"], _first_dense
    )


ATTENTION = {
    A + "o_proj.{p}": L + "attn.o.{p}",
    A + "q_proj.weight": PerHead(L + "attn.q_nope.weight", L + "attn.q_rope.weight"),
    A + "q_a_proj.{p}": L + "attn.q_down.{p}",
    A + "q_a_layernorm.weight": L + "attn.q_down_norm.weight",
    A + "kv_a_proj_with_mqa.{p}": L + "attn.kv_down.{p}",
    A + "kv_a_layernorm.weight": L + "attn.kv_down_norm.weight",
    A + "kv_b_proj.weight": PerHead(L + "attn.k_up.weight", L + "attn.v_up.weight"),
}
SHARED = {P + f"mlp.shared_experts.{n}_proj.weight": M + f"shared.{n}.weight" for n in ("gate", "up", "down")}


def _queries(flags: Flags) -> dict[str, object]:
    """With a latent of the queries their projection is named `q_b_proj`."""
    if not at(flags, "attn_q_rank", 0):
        return {**ATTENTION}
    return {name.replace("q_proj.", "q_b_proj."): rule for name, rule in ATTENTION.items()}


BODY = {
    name: rule
    for name, rule in LLAMA.tensors.items()  # type: ignore[union-attr]
    if not name.startswith(A)
}
DEEPSEEK = LLAMA.but(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    fixed={**on("ff_no_bias moe_balance_bias"), "moe_router": "sigmoid"},
    must={"topk_method": "noaux_tc", "scoring_func": "sigmoid", "moe_layer_freq": 1},
    inert="""num_nextn_predict_layers num_mtp_layers ep_size seq_aux aux_loss_alpha head_dim qk_head_dim
        num_key_value_heads""",
    drop=(r".*rotary_emb\.inv_freq", r"model\.layers\.61\..*"),
    fields={
        "mlp_bias": ...,
        "num_key_value_heads": ...,
        "head_dim": ...,
        "rope_parameters": ...,
        "q_lora_rank": Field("attn_q_rank", 1536, absent=lambda f: None),
        "kv_lora_rank": Field("attn_kv_rank", 512),
        "qk_rope_head_dim": WIDTHS,
        "v_head_dim": Field("attn_value_dim_head", 128),
        "max_position_embeddings": Field("max_seq_len", 4096),
        " rope": rope(1e4, width="attn_rope_dim"),
        "rope_interleave": Field("rotary_interleaved", True),
        " scale": derived(_scale),
        "intermediate_size": _experts(3, 18432, 2048, 256),
        "n_shared_experts": Field("moe_num_shared_experts", 1),
        "num_experts_per_tok": Field("moe_top_k", 8),
        "n_group": Fields(
            {"n_group": 8, "topk_group": 4},
            _groups,
            lambda f: {"n_group": f.get("moe_num_groups", 1), "topk_group": f.get("moe_top_groups", 1)},
        ),
        "norm_topk_prob": Field("moe_normalize_weights", True),
        "routed_scaling_factor": Field("moe_weight_scale", 2.5),
    },
    tensors=lambda f: {
        **BODY,
        **_queries(f),
        **GATED,
        **SHARED,
        P + "mlp.gate.e_score_correction_bias": M + "balance",
    },
    missing="the layers of multi-token prediction are left out",
)
DEEPSEEK2 = DEEPSEEK.but(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    fixed={
        "moe_balance_bias": ...,
        "moe_router": ...,
        "rotary_interleaved": True,
        "moe_normalize_weights": False,
    },
    must={"topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False, "mlp_bias": False},
    inert=DEEPSEEK.inert + " n_group topk_group",
    fields={
        "rope_interleave": ...,
        "n_group": ...,
        "norm_topk_prob": ...,
        "max_position_embeddings": Field("max_seq_len", 2048),
        "intermediate_size": _experts(0, 11008, 1407, 64),
        "n_shared_experts": Field("moe_num_shared_experts", 2),
        "num_experts_per_tok": Field("moe_top_k"),
        "routed_scaling_factor": Field("moe_weight_scale", 1.0),
    },
    tensors=lambda f: {**BODY, **_queries(f), **GATED, **SHARED},
    drop=(r".*rotary_emb\.inv_freq",),
    missing="`topk_method: group_limited_greedy`",
)
# The same class under another name, which transformers 5.24 does not know.
KIMI_K2 = DEEPSEEK.but(model_type="kimi_k2")
FAMILIES = [DEEPSEEK, DEEPSEEK2, KIMI_K2]
