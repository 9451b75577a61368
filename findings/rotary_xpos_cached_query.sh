#!/usr/bin/env bash
# rotary-embedding-torch 0.9.1, use_xpos=True: rotate_queries_with_cached_keys gives other scores than
# rotate_queries_and_keys for the same query and the same keys.
# Expected: the last query against all keys has one row of scores, cached or not, as without use_xpos.
# Seen: the length scale is centred on half of the tensor that it is made for: one token for the query, the whole row
# for the keys. The centres no longer cancel, so scores are off by a factor that grows with the length of the row.
# Output seen (torch 2.13.0, CPU, 16 dims a head, all ones): the query's score with its own key falls from 16.0 to
# 15.86 at 16 tokens, 13.90 at 256 and 3.54 at 4,096.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 einops==0.8.2 rotary-embedding-torch==0.9.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from rotary_embedding_torch import RotaryEmbedding


def own_scores(length: int, xpos: bool) -> tuple[float, float]:
    """The score of the last token with itself: by the whole row, and by the cached form."""
    ones = torch.ones(1, 1, length, 16)
    rotary = RotaryEmbedding(16, use_xpos=xpos)
    if xpos:
        q, k = rotary.rotate_queries_and_keys(ones, ones)
    else:
        q = k = rotary.rotate_queries_or_keys(ones)
    last, keys = rotary.rotate_queries_with_cached_keys(ones[:, :, -1:], ones)
    return (q[0, 0, -1] @ k[0, 0, -1]).item(), (last[0, 0, 0] @ keys[0, 0, -1]).item()


for length in (16, 256, 4096):
    whole, cached = own_scores(length, xpos=True)
    plain, plain_cached = own_scores(length, xpos=False)
    print(f"{length} tokens: xpos {whole:.2f}, cached {cached:.2f}; plain rotary {plain:.2f}, cached {plain_cached:.2f}")
    assert abs(plain - plain_cached) < 1e-2, "plain rotary differs too"
    assert abs(whole - 16) < 1e-2 and whole - cached > 0.1, "the cached form of xpos agrees now"
PYTHON
