"""Random mixes of flags: the values of each flag, and how many of them a mix holds."""

import random

from flagformer.flags import CATALOGUE

# selector -> (its values, what tunes it -> values)
CHOICES = {
    "use_abs_pos_emb": ([True, False], {"abs_pos_emb_offset": [2]}),
    "scaled_sinu_pos_emb": ([True], {}),
    "disable_abs_pos_emb": ([True, False], {}),
    "emb_dim": ([6, 24], {}),
    "embedding_scale": ([True, 0.5], {}),
    "num_token_types": ([1, 2], {}),
    "post_emb_norm": ([True], {"post_emb_norm_eps": [0.01], "post_emb_norm_bias": [True]}),
    "l2norm_embed": ([True], {}),
    "emb_frac_gradient": ([0.5], {}),
    "embed_num_tokens": ([{"kind": 3}], {}),
    "tie_embedding": ([True], {"tie_embedding_scale": [1.0, 0.3]}),
    "logits_bias": ([True], {}),
    "logits_scale": ([0.5, 3.0], {}),
    "logits_softcap": ([1.0, 20.0], {}),
    "head_transform": (
        ["gelu", "tanh"],
        {"head_transform_bias": [False], "head_transform_eps": [0.01, 0.3]},
    ),
    "return_only_embed": ([True], {}),
    "logits_dim": ([7], {}),
    "num_memory_tokens": ([1, 3], {"memory_tokens_interspersed_every": [1, 3, 4]}),
    "max_mem_len": ([2, 4, 64], {"shift_mem_down": [1]}),
    "cross_attend": ([True], {"cross_attn_dim_context": [6, 20]}),
    "only_cross": ([True], {}),
    "macaron": ([True], {}),
    "parallel_block": ([True], {"parallel_block_own_norms": [True]}),
    "custom_layers": ([("a", "a", "f"), ("f", "a", "f", "a"), "afaaf", "acf"], {}),
    "sandwich_coef": ([1, 2], {}),
    "par_ratio": ([2, 3, 4], {}),
    "weight_tie_layers": ([True], {}),
    "layers_execute_order": ([(0, 1, 2, 3, 2, 3), (3, 2, 1, 0), (0, 1, 1, 0)], {}),
    "use_rmsnorm": ([True], {}),
    "use_scalenorm": ([True], {}),
    "use_simple_rmsnorm": ([True], {}),
    "norm_eps": ([0.01, 0.3], {}),
    "norm_bias": ([True], {}),
    "norm_weight_offset": ([1.0], {}),
    "pre_norm_has_final_norm": ([False], {}),
    "pre_norm": ([False], {}),
    "sandwich_norm": ([True], {}),
    "res_post_norm": ([True], {}),
    "resi_dual": ([True], {"resi_dual_scale": [0.25]}),
    "scale_residual": ([True], {"scale_residual_constant": [0.5, 1.5]}),
    "scale_residual_constant": ([0.5, 2.0], {}),
    "gate_residual": ([True], {}),
    "depth_scale_residual": ([True], {}),
    "zero_init_branch_output": ([True], {}),
    "attn_zero_init_output": ([True], {}),
    "cross_attn_zero_init_output": ([True], {}),
    "ff_zero_init_output": ([True], {}),
    "checkpoint": (["sublayer", "selective"], {}),
    "reversible": ([True], {}),
    "rotary_pos_emb": (
        [True],
        {
            "rotary_emb_dim": [4, 6],
            "rotary_interpolation_factor": [2.0, 0.7],
            "rotary_base_rescale_factor": [4.0],
            "rotary_base": [50.0, 1e6],
            "rotary_interleaved": [True],
            "attn_rotary_embed_values": [True],
        },
    ),
    "rotary_xpos": ([True], {"rotary_xpos_scale_base": [40, 90], "rotary_emb_dim": [4]}),
    "alibi_pos_bias": ([True], {"alibi_num_heads": [1, 3, 4], "alibi_before_scale": [True]}),
    "rel_pos_bias": (
        [True],
        {
            "rel_pos_num_buckets": [8, 12],
            "rel_pos_max_distance": [24, 200],
            "rel_pos_bias_scale": [0.5, 1.0],
        },
    ),
    "dynamic_pos_bias": (
        [True],
        {
            "dynamic_pos_bias_log_distance": [True],
            "dynamic_pos_bias_mlp_depth": [1, 3],
            "dynamic_pos_bias_norm": [True],
        },
    ),
    "attn_value_dim_head": ([4, 12], {}),
    "attn_shared_kv": ([True], {}),
    "attn_kv_heads": ([1, 2], {}),
    "attn_one_kv_head": ([True], {}),
    "attn_kv_rank": ([3, 5], {"attn_q_rank": [6], "attn_rope_dim": [2, 8]}),
    "shared_qk": ([True], {}),
    "context_shared_qk": ([True], {}),
    "attn_qk_norm": (
        [True],
        {"attn_qk_norm_scale": [4.0], "attn_qk_norm_groups": [2, 4], "attn_qk_norm_dim_scale": [True]},
    ),
    "attn_qk_rmsnorm": (
        [True],
        {
            "attn_qk_rmsnorm_weight": ["shared", "none"],
            "attn_qk_rmsnorm_all_heads": [True],
            "attn_qk_rmsnorm_eps": [0.01, 0.3],
            "attn_qk_rmsnorm_weight_offset": [1.0],
        },
    ),
    "attn_qk_layernorm": (
        [True],
        {
            "attn_qk_layernorm_weight": ["shared"],
            "attn_qk_layernorm_bias": [True],
            "attn_qk_layernorm_eps": [0.01, 0.3],
        },
    ),
    "attn_scale": ([0.2, 1.0], {}),
    "attn_bias": ([True], {"attn_qkv_bias": [False], "attn_out_bias": [False]}),
    "attn_qkv_bias": ([True], {}),
    "attn_out_bias": ([True], {}),
    "attn_max_attend_past": ([1, 2, 5, 40], {}),
    "attn_num_mem_kv": ([1, 3], {}),
    "attn_add_zero_kv": ([True], {}),
    "attn_talking_heads": ([True], {}),
    "attn_softclamp_logits": ([True], {"attn_logit_softclamp_value": [0.7, 5.0]}),
    "attn_sparse_topk": ([1, 2, 4], {}),
    "attn_head_learned_sink": ([True], {}),
    "attn_softpick": ([True], {}),
    "attn_tensor_product": ([True], {}),
    "attn_head_scale": ([True], {}),
    "attn_gate_value_heads": ([True], {}),
    "attn_gate_values": ([True], {"attn_swiglu_values": [True], "attn_gate_values_bias": [True]}),
    "attn_on_attn": ([True], {}),
    "residual_attn": ([True], {}),
    "cross_residual_attn": ([True], {}),
    "num_clusters": (
        [2, 4],
        {"window_size": [1, 2, 6], "routing_selection": ["leaky", "topk"], "cluster_num_mem_kv": [2]},
    ),
    "context_num_clusters": (
        [2, 3],
        {"context_window_size": [1, 3], "context_selection": ["leaky", "topk"], "cluster_num_mem_kv": [2]},
    ),
    "n_local_attn_heads": (
        [1, 2, 4],
        {
            "local_attn_window_size": [2, 3, 70],
            "local_attn_radius_blocks": [2],
            "local_attn_fixed_windows": [True],
        },
    ),
    "attn_flash": ([True, False], {}),
    "ff_mult": ([1.5, 2.0], {}),
    "ff_inner_dim": ([7, 20], {}),
    "ff_no_bias": ([True], {}),
    "ff_post_act_ln": ([True], {}),
    "ff_chunks": ([2, 3], {}),
    "ff_glu": ([True], {"ff_glu_mult_bias": [True], "ff_glu_limit": [0.3, 2.0], "ff_glu_offset": [1.0]}),
    "ff_pkm": ([True], {"pkm_num_keys": [4, 6, 7]}),
    "ff_moe": (
        [True],
        {
            "moe_num_experts": [1, 2, 5],
            "moe_router": ["sigmoid"],
            "moe_router_bias": [True],
            "moe_normalize_weights": [False, True],
            "moe_weight_scale": [2.5],
            "moe_weight_input": [True],
            "moe_balance_bias": [True],
            "moe_num_shared_experts": [1, 2],
            "ff_no_bias": [True],
        },
    ),
    "moe_top_k": ([1, 2, 3], {"ff_moe": [True]}),
    "moe_shared_gate": (
        [True],
        {"ff_moe": [True], "moe_num_shared_experts": [1], "moe_shared_inner_dim": [6]},
    ),
    "moe_num_groups": ([2, 4], {"ff_moe": [True], "moe_top_groups": [1, 2], "moe_top_k": [1, 2]}),
    "ff_activation": (
        ["gelu_tanh", "quick_gelu", "relu", "relu2", "silu", "mish", "tanh", "sigmoid", "identity"],
        {},
    ),
    "ff_swish": ([True], {}),
    "ff_relu_squared": ([True], {}),
    "ff_xielu": ([True], {}),
    "shift_tokens": ([1, 2], {}),
    "use_layerscale": ([True], {}),
    "residual_scale": ([0.3, 1.7], {}),
}
SIZES = {"num_tokens", "max_seq_len", "dim", "depth", "heads", "attn_dim_head"}
CROSSED = (
    "attn_kv_heads", "attn_one_kv_head", "attn_value_dim_head", "attn_shared_kv", "attn_num_mem_kv",
    "attn_add_zero_kv", "attn_talking_heads", "attn_sparse_topk", "attn_head_learned_sink", "attn_head_scale",
    "attn_gate_value_heads", "attn_gate_values", "attn_on_attn", "attn_tensor_product", "attn_qk_norm",
    "attn_qk_rmsnorm", "attn_softclamp_logits", "attn_scale", "attn_bias", "attn_qkv_bias", "attn_out_bias",
    "attn_kv_rank", "attn_qk_layernorm", "attn_softpick",
)  # fmt: skip
LAYERED = (
    *CROSSED, "rotary_pos_emb", "rotary_xpos",
    "shared_qk", "attn_max_attend_past", "num_clusters", "n_local_attn_heads", "ff_glu", "ff_moe",
    "ff_pkm", "ff_swish", "ff_relu_squared", "ff_post_act_ln", "ff_no_bias", "shift_tokens", "use_layerscale",
    "ff_xielu",
)  # fmt: skip
BASE = {"num_tokens": 11, "max_seq_len": 340, "dim": 16, "attn_dim_head": 8}


def not_mixed():
    """The flags that no mix has: they act only in training or on gradients, belong to other models, or have
    a formula in a test of their own."""
    mixed = set(CHOICES) | {name for _, tuned in CHOICES.values() for name in tuned}
    return [name for name in CATALOGUE.names() if name not in mixed | SIZES]


def mix(seed):
    """Complete flags for `flagformer.build`: three to eight of them on top of the sizes."""
    rng = random.Random(f"mix {seed}")
    depth, wanted = rng.choice([1, 2, 2, 3]), rng.randint(3, 8)
    sizes = {**BASE, "heads": rng.choice([4, 4, 6]), "depth": depth}
    kind = rng.choices(["decoder", "encoder", "prefix_decoder"], [6, 3, 2])[0]
    flags = {}
    while len(flags) < wanted:
        for name, value in _chosen(rng, depth).items():
            if len(flags) < wanted or name in flags:
                flags.setdefault(name, value)
    if "custom_layers" in flags:
        del sizes["depth"]
    return {"model": kind, **sizes, **flags}


def _chosen(rng, depth):
    name = rng.choice(list(CHOICES))
    values, tuned = CHOICES[name]
    found = {name: rng.choice(values)}
    more = {k: rng.choice(v) for k, v in tuned.items() if rng.random() < 0.35}
    if name in CROSSED and rng.random() < 0.15:
        return {"cross_attend": True} | {f"cross_{k}": v for k, v in {**found, **more}.items()}
    if name in LAYERED and not more and rng.random() < 0.12:
        off = False if found[name] is True else None
        count = 2 * depth if name in ("shift_tokens", "use_layerscale") else depth
        layered = [rng.choice([found[name], off or 0]) if name in ("shift_tokens", "n_local_attn_heads")
                   else rng.choice([found[name], off]) for _ in range(count)]  # fmt: skip
        return {name: tuple(layered)}
    return {**found, **more}
