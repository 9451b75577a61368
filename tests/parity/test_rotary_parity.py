"""Rotations against transformers: scaled frequencies, and attention modules with copied weights."""

import pytest
import torch

import flagformer
from flagformer.flow import Dims, Layout
from flagformer.position.rotary import Rotary

transformers = pytest.importorskip("transformers")
rope = pytest.importorskip("transformers.modeling_rope_utils")

WIDTH, BASE = 16, 500.0
ORIGINAL = {"original_max_position_embeddings": 32}
SHORT, LONG = [1.0 + 0.1 * i for i in range(8)], [1.5 + 0.7 * i for i in range(8)]
LONGROPE = {"factor": 4.0, "short_factor": SHORT, "long_factor": LONG, **ORIGINAL}
# ours -> the same numbers in a config, and the length that their function gets
SCALINGS = {
    "linear": ({"rope_type": "linear", "factor": 3.0}, None),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0, "seq_len": 100, **ORIGINAL}, 100),
    "dynamic, short": ({"rope_type": "dynamic", "factor": 2.0, "seq_len": 8, **ORIGINAL}, 8),
    "llama3": (
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
        None,
    ),
    "yarn": ({"rope_type": "yarn", "factor": 4.0, **ORIGINAL}, None),
    "yarn, all numbers": (
        {
            "rope_type": "yarn", "factor": 4.0, "beta_fast": 4.0, "beta_slow": 0.5, "mscale": 1.0,
            "mscale_all_dim": 0.5, "truncate": False, **ORIGINAL,
        },
        None,
    ),
    "yarn, factor": ({"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3, **ORIGINAL}, None),
    "longrope, long": ({"rope_type": "longrope", "seq_len": 128, **LONGROPE}, 128),
    "longrope, short": ({"rope_type": "longrope", "seq_len": 32, **LONGROPE}, 32),
    "longrope, factor": (
        {"rope_type": "longrope", "seq_len": 33, "attention_factor": 1.2, **LONGROPE}, 33,
    ),
}  # fmt: skip


def their_cos_sin(scaling, length, width, head, positions):
    """cos and sin [T, R / 2] by the function of transformers."""
    numbers = {name: value for name, value in scaling.items() if name != "seq_len"}
    config = transformers.LlamaConfig(
        hidden_size=2 * head,
        num_attention_heads=2,
        head_dim=head,
        max_position_embeddings=ORIGINAL["original_max_position_embeddings"],
        rope_parameters={"rope_theta": BASE, "partial_rotary_factor": width / head, **numbers},
    )
    rates, factor = rope.ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu", seq_len=length)
    angles = positions.double()[:, None] * rates.double()
    return angles.cos() * factor, angles.sin() * factor


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("head", [WIDTH, 24])
@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_frequencies(name, head, interleaved):
    scaling, length = SCALINGS[name]
    dims = Dims(dim=32, heads=2, dim_head=head)
    rotary = Rotary(dims, rotated=WIDTH, base=BASE, scaling=scaling, interleaved=interleaved)
    for positions, tolerance in ((torch.arange(8), 1e-6), (torch.tensor([100, 1000]), 1e-3)):
        layout = Layout(positions[None], contiguous_positions=False)
        cos, sin = (part[0, 0] for part in rotary.cos_sin(layout, torch.float32))
        want_cos, want_sin = their_cos_sin(scaling, length, WIDTH, head, positions)
        first, second = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(8), slice(8, None))
        for part in (first, second):
            torch.testing.assert_close(cos[:, part].double(), want_cos, rtol=0, atol=tolerance)
        torch.testing.assert_close(-sin[:, first].double(), want_sin, rtol=0, atol=tolerance)
        torch.testing.assert_close(sin[:, second].double(), want_sin, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("scaling", "text"),
    [
        ({}, "must have a `rope_type` of 'linear', 'dynamic'"),
        ({"rope_type": "su"}, "must have a `rope_type`"),
        ({"rope_type": "linear"}, "needs factor for 'linear'"),
        ({"rope_type": "linear", "factor": 2.0, "beta_fast": 1}, "has no number 'beta_fast' for 'linear'"),
        ({"rope_type": "linear", "factor": 0}, "positive number as `factor`, but it is 0"),
        ({"rope_type": "linear", "factor": True}, "positive number as `factor`"),
        ({"rope_type": "dynamic", "factor": 2.0, **ORIGINAL}, "needs seq_len for 'dynamic'"),
        ({"rope_type": "longrope", "seq_len": 9, **LONGROPE, "short_factor": [1.0]}, "of 8 positive numbers"),
        ({"rope_type": "yarn", "factor": 2.0, "truncate": 1, **ORIGINAL}, "`truncate` of True or False"),
    ],
)
def test_wrong_numbers_are_refused(scaling, text):
    flags = {"dim": 32, "depth": 1, "heads": 2, "attn_dim_head": WIDTH, "rotary_pos_emb": True}
    with pytest.raises(flagformer.FlagError, match=text):
        flagformer.Decoder(**flags, rotary_scaling=scaling)


@pytest.mark.parametrize("other", ["rotary_interpolation_factor", "rotary_base_rescale_factor"])
def test_two_scalings_are_refused(other):
    flags = {"dim": 32, "depth": 1, "heads": 2, "attn_dim_head": WIDTH, "rotary_pos_emb": True, other: 2.0}
    with pytest.raises(flagformer.FlagError, match=f"`rotary_scaling` and `{other}` cannot be combined"):
        flagformer.Decoder(**flags, rotary_scaling={"rope_type": "linear", "factor": 2.0})


def attention_of(**flags):
    """One attention sublayer without bias, and a function that runs it without residual and norm."""
    layers = flagformer.Decoder(
        dim=32, heads=2, attn_dim_head=WIDTH, custom_layers="a", pre_norm=False, rotary_pos_emb=True,
        rotary_interleaved=True, **flags,
    ).eval()  # fmt: skip
    layers.sublayers[0].out_norm = torch.nn.Identity()
    return layers.sublayers[0].fn, lambda x, **how: layers(x, **how) - x


def copy(fn, q, k, v, out):
    fn.source.projection.to_qkv.weight.data = torch.cat([part.weight.data for part in (q, k, v)])
    fn.to_out.weight.data = out.weight.data.clone()


@torch.no_grad()
def test_attention_of_gpt_j():
    """Interleaved pairs in a part of the head."""
    module = pytest.importorskip("transformers.models.gptj.modeling_gptj")
    config = transformers.GPTJConfig(n_embd=32, n_head=2, rotary_dim=8, n_positions=64, vocab_size=11)
    config._attn_implementation = "eager"
    theirs = module.GPTJAttention(config, layer_idx=0).eval()
    fn, ours = attention_of(rotary_emb_dim=8)
    copy(fn, theirs.q_proj, theirs.k_proj, theirs.v_proj, theirs.out_proj)
    x, mask = torch.randn(2, 9, 32), torch.full((9, 9), float("-inf")).triu(1)[None, None]
    angles = module.GPTJRotaryEmbedding(config)(x, torch.arange(9)[None])
    want = theirs(x, angles, mask)[0]
    torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_attention_of_cohere():
    """Interleaved pairs of the whole head, with grouped keys and values."""
    module = pytest.importorskip("transformers.models.cohere.modeling_cohere")
    config = transformers.CohereConfig(
        hidden_size=32, num_attention_heads=2, num_key_value_heads=1, vocab_size=11, use_qk_norm=False,
        rope_parameters={"rope_theta": BASE, "rope_type": "default"}, attn_implementation="eager",
    )  # fmt: skip
    theirs = module.CohereAttention(config, layer_idx=0).eval()
    fn, ours = attention_of(rotary_base=BASE, attn_kv_heads=1)
    copy(fn, theirs.q_proj, theirs.k_proj, theirs.v_proj, theirs.o_proj)
    x, mask = torch.randn(2, 9, 32), torch.full((9, 9), float("-inf")).triu(1)[None, None]
    angles = module.CohereRotaryEmbedding(config=config)(x, torch.arange(9)[None])
    want = theirs(x, position_embeddings=angles, attention_mask=mask)[0]
    torch.testing.assert_close(ours(x), want, rtol=1e-5, atol=1e-5)
