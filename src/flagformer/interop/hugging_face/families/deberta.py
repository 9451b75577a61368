"""DeBERTa v2 and v3 (arXiv:2006.03654, 2111.09543): disentangled attention."""

from __future__ import annotations

from typing import Any

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.families.encoders import (
    CLASSES_OF_ROWS,
    LABELS,
    MASKED,
    SIZES,
    transform,
)
from flagformer.interop.hugging_face.family import Family
from flagformer.interop.hugging_face.fields import (
    Config,
    Field,
    FieldRule,
    Fields,
    Flags,
    activation,
    under,
)

TERMS = {frozenset({"c2p"}): "c2p", frozenset({"p2c"}): "p2c", frozenset({"c2p", "p2c"}): "both"}
RELATIVE = {
    "relative_attention": False, "position_buckets": -1, "max_relative_positions": -1, "pos_att_type": None,
    "share_att_key": False, "norm_rel_ebd": "none",
}  # fmt: skip


def _terms(given: Any) -> frozenset[str]:
    return frozenset(
        one.strip() for one in (given.lower().split("|") if isinstance(given, str) else given or ())
    )


def _relative(config: Config, flags: Flags) -> Flags:
    """The scores have the scale of as many terms as `pos_att_type` names, and one more."""
    terms = _terms(config["pos_att_type"])
    found: Flags = {"attn_scale": (flags["attn_dim_head"] * (1 + len(terms))) ** -0.5}
    if not config["relative_attention"]:
        return found
    if terms not in TERMS:
        raise ConversionError([f"config `pos_att_type` must name c2p, p2c or both, but is {sorted(terms)}"])
    if not config["share_att_key"]:
        text = "config `share_att_key` must be True: projections of relative embeddings have no flag"
        raise ConversionError([text])
    if config["norm_rel_ebd"] not in ("none", "layer_norm"):
        raise ConversionError([f"config `norm_rel_ebd`: {config['norm_rel_ebd']!r} has no flag"])
    farthest, buckets = config["max_relative_positions"], config["position_buckets"]
    farthest = flags["max_seq_len"] if farthest < 1 else farthest
    normed = config["norm_rel_ebd"] == "layer_norm"
    return {
        **found,
        "disentangled_attn": True,
        "disentangled_attn_span": buckets if buckets > 0 else farthest,
        "disentangled_attn_max_distance": farthest if buckets > 0 else 0,
        "disentangled_attn_terms": TERMS[terms],
        "disentangled_attn_norm": normed,
        **({"disentangled_attn_norm_eps": flags["norm_eps"]} if normed else {}),
    }


def _to_relative(flags: Flags) -> Config:
    if not flags.get("disentangled_attn"):
        return {**RELATIVE, "pos_att_type": []}
    span, farthest = flags["disentangled_attn_span"], flags["disentangled_attn_max_distance"]
    return {
        "relative_attention": True,
        "position_buckets": span if farthest else -1,
        "max_relative_positions": farthest or span,
        "pos_att_type": sorted(
            next(t for t, word in TERMS.items() if word == flags["disentangled_attn_terms"])
        ),
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm" if flags["disentangled_attn_norm"] else "none",
    }


def same_width(name: str) -> Fields:
    """A width that must be that of the layers."""

    def load(config: Config, flags: Flags) -> Flags:
        if config[name] not in (None, flags["dim"]):
            raise ConversionError([f"config `{name}` must be `hidden_size`, but is {config[name]}"])
        return {}

    return Fields({name: None}, load, lambda flags: {})


BASE: dict[str, FieldRule] = {
    **{name: rule for name, rule in SIZES.items() if name != "layer_norm_eps"},
    "type_vocab_size": Field("num_token_types", 0),
    "layer_norm_eps": Field("norm_eps post_emb_norm_eps", 1e-7),
    "hidden_act": activation("ff_activation", "gelu"),
    "embedding_size": same_width("embedding_size"),
    "position_biased_input": Field("use_abs_pos_emb", True),
    "relative_attention": Fields(RELATIVE, _relative, _to_relative),
}
TOP = """embeddings.word_embeddings.weight embed.weight, embeddings.position_embeddings.weight pos.weight,
    embeddings.token_type_embeddings.weight types.weight, embeddings.LayerNorm.{p} embed_norm.{p},
    encoder.rel_embeddings.weight attn_layers.position_bias.table.weight,
    encoder.LayerNorm.{p} attn_layers.position_bias.norm.{p}"""
LAYER = """attention.self.query_proj.{p} attn.q.{p}, attention.self.key_proj.{p} attn.k.{p},
    attention.self.value_proj.{p} attn.v.{p}, attention.output.dense.{p} attn.o.{p},
    attention.output.LayerNorm.{p} attn.out_norm.{p}, intermediate.dense.{p} ff.up.{p},
    output.dense.{p} ff.down.{p}, output.LayerNorm.{p} ff.out_norm.{p}"""
BODY = {**under("", "", TOP), **under("encoder.layer.{i}.", "layers.{i}.", LAYER)}
INSIDE = {f"deberta.{name}": rule for name, rule in BODY.items()}
INERT = """attention_probs_dropout_prob hidden_dropout_prob pooler_dropout cls_dropout pooler_hidden_size
    gradient_checkpointing summary_type"""
OF_POOLER = "pooler_hidden_act"
MUST = {"legacy": True, "conv_kernel_size": 0}
LAYERS = {name: value for name, value in MASKED.items() if name not in ("logits_bias", "use_abs_pos_emb")}
MODEL = Family(
    "deberta-v2",
    "DebertaV2Model",
    BASE,
    BODY,
    fixed={**LAYERS, "return_only_embed": True},
    must={"conv_kernel_size": 0},
    inert=f"{INERT} {OF_POOLER} legacy",
    drop=(r"(lm_predictions|mask_predictions|cls|pooler|classifier)\..*", r"embeddings\.position_ids"),
    old={"deberta.": ""},
)
MASKED_LM = Family(
    "deberta-v2",
    "DebertaV2ForMaskedLM",
    {
        **BASE,
        "layer_norm_eps": Field("norm_eps post_emb_norm_eps head_transform_eps", 1e-7),
        "hidden_act": activation("ff_activation head_transform", "gelu"),
    },
    {
        **INSIDE,
        **transform(
            "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"
        ),
    },
    fixed={**LAYERS, "logits_bias": True},
    must=MUST,
    inert=f"{INERT} {OF_POOLER}",
    tied=("cls.predictions.decoder.weight", "deberta.embeddings.word_embeddings.weight"),
    drop=(r"mask_predictions\..*", r"cls\.predictions\.decoder\.bias"),
)
CLASSES = Family(
    "deberta-v2",
    "DebertaV2ForSequenceClassification",
    {
        **BASE,
        "pooler_hidden_act": activation("pooler_activation", "gelu"),
        "id2label": LABELS,
    },
    {**INSIDE, "pooler.dense.{p}": "pooler.dense.{p}", "classifier.{p}": "head.{p}"},
    fixed={name: value for name, value in CLASSES_OF_ROWS.items() if name != "use_abs_pos_emb"},
    must={"conv_kernel_size": 0},
    inert=f"{INERT} legacy",
)
DEBERTA = MODEL.but(
    others=(MASKED_LM, CLASSES),
    missing="relative embeddings with projections of their own (`share_att_key: false`), the convolution",
)
FAMILIES = [DEBERTA]
