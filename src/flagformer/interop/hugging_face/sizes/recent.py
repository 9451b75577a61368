"""Command R, Granite, GLM 4, LFM2, EXAONE 4, OLMo 1, Seed OSS, Apertus, ERNIE 4.5, StarCoder and others."""

from __future__ import annotations

from flagformer.interop.hugging_face.sizes.table import (
    LONG,
    SIZES,
    TIED,
    UNTIED,
    Size,
    llama3,
    sizes,
    theta,
)

LFM2_ATTENTION = (2, 5, 8, 10, 12, 14)  # the other layers are convolutions
LFM2_LAYERS = ["full_attention" if layer in LFM2_ATTENTION else "conv" for layer in range(16)]
RECENT: dict[str, Size] = {
    **sizes(
        "cohere",
        f"{SIZES} logit_scale",
        """
        command-r-35b 34980831232 256000 8192 22528 40 64 64 0.0625
        """,
        {**TIED, **theta(8e6), "max_position_embeddings": 131072},
    ),
    **sizes(
        "cohere",
        f"{SIZES} logit_scale",
        "command-r-plus-104b 103810674688 256000 12288 33792 64 96 8 0.8333333333333334",
        {**TIED, **theta(75e6), "max_position_embeddings": 131072, "use_qk_norm": True},
    ),
    **sizes(
        "cohere",
        f"{SIZES} logit_scale",
        "aya-23-8b 8028033024 256000 4096 14336 32 32 8 0.0625",
        {**TIED, **theta(1e4), "max_position_embeddings": 8192},
    ),
    **sizes(
        "cohere2",
        f"{SIZES} logit_scale sliding_window",
        "command-r7b 8028033024 256000 4096 14336 32 32 8 0.25 4096",
        {**TIED, **theta(5e4), "max_position_embeddings": 132096},
    ),
    **sizes(
        "granite",
        f"{LONG} logits_scaling attention_multiplier",
        """
        granite-3.0-2b-instruct 2533531648 49155 2048 8192 40 32 8 4096 8.0 0.015625
        granite-3.0-8b-instruct 8170848256 49155 4096 12800 40 32 8 4096 16.0 0.0078125
        """,
        {
            **TIED,
            **theta(1e4),
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "rms_norm_eps": 1e-5,
        },
    ),
    **sizes(
        "glm",
        f"{LONG} head_dim",
        "glm-4-9b 9399951360 151552 4096 13696 40 32 2 8192 128",
        {**UNTIED, "attention_bias": True},
    ),
    **sizes(
        "glm4",
        f"{LONG} head_dim",
        """
        glm-4-9b-0414 9400279040 151552 4096 13696 40 32 2 32768 128
        glm-4-32b-0414 - 151552 6144 23040 61 48 2 32768 128
        """,
        UNTIED,
    ),
    **sizes(
        "lfm2",
        f"{LONG} block_auto_adjust_ff_dim",
        """
        lfm2-350m 354483968 65536 1024 6656 16 16 8 128000 1
        lfm2-700m 742489344 65536 1536 10240 16 24 8 128000 1
        lfm2-1.2b 1170340608 65536 2048 12288 16 32 8 128000 1
        """,
        {**TIED, **theta(1e6), "layer_types": LFM2_LAYERS},
    ),
    **sizes(
        "exaone4",
        LONG,
        "exaone-4.0-1.2b 1279391488 102400 2048 4096 30 32 8 65536",
        {
            **TIED,
            "sliding_window": None,
            "rope_parameters": llama3(16.0)["rope_parameters"] | {"rope_theta": 1e6},
        },
    ),
    **sizes("olmo", LONG, "olmo-1b 1176764416 50304 2048 8192 16 16 16 2048", {**TIED, **theta(1e4)}),
    **sizes("olmo", LONG, "olmo-7b 6888095744 50304 4096 11008 32 32 32 2048", {**UNTIED, **theta(1e4)}),
    **sizes(
        "seed_oss",
        f"{LONG} head_dim",
        "seed-oss-36b 36151104512 155136 5120 27648 64 80 8 524288 128",
        {**UNTIED, **theta(1e7), "attention_bias": True},
    ),
    **sizes(
        "apertus",
        LONG,
        """
        apertus-8b 8053338176 131072 4096 21504 32 32 8 65536
        apertus-70b - 131072 8192 43008 80 64 8 65536
        """,
        {**UNTIED, "rope_parameters": llama3(8.0)["rope_parameters"] | {"rope_theta": 12e6}},
    ),
    **sizes(
        "ernie4_5",
        f"{LONG} head_dim",
        "ernie-4.5-0.3b 360748032 103424 1024 3072 18 16 2 131072 128",
        {**TIED, **theta(5e5)},
    ),
    **sizes(
        "nemotron",
        f"{LONG} head_dim",
        "minitron-4b - 256000 3072 9216 32 24 8 4096 128",
        UNTIED,
    ),
    **sizes(
        "gpt_bigcode",
        "vocab_size n_embd n_layer n_head n_inner n_positions",
        """
        santacoder-1.1b 1124886528 49280 2048 24 16 8192 2048
        starcoderbase-1b 1137207296 49152 2048 24 16 8192 8192
        starcoderbase-3b - 49152 2816 36 22 11264 8192
        starcoderbase-7b - 49152 4096 42 32 16384 8192
        starcoderbase-15b 15517456384 49152 6144 40 48 24576 8192
        """,
        TIED,
    ),
    **sizes(
        "mamba2",
        "vocab_size hidden_size num_hidden_layers num_heads",
        """
        mamba2-130m 128989632 50288 768 24 24
        mamba2-370m - 50288 1024 48 32
        mamba2-780m - 50288 1536 48 48
        mamba2-1.3b - 50288 2048 48 64
        mamba2-2.7b - 50288 2560 64 80
        """,
        {**TIED, "n_groups": 1, "state_size": 128, "head_dim": 64, "expand": 2},
    ),
    **sizes(
        "qwen3_next",
        f"{LONG} head_dim num_experts num_experts_per_tok moe_intermediate_size",
        "qwen-3-next-80b-a3b 79674391296 151936 2048 5120 48 16 2 262144 256 512 10 512",
        {
            **UNTIED,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
        },
    ),
}
