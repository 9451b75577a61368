#!/usr/bin/env bash
# performer-pytorch 1.1.4, causal FastAttention: a later key changes earlier outputs.
# Expected: with causal=True the output at position t depends on positions up to t alone.
# Seen: the kernel features of the keys are divided by the largest feature of the whole row, later keys included, and a
# fixed 1e-4 is added after that. A last key of 4 times the usual length makes the features of all earlier keys
# vanish compared with the constant, and every earlier output moves towards the plain mean of the values seen so far.
# Output seen (torch 2.13.0, CPU): relative change of earlier outputs 0.03 at length 1, 0.79 at length 4.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 performer-pytorch==1.1.4
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from performer_pytorch.performer_pytorch import FastAttention

torch.manual_seed(0)
attention = FastAttention(16, nb_features=64, causal=True).eval()
q, k, v = (torch.randn(1, 2, 32, 16) for _ in range(3))
change = {}
with torch.no_grad():
    before = attention(q, k, v)
    for length in (1, 4):
        longer = k.clone()
        longer[:, :, -1] = length * torch.randn(1, 2, 16)
        after = attention(q, longer, v)
        earlier = (after - before)[:, :, :-1].abs().max() / before.abs().max()
        change[length] = earlier.item()
print("relative change of the outputs before the last key:", {n: round(x, 3) for n, x in change.items()})
assert change[1] > 1e-3 and change[4] > 0.3, "earlier outputs no longer change with a later key"
PYTHON
