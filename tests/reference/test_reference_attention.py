"""Attention against equation 1 of arXiv:1706.03762, head by head and pair by pair."""

import pytest
import reference_formulas as paper
import torch

import flagformer

H, K, D = 4, 4, 8
BASE = {"dim": D, "heads": H, "attn_dim_head": K, "custom_layers": "a", "pre_norm": False}


def attention_of(cls=flagformer.Decoder, **flags):
    """One perturbed attention sublayer in fp64, and a function that runs it without its residual."""
    layers = cls(**{**BASE, **flags}).double().eval()
    for parameter in layers.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    sublayer = layers.sublayers[0]
    sublayer.out_norm = torch.nn.Identity()  # the sublayer's own output, without the stream
    return sublayer.fn, lambda x, **how: layers(x, **how) - x


def heads_of(flat, heads):
    """[T, heads * K] -> heads lists of T vectors."""
    return [list(flat[:, h * K : (h + 1) * K]) for h in range(heads)]


def expected(
    fn, x, *, groups=H, causal=True, norm=lambda q, h, which: q, scale=K**-0.5, prefix_kv=(), bias=None
):
    """The output of the sublayer for one row x [T, D], by the paper."""
    weight = fn.source.projection.to_qkv.weight.detach()
    q, k, v = (x @ weight.T).split([H * K, groups * K, groups * K], dim=-1)
    q, k, v = heads_of(q, H), heads_of(k, groups), heads_of(v, groups)
    outs = []
    for h in range(H):
        g = h // (H // groups)  # consecutive heads share keys and values
        front_k = [norm(key, g, "k") for key in (s[0][g] for s in prefix_kv)]
        front_v = [s[1][g] for s in prefix_kv]
        queries = [norm(one, h, "q") for one in q[h]]
        keys = front_k + [norm(one, g, "k") for one in k[g]]
        m = len(front_k)

        def sees(i, j, m=m):
            return j < m or not causal or j - m <= i

        def place_bias(i, j, h=h, m=m):
            return 0.0 if bias is None or j < m else bias(h, i, j - m)

        outs.append(torch.stack(paper.attend(queries, keys, front_v + v[g], scale, sees, place_bias)))
    return torch.cat(outs, dim=-1) @ fn.to_out.weight.detach().T


def check(fn, run, **how):
    x = torch.randn(2, 5, D, dtype=torch.float64)
    got = run(x).detach()
    for row in range(2):
        torch.testing.assert_close(got[row], expected(fn, x[row], **how), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("flash", [True, False, None])
@pytest.mark.parametrize("cls", [flagformer.Decoder, flagformer.Encoder])
def test_multi_head_attention(cls, flash):
    fn, run = attention_of(cls, attn_flash=flash)
    check(fn, run, causal=cls is flagformer.Decoder)


@pytest.mark.parametrize(("flags", "groups"), [({"attn_kv_heads": 2}, 2), ({"attn_one_kv_head": True}, 1)])
@pytest.mark.parametrize("flash", [True, False])
def test_consecutive_heads_share_keys_and_values(flags, groups, flash):
    """arXiv:2305.13245, figure 2, and arXiv:1911.02150."""
    fn, run = attention_of(**flags, attn_flash=flash)
    check(fn, run, groups=groups)


@pytest.mark.parametrize("factor", [10.0, 3.0])
def test_cosine_attention(factor):
    """arXiv:2010.04245, equation 2, with a fixed factor."""
    flags = {} if factor == 10.0 else {"attn_qk_norm_scale": factor}
    fn, run = attention_of(attn_qk_norm=True, **flags)
    check(fn, run, norm=lambda x, h, which: paper.cosine(x), scale=factor)


def test_cosine_attention_in_parts_with_gains():
    """Two groups of a head have unit length each; scales as in arXiv:2302.05442, times K ** -0.5."""
    fn, run = attention_of(attn_qk_norm=True, attn_qk_norm_groups=2)
    check(fn, run, norm=lambda x, h, which: in_parts(x), scale=10.0)
    fn, run = attention_of(
        attn_qk_norm=True, attn_qk_norm_groups=2, attn_qk_norm_dim_scale=True, attn_kv_heads=2
    )
    norm = fn.source.qk_norm
    gains = {"q": norm.q_gain.weight.detach(), "k": norm.k_gain.weight.detach()}
    check(fn, run, groups=2, norm=lambda x, h, which: in_parts(x) * gains[which][h, 0])


def in_parts(x):
    return torch.cat([paper.cosine(x[: K // 2]), paper.cosine(x[K // 2 :])])


def test_rms_normed_queries_and_keys():
    """arXiv:2302.05442, section 2, with RMS norm and a gain per head."""
    fn, run = attention_of(attn_qk_rmsnorm=True, attn_kv_heads=2)
    gains = {"q": fn.source.qk_norm.q_weight.detach(), "k": fn.source.qk_norm.k_weight.detach()}
    check(fn, run, groups=2, norm=lambda x, h, which: paper.rms_norm(x, gains[which][h, 0]))


@pytest.mark.parametrize("groups", [H, 2])
@pytest.mark.parametrize("flash", [True, False])
def test_prefix_kv(groups, flash):
    """arXiv:1907.01470, equation 5: learned keys and values for every query; and a key of zeros."""
    shared = {} if groups == H else {"attn_kv_heads": groups}
    fn, run = attention_of(attn_num_mem_kv=2, attn_add_zero_kv=True, attn_flash=flash, **shared)
    memory = fn.prefix_kv[0]
    zero = [(torch.zeros(groups, K).double(), torch.zeros(groups, K).double())]
    learned = [(memory.k.detach()[:, m], memory.v.detach()[:, m]) for m in range(2)]
    check(fn, run, groups=groups, prefix_kv=zero + learned)


def test_prefix_keys_are_normed_like_other_keys():
    fn, run = attention_of(attn_num_mem_kv=2, attn_qk_norm=True)
    memory = fn.prefix_kv[0]
    learned = [(memory.k.detach()[:, m], memory.v.detach()[:, m]) for m in range(2)]
    check(fn, run, prefix_kv=learned, norm=lambda x, h, which: paper.cosine(x), scale=10.0)


@pytest.mark.parametrize("flags", [{}, {"attn_num_mem_kv": 2}])
def test_bias_is_added_to_scaled_scores_of_tokens_only(flags):
    fn, run = attention_of(alibi_pos_bias=True, **flags)
    slopes = paper.slopes(H)
    learned = [(s.k.detach()[:, m], s.v.detach()[:, m]) for s in fn.prefix_kv for m in range(2)]
    check(fn, run, prefix_kv=learned, bias=lambda h, i, j: -slopes[h] * abs(i - j))


def test_rotary_rotates_queries_and_keys():
    fn, run = attention_of(rotary_pos_emb=True)
    x = torch.randn(1, 5, D, dtype=torch.float64)
    weight = fn.source.projection.to_qkv.weight.detach()
    q, k, v = (heads_of(part, H) for part in (x[0] @ weight.T).split(H * K, dim=-1))
    outs = []
    for h in range(H):
        turned_q = [paper.rotate(one, i) for i, one in enumerate(q[h])]
        turned_k = [paper.rotate(one, i) for i, one in enumerate(k[h])]
        outs.append(torch.stack(paper.attend(turned_q, turned_k, v[h], K**-0.5, lambda i, j: j <= i)))
    want = torch.cat(outs, dim=-1) @ fn.to_out.weight.detach().T
    torch.testing.assert_close(run(x).detach()[0], want, rtol=1e-5, atol=1e-5)  # fp32 angles


def test_xpos_rotates_and_decays():
    fn, run = attention_of(rotary_xpos=True, rotary_xpos_scale_base=3)
    x = torch.randn(1, 5, D, dtype=torch.float64)
    weight = fn.source.projection.to_qkv.weight.detach()
    q, k, v = (heads_of(part, H) for part in (x[0] @ weight.T).split(H * K, dim=-1))
    outs = []
    for h in range(H):
        turned_q = [paper.xpos(one, i, 1, 3) for i, one in enumerate(q[h])]
        turned_k = [paper.xpos(one, i, -1, 3) for i, one in enumerate(k[h])]
        outs.append(torch.stack(paper.attend(turned_q, turned_k, v[h], K**-0.5, lambda i, j: j <= i)))
    want = torch.cat(outs, dim=-1) @ fn.to_out.weight.detach().T
    torch.testing.assert_close(run(x).detach()[0], want, rtol=1e-5, atol=1e-5)  # fp32 angles


def test_xpos_refuses_positions_out_of_range():
    """With the smallest zeta of 0.4 / 1.4, fp32 holds 64 / log2(3.5) = 35.4 times the base."""
    model = flagformer.Decoder(
        dim=D, depth=1, heads=1, attn_dim_head=K, rotary_xpos=True, rotary_xpos_scale_base=2
    )
    last = int(64 / 1.8073549 * 2)
    assert model(torch.randn(1, last, D)).isfinite().all()
    with pytest.raises(ValueError, match="raise `rotary_xpos_scale_base`"):
        model(torch.randn(1, last + 1, D))


@pytest.mark.parametrize("causal", [flagformer.Decoder, flagformer.Encoder])
def test_cross_attention_attends_to_the_whole_context(causal):
    """Queries from x, keys and values from the context; without causal mask, bias and rotation."""
    flags = {"custom_layers": "c", "cross_attn_dim_context": 3, "attn_kv_heads": 2}
    fn, run = attention_of(causal, **flags)
    x = torch.randn(1, 4, D, dtype=torch.float64)
    context = torch.randn(1, 6, 3, dtype=torch.float64)
    got = run(x, context=context).detach()[0]
    projection = fn.source.projection
    q = heads_of(x[0] @ projection.to_q.weight.detach().T, H)
    k, v = (
        heads_of(part, 2) for part in (context[0] @ projection.to_kv.weight.detach().T).split(2 * K, dim=-1)
    )
    outs = [
        torch.stack(paper.attend(q[h], k[h // 2], v[h // 2], K**-0.5, lambda i, j: True)) for h in range(H)
    ]
    torch.testing.assert_close(got, torch.cat(outs, dim=-1) @ fn.to_out.weight.detach().T)


def test_prefix_decoder_attends_to_its_prefix():
    """arXiv:1910.10683, figure 3 (right): causal after a prefix that every query sees; one length per row."""
    fn, run = attention_of(flagformer.PrefixDecoder)
    x = torch.randn(2, 5, D, dtype=torch.float64)
    got = run(x, prefix_attn_len=torch.tensor([0, 3])).detach()
    torch.testing.assert_close(got[0], expected(fn, x[0]))
    weight = fn.source.projection.to_qkv.weight.detach()
    q, k, v = (heads_of(part, H) for part in (x[1] @ weight.T).split(H * K, dim=-1))
    outs = [
        torch.stack(paper.attend(q[h], k[h], v[h], K**-0.5, lambda i, j: j <= i or j < 3)) for h in range(H)
    ]
    torch.testing.assert_close(got[1], torch.cat(outs, dim=-1) @ fn.to_out.weight.detach().T)
