"""Every form of an `AttentionBias` equals its dense form, for all rules, layouts and position biases."""

import itertools
import warnings

import pytest
import torch
from torch.nn.attention import flex_attention as flex_module
from torch.nn.attention.flex_attention import flex_attention

from flagformer.attention.kernels.eager import Eager
from flagformer.attention.scores import ScorePipeline
from flagformer.flow import (
    AttentionBias,
    Causal,
    Chunks,
    DenseMask,
    Dims,
    Layout,
    PrefixLM,
    UserMaskMod,
    Window,
)
from flagformer.ops import lengths
from flagformer.position.alibi import ALiBi
from flagformer.position.dynamic import Dynamic
from flagformer.position.t5 import T5
from flagformer.score.softmax import Softmax

B, H, T, K = 2, 4, 9, 8
CPU = torch.device("cpu")
DIMS = Dims(dim=16, heads=H, dim_head=K, causal=True)
GENERATOR = torch.Generator().manual_seed(3)
PLAIN = Layout.arange(T, CPU)
RIGHT = PLAIN.masked_by(torch.arange(T) < torch.tensor([[T], [5]]))
LEFT = Layout.left_padded(torch.tensor([0, 3]), T)
PACKED = Layout.packed(torch.tensor([[2, 4, 0], [1, 5, 3]]), T)
SPREAD = Layout(torch.arange(T)[None] * 2, contiguous_positions=False)
MEMORY = Layout(torch.arange(T)[None], always_visible=(torch.arange(T) % 4 == 0)[None])
LAYOUTS = {"plain": PLAIN, "right": RIGHT, "left": LEFT, "packed": PACKED, "spread": SPREAD, "memory": MEMORY}
GIVEN = torch.rand(B, H, T, T, generator=GENERATOR) > 0.4
RULES = {
    "none": (),
    "causal": (Causal(),),
    "prefix": (PrefixLM(torch.tensor([3, 1])),),
    "two-sided window": (Window(2, 1),),
    "chunks": (Chunks(3),),
    "causal chunks": (Causal(), Chunks(4)),
    "given": (Causal(), DenseMask(GIVEN)),
    "given for all": (DenseMask(GIVEN[:1, :1]),),
    "function": (UserMaskMod(lambda b, h, q_idx, kv_idx: (q_idx + kv_idx + b + h) % 3 != 0, B, H),),
}


def position_biases():
    torch.manual_seed(4)
    t5 = T5(DIMS, buckets=8, max_distance=6)
    torch.nn.init.normal_(t5.table)
    return {"none": None, "alibi": ALiBi(DIMS), "t5": t5, "dynamic": Dynamic(DIMS)}


POSITIONS = position_biases()
NARROWED = {
    "whole": {},
    "window": {"window": 3},
    "prefix keys": {"num_prefix_kv": 2},
    "shared_qk": {"mask_self": True},
    "chunks": {"window": 4, "rules": (Chunks(4),)},
    "window ahead": {"window": 3, "rules": (Window(None, 1),)},
    "some heads": {"heads": slice(1, 3)},
    "all": {"window": 4, "num_prefix_kv": 1, "mask_self": True, "heads": slice(2, 4)},
}


def bias_of(rules, layout, position, narrowed):
    layout = LAYOUTS[layout]
    root = AttentionBias(RULES[rules], POSITIONS[position], layout, layout)
    return root.narrowed(**NARROWED[narrowed])


def qkv(bias):
    heads = H if bias.heads is None else bias.heads.stop - bias.heads.start
    generator = torch.Generator().manual_seed(5)
    sizes = (bias.q.length, *[bias.num_prefix_kv + bias.kv.length] * 2)
    return [torch.randn(B, heads, size, K, generator=generator) for size in sizes]


def eager(tensors, bias):
    return Eager(ScorePipeline(K**-0.5, [], Softmax(DIMS)))(*tensors, bias)


FLEX = [("t5", narrowed) for narrowed in NARROWED]
FLEX += [("none", "whole"), *((position, "all") for position in POSITIONS if position != "t5")]


def pairs_of_each(whole):
    """All pairs of rules and layouts, or each with a few of the others."""
    every = list(itertools.product(RULES, LAYOUTS))
    return every if whole else every[:: len(LAYOUTS) - 1] + every[2 :: len(LAYOUTS) + 1]


@torch.no_grad()
@pytest.mark.parametrize(("position", "narrowed"), FLEX)
def test_flex_equals_dense(position, narrowed, monkeypatch):
    """FlexAttention's forward, eager on CPU, traced for the narrowest biases only, as a trace takes 0.2 s;
    fp32: sums of a dozen numbers near 1."""
    traced = (position, narrowed) == ("t5", "all")
    monkeypatch.setattr(flex_module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", not traced)
    wrong = []
    for rules, layout in pairs_of_each(narrowed in ("whole", "all") and position == "t5"):
        bias = bias_of(rules, layout, position, narrowed)
        tensors, (score_mod, block_mask) = qkv(bias), bias.flex()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is not compiled
            got = flex_attention(*tensors, score_mod=score_mod, block_mask=block_mask)
        if not torch.allclose(got, eager(tensors, bias), atol=2e-6):
            wrong.append((rules, layout))
    assert not wrong


@torch.no_grad()
@pytest.mark.parametrize("narrowed", ["whole", "window", "chunks", "window ahead", "some heads"])
@pytest.mark.parametrize("position", POSITIONS)
def test_gather_equals_dense(position, narrowed):
    q_idx, kv_idx = torch.arange(T).view(1, 1, 1, T, 1), torch.arange(T).flip(0).view(1, 1, 1, 1, T)
    for rules, layout in itertools.product(RULES, LAYOUTS):
        bias = bias_of(rules, layout, position, narrowed)
        allowed, added = bias.gather(q_idx, kv_idx)
        allowed = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool) if allowed is None else allowed
        want, scores, _ = bias.dense()
        want = torch.ones(1, 1, 1, 1, dtype=torch.bool) if want is None else want
        shape = (B, 1, H if bias.heads is None else 2, T, T)
        want = want.flip(3) if want.shape[3] > 1 else want
        assert torch.equal(allowed.expand(shape), want[:, None].expand(shape)), (rules, layout)
        if scores is not None:
            found = added.expand(shape).masked_fill(~allowed, float("-inf"))
            torch.testing.assert_close(found, scores.flip(3)[:, None].expand(shape), rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("position", POSITIONS)
def test_relative_equals_dense_or_is_none(position, monkeypatch):
    monkeypatch.setattr(lengths, "LONG", 1)
    found = 0
    for rules, layout, narrowed in itertools.product(
        RULES, LAYOUTS, ["whole", "window", "chunks", "window ahead", "some heads"]
    ):
        bias = bias_of(rules, layout, position, narrowed)
        relative = bias.relative()
        if relative is None:
            continue
        found += 1
        distance = torch.arange(T)[:, None] - torch.arange(T) - relative.range.nearest
        inside = (distance >= 0) & (distance < relative.biases.shape[1])
        scores = relative.biases[:, distance.clamp(0, relative.biases.shape[1] - 1)][None]
        if relative.groups is not None:
            own = torch.where(relative.groups < 0, -1 - relative.groups, relative.groups)
            inside = inside & (own[:, :, None] == relative.groups[:, None])[:, None]
        got = scores.masked_fill(~inside, float("-inf"))
        allowed, want, _ = bias.dense()
        want = torch.zeros(1) if want is None else want
        want = want if allowed is None else want.masked_fill(~allowed, float("-inf"))
        torch.testing.assert_close(*torch.broadcast_tensors(got, want), rtol=0, atol=1e-6)
    assert found >= 5


@torch.no_grad()
def test_varlen_equals_dense():
    """Sequence by sequence, as a varlen kernel computes it."""
    found = 0
    for rules, layout, narrowed in itertools.product(
        RULES, LAYOUTS, ["whole", "window", "chunks", "window ahead"]
    ):
        bias = bias_of(rules, layout, "none", narrowed)
        varlen = bias.varlen()
        if varlen is None:
            continue
        found += 1
        tensors = qkv(bias)
        flat = [x.transpose(1, 2).flatten(0, 1) for x in tensors]  # [B * T, H, K]
        order = torch.arange(B * T) if varlen.order is None else varlen.order
        out = torch.zeros(B * T, H, K)
        left, right = varlen.window
        for start, end in itertools.pairwise(varlen.cu_seqlens.tolist()):
            at = order[start:end]
            distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
            allowed = ((distance <= left) | (left < 0)) & ((distance >= -right) | (right < 0))
            q, k, v = (x[at].transpose(0, 1) for x in flat)
            scores = (q @ k.mT * K**-0.5).masked_fill(~allowed, float("-inf"))
            out[at] = (scores.softmax(-1) @ v).transpose(0, 1)
        want = eager(tensors, bias)
        valid = torch.ones(B, T, dtype=torch.bool) if bias.q.valid is None else bias.q.valid.expand(B, -1)
        got = out.unflatten(0, (B, T)).transpose(1, 2)
        mask = valid[:, None, :, None]
        torch.testing.assert_close(got * mask, want * mask, rtol=0, atol=2e-6)
    assert found >= 6


def test_equal_narrowings_are_one_object_and_each_form_is_made_once():
    root = AttentionBias((Causal(),), POSITIONS["t5"], PLAIN, PLAIN, window=4)
    one = root.narrowed(window=7, num_prefix_kv=2)
    assert one is root.narrowed(window=5, num_prefix_kv=2)
    assert one.dense() is one.dense()
    assert one.position_scores() is root.narrowed().position_scores()
    assert one.of_heads(slice(0, 2)) is root.narrowed(4, 2, heads=slice(0, 2))


def test_a_mapped_bias_reads_the_tensors_it_was_given():
    root = AttentionBias((Causal(),), POSITIONS["t5"], PLAIN, PLAIN)
    scores = root.narrowed(num_prefix_kv=1).dense().bias
    assert scores.requires_grad
    new = root.mapped(_zeroed)
    again = new.narrowed(num_prefix_kv=1)
    assert again.learned
    assert not again.dense().bias.isfinite().logical_and(again.dense().bias != 0).any()
    assert root.narrowed(num_prefix_kv=1).dense().bias is scores


def _zeroed(value):
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return torch.zeros_like(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_zeroed, value))
    return value
