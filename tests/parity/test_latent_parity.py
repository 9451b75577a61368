"""Multi-head latent attention equals DeepSeek V3's class of transformers: whole, cached, left-padded."""

import pytest
import torch

import flagformer

deepseek = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
DynamicCache = pytest.importorskip("transformers").DynamicCache

D, H, ROPE, NOPE, V, RANK, T = 16, 4, 4, 6, 7, 5, 9
PAD = 3  # of the second row


def theirs_of(**config):
    torch.manual_seed(0)
    config = deepseek.DeepseekV3Config(
        hidden_size=D, num_attention_heads=H, num_key_value_heads=H, kv_lora_rank=RANK, qk_rope_head_dim=ROPE,
        qk_nope_head_dim=NOPE, v_head_dim=V, attn_implementation="eager", **config,
    )  # fmt: skip
    attention, rotary = deepseek.DeepseekV3Attention(config, 0), deepseek.DeepseekV3RotaryEmbedding(config)
    for parameter in attention.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return attention.eval(), rotary


def rope_first(x):
    """Rows of the queries: in each head the rotary dims first."""
    return torch.cat(x.unflatten(0, (H, -1)).split([NOPE, ROPE], dim=1)[::-1], dim=1).flatten(0, 1)


def keys_first(x):
    """Rows of keys and values: the keys of all heads, then the values."""
    return torch.cat([part.flatten(0, 1) for part in x.unflatten(0, (H, -1)).split([NOPE, V], dim=1)])


def ours_of(theirs):
    """Our sublayer with their weights, and a function that runs it without its residual."""
    config = theirs.config
    layers = flagformer.Decoder(
        dim=D, heads=H, custom_layers="a", pre_norm=False, attn_dim_head=ROPE + NOPE, attn_value_dim_head=V,
        attn_kv_rank=RANK, attn_q_rank=config.q_lora_rank, rotary_pos_emb=True, rotary_emb_dim=ROPE,
        rotary_interleaved=config.rope_interleave, attn_bias=config.attention_bias,
    ).eval()  # fmt: skip
    layers.sublayers[0].out_norm = torch.nn.Identity()
    names = {"kv_a_proj_with_mqa": "to_latent", "kv_a_layernorm": "latent_norm", "kv_b_proj": "to_kv"}
    names |= {"q_proj": "to_q", "q_a_proj": "to_q_latent", "q_a_layernorm": "q_norm", "q_b_proj": "to_q"}
    state = {}
    for name, value in theirs.state_dict().items():
        module, kind = name.split(".")
        change = {"to_q": rope_first, "to_kv": keys_first}.get(names.get(module), lambda x: x)
        start = "to_out" if module == "o_proj" else f"source.projection.{names[module]}"
        state[f"sublayers.0.fn.{start}.{kind}"] = change(value)
    layers.load_state_dict(state)
    return layers, lambda x, **how: layers(x, **how) - x


def run_theirs(theirs, rotary, x, starts=(0, 0), blocks=(T,)):
    first = torch.tensor(starts)[:, None]
    places, cache, outs, end = torch.arange(T), DynamicCache(), [], 0
    allowed = (places[None] <= places[:, None]) & (places >= first[:, :, None])  # [B, T, S]
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, -1e9)[:, None]
    positions = (places - first).clamp(min=0)
    for block in blocks:
        now = slice(end, end := end + block)
        part = mask[:, :, now, :end]
        outs.append(theirs(x[:, now], rotary(x, positions[:, now]), part, cache)[0])
    return torch.cat(outs, dim=1)


VARIANTS = [
    {"q_lora_rank": 6, "rope_interleave": True},
    {"q_lora_rank": 6, "rope_interleave": False, "attention_bias": True},
    {"q_lora_rank": None, "rope_interleave": True},
]


@pytest.mark.parametrize("config", VARIANTS, ids=str)
@torch.no_grad()
def test_equals_deepseek_v3(config):
    theirs, rotary = theirs_of(**config)
    layers, run = ours_of(theirs)
    x = torch.randn(2, T, D)
    want = run_theirs(theirs, rotary, x)
    torch.testing.assert_close(run(x), want, rtol=1e-5, atol=1e-5)
    for blocks in ([1] * T, [4, 1, 3, 1]):
        torch.testing.assert_close(run_theirs(theirs, rotary, x, blocks=blocks), want, rtol=1e-5, atol=1e-5)
        state = layers.init_state(2, T)
        got = torch.cat([run(part, state=state) for part in x.split(blocks, dim=1)], dim=1)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", VARIANTS, ids=str)
@torch.no_grad()
def test_left_padded_rows_equal_deepseek_v3(config):
    theirs, rotary = theirs_of(**config)
    layers, run = ours_of(theirs)
    x, starts = torch.randn(2, T, D), torch.tensor([0, PAD])
    want = run_theirs(theirs, rotary, x, starts=(0, PAD), blocks=[5, 1, 3])
    state = layers.init_state(2, T, seq_start_pos=starts)
    cached = torch.cat([run(part, state=state) for part in x.split([5, 1, 3], dim=1)], dim=1)
    for got in (run(x, seq_start_pos=starts), cached):
        torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got[1, PAD:], want[1, PAD:], rtol=1e-5, atol=1e-5)
