#!/usr/bin/env bash
# transformers 5.24.0, OlmoHybridForCausalLM: saved convolutions are cut in thirds, not by their widths.
# Expected: q_conv1d, k_conv1d and v_conv1d of a saved model have the rows of q_proj, k_proj and v_proj.
# Seen: `save_pretrained` divides the joined weight into three equal parts, so that other readers of the files get rows of
# other projections wherever keys and values differ in width; transformers joins them again and sees no change.
# Output seen (torch 2.13.0, CPU): rows of q, k, v: 16, 16, 48; saved: 27, 27, 26
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.4.6
FOLDER="$folder" "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import os

from safetensors.torch import load_file
from transformers import OlmoHybridConfig, OlmoHybridForCausalLM

config = OlmoHybridConfig(
    vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=12,
    layer_types=["linear_attention", "full_attention"], pad_token_id=0,
)
model = OlmoHybridForCausalLM(config)
path = os.path.join(os.environ["FOLDER"], "saved")
model.save_pretrained(path)
saved = load_file(os.path.join(path, "model.safetensors"))
name = "model.layers.0.linear_attn."
rows = [len(saved[f"{name}{n}_proj.weight"]) for n in "qkv"]
parts = [len(saved[f"{name}{n}_conv1d.weight"]) for n in "qkv"]
print("rows of q, k, v:", *rows, "saved:", *parts)
assert rows != parts, "the parts have the widths of the projections"
PYTHON
