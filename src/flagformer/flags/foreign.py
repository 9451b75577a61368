"""Flag names of other libraries, with the flag or the advice to use in this library."""

from __future__ import annotations

TALKING = "heads are mixed before and after the softmax together: use `attn_talking_heads`"
FOREIGN = {
    # x-transformers 1.27
    "attn_onnxable": "every model can be exported (torch.export); leave it out",
    "attn_dim": "attention has the width of the model: use `dim`",
    "attn_heads": "all attention has the same number of heads: use `heads`",
    "attn_causal": "the whole stack is causal or not: use `causal`, Encoder or Decoder",
    "cross_attn_dim_head": "all attention has heads of one width: use `attn_dim_head`",
    "attn_dim_context": "only cross-attention reads a context: use `cross_attn_dim_context`",
    "cross_attn_max_attend_past": "windows are for self-attention only: use `attn_max_attend_past`",
    "ff_dim": "a feedforward has the width of the model: use `dim`, and `ff_mult` for its inner width",
    "ff_dim_out": "a feedforward has the width of the model: use `dim`, and `ff_mult` for its inner width",
    # x-transformers 2.31
    "attn_pre_talking_heads": TALKING,
    "attn_post_talking_heads": TALKING,
    "attn_pre_scale_post_talking_heads": TALKING,
    "attn_custom_attn_fn": "pass the class that turns scores into weights: `normalizer=MyNormalizer`",
    "ff_custom_activation": "pass the function, class or module to the slot: `activation=torch.tanh`",
    "norm_add_unit_offset": "norm weights are stored without an offset; `load_x_transformers` takes it",
    "use_adaptive_layernorm": "use `adaptive_layernorm=C` with the width C of the condition",
    "use_adaptive_rmsnorm": "use `adaptive_rmsnorm=C` with the width C of the condition",
    "use_adaptive_layerscale": "use `adaptive_gate=C` with the width C of the condition",
    "attn_data_dependent_alibi": "use `attn_forget_gate`",
    "dim_condition": "the norm has it as its value: use `adaptive_layernorm` or `adaptive_rmsnorm`",
    "verbose": "nothing is printed; leave it out",
    "attn_k_rmsnorm": "queries and keys are normalized together: use `attn_qk_rmsnorm`",
    "attn_dim_out": "attention has the width of the model: use `dim`",
    "attn_project_out": "heads are always projected; leave it out",
    "attn_attend_sdp_kwargs": "the kernel is chosen automatically; leave it out, or use `attn_flash`",
    "attn_flash_pack_seq": "packed rows are passed to forward, as seq_lens; leave it out",
    "only_attn": "use `custom_layers='aaa'`, an 'a' for each layer",
    "rel_pos_kwargs": "use `rel_pos_num_buckets` and `rel_pos_max_distance`",
    "residual_fn_kwargs": "use `scale_residual_constant`",
    "token_emb": "the embedding is built from `num_tokens` and `emb_dim`; leave it out",
    "input_not_include_cache": "generation with a cache reads only new tokens; leave it out",
}
# Features that are not supported, and their flags in x-transformers 2.31.
ABSENT = {
    "norms by learned functions (dynamic tanh, Derf); pass a class as `norm`": (
        "use_dynamic_tanh use_derf dynamic_tanh_init_alpha"
    ),
    "networks that make a condition": "adaptive_condition_mlp adaptive_condition_mlp_expansion",
    "polar positions, and rotation of some heads only; pass a class as `rotation`": (
        "rotate_num_heads polar_pos_emb polar_bias_uniform_init attn_rotate_num_heads"
    ),
    "norms of that name, before and after each sublayer; use `sandwich_norm`": "pre_and_post_norm",
    "residual streams that are mixed, split, gated or aggregated, and hyper-connections; pass a class as "
    "`residual`": (
        "attn_aggregated_residuals attn_aggregated_residual_kwargs orthog_residual mv_split_residual "
        "gated_multi_residual num_residual_streams hyper_conn_sinkhorn_iters qkv_receive_diff_residuals "
        "attn_qkv_receive_diff_residuals reinject_input learned_reinject_input_gate"
    ),
    "soft clamps of outputs, of feedforwards and of their gates; `attn_softclamp_logits` clamps scores": (
        "softclamp_output softclamp_output_value ff_softclamp_value ff_glu_softclamp "
        "ff_glu_gate_softclamp_value ff_glu_up_softclamp_value"
    ),
    "skips between layers (U-Net), and integration of all earlier layers": (
        "unet_skips integrate_layers layer_integrate_use_softmax"
    ),
    "value residuals across layers": (
        "add_value_residual learned_value_residual_mix attn_learned_value_residual_mix"
    ),
    "low-rank, output or per-head gates of that name; use `attn_gate_values` or `attn_gate_value_heads`": (
        "attn_gate_values_rank attn_gate_values_headwise attn_output_gate attn_output_gate_rank "
        "attn_output_gate_headwise attn_low_rank_silu_gates"
    ),
    "other ways from scores to weights (hard, sigmoid, Gumbel, straight-through, selective, signed, "
    "distances, inverted); pass a class as `normalizer` or `score`": (
        "attn_sparse_topk_straight_through attn_hard attn_l2_distance attn_sigmoid attn_gumbel_softmax "
        "attn_gumbel_softmax_temp attn_gumbel_softmax_hard attn_selective attn_cog_signed "
        "attn_inverted_attention"
    ),
    "normalized, separately projected or exponentiated values (LASER); pass a class as `projection`": (
        "attn_value_rmsnorm attn_orthog_projected_values attn_orthog_projected_values_per_head attn_laser "
        "attn_laser_softclamp_value"
    ),
    "latents of x-transformers, which differ from those of DeepSeek; use `attn_kv_rank`, `attn_q_rank` and "
    "`attn_rope_dim`": (
        "attn_use_latent_q attn_dim_latent_q attn_use_latent_kv attn_dim_latent_kv attn_latent_rope_subheads"
    ),
    "data-dependent biases (data-dependent ALiBi, CoPE, projected relative positions); pass a class as "
    "`score`": (
        "attn_data_dependent_alibi_per_row "
        "attn_data_dependent_alibi_per_row_dim_head attn_data_dependent_alibi_kwargs "
        "attn_use_rel_proj_pos_bias attn_rel_proj_num_distance_basis attn_rel_proj_max_dist attn_use_cope "
        "attn_cope_max_pos attn_cope_soft_onehot_pos attn_cope_talking_heads"
    ),
    "hybrids of attention with another module": (
        "attn_hybrid_module attn_hybrid_mask_kwarg attn_hybrid_fold_axial_dim attn_hybrid_learned_mix"
    ),
    "dropout after a whole sublayer; use `layer_dropout`, `attn_dropout` or `ff_dropout`": (
        "attn_sublayer_dropout ff_sublayer_dropout"
    ),
    "output projections of several layers; pass a class as `output` or `feedforward`": (
        "attn_output_proj_depth ff_output_proj_depth"
    ),
    "SoLU; pass a class as `activation`": "ff_solu",
    "embeddings in each feedforward": "ff_deep_embed",
    "output heads of that name (several, mixture of softmaxes, continuous, custom)": (
        "num_output_heads mixture_of_softmax mixture_of_softmax_k sigsoftmax_logits add_continuous_pred_head "
        "to_logits squeeze_out_last_dim"
    ),
    "recycling and loops of the whole stack; `weight_tie_layers` runs one block `depth` times": (
        "recycling train_max_recycle_steps looped max_looped_steps"
    ),
    "pooled outputs and class tokens here (SequenceClassifier and ViTransformerWrapper have them)": (
        "average_pool_embed use_cls_token num_cls_tokens attn_pool num_pooled_tokens attn_pool_depth "
        "dim_pooled_tokens"
    ),
}
# Names in Hugging Face, GPT, LLaMA, litgpt and torch.nn, by the flag with the same meaning.
COMMON = {
    "depth": "n_layer n_layers num_layers num_hidden_layers layers num_blocks n_blocks num_encoder_layers "
    "num_decoder_layers",
    "heads": "n_head n_heads num_heads num_attention_heads nhead",
    "dim": "n_embd n_embed d_model hidden_size hidden_dim embed_dim embedding_dim model_dim",
    "num_tokens": "vocab_size n_vocab padded_vocab_size ntoken n_tokens",
    "max_seq_len": "n_ctx n_positions block_size max_position_embeddings context_length seq_len "
    "sequence_length max_length max_len",
    "attn_kv_heads": "n_kv_head n_kv_heads num_key_value_heads num_kv_heads n_query_groups",
    "attn_dim_head": "head_dim head_size d_head d_kv",
    "ff_inner_dim": "intermediate_size moe_intermediate_size ffn_dim d_ff dim_feedforward n_inner "
    "ffn_hidden_size",
    "ff_mult": "mlp_ratio",
    "attn_dropout": "attn_pdrop attention_dropout attention_probs_dropout_prob",
    "emb_dropout": "embd_pdrop embedding_dropout",
    "ff_dropout": "resid_pdrop hidden_dropout_prob hidden_dropout",
    "tie_embedding": "tie_word_embeddings tie_weights tied_embeddings",
    "rotary_pos_emb": "rope rotary use_rope rotary_embedding",
    "alibi_pos_bias": "alibi use_alibi",
    "use_rmsnorm": "rmsnorm rms_norm use_rms_norm",
    "ff_swish": "swiglu use_swiglu silu",
    "ff_activation": "hidden_act activation_function hidden_activation",
    "attn_max_attend_past": "sliding_window attention_window",
    "attn_chunk_size": "attention_chunk_size",
    "moe_num_experts": "num_local_experts n_experts num_experts n_routed_experts",
    "moe_top_k": "num_experts_per_tok num_experts_per_token experts_per_token num_selected_experts",
    "moe_normalize_weights": "norm_topk_prob",
    "moe_weight_scale": "routed_scaling_factor",
    "moe_num_shared_experts": "n_shared_experts",
    "moe_shared_inner_dim": "shared_expert_intermediate_size",
    "moe_num_groups": "n_group",
    "moe_top_groups": "topk_group",
    "moe_loss_coef": "router_aux_loss_coef aux_loss_alpha",
    "parallel_block": "use_parallel_residual parallel_residual parallel_attn",
    "attn_flash": "flash use_flash flash_attention attn_implementation use_flash_attention",
    "checkpoint": "gradient_checkpointing use_gradient_checkpointing",
}
FLAG_OF = {name: flag for flag, names in COMMON.items() for name in names.split()}
NOTES = {"ff_mult": ", the inner width as a multiple of `dim`", "ff_swish": " and `ff_glu`"}
FOREIGN |= {name: f"not supported: {what}" for what, names in ABSENT.items() for name in names.split()}


def hint_for_unknown(name: str) -> str:
    """Return the advice for a name of another library or its `cross_` form; empty for other names."""
    for form in (name, name.removeprefix("cross_")):
        if form in FOREIGN:
            return FOREIGN[form]
        if form in FLAG_OF:
            return f"use `{FLAG_OF[form]}`{NOTES.get(FLAG_OF[form], '')}"
    return ""
