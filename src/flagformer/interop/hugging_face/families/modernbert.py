"""ModernBERT (arXiv:2412.13663)."""

from __future__ import annotations

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.families.encoders import HEAD
from flagformer.interop.hugging_face.family import Family
from flagformer.interop.hugging_face.fields import (
    Config,
    Field,
    FieldRule,
    Fields,
    Flags,
    activation,
    names,
    on,
    under,
)
from flagformer.interop.hugging_face.rope import FULL, SLIDING, WINDOW, kinds_of, rope
from flagformer.interop.hugging_face.settings import at, collapse
from flagformer.interop.hugging_face.tensors import Cat

AHEAD = "attn_max_attend_ahead"


def _windows(config: Config, flags: Flags) -> Flags:
    """Half of `local_attention` to each side, in all layers but every third by default."""
    depth, every = flags["depth"], config.get("global_attn_every_n_layers") or 3
    found = config["layer_types"] or [SLIDING if layer % every else FULL for layer in range(depth)]
    unknown = sorted(set(found) - {SLIDING, FULL})
    if unknown or len(found) != depth:
        text = f"config `layer_types` must hold {SLIDING!r} or {FULL!r} for each of {depth} layers"
        raise ConversionError([f"{text}, but holds {unknown or len(found)}"])
    side = config["local_attention"] // 2
    keys = collapse(side if kind == SLIDING else None for kind in found)
    return {WINDOW: keys, AHEAD: keys}


def _to_windows(flags: Flags) -> Config:
    found = kinds_of(flags)
    sides = {
        at(flags, name, i) for i, kind in enumerate(found) if kind == SLIDING for name in (WINDOW, AHEAD)
    }
    if len(sides) > 1:
        raise ConversionError([f"flag `{WINDOW}`: {sides} have no place in config `local_attention`"])
    return {"layer_types": found, **({"local_attention": 2 * sides.pop()} if sides else {})}


WINDOWS = Fields(
    {"local_attention": 128, "layer_types": None}, _windows, _to_windows, ("global_attn_every_n_layers",)
)
SIZES: dict[str, FieldRule] = {
    **names("vocab_size num_tokens, hidden_size dim, num_hidden_layers depth, num_attention_heads heads"),
    "intermediate_size": Field("ff_inner_dim", 1152),
    " head": HEAD,
    "max_position_embeddings": Field("max_seq_len", 8192),
    "norm_eps": Field("norm_eps post_emb_norm_eps", 1e-5),
    "norm_bias": Field("norm_bias post_emb_norm_bias", False),
    "attention_bias": Field("attn_qkv_bias attn_out_bias", False),
    "mlp_bias": Field("ff_no_bias", False, {False: True, True: False}),
    "hidden_activation": activation("ff_activation", "gelu"),
    "local_attention": WINDOWS,
    "rope_parameters": rope(kinds={FULL: 160_000.0, SLIDING: 1e4}),
}


def _head_bias(config: Config, flags: Flags) -> Flags:
    if config["classifier_bias"] != flags["norm_bias"]:
        raise ConversionError(["config `classifier_bias` must be that of `norm_bias`"])
    return {"head_transform_bias": config["classifier_bias"]}


LAYER = {
    "attn.Wqkv.{p}": Cat(*("layers.{i}.attn." + name + ".{p}" for name in "qkv")),
    "mlp.Wi.{p}": Cat("layers.{i}.ff.gate.{p}", "layers.{i}.ff.up.{p}"),
    **{
        there: "layers.{i}." + here
        for there, here in (
            ("attn.Wo.{p}", "attn.o.{p}"),
            ("attn_norm.{p}", "attn.in_norm.{p}"),
            ("mlp_norm.{p}", "ff.in_norm.{p}"),
            ("mlp.Wo.{p}", "ff.down.{p}"),
        )
    },
}
BODY = {
    **under("embeddings.", "", "tok_embeddings.weight embed.weight, norm.{p} embed_norm.{p}"),
    **{"layers.{i}." + name: rule for name, rule in LAYER.items()},
    "final_norm.{p}": "norm.{p}",
}
INERT = """initializer_cutoff_factor cls_token_id sep_token_id embedding_dropout mlp_dropout layer_norm_eps
    classifier_pooling deterministic_flash_attn sparse_prediction sparse_pred_ignore_index reference_compile
    gradient_checkpointing position_embedding_type repad_logits_with_grad"""
MODEL = Family(
    "modernbert",
    "ModernBertModel",
    SIZES,
    BODY,
    fixed={
        **on("ff_glu post_emb_norm return_only_embed"), "model": "encoder", "pre_norm_has_first_norm": False,
    },
    inert=INERT + " decoder_bias classifier_bias classifier_activation",
)  # fmt: skip
MODERNBERT = MODEL.but(
    architecture="ModernBertForMaskedLM",
    fields={
        "norm_eps": Field("norm_eps post_emb_norm_eps head_transform_eps", 1e-5),
        "classifier_activation": activation("head_transform", "gelu"),
        "classifier_bias": Fields(
            {"classifier_bias": False}, _head_bias, lambda f: {"classifier_bias": f["head_transform_bias"]}
        ),
        "decoder_bias": Field("logits_bias", True),
    },
    tensors={
        **dict.fromkeys(BODY, ...),
        **{f"model.{name}": rule for name, rule in BODY.items()},
        "head.dense.{p}": "head.transform.dense.{p}",
        "head.norm.{p}": "head.transform.norm.{p}",
        "decoder.bias": "head.bias",
    },
    fixed={"return_only_embed": ...},
    inert=INERT,
    tied=("decoder.weight", "model.embeddings.tok_embeddings.weight"),
    others=(MODEL,),
    missing="classes (a norm after the pooler)",
)
FAMILIES = [MODERNBERT]
