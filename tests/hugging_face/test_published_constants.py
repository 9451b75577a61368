"""Constants of checkpoints in bf16 keep fp32, in models of both dtypes."""

import pytest
import torch

pytest.importorskip("transformers")

from published_models import COMMON, DYNAMIC, LINEAR, LLAMA3, LONGROPE, PLAIN, YARN

import flagformer
from flagformer.flow import Layout
from flagformer.interop.hugging_face.rope import NUMBERS

POSITION = 4000
SIZES = {**COMMON, "num_hidden_layers": 1, "max_position_embeddings": 8192}
ROPES = {
    "default": ("Llama", PLAIN),
    "linear": ("Llama", LINEAR),
    "dynamic": ("Llama", DYNAMIC),
    "llama3": ("Llama", LLAMA3),
    "yarn": ("Llama", YARN),
    "longrope": ("Phi3", LONGROPE),
}


def test_every_kind_of_scaling_has_a_case():
    assert set(ROPES) == set(NUMBERS)


@pytest.mark.parametrize("kind", ROPES)
def test_angles_of_a_bf16_checkpoint_are_those_of_fp32(kind, tmp_path):
    import transformers

    name, parameters = ROPES[kind]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, "rope_parameters": dict(parameters)})
    theirs = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        want = theirs.model.rotary_emb(torch.zeros(1), torch.tensor([[POSITION]]))
    theirs.to(torch.bfloat16).save_pretrained(tmp_path)
    place = Layout.arange(1, torch.device("cpu"), POSITION)
    for dtype in (None, torch.bfloat16, torch.float32):
        model = flagformer.load(tmp_path, dtype=dtype)
        assert next(model.parameters()).dtype == dtype or dtype is None
        got = model.attn_layers.rotations[0].cos_sin(place, torch.float32)
        for ours, other in zip(got, want):
            assert (ours[0, 0].abs() - other[0].abs()).abs().max() < 1e-3
        used = model.attn_layers.rotations[0].cos_sin(place, next(model.parameters()).dtype)
        for rounded, exact in zip(used, got):
            torch.testing.assert_close(rounded, exact.to(rounded.dtype))
