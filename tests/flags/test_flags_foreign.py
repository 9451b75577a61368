"""Every constructor name of x-transformers 1.27 is a flag here, or the error names the flag to use."""

import pytest
import torch
from torch import nn

import flagformer
from flagformer.flags import CATALOGUE, MODEL_SCOPES, SLOTS
from flagformer.flags.foreign import COMMON, FLAG_OF, FOREIGN

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
def test_name_is_a_flag_or_has_a_hint(name):
    if name not in known():
        text = message(name)
        assert text.startswith(f"`{name}` is not a flag of this library: "), text


@pytest.mark.parametrize("name", FOREIGN)
def test_hints_name_existing_flags(name):
    assert name not in known(), "it is a flag now"
    text = message(name)
    said = {part.split("=")[0] for part in text.split("`")[3::2]} - {"load_x_transformers"}
    assert said <= known() | set(SLOTS)
    absent = "not supported" in text
    assert said or absent or "leave it out" in text or "load_x_transformers" in text


# constructor names of x-transformers 2.31.10 that 1.27 lacks
LATER = {
    "": """
        only_attn use_dynamic_tanh use_derf dynamic_tanh_init_alpha use_adaptive_layernorm
        use_adaptive_rmsnorm use_adaptive_layerscale dim_condition adaptive_condition_mlp
        adaptive_condition_mlp_expansion rotate_num_heads polar_pos_emb polar_bias_uniform_init
        pre_and_post_norm attn_aggregated_residuals attn_aggregated_residual_kwargs orthog_residual
        mv_split_residual gated_multi_residual softclamp_output softclamp_output_value unet_skips
        integrate_layers layer_integrate_use_softmax num_residual_streams qkv_receive_diff_residuals
        reinject_input learned_reinject_input_gate add_value_residual learned_value_residual_mix
        rel_pos_kwargs residual_fn_kwargs hyper_conn_sinkhorn_iters num_output_heads
        recycling train_max_recycle_steps looped max_looped_steps average_pool_embed use_cls_token
        num_cls_tokens attn_pool num_pooled_tokens attn_pool_depth dim_pooled_tokens squeeze_out_last_dim
        token_emb mixture_of_softmax mixture_of_softmax_k sigsoftmax_logits ff_deep_embed to_logits
        add_continuous_pred_head input_not_include_cache
    """,
    "attn_": """
        sparse_topk_straight_through sublayer_dropout gate_values_rank gate_values_headwise output_gate
        output_gate_rank output_gate_headwise low_rank_silu_gates output_proj_depth hard k_rmsnorm
        value_rmsnorm l2_distance sigmoid gumbel_softmax gumbel_softmax_temp gumbel_softmax_hard selective
        cog_signed hybrid_module hybrid_mask_kwarg hybrid_fold_axial_dim hybrid_learned_mix dim_out
        rotate_num_heads data_dependent_alibi data_dependent_alibi_per_row
        data_dependent_alibi_per_row_dim_head data_dependent_alibi_kwargs use_rel_proj_pos_bias
        rel_proj_num_distance_basis rel_proj_max_dist use_cope cope_max_pos cope_soft_onehot_pos
        cope_talking_heads learned_value_residual_mix orthog_projected_values
        orthog_projected_values_per_head laser laser_softclamp_value qkv_receive_diff_residuals project_out
        use_latent_q dim_latent_q use_latent_kv dim_latent_kv latent_rope_subheads inverted_attention
        attend_sdp_kwargs flash_pack_seq
    """,
    "ff_": """
        solu sublayer_dropout output_proj_depth softclamp_value glu_softclamp glu_gate_softclamp_value
        glu_up_softclamp_value
    """,
}


def test_every_later_name_has_a_hint():
    names = [prefix + name for prefix, names in LATER.items() for name in names.split()]
    names += [f"cross_{name}" for name in names if name.startswith("attn_") and name not in LATER[""].split()]
    with pytest.raises(flagformer.FlagError) as caught:
        flagformer.check({**SMALL, **dict.fromkeys(names, True)})
    found = {finding.flag: finding.message for finding in caught.value.findings}
    assert not [
        name for name in names if not found[name].startswith(f"`{name}` is not a flag of this library")
    ]


def test_common_names_have_the_right_hint():
    assert set(COMMON) <= known() | set(SLOTS)
    with pytest.raises(flagformer.FlagError) as caught:
        flagformer.check({**SMALL, **{name: 1 for name in FLAG_OF if name not in ("n_embd", "n_ctx")}})
    found = {finding.flag: finding.message for finding in caught.value.findings}
    assert all(f"use `{flag}`" in found[name] for name, flag in FLAG_OF.items() if name in found)


@pytest.mark.parametrize(
    ("settings", "whose"),
    [
        (
            {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 100},
            "Hugging Face",
        ),
        ({"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "vocab_size": 100, "n_head": 4}, "Hugging Face"),
        (
            {
                "name": "x",
                "hf_config": {},
                "block_size": 9,
                "padded_vocab_size": 100,
                "n_layer": 3,
                "n_embd": 64,
            },
            "litgpt",
        ),
        ({"n_ctx": 9, "n_embd": 64, "n_layer": 3, "vocab_size": 100}, "GPT-2"),
    ],
)
def test_settings_of_other_libraries_are_recognised(settings, whose):
    for call in (flagformer.check, flagformer.build):
        with pytest.raises(flagformer.FlagError) as caught:
            call(settings)
        (finding,) = caught.value.findings
        assert whose in finding.message
        for ours in ("num_tokens: 100", "dim: 64", "depth: 3"):
            assert ours in finding.message


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("position_biass", "did you mean `position_bias`?"),
        ("n_layer", "use `depth`"),
        ("attn_hard", "pass a class as `normalizer`"),
        ("attn_laser", "pass a class as `projection`"),
        ("enc_depth", "is a flag of encoder-decoders: `model: xtransformer`"),
        ("rotary_emb", "did you mean `rotary_pos_emb`?"),
        ("attn_lager", "`flagformer flags` lists them all"),
        ("use_ropes", "`flagformer flags` lists them all"),
    ],
)
def test_suggestions_have_the_same_meaning(typed, says):
    assert says in message(typed)


@pytest.mark.parametrize(
    ("name", "say"),
    [
        ("kv_heads", "use `attn_kv_heads`"),
        ("glu", "use `ff_glu`"),
        ("dropout", "use `attn_dropout` or `ff_dropout`"),
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
        ("dec_kv_heads", "use `dec_attn_kv_heads`"),
    ],
)
def test_halves_of_an_encoder_decoder_show_their_prefix(typed, say):
    sizes = {
        f"{half}{name}": value for half in ("enc_", "dec_") for name, value in SMALL.items() if name != "dim"
    }
    with pytest.raises(flagformer.FlagError) as caught:
        flagformer.XTransformer(dim=16, **sizes, **{typed: True})
    assert f"`{typed}` is" in str(caught.value)
    assert say in str(caught.value)


class Doubled(nn.Module):
    """An activation with state."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return x.relu() * self.gain


@pytest.mark.parametrize(
    "given", [torch.relu, nn.ReLU, nn.ReLU(), Doubled], ids=["function", "class", "module", "own"]
)
@pytest.mark.parametrize("gated", [False, True])
def test_a_custom_activation(given, gated):
    """Called `ff_custom_activation` in x-transformers."""
    torch.manual_seed(0)
    model = flagformer.build({**SMALL, "activation": given, **({"ff_glu": True} if gated else {})}).double()
    layer = model.attn_layers.sublayers[1].fn
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    inner = layer.w_in(x)
    factor = 2.0 if given is Doubled else 1.0
    hidden = inner[..., :64] * inner[..., 64:].relu() if gated else inner.relu()
    torch.testing.assert_close(layer(x, None), layer.w_out(factor * hidden))
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
def test_residual_scores_without_a_reader(flags, flag):
    value = flags.pop(flag)
    assert "has no effect here, because scores pass" in message(flag, value, **flags)


@pytest.mark.parametrize("flags", [{"depth": 2}, {"depth": 2, "weight_tie_layers": True}])
def test_scores_for_the_next_step(flags):
    flagformer.check({**SMALL, **flags, "residual_attn": True})
    flagformer.check({**SMALL, **flags, "residual_attn": True, "attn_max_attend_past": 3})


def test_residual_scores_need_equal_windows():
    text = message("residual_attn", attn_max_attend_past=(3, None))
    assert "`residual_attn` and `attn_max_attend_past` cannot be combined here" in text


def test_a_tuple_for_self_attention_does_not_count_cross_attention():
    layers = flagformer.Decoder(dim=16, custom_layers="aacf", heads=2, attn_max_attend_past=(3, None))
    assert [sublayer.fn.window for sublayer in layers.sublayers[:3]] == [4, None, None]
    text = message("attn_max_attend_past", (3, None, 2), cross_attend=True)
    assert "has 3 values for 2 self-attention sublayers" in text


def test_an_empty_window_is_refused():
    assert "must be at least 1, but is 0" in message("attn_max_attend_past", 0)
