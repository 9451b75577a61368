"""Tiny random vision models of transformers against models of flags with their weights: equal outputs."""

import re

import pytest
import torch

import flagformer

transformers = pytest.importorskip("transformers")

DIM, HEADS, LAYERS, CLASSES, PATCHES = 16, 2, 2, 5, 9
SIZES = {
    "hidden_size": DIM, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "image_size": 12,
    "patch_size": 4, "layer_norm_eps": 1e-3,
}  # fmt: skip
VIT = {
    "model": "vit", "image_size": 12, "patch_size": 4, "patch_norm": False, "class_token": True,
    "class_token_position": True, "dim": DIM, "depth": LAYERS, "heads": HEADS, "attn_dim_head": DIM // HEADS,
    "norm_bias": True, "norm_eps": 1e-3, "attn_bias": True, "ff_mult": 2.0,
}  # fmt: skip
CLASSES_OF = {"num_classes": CLASSES, "pooling": "class"}
WIDE = {"intermediate_size": 2 * DIM}
CLIP = {"patch_bias": False, "post_emb_norm": True, "post_emb_norm_eps": 1e-3, "post_emb_norm_bias": True}
GLU = {"use_layerscale": True, "ff_glu": True, "ff_swish": True, "ff_mult": None, "ff_inner_dim": 24}
# name -> (class, its configuration, our flags)
CASES = {
    "vit": ("ViT", "Model", WIDE, {}),
    "vit, classes": ("ViT", "ForImageClassification", {**WIDE, "num_labels": CLASSES}, CLASSES_OF),
    "vit, no biases of q, k, v": ("ViT", "Model", {**WIDE, "qkv_bias": False}, {"attn_qkv_bias": False}),
    "dinov2": ("Dinov2", "Model", {"mlp_ratio": 2}, {"use_layerscale": True}),
    "dinov2, gated": ("Dinov2", "Model", {"mlp_ratio": 2, "use_swiglu_ffn": True}, GLU),
    "clip": ("CLIPVision", "Model", WIDE, {**CLIP, "ff_activation": "quick_gelu"}),
    "siglip": (
        "SiglipVision",
        "Model",
        {**WIDE, "vision_use_head": False},
        {"class_token": False, "class_token_position": False, "ff_activation": "gelu_tanh"},
    ),
}
# part of their name -> part of ours; {0} and {1} are the sublayers of a layer
RULES = {
    r"(patch_embeddings\.projection|patch_embedding)\.": "patches.project.",
    r"(vit\.|embeddings\.|encoder\.)": "",
    r"(cls_token|class_embedding)": "class_token.token",
    r"pre_layrnorm": "post_emb_norm",
    r"^(post_)?layernorm": "attn_layers.final_norm",
    r"classifier": "head",
    r"(layernorm_before|norm1|layer_norm1)": "{0}.in_norm",
    r"(layernorm_after|norm2|layer_norm2)": "{1}.in_norm",
    r"(attention|self_attn)\.(o|out)_proj": "{0}.fn.to_out",
    r"(attention|self_attn)\.qkv": "{0}.fn.source.projection.to_qkv",
    r"mlp\.(fc1|up_gate)": "{1}.fn.w_in",
    r"mlp\.(fc2|down_proj)": "{1}.fn.w_out",
    r"layer_scale1.lambda1": "{0}.branch.weight",
    r"layer_scale2.lambda1": "{1}.branch.weight",
}
# parts that are one tensor here: its name, and the names of the parts
JOINED = {"qkv": ["q_proj", "k_proj", "v_proj"], "up_gate": ["up_proj", "gate_proj"]}


def theirs_of(name, kind, config):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **config})
    model = getattr(transformers, name + kind)._from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def renamed(theirs):
    """Their weights under our names."""
    state = {name: value for name, value in theirs.state_dict().items() if "pooler" not in name}
    for whole, (first, *others) in JOINED.items():
        for name in [name for name in state if f".{first}." in name]:
            parts = [state.pop(name.replace(first, part)) for part in (first, *others)]
            state[name.replace(first, whole)] = torch.cat(parts)
    own = {}
    for name, value in state.items():
        if "position_embedding" in name:
            table = value.view(-1, DIM)
            own["patches.pos_emb"] = table[-PATCHES:]
            if len(table) > PATCHES:
                own["class_token.pos_emb"] = table[:1]
        elif "mask_token" not in name and "position_ids" not in name:
            if value.dim() == 4:  # a convolution: [D, C, height, width]
                value = value.permute(0, 2, 3, 1).flatten(1)
            own[ours(name)] = value
    return own


def ours(name):
    for rule, part in RULES.items():
        name = re.sub(rule, part, name)
    if not (layer := re.match(r"layers?\.(\d+)\.", name)):
        return name
    first = 2 * int(layer[1])
    return "attn_layers.sublayers." + name[layer.end() :].format(first, first + 1)


@pytest.mark.parametrize("name", CASES)
def test_vision_models(name):
    cls, kind, config, flags = CASES[name]
    theirs = theirs_of(cls, kind, config)
    flags = {key: value for key, value in {**VIT, **flags}.items() if value is not None}
    model, state = flagformer.build(flags).eval(), renamed(theirs)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    model.load_state_dict({key: value.reshape(shapes[key]) for key, value in state.items()})
    images = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        out, got = theirs(images), model(images)
    want = out.logits if kind == "ForImageClassification" else out.last_hidden_state
    if cls == "CLIPVision":  # its norm is after the pooling
        want = theirs.post_layernorm(want)
    assert want.std() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
