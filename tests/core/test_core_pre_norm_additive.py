"""A sublayer with only a norm uses `PreNormAdditive`, a fast path with the same numbers."""

import pytest
import torch

import flagformer
from flagformer.stack.sublayer import PreNormAdditive, Sublayer
from perturbed_models import perturbed

FLAGS = {"model": "decoder", "num_tokens": 11, "max_seq_len": 16, "dim": 16, "depth": 2, "heads": 2}
IDS = torch.tensor([[3, 1, 4, 1, 5]])
# Flags that add a step which the fast path skips.
FILLED = {
    "pre_norm": False,
    "sandwich_norm": True,
    "shift_tokens": 1,
    "use_layerscale": True,
    "layer_dropout": 0.5,
    "gate_residual": True,
    "scale_residual": True,
    "scale_residual_constant": 2.0,
    "reversible": True,
    "macaron": True,
}


def kinds(model):
    return [type(sublayer) for sublayer in model.attn_layers.sublayers]


@pytest.mark.parametrize("flags", [{}, {"use_rmsnorm": True, "rotary_pos_emb": True}])
def test_the_fast_path_gives_the_same_bits(flags, monkeypatch):
    model = perturbed(FLAGS | flags).eval()
    assert set(kinds(model)) == {PreNormAdditive}
    short = model(IDS)
    monkeypatch.setattr(PreNormAdditive, "forward", Sublayer.forward)
    assert torch.equal(short, model(IDS))


@pytest.mark.parametrize(("name", "value"), FILLED.items())
def test_any_other_flag_uses_the_general_path(name, value):
    model = flagformer.build(FLAGS | {name: value})
    assert Sublayer in kinds(model)
