"""Resolved flags as text: a change in any of these files is a change that users notice.

`FLAGFORMER_GOLDEN=write python -m pytest tests/golden` rewrites the files; read the difference before
committing it. `python -m flagformer.lab.reference` rewrites refused-pairs.txt, the list of refused pairs;
tests/house/test_house_generated.py compares it.
"""

import os
from pathlib import Path

import pytest

import flagformer
from flagformer.presets import PRESETS

HERE = Path(__file__).parent
SIZES = {"num_tokens": 256, "max_seq_len": 64, "dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}
MODELS = {
    "defaults": {},
    **{f"preset-{name}": dict(flags) for name, flags in PRESETS.items()},
    "encoder-post-norm-sinusoidal": {"model": "encoder", "pre_norm": False, "scaled_sinu_pos_emb": True},
    "prefix-macaron-dynamic": {"model": "prefix_decoder", "macaron": True, "dynamic_pos_bias": True},
    "cross-attention-sandwich": {
        "cross_attend": True,
        "cross_attn_dim_context": 8,
        "sandwich_coef": 1,
        "sandwich_norm": True,
    },
    "tied-grouped-prefix-kv": {
        "weight_tie_layers": True,
        "attn_kv_heads": 2,
        "attn_num_mem_kv": 3,
        "attn_add_zero_kv": True,
    },
    "per-layer": {
        "attn_kv_heads": (1, None),
        "ff_glu": (True, False),
        "attn_flash": (True, False),
        "layer_dropout": (0.0, 0.1, 0.2, 0.3),
    },
    "custom-all-dropouts": {
        "custom_layers": ("a", "a", "f"),
        "depth": None,
        "attn_dropout": 0.1,
        "ff_dropout": 0.1,
        "emb_dropout": 0.1,
    },
    "checkpointed-layerscale": {
        "checkpoint": "sublayer",
        "use_layerscale": True,
        "attn_qk_rmsnorm": True,
        "ff_relu_squared": True,
    },
}


def described(flags):
    """Flags in, slots and parameters out."""
    model = flagformer.build({**SIZES, **flags})
    typed = [f"{name} = {value!r}" for name, value in {**SIZES, **flags}.items()]
    weights = [f"{name} {list(value.shape)}" for name, value in model.state_dict().items()]
    return "\n".join([*typed, "", model.explain(), "", *weights]) + "\n"


def agrees(name, text):
    path = HERE / f"{name}.txt"
    if os.environ.get("FLAGFORMER_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"{path.name} is missing: FLAGFORMER_GOLDEN=write makes it"
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", MODELS)
def test_model_resolves_as_it_did(name):
    agrees(name, described(MODELS[name]))


def test_no_stale_file_remains():
    assert {path.stem for path in HERE.glob("*.txt")} == {*MODELS, "refused-pairs"}
