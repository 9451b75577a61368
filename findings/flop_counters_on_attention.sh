#!/usr/bin/env bash
# Five FLOP counters on one self-attention layer of 1,024 tokens: they report between 0 % and 100 % of its arithmetic.
# The layer: width 64, 4 heads of 16, three projections and an output. 11 % of its multiply-adds are in the linears,
# 89 % in the products of queries, keys and values.
# Expected: a counter for transformers counts both, whichever of torch's equal forms the layer is written in.
# Seen (torch 2.13.0 CPU, fvcore 0.1.5.post20221221, thop 0.1.1.post2209072238, torchinfo 1.8.0, ptflops 0.7.5):
# - scaled_dot_product_attention: no counter sees the products, torch's own included (11 % in all, torchinfo 0 %).
# - the same products by `@`: torch and fvcore 100 %, ptflops by its `aten` backend alone; thop and the default of ptflops
#   count modules, so they stay at 11 %.
# - nn.MultiheadAttention in eval mode without gradients: torch's own counter says 0, linears included, because the
#   whole module is one fused operator then; with gradients it says 100 %.
# - torchinfo counts a linear once a row, not once a token: 0.01 % here.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 iopath==0.1.10 yacs==0.1.8 termcolor==3.2.0 tabulate==0.9.0 pillow==13.0.0 tqdm==4.70.1
"$folder/venv/bin/pip" install --quiet --no-deps fvcore==0.1.5.post20221221 thop==0.1.1.post2209072238 torchinfo==1.8.0 ptflops==0.7.5
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import logging

import torch
import torchinfo
from fvcore.nn import FlopCountAnalysis
from ptflops import get_model_complexity_info
from thop import profile
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

logging.disable(logging.CRITICAL)
N, WIDTH, HEADS, HEAD = 1024, 64, 4, 16
TRUE = N * WIDTH * 4 * WIDTH + 2 * HEADS * N * N * HEAD  # multiply-adds


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.fused = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD)).permute(2, 0, 3, 1, 4)
        if self.fused:
            out = scaled_dot_product_attention(q, k, v)
        else:
            out = (q @ k.transpose(-1, -2) * HEAD**-0.5).softmax(-1) @ v
        return self.out(out.transpose(1, 2).flatten(2))


def by_torch(model: nn.Module, inputs: tuple[torch.Tensor, ...], grad: bool) -> float:
    with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops() / 2  # torch counts a multiply-add as two


def shares(model: nn.Module, x: torch.Tensor) -> dict[str, float]:
    found = {"torch": by_torch(model, (x,), False), "fvcore": FlopCountAnalysis(model, (x,)).total()}
    found["thop"] = profile(model, inputs=(x,), verbose=False)[0]
    found["torchinfo"] = torchinfo.summary(model, input_data=(x,), verbose=0).total_mult_adds
    for backend in ("pytorch", "aten"):
        found[f"ptflops {backend}"] = get_model_complexity_info(
            model, (N, WIDTH), as_strings=False, print_per_layer_stat=False, backend=backend
        )[0]
    return {name: round(count / TRUE, 4) for name, count in found.items()}


x = torch.randn(1, N, WIDTH)
fused, written = shares(Attention(True).eval(), x), shares(Attention(False).eval(), x)
module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()
fast = by_torch(module, (x, x, x), False)
slow = by_torch(module, (x, x, x), True) / TRUE
print("fused:", fused)
print("by @ :", written)
print(f"nn.MultiheadAttention by torch's counter: {fast} without gradients, {slow:.3f} with them")
assert all(share < 0.12 for share in fused.values()), "a counter sees fused attention now"
assert written["torch"] > 0.99 and written["fvcore"] > 0.99 and written["ptflops aten"] > 0.99
assert written["thop"] < 0.12 and written["ptflops pytorch"] < 0.12 and written["torchinfo"] < 0.001
assert fast == 0 and slow > 0.99, "torch counts the fused module now"
PYTHON
