"""Whisper."""

from __future__ import annotations

from flagformer.interop.hugging_face.sizes.table import TIED, Size, sizes

WHISPER = (
    "vocab_size num_mel_bins d_model encoder_layers decoder_layers encoder_attention_heads"
    " decoder_attention_heads encoder_ffn_dim decoder_ffn_dim"
)
SPEECH: dict[str, Size] = sizes(
    "whisper",
    WHISPER,
    """
    whisper-tiny 37760640 51865 80 384 4 4 6 6 1536 1536
    whisper-base 72593920 51865 80 512 6 6 8 8 2048 2048
    whisper-small 241734912 51865 80 768 12 12 12 12 3072 3072
    whisper-medium 763857920 51865 80 1024 24 24 16 16 4096 4096
    whisper-large-v2 1543304960 51865 80 1280 32 32 20 20 5120 5120
    whisper-large-v3 1543490560 51866 128 1280 32 32 20 20 5120 5120
    """,
    {**TIED, "is_encoder_decoder": True},
)
