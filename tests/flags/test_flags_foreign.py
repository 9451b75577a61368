"""Every constructor name of x-transformers 1.27 is a flag here, or is answered with what to type."""

import pytest
import torch
from torch import nn

import flagformer
from flagformer.flags import CATALOGUE, MODEL_SCOPES, SLOTS
from flagformer.flags.foreign import FOREIGN

SMALL = {"num_tokens": 11, "max_seq_len": 16, "dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 8}
# prefix -> the constructor's names; `cross_attn_` takes those of `attn_` too
INVENTORY = {
    "": """
        dim depth heads causal cross_attend only_cross use_scalenorm use_rmsnorm use_simple_rmsnorm
        alibi_pos_bias alibi_num_heads rel_pos_bias rel_pos_num_buckets rel_pos_max_distance dynamic_pos_bias
        dynamic_pos_bias_log_distance dynamic_pos_bias_mlp_depth dynamic_pos_bias_norm rotary_pos_emb
        rotary_emb_dim rotary_xpos rotary_interpolation_factor rotary_xpos_scale_base
        rotary_base_rescale_factor custom_layers sandwich_coef par_ratio weight_tie_layers
        layers_execute_order residual_attn cross_residual_attn macaron pre_norm pre_norm_has_final_norm
        gate_residual scale_residual scale_residual_constant shift_tokens sandwich_norm resi_dual
        resi_dual_scale zero_init_branch_output layer_dropout cross_attn_tokens_dropout disable_abs_pos_emb
        num_tokens max_seq_len embed_num_tokens emb_dim emb_dropout post_emb_norm tie_embedding logits_dim
        use_abs_pos_emb scaled_sinu_pos_emb l2norm_embed emb_frac_gradient attn_z_loss_weight
    """,
    "attn_": """
        dim dim_head dim_context heads causal flash talking_heads head_scale sparse_topk num_mem_kv dropout
        on_attn gate_value_heads swiglu_values gate_values zero_init_output max_attend_past qk_norm
        qk_norm_groups qk_norm_scale qk_norm_dim_scale one_kv_head kv_heads add_zero_kv onnxable
    """,
    "ff_": """
        dim dim_out mult dropout glu glu_mult_bias swish relu_squared post_act_ln no_bias zero_init_output
    """,
}
NAMES = [prefix + name for prefix, names in INVENTORY.items() for name in names.split()]
NAMES += [f"cross_{name}" for name in NAMES if name.startswith("attn_") and name != "attn_z_loss_weight"]


def message(name, value=True, **flags):
    with pytest.raises(flagformer.FlagError) as caught:
        flagformer.check({**SMALL, **flags, name: value})
    return next(finding.message for finding in caught.value.findings if finding.flag == name)


def known():
    return {*CATALOGUE.names(MODEL_SCOPES), *(f"cross_{name}" for name in CATALOGUE.crossed())}


@pytest.mark.parametrize("name", NAMES)
def test_name_is_a_flag_or_is_answered(name):
    if name not in known():
        text = message(name)
        assert text.startswith(f"`{name}` is no flag of this library: "), text


@pytest.mark.parametrize("name", FOREIGN)
def test_an_answer_speaks_of_flags_that_exist(name):
    assert name not in known(), "it is a flag now"
    text = message(name)
    said = {part.split("=")[0] for part in text.split("`")[3::2]} - {"load_x_transformers"}
    assert said <= known() | set(SLOTS)
    assert said or "leave it out" in text or "load_x_transformers" in text


@pytest.mark.parametrize(
    ("name", "say"),
    [
        ("kv_heads", "say `attn_kv_heads`"),
        ("glu", "say `ff_glu`"),
        ("dropout", "say `attn_dropout` or `ff_dropout`"),
    ],
)
def test_a_name_without_its_prefix(name, say):
    assert message(name) == f"`{name}` is not a flag; {say}"


@pytest.mark.parametrize(
    ("typed", "say"),
    [
        ("enc_attn_onnxable", "leave it out"),
        ("dec_ff_custom_activation", "`dec_activation=torch.tanh`"),
        ("dec_attn_pre_talking_heads", "`dec_attn_talking_heads`"),
        ("dec_kv_heads", "say `dec_attn_kv_heads`"),
    ],
)
def test_halves_of_an_encoder_decoder_answer_with_their_prefix(typed, say):
    sizes = {
        f"{half}{name}": value for half in ("enc_", "dec_") for name, value in SMALL.items() if name != "dim"
    }
    with pytest.raises(flagformer.FlagError) as caught:
        flagformer.XTransformer(dim=16, **sizes, **{typed: True})
    assert f"`{typed}` is" in str(caught.value)
    assert say in str(caught.value)


class Doubled(nn.Module):
    """An activation with a state of its own."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return x.relu() * self.gain


@pytest.mark.parametrize(
    "given", [torch.relu, nn.ReLU, nn.ReLU(), Doubled], ids=["function", "class", "module", "own"]
)
@pytest.mark.parametrize("gated", [False, True])
def test_an_activation_of_ones_own(given, gated):
    """What x-transformers calls `ff_custom_activation`."""
    torch.manual_seed(0)
    model = flagformer.build({**SMALL, "activation": given, **({"ff_glu": True} if gated else {})}).double()
    layer = model.attn_layers.sublayers[1].fn
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    inner = layer.inner(x)
    factor = 2.0 if given is Doubled else 1.0
    hidden = inner[..., :64] * inner[..., 64:].relu() if gated else inner.relu()
    torch.testing.assert_close(layer(x, None), layer.outer(factor * hidden))
    again = flagformer.build(model.flags).double()
    assert {name for name, _ in again.named_parameters()} == {name for name, _ in model.named_parameters()}
    assert "`ff_swish` has no effect here" in message("ff_swish", activation=given)


@pytest.mark.parametrize(
    ("flags", "flag"),
    [
        ({"residual_attn": True, "depth": 1}, "residual_attn"),
        ({"residual_attn": (False, True)}, "residual_attn"),
        ({"cross_residual_attn": True, "cross_attend": True, "depth": 1}, "cross_residual_attn"),
        ({"residual_attn": True, "custom_layers": "acf", "depth": None}, "residual_attn"),
    ],
)
def test_scores_handed_on_to_nobody(flags, flag):
    value = flags.pop(flag)
    assert "has no effect here, because scores pass" in message(flag, value, **flags)


@pytest.mark.parametrize("flags", [{"depth": 2}, {"depth": 2, "weight_tie_layers": True}])
def test_scores_handed_on_to_the_next_step(flags):
    flagformer.check({**SMALL, **flags, "residual_attn": True})
    flagformer.check({**SMALL, **flags, "residual_attn": True, "attn_max_attend_past": 3})


def test_carried_scores_need_equal_windows():
    text = message("residual_attn", attn_max_attend_past=(3, None))
    assert "`residual_attn` and `attn_max_attend_past` cannot be combined here" in text


def test_a_tuple_for_self_attention_does_not_count_cross_attention():
    layers = flagformer.Decoder(dim=16, custom_layers="aacf", heads=2, attn_max_attend_past=(3, None))
    assert [sublayer.fn.window for sublayer in layers.sublayers[:3]] == [4, None, None]
    text = message("attn_max_attend_past", (3, None, 2), cross_attend=True)
    assert "has 3 values for 2 self-attention sublayers" in text


def test_a_window_of_nothing_is_refused():
    assert "must be at least 1, but is 0" in message("attn_max_attend_past", 0)
