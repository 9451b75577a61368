"""Each step between scores and the output projection, one number at a time."""

import math

import pytest
import reference_formulas as paper
import torch

import flagformer

H, K, D, T = 3, 4, 6, 5


def attention_of(**flags):
    """One perturbed causal attention sublayer, an input, and q, k, v of its one row."""
    torch.manual_seed(7)
    base = {"dim": D, "heads": H, "attn_dim_head": K, "custom_layers": "a", "pre_norm": False}
    layers = flagformer.Decoder(**base, **flags).double().eval()
    for parameter in layers.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    fn = layers.sublayers[0].fn
    layers.sublayers[0].out_norm = torch.nn.Identity()
    x = torch.randn(1, T, D, dtype=torch.float64)
    heads = (x[0] @ fn.source.projection.to_qkv.weight.detach().T).view(T, 3, H, K)
    return fn, (layers(x) - x).detach()[0], x[0], heads


def weights_of(heads, change=lambda score, h: score, keep=lambda scores: scores, sink=None):
    """[H][T][T] softmax weights in lists; `keep` selects among a query's allowed scores."""
    table = []
    for h in range(H):
        rows = []
        for i in range(T):
            scores = [float(heads[i, 0, h] @ heads[j, 1, h]) * K**-0.5 for j in range(i + 1)]
            scores = keep([change(score, h) for score in scores])
            total = sum(math.exp(s) for s in scores if s is not None)
            total += math.exp(sink[h]) if sink is not None else 0.0
            row = [0.0 if s is None else math.exp(s) / total for s in scores]
            rows.append(row + [0.0] * (T - i - 1))
        table.append(rows)
    return torch.tensor(table, dtype=torch.float64)


def gathered(weights, heads):
    """[T, H, K]."""
    return torch.stack(
        [
            torch.stack([sum(weights[h, i, j] * heads[j, 2, h] for j in range(T)) for h in range(H)])
            for i in range(T)
        ]
    )


def projected(fn, found):
    return found.flatten(1) @ fn.to_out.weight.detach().T


@pytest.mark.parametrize("cap", [50.0, 0.5])
def test_soft_clamp(cap):
    """arXiv:2408.00118, section 2."""
    fn, got, _, heads = attention_of(attn_softclamp_logits=True, attn_logit_softclamp_value=cap)
    weights = weights_of(heads, lambda score, h: cap * math.tanh(score / cap))
    torch.testing.assert_close(got, projected(fn, gathered(weights, heads)))


def test_soft_clamp_does_not_change_the_bias():
    fn, got, _, heads = attention_of(
        attn_softclamp_logits=True, attn_logit_softclamp_value=0.5, alibi_pos_bias=True
    )
    slopes, outs = paper.slopes(H), []
    for h in range(H):
        queries, keys, values = (list(heads[:, part, h]) for part in range(3))
        rows = []
        for i, q in enumerate(queries):
            scores = [
                0.5 * math.tanh(float(q @ keys[j]) * K**-0.5 / 0.5) - slopes[h] * (i - j)
                for j in range(i + 1)
            ]
            total = sum(math.exp(s) for s in scores)
            rows.append(sum(math.exp(s) / total * values[j] for j, s in enumerate(scores)))
        outs.append(torch.stack(rows))
    torch.testing.assert_close(
        got, projected(fn, torch.stack(outs, dim=1)), rtol=1e-5, atol=1e-5
    )  # fp32 slopes


def test_talking_heads():
    """arXiv:2003.02436, section 3: P before the softmax, Q after it."""
    fn, got, _, heads = attention_of(attn_talking_heads=True)
    before = fn.core.path.score_mods[0].exchange.weight.detach()
    after = fn.core.path.weight_mods[0].exchange.weight.detach()
    table = torch.zeros(H, T, T, dtype=torch.float64)
    for i in range(T):
        raw = [[float(heads[i, 0, h] @ heads[j, 1, h]) * K**-0.5 for j in range(i + 1)] for h in range(H)]
        mixed = [[sum(before[g, h] * raw[h][j] for h in range(H)) for j in range(i + 1)] for g in range(H)]
        soft = [torch.tensor(row, dtype=torch.float64).softmax(0) for row in mixed]
        for g in range(H):
            table[g, i, : i + 1] = sum(after[g, h] * soft[h] for h in range(H))
    torch.testing.assert_close(got, projected(fn, gathered(table, heads)))


def test_talking_heads_start_as_the_identity():
    torch.manual_seed(0)
    talking = flagformer.Decoder(dim=8, depth=1, heads=2, attn_talking_heads=True)
    plain = flagformer.Decoder(dim=8, depth=1, heads=2)
    plain.load_state_dict({n: w for n, w in talking.state_dict().items() if "exchange" not in n})
    x = torch.randn(1, 4, 8)
    torch.testing.assert_close(talking(x), plain(x))


@pytest.mark.parametrize("k", [1, 2, 9])
def test_sparse_topk_keeps_the_largest_allowed(k):
    """arXiv:1912.11637, equation 3, over the allowed keys of a query."""

    def keep(scores):
        least = sorted(scores, reverse=True)[:k][-1]
        return [score if score >= least else None for score in scores]

    fn, got, _, heads = attention_of(attn_sparse_topk=k)
    weights = weights_of(heads, keep=keep)
    assert int((weights[0, -1] > 0).sum()) == min(k, T)
    torch.testing.assert_close(got, projected(fn, gathered(weights, heads)))


def test_learned_sink():
    """arXiv:2309.17453, section 3.3: one more term in the denominator."""
    fn, got, _, heads = attention_of(attn_head_learned_sink=True)
    sink = [value.item() for value in fn.core.path.normalizer.score]
    weights = weights_of(heads, sink=sink)
    assert (weights.sum(-1) < 1).all()
    torch.testing.assert_close(got, projected(fn, gathered(weights, heads)))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_head_scale():
    """arXiv:2110.09456, equation 1."""
    fn, got, _, heads = attention_of(attn_head_scale=True)
    gains = fn.gates[0].weight.detach().view(H, 1)
    torch.testing.assert_close(got, projected(fn, gathered(weights_of(heads), heads) * gains))


def test_gated_heads():
    """arXiv:2306.12929, equation 5."""
    fn, got, x, heads = attention_of(attn_gate_value_heads=True)
    weight, bias = fn.gates[0].to_gate.weight.detach(), fn.gates[0].to_gate.bias.detach()
    gates = [[[sigmoid(float(weight[h] @ x[t] + bias[h]))] for h in range(H)] for t in range(T)]
    found = gathered(weights_of(heads), heads) * torch.tensor(gates, dtype=torch.float64)
    torch.testing.assert_close(got, projected(fn, found))


@pytest.mark.parametrize("swish", [False, True])
def test_gated_values(swish):
    """arXiv:2505.06708, equation 5, after the gathered values."""
    flags = {"attn_swiglu_values": True} if swish else {"attn_gate_values_bias": True}
    fn, got, x, heads = attention_of(attn_gate_values=True, **flags)
    to_gate = fn.gates[0].to_gate
    raw = (x @ to_gate.weight.detach().T + (0 if swish else to_gate.bias.detach())).view(T, H, K)
    gate = raw.clone().apply_(lambda v: v * sigmoid(v) if swish else sigmoid(v))
    torch.testing.assert_close(got, projected(fn, gathered(weights_of(heads), heads) * gate))


def test_gates_start_open():
    gate = flagformer.Decoder(dim=8, depth=1, heads=2, attn_gate_value_heads=True).sublayers[0].fn.gates[0]
    opened = gate(torch.ones(1, 2, 3, 4), torch.randn(1, 3, 8))
    torch.testing.assert_close(opened, torch.full((1, 2, 3, 4), sigmoid(2)))


def test_attention_on_attention():
    """arXiv:1908.06954, equations 3 and 4, on the output of the heads."""
    fn, got, _, heads = attention_of(attn_on_attn=True)
    found = gathered(weights_of(heads), heads).flatten(1)
    weight = fn.to_out.project.weight.detach()
    info, gate = found @ weight[:D].T, found @ weight[D:].T
    torch.testing.assert_close(got, info * gate.apply_(sigmoid))
