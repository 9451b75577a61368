"""T5 and BART."""

from __future__ import annotations

from flagformer.interop.hugging_face.sizes.table import TIED, UNTIED, Size, sizes

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
        "bart",
        "vocab_size d_model encoder_layers decoder_layers encoder_attention_heads decoder_attention_heads"
        " encoder_ffn_dim decoder_ffn_dim",
        """
        bart-base - 50265 768 6 6 12 12 3072 3072
        bart-large - 50265 1024 12 12 16 16 4096 4096
        """,
        {**TIED, "is_encoder_decoder": True},
    ),
}
