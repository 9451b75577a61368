#!/usr/bin/env bash
# routing-transformer 1.6.1 with local-attention 1.11.2: rel_pos_emb=False does nothing.
# Expected: rel_pos_emb=False gives local heads without relative positions.
# Seen: routing-transformer passes rel_pos_emb_config=None, but dim as well, and this local-attention turns rotary
# positions on where either is given. The two models have the same parameters and equal outputs.
# Output seen (torch 2.13.0, CPU): rotary embedding in both models; largest difference of outputs 0.0; without
# rotary positions the same model differs by more than 1e-3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 routing-transformer==1.6.1 local-attention==1.11.2
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
from importlib.metadata import version

import torch
from local_attention import LocalAttention
from routing_transformer import RoutingTransformer


def outputs(rel_pos_emb: bool, without: bool = False) -> tuple[torch.Tensor, bool]:
    torch.manual_seed(0)
    model = RoutingTransformer(
        dim=32, depth=1, max_seq_len=32, heads=2, window_size=8, local_attn_window_size=8, n_local_attn_heads=2,
        causal=True, rel_pos_emb=rel_pos_emb,
    ).eval()
    [local] = [module for module in model.modules() if isinstance(module, LocalAttention)]
    if without:
        local.rel_pos = None
    torch.manual_seed(1)
    with torch.no_grad():
        return model(torch.randn(1, 32, 32))[0], local.rel_pos is not None


print("routing-transformer", version("routing-transformer"), "local-attention", version("local-attention"))
(on, has_on), (off, has_off), (bare, _) = outputs(True), outputs(False), outputs(False, without=True)
difference, wanted = (on - off).abs().max().item(), (on - bare).abs().max().item()
print("rotary positions:", has_on, has_off, "difference:", difference, "without rotary positions:", wanted)
assert wanted > 1e-3, "rotary positions do not matter here"
assert has_off and difference == 0, "rel_pos_emb=False has an effect now"
PYTHON
