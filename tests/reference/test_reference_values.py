"""Values: another head dim, equal to the keys, rotated by position, and bound to roles."""

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


def by_head(flat, heads):
    """[T, heads * width] -> heads lists of T vectors."""
    width = flat.shape[1] // heads
    return [list(flat[:, h * width : (h + 1) * width]) for h in range(heads)]


def gathered(q, k, v, *, scale=K**-0.5, norm=lambda x: x, rotate=lambda x, i: x, prefix_kv=(), causal=True):
    """The output of H heads, [T, H * V]: q and k normed and rotated, prefix keys only normed."""
    outs = []
    for h in range(H):
        g = h // (H // len(k))
        queries = [rotate(norm(one), i) for i, one in enumerate(q[h])]
        keys = [norm(s[0][g]) for s in prefix_kv] + [rotate(norm(one), i) for i, one in enumerate(k[g])]
        values = [s[1][g] for s in prefix_kv] + list(v[g])
        m = len(prefix_kv)

        def sees(i, j, m=m):
            return not causal or j - m <= i

        outs.append(torch.stack(paper.attend(queries, keys, values, scale, sees)))
    return torch.cat(outs, dim=-1)


def projected(fn, x, *sizes):
    return (x @ fn.source.projection.to_qkv.weight.detach().T).split(sizes, dim=-1)


def check(fn, run, formula):
    """`formula` maps a row [T, D] to the output of the heads, [T, H * V]."""
    x = torch.randn(2, 5, D, dtype=torch.float64)
    got = run(x).detach()
    for row in range(2):
        want = formula(x[row]) @ fn.to_out.weight.detach().T
        torch.testing.assert_close(got[row], want, rtol=1e-5, atol=1e-6)  # fp32 angles


GROUPS = [({}, H), ({"attn_kv_heads": 2}, 2), ({"attn_one_kv_head": True}, 1)]


@pytest.mark.parametrize(("heads", "groups"), GROUPS)
@pytest.mark.parametrize("flash", [True, False])
def test_shared_values_are_the_keys(heads, groups, flash):
    """arXiv:2606.04032, Q-K=V: softmax(q k^T) k."""
    fn, run = attention_of(attn_shared_kv=True, attn_flash=flash, **heads)

    def formula(x):
        q, k = projected(fn, x, H * K, groups * K)
        return gathered(by_head(q, H), by_head(k, groups), by_head(k, groups))

    check(fn, run, formula)


def test_shared_values_are_neither_normed_nor_rotated():
    """As in x-transformers 1.27.16: the values are the keys before their norm and rotation."""
    fn, run = attention_of(attn_shared_kv=True, attn_qk_norm=True, rotary_pos_emb=True)

    def formula(x):
        q, k = (by_head(part, H) for part in projected(fn, x, H * K, H * K))
        return gathered(q, k, k, scale=10.0, norm=paper.cosine, rotate=paper.rotate)

    check(fn, run, formula)


def test_shared_values_with_learned_memory_that_has_its_own():
    fn, run = attention_of(attn_shared_kv=True, attn_num_mem_kv=2, attn_kv_heads=2)
    memory = fn.prefix_kv[0]
    prefix_kv = [(memory.k.detach()[:, m], memory.v.detach()[:, m]) for m in range(2)]

    def formula(x):
        q, k = projected(fn, x, H * K, 2 * K)
        return gathered(by_head(q, H), by_head(k, 2), by_head(k, 2), prefix_kv=prefix_kv)

    check(fn, run, formula)


@pytest.mark.parametrize("more", [{"attn_shared_kv": True}, {"attn_value_dim_head": 6}])
def test_values_of_a_context(more):
    fn, run = attention_of(custom_layers="c", cross_attn_dim_context=3, attn_kv_heads=2, **more)
    x = torch.randn(1, 4, D, dtype=torch.float64)
    context = torch.randn(1, 6, 3, dtype=torch.float64)
    got = run(x, context=context).detach()[0]
    projection = fn.source.projection
    q = by_head(x[0] @ projection.to_q.weight.detach().T, H)
    entries = context[0] @ projection.to_kv.weight.detach().T
    k, v = by_head(entries[:, : 2 * K], 2), by_head(entries[:, 2 * K :], 2)
    if "attn_shared_kv" in more:
        assert entries.shape[1] == 2 * K
        v = k
    want = gathered(q, k, v, causal=False) @ fn.to_out.weight.detach().T
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("width", [2, 7])
@pytest.mark.parametrize(("heads", "groups"), GROUPS)
@pytest.mark.parametrize("flash", [True, False])
def test_value_heads_of_another_dim(width, heads, groups, flash):
    """arXiv:1706.03762, section 3.2.2: a separate d_v; the scale uses that of the keys."""
    fn, run = attention_of(attn_value_dim_head=width, attn_flash=flash, **heads)

    def formula(x):
        q, k, v = projected(fn, x, H * K, groups * K, groups * width)
        return gathered(by_head(q, H), by_head(k, groups), by_head(v, groups))

    check(fn, run, formula)


def test_prefix_kv_and_gates_have_the_dim_of_values():
    flags = {"attn_num_mem_kv": 2, "attn_add_zero_kv": True, "attn_gate_values": True, "attn_on_attn": True}
    fn, run = attention_of(attn_value_dim_head=6, attn_kv_heads=2, **flags)
    memory = next(s for s in fn.prefix_kv if s.count == 2)
    zero = (torch.zeros(2, K).double(), torch.zeros(2, 6).double())
    prefix_kv = [zero] + [(memory.k.detach()[:, m], memory.v.detach()[:, m]) for m in range(2)]
    x = torch.randn(1, 5, D, dtype=torch.float64)
    q, k, v = projected(fn, x[0], H * K, 2 * K, 2 * 6)
    out = gathered(by_head(q, H), by_head(k, 2), by_head(v, 2), prefix_kv=prefix_kv)
    out = out * torch.sigmoid(x[0] @ fn.gates[0].to_gate.weight.detach().T)
    first, gate = (out @ fn.to_out.project.weight.detach().T).split(D, dim=-1)
    torch.testing.assert_close(run(x).detach()[0], first * torch.sigmoid(gate))


def test_values_are_rotated_by_their_own_positions():
    """arXiv:2606.11275, equation for the rotated value, without the inverse rotation at the query."""
    fn, run = attention_of(rotary_pos_emb=True, attn_rotary_embed_values=True)

    def formula(x):
        q, k, v = (by_head(part, H) for part in projected(fn, x, H * K, H * K, H * K))
        rotated = [[paper.rotate(one, j) for j, one in enumerate(head)] for head in v]
        return gathered(q, k, rotated, rotate=paper.rotate)

    check(fn, run, formula)


def test_rotated_shared_values_are_rotated_keys_without_their_norm():
    fn, run = attention_of(
        rotary_pos_emb=True, attn_rotary_embed_values=True, attn_shared_kv=True, attn_qk_norm=True
    )

    def formula(x):
        q, k = (by_head(part, H) for part in projected(fn, x, H * K, H * K))
        rotated = [[paper.rotate(one, j) for j, one in enumerate(head)] for head in k]
        return gathered(q, k, rotated, scale=10.0, norm=paper.cosine, rotate=paper.rotate)

    check(fn, run, formula)


def test_larger_values_are_rotated_in_the_dims_of_keys():
    fn, run = attention_of(
        rotary_pos_emb=True, rotary_emb_dim=2, attn_rotary_embed_values=True, attn_value_dim_head=3
    )

    def rotate(x, i):
        return paper.rotate(x, i, 2)

    def formula(x):
        q, k, v = (by_head(part, H) for part in projected(fn, x, H * K, H * K, H * 3))
        rotated = [[rotate(one, j) for j, one in enumerate(head)] for head in v]
        return gathered(q, k, rotated, rotate=rotate)

    check(fn, run, formula)


@pytest.mark.parametrize(
    "more", [{}, {"attn_kv_heads": 2, "attn_value_dim_head": 6, "attn_head_scale": True}]
)
def test_roles_multiply_the_attention_output(more):
    """arXiv:1910.06611, equation of TP-attention, with the residual of arXiv:2208.06061."""
    fn, run = attention_of(attn_tensor_product=True, **more)
    groups, width = (2, 6) if more else (H, K)

    def formula(x):
        q, k, v = projected(fn, x, H * K, groups * K, groups * width)
        out = gathered(by_head(q, H), by_head(k, groups), by_head(v, groups))
        role = x @ fn.gates[0].to_role.weight.detach().T
        bound = torch.stack([o * r + o for o, r in zip(out, role)])
        gain = fn.gates[1].weight.detach().flatten().repeat_interleave(width) if more else 1.0
        return bound * gain

    check(fn, run, formula)
