"""Options of OLMo 1 and hybrid, HunYuan, Llama 4, Falcon-H1 and Phi-3, against their formulas."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import flagformer
from flagformer.flow import Dims, Layout
from flagformer.mixer.gated_deltanet import GatedDeltaNet
from flagformer.mixer.mamba2 import Mamba2
from flagformer.mixer.tokens import BlockTokens, Compaction
from flagformer.norm.layernorm import LayerNorm
from flagformer.position.rotary import Rotary
from flagformer.position.temperature import LogTemperature

D, H, K = 8, 2, 4
BASE = {"dim": D, "heads": H, "attn_dim_head": K, "depth": 1}
DIMS = Dims(dim=8, heads=2, dim_head=4, causal=True)
SHORT, LONG = [1.0, 1.5], [2.0, 5.0]
LONGROPE = {
    "rope_type": "longrope", "factor": 4.0, "short_factor": SHORT, "long_factor": LONG,
    "original_max_position_embeddings": 6,
}  # fmt: skip


def attention_of(layers):
    return next(one.fn for one in layers.sublayers if one.kind == "a")


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm_without_a_weight(bias):
    """y = (x - mean) / sqrt(var + eps), plus b where there is a bias."""
    norm = LayerNorm(6, weight=False, bias=bias).double()
    assert [name for name, _ in norm.named_parameters()] == ["bias"] * bias
    for parameter in norm.parameters():
        parameter.data = double(6)
    for x in double(3, 6):
        centred = x - sum(x) / 6
        want = centred / math.sqrt(sum(float(one) ** 2 for one in centred) / 6 + 1e-5)
        torch.testing.assert_close(norm(x), want + norm.bias if bias else want)
    with pytest.raises(ValueError, match=r"`norm_weight_offset` and `norm_weight=False` cannot be combined"):
        LayerNorm(6, weight=False, offset=1.0)


@pytest.mark.parametrize("groups", [{}, {"attn_kv_heads": 1}, {"attn_one_kv_head": True}])
def test_projections_are_clipped(groups):
    """q, k, v = clamp(W x, -limit, limit)."""
    torch.manual_seed(0)
    clipped = attention_of(flagformer.Decoder(**BASE, **groups, attn_clip_qkv=0.3).double())
    x = double(1, 5, D)
    q, k, v = clipped.source.projection(x)
    projected = clipped.source.projection.to_qkv(x)
    assert projected.abs().max() > 0.3
    want = torch.tensor([[max(-0.3, min(0.3, float(one))) for one in row] for row in projected[0].detach()])
    got = torch.cat([part.transpose(1, 2).flatten(2) for part in (q, k, v)], dim=2)[0]
    torch.testing.assert_close(got, want.double())


def test_norms_after_the_rotation():
    """q = rms(R q) g at every position, where before it is R (rms(q) g)."""
    torch.manual_seed(0)
    flags = {"rotary_pos_emb": True, "attn_qk_rmsnorm": True, "attn_qk_rmsnorm_weight": "shared"}
    layers = flagformer.Decoder(**BASE, **flags, rotary_before_qk_rmsnorm=True).double()
    source = attention_of(layers).source
    source.qk_norm.q_weight.data, source.qk_norm.k_weight.data = double(K), double(K)
    raw, caught = {}, {}
    source.projection.register_forward_hook(lambda module, x, out: raw.update(qkv=out))
    source.register_forward_hook(lambda module, x, out: caught.update(q=out[0], k=out[1].k))
    layers(double(1, 6, D))
    for name, given, weight in zip("qk", raw["qkv"], (source.qk_norm.q_weight, source.qk_norm.k_weight)):
        for head in range(H):
            for p in range(6):
                x = given[0, head, p].tolist()
                turned = list(x)
                for i in range(K // 2):
                    angle = p * 10000 ** (-2 * i / K)
                    turned[i] = x[i] * math.cos(angle) - x[i + K // 2] * math.sin(angle)
                    turned[i + K // 2] = x[i + K // 2] * math.cos(angle) + x[i] * math.sin(angle)
                size = math.sqrt(sum(one**2 for one in turned) / K)
                want = torch.tensor(turned, dtype=torch.float64) / size * weight
                torch.testing.assert_close(caught[name][0, head, p], want, rtol=1e-5, atol=1e-5)


def test_the_temperature_grows_with_the_position():
    """Queries times 1 + w log(1 + floor((p + 1) / N)); keys are as they are."""
    rule = LogTemperature(DIMS, floor=3, weight=0.7)
    layout = Layout.left_padded(torch.tensor([0, 2]), 8)
    q, k = double(2, 2, 8, 4), double(2, 2, 8, 4)
    got, keys = rule.both(q, k, rule.cos_sin(layout, torch.float64))
    assert keys is k
    for row, start in enumerate((0, 2)):
        for token in range(8):
            p = max(token - start, 0)
            factor = 1 + 0.7 * math.log(1 + (p + 1) // 3)
            torch.testing.assert_close(got[row, :, token], factor * q[row, :, token], rtol=1e-6, atol=1e-6)


def test_layers_with_a_rotation_and_with_a_temperature():
    """Step by step, and after padding, as in one forward."""
    flags = {**BASE, "depth": 2, "rotary_pos_emb": (True, None), "attn_temperature_floor": (None, 2)}
    model = flagformer.build({**flags, "num_tokens": 11, "max_seq_len": 16}).eval()
    assert [type(one) for one in model.attn_layers.rotations] == [Rotary, LogTemperature]
    ids = torch.randint(11, (1, 9))
    want, state = model(ids), model.init_state(1, 9)
    torch.testing.assert_close(torch.cat([model(one, state=state) for one in ids.split(2, 1)], 1), want)
    padded = model(torch.cat([ids[:, :3], ids], 1), seq_start_pos=torch.tensor([3]))[:, 3:]
    torch.testing.assert_close(padded, want)


def test_gates_are_scaled():
    """W (v silu(s g)) with values v and gates g."""
    torch.manual_seed(0)
    flags = {**BASE, "ff_glu": True, "ff_swish": True, "ff_no_bias": True, "ff_glu_gate_scale": 0.25}
    feedforward = next(s.fn for s in flagformer.Decoder(**flags).double().sublayers if s.kind == "f")
    x = double(3, D)
    value, gate = feedforward.w_in(x).chunk(2, -1)
    want = feedforward.w_out(value * (0.25 * gate) * torch.sigmoid(0.25 * gate))
    torch.testing.assert_close(feedforward.compute(x[None])[0], want)


def mixed(mixer, x):
    tokens = BlockTokens.of(Layout.arange(x.shape[1], x.device), 1)
    return mixer.double().mix(x, tokens, mixer.initial_state(1, x.dtype, x.device))[0]


def test_rates_of_the_delta_rule():
    """S = a S + 2 sigmoid(b) (v - k a S) k: eigenvalues of the state reach -1."""
    torch.manual_seed(0)
    plain, twice = GatedDeltaNet(DIMS).double(), GatedDeltaNet(DIMS, rate=2.0, norm_eps=0.25).double()
    twice.load_state_dict(plain.state_dict())
    x, seen = double(1, 7, 8), {}
    twice.norm.register_forward_hook(lambda module, given, out: seen.update(x=given[0], out=out))
    mixed(twice, x)
    tail = torch.zeros(1, 3, 24, dtype=torch.float64)
    q, k, v = (
        F.silu(twice.convolution(twice.to_qkv(x), tail, Compaction(BlockTokens()))[0])
        .split([8, 8, 8], -1)
    )  # fmt: skip
    decay = twice.decay(twice.to_step(x))[1].exp()
    beta = 2 * torch.sigmoid(twice.to_beta(x))
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        state = torch.zeros(4, 4, dtype=torch.float64)
        for t in range(7):
            key, query = (one[0, t, part] for one in (k, q))
            key, query = (one / (one.square().sum() + 1e-6).sqrt() for one in (key, query))
            state = decay[0, t, head] * state
            state = state + beta[0, t, head] * torch.outer(key, v[0, t, part] - key @ state)
            torch.testing.assert_close(seen["x"][0, t, head], query * 4**-0.5 @ state)
    normed = seen["x"] / (seen["x"].square().mean(-1, keepdim=True) + 0.25).sqrt()
    torch.testing.assert_close(
        seen["out"], (normed * twice.norm.weight).flatten(2) * F.silu(twice.to_gate(x))
    )


def test_parts_of_mamba_2_are_scaled():
    """Factors of the parts of the projection are factors of the rows of its weight."""
    torch.manual_seed(0)
    sizes = {"dim_key": 3, "key_groups": 2}
    scales = {"gate": 0.5, "value": 2.0, "key": 0.25, "query": 3.0, "step": 0.75}
    scaled, plain = Mamba2(DIMS, **sizes, scales=scales).double(), Mamba2(DIMS, **sizes).double()
    plain.load_state_dict(scaled.state_dict())
    rows = zip(plain.to_inner.weight.data.split([8, 8, 6, 6, 2]), scales.values())
    for weight, factor in rows:
        weight *= factor
    x = double(1, 6, 8)
    torch.testing.assert_close(mixed(scaled, x), mixed(plain, x))


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"keys": 2.0}, r"must name 'gate', .*, but names 'keys'"),
        ({"key": 0.0}, "must hold positive numbers, but `key` is 0.0"),
    ],
)
def test_wrong_scales_are_refused(scales, message):
    with pytest.raises(ValueError, match=message):
        Mamba2(DIMS, scales=scales)


def caught(seen, module, given, out):
    seen.update(y=given[0], z=given[1], out=out)


def test_norms_of_mamba_2():
    """W (y silu(z)) without a norm; with one, an epsilon of its own."""
    torch.manual_seed(0)
    x = double(1, 5, 8)
    for kwargs in ({"norm": False}, {"norm_eps": 0.25}):
        mixer = Mamba2(DIMS, dim_key=3, **kwargs).double()
        seen = {}
        mixer.norm.register_forward_hook(partial(caught, seen))
        got = mixed(mixer, x)
        want = seen["y"] * F.silu(seen["z"])
        if "norm_eps" in kwargs:
            want = mixer.norm.weight * want / (want.square().mean(-1, keepdim=True) + 0.25).sqrt()
        torch.testing.assert_close(seen["out"], want)
        torch.testing.assert_close(got, mixer.w_out(want))
    with pytest.raises(ValueError, match=r"`mixer_norm_eps` and `mixer_norm=False` cannot be combined"):
        Mamba2(DIMS, norm=False, norm_eps=0.5)


def turned(length):
    """The angles of positions 0 ... length - 1 of one sequence, by the formula."""
    divisors = LONG if length > 6 else SHORT
    return [[p * 10000 ** (-2 * i / 4) / divisors[i] for i in range(2)] for p in range(length)]


def test_longrope_chooses_by_the_length_of_each_sequence():
    """Rows of different lengths, and documents of one row, each take the divisors of their own length.

    Departure from transformers 5.24, where the longest row of a batch chooses for all.
    """
    rule = Rotary(DIMS, scaling=LONGROPE)
    factor = math.sqrt(1 + math.log(4.0) / math.log(6))
    padded = Layout.left_padded(torch.tensor([0, 4]), 9)
    packed = Layout.packed(torch.tensor([[7, 2]]), 9)
    for layout, starts in ((padded, [(0, 0, 9), (1, 4, 5)]), (packed, [(0, 0, 7), (0, 7, 2)])):
        cos = rule.cos_sin(layout, torch.float32)[0]
        for row, start, length in starts:
            want = torch.tensor(turned(length)).cos() * factor
            torch.testing.assert_close(cos[row, 0, start : start + length, :2], want, rtol=1e-5, atol=1e-5)


def test_a_decode_state_keeps_its_divisors():
    """Cached texts equal whole ones on either side of the original length; a state cannot cross it."""
    torch.manual_seed(0)
    flags = {**BASE, "attn_dim_head": 4, "rotary_pos_emb": True, "rotary_scaling": LONGROPE}
    model = flagformer.build({**flags, "num_tokens": 11, "max_seq_len": 32}).eval()
    ids = torch.randint(11, (2, 12))
    for first, last in ((3, 6), (8, 12)):
        want, state = model(ids[:, :last]), model.init_state(2, 20)
        blocks = (ids[:, :first], *ids[:, first:last].split(1, 1))
        got = torch.cat([model(block, state=state) for block in blocks], 1)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    state = model.init_state(2, 20)
    model(ids[:, :6], state=state)
    with pytest.raises(
        ValueError, match=r"more than 6 tokens by other angles, and this decode state was begun"
    ):
        model(ids[:, 6:7], state=state)
    fixed = {**flags, "rotary_scaling": {**LONGROPE, "seq_len": 32}}
    long = flagformer.build({**fixed, "num_tokens": 11, "max_seq_len": 32}).eval()
    long.load_state_dict(model.state_dict())
    torch.testing.assert_close(long(ids), model(ids))
    assert not torch.allclose(long(ids[:, :6]), model(ids[:, :6]), atol=1e-3)
    with pytest.raises(ValueError, match=r"`mems` .* `rotary_scaling`"):
        model.attn_layers(torch.randn(2, 3, D), mems=[torch.randn(2, 3, D)])
