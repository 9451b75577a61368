"""Initialisation of last projections, by kind of sublayer (arXiv:1901.09321; 2203.00555)."""

import math

import pytest
import torch

import flagformer

SIZES = {"dim": 64, "depth": 2, "heads": 2, "attn_dim_head": 16, "cross_attend": True}
PARTS = {
    "attn_zero_init_output": "ac",
    "cross_attn_zero_init_output": "c",
    "ff_zero_init_output": "f",
    "zero_init_branch_output": "acf",
}


def last(sublayer):
    return sublayer.fn.w_out if sublayer.kind == "f" else sublayer.fn.to_out.last


def zeros(layers):
    """The kinds of sublayers that add zero; all of a kind, or none."""
    silent = {}
    for sublayer in layers.sublayers:
        silent.setdefault(sublayer.kind, set()).add(all(not p.any() for p in last(sublayer).parameters()))
    assert all(len(same) == 1 for same in silent.values())
    return {kind for kind, same in silent.items() if same == {True}}


@pytest.mark.parametrize("more", [{}, {"ff_glu": True, "attn_on_attn": True}, {"macaron": True}])
@pytest.mark.parametrize("flag", PARTS)
def test_kinds_initialised_to_zero(flag, more):
    assert zeros(flagformer.Decoder(**SIZES, **more, **{flag: True})) == set(PARTS[flag])


@pytest.mark.parametrize("flag", PARTS)
def test_zero_initialised_sublayers_learn(flag):
    torch.manual_seed(0)
    layers = flagformer.Decoder(**SIZES, **{flag: True})
    x, context = torch.randn(2, 5, 64), torch.randn(2, 3, 64)
    out = layers(x, context=context)
    (out * torch.randn_like(out)).sum().backward()
    assert all(last(sublayer).weight.grad.abs().max() > 0 for sublayer in layers.sublayers)


def test_kinds_combined():
    both = flagformer.Decoder(**SIZES, attn_zero_init_output=True, ff_zero_init_output=True)
    assert zeros(both) == set("acf")
    both = flagformer.Decoder(**SIZES, cross_attn_zero_init_output=True, ff_zero_init_output=True)
    assert zeros(both) == set("cf")


def test_depth_scales_the_other_projections():
    torch.manual_seed(0)
    layers = flagformer.Decoder(**SIZES, attn_zero_init_output=True, depth_scale_residual=True)
    assert zeros(layers) == set("ac")
    for index, sublayer in enumerate(layers.sublayers, start=1):
        if sublayer.kind == "f":
            want = 1 / math.sqrt(index * 256)
            # 16 thousand samples: the standard deviation is known to 0.6 %
            assert last(sublayer).weight.detach().std().item() == pytest.approx(want, rel=0.03)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"attn_zero_init_output": True, "sandwich_norm": True}, ["attn_zero_init_output", "sandwich_norm"]),
        ({"ff_zero_init_output": True, "sandwich_norm": True}, ["ff_zero_init_output", "sandwich_norm"]),
        (
            {"attn_zero_init_output": True, "zero_init_branch_output": True},
            ["attn_zero_init_output", "zero_init_branch_output"],
        ),
        (
            {"attn_zero_init_output": True, "cross_attn_zero_init_output": True},
            ["attn_zero_init_output", "cross_attn_zero_init_output"],
        ),
        (
            {"depth_scale_residual": True, "zero_init_branch_output": True},
            ["depth_scale_residual", "zero_init_branch_output"],
        ),
        (
            {"depth_scale_residual": True, "attn_zero_init_output": True, "ff_zero_init_output": True},
            ["depth_scale_residual", "attn_zero_init_output", "ff_zero_init_output"],
        ),
        ({"attn_zero_init_output": True, "custom_layers": "ff"}, ["attn_zero_init_output"]),
        ({"ff_zero_init_output": True, "custom_layers": "aa"}, ["ff_zero_init_output"]),
        ({"cross_attn_zero_init_output": True, "custom_layers": "af"}, ["cross_attn_zero_init_output"]),
    ],
)
def test_flags_without_effect_are_refused(flags, named):
    sizes = {
        k: v for k, v in SIZES.items() if "custom_layers" not in flags or k not in ("depth", "cross_attend")
    }
    with pytest.raises(flagformer.FlagError) as caught:
        flagformer.Decoder(**sizes, **flags)
    assert all(f"`{name}`" in str(caught.value) for name in named)


def test_a_custom_initialisation():
    def ones(sublayers):
        for sublayer in sublayers:
            torch.nn.init.ones_(last(sublayer).weight)

    layers = flagformer.Decoder(**SIZES, init=ones)
    assert all(last(sublayer).weight.eq(1).all() for sublayer in layers.sublayers)
