"""Qwen 2, 2.5 and 3."""

from __future__ import annotations

from flagformer.interop.hugging_face.sizes.table import LONG, TIED, UNTIED, Size, sizes, theta

MILLION = theta(1e6)
QWEN: dict[str, Size] = {
    **sizes(
        "qwen2",
        LONG,
        """
        qwen-2-0.5b 494032768 151936 896 4864 24 14 2 131072
        qwen-2-1.5b 1543714304 151936 1536 8960 28 12 2 131072
        qwen-2.5-0.5b 494032768 151936 896 4864 24 14 2 32768
        qwen-2.5-1.5b 1543714304 151936 1536 8960 28 12 2 131072
        qwen-2.5-3b 3085938688 151936 2048 11008 36 16 2 32768
        """,
        {**TIED, **MILLION, "rms_norm_eps": 1e-6},
    ),
    **sizes(
        "qwen2",
        LONG,
        """
        qwen-2-7b 7615616512 152064 3584 18944 28 28 4 131072
        qwen-2.5-7b 7615616512 152064 3584 18944 28 28 4 131072
        """,
        {**UNTIED, **MILLION, "rms_norm_eps": 1e-6},
    ),
    **sizes(
        "qwen2",
        LONG,
        """
        qwen-2-72b 72706203648 152064 8192 29568 80 64 8 131072
        qwen-2.5-14b 14770033664 152064 5120 13824 48 40 8 131072
        qwen-2.5-32b 32763876352 152064 5120 27648 64 40 8 131072
        qwen-2.5-72b 72706203648 152064 8192 29568 80 64 8 131072
        """,
        {**UNTIED, **MILLION, "rms_norm_eps": 1e-5},
    ),
    **sizes(
        "qwen3",
        LONG,
        """
        qwen-3-0.6b 596049920 151936 1024 3072 28 16 8 40960
        qwen-3-1.7b 1720574976 151936 2048 6144 28 16 8 40960
        qwen-3-4b 4022468096 151936 2560 9728 36 32 8 40960
        """,
        {**TIED, **MILLION, "head_dim": 128},
    ),
    **sizes(
        "qwen3",
        LONG,
        """
        qwen-3-8b 8190735360 151936 4096 12288 36 32 8 40960
        qwen-3-14b 14768307200 151936 5120 17408 40 40 8 40960
        qwen-3-32b 32762123264 151936 5120 25600 64 64 8 40960
        """,
        {**UNTIED, **MILLION, "head_dim": 128},
    ),
}
