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


SHARED = [
    {},
    {"rotary_pos_emb": True},
    ROTARY,
    {**ROTARY, "attn_rotary_embed_values": True},
    {"attn_qk_norm": True},
    {"attn_qk_rmsnorm": True, **ROTARY, "attn_rotary_embed_values": True, "attn_kv_heads": 2},
    {"attn_kv_heads": 2},
    {"rotary_xpos": True, "rotary_emb_dim": R, "attn_max_attend_past": 3},
]


@pytest.mark.parametrize("flags", SHARED, ids=str)
def test_shared_values_are_stored_once(flags):
    """One tensor a token, whatever norm and rotation make of it."""
    flags = {"attn_kv_rank": None, "attn_value_dim_head": None, "attn_shared_kv": True, **flags}
    layers, fn = attention_of(kinds="ac", **flags)
    x, context = torch.randn(B, T, D).double(), torch.randn(B, 5, D).double()
    state = layers.init_state(B, T)
    groups = fn.source.projection.groups
    assert state.size_bytes() == B * T * groups * K * 8
    parts = x.split([4, 1, 2], dim=1)
    got = torch.cat([layers(part, state=state, context=context) for part in parts], dim=1)
    torch.testing.assert_close(got, layers(x, context=context), rtol=1e-12, atol=1e-12)
    of_context = B * 5 * fn_of_context(layers).projection.groups * K * 8
    assert state.size_bytes() == B * T * groups * K * 8 + of_context


def fn_of_context(layers):
    return layers.sublayers[1].fn.source


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


def spied(layers, monkeypatch):
    """The names of the calls by which attention reads its cache."""
    calls = []
    for name in ("expand", "of_absorbed"):
        for sublayer in layers.sublayers:
            if sublayer.kind in "ac":
                own = sublayer.fn.source.projection
                real = getattr(own, name)
                monkeypatch.setattr(
                    own, name, lambda *given, n=name, real=real: calls.append(n) or real(*given)
                )
    return calls


def stepped(layers, x, *blocks, **how):
    state = layers.init_state(B, x.shape[1], seq_start_pos=how.pop("starts", None))
    return torch.cat([layers(part, state=state, **how) for part in x.split(blocks, dim=1)], dim=1)


ABSORBING = [
    {},
    {"attn_flash": False},
    {**ROTARY, "attn_q_rank": Q_RANK},
    {**ROTARY, "rotary_interleaved": True, "attn_bias": True},
    {"rotary_pos_emb": True},
    {"rel_pos_bias": True, "attn_rope_dim": 2},
    {"attn_softclamp_logits": True, "attn_talking_heads": True},
    {"n_local_attn_heads": 2, "local_attn_window_size": 3, **ROTARY},
    {"attn_max_attend_past": 3, **ROTARY, "attn_gate_values": True},
    {"residual_attn": True, "attn_scale": 0.7},
]


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=str)
@pytest.mark.parametrize("flags", ABSORBING, ids=str)
def test_absorbed_is_expanded(flags, dtype, most, monkeypatch):
    """One token at a time over the latents equals expanded keys and values, left padded too."""
    kinds = "afaf" if "residual_attn" in flags else "af"
    layers, _ = attention_of(kinds=kinds, **{"attn_kv_rank": 10, **flags})
    layers.to(dtype)
    count = len(layers.attentions)
    x, starts = torch.randn(B, T, D).to(dtype), torch.tensor([0, 2])
    calls = spied(layers, monkeypatch)
    got = stepped(layers, x, 3, *[1] * (T - 3), starts=starts)
    assert calls == ["expand"] * count + ["of_absorbed"] * (T - 3) * count
    for attention in layers.attentions:
        attention.source.absorbs = False
    want = stepped(layers, x, 3, *[1] * (T - 3), starts=starts)
    assert calls[(T - 2) * count :] == ["expand"] * (T - 2) * count
    torch.testing.assert_close(got, want, rtol=0, atol=most * want.abs().max().item())
    whole = layers(x, seq_start_pos=starts)
    torch.testing.assert_close(got[0], whole[0], rtol=0, atol=max(most, 1e-7) * want.abs().max().item())


@torch.no_grad()
def test_a_context_is_read_without_expanding_it(monkeypatch):
    layers, _ = attention_of(kinds="cf", attn_rope_dim=2)
    x, context = torch.randn(B, T, D).double(), torch.randn(B, 30, D).double()
    want, calls = layers(x, context=context), spied(layers, monkeypatch)
    got = stepped(layers, x, *[1] * T, context=context)
    assert calls == ["of_absorbed"] * T
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


class OwnScore(torch.nn.Module):
    def __init__(self, dims):
        super().__init__()

    def forward(self, scores, q, k, bias):
        assert q.shape[3] == K
        return scores


EXPANDING = [
    ({"attn_num_mem_kv": 2}, 1),
    ({"attn_add_zero_kv": True}, 1),
    ({"num_clusters": 2, "window_size": 3, **ROTARY}, 2),
    ({"score": OwnScore}, 1),
]


@torch.no_grad()
@pytest.mark.parametrize(("flags", "times"), EXPANDING, ids=str)
def test_what_reads_the_keys_of_heads_gets_them(flags, times, monkeypatch):
    """Only a core that reads keys before their rotation has them expanded a second time."""
    layers, _ = attention_of(kinds="af", **flags)
    x = torch.randn(B, T, D).double()
    want, calls = layers(x), spied(layers, monkeypatch)
    got = stepped(layers, x, *[1] * T)
    assert calls == ["expand"] * times * T
    torch.testing.assert_close(got, want, rtol=0, atol=1e-7)


@torch.no_grad()
@pytest.mark.parametrize("change", ["hook", "pre_hook", "subclass", "parametrization"])
def test_a_changed_linear_is_called(change, monkeypatch):
    layers, fn = attention_of(kinds="af")
    linear, x = fn.source.projection.to_kv, torch.randn(B, T, D).double()
    if change == "hook":
        linear.register_forward_hook(lambda _, given, out: out * 2)
    elif change == "pre_hook":
        linear.register_forward_pre_hook(lambda _, given: (given[0] * 2,))
    elif change == "subclass":
        linear.__class__ = type(
            "Doubled", (torch.nn.Linear,), {"forward": lambda self, x: x @ self.weight.T * 2}
        )
    else:
        torch.nn.utils.parametrizations.weight_norm(linear)
    calls = spied(layers, monkeypatch)
    got = stepped(layers, x, *[1] * T)
    assert calls == ["expand"] * T
    torch.testing.assert_close(got, layers(x), rtol=0, atol=1e-12)


def test_the_form_with_fewer_products_is_taken():
    """By counts alone: one head of DeepSeek-V3 reads a long cache absorbed, a prompt expanded."""
    _, fn = attention_of(
        heads=1, attn_dim_head=192, attn_value_dim_head=128, attn_kv_rank=512, attn_rope_dim=64
    )
    pays = fn.source.projection._absorbing_pays

    def products(tokens, keys):
        expanded = keys * 512 * (128 + 128) + tokens * keys * (192 + 128)
        return expanded, tokens * 512 * (128 + 128) + tokens * keys * 2 * (512 + 64)

    for tokens in (1, 2, 16, 100, 157, 158, 200, 1000):
        for keys in (tokens, tokens + 1, 2 * tokens, 1000 + tokens, 100_000):
            expanded, absorbed = products(tokens, keys)
            assert pays(tokens, keys) == (absorbed < expanded)
    assert pays(1, 2)
    assert not pays(1000, 1000)
