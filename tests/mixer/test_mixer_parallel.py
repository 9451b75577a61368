"""Mixers in parallel with attention: the formula, and Falcon-H1 of transformers 5.24."""

import pytest
import torch

import flagformer

transformers = pytest.importorskip("transformers")

DIM, HEADS, GROUPS, STATE, LAYERS, VOCABULARY = 32, 4, 2, 12, 2, 23


def test_both_read_one_norm_and_are_added():
    """h = h + mixer(norm(h)) + attention(norm(h)); then the feedforward."""
    torch.manual_seed(0)
    sizes = {"dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8}
    layers = flagformer.Decoder(**sizes, mixer="gated_deltanet + attention").double().eval()
    seen = {}
    for sublayer in layers.sublayers:
        sublayer.fn.register_forward_hook(lambda fn, given, out: seen.update({fn: (given[0], out)}))
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    got = layers(x)
    mixer, attention, feedforward = layers.sublayers
    assert torch.equal(seen[mixer.fn][0], mixer.in_norm(x))
    assert seen[mixer.fn][0] is seen[attention.fn][0], "the norm is computed once"
    h = x + seen[mixer.fn][1] + seen[attention.fn][1]
    torch.testing.assert_close(seen[feedforward.fn][0], feedforward.in_norm(h), rtol=0, atol=1e-12)
    torch.testing.assert_close(got, layers.final_norm(h + seen[feedforward.fn][1]), rtol=0, atol=1e-12)
    names = [name for name in layers.state_dict() if "in_norm" in name]
    assert names == ["sublayers.0.in_norm.weight", "sublayers.2.in_norm.weight"]


def falcon_h1():
    """arXiv:2507.22448, with its multipliers of the outputs of both."""
    config = transformers.FalconH1Config(
        vocab_size=VOCABULARY, hidden_size=DIM, intermediate_size=2 * DIM, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=GROUPS, mamba_d_ssm=HEADS * 8, mamba_n_heads=HEADS,
        mamba_n_groups=GROUPS, mamba_d_state=STATE, mamba_chunk_size=16, mamba_rms_norm=True,
        mamba_norm_before_gate=False, rms_norm_eps=1e-5, attention_out_multiplier=0.6, ssm_out_multiplier=1.7,
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.FalconH1ForCausalLM._from_config(config, attn_implementation="eager").eval()
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    flags = {
        "num_tokens": VOCABULARY, "max_seq_len": 64, "dim": DIM, "depth": LAYERS, "heads": HEADS,
        "attn_dim_head": DIM // HEADS, "attn_kv_heads": GROUPS, "rotary_pos_emb": True, "use_rmsnorm": True,
        "norm_eps": 1e-5, "ff_glu": True, "ff_swish": True, "ff_inner_dim": 2 * DIM, "ff_no_bias": True,
        "mixer": "mamba2 + attention", "mixer_dim_key": STATE, "mixer_dim_value": 8, "mixer_chunk": 16,
        "mixer_key_groups": GROUPS, "residual_scale": (1.7, 0.6, None) * LAYERS,
    }  # fmt: skip
    ours = flagformer.build(flags).eval()
    ours.load_state_dict(renamed(theirs))
    return theirs, ours


PARTS = {
    "0 in_norm.weight": ["input_layernorm.weight"],
    "0 fn.to_inner.weight": ["mamba.in_proj.weight"],
    "0 fn.convolution.weight": ["mamba.conv1d.weight"],
    "0 fn.convolution.bias": ["mamba.conv1d.bias"],
    "0 fn.decay.dt_bias": ["mamba.dt_bias"],
    "0 fn.decay.log_rate": ["mamba.A_log"],
    "0 fn.skip.weight": ["mamba.D"],
    "0 fn.norm.weight": ["mamba.norm.weight"],
    "0 fn.w_out.weight": ["mamba.out_proj.weight"],
    "1 fn.source.projection.to_qkv.weight": [f"self_attn.{name}_proj.weight" for name in "qkv"],
    "1 fn.to_out.weight": ["self_attn.o_proj.weight"],
    "2 in_norm.weight": ["pre_ff_layernorm.weight"],
    "2 fn.w_in.weight": ["feed_forward.up_proj.weight", "feed_forward.gate_proj.weight"],
    "2 fn.w_out.weight": ["feed_forward.down_proj.weight"],
}


def renamed(theirs):
    """Their weights under our names."""
    state = dict(theirs.state_dict())
    own = {
        "token_emb.weight": state.pop("model.embed_tokens.weight"),
        "attn_layers.final_norm.weight": state.pop("model.final_layernorm.weight"),
        "head.project.weight": state.pop("lm_head.weight"),
    }
    for layer in range(LAYERS):
        for name, parts in PARTS.items():
            value = torch.cat([state.pop(f"model.layers.{layer}.{part}") for part in parts])
            value = value[:, 0] if "convolution.weight" in name else value
            own[f"attn_layers.sublayers.{3 * layer + int(name[0])}.{name[2:]}"] = value
    left = [name for name in state if not name.endswith("mup_vector")]
    assert not left, left
    return own


@torch.no_grad()
def test_falcon_h1():
    theirs, ours = falcon_h1()
    ids = torch.randint(VOCABULARY, (2, 40))
    want = theirs(ids, use_cache=False).logits
    assert want.std() > 0.1
    torch.testing.assert_close(ours(ids), want, rtol=1e-5, atol=1e-5)
    state = ours.init_state(2, 40)
    cached = torch.cat([ours(block, state=state) for block in ids.split([17, 1, 22], dim=1)], dim=1)
    torch.testing.assert_close(cached, want, rtol=1e-5, atol=1e-5)
