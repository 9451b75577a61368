"""Vision models: ViT, DeiT, DINOv2, the towers of CLIP and SigLIP."""

from __future__ import annotations

from typing import Any

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.families.encoders import HEAD, LABELS
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
from flagformer.interop.hugging_face.settings import Settings
from flagformer.interop.hugging_face.tensors import Cat, Patches, Row

BIASED = on("norm_bias attn_qkv_bias attn_out_bias")
WITH_CLASS = {**BIASED, **on("class_token class_token_position"), "model": "vit", "patch_norm": False}
LAYER_SIZES: dict[str, FieldRule] = {
    **names("hidden_size dim, num_hidden_layers depth, num_attention_heads heads"),
    " head": HEAD,
}


def size(name: str, default: int) -> Fields:
    """Pixels: one number, or height and width."""

    def load(config: Config, flags: Flags) -> Flags:
        value = config[name]
        return {name: tuple(value) if isinstance(value, list) else value}

    def save(flags: Flags) -> Config:
        value = flags[name]
        return {name: list(value) if isinstance(value, tuple) else value}

    return Fields({name: default}, load, save)


def images(patch: int) -> dict[str, FieldRule]:
    """Sizes of images, with the class's default of `patch_size`."""
    return {
        **LAYER_SIZES,
        "image_size": size("image_size", 224),
        "patch_size": size("patch_size", patch),
        "num_channels": Field("channels", 3),
    }


POSITIONS = Cat("class_token.pos_emb", "patches.pos_emb")
VIT_AROUND: dict[str, Any] = {
    "embeddings.cls_token": Row("class_token.token"),
    "embeddings.position_embeddings": Row(POSITIONS),
    "embeddings.patch_embeddings.projection.weight": Patches("patches.project.weight"),
    "embeddings.patch_embeddings.projection.bias": "patches.project.bias",
    "layernorm.{p}": "norm.{p}",
}
ATTENTION = """attention.attention.query.{p} attn.q.{p}, attention.attention.key.{p} attn.k.{p},
    attention.attention.value.{p} attn.v.{p}, attention.output.dense.{p} attn.o.{p},"""
VIT_LAYER = (
    ATTENTION
    + """layernorm_before.{p} attn.in_norm.{p}, layernorm_after.{p} ff.in_norm.{p},
    intermediate.dense.{p} ff.up.{p}, output.dense.{p} ff.down.{p}"""
)


def vit_tensors(model: str) -> dict[str, Any]:
    """The tensors of a ViT with classes, whose names begin with `model`."""
    return {
        **{f"{model}.{name}": rule for name, rule in VIT_AROUND.items()},
        **under(f"{model}.encoder.layer.{{i}}.", "layers.{i}.", VIT_LAYER),
        "classifier.{p}": "head.{p}",
    }


VIT = Family(
    "vit",
    "ViTForImageClassification",
    {
        **images(16),
        "intermediate_size": "ff_inner_dim",
        "layer_norm_eps": Field("norm_eps", 1e-12),
        "hidden_act": activation("ff_activation", "gelu"),
        "qkv_bias": Field("attn_qkv_bias", True),
        "id2label": LABELS,
    },
    vit_tensors("vit"),
    fixed={**WITH_CLASS, "pooling": "class"},
    inert="""hidden_dropout_prob attention_probs_dropout_prob encoder_stride pooler_output_size pooler_act
        num_labels""",
    drop=(r"vit\.pooler\..*",),
    missing="`ViTModel` with a pooler and no classes",
)
TWO_TOKENS = {
    "deit.embeddings.distillation_token": Row("distillation_token.token"),
    "deit.embeddings.position_embeddings": Row(
        Cat("class_token.pos_emb", "distillation_token.pos_emb", "patches.pos_emb")
    ),
}
DEIT_CLASS = VIT.but(
    model_type="deit",
    architecture="DeiTForImageClassification",
    tensors={**dict.fromkeys(vit_tensors("vit"), ...), **vit_tensors("deit"), **TWO_TOKENS},
    fixed={"distillation_token": True},
    drop=(r"deit\.pooler\..*",),
)
DEIT = DEIT_CLASS.but(
    architecture="DeiTForImageClassificationWithTeacher",
    tensors={
        "classifier.{p}": ...,
        "cls_classifier.{p}": "head.{p}",
        "distillation_classifier.{p}": "distillation_head.{p}",
    },
    fixed={"pooling": "distilled"},
    others=(DEIT_CLASS,),
    missing="`DeiTModel` with a pooler and no classes",
)


def _width(dim: int, ratio: float, gated: bool) -> int:
    inner = int(dim * ratio)
    return (int(inner * 2 / 3) + 7) // 8 * 8 if gated else inner


GELU = activation("ff_activation", "gelu").values or {}


def _feedforward(config: Config, flags: Flags) -> Flags:
    gated, word = config["use_swiglu_ffn"], config["hidden_act"]
    if word not in GELU:
        raise ConversionError([f"config `hidden_act` must be one of {', '.join(GELU)}, but is {word!r}"])
    return {
        "ff_inner_dim": _width(flags["dim"], config["mlp_ratio"], gated),
        "ff_activation": "silu" if gated else GELU[word],
        "ff_glu": bool(gated),
    }


def _to_feedforward(flags: Flags) -> Config:
    gated, inner = bool(flags.get("ff_glu")), flags["ff_inner_dim"]
    ratios = [ratio for ratio in range(1, 33) if _width(flags["dim"], ratio, gated) == inner]
    if not ratios or (gated and flags["ff_activation"] != "silu"):
        raise ConversionError([f"flag `ff_inner_dim`: {inner} has no place in config `mlp_ratio`"])
    word = "gelu" if gated else next(word for word, name in GELU.items() if name == flags["ff_activation"])
    return {"mlp_ratio": ratios[0], "use_swiglu_ffn": gated, "hidden_act": word}


DINOV2_LAYER = """norm1.{p} attn.in_norm.{p}, norm2.{p} ff.in_norm.{p},
    layer_scale1.lambda1 attn.branch.weight, layer_scale2.lambda1 ff.branch.weight"""


def _dinov2(settings: Settings) -> dict[str, Any]:
    layer = under("encoder.layer.{i}.", "layers.{i}.", ATTENTION + DINOV2_LAYER)
    there, here = "encoder.layer.{i}.mlp.", "layers.{i}.ff."
    if not settings.get("ff_glu"):
        return {**VIT_AROUND, **layer, **under(there, here, "fc1.{p} up.{p}, fc2.{p} down.{p}")}
    gated: dict[str, Any] = {
        there + "weights_in.{p}": Cat(here + "gate.{p}", here + "up.{p}"),
        there + "weights_out.{p}": here + "down.{p}",
    }
    return {**VIT_AROUND, **layer, **gated}


DINOV2 = Family(
    "dinov2",
    "Dinov2Model",
    {
        **images(14),
        "layer_norm_eps": Field("norm_eps", 1e-6),
        " feedforward": Fields(
            {"mlp_ratio": 4, "use_swiglu_ffn": False, "hidden_act": "gelu"}, _feedforward, _to_feedforward
        ),
        "qkv_bias": Field("attn_qkv_bias", True),
    },
    _dinov2,
    fixed={**WITH_CLASS, "use_layerscale": True},
    inert="""hidden_dropout_prob attention_probs_dropout_prob layerscale_value drop_path_rate apply_layernorm
        out_features out_indices _out_features _out_indices reshape_hidden_states stage_names
        use_mask_token""",
    drop=(r"embeddings\.mask_token",),
    written={"use_mask_token": False},
    missing="classes (of the class token and the mean together); the token of masked patches is left out",
)
TOWER_LAYER = """self_attn.q_proj.{p} attn.q.{p}, self_attn.k_proj.{p} attn.k.{p},
    self_attn.v_proj.{p} attn.v.{p}, self_attn.out_proj.{p} attn.o.{p}, layer_norm1.{p} attn.in_norm.{p},
    layer_norm2.{p} ff.in_norm.{p}, mlp.fc1.{p} ff.up.{p}, mlp.fc2.{p} ff.down.{p}"""
TOWER = under("encoder.layers.{i}.", "layers.{i}.", TOWER_LAYER)
TOWER_INERT = "projection_dim initializer_factor dropout"
CLIP_VISION = Family(
    "clip_vision_model",
    "CLIPVisionModel",
    {
        **images(32),
        "intermediate_size": "ff_inner_dim",
        "layer_norm_eps": Field("norm_eps post_emb_norm_eps", 1e-5),
        "hidden_act": activation("ff_activation", "quick_gelu"),
    },
    {
        "embeddings.class_embedding": "class_token.token[0]",
        "embeddings.position_embedding.weight": POSITIONS,
        "embeddings.patch_embedding.weight": Patches("patches.project.weight"),
        "pre_layrnorm.{p}": "post_emb_norm.{p}",
        "post_layernorm.{p}": "norm.{p}",
        **TOWER,
    },
    fixed={**WITH_CLASS, **on("post_emb_norm post_emb_norm_bias"), "patch_bias": False},
    inert=TOWER_INERT,
    drop=(r"embeddings\.position_ids",),
    old={"vision_model.": ""},
    missing="the projection; the last norm is of all outputs here, of the class token alone there",
)
END = 49407  # the id of the last token of a text
CLIP_TEXT = Family(
    "clip_text_model",
    "CLIPTextModel",
    {
        **LAYER_SIZES,
        "vocab_size": Field("num_tokens", 49408),
        "intermediate_size": "ff_inner_dim",
        "max_position_embeddings": Field("max_seq_len", 77),
        # pooling there needs a number; it has no part in the outputs of tokens
        "eos_token_id": Fields({"eos_token_id": END}, lambda c, f: {}, lambda f: {"eos_token_id": END}),
        "layer_norm_eps": Field("norm_eps", 1e-5),
        "hidden_act": activation("ff_activation", "quick_gelu"),
    },
    {
        "embeddings.token_embedding.weight": "embed.weight",
        "embeddings.position_embedding.weight": "pos.weight",
        "final_layer_norm.{p}": "norm.{p}",
        **TOWER,
    },
    fixed={**BIASED, **on("use_abs_pos_emb return_only_embed")},
    inert=TOWER_INERT,
    drop=(r"embeddings\.position_ids",),
    old={"text_model.": ""},
    missing="the projection; the output is of all tokens",
)


def _no_head(config: Config, flags: Flags) -> Flags:
    if config["vision_use_head"] is not False:
        raise ConversionError(["config `vision_use_head` must be False: pooling by attention has no flag"])
    return {}


SIGLIP_VISION = Family(
    "siglip_vision_model",
    "SiglipVisionModel",
    {
        **images(16),
        "intermediate_size": "ff_inner_dim",
        "layer_norm_eps": Field("norm_eps", 1e-6),
        "hidden_act": activation("ff_activation", "gelu_pytorch_tanh"),
        "vision_use_head": Fields(
            {"vision_use_head": True}, _no_head, lambda flags: {"vision_use_head": False}
        ),
    },
    {
        "embeddings.position_embedding.weight": "patches.pos_emb",
        "embeddings.patch_embedding.weight": Patches("patches.project.weight"),
        "embeddings.patch_embedding.bias": "patches.project.bias",
        "post_layernorm.{p}": "norm.{p}",
        **TOWER,
    },
    fixed={**BIASED, "model": "vit", "patch_norm": False},
    inert=TOWER_INERT,
    drop=(r"embeddings\.position_ids",),
    old={"vision_model.": ""},
    missing="pooling by attention (`vision_use_head`)",
)
SIGLIP_TEXT = Family(
    "siglip_text_model",
    "SiglipTextModel",
    {
        **LAYER_SIZES,
        "vocab_size": Field("num_tokens", 32000),
        "intermediate_size": "ff_inner_dim",
        "max_position_embeddings": Field("max_seq_len", 64),
        "layer_norm_eps": Field("norm_eps", 1e-6),
        "hidden_act": activation("ff_activation", "gelu_pytorch_tanh"),
        "projection_size": Field("num_classes", None, absent=lambda f: f["dim"]),
    },
    {
        "embeddings.token_embedding.weight": "embed.weight",
        "embeddings.position_embedding.weight": "pos.weight",
        "final_layer_norm.{p}": "norm.{p}",
        "head.{p}": "head.{p}",
        **TOWER,
    },
    fixed={**BIASED, "use_abs_pos_emb": True, "model": "classifier", "pooling": "last"},
    inert=TOWER_INERT,
    drop=(r"embeddings\.position_ids",),
    old={"text_model.": ""},
    missing="padding: the last token is the last one of a mask here, of the row there",
)
FAMILIES = [VIT, DEIT, DINOV2, CLIP_VISION, CLIP_TEXT, SIGLIP_VISION, SIGLIP_TEXT]
