"""Epsilons, weight offsets, biases and factors that published models set, against their formulas."""

import math

import pytest
import torch
from test_reference_attention import BASE, D, H, K, attention_of, check

import flagformer
from flagformer.attention.qk_norm.layernorm import LayerQKNorm
from flagformer.attention.qk_norm.norms import RMSQKNorm
from flagformer.flow import Dims
from flagformer.norm.layernorm import LayerNorm
from flagformer.norm.rmsnorm import RMSNorm
from flagformer.norm.scalenorm import ScaleNorm
from flagformer.norm.simple_rmsnorm import SimpleRMSNorm

DIMS = Dims(dim=D, heads=H, dim_head=K)


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)


def rms(x, eps):
    return math.sqrt(sum(float(value) ** 2 for value in x) / len(x) + eps)


@pytest.mark.parametrize("eps", [1e-5, 0.3])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm_with_epsilon_and_weight_offset(eps, offset):
    """y = x / sqrt(mean(x^2) + eps) * (offset + w); w starts at 1 - offset."""
    norm = RMSNorm(6, eps=eps, offset=offset).double()
    assert (norm.weight == 1 - offset).all()
    norm.weight.data = double(6)
    x = double(3, 6) * 0.1
    for row, got in zip(x, norm(x)):
        torch.testing.assert_close(got, row / rms(row, eps) * (offset + norm.weight))


@pytest.mark.parametrize("eps", [1e-12, 0.3])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm_with_epsilon_bias_and_weight_offset(eps, offset, bias):
    """y = (x - mean) / sqrt(var + eps) * (offset + w) + b; b starts at 0."""
    norm = LayerNorm(6, eps=eps, offset=offset, bias=bias).double()
    assert (norm.weight == 1 - offset).all()
    assert norm.bias is None or not norm.bias.any()
    for parameter in norm.parameters():
        parameter.data = double(6)
    x = double(3, 6)
    for row, got in zip(x, norm(x)):
        centred = row - sum(row) / 6
        want = centred / rms(centred, eps) * (offset + norm.weight)
        torch.testing.assert_close(got, want + norm.bias if bias else want)


@pytest.mark.parametrize("cls", [ScaleNorm, SimpleRMSNorm])
def test_epsilon_of_norms_without_a_weight_per_dimension(cls):
    norm = cls(6, eps=0.3).double()
    x = double(3, 6)
    for row, got in zip(x, norm(x)):
        torch.testing.assert_close(got, row / rms(row, 0.3), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("eps", [1e-12, 1e-5])
def test_epsilon_holds_in_low_precision(dtype, eps):
    """Zeros stay zeros, and vectors whose squares leave fp16's range have unit root mean square."""
    norm = SimpleRMSNorm(64, eps=eps)
    assert (norm(torch.zeros(2, 64, dtype=dtype)) == 0).all()
    large = torch.full((2, 64), 3000.0, dtype=dtype)
    torch.testing.assert_close(norm(large), torch.ones_like(large), rtol=1e-2, atol=0)


@pytest.mark.parametrize("weight", ["head", "shared", "none"])
@pytest.mark.parametrize("all_heads", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm_of_queries_and_keys(weight, all_heads, offset):
    """One mean square per head, or over the heads of a token; weights per head, shared, or none."""
    if weight == "none" and offset:
        with pytest.raises(flagformer.FlagError, match=r"weight_offset.*weight='none'"):
            RMSQKNorm(DIMS, 2, weight=weight, offset=offset)
        return
    norm = RMSQKNorm(DIMS, 2, weight=weight, all_heads=all_heads, eps=0.2, offset=offset).double()
    for parameter in norm.parameters():
        assert (parameter == 1 - offset).all()
        parameter.data = double(*parameter.shape)
    shapes = {"head": [(H, 1, K), (2, 1, K)], "shared": [(K,), (K,)], "none": []}
    assert [tuple(parameter.shape) for parameter in norm.parameters()] == shapes[weight]
    for x, normed, own in (
        (double(2, H, 3, K), norm.queries, norm.q_weight),
        (double(2, 2, 3, K), norm.keys, norm.k_weight),
    ):
        got = normed(x)
        for row in range(2):
            for t in range(3):
                for h in range(x.shape[1]):
                    of = x[row, :, t].flatten() if all_heads else x[row, h, t]
                    gain = 1.0 if own is None else offset + (own[h, 0] if weight == "head" else own)
                    torch.testing.assert_close(got[row, h, t], x[row, h, t] / rms(of, 0.2) * gain)


@pytest.mark.parametrize("weight", ["head", "shared", "none"])
@pytest.mark.parametrize("all_heads", [False, True])
def test_rms_norm_of_prefix_keys(weight, all_heads):
    """Prefix keys [G, M, K] are normed as the keys of a token are."""
    norm = RMSQKNorm(DIMS, 2, weight=weight, all_heads=all_heads, eps=0.2).double()
    for parameter in norm.parameters():
        parameter.data = double(*parameter.shape)
    for count in (0, 1, 3, K):
        keys = double(2, count, K)
        torch.testing.assert_close(norm.keys(keys), norm.keys(keys[None])[0])


@pytest.mark.parametrize("prefix", [{"attn_num_mem_kv": 3}, {"attn_add_zero_kv": True}])
def test_learned_keys_with_one_mean_square_over_all_heads(prefix):
    """They and the null key act as tokens with those keys, which all queries attend to, would."""
    fn, run = attention_of(attn_qk_rmsnorm=True, attn_qk_rmsnorm_all_heads=True, attn_kv_heads=2, **prefix)
    memory, x = fn.prefix_kv[0], double(2, 5, D)
    k, v = (memory.k, memory.v) if "attn_num_mem_kv" in prefix else [torch.zeros(2, 1, K).double()] * 2
    q, keys, values = fn.source.projection.to_qkv(x).split([H * K, 2 * K, 2 * K], dim=-1)
    q, keys, values = (one.unflatten(-1, (-1, K)).transpose(1, 2) for one in (q, keys, values))
    keys, values = (torch.cat([a.expand(2, -1, -1, -1), b], 2) for a, b in ((k, keys), (v, values)))
    sees = torch.ones(5, k.shape[1] + 5, dtype=torch.bool).tril(k.shape[1])
    norm = fn.source.qk_norm
    out = torch.nn.functional.scaled_dot_product_attention(
        norm.queries(q), norm.keys(keys), values, attn_mask=sees, scale=K**-0.5, enable_gqa=True
    )
    torch.testing.assert_close(run(x), fn.to_out(out.transpose(1, 2).flatten(2)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize("flash", [True, False])
def test_attention_scale_replaces_the_root_of_the_width(scale, flash):
    check(*attention_of(attn_scale=scale, attn_flash=flash), scale=scale)


@pytest.mark.parametrize(
    ("flags", "biased"),
    [
        ({"attn_bias": True}, {"in", "out"}),
        ({"attn_qkv_bias": True}, {"in"}),
        ({"attn_out_bias": True}, {"out"}),
        ({"attn_bias": True, "attn_qkv_bias": False}, {"out"}),
        ({"attn_bias": True, "attn_out_bias": False}, {"in"}),
    ],
)
@pytest.mark.parametrize(
    "kind",
    [
        {}, {"attn_kv_heads": 2}, {"attn_one_kv_head": True}, {"shared_qk": True}, {"attn_on_attn": True},
        {"custom_layers": "c"}, {"custom_layers": "c", "context_shared_qk": True},
    ],
)  # fmt: skip
def test_biases_of_projections(flags, biased, kind):
    """Adding b to the output of the same projection without bias is the projection with bias b."""
    layers = flagformer.Decoder(**{**BASE, **flags, **kind}).double().eval()
    plain = flagformer.Decoder(**{**BASE, **kind}).double().eval()
    state = layers.state_dict()
    biases = {name for name in state if name.endswith(".bias")}
    assert {"out" if ".to_out." in name else "in" for name in biases} == biased
    plain.load_state_dict({name: value for name, value in state.items() if name not in biases})
    added = {name.removesuffix(".bias"): double(*state[name].shape) for name in biases}
    for name, bias in added.items():
        layers.get_submodule(name).bias.data = bias
        plain.get_submodule(name).register_forward_hook(lambda _, args, out, bias=bias: out + bias)
    x, context = double(2, 5, D), double(2, 3, D)
    how = {"context": context} if "custom_layers" in kind else {}
    torch.testing.assert_close(layers(x, **how), plain(x, **how))


def test_residual_scale_multiplies_the_output_of_each_sublayer():
    """h + r f(norm(h)), Granite's `residual_multiplier`; a tuple has one for each sublayer."""
    flags = {"dim": D, "depth": 1, "heads": H, "attn_dim_head": K}
    plain = flagformer.Decoder(**flags).double()
    scaled = flagformer.Decoder(**flags, residual_scale=(0.25, 3.0)).double()
    scaled.load_state_dict(plain.state_dict())
    h = x = double(1, 5, D)
    side = {}
    for sublayer, scale in zip(plain.sublayers, (0.25, 3.0)):
        sublayer.register_forward_hook(lambda module, args, out: side.update(out=out - args[0]))
        sublayer(h, plain_side(plain, h))
        h = h + scale * side["out"]
    torch.testing.assert_close(scaled(x), plain.final_norm(h))


def plain_side(layers, x):
    """The side inputs of a forward."""
    seen = {}
    hook = layers.sublayers[0].register_forward_pre_hook(lambda _, args: seen.update(side=args[1]))
    layers(x)
    hook.remove()
    return seen["side"]


def test_norms_of_branches_alone():
    """h + norm(f(h)), then one norm at the end (arXiv:2111.09883, section 3.2; OLMo 2)."""
    layers = flagformer.Decoder(dim=D, depth=2, heads=H, attn_dim_head=K, res_post_norm=True).double()
    for parameter in layers.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = double(1, 5, D)
    side, h = plain_side(layers, x), x
    for sublayer in layers.sublayers:
        h = h + sublayer.branch_norm(sublayer.fn(h, side))
    torch.testing.assert_close(layers(x), layers.final_norm(h))
    names = {name.split(".")[2] for name in layers.state_dict() if name.startswith("sublayers")}
    assert names == {"fn", "branch_norm"}


@pytest.mark.parametrize("weight", ["head", "shared"])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm_of_queries_and_keys(weight, bias):
    """w (x - mean) / sqrt(var + eps) + b over each head (arXiv:2302.05442, section 2)."""
    norm = LayerQKNorm(DIMS, 2, weight=weight, bias=bias, eps=0.2).double()
    assert len(list(norm.parameters())) == (4 if bias else 2)
    for parameter in norm.parameters():
        parameter.data += double(*parameter.shape)
    for x, normed, own in (
        (double(2, H, 3, K), norm.queries, norm.q_norm),
        (double(2, 2, 3, K), norm.keys, norm.k_norm),
    ):
        got = normed(x)
        for row in range(2):
            for t in range(3):
                for h in range(x.shape[1]):
                    centred = x[row, h, t] - sum(x[row, h, t]) / K
                    which = h if weight == "head" else 0
                    want = centred / rms(centred, 0.2) * own.weight[which, 0]
                    torch.testing.assert_close(got[row, h, t], want + own.bias[which, 0] if bias else want)
    for count in (0, 1, 3):
        keys = double(2, count, K)
        torch.testing.assert_close(norm.keys(keys), norm.keys(keys[None])[0])
