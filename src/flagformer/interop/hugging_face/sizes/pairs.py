"""T5, mT5, BART, mBART, Pegasus, Marian, M2M-100 and NLLB."""

from __future__ import annotations

from flagformer.interop.hugging_face.sizes.table import TIED, UNTIED, Size, sizes

BART = (
    "vocab_size d_model encoder_layers decoder_layers encoder_attention_heads decoder_attention_heads"
    " encoder_ffn_dim decoder_ffn_dim"
)
T5 = "vocab_size d_model d_kv d_ff num_layers num_heads"
PAIRS: dict[str, Size] = {
    **sizes(
        "t5",
        T5,
        """
        t5-small 60506624 32128 512 64 2048 6 8
        t5-base 222903552 32128 768 64 3072 12 12
        t5-large 737668096 32128 1024 64 4096 24 16
        t5-3b 2851598336 32128 1024 128 16384 24 32
        t5-11b 11307321344 32128 1024 128 65536 24 128
        """,
        {**TIED, "is_encoder_decoder": True},
    ),
    **sizes(
        "t5",
        T5,
        """
        t5-v1.1-small 76961152 32128 512 64 1024 8 6
        t5-v1.1-base 247577856 32128 768 64 2048 12 12
        t5-v1.1-large 783150080 32128 1024 64 2816 24 16
        t5-v1.1-xl 2849757184 32128 2048 64 5120 24 32
        t5-v1.1-xxl 11135332352 32128 4096 64 10240 24 64
        """,
        {**UNTIED, "is_encoder_decoder": True, "feed_forward_proj": "gated-gelu"},
    ),
    **sizes(
        "m2m_100",
        BART,
        """
        m2m100-418m 483905536 128112 1024 12 12 16 16 4096 4096
        m2m100-1.2b 1239470080 128112 1024 24 24 16 16 8192 8192
        nllb-200-distilled-600m 615073792 256206 1024 12 12 16 16 4096 4096
        nllb-200-distilled-1.3b 1370638336 256206 1024 24 24 16 16 8192 8192
        nllb-200-1.3b 1370638336 256206 1024 24 24 16 16 8192 8192
        nllb-200-3.3b 3344863232 256206 2048 24 24 16 16 8192 8192
        """,
        {**TIED, "is_encoder_decoder": True},
    ),
    **sizes(
        "bart",
        BART,
        """
        bart-base - 50265 768 6 6 12 12 3072 3072
        bart-large - 50265 1024 12 12 16 16 4096 4096
        """,
        {**TIED, "is_encoder_decoder": True},
    ),
    **sizes(
        "mt5",
        T5,
        """
        mt5-small 300176768 250112 512 64 1024 8 6
        mt5-base 582401280 250112 768 64 2048 12 12
        mt5-large 1229581312 250112 1024 64 2816 24 16
        mt5-xl 3742619648 250112 2048 64 5120 24 32
        mt5-xxl 12921057280 250112 4096 64 10240 24 64
        """,
        {**UNTIED, "is_encoder_decoder": True, "feed_forward_proj": "gated-gelu"},
    ),
    **sizes(
        "mbart",
        BART,
        """
        mbart-large-cc25 - 250027 1024 12 12 16 16 4096 4096
        mbart-large-50 - 250054 1024 12 12 16 16 4096 4096
        """,
        {**TIED, "is_encoder_decoder": True, "scale_embedding": True},
    ),
    **sizes(
        "pegasus",
        BART,
        "pegasus-large - 96103 1024 16 16 16 16 4096 4096",
        {**TIED, "is_encoder_decoder": True, "scale_embedding": True, "activation_function": "relu"},
    ),
    **sizes(
        "marian",
        BART,
        "opus-mt-en-de - 58101 512 6 6 8 8 2048 2048",
        {
            **TIED,
            "is_encoder_decoder": True,
            "scale_embedding": True,
            "activation_function": "swish",
            "max_position_embeddings": 512,
            "pad_token_id": 58100,
        },
    ),
}
