"""Parts of published encoders, one number at a time: disentangled attention, norms, biases, convolutions."""

import math

import pytest
import torch
from torch.nn import functional as F

import flagformer
from flagformer.ops.buckets import log_bucket
from flagformer.position.absolute import Sinusoidal

SMALL = {"dim": 8, "heads": 2, "attn_dim_head": 4}


def perturbed(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.double().eval()


def bucket(distance, span, farthest):
    """DeBERTa v2's, of one distance; 0: no logarithm."""
    middle, size = span // 2, abs(distance)
    if not farthest or size <= middle:
        return distance
    growth = math.log(size / middle) / math.log((farthest - 1) / middle) * (middle - 1)
    return int(math.copysign(math.ceil(growth - 1e-6) + middle, distance))


@pytest.mark.parametrize(("span", "farthest"), [(4, 24), (8, 20), (256, 512), (5, 9)])
def test_buckets_of_distances(span, farthest):
    distances = list(range(-600, 601))
    assert log_bucket(torch.tensor(distances), span, farthest).tolist() == [
        bucket(d, span, farthest) for d in distances
    ]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("terms", ["both", "c2p", "p2c"])
@pytest.mark.parametrize("farthest", [9, 0])
def test_disentangled_scores(causal, terms, farthest):
    """arXiv:2006.03654, equation 4, with the projections of contents."""
    span = 4
    kind = flagformer.Decoder if causal else flagformer.Encoder
    layers = perturbed(
        kind(
            **SMALL, custom_layers="a", pre_norm_has_first_norm=False, pre_norm_has_final_norm=False,
            disentangled_attn=True, disentangled_attn_span=span, disentangled_attn_max_distance=farthest,
            disentangled_attn_terms=terms, attn_scale=0.3,
        )
    )  # fmt: skip
    x = torch.randn(1, 7, 8, dtype=torch.float64)
    source, bias = layers.attentions[0].source.projection, layers.position_bias
    relative = F.layer_norm(bias.table.weight, [8], bias.norm.weight, bias.norm.bias, 1e-5)
    q, k, v = (part[0] for part in source(x))
    qr, kr, _ = (part[0] for part in source(relative[None]))
    rows = []
    for i in range(7):
        heads = []
        for h in range(2):
            scores = []
            for j in range(7):
                lowest, highest = (0, span - 1) if causal else (-span, span - 1)
                d = min(max(bucket(i - j, span, farthest), lowest), highest) - lowest
                score = q[h, i] @ k[h, j]
                score = score + (q[h, i] @ kr[h, d] if terms != "p2c" else 0)
                score = score + (k[h, j] @ qr[h, d] if terms != "c2p" else 0)
                scores.append(0.3 * score if not causal or j <= i else torch.tensor(-math.inf))
            heads.append(torch.stack(scores).softmax(0) @ v[h])
        rows.append(torch.cat(heads))
    want = x + layers.attentions[0].to_out(torch.stack(rows))
    torch.testing.assert_close(layers(x), want, rtol=0, atol=1e-12)


def test_keys_have_no_bias_where_queries_and_values_have():
    """The same model without the numbers that a softmax cancels."""
    flags = {**SMALL, "depth": 1, "attn_qkv_bias": True, "attn_kv_heads": 1}
    full, without = (perturbed(flagformer.Encoder(**flags, attn_k_bias=has)) for has in (True, False))
    state = full.state_dict()
    name = "sublayers.0.fn.source.projection.to_qkv.bias"
    bias = state.pop(name)
    state[name.replace("to_qkv.bias", "to_qkv_bias.bias")] = torch.cat([bias[:8], bias[12:]])
    without.load_state_dict(state)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(without(x), full(x), rtol=0, atol=1e-12)


def test_the_first_sublayer_reads_the_stream_without_a_norm():
    layers = perturbed(flagformer.Encoder(dim=8, heads=2, custom_layers="ff", pre_norm_has_first_norm=False))
    first, second = layers.sublayers
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    h = x + first.fn.w_out(F.gelu(first.fn.w_in(x)))
    normed = F.layer_norm(h, [8], second.in_norm.weight, None, 1e-5)
    h = h + second.fn.w_out(F.gelu(second.fn.w_in(normed)))
    want = F.layer_norm(h, [8], layers.final_norm.weight, None, 1e-5)
    torch.testing.assert_close(layers(x), want, rtol=0, atol=1e-12)
    assert not list(first.in_norm.parameters() if isinstance(first.in_norm, torch.nn.Module) else ())


def test_sinusoids_with_a_fixed_scale():
    """arXiv:1706.03762, section 3.5, sines first."""
    module = Sinusoidal(6, 0, scale=0.5)
    flags = {"scaled_sinu_pos_emb": True, "sinu_pos_emb_scale": 0.5, "num_tokens": 5, "max_seq_len": 4}
    assert not list(flagformer.build({**flags, **SMALL, "depth": 1}).pos_emb.parameters())
    for position in (0, 3, 70):
        angles = [position / 10000 ** (2 * i / 6) for i in range(3)]
        want = torch.tensor([0.5 * f(a) for f in (math.sin, math.cos) for a in angles])
        torch.testing.assert_close(module(torch.tensor([[position]]))[0, 0], want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("endpoint", "offset"), [(True, 0), (False, 3), (True, 2)])
def test_sinusoids_of_tensor2tensor(endpoint, offset):
    """`get_timing_signal_1d`: rates from 1 to 1 / 10000, both included; positions begin at the offset."""
    module = Sinusoidal(8, 0, scale=1.0, endpoint=endpoint, offset=offset)
    for position in (0, 3, 70):
        angles = [(position + offset) / 10000 ** (i / (3 if endpoint else 4)) for i in range(4)]
        want = torch.tensor([f(a) for f in (math.sin, math.cos) for a in angles])
        torch.testing.assert_close(module(torch.tensor([[position]]))[0, 0], want, rtol=0, atol=1e-5)
    assert Sinusoidal(2, 0, endpoint=True)(torch.ones(1, 1, dtype=torch.long)).isfinite().all()


@pytest.mark.parametrize("length", [1, 6, 7])
def test_convolutions_of_a_spectrogram(length):
    """arXiv:2212.04356, section 2.2: two convolutions of width 3, the second of stride 2, with GELUs."""
    model = flagformer.build(
        {"model": "continuous", "dim_in": 3, "conv_stem": True, "causal": False, "max_seq_len": 8, **SMALL,
         "depth": 1}
    )  # fmt: skip
    stem = perturbed(model).project_in
    x = torch.randn(1, length, 3, dtype=torch.float64)

    def convolved(frames, conv, stride):
        padded = [torch.zeros_like(frames[0]), *frames, torch.zeros_like(frames[0])]
        return [
            F.gelu(conv.bias + sum(conv.weight[:, :, w] @ padded[t + w] for w in range(3)))
            for t in range(0, len(frames), stride)
        ]

    want = torch.stack(convolved(convolved(list(x[0]), stem.first, 1), stem.second, 2))
    torch.testing.assert_close(stem(x)[0], want, rtol=0, atol=1e-12)
    assert model(x).shape == (1, (length + 1) // 2, 8)
    padded = torch.cat([x, torch.randn(1, 4, 3, dtype=torch.float64)], dim=1)
    mask = (torch.arange(length + 4) < length)[None]
    got = model(padded, mask=mask)[:, : (length + 1) // 2]
    torch.testing.assert_close(got, model(x), rtol=0, atol=1e-12)


def test_a_decoder_reads_a_source_of_vectors():
    flags = {
        "model": "xtransformer", "dim": 8, "src_dim": 3, "src_conv": True, "enc_max_seq_len": 8,
        "enc_depth": 1, "enc_heads": 2, "dec_num_tokens": 11, "dec_max_seq_len": 8, "dec_depth": 1,
        "dec_heads": 2,
    }  # fmt: skip
    model = perturbed(flagformer.build(flags))
    src, tgt = torch.randn(2, 9, 3, dtype=torch.float64), torch.tensor([[1, 2, 3], [4, 5, 6]])
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    logits = model.decoder.net(tgt, context=model.encode(src, mask), context_mask=mask[:, ::2])
    want = F.cross_entropy(logits[:, :-1].flatten(0, 1), tgt[:, 1:].flatten())
    torch.testing.assert_close(model(src, tgt, mask), want, rtol=0, atol=1e-12)
    one = model.generate(src[1:, :5], tgt[1:, :1], 4, temperature=0)
    assert torch.equal(model.generate(src, tgt[:, :1], 4, mask, temperature=0)[1:], one)
    assert flagformer.build(model.flags).flags == model.flags
    with pytest.raises(ValueError, match="`src_prepend_embeds` must be None, because the source is vectors"):
        model(src, tgt, src_prepend_embeds=torch.zeros(2, 1, 8))


def test_wrong_flags_are_named():
    pair = {"model": "xtransformer", "dim": 8, "enc_max_seq_len": 8, "enc_depth": 1, "dec_num_tokens": 11,
            "dec_max_seq_len": 8, "dec_depth": 1}  # fmt: skip
    one = {"num_tokens": 11, "max_seq_len": 8, "depth": 1, "dim": 8}
    for flags, text in (
        ({**pair, "enc_num_tokens": 11, "src_conv": True}, "`src_conv` has no effect"),
        ({**pair, "src_dim": 3, "tie_token_emb": True}, "`tie_token_emb` and `src_dim`"),
        ({**pair, "src_dim": 3, "enc_num_tokens": 11}, "`enc_num_tokens` cannot be given"),
        ({"model": "continuous", "dim": 8, "depth": 1, "max_seq_len": 8, "conv_stem": True}, "`conv_stem`"),
        ({**one, "attn_k_bias": False}, "`attn_k_bias` has no effect"),
        ({**one, "model": "classifier", "pooler_activation": "relu"}, "`pooler_activation` has no effect"),
        ({**one, "disentangled_attn": True, "disentangled_attn_max_distance": 100}, "must exceed 129"),
        (
            {**one, "disentangled_attn": True, "disentangled_attn_norm": False,
             "disentangled_attn_norm_eps": 0.1}, "`disentangled_attn_norm_eps` has no effect",
        ),
    ):  # fmt: skip
        with pytest.raises(flagformer.FlagError, match=text):
            flagformer.build(flags)
