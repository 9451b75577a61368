"""Names and values given by users: every mistake is reported in one sentence, in the user's spelling."""

import math

import pytest
from torch import nn

import flagformer
from flagformer.attention.kernels.eager import Eager
from flagformer.flags import CATALOGUE, FlagError, resolve, split_prefixes

BASE = {"num_tokens": 11, "max_seq_len": 16, "dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 8}


def findings(**flags):
    """flag -> message of `check` for a small model with these flags."""
    with pytest.raises(FlagError) as caught:
        flagformer.check({**BASE, **flags})
    return {finding.flag: finding.message for finding in caught.value.findings}


def layers(**flags):
    return resolve({"dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 8, **flags}, CATALOGUE, prefix="enc_")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("rotary_pos_em", "rotary_pos_emb"),
        ("use_rmsnrom", "use_rmsnorm"),
        ("attn_kv_head", "attn_kv_heads"),
        ("cross_attn_kv_head", "cross_attn_kv_heads"),
        ("num_token", "num_tokens"),
    ],
)
def test_unknown_name_suggests_the_nearest_one(typed, meant):
    assert findings(**{typed: 1}) == {typed: f"`{typed}` is not a flag; did you mean `{meant}`?"}


def test_name_unlike_any_other_refers_to_the_list():
    assert "`flagformer flags`" in findings(zzzzz=1)["zzzzz"]


def test_cross_form_exists_for_attention_only():
    assert "is not a flag" in findings(cross_ff_glu=True)["cross_ff_glu"]
    assert "is not a flag" in findings(cross_rotary_pos_emb=True)["cross_rotary_pos_emb"]


@pytest.mark.parametrize(
    ("flag", "value", "must"),
    [
        ("dim", "16", "must be int, but is '16' (str)"),
        ("dim", 16.0, "must be int, but is 16.0 (float)"),
        ("dim", True, "must be int, but is True (bool)"),
        ("dim", 0, "must be at least 1, but is 0"),
        ("dim", 2**70, "must be below 2147483648, but is"),
        ("ff_mult", 1e300, "must be below 2147483648, but is"),
        ("heads", -1, "must be at least 1, but is -1"),
        ("heads", None, "must be int, but is None"),
        ("attn_dropout", 1.0, "must be below 1, but is 1.0"),
        ("attn_dropout", -0.1, "must be at least 0, but is -0.1"),
        ("attn_dropout", math.nan, "must be float, but is nan"),
        ("attn_dropout", math.inf, "must be float, but is inf"),
        ("ff_glu", 1, "must be bool | None, but is 1 (int)"),
        ("ff_glu", "yes", "must be bool | None, but is 'yes' (str)"),
        ("checkpoint", "layer", "must be one of 'sublayer', 'selective', None, but is 'layer'"),
        ("checkpoint", True, "must be str | None, but is True (bool)"),
        ("custom_layers", 3, "must be tuple[str, ...] | str | None, but is 3 (int)"),
    ],
)
def test_wrong_values(flag, value, must):
    assert findings(**{flag: value})[flag].startswith(f"`{flag}` {must}")


@pytest.mark.parametrize("value", [0, 1e-3, 0.5])
def test_integers_are_floats_and_none_is_unset(value):
    flagformer.check({**BASE, "attn_dropout": value, "checkpoint": None, "use_rmsnorm": None})


@pytest.mark.parametrize("missing", ["dim", "depth", "num_tokens", "max_seq_len"])
def test_required_flags(missing):
    with pytest.raises(FlagError) as caught:
        flagformer.check({name: value for name, value in BASE.items() if name != missing})
    assert [f.flag for f in caught.value.findings] == [missing]
    assert f"`{missing}` is required" in str(caught.value)


def test_every_mistake_is_reported_together():
    found = findings(rotery=1, dim="x", ff_glu=3, attn_dropout=2, use_rmsnrom=True)
    assert set(found) == {"rotery", "dim", "ff_glu", "attn_dropout", "use_rmsnrom"}


def test_incompatible_sizes_are_reported_together():
    found = findings(
        attn_kv_heads=3, rotary_pos_emb=True, rotary_emb_dim=5, alibi_pos_bias=True, alibi_num_heads=9
    )
    assert set(found) == {"attn_kv_heads", "rotary_emb_dim", "alibi_num_heads"}
    assert found["attn_kv_heads"] == "`attn_kv_heads` must divide `heads` = 4, but is 3"


@pytest.mark.parametrize(
    ("flags", "flag", "text"),
    [
        ({"rotary_pos_emb": True, "rotary_emb_dim": 10}, "rotary_emb_dim", "at most the 8 dims of a head"),
        ({"rotary_pos_emb": True, "attn_dim_head": 7}, "attn_dim_head", "must be even"),
        ({"rel_pos_bias": True, "rel_pos_max_distance": 9}, "rel_pos_max_distance", "but is 9"),
        ({"scaled_sinu_pos_emb": True, "dim": 15}, "dim", "must be even"),
        ({"use_abs_pos_emb": True, "max_seq_len": 0}, "max_seq_len", "must be at least 1"),
        ({"sandwich_coef": 3}, "sandwich_coef", "must be at most `depth` = 2, but is 3"),
        ({"custom_layers": "abf", "depth": None}, "custom_layers", "holds 'b'"),
        ({"custom_layers": (), "depth": None}, "custom_layers", "is empty"),
        ({"dim": 400_000}, "dim", "not enough memory for a model of these sizes"),
    ],
)
def test_impossible_sizes(flags, flag, text):
    with pytest.raises(FlagError) as caught:
        flagformer.build({**BASE, **flags})
    assert [f.flag for f in caught.value.findings] == [flag]
    assert text in str(caught.value)


def test_other_runtime_errors_are_not_mistaken_for_lack_of_memory():
    class Broken(nn.Identity):
        def __init__(self, dims):
            raise RuntimeError("a fault of my own")

    with pytest.raises(RuntimeError, match="a fault of my own"):
        flagformer.build({**BASE, "branch": Broken})


def test_split_prefixes():
    flags = {"enc_dim": 1, "dec_dim": 2, "dec_enc_x": 3, "num_tokens": 4}
    assert split_prefixes(flags, "enc_", "dec_") == ({"dim": 1}, {"dim": 2, "enc_x": 3}, {"num_tokens": 4})
    assert split_prefixes({}, "enc_") == ({}, {})


@pytest.mark.parametrize(
    ("flags", "typed"),
    [
        ({"rotary_pos_em": True}, "`enc_rotary_pos_em` is not a flag; did you mean `enc_rotary_pos_emb`?"),
        ({"attn_dropout": 2}, "`enc_attn_dropout` must be below 1"),
        ({"attn_dropout": (0.1,) * 3}, "`enc_attn_dropout` has 3 values for 2 self-attention sublayers"),
        (
            {"rotary_emb_dim": 4},
            "it is a parameter of `enc_rotary_pos_emb` or `enc_rotary_xpos`, which is not set",
        ),
        ({"attn_kv_heads": 2, "attn_one_kv_head": True}, "`enc_attn_kv_heads` and `enc_attn_one_kv_head`"),
        ({"attn_flash": True, "rel_pos_bias": True}, "`enc_attn_flash=True` and `enc_rel_pos_bias`"),
        ({"only_cross": True, "alibi_pos_bias": True}, "`enc_alibi_pos_bias` and `enc_only_cross`"),
        (
            {"only_cross": True, "rotary_pos_emb": True},
            "`enc_rotary_pos_emb` needs self-attention, but this model has none (`enc_only_cross`)",
        ),
        ({"sandwich_coef": 5}, "`enc_sandwich_coef` must be at most `enc_depth` = 2"),
        ({"depth": None}, "`enc_depth` is required"),
        ({"cross_attn_kv_heads": 2}, "`enc_cross_attn_kv_heads` has no effect"),
    ],
)
def test_messages_show_the_prefix_of_the_user(flags, typed):
    with pytest.raises(FlagError) as caught:
        layers(**flags)
    assert typed in str(caught.value)
    assert all(finding.flag.startswith("enc_") for finding in caught.value.findings)


def test_messages_of_constructors_show_the_cross_form():
    assert set(findings(cross_attend=True, cross_attn_kv_heads=3)) == {"cross_attn_kv_heads"}
    both = findings(cross_attend=True, cross_attn_kv_heads=3, attn_kv_heads=3)
    assert set(both) == {"cross_attn_kv_heads", "attn_kv_heads"}


def test_cross_form_is_for_cross_attention_and_the_plain_one_for_both():
    built = flagformer.Decoder(
        dim=16, depth=1, heads=4, cross_attend=True, attn_kv_heads=2, cross_attn_kv_heads=1, attn_num_mem_kv=3
    )
    own, cross = (sublayer.fn for sublayer in built.sublayers[:2])
    assert (own.source.projection.groups, cross.source.projection.groups) == (2, 1)
    assert (own.num_prefix_kv, cross.num_prefix_kv) == (3, 3)


def test_cross_form_leaves_self_attention_unchanged():
    built = flagformer.Decoder(dim=16, depth=1, heads=4, cross_attend=True, cross_attn_num_mem_kv=3)
    assert [sublayer.fn.num_prefix_kv for sublayer in built.sublayers[:2]] == [0, 3]


def test_tuples_are_per_layer():
    built = flagformer.Decoder(
        dim=16, depth=2, heads=4, attn_kv_heads=(2, None), ff_glu=[True, False], attn_num_mem_kv=(0, 5)
    )
    first, ff_first, second, ff_second = (sublayer.fn for sublayer in built.sublayers)
    assert (first.source.projection.groups, second.source.projection.groups) == (2, 4)
    assert (first.num_prefix_kv, second.num_prefix_kv) == (0, 5)
    assert (type(ff_first).__name__, type(ff_second).__name__) == ("GLU", "Dense")


def test_branch_tuples_cover_every_sublayer():
    built = flagformer.Decoder(dim=16, depth=2, heads=4, layer_dropout=(0.1, 0.2, 0.3, 0.4))
    assert [sublayer.branch.rate for sublayer in built.sublayers] == [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"attn_dropout": (0.1,) * 3}, "`attn_dropout` has 3 values for 2 self-attention sublayers"),
        ({"ff_glu": (True,)}, "`ff_glu` has 1 values for 2 feedforward sublayers"),
        ({"layer_dropout": (0.1, 0.2)}, "`layer_dropout` has 2 values for 4 sublayers"),
        (
            {"cross_attend": True, "cross_attn_dropout": (0.1,) * 3},
            "`cross_attn_dropout` has 3 values for 2 cross-attention sublayers",
        ),
        ({"weight_tie_layers": True, "ff_glu": (True, False)}, "has 2 values for 1 feedforward sublayers"),
        ({"attn_dropout": (0.1, "a")}, "`attn_dropout` at layer 1 must be float, but is 'a' (str)"),
        ({"attn_dropout": (0.1, 2)}, "`attn_dropout` at layer 1 must be below 1, but is 2"),
    ],
)
def test_tuples_of_the_wrong_length_or_kind(flags, text):
    assert text in next(iter(findings(**flags).values()))


def test_tuples_for_a_component_shared_by_the_stack():
    text = "must be bool | None, because the slot `norm` is filled once for the stack, but is (True, False)"
    assert text in findings(use_rmsnorm=(True, False))["use_rmsnorm"]


@pytest.mark.parametrize(
    ("flags", "dead", "why"),
    [
        ({"rotary_emb_dim": 4}, "rotary_emb_dim", "it is a parameter of `rotary_pos_emb`"),
        (
            {"rotary_emb_dim": 4, "rotary_pos_emb": False},
            "rotary_emb_dim",
            "it is a parameter of `rotary_pos_emb`",
        ),
        (
            {"alibi_num_heads": 2, "rel_pos_bias": True},
            "alibi_num_heads",
            "it is a parameter of `alibi_pos_bias`",
        ),
        ({"rel_pos_max_distance": 64}, "rel_pos_max_distance", "it is a parameter of `rel_pos_bias`"),
        ({"dynamic_pos_bias_norm": True}, "dynamic_pos_bias_norm", "it is a parameter of `dynamic_pos_bias`"),
        ({"layerscale_init_value": 0.3}, "layerscale_init_value", "it is a parameter of `use_layerscale`"),
        (
            {"attn_qk_norm_scale": 5.0, "attn_qk_rmsnorm": True},
            "attn_qk_norm_scale",
            "it is a parameter of `attn_qk_norm`",
        ),
        ({"cross_attn_kv_heads": 2}, "cross_attn_kv_heads", "no cross-attention"),
        ({"cross_attn_dim_context": 8}, "cross_attn_dim_context", "no cross-attention"),
        ({"custom_layers": "ff", "depth": None, "attn_kv_heads": 2}, "attn_kv_heads", "no attention"),
        ({"custom_layers": "aa", "depth": None, "ff_glu": True}, "ff_glu", "no feedforward"),
        ({"custom_layers": "aa", "depth": None, "ff_mult": 2.0}, "ff_mult", "no feedforward"),
        ({"custom_layers": "ff", "depth": None, "attn_dropout": 0.2}, "attn_dropout", "no attention"),
        (
            {"kernel": Eager, "attn_dropout": 0.2},
            "attn_dropout",
            "`kernel` is set to a component of your own",
        ),
    ],
)
def test_settings_without_effect_are_refused(flags, dead, why):
    text = findings(**flags)[dead]
    assert text.startswith(f"`{dead}` has no effect here, because ")
    assert why in text


def test_a_default_can_be_given_explicitly():
    flagformer.check({**BASE, "rotary_interpolation_factor": 1.0, "rotary_pos_emb": False, "pre_norm": True})


@pytest.mark.parametrize("kind", ["decodr", None, 3])
def test_model_kinds(kind):
    assert "`model` must be one of 'decoder', 'encoder', 'prefix_decoder'" in findings(model=kind)["model"]


def test_causal_belongs_to_the_kind():
    assert "leave it out" in findings(causal=True)["causal"]
    for cls, kind in ((flagformer.Encoder, "Encoder"), (flagformer.Decoder, "Decoder")):
        with pytest.raises(FlagError, match=f"`causal` is fixed by {kind}"):
            cls(dim=16, depth=1, causal=True)
    with pytest.raises(FlagError, match="`only_cross` is fixed by CrossAttender"):
        flagformer.CrossAttender(dim=16, depth=1, only_cross=True)
    assert flagformer.AttentionLayers(dim=16, depth=1, causal=True).causal
