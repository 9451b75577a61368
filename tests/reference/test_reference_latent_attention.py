"""Multi-head latent attention and shared values: formulas, and the cached bytes of a token."""

import pytest
import torch

import flagformer
from flagformer.flags import FlagError

B, T, D, H, K, V, RANK, Q_RANK, R = 2, 7, 16, 4, 8, 6, 5, 3, 4
SIZES = {"dim": D, "heads": H, "attn_dim_head": K, "attn_value_dim_head": V, "attn_kv_rank": RANK}
ROTARY = {"rotary_pos_emb": True, "rotary_emb_dim": R}
CONTEXT = 9


def attention_of(cls=flagformer.Decoder, kinds="a", **flags):
    """Layers in fp64 with perturbed weights, post-norm without the norm."""
    torch.manual_seed(0)
    layers = cls(**{**SIZES, "custom_layers": kinds, "pre_norm": False, **flags}).double().eval()
    for parameter in layers.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    for sublayer in layers.sublayers:
        sublayer.out_norm = torch.nn.Identity()
    return layers, layers.sublayers[0].fn


def rms(x, weight):
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def turned(x, position):
    """The pairs (i, i + R/2) of one vector, turned by the angle of their frequency."""
    out = x.clone()
    for i in range(R // 2):
        angle = torch.tensor(position * 10000.0 ** (-2 * i / R), dtype=torch.float64)
        a, b = x[i], x[i + R // 2]
        out[i], out[i + R // 2] = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
    return out


def formula(fn, x, source, rope, rotates, causal):
    """arXiv:2405.04434, equations 9 to 19 for one row: each key and value of each head in full."""
    w = {name: value.detach() for name, value in fn.state_dict().items()}
    p = "source.projection."
    c_q = x
    if f"{p}to_q_latent.weight" in w:
        c_q = rms(x @ w[f"{p}to_q_latent.weight"].T, w[f"{p}q_norm.weight"])
    queries = (c_q @ w[f"{p}to_q.weight"].T).view(len(x), H, K)
    down = source @ w[f"{p}to_latent.weight"].T
    latent, shared = rms(down[:, :RANK], w[f"{p}latent_norm.weight"]), down[:, RANK:]
    up_k, up_v = w[f"{p}to_kv.weight"].split([H * (K - rope), H * V])
    keys, values = (latent @ up_k.T).view(-1, H, K - rope), (latent @ up_v.T).view(-1, H, V)
    out = torch.zeros(len(x), H, V, dtype=torch.float64)
    for h in range(H):
        for t in range(len(x)):
            q = torch.cat([turned(queries[t, h, :R], t), queries[t, h, R:]]) if rotates else queries[t, h]
            seen = range(t + 1) if causal else range(len(source))
            ks = [torch.cat([turned(shared[s], s) if rotates else shared[s], keys[s, h]]) for s in seen]
            weights = (torch.stack(ks) @ q * K**-0.5).softmax(0)
            out[t, h] = weights @ values[: len(weights), h]
    return out.flatten(1) @ w["to_out.weight"].T


@pytest.mark.parametrize("flags", [{}, {"attn_q_rank": Q_RANK}, {"attn_flash": False}], ids=str)
@pytest.mark.parametrize("rotates", [True, False])
def test_is_the_formula_of_the_paper(flags, rotates):
    layers, fn = attention_of(**flags, attn_rope_dim=R, **(ROTARY if rotates else {}))
    x = torch.randn(B, T, D, dtype=torch.float64)
    got = layers(x) - x
    for row in range(B):
        want = formula(fn, x[row], x[row], R, rotates, causal=True)
        torch.testing.assert_close(got[row], want, rtol=1e-6, atol=1e-6)  # fp32 angles


def test_the_shared_part_is_what_the_rotation_turns():
    for flags, rope in (({}, 0), (ROTARY, R), ({"rotary_pos_emb": True}, K), ({"attn_rope_dim": 2}, 2)):
        _, fn = attention_of(**flags)
        assert fn.source.projection.to_latent.out_features == RANK + rope


def test_a_context_is_read_by_the_same_formula():
    flags = {"kinds": "c", "cross_attn_dim_context": CONTEXT}
    layers, fn = attention_of(**flags, attn_rope_dim=R)
    x, context = torch.randn(B, T, D).double(), torch.randn(B, 5, CONTEXT).double()
    got = layers(x, context=context) - x
    for row in range(B):
        want = formula(fn, x[row], context[row], R, rotates=False, causal=False)
        torch.testing.assert_close(got[row], want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_takes_its_latent_and_its_rotary_part(dtype):
    layers, _ = attention_of(kinds="acf", **ROTARY)
    layers.to(dtype)
    state = layers.init_state(B, T)
    assert state.size_bytes() == B * T * (RANK + R) * dtype.itemsize
    layers(torch.randn(B, 3, D, dtype=dtype), state=state, context=torch.randn(B, 5, D, dtype=dtype))
    assert state.size_bytes() == B * (T * (RANK + R) + 5 * RANK) * dtype.itemsize


# how many dims of the values are stored in addition to the keys
SHARED = [
    ({}, 0),
    ({"rotary_pos_emb": True}, K),
    (ROTARY, R),
    ({**ROTARY, "attn_rotary_embed_values": True}, 0),
    ({"attn_qk_norm": True}, K),
    ({"attn_kv_heads": 2}, 0),
]


@pytest.mark.parametrize(("flags", "more"), SHARED, ids=str)
def test_shared_values_are_stored_once(flags, more):
    flags = {"attn_kv_rank": None, "attn_value_dim_head": None, "attn_shared_kv": True, **flags}
    layers, fn = attention_of(kinds="ac", **flags)
    x, context = torch.randn(B, T, D).double(), torch.randn(B, 5, D).double()
    state = layers.init_state(B, T)
    groups = fn.source.projection.groups
    assert state.size_bytes() == B * T * groups * (K + more) * 8
    parts = x.split([4, 1, 2], dim=1)
    got = torch.cat([layers(part, state=state, context=context) for part in parts], dim=1)
    torch.testing.assert_close(got, layers(x, context=context), rtol=1e-12, atol=1e-12)
    normed = K if "attn_qk_norm" in flags else 0
    of_context = B * 5 * groups * (K + normed) * 8
    assert state.size_bytes() == B * T * groups * (K + more) * 8 + of_context


@torch.no_grad()
def test_rows_move_and_tokens_are_removed():
    """`reorder`, `truncate` and `gather_positions` for latents as for keys and values."""
    layers, _ = attention_of(kinds="af", **ROTARY)
    x, order = torch.randn(B, T, D).double(), torch.tensor([1, 1])
    state = layers.init_state(B, T)
    layers(x[:, :5], state=state)
    state.reorder(order)
    state.truncate(4)
    got = layers(x[order][:, 4:], state=state)
    torch.testing.assert_close(got, layers(x[order])[:, 4:], rtol=1e-12, atol=1e-12)
    before = {name: value.clone() for name, value in state.attention_caches[0].entry.items()}
    state.gather_positions(torch.tensor([[2, 0, 1], [1, 1, 2]]))
    for name, value in state.attention_caches[0].entry.items():
        assert torch.equal(value[0, :, :3], before[name][0][:, [2, 0, 1]])
        assert torch.equal(value[1, :, :3], before[name][1][:, [1, 1, 2]])


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"attn_rope_dim": K + 1}, ("attn_rope_dim", "attn_dim_head")),
        ({"attn_rope_dim": 2, **ROTARY}, ("attn_rope_dim", "rotary_emb_dim")),
        ({"attn_shared_kv": True}, ("attn_kv_rank", "attn_shared_kv")),
        ({"attn_kv_heads": 2}, ("attn_kv_rank", "attn_kv_heads")),
        ({"attn_qk_norm": True}, ("attn_kv_rank", "attn_qk_norm")),
        ({"attn_qk_rmsnorm": True}, ("attn_kv_rank", "attn_qk_rmsnorm")),
        ({"attn_rotary_embed_values": True, **ROTARY}, ("attn_kv_rank", "attn_rotary_embed_values")),
    ],
)
def test_refusals_name_both_flags(flags, named):
    with pytest.raises(FlagError) as caught:
        attention_of(**flags)
    assert all(f"`{name}`" in str(caught.value) for name in named)
