"""Transformer-XL (1901.02860, section 3.2), token by token, with memories shorter than the past."""

import math

import pytest
import reference_formulas as paper
import torch

import flagformer

SIZES = {"num_tokens": 7, "max_seq_len": 16, "dim": 8, "heads": 2, "attn_dim_head": 4}
SEGMENTS = (5, 3, 1, 4)


def attend(weights, x, earlier, position):
    """One token with its position, and (vector, position) of itself and its keys, normed."""
    out = []
    for head in range(2):
        rows = [slice(4 * (2 * part + head), 4 * (2 * part + head) + 4) for part in range(3)]
        to_q, to_k, to_v = (weights["source.projection.to_qkv.weight"][one] for one in rows)
        q = paper.rotate(to_q @ x, position)
        scores = [q @ paper.rotate(to_k @ m, at) / math.sqrt(4) for m, at in earlier]
        total = sum(math.exp(score) for score in scores)
        out.append(sum(math.exp(s) / total * (to_v @ m) for s, (m, _) in zip(scores, earlier)))
    return weights["to_out.weight"] @ torch.cat(out)


def expected(model, ids, most, shift):
    """The stream of one row after all layers, segment by segment; every layer is an attention."""
    layers = model.attn_layers
    memory = [[] for _ in layers.sublayers]  # of each layer: (its input, position), oldest first
    found, start = [], 0
    for length in SEGMENTS:
        places = range(start, start + length)
        stream = [model.token_emb.weight[ids[place]] for place in places]
        read = []
        for number, layer in enumerate(layers.sublayers):
            read.append(list(zip(stream, places)))
            held = memory[(number + shift) % len(memory)][-most:]
            seen = [(paper.layer_norm(h, layer.in_norm.weight), at) for h, at in held + read[-1]]
            weights = dict(layer.fn.named_parameters())
            queries = seen[len(held) :]
            stream = [
                h + attend(weights, x, seen[: len(held) + t + 1], at)
                for t, (h, (x, at)) in enumerate(zip(stream, queries))
            ]
        memory = [old + new for old, new in zip(memory, read)]
        found += [paper.layer_norm(h, layers.final_norm.weight) for h in stream]
        start += length
    return torch.stack(found)


@torch.no_grad()
@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize(("layers", "most", "shift"), [(1, 4, 0), (2, 4, 0), (2, 2, 1), (3, 6, 1), (3, 6, 2)])
def test_segments(layers, most, shift, flash):
    torch.manual_seed(layers)
    flags = {"custom_layers": "a" * layers, "rotary_pos_emb": True, "attn_flash": flash}
    model = flagformer.build({**SIZES, **flags, "max_mem_len": most, "shift_mem_down": shift}).eval().double()
    for parameter in model.parameters():
        parameter.add_(0.5 * torch.randn_like(parameter))
    ids = torch.randint(7, (2, sum(SEGMENTS)))
    got, mems, start = [], None, 0
    for length in SEGMENTS:
        part = ids[:, start : start + length]
        out, mems = model(part, mems=mems, return_mems=True, return_embeddings=True)
        got.append(out)
        start += length
        assert [tuple(one.shape) for one in mems] == [(2, min(most, start), 8)] * layers
    want = torch.stack([expected(model, row, most, shift) for row in ids])
    # angles are fp32 in the library and fp64 here
    torch.testing.assert_close(torch.cat(got, dim=1), want, rtol=1e-5, atol=1e-5)
