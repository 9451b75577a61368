"""Llama 1 to 3.3 and relatives: Mistral, SmolLM, Phi 3 and 4, Gemma, OLMo 2."""

from __future__ import annotations

from flagformer.interop.hugging_face.sizes.table import LONG, SIZES, TIED, UNTIED, Size, llama3, sizes, theta

EPS = {"rms_norm_eps": 1e-5}
LLAMA: dict[str, Size] = {
    **sizes(
        "llama",
        LONG,
        """
        llama-7b 6738415616 32000 4096 11008 32 32 32 2048
        llama-13b 13015864320 32000 5120 13824 40 40 40 2048
        llama-30b 32528943616 32000 6656 17920 60 52 52 2048
        llama-65b 65285660672 32000 8192 22016 80 64 64 2048
        """,
        {**UNTIED, "rms_norm_eps": 1e-6},
    ),
    **sizes(
        "llama",
        LONG,
        """
        llama-2-7b 6738415616 32000 4096 11008 32 32 32 4096
        llama-2-13b 13015864320 32000 5120 13824 40 40 40 4096
        llama-2-70b 68976648192 32000 8192 28672 80 64 8 4096
        tinyllama-1.1b 1100048384 32000 2048 5632 22 32 4 2048
        """,
        {**UNTIED, **EPS},
    ),
    **sizes(
        "llama",
        LONG,
        """
        llama-3-8b 8030261248 128256 4096 14336 32 32 8 8192
        llama-3-70b 70553706496 128256 8192 28672 80 64 8 8192
        """,
        {**UNTIED, **EPS, **theta(5e5)},
    ),
    **sizes(
        "llama",
        LONG,
        """
        llama-3.1-8b 8030261248 128256 4096 14336 32 32 8 131072
        llama-3.1-70b 70553706496 128256 8192 28672 80 64 8 131072
        llama-3.1-405b 405853388800 128256 16384 53248 126 128 8 131072
        llama-3.3-70b 70553706496 128256 8192 28672 80 64 8 131072
        """,
        {**UNTIED, **EPS, **llama3(8.0)},
    ),
    **sizes(
        "llama",
        LONG,
        """
        llama-3.2-1b 1235814400 128256 2048 8192 16 32 8 131072
        llama-3.2-3b 3212749824 128256 3072 8192 28 24 8 131072
        """,
        {**TIED, **EPS, **llama3(32.0)},
    ),
    **sizes(
        "llama",
        LONG,
        """
        smollm2-135m 134515008 49152 576 1536 30 9 3 8192
        smollm2-360m 361821120 49152 960 2560 32 15 5 8192
        """,
        {**TIED, **EPS, **theta(1e5)},
    ),
    **sizes(
        "llama",
        LONG,
        "smollm2-1.7b 1711376384 49152 2048 8192 24 32 32 8192",
        {**TIED, **EPS, **theta(1.3e5)},
    ),
    **sizes(
        "smollm3",
        LONG,
        "smollm3-3b 3075098624 128256 2048 11008 36 16 4 65536",
        {**TIED, "rms_norm_eps": 1e-6, **theta(5e6)},
    ),
    **sizes(
        "mistral",
        f"{LONG} sliding_window",
        "mistral-7b-v0.1 7241732096 32000 4096 14336 32 32 8 32768 4096",
        {**UNTIED, **EPS},
    ),
    **sizes(
        "mistral",
        f"{LONG} sliding_window head_dim",
        """
        mistral-7b-v0.3 7248023552 32768 4096 14336 32 32 8 32768 - 128
        mistral-nemo-12b 12247782400 131072 5120 14336 40 32 8 131072 - 128
        """,
        {**UNTIED, **EPS, **theta(1e6)},
    ),
    **sizes(
        "mistral",
        f"{LONG} sliding_window head_dim",
        "mistral-small-24b 23572403200 131072 5120 32768 40 32 8 32768 - 128",
        {**UNTIED, **EPS, **theta(1e8)},
    ),
    **sizes(
        "phi3",
        f"{LONG} sliding_window",
        """
        phi-3-mini-4k 3821079552 32064 3072 8192 32 32 32 4096 2047
        phi-3-medium-4k 13960238080 32064 5120 17920 40 40 10 4096 2047
        """,
        {**UNTIED, **EPS},
    ),
    **sizes(
        "phi3",
        LONG,
        "phi-4 14659507200 100352 5120 17920 40 40 10 16384",
        {**UNTIED, **EPS, **theta(2.5e5)},
    ),
    **sizes(
        "gemma",
        f"{SIZES} head_dim",
        """
        gemma-2b 2506172416 256000 2048 16384 18 8 1 256
        gemma-7b 8537680896 256000 3072 24576 28 16 16 256
        """,
        TIED,
    ),
    **sizes(
        "gemma2",
        f"{SIZES} head_dim query_pre_attn_scalar",
        """
        gemma-2-2b 2614341888 256000 2304 9216 26 8 4 256 256
        gemma-2-9b 9241705984 256000 3584 14336 42 16 8 256 256
        gemma-2-27b 27227128320 256000 4608 36864 46 32 16 128 144
        """,
        TIED,
    ),
    **sizes(
        "gemma3_text",
        f"{LONG} head_dim sliding_window",
        """
        gemma-3-270m 268098176 262144 640 2048 18 4 1 32768 256 512
        gemma-3-1b 999885952 262144 1152 6912 26 4 1 32768 256 512
        """,
        TIED,
    ),
    **sizes(
        "olmo2",
        LONG,
        """
        olmo-2-1b 1484916736 100352 2048 8192 16 16 16 4096
        olmo-2-7b 7298617344 100352 4096 11008 32 32 32 4096
        olmo-2-13b 13716198400 100352 5120 13824 40 40 40 4096
        olmo-2-32b 32234279936 100352 5120 27648 64 40 8 4096
        """,
        {**UNTIED, "rms_norm_eps": 1e-6, **theta(5e5)},
    ),
}
