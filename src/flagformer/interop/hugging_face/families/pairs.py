"""Encoder-decoders: T5 v1.0 and v1.1, UL2, mT5; BART, mBART, Pegasus, Marian, M2M-100 and NLLB."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.family import Family
from flagformer.interop.hugging_face.fields import (
    Config,
    Field,
    FieldRule,
    Fields,
    Flags,
    activation,
    derived,
    under,
)
from flagformer.interop.hugging_face.settings import Settings
from flagformer.interop.hugging_face.tensors import Row

# Fields of earlier files for `generate` of transformers, and of tokenizers.
GENERATION = """decoder_start_token_id forced_bos_token_id early_stopping num_beams no_repeat_ngram_size
    max_length min_length length_penalty prefix task_specific_params tokenizer_class"""
PAIR = {"model": "xtransformer", "tie_token_emb": True}
ACTIVATIONS = activation("ff_activation", "gelu_new").values or {}


def of_both(**flags: Any) -> Flags:
    """Flags of the encoder and of the decoder."""
    return {half + name: value for half in ("enc_", "dec_") for name, value in flags.items()}


def both(name: str, *more: str) -> str:
    """The names of a flag of both halves, for a `Field`."""
    return " ".join(half + one for one in (name, *more) for half in ("enc_", "dec_"))


def _activation(config: Config, flags: Flags) -> Flags:
    """`dense_act_fn`, where a file has it, is computed; "gated-gelu" alone is the tanh form."""
    word, said = config["feed_forward_proj"], config["dense_act_fn"]
    gated = word.startswith("gated-")
    name = said or ("gelu_new" if word == "gated-gelu" else word.removeprefix("gated-"))
    if name not in ACTIVATIONS:
        raise ConversionError([f"config `feed_forward_proj`: {word!r} ({name!r}) has no flag"])
    return of_both(ff_glu=gated, ff_activation=ACTIVATIONS[name])


def _to_activation(flags: Flags) -> Config:
    name = next(word for word, meant in ACTIVATIONS.items() if meant == flags["enc_ff_activation"])
    gated = bool(flags.get("enc_ff_glu"))
    word = "gelu" if gated and name == "gelu_new" else name
    return {
        "feed_forward_proj": f"gated-{word}" if gated else word,
        "dense_act_fn": name,
        "is_gated_act": gated,
    }


def feedforward(default: str) -> Fields:
    """The activation of both halves, and whether it is gated."""
    fields = {"feed_forward_proj": default, "dense_act_fn": None, "is_gated_act": None}
    return Fields(fields, _activation, _to_activation)


def _scale(config: Config, flags: Flags) -> Flags:
    """Files of earlier versions tell it by `tie_word_embeddings`."""
    said = config["scale_decoder_outputs"]
    scaled = config["tie_word_embeddings"] is not False if said is None else said
    return {"dec_logits_scale": flags["dim"] ** -0.5 if scaled else 1.0}


SCALE = Fields(
    {"scale_decoder_outputs": None, "tie_word_embeddings": True},
    _scale,
    lambda f: {"scale_decoder_outputs": f["dec_logits_scale"] != 1.0},
)
T5_FIELDS: dict[str, FieldRule] = {
    "vocab_size": Field(both("num_tokens")),
    "d_model": "dim",
    "d_ff": Field(both("ff_inner_dim")),
    "num_layers": "enc_depth",
    "num_decoder_layers": Field("dec_depth", None, absent=lambda f: f["enc_depth"]),
    "d_kv": Field(both("attn_dim_head"), 64),
    "num_heads": Field(both("heads"), 8),
    "layer_norm_epsilon": Field(both("norm_eps"), 1e-6),
    "feed_forward_proj": feedforward("relu"),
    "relative_attention_num_buckets": Field(both("rel_pos_num_buckets"), 32),
    "relative_attention_max_distance": Field(both("rel_pos_max_distance"), 128),
    # of generation; positions have no table
    " length": derived(lambda f: of_both(max_seq_len=512)),
    "scale_decoder_outputs": SCALE,
}
ATTENTION = """{0}.{1}.q.weight {2}.q.weight, {0}.{1}.k.weight {2}.k.weight, {0}.{1}.v.weight {2}.v.weight,
    {0}.{1}.o.weight {2}.o.weight, {0}.layer_norm.weight {2}.in_norm.weight,"""
FEEDFORWARD = """{0}.DenseReluDense.{1}.weight ff.up.weight, {0}.DenseReluDense.wi_0.weight ff.gate.weight,
    {0}.DenseReluDense.wo.weight ff.down.weight, {0}.layer_norm.weight ff.in_norm.weight"""
AROUND = """final_layer_norm.weight norm.weight,
    block.0.layer.0.SelfAttention.relative_attention_bias.weight attn_layers.position_bias.table"""


def _tensors(settings: Settings) -> dict[str, Any]:
    up = "wi_1" if settings.get("enc_ff_glu") else "wi"
    own = ATTENTION.format(0, "SelfAttention", "attn")
    decoder = own + ATTENTION.format(1, "EncDecAttention", "cross") + FEEDFORWARD.format(2, up)
    return {
        "shared.weight": "enc.embed.weight",
        "lm_head.weight": "dec.head.weight",
        **under("encoder.block.{i}.layer.", "enc.layers.{i}.", own + FEEDFORWARD.format(1, up)),
        **under("decoder.block.{d}.layer.", "dec.layers.{d}.", decoder),
        **under("encoder.", "enc.", AROUND),
        **under("decoder.", "dec.", AROUND),
    }


T5 = Family(
    "t5",
    "T5ForConditionalGeneration",
    T5_FIELDS,
    _tensors,
    fixed={
        **PAIR,
        **of_both(
            use_rmsnorm=True, ff_no_bias=True, attn_scale=1.0, rel_pos_bias=True, rel_pos_bias_scale=1.0
        ),
    },
    must={"is_encoder_decoder": True},
    inert="dropout_rate initializer_factor n_positions output_past " + GENERATION,
    tied=("lm_head.weight", "shared.weight"),
    drop=(
        r"(encoder|decoder)\.embed_tokens\.weight",
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    ),
    also=("T5WithLMHeadModel",),
    missing="`T5EncoderModel`; `generate` stops at 512 tokens, unless `restrict_to_max_seq_len=False`",
)  # fmt: skip
MT5 = T5.but(
    model_type="mt5",
    architecture="MT5ForConditionalGeneration",
    fixed={"dec_logits_scale": 1.0},
    inert=T5.inert + " scale_decoder_outputs",
    fields={
        "num_heads": Field(both("heads"), 6),
        "feed_forward_proj": feedforward("gated-gelu"),
        "scale_decoder_outputs": ...,
    },
    also=(),
)
EMBEDDINGS = Fields(
    {"scale_embedding": False},
    lambda c, f: of_both(embedding_scale=f["dim"] ** 0.5 if c["scale_embedding"] else None),
    lambda f: {"scale_embedding": f["enc_embedding_scale"] != 1.0},
)
WIDTHS = derived(
    lambda f: {f"{half}_attn_dim_head": f["dim"] // f[f"{half}_heads"] for half in ("enc", "dec")}
)
SUBLAYERS = """fc1.{p} ff.up.{p}, fc2.{p} ff.down.{p}, final_layer_norm.{p} ff.NORM.{p},
    self_attn.q_proj.{p} attn.q.{p}, self_attn.k_proj.{p} attn.k.{p}, self_attn.v_proj.{p} attn.v.{p},
    self_attn.out_proj.{p} attn.o.{p}, self_attn_layer_norm.{p} attn.NORM.{p}"""
CROSS = """, encoder_attn.q_proj.{p} cross.q.{p}, encoder_attn.k_proj.{p} cross.k.{p},
    encoder_attn.v_proj.{p} cross.v.{p}, encoder_attn.out_proj.{p} cross.o.{p},
    encoder_attn_layer_norm.{p} cross.NORM.{p}"""


def layers(norm: str, around: str) -> dict[str, Any]:
    """The tensors of both halves.

    Args:
        norm: of a sublayer, "in_norm" or "out_norm".
        around: names of the tensors outside the layers of a half.
    """
    encoder, decoder = SUBLAYERS.replace("NORM", norm), (SUBLAYERS + CROSS).replace("NORM", norm)
    return {
        "model.shared.weight": "enc.embed.weight",
        "lm_head.weight": "dec.head.weight",
        "final_logits_bias": Row("dec.head.bias"),
        **under("model.encoder.", "enc.", around),
        **under("model.decoder.", "dec.", around),
        **under("model.encoder.layers.{i}.", "enc.layers.{i}.", encoder),
        **under("model.decoder.layers.{d}.", "dec.layers.{d}.", decoder),
    }


POSITIONS = "embed_positions.weight pos.weight"
NORM_OF_EMBEDDINGS = ", layernorm_embedding.{p} embed_norm.{p}"
LAST_NORM = ", layer_norm.{p} norm.{p}"
BART = Family(
    "bart",
    "BartForConditionalGeneration",
    {
        "vocab_size": Field(both("num_tokens")),
        "d_model": Field("dim", 1024),
        "encoder_layers": Field("enc_depth", 12),
        "decoder_layers": Field("dec_depth", 12),
        "encoder_attention_heads": Field("enc_heads", 16),
        "decoder_attention_heads": Field("dec_heads", 16),
        "encoder_ffn_dim": Field("enc_ff_inner_dim", 4096),
        "decoder_ffn_dim": Field("dec_ff_inner_dim", 4096),
        "max_position_embeddings": Field(both("max_seq_len"), 1024),
        "activation_function": activation(both("ff_activation"), "gelu"),
        "scale_embedding": EMBEDDINGS,
        " widths": WIDTHS,
    },
    layers("out_norm", POSITIONS + NORM_OF_EMBEDDINGS),
    fixed={
        **PAIR,
        **of_both(
            norm_bias=True, attn_qkv_bias=True, attn_out_bias=True, use_abs_pos_emb=True, pre_norm=False,
            abs_pos_emb_offset=2, post_emb_norm=True, post_emb_norm_bias=True,
        ),
        **{f"dec_cross_attn_{name}": True for name in ("qkv_bias", "out_bias")},
        "dec_logits_bias": True,
    },
    must={"is_encoder_decoder": True, "normalize_before": False, "add_final_layer_norm": False},
    inert="""activation_dropout dropout init_std encoder_layerdrop decoder_layerdrop num_hidden_layers
        gradient_checkpointing num_labels _num_labels classif_dropout normalize_embedding add_bias_logits
        extra_pos_embeddings force_bos_token_to_be_generated """
    + GENERATION,
    tied=("lm_head.weight", "model.shared.weight"),
    drop=(r"model\.(encoder|decoder)\.embed_tokens\.weight",),
    missing="classes of rows and answers",
)  # fmt: skip
PRE_NORM = {"enc_pre_norm": ..., "dec_pre_norm": ...}
MBART = BART.but(
    model_type="mbart",
    architecture="MBartForConditionalGeneration",
    tensors=layers("in_norm", POSITIONS + NORM_OF_EMBEDDINGS + LAST_NORM),
    fixed=PRE_NORM,
    must={"normalize_before": ..., "add_final_layer_norm": ...},
    inert=BART.inert + " normalize_before add_final_layer_norm",
)
PLAIN = dict.fromkeys(of_both(abs_pos_emb_offset=0, post_emb_norm=0, post_emb_norm_bias=0), ...)
PEGASUS = MBART.but(
    model_type="pegasus",
    architecture="PegasusForConditionalGeneration",
    tensors={f"model.{half}.layernorm_embedding.{{p}}": ... for half in ("encoder", "decoder")},
    fixed=PLAIN,
    inert=MBART.inert + " static_position_embeddings",
)


def _vocabularies(config: Config, flags: Flags) -> Flags:
    source, target = config["vocab_size"], config["decoder_vocab_size"]
    if target not in (None, source) or not config["share_encoder_decoder_embeddings"]:
        text = "config `share_encoder_decoder_embeddings` must be True, with one vocabulary"
        raise ConversionError([text])
    return of_both(num_tokens=source)


MARIAN = BART.but(
    model_type="marian",
    architecture="MarianMTModel",
    fields={
        "vocab_size": Fields(
            {"vocab_size": 58101, "decoder_vocab_size": None, "share_encoder_decoder_embeddings": True},
            _vocabularies,
            lambda f: {
                "vocab_size": f["enc_num_tokens"],
                "decoder_vocab_size": f["dec_num_tokens"],
                "share_encoder_decoder_embeddings": True,
            },
        ),
    },
    tensors=dict.fromkeys(
        (
            f"model.{half}.{name}"
            for half in ("encoder", "decoder")
            for name in ("embed_positions.weight", "layernorm_embedding.{p}")
        ),
        ...,
    ),
    fixed={
        **PLAIN,
        **dict.fromkeys(of_both(use_abs_pos_emb=0), ...),
        **of_both(scaled_sinu_pos_emb=True, sinu_pos_emb_scale=1.0),
    },
    inert=BART.inert + " static_position_embeddings bad_words_ids",
    drop=(*BART.drop, r"model\.(encoder|decoder)\.embed_positions\.weight"),
    missing="two vocabularies",
)
# The positions of tokens begin after the id of padding.
FIRST = Fields(
    {"pad_token_id": 1},
    lambda c, f: of_both(sinu_pos_emb_offset=c["pad_token_id"] + 1),
    lambda f: {"pad_token_id": f["enc_sinu_pos_emb_offset"] - 1},
)
M2M100 = PEGASUS.but(
    model_type="m2m_100",
    architecture="M2M100ForConditionalGeneration",
    fields={
        "pad_token_id": FIRST,
        "activation_function": activation(both("ff_activation"), "relu"),
        "scale_embedding": replace(EMBEDDINGS, fields={"scale_embedding": True}),
    },
    tensors={
        "final_logits_bias": ...,
        **dict.fromkeys((f"model.{half}.embed_positions.weight" for half in ("encoder", "decoder")), ...),
    },
    fixed={
        **dict.fromkeys(("dec_logits_bias", *of_both(use_abs_pos_emb=0)), ...),
        **of_both(scaled_sinu_pos_emb=True, sinu_pos_emb_scale=1.0, sinu_pos_emb_endpoint=True),
    },
    drop=(*BART.drop, r"model\.(encoder|decoder)\.embed_positions\.weights?"),
    missing="a token in a text with the id of padding, whose position is that of padding there",
)
FAMILIES = [T5, MT5, BART, MBART, PEGASUS, MARIAN, M2M100]
