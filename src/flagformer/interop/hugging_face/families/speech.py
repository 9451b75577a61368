"""Whisper (arXiv:2212.04356): an encoder of spectrograms and a decoder."""

from __future__ import annotations

from flagformer.interop.hugging_face.families.pairs import (
    CROSS,
    GENERATION,
    LAST_NORM,
    POSITIONS,
    SUBLAYERS,
    WIDTHS,
    both,
    of_both,
)
from flagformer.interop.hugging_face.family import Family
from flagformer.interop.hugging_face.fields import Field, activation, under

LAYERS = SUBLAYERS.replace("NORM", "in_norm")
AROUND = POSITIONS + LAST_NORM
WHISPER = Family(
    "whisper",
    "WhisperForConditionalGeneration",
    {
        "vocab_size": Field("dec_num_tokens", 51865),
        "num_mel_bins": Field("src_dim", 80),
        "d_model": Field("dim", 384),
        "encoder_layers": Field("enc_depth", 4),
        "decoder_layers": Field("dec_depth", 4),
        "encoder_attention_heads": Field("enc_heads", 6),
        "decoder_attention_heads": Field("dec_heads", 6),
        "encoder_ffn_dim": Field("enc_ff_inner_dim", 1536),
        "decoder_ffn_dim": Field("dec_ff_inner_dim", 1536),
        "max_source_positions": Field("enc_max_seq_len", 1500),
        "max_target_positions": Field("dec_max_seq_len", 448),
        "activation_function": activation(both("ff_activation"), "gelu"),
        " widths": WIDTHS,
    },
    {
        "model.encoder.conv1.{p}": "encoder.project_in.first.{p}",
        "model.encoder.conv2.{p}": "encoder.project_in.second.{p}",
        "model.decoder.embed_tokens.weight": "dec.embed.weight",
        "proj_out.weight": "dec.head.weight",
        **under("model.encoder.", "enc.", AROUND),
        **under("model.decoder.", "dec.", AROUND),
        **under("model.encoder.layers.{i}.", "enc.layers.{i}.", LAYERS),
        **under("model.decoder.layers.{d}.", "dec.layers.{d}.", LAYERS + CROSS.replace("NORM", "in_norm")),
    },
    fixed={
        "model": "xtransformer",
        "src_conv": True,
        **of_both(
            norm_bias=True, attn_qkv_bias=True, attn_k_bias=False, attn_out_bias=True, use_abs_pos_emb=True
        ),
        "dec_cross_attn_qkv_bias": True,
        "dec_cross_attn_k_bias": False,
        "dec_cross_attn_out_bias": True,
    },
    must={"is_encoder_decoder": True, "use_weighted_layer_sum": False},
    inert="""activation_dropout dropout init_std encoder_layerdrop decoder_layerdrop num_hidden_layers
        scale_embedding suppress_tokens begin_suppress_tokens classifier_proj_size apply_spec_augment
        mask_time_prob mask_time_length mask_time_min_masks mask_feature_prob mask_feature_length
        mask_feature_min_masks median_filter_width forced_decoder_ids alignment_heads """
    + GENERATION,
    tied=("proj_out.weight", "model.decoder.embed_tokens.weight"),
    missing="classes of recordings; spectrograms are [B, frames, bins] here, and of any length",
)
FAMILIES = [WHISPER]
