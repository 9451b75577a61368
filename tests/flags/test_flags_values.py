"""The flags of values: refusals, per-layer values, cross-attention, and a user's own component."""

from dataclasses import replace

import pytest
import torch

import flagformer
from flagformer.attention.values import ValueRule
from flagformer.flags import FlagError, Spec
from flagformer.position import Rotation

SMALL = {"num_tokens": 11, "max_seq_len": 16, "dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 8}
IDS = torch.arange(9)[None]
TURNED = {"attn_rotary_embed_values": True, "rotary_pos_emb": True}


def refused(**flags):
    with pytest.raises(FlagError) as caught:
        flagformer.build({**SMALL, **flags})
    return {finding.flag: finding.message for finding in caught.value.findings}


def shapes(**flags):
    """Key/value heads, K and V of each attention."""
    model = flagformer.build({**SMALL, **flags})
    layers = model.attn_layers
    return [
        (fn.source.projection.groups, layers.dims.dim_head, fn.to_out.last.in_features // layers.dims.heads)
        for fn in layers.attentions
    ]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"attn_shared_kv": True, "attn_value_dim_head": 4}, ("attn_shared_kv", "attn_value_dim_head")),
        (
            {"attn_shared_kv": (True, False), "attn_value_dim_head": (12, 8)},
            ("attn_shared_kv", "attn_value_dim_head"),
        ),
        (
            {"cross_attend": True, "cross_attn_shared_kv": True, "attn_value_dim_head": 4},
            ("cross_attn_shared_kv", "attn_value_dim_head"),
        ),
        ({**TURNED, "attn_value_dim_head": 6}, ("attn_rotary_embed_values", "attn_value_dim_head")),
        ({"attn_rotary_embed_values": True}, ("attn_rotary_embed_values", "rotary_pos_emb")),
        ({"attn_rotary_embed_values": (False, True)}, ("attn_rotary_embed_values", "rotary_pos_emb")),
        (
            {"attn_rotary_embed_values": True, "rotary_xpos": True},
            ("rotary_xpos", "attn_rotary_embed_values"),
        ),
        ({**TURNED, "only_cross": True}, ("attn_rotary_embed_values", "only_cross")),
    ],
)
def test_conflicts_name_both(flags, named):
    found = refused(**flags)
    text = found[named[0]]
    assert all(f"`{name}" in text for name in named), text


def test_an_encoder_decoder_shows_its_prefix():
    sizes = {"enc_num_tokens": 11, "dec_num_tokens": 11, "enc_max_seq_len": 9, "dec_max_seq_len": 9}
    with pytest.raises(
        FlagError, match=r"`enc_attn_rotary_embed_values` needs a rotation.*`enc_rotary_pos_emb"
    ):
        flagformer.XTransformer(dim=16, **sizes, enc_depth=1, dec_depth=1, enc_attn_rotary_embed_values=True)


def test_an_impossible_rotation_is_the_only_finding():
    found = refused(**TURNED, rotary_emb_dim=5)
    assert set(found) == {"rotary_emb_dim"}


def test_rotary_values_have_no_form_for_cross_attention():
    text = refused(cross_attend=True, rotary_pos_emb=True, cross_attn_rotary_embed_values=True)
    assert text["cross_attn_rotary_embed_values"] == (
        "`cross_attn_rotary_embed_values` is not a flag, because `attn_rotary_embed_values` has no "
        "cross-attention form"
    )


def test_shared_values_accept_the_key_dim():
    assert shapes(attn_shared_kv=True, attn_value_dim_head=8) == [(4, 8, 8)] * 2


def test_rotary_values_have_the_key_dim():
    assert shapes(**TURNED, rotary_emb_dim=4, attn_value_dim_head=4) == [(4, 8, 4)] * 2


def test_values_per_layer():
    found = shapes(
        attn_kv_heads=(2, None), attn_value_dim_head=(None, 12), attn_shared_kv=(True, False), **TURNED
    )
    assert found == [(2, 8, 8), (4, 8, 12)]


def test_values_of_cross_attention_only():
    found = shapes(cross_attend=True, cross_attn_value_dim_head=(12, 4), attn_kv_heads=2)
    assert found == [(2, 8, 8), (2, 8, 12), (2, 8, 8), (2, 8, 4)]
    model = flagformer.build({**SMALL, "cross_attend": True, "cross_attn_shared_kv": True})
    own, cross = (sublayer.fn.source.projection for sublayer in model.attn_layers.sublayers[:2])
    assert own.to_qkv.out_features == 3 * cross.to_kv.out_features


@pytest.mark.parametrize(
    "flags",
    [{"attn_kv_heads": 2}, {"attn_one_kv_head": True}, {}],
)
def test_sharing_omits_the_values_of_each_head(flags):
    plain, shared = (
        flagformer.build({**SMALL, **flags, "attn_shared_kv": on}).num_params() for on in (False, True)
    )
    groups = flags.get("attn_kv_heads", 1 if flags else 4)
    assert plain - shared == SMALL["depth"] * SMALL["dim"] * groups * SMALL["attn_dim_head"]


class Doubled(ValueRule):
    """A custom rule: values twice the key dim."""

    def __init__(self, dims, rotation):
        self.width = 2 * dims.dim_head

    def __call__(self, values):
        return replace(values, width=self.width)


def test_a_custom_rule():
    assert shapes(values=Doubled) == shapes(values=(Spec(Doubled),)) == [(4, 8, 16)] * 2


class Signs(Rotation):
    """A custom rotation: odd positions are rotated by half a circle."""

    def __init__(self, dims):
        super().__init__()
        self.width = dims.dim_head

    def cos_sin(self, layout, dtype):
        return ((1 - 2 * (layout.positions % 2))[:, None, :, None].to(dtype),)

    def queries(self, q, angles):
        return q * angles[0]

    def keys(self, k, angles):
        return k * angles[0]


def test_values_under_a_custom_rotation():
    both = [
        flagformer.build({**SMALL, "rotation": Signs, "attn_rotary_embed_values": on, "depth": 1}).eval()
        for on in (True, False)
    ]
    both[1].load_state_dict(both[0].state_dict())
    turned, plain = (model(IDS).detach() for model in both)
    assert torch.equal(turned[:, 0], plain[:, 0]), "the first token attends to itself only, at position 0"
    assert not torch.allclose(turned[:, 1:], plain[:, 1:])
