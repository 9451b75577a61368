"""Every case of the comparison with x-transformers, and every flag without a case."""

from parity_case import NEW, OLD, Case

ROTARY = {"rotary_pos_emb": True, "attn_dim_head": 32, "rotary_emb_dim": 32}
ALIBI = {"alibi_pos_bias": True}
T5 = {"rel_pos_bias": True}
DYNAMIC = {"dynamic_pos_bias": True}
CROSS = {"cross_attend": True}
TALKING = {
    "old": {"attn_talking_heads": True},
    "new": {"attn_pre_talking_heads": True, "attn_post_talking_heads": True},
}
XPOS = {"rotary_xpos": True, "attn_dim_head": 32, "rotary_emb_dim": 32}
ONLY_OLD, ONLY_NEW = {"versions": (OLD,)}, {"versions": (NEW,)}
SCALE = {"use_layerscale": True, "layerscale_init_value": 0.7}

SINGLE = {
    "learned positions": Case({"use_abs_pos_emb": True}),
    "no positions": Case({"use_abs_pos_emb": False}),
    "positions disabled by the layers": Case({"disable_abs_pos_emb": True}),
    "sinusoidal positions": Case({"scaled_sinu_pos_emb": True}),
    "rotary": Case(ROTARY),
    "rotary, half of a head, unsaid": Case({"rotary_pos_emb": True, "attn_dim_head": 64}),
    "rotary, a quarter of a head": Case({**ROTARY, "rotary_emb_dim": 8}, **ONLY_NEW),
    "rotary, interpolated": Case({**ROTARY, "rotary_interpolation_factor": 2.5}),
    "rotary, rescaled base": Case({**ROTARY, "rotary_base_rescale_factor": 3.0}),
    "rotary with learned positions": Case({**ROTARY, "disable_abs_pos_emb": False}),
    "alibi": Case(ALIBI),
    "alibi alone": Case({**ALIBI, "use_abs_pos_emb": False}),
    "alibi, 6 heads": Case({**ALIBI, "heads": 6}),
    "alibi on some heads": Case({**ALIBI, "alibi_num_heads": 3}),
    "alibi, both directions": Case(ALIBI, kind="encoder"),
    "t5": Case(T5),
    "t5, few buckets": Case({**T5, "rel_pos_num_buckets": 8, "rel_pos_max_distance": 20}),
    "t5, both directions": Case({**T5, "rel_pos_max_distance": 34}, kind="encoder"),
    "dynamic": Case(DYNAMIC),
    "dynamic, log distance": Case({**DYNAMIC, "dynamic_pos_bias_log_distance": True}),
    "dynamic, three layers": Case({**DYNAMIC, "dynamic_pos_bias_mlp_depth": 3}),
    "dynamic, normed": Case({**DYNAMIC, "dynamic_pos_bias_norm": True, "dynamic_pos_bias_mlp_depth": 1}),
    "rms norm": Case({"use_rmsnorm": True}),
    "scale norm": Case({"use_scalenorm": True}),
    "simple rms norm": Case({"use_simple_rmsnorm": True}),
    "no final norm": Case({"pre_norm_has_final_norm": False}, **ONLY_NEW),
    "xpos": Case(XPOS),
    "xpos, strong": Case({**XPOS, "rotary_xpos_scale_base": 20}),
    "scaled residual": Case({"scale_residual": True}),
    "scaled residual with a constant": Case({"scale_residual": True, "scale_residual_constant": 1.7}),
    "deep norm's constant": Case({"scale_residual_constant": 1.7, "pre_norm": False}),
    "gated residual": Case({"gate_residual": True}),
    "two streams": Case({"resi_dual": True, "resi_dual_scale": 0.3}, **ONLY_OLD),
    "zero branches": Case({"zero_init_branch_output": True}),
    "start scaled by depth": Case({"depth_scale_residual": True}, **ONLY_NEW),
    "post norm": Case({"pre_norm": False}),
    "sandwich norm": Case({"sandwich_norm": True}),
    "grouped heads": Case({"attn_kv_heads": 2}),
    "grouped heads of 6": Case({"attn_kv_heads": 2, "heads": 6}),
    "one key head": Case({"attn_one_kv_head": True}),
    "one head": Case({"heads": 1, "attn_dim_head": 32}),
    "cosine attention": Case({"attn_qk_norm": True, "attn_qk_norm_scale": 4}),
    "qk rms norm": Case({"attn_qk_rmsnorm": True}, **ONLY_NEW),
    "cosine attention in parts": Case({"attn_qk_norm": True, "attn_qk_norm_groups": 2}),
    "cosine attention with gains": Case({"attn_qk_norm": True, "attn_qk_norm_dim_scale": True}),
    "cosine attention with gains and a factor": Case(
        {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True, "attn_qk_norm_scale": 3}
    ),
    "soft clamp": Case({"attn_softclamp_logits": True, "attn_logit_softclamp_value": 0.3}, **ONLY_NEW),
    "talking heads": Case({}, **TALKING),
    "sparse top k": Case({"attn_sparse_topk": 3}, **ONLY_NEW),
    "learned sink": Case({"attn_head_learned_sink": True}, **ONLY_NEW),
    "head scale": Case({"attn_head_scale": True}),
    "gated heads": Case({"attn_gate_value_heads": True}),
    "gated values": Case({"attn_gate_values": True}),
    "gated values, swish": Case({"attn_gate_values": True, "attn_swiglu_values": True}),
    "attention on attention": Case({"attn_on_attn": True}),
    "memory": Case({"attn_num_mem_kv": 3}),
    "null key": Case({"attn_add_zero_kv": True}),
    "fused kernel": Case({"attn_flash": True}),
    "written kernel": Case({"attn_flash": False}),
    "checkpointed": Case({}, ours={"checkpoint": "sublayer"}),
    "gelu, wide": Case({"ff_mult": 3}),
    "glu": Case({"ff_glu": True}),
    "swish": Case({"ff_swish": True}),
    "relu squared": Case({"ff_relu_squared": True}),
    "norm after the activation": Case({"ff_post_act_ln": True}),
    "no bias": Case({"ff_no_bias": True}),
    "no bias, gated": Case({"ff_no_bias": True, "ff_glu": True}),
    "layer scale": Case(SCALE, **ONLY_NEW),
    "dropouts are off in eval": Case(
        {"attn_dropout": 0.3, "ff_dropout": 0.3, "emb_dropout": 0.3, "layer_dropout": 0.3}
    ),
    "tied embedding": Case({"tie_embedding": True}),
    "tied embedding, scaled": Case({"tie_embedding": True, "tie_embedding_scale": 0.3}, **ONLY_NEW),
    "factorised embedding": Case({"emb_dim": 20}),
    "factorised sinusoids": Case({"emb_dim": 20, "scaled_sinu_pos_emb": True}),
    "normed embedding": Case({"post_emb_norm": True}),
    "unit embedding": Case({"l2norm_embed": True}),
    "share of the gradient": Case({"emb_frac_gradient": 0.25}),
    "token types": Case({"embed_num_tokens": {"type": 3, "side": 2}}),
    "other logits": Case({"logits_dim": 7}),
    "embeddings only": Case({"return_only_embed": True}, kind="encoder", padded=True, **ONLY_NEW),
    "macaron": Case({"macaron": True}),
    "custom layers": Case({"custom_layers": ("a", "f", "f", "a")}),
    "sandwich order": Case({"sandwich_coef": 1}),
    "order of execution": Case({"layers_execute_order": (0, 1, 2, 3, 2, 1)}),
    "par": Case({"par_ratio": 3, "depth": 4}),
    "shifted tokens": Case({"shift_tokens": 1}),
    "shifted tokens of both sides": Case({"shift_tokens": 2}, kind="encoder"),
    "shifted tokens in some layers": Case({"shift_tokens": (0, 2, 1, 0), "macaron": False}),
    "residual attention": Case({"residual_attn": True, "depth": 3}),
    "residual attention, both directions": Case({"residual_attn": True}, kind="encoder", padded=True),
    "residual cross-attention": Case({**CROSS, "cross_residual_attn": True, "depth": 3}),
    "tied layers": Case({"weight_tie_layers": True, "depth": 3}),
    "cross attention": Case(CROSS),
    "cross attention, wide context": Case({**CROSS, "cross_attn_dim_context": 20}),
    "cross attention only": Case({"only_cross": True, "cross_attend": True}),
    "onnx": Case({"attn_onnxable": True}),
    "encoder": Case({}, kind="encoder", padded=True),
    "prefix decoder": Case({}, kind="prefix_decoder", prefix=7),
    "a mask of pairs": Case(ROTARY, calls=("attn_mask",)),
    "a mask of pairs, padded": Case({}, kind="encoder", padded=True, calls=("attn_mask",)),
    "padding in front": Case({}, calls=("seq_start_pos",)),
    "padding in front, turned": Case(ROTARY, calls=("seq_start_pos",)),
    "padding in front, t5": Case(T5, calls=("seq_start_pos",)),
    "added vectors": Case({"post_emb_norm": True}, calls=("sum_embeds",)),
    "positions of the user's": Case({}, calls=("pos",)),
}

WHOLE = {
    "encoder-decoder": Case({}, kind="xtransformer"),
    "encoder-decoder, one embedding": Case({"tie_token_emb": True}, kind="xtransformer"),
    "encoder-decoder, other halves": Case(
        {
            **{f"enc_{name}": value for name, value in ROTARY.items()},
            "enc_use_rmsnorm": True,
            "dec_rel_pos_bias": True,
            "dec_attn_kv_heads": 2,
            "dec_cross_attn_qk_norm": True,
            "dec_cross_residual_attn": True,
            "dec_macaron": True,
        },
        kind="xtransformer",
    ),
    "encoder-decoder, factors of its halves": Case(
        {
            "enc_attn_qk_norm": True,
            "enc_attn_qk_norm_dim_scale": True,
            "enc_attn_qk_norm_scale": 5,
            "dec_attn_qk_norm": True,
            "dec_attn_qk_norm_dim_scale": True,
            "dec_cross_attn_qk_norm_scale": 2,
            "cross_attn_tokens_dropout": 0.3,
            "ignore_index": 7,
            "pad_value": 3,
        },
        kind="xtransformer",
    ),
    "images": Case({}, kind="vit"),
    "images with registers": Case({"num_register_tokens": 3, "post_emb_norm": True, **T5}, kind="vit"),
    "images, turned": Case({**ROTARY, "use_rmsnorm": True, "attn_kv_heads": 2}, kind="vit"),
    "images, embedded only": Case({"num_classes": None, "emb_dropout": 0.2, "channels": 1}, kind="vit"),
}

GATED = {"ff_glu": True, "ff_swish": True, "ff_post_act_ln": True}
EVERYTHING = {
    **ROTARY,
    "attn_kv_heads": 2,
    "attn_head_scale": True,
    "attn_gate_values": True,
    "attn_gate_value_heads": True,
    "attn_on_attn": True,
    "attn_num_mem_kv": 2,
}

TOGETHER = {
    "grouped heads with everything between": Case(
        EVERYTHING,
        old=TALKING["old"],
        new={
            **TALKING["new"],
            "attn_head_learned_sink": True,
            "attn_qk_norm": True,
            "attn_qk_norm_dim_scale": True,
        },
    ),
    "one key head with everything between": Case(
        {**EVERYTHING, "attn_kv_heads": None, "attn_one_kv_head": True, "attn_qk_norm": True}
    ),
    "llama": Case({**ROTARY, **GATED, "use_rmsnorm": True, "attn_kv_heads": 2, "ff_post_act_ln": False}),
    "llama without biases, whose gate keeps one there": Case(
        {**ROTARY, "use_rmsnorm": True, "ff_glu": True, "ff_no_bias": True}
    ),
    "grouped heads with t5": Case({**T5, "attn_kv_heads": 2, "attn_add_zero_kv": True}),
    "grouped heads with t5 and memory": Case(
        {**T5, "attn_kv_heads": 2, "attn_num_mem_kv": 2, "attn_add_zero_kv": True}, **ONLY_NEW
    ),
    "grouped heads with dynamic": Case({**DYNAMIC, "attn_kv_heads": 2}),
    "grouped heads with qk rms norm, turned": Case(
        {**ROTARY, "rotary_emb_dim": 6, "attn_kv_heads": 2, "attn_qk_rmsnorm": True}, **ONLY_NEW
    ),
    "turned heads in parts": Case(
        {**ROTARY, "attn_qk_norm": True, "attn_qk_norm_groups": 2}, versions=(OLD,)
    ),
    "rotary heads with memory": Case({**ROTARY, "attn_num_mem_kv": 3, "attn_qk_norm": True}),
    "alibi with one key head": Case({**ALIBI, "attn_one_kv_head": True, "attn_add_zero_kv": True}),
    "alibi with memory and one key head": Case(
        {**ALIBI, "attn_num_mem_kv": 2, "attn_one_kv_head": True}, **ONLY_NEW
    ),
    "other heads in other layers": Case({"attn_kv_heads": (4, 2)}, **ONLY_NEW),
    "macaron, post norm, gated": Case({**GATED, "macaron": True, "pre_norm": False}),
    "macaron, post norm, scaled": Case({**SCALE, **GATED, "macaron": True, "pre_norm": False}, **ONLY_NEW),
    "tied layers, turned": Case({"weight_tie_layers": True, "use_rmsnorm": True, **ROTARY}),
    "tied layers, scaled": Case(
        {**SCALE, "weight_tie_layers": True, "use_rmsnorm": True, **ROTARY}, **ONLY_NEW
    ),
    "sandwich norm and order": Case({"sandwich_norm": True, "sandwich_coef": 1, "use_rmsnorm": True, **T5}),
    "scale norm, sandwich": Case({"sandwich_norm": True, "use_scalenorm": True, "shift_tokens": 1}),
    "residual attention between turned heads": Case(
        {**ROTARY, "residual_attn": True, "depth": 3, "attn_kv_heads": 2}
    ),
    "cross attention with everything": Case(
        {**CROSS, **ROTARY, "attn_num_mem_kv": 2, "attn_qk_norm": True, "attn_kv_heads": 2, "macaron": True}
    ),
    "padded encoder with t5": Case({**T5, "pre_norm": False}, kind="encoder", padded=True),
    "padded encoder with t5 and memory": Case(
        {**T5, "attn_num_mem_kv": 2, "pre_norm": False}, kind="encoder", padded=True, **ONLY_NEW
    ),
    "padded decoder, fused alibi": Case({**ALIBI, "attn_flash": True}, padded=True),
    "prefix decoder with t5": Case(T5, kind="prefix_decoder", prefix=5),
    "prefix decoder, rotary": Case({**ROTARY, "attn_kv_heads": 2}, kind="prefix_decoder", prefix=12),
    "tied embedding with sinusoids": Case({"tie_embedding": True, "scaled_sinu_pos_emb": True}),
    "tied embedding, scale norm": Case({"tie_embedding": True, "use_scalenorm": True}),
    "two streams, scale norm, shifted": Case(
        {"resi_dual": True, "use_scalenorm": True, "shift_tokens": 1}, **ONLY_OLD
    ),
}

# Single flags that no case above covers.
BY_FLAG = {
    "attn_shared_kv": {
        "shared keys and values": Case({"attn_shared_kv": True}, **ONLY_OLD),
        "shared keys and values, turned": Case({**ROTARY, "attn_shared_kv": True}, **ONLY_OLD),
        "shared keys and values, normed, of groups": Case(
            {"attn_shared_kv": True, "attn_qk_norm": True, "attn_kv_heads": 2, **CROSS}, **ONLY_OLD
        ),
    },
    "attn_value_dim_head": {
        "wide values": Case({"attn_value_dim_head": 24}),
        "narrow values": Case({"attn_value_dim_head": 6}),
        "wide values of grouped heads, gated": Case(
            {
                **ROTARY,
                "attn_value_dim_head": 24,
                "attn_kv_heads": 2,
                "attn_gate_values": True,
                "attn_gate_value_heads": True,
                "attn_on_attn": True,
                "attn_add_zero_kv": True,
            }
        ),
    },
    "attn_tensor_product": {
        "roles": Case({"attn_tensor_product": True, "attn_head_scale": True}, **ONLY_OLD),
        "roles of one key head": Case({"attn_tensor_product": True, "attn_one_kv_head": True}, **ONLY_OLD),
    },
    "attn_rotary_embed_values": {
        "turned values": Case({**ROTARY, "attn_rotary_embed_values": True}, **ONLY_OLD)
    },
    "attn_max_attend_past": {
        "a window": Case({"attn_max_attend_past": 5}),
        "a window of a padded encoder": Case({"attn_max_attend_past": 5, **T5}, kind="encoder", padded=True),
        "a window and a prefix": Case({"attn_max_attend_past": 5}, kind="prefix_decoder", prefix=9),
        "a window and memory": Case({"attn_max_attend_past": 5, "attn_num_mem_kv": 3}, **ONLY_NEW),
        "a window and a null key": Case({"attn_max_attend_past": 5, "attn_add_zero_kv": True}),
    },
    "ff_glu_mult_bias": {"gated, with a gain": Case({"ff_glu": True, "ff_glu_mult_bias": True})},
    "attn_zero_init_output": {"attention starts at zero": Case({"attn_zero_init_output": True})},
    "cross_attn_zero_init_output": {
        "cross-attention starts at zero": Case({**CROSS, "cross_attn_zero_init_output": True})
    },
    "ff_zero_init_output": {"feedforwards start at zero": Case({"ff_zero_init_output": True})},
    "cross_attn_tokens_dropout": {
        "hidden tokens of the context": Case({**CROSS, "cross_attn_tokens_dropout": 0.3})
    },
    "num_memory_tokens": {
        "memory tokens": Case({"num_memory_tokens": 3}),
        "memory tokens, turned": Case({"num_memory_tokens": 3, **ROTARY}),
        "memory tokens, padded alibi": Case({"num_memory_tokens": 3, **ALIBI}, padded=True),
        "memory tokens of a padded encoder": Case(
            {"num_memory_tokens": 3, **T5}, kind="encoder", padded=True
        ),
        "memory tokens and shifts": Case({"num_memory_tokens": 3, **ROTARY, "shift_tokens": 1}),
        "memory tokens of a narrow embedding": Case(
            {"num_memory_tokens": 3, "emb_dim": 20, "post_emb_norm": True}
        ),
    },
    "memory_tokens_interspersed_every": {
        "memory tokens between": Case({"num_memory_tokens": 3, "memory_tokens_interspersed_every": 7}),
        "memory tokens between, turned": Case(
            {"num_memory_tokens": 2, "memory_tokens_interspersed_every": 8, **ROTARY}
        ),
    },
    "max_mem_len": {
        "memories": Case({**ROTARY, "max_mem_len": 20}, memories=True),
        "memories, t5": Case({**T5, "max_mem_len": 12}, memories=True),
    },
    "shift_mem_down": {
        "memories of the layer above": Case(
            {**ROTARY, "max_mem_len": 20, "shift_mem_down": 1, "depth": 3}, memories=True
        )
    },
    "prepend_embeds": {
        "prepended vectors": Case({}, prepended=4),
        "prepended vectors, turned, padded": Case(ROTARY, prepended=5, padded=True),
        "prepended vectors of a narrow embedding": Case(
            {"emb_dim": 20, "post_emb_norm": True, "emb_frac_gradient": 0.5}, kind="encoder", prepended=5
        ),
    },
}
SINGLE |= {name: case for cases in BY_FLAG.values() for name, case in cases.items()}

CASES = {**SINGLE, **WHOLE, **TOGETHER}

# Flags that x-transformers has, without a case, for each version, with the reason. All others that
# `parity_page.counterparts` does not find have no counterpart.
FIXED = {
    "causal": "the classes fix it: every case is a decoder, an encoder or a prefix decoder",
    "attn_z_loss_weight": "x-transformers never reads it at construction, and sums layers before the square",
    "disable_abs_pos_emb": "read as use_abs_pos_emb, which the case `rotary with learned positions` holds",
}
WITHOUT_PARITY = {
    OLD: {
        **FIXED,
        "attn_sparse_topk": "1.27 keeps all scores but the k largest, chosen among later tokens too",
        "pre_norm_has_final_norm": "1.27 takes it and never reads it: the norm is always there",
        "attn_qk_rmsnorm": "not in 1.27",
        "attn_softclamp_logits": "not in 1.27",
        "attn_logit_softclamp_value": "goes with attn_softclamp_logits",
        "attn_head_learned_sink": "not in 1.27",
        "use_layerscale": "not in 1.27",
        "layerscale_init_value": "goes with use_layerscale",
        "depth_scale_residual": "not in 1.27",
        "return_only_embed": "not in 1.27",
        "tie_embedding_scale": "not in 1.27",
    },
    NEW: {
        **FIXED,
        "resi_dual": "2.31 has it no more; the comparison is with 1.27",
        "resi_dual_scale": "goes with resi_dual",
        "attn_shared_kv": "as resi_dual",
        "attn_tensor_product": "as resi_dual",
        "attn_rotary_embed_values": "as resi_dual",
    },
}
