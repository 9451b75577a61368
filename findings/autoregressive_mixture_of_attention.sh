#!/usr/bin/env bash
# mixture-of-attention 0.0.25, MixtureOfAutoregressiveAttention: earlier outputs change with a later token, in eval.
# Expected: the class for autoregressive models keeps the output at position t free of later positions.
# Seen: in each window the router selects queries by scores over the whole window, so a later token can displace an
# earlier one. The largest changes are larger than any output.
# Output seen (torch 2.13.0, CPU, window 8, 64 tokens): 26 of 63 single-token changes reach an earlier output.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 einops==0.8.2 numpy==2.4.6 local-attention==1.11.2 CoLT5-attention==0.11.2 mixture-of-attention==0.0.25
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from mixture_of_attention import MixtureOfAutoregressiveAttention

torch.manual_seed(0)
attention = MixtureOfAutoregressiveAttention(
    32, num_routed_queries=4, num_routed_key_values=4, local_attn_window_size=8, routed_window_size=8,
    flash_attn=False, dim_head=8, heads=4,
).eval()
tokens = torch.randn(1, 64, 32)
reached = []
with torch.no_grad():
    before = attention(tokens)
    for position in range(1, 64):
        changed = tokens.clone()
        changed[:, position] = torch.randn(32)
        moved = (attention(changed) - before)[:, :position].abs().amax((0, 2))
        if moved.max() > 1e-3:
            reached.append((position, int(moved.argmax()), round(moved.max().item(), 2)))
print(f"{len(reached)} of 63 changes reach an earlier output; (changed, earlier, by): {reached[:4]}")
assert len(reached) > 5, "no earlier output changes any more"
PYTHON
