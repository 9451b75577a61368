#!/usr/bin/env bash
# local-attention 1.11.2, causal=False: rotary positions place queries look_forward windows too late.
# Expected: rotary positions are relative: where all queries and keys are equal, a query's largest weight is that of
# its own key, at distance 0, and weights fall off alike on both sides, as they do with causal=True on the one side.
# Seen: keys are rotated by their place in the look-around, look_backward + 1 + look_forward windows long, queries by
# the last places of it, which are those of the last window that is looked at and not of their own. Every query attends
# as if it stood window_size * look_forward tokens later: the largest weight is that of the key so far ahead.
# Output seen (torch 2.13.0, CPU, window of 8): largest weight 0 tokens ahead if causal, 8 without, 0 with look_forward=0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 local-attention==1.11.2
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
from importlib.metadata import version

import torch
from local_attention import LocalAttention

print("local-attention", version("local-attention"))
length, width, window = 64, 16, 8
same = torch.ones(1, length, width)
ahead = {}
for causal, look_forward in ((True, 0), (False, 0), (False, 1), (False, 2)):
    attention = LocalAttention(
        dim=width, window_size=window, causal=causal, look_backward=1, look_forward=look_forward
    )
    weights = attention(same, same, torch.eye(length)[None])[0]  # a value for each place: the output is the weights
    best = weights.argmax(-1) - torch.arange(length)
    ahead[causal, look_forward] = set(best[3 * window : 5 * window].tolist())  # away from both ends
    print(f"causal={causal}, look_forward={look_forward}: largest weight", ahead[causal, look_forward], "tokens ahead")
assert ahead[True, 0] == {0}, "causal attention differs too"
assert ahead[False, 1] == {window} and ahead[False, 2] == {2 * window}, "queries stand where their keys do now"
PYTHON
