"""Checkpoints with several parts: their text decoders, loaded alone, exported as such, and verified."""

import json

import pytest
import torch

pytest.importorskip("transformers")

from published_models import (
    COMMON,
    DIM,
    GEMMA,
    LLAMA4,
    TIED,
    assert_equal_files,
    config_of,
    gap,
    ids_of,
    logits,
    perturbed,
    read_config,
    tensors_in,
    theirs_of,
)

import flagformer
from flagformer.interop.hugging_face import ConversionError, export
from flagformer.interop.verify import verify

VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8}  # fmt: skip
LARGE_VISION = {**VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
# name: (config class, class, text, vision)
CASES = {
    "Gemma 3": ("Gemma3", {**TIED, **GEMMA, "model_type": "gemma3_text"}, VISION),
    "Llama 4": ("Llama4", {**LLAMA4, "floor_scale": 100, "model_type": "llama4_text"}, LARGE_VISION),
    "Mistral 3": ("Mistral3", {**COMMON, "head_dim": 16, "model_type": "mistral"}, VISION),
    "LLaVA": ("Llava", {**COMMON, "model_type": "llama"}, {**VISION, "projection_dim": 32}),
    "Qwen 3.5": (
        "Qwen3_5",
        {**config_of("Qwen 3.5").to_dict(), "model_type": "qwen3_5_text"},
        {"hidden_size": 32, "depth": 1, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": DIM},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def saved(request, tmp_path_factory):
    import transformers

    name, text, vision = CASES[request.param]
    config = getattr(transformers, f"{name}Config")(text_config=dict(text), vision_config=dict(vision))
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{name}ForConditionalGeneration")._from_config(
        config, attn_implementation="eager"
    )
    perturbed(theirs)
    directory = tmp_path_factory.mktemp("nested") / "whole"
    theirs.save_pretrained(directory)
    ours = flagformer.load(directory).eval()
    # that of Llama 4 reads no texts without images in transformers 5.24
    return text["model_type"], theirs.language_model if name == "Llama4" else theirs, directory, ours


def test_the_text_decoder_is_equal(saved):
    kind, theirs, directory, ours = saved
    assert gap(ours(ids_of()).detach(), logits(theirs, ids_of())) < 1e-4
    dropped = set(ours.source.dropped)
    assert not any("language_model" in name or "lm_head" in name for name in dropped)
    assert set() < dropped < set(tensors_in(directory))
    assert ours.source.config["model_type"] == kind


def test_it_is_exported_as_a_model_of_its_own(saved, tmp_path):
    kind, theirs, _directory, ours = saved
    export(ours, tmp_path / "text", max_shard_bytes=200_000)
    assert read_config(tmp_path / "text")["model_type"] == kind
    again = flagformer.load(tmp_path / "text")
    export(again, tmp_path / "again")
    assert_equal_files(tmp_path / "text", tmp_path / "again")
    assert read_config(tmp_path / "text") == read_config(tmp_path / "again")
    import transformers

    back, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "text", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert gap(logits(back.eval(), ids_of()), logits(theirs, ids_of())) < 1e-5


def test_it_is_verified_against_the_whole_model(saved):
    if saved[0] not in ("gemma3_text", "llama4_text"):
        return
    certificate = verify(saved[2], new_tokens=4, seq_len=10)
    assert certificate.passed, certificate.checks
    assert certificate.architecture.endswith("ForConditionalGeneration")


def test_names_of_earlier_versions(saved, tmp_path):
    """Files of version 4: `language_model.model.` and `language_model.lm_head.`."""
    from safetensors.torch import save_file

    _kind, _theirs, directory, ours = saved
    old = {}
    for name, tensor in tensors_in(directory).items():
        _, _, rest = name.partition("language_model.")
        if name == "lm_head.weight":
            name = "language_model.lm_head.weight"
        elif rest and not rest.startswith(("model.", "lm_head.")):
            name = f"language_model.model.{rest}"
        old[name] = tensor
    save_file(old, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(read_config(directory)))
    assert torch.equal(flagformer.load(tmp_path)(ids_of()), ours(ids_of()))


def test_a_text_without_a_table_is_refused(tmp_path):
    theirs_of("Llama 2").save_pretrained(tmp_path)
    config = read_config(tmp_path)
    whole = {"model_type": "unheard", "text_config": {**config, "model_type": "unheard_text"}}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.raises(ConversionError, match=r"`text_config`: config `model_type`: 'unheard_text'"):
        flagformer.load(tmp_path)
    whole["text_config"] = {**config, "unheard": 3}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.raises(ConversionError, match="`unheard`: 3 is not known to the table of llama"):
        flagformer.load(tmp_path)
