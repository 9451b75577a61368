"""Mixtures of experts: Mixtral, Qwen, OLMoE, gpt-oss, DeepSeek, Kimi K2."""

from __future__ import annotations

from flagformer.interop.hugging_face.sizes.table import LONG, SIZES, UNTIED, Size, sizes, theta

YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
EXPERTS: dict[str, Size] = {
    **sizes(
        "mixtral",
        LONG,
        """
        mixtral-8x7b 46702792704 32000 4096 14336 32 32 8 32768
        mixtral-8x22b 140620634112 32000 6144 16384 56 48 8 65536
        """,
        {**UNTIED, **theta(1e6)},
    ),
    **sizes(
        "qwen2_moe",
        f"{LONG} moe_intermediate_size shared_expert_intermediate_size num_experts num_experts_per_tok",
        "qwen-1.5-moe-a2.7b 14315784192 151936 2048 5632 24 16 16 8192 1408 5632 60 4",
        {**UNTIED, **theta(1e6)},
    ),
    **sizes(
        "qwen3_moe",
        f"{LONG} head_dim moe_intermediate_size num_experts num_experts_per_tok",
        """
        qwen-3-30b-a3b 30532122624 151936 2048 6144 48 32 4 40960 128 768 128 8
        qwen-3-235b-a22b 235093634560 151936 4096 12288 94 64 4 40960 128 1536 128 8
        """,
        {**UNTIED, **theta(1e6), "norm_topk_prob": True},
    ),
    **sizes(
        "olmoe",
        f"{LONG} num_experts num_experts_per_tok",
        "olmoe-1b-7b 6919161856 50304 2048 1024 16 16 16 4096 64 8",
        UNTIED,
    ),
    **sizes(
        "gpt_oss",
        f"{SIZES} head_dim num_local_experts num_experts_per_tok",
        """
        gpt-oss-20b 20914757184 201088 2880 2880 24 64 8 64 32 4
        gpt-oss-120b 116829156672 201088 2880 2880 36 64 8 64 128 4
        """,
        {**UNTIED, "max_position_embeddings": 131072},
    ),
    **sizes(
        "deepseek_v2",
        "vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers num_attention_heads"
        " kv_lora_rank q_lora_rank n_routed_experts n_shared_experts num_experts_per_tok"
        " first_k_dense_replace",
        "deepseek-v2-lite 15706484224 102400 2048 10944 1408 27 16 512 - 64 2 6 1",
        {
            **UNTIED, "max_position_embeddings": 163840,
            "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    **sizes(
        "deepseek_v3",
        "vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers num_attention_heads"
        " n_routed_experts num_experts_per_tok first_k_dense_replace",
        "deepseek-v3 - 129280 7168 18432 2048 61 128 256 8 3",
        {
            **UNTIED, "max_position_embeddings": 163840,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    **sizes(
        "kimi_k2",
        "vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers num_attention_heads"
        " num_key_value_heads n_routed_experts num_experts_per_tok first_k_dense_replace n_group topk_group"
        " routed_scaling_factor",
        "kimi-k2 - 163840 7168 18432 2048 61 64 64 384 8 1 1 1 2.827",
        {
            **UNTIED, "max_position_embeddings": 131072,
            "rope_parameters": {
                **YARN, "rope_theta": 5e4, "factor": 32.0, "beta_fast": 1.0, "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
        },
    ),
}  # fmt: skip
