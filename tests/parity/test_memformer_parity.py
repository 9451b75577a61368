"""memformer 0.3.1 with the same weights: the same encoder output, memory and loss."""

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from flagformer import Memformer

FOLDER = Path(__file__).parents[2] / ".venv" / "peers" / "memformer-0.3"
SIZES = {"enc_num_tokens": 13, "enc_max_seq_len": 40, "enc_depth": 2, "enc_heads": 4}
SIZES |= {"dec_num_tokens": 11, "dec_max_seq_len": 40, "dec_depth": 2, "dec_heads": 4}
OWN = {"dim": 32, "num_memory_slots": 5, "num_mem_updates": 2}
# fp32 rounding over two layers and three segments
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def peer():
    folder = Path(os.environ.get("MEMFORMER_0_3", FOLDER))
    if not (folder / "memformer").is_dir():
        pytest.skip(f"memformer 0.3.1 is not in {folder}: run `make test` once")
    sys.path.insert(0, str(folder))
    yield importlib.import_module("memformer")
    sys.path.remove(str(folder))


def moved(model):
    """Perturb every weight: no scale is 1 and no bias 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def biased(linear, weight, bias):
    """Weights, and a bias if the projection has one."""
    linear.weight = nn.Parameter(weight.clone())
    linear.bias = nn.Parameter(bias.clone())


def attention(theirs, norm, ours, cross):
    """Fold the shift of a norm into the bias of the projection after it."""
    queries, pairs = theirs.to_q, theirs.to_kv
    shifted = queries.bias + queries.weight @ norm.bias
    projection = ours.source.projection
    if cross:
        biased(projection.to_q, queries.weight, shifted)
        biased(projection.to_kv, pairs.weight, pairs.bias)
    else:
        whole = torch.cat([queries.weight, pairs.weight])
        biased(projection.to_qkv, whole, torch.cat([shifted, pairs.bias + pairs.weight @ norm.bias]))
    biased(ours.to_out, theirs.to_out.weight, theirs.to_out.bias)


def feedforward(theirs, norm, inner, outer):
    first, _, second = theirs.net
    biased(inner, first.weight, first.bias + first.weight @ norm.bias)
    biased(outer, second.weight, second.bias)


def half(theirs, ours):
    """An encoder or decoder; its position bias is added to scaled scores."""
    ours.token_emb.weight.copy_(theirs.token_emb.weight)
    layers, blocks = ours.attn_layers, theirs.layer_blocks
    bias = layers.position_bias
    bias.table.copy_(blocks.rel_pos_emb.relative_attention_bias.weight / bias.scale)
    sublayers = [residual.fn for block in blocks.layers for residual in block]
    for place, (one, other) in enumerate(zip(sublayers, layers.sublayers)):
        other.in_norm.weight.copy_(one.norm.weight)
        if other.kind == "f":
            feedforward(one.fn, one.norm, other.fn.w_in, other.fn.w_out)
        else:
            attention(one.fn, one.norm, other.fn, place % 3 == 1)
    layers.final_norm = theirs.norm


@torch.no_grad()
def copied(theirs, **flags):
    """Our model with their weights: biases and shifts that no flag builds are added by hand."""
    heads = {"enc_attn_dim_head": 8, "dec_attn_dim_head": 8}
    ours = Memformer(**OWN, **SIZES, **heads, **flags)
    half(theirs.encoder, ours.encoder)
    if theirs.decoder is not None:
        half(theirs.decoder.net, ours.decoder.net)
        biased(ours.decoder.net.head.project, *theirs.decoder.net.to_logits.parameters())
    writer = ours.encoder.slots.writer
    writer.slots.copy_(theirs.memory_slots)
    for one, other in (
        ("to_q", writer.attention.to_q),
        ("to_kv", writer.attention.to_kv),
        ("to_out", writer.to_out),
    ):
        other.load_state_dict(getattr(theirs.mem_updater, one).state_dict())
    writer.gru.load_state_dict(theirs.gru.state_dict())
    ff = theirs.mem_ff.fn
    norm, inner, _, outer = writer.feedforward
    norm.weight.copy_(ff.norm.weight)
    feedforward(ff.fn, ff.norm, inner, outer)
    return ours.eval()


def pair(peer, **flags):
    torch.manual_seed(0)
    theirs = moved(peer.Memformer(**OWN, **SIZES)).eval()
    return copied(theirs, **flags), theirs


def segments():
    draws = torch.Generator().manual_seed(2)
    parts = [torch.randint(13, (2, 40), generator=draws) for _ in range(3)]
    lengths = torch.tensor([[[40], [31]], [[17], [40]], [[40], [40]]])
    return parts, [torch.arange(40) < one for one in lengths], torch.randint(11, (2, 12), generator=draws)


@torch.no_grad()
def test_same_output_memory_and_loss(peer):
    ours, theirs = pair(peer, compat_positions="memformer-0.3")
    parts, masks, tgt = segments()
    mine = their = None
    for src, mask in zip(parts, masks):
        got, want = ours(src, tgt, mine, mask), theirs(src, tgt, their, mask)
        assert (got.enc_out - want.enc_out)[mask].abs().max() < TOLERANCE
        assert (got.mem - want.mem).abs().max() < TOLERANCE
        assert (got.dec_out - want.dec_out).abs() < TOLERANCE
        mine, their = got.mem, want.mem


@torch.no_grad()
def test_default_buckets_are_correct(peer):
    """Later keys have buckets in an encoder and none in a decoder: the same weights have other meanings."""
    ours, theirs = pair(peer)
    parts, _, tgt = segments()
    got, want = ours(parts[0], tgt), theirs(parts[0], tgt)
    assert (got.enc_out - want.enc_out).abs().max() > 1e-3
    biases = [half.attn_layers.position_bias for half in (ours.encoder, ours.decoder.net)]
    ahead = [len(bias.relative_table(-30, -1, torch.device("cpu")).unique()) for bias in biases]
    assert ahead[0] > 4 * 8
    assert ahead[1] == 4  # one number a head: causal attention has no later key


def test_same_gradients_by_replay(peer):
    """Their loss is the last segment's; its gradient reaches the slots of the first segment."""
    from flagformer import memory_replay_backprop

    ours, theirs = pair(peer, compat_positions="memformer-0.3")
    parts, _, tgt = segments()
    src = torch.cat(parts, dim=1)
    memory_replay_backprop(ours, src, tgt)
    peer.memory_replay_backprop(theirs, src, tgt)
    got = ours.encoder.slots.writer.gru.weight_hh.grad
    want = theirs.gru.weight_hh.grad
    assert (got - want).abs().max() < TOLERANCE * want.abs().max().clamp(min=1)
    got, want = ours.encoder.token_emb.weight.grad, theirs.encoder.token_emb.weight.grad
    assert (got - want).abs().max() < TOLERANCE * want.abs().max().clamp(min=1)
