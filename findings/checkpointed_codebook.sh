#!/usr/bin/env bash
# vector-quantize-pytorch 1.32.0 inside torch.utils.checkpoint: one training step updates the codebook twice.
# Expected: activation checkpointing changes memory and time, and leaves results as they are.
# Seen: the moving averages of the codebook are updated in the forward, the recomputation runs that forward again, and
# nothing tells the two apart. One checkpointed step leaves the codebook that two plain steps leave, so decay 0.8
# acts as 0.64. The gradient is right; outputs of the next step are those of other codes.
# Output seen (torch 2.13.0, CPU): codebook 0.24 away from that of the plain step, 0.0 from that of two forwards.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 einops==0.8.2 einx==0.4.3 vector-quantize-pytorch==1.32.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import copy

import torch
from torch.utils.checkpoint import checkpoint
from vector_quantize_pytorch import VectorQuantize

torch.manual_seed(0)
layer, quantizer = torch.nn.Linear(8, 8), VectorQuantize(dim=8, codebook_size=16, decay=0.8).train()
x = torch.randn(4, 32, 8, requires_grad=True)


def codebook(forwards: int, checkpointed: bool) -> torch.Tensor:
    quantize = copy.deepcopy(quantizer)

    def step(tokens: torch.Tensor) -> torch.Tensor:
        return quantize(layer(tokens))[0]

    for _ in range(forwards):
        out = checkpoint(step, x, use_reentrant=False) if checkpointed else step(x)
        out.sum().backward()
    return quantize.codebook.detach().clone()


plain, twice, once = codebook(1, False), codebook(2, False), codebook(1, True)
apart, same = (once - plain).abs().max().item(), (once - twice).abs().max().item()
print(f"one checkpointed step: {apart:.2f} away from one plain step, {same:.2g} away from two")
assert apart > 0.05 and same < 1e-6, "a checkpointed step updates the codebook once now"
PYTHON
