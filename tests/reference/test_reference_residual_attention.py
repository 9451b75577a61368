"""Residual attention (arXiv:2012.11747, section 3.2), layer by layer."""

import pytest
import torch

import flagformer

H, K, D, T = 2, 4, 6, 5


def perturbed(**flags):
    torch.manual_seed(9)
    layers = flagformer.Decoder(dim=D, heads=H, attn_dim_head=K, pre_norm=False, **flags).double().eval()
    for parameter in layers.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    for sublayer in layers.sublayers:
        sublayer.out_norm = torch.nn.Identity()
    return layers, torch.randn(1, T, D, dtype=torch.float64)


def by_hand(fn, q, k, v, before, causal):
    """One row: (the sublayer's output, its scores), one pair at a time."""
    scores = torch.zeros(H, len(q), len(k), dtype=torch.float64)
    outs = torch.zeros(len(q), H, K, dtype=torch.float64)
    for h in range(H):
        for i in range(len(q)):
            for j in range(len(k)):
                scores[h, i, j] = K**-0.5 * (q[i, h] @ k[j, h]) + before[h, i, j]
            seen = i + 1 if causal else len(k)
            weights = scores[h, i, :seen].softmax(0)
            outs[i, h] = sum(weights[j] * v[j, h] for j in range(seen))
    return outs.flatten(1) @ fn.to_out.weight.detach().T, scores


@pytest.mark.parametrize("carried", [True, False])
@torch.no_grad()
def test_self_attention_adds_the_previous_scores(carried):
    layers, x = perturbed(custom_layers="aaa", **({"residual_attn": True} if carried else {}))
    h, before = x[0], torch.zeros(H, T, T, dtype=torch.float64)
    for sublayer in layers.sublayers:
        qkv = (h @ sublayer.fn.source.projection.to_qkv.weight.T).view(T, 3, H, K)
        said, scores = by_hand(sublayer.fn, qkv[:, 0], qkv[:, 1], qkv[:, 2], before, causal=True)
        h = h + said
        before = scores if carried else before
    torch.testing.assert_close(layers(x)[0], h)


@torch.no_grad()
def test_cross_attention_adds_the_previous_scores():
    layers, x = perturbed(custom_layers="cc", cross_residual_attn=True)
    context = torch.randn(1, 3, D, dtype=torch.float64)
    h, before = x[0], torch.zeros(H, T, 3, dtype=torch.float64)
    for sublayer in layers.sublayers:
        projection = sublayer.fn.source.projection
        q = (h @ projection.to_q.weight.T).view(T, H, K)
        kv = (context[0] @ projection.to_kv.weight.T).view(3, 2, H, K)
        said, before = by_hand(sublayer.fn, q, kv[:, 0], kv[:, 1], before, causal=False)
        h = h + said
    torch.testing.assert_close(layers(x, context=context)[0], h)


@torch.no_grad()
def test_the_bias_is_not_passed_on():
    """Two layers whose queries are zero: the weights of both come from the bias only, once."""
    layers, x = perturbed(custom_layers="aa", residual_attn=True, alibi_pos_bias=True)
    plain, _ = perturbed(custom_layers="aa", alibi_pos_bias=True)
    for stack in (layers, plain):
        for sublayer in stack.sublayers:
            sublayer.fn.source.projection.to_qkv.weight[: H * K] = 0
    torch.testing.assert_close(layers(x), plain(x))


def test_layers_with_other_numbers_of_keys_are_refused():
    with pytest.raises(flagformer.FlagError, match="`residual_attn` and `attn_num_mem_kv`"):
        flagformer.Decoder(dim=D, heads=H, depth=2, residual_attn=True, attn_num_mem_kv=(1, 2))
