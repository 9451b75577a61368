#!/usr/bin/env bash
# transformers 5.24.0, Llama4ForConditionalGeneration: a forward of text alone raises AttributeError.
# Expected: pixel_values is optional, and the logits of a text are those of the text decoder.
# Seen: the forward reads `outputs.image_outputs` of the decoder's output, a MoeCausalLMOutputWithPast, which has none.
# Output seen (torch 2.13.0, CPU): AttributeError: 'MoeCausalLMOutputWithPast' object has no attribute 'image_outputs'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from transformers import Llama4Config, Llama4ForConditionalGeneration

text = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 48, "intermediate_size_mlp": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 2, "pad_token_id": 0,
}
vision = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
}
model = Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision)).eval()
ids = torch.tensor([[5, 6, 7]])
with torch.no_grad():
    print("text decoder:", tuple(model.language_model(ids).logits.shape))
    try:
        model(input_ids=ids)
    except AttributeError as error:
        print(f"AttributeError: {error}")
    else:
        raise AssertionError("a text without images is read")
PYTHON
