"""Directories that hold several models: a text or a vision model is loaded by `part`."""

import json

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from published_kinds import ENCODER, VISION
from published_models import COMMON, assert_equal_files, gap, ids_of, perturbed, read_config

import flagformer
from flagformer.interop.hugging_face import ConversionError, export

SMALL = {**COMMON, "num_hidden_layers": 2}
CLIP_TEXT = {**ENCODER, "eos_token_id": 2}


def saved(model, directory):
    torch.manual_seed(0)
    perturbed(model).save_pretrained(directory)
    return model


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    directory = tmp_path_factory.mktemp("clip") / "model"
    config = transformers.CLIPConfig(text_config=CLIP_TEXT, vision_config=VISION)
    return saved(transformers.CLIPModel(config), directory), directory


@pytest.fixture(scope="module", params=["Llava", "Gemma3"])
def chat(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("chat") / "model"
    if request.param == "Llava":
        parts = {
            "text_config": {"model_type": "llama", **SMALL},
            "vision_config": {"model_type": "clip_vision_model", **VISION},
        }
        config = transformers.LlavaConfig(**parts, image_token_index=95)
    else:
        text = {**SMALL, "tie_word_embeddings": True, "head_dim": 16, "sliding_window": 8}
        vision = {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False}
        config = transformers.Gemma3Config(
            text_config=text,
            vision_config=vision,
            image_token_index=95,
            boi_token_index=93,
            eoi_token_index=94,
        )
    cls = getattr(transformers, request.param + "ForConditionalGeneration")
    return saved(cls._from_config(config, attn_implementation="eager"), directory), directory


def pixels():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_the_towers_of_clip(clip):
    theirs, directory = clip
    text, vision = (flagformer.load(directory, part=part).eval() for part in (None, "vision"))
    with torch.no_grad():
        want = theirs.text_model(ids_of()).last_hidden_state
        assert gap(text(ids_of()), want) < 1e-4
        assert gap(vision(pixels())[:, 0], theirs.vision_model(pixels()).pooler_output) < 1e-4


def test_the_models_of_a_chat_model(chat):
    theirs, directory = chat
    text, vision = (flagformer.load(directory, part=part).eval() for part in ("text", "vision"))
    with torch.no_grad():
        assert gap(text(ids_of()), theirs(ids_of()).logits) < 1e-4
        want = theirs.model.vision_tower(pixels()).last_hidden_state
        got = vision(pixels())
        tower = theirs.model.vision_tower
        norm = getattr(tower, "vision_model", tower).post_layernorm
        want = norm(want) if theirs.config.vision_config.model_type == "clip_vision_model" else want
        assert gap(got, want) < 1e-4


def test_a_part_is_exported_as_a_model(clip, tmp_path):
    theirs, directory = clip
    export(flagformer.load(directory, part="text"), tmp_path / "text")
    alone, report = transformers.CLIPTextModel.from_pretrained(tmp_path / "text", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        want = theirs.text_model(ids_of()).last_hidden_state
        assert torch.equal(alone.eval()(ids_of()).last_hidden_state, want)
    export(flagformer.load(tmp_path / "text"), tmp_path / "again")
    assert_equal_files(tmp_path / "text", tmp_path / "again")


def test_wrong_parts_are_named(clip, tmp_path):
    _, directory = clip
    with pytest.raises(ValueError, match=r"`part` must be one of 'text', 'vision' or None, but is 'audio'"):
        flagformer.load(directory, part="audio")
    config = read_config(directory)
    del config["vision_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match=r"`vision_config` is missing, which `part='vision'` reads"):
        flagformer.load(tmp_path, part="vision")
    config["text_config"]["attn_gate"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes())
    with pytest.raises(ConversionError, match="`attn_gate`"):
        flagformer.load(tmp_path, part="text")
    flagformer.build({"num_tokens": 5, "max_seq_len": 4, "dim": 8, "depth": 1}).save(tmp_path / "own")
    with pytest.raises(ValueError, match="holds one model"):
        flagformer.load(tmp_path / "own", part="text")
