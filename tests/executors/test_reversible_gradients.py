"""Gradients of reversible execution equal those of plain autograd over the same two streams."""

import pytest
import torch
from executor_models import DROPS, SIZES, TIGHT, Busy, busy_decoder, error, inputs, plain, trained
from torch import nn

import flagformer
from flagformer import Decoder, Encoder
from flagformer.attention.cores.kmeans import KMeans, update_kmeans
from flagformer.flow import OutputCollector

BIASES = {"rel_pos_bias": True, "attn_num_mem_kv": 2, "cross_attend": True}
MIXES = {
    "plain": {},
    "dropout": DROPS,
    "cross-attention, biases and prefix kv": {**DROPS, **BIASES, "cross_attn_dim_context": 6},
    # without prefix keys the bias network's last bias cancels, and its gradient is rounding only
    "macaron of tied blocks": {
        **DROPS,
        "macaron": True,
        "weight_tie_layers": True,
        "dynamic_pos_bias": True,
        "attn_num_mem_kv": 1,
    },
    "attention after attention": {**DROPS, "custom_layers": ("a", "a", "c", "f", "f"), "depth": None},
    "parallel blocks": {**DROPS, **BIASES, "parallel_block": True},
    "tied parallel blocks of own norms": {
        **DROPS,
        "parallel_block": True,
        "parallel_block_own_norms": True,
        "weight_tie_layers": True,
    },
    "any order": {**DROPS, "layers_execute_order": (0, 1, 2, 3, 4, 5, 1, 0, 0), "rotary_xpos": True},
    "one sublayer": {"custom_layers": ("f",), "depth": None},
    "feedforward in chunks": {**DROPS, "ff_chunks": 3, "ff_glu": True},
}


CLUSTERS = {"num_clusters": 3, "window_size": 2, "commitment_factor": 0.5, "kmeans_ema_decay": 0.5}
LEARNERS = {
    "routing": CLUSTERS,
    "routing and local heads": {**CLUSTERS, "n_local_attn_heads": 1, "local_attn_window_size": 3},
    "one vector": {**CLUSTERS, "shared_qk": True},
    "experts": {"ff_moe": True, "moe_loss_coef": 0.5, "moe_z_loss_coef": 0.1},
    "routing, experts and keys": {
        **CLUSTERS, "ff_moe": (True, False, False), "ff_pkm": (False, True, False), "pkm_num_keys": 6,
    },
}  # fmt: skip


def decoder(**flags):
    torch.manual_seed(4)
    given = {**SIZES, "reversible": True, **flags}
    return Decoder(**{name: value for name, value in given.items() if value is not None})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("mix", MIXES)
def test_gradients_equal_those_of_two_streams(mix, dtype):
    layers = decoder(**MIXES[mix]).to(dtype)
    for step in range(2):  # the first step, with empty caches, and one after it
        out, grads, draws = trained(layers, dtype)
        wanted_out, wanted, wanted_draws = trained(plain(decoder(**MIXES[mix]).to(dtype)), dtype)
        assert torch.equal(out, wanted_out), f"step {step}"
        assert error(grads, wanted) < TIGHT[dtype]
        assert torch.equal(draws, wanted_draws), "the next random number must not depend on the executor"


@pytest.mark.parametrize("executor", [{"reversible": True}, {"checkpoint": "sublayer"}], ids=str)
@pytest.mark.parametrize("learner", LEARNERS)
def test_clusters_and_experts_learn_as_under_plain_autograd(learner, executor):
    """Their losses have gradients, dropout masks are the same, and tokens count once."""

    def built():
        flags = {**DROPS, **LEARNERS[learner], "reversible": None, **executor}
        return decoder(**flags).double()

    layers, wanted_layers = built(), plain(built())
    for _ in range(2):
        out, grads, draws = trained(layers, torch.float64)
        wanted_out, wanted, wanted_draws = trained(wanted_layers, torch.float64)
        assert torch.equal(out, wanted_out)
        assert error(grads, wanted) < TIGHT[torch.float64]
        assert torch.equal(draws, wanted_draws)
        for part, other in zip(layers.modules(), wanted_layers.modules(), strict=True):
            if isinstance(part, KMeans):
                assert torch.equal(part.pending_stats.counts, other.pending_stats.counts)
                assert torch.equal(part.pending_stats.sums, other.pending_stats.sums)
        for one in (layers, wanted_layers):
            update_kmeans(one)
    for name, buffer in layers.named_buffers():
        assert torch.equal(buffer, wanted_layers.get_buffer(name)), name


@pytest.mark.parametrize("bias", ["rel_pos_bias", "dynamic_pos_bias", "alibi_pos_bias"])
def test_long_inputs_share_a_table(bias):
    """From 256 tokens on a learned bias is a relative table in the side inputs, with a gradient."""
    found = []
    for prepare in (lambda layers: layers, plain):
        layers = prepare(decoder(**{bias: True, "depth": 2})).double()
        found.append(trained(layers, torch.float64, length=300)[1])
    if bias == "dynamic_pos_bias":  # softmax removes a constant: its gradient is rounding only
        places = [name for name, _ in layers.named_parameters()]
        for many in found:
            many.pop(1 + places.index("position_bias.out.bias"))
    assert error(*found) < 1e-12


def test_language_models_of_padded_packed_and_prefixed_rows():
    ids = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(1))
    sizes = {"num_tokens": 11, "max_seq_len": 16, "reversible": True, **SIZES, **DROPS}
    forms = {
        "padded": ({}, {"mask": torch.arange(9) < torch.tensor([[9], [5]]), "window": 4}),
        "left-padded": ({"shift_tokens": 1}, {"seq_start_pos": torch.tensor([0, 4])}),
        "packed": ({"rel_pos_bias": True}, {"seq_lens": [[4, 5], [3, 2, 2]]}),
        "prefixed": ({"model": "prefix_decoder", "rel_pos_bias": True}, {"prefix_attn_len": 3}),
        "masked": ({"model": "encoder"}, {"attn_mask": torch.rand(9, 9) < 0.8}),
    }
    for flags, how in forms.values():
        found = []
        for reference in (False, True):
            torch.manual_seed(2)
            model = flagformer.build({**sizes, **flags}).double()
            if reference:
                plain(model.attn_layers)
            model(ids, **how).square().sum().backward()
            found.append([p.grad for p in model.parameters()])
        assert error(*found) < 1e-12


def test_vision():
    flags = {"model": "vit", "image_size": 8, "patch_size": 4, "num_classes": 3, "reversible": True, **SIZES}
    found = []
    for reference in (False, True):
        torch.manual_seed(2)
        model = flagformer.build(flags).double()
        if reference:
            plain(model.attn_layers)
        model(torch.randn(2, 3, 8, 8, dtype=torch.float64)).square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    assert error(*found) < 1e-12


def test_two_streams_follow_the_formula():
    """x[i + 1] = x[i - 1] + f_i(x[i]) from x[-1] = x[0] = x; the output is the mean of the last two."""
    layers = decoder(depth=2).double().eval()
    (x,) = inputs(layers, torch.float64)
    seen = []
    for sublayer in layers.sublayers:
        sublayer.fn.register_forward_hook(lambda _, __, out: seen.append(out))
    got = layers(x)
    first = x + seen[0]
    second = x + seen[1]
    third = first + seen[2]
    fourth = second + seen[3]
    torch.testing.assert_close(got, layers.final_norm((third + fourth) / 2), rtol=0, atol=1e-12)
    norms = [sublayer.in_norm for sublayer in layers.sublayers]
    fed = layers.sublayers[3].fn.compute(norms[3](third))
    torch.testing.assert_close(fed, seen[3], rtol=0, atol=1e-12)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16 autocast"])
def test_losses_and_draws_inside_a_sublayer(autocast):
    """Collected losses are outputs with gradients; each is collected and counted once."""
    layers = busy_decoder()
    out, grads, draws = trained(layers, torch.float32, autocast)
    reference = plain(busy_decoder())
    wanted_out, wanted, wanted_draws = trained(reference, torch.float32, autocast)
    assert torch.equal(out, wanted_out)
    assert error(grads, wanted) < (1e-2 if autocast else 1e-5)
    assert torch.equal(draws, wanted_draws)
    for one, other in zip(layers.modules(), reference.modules()):
        if isinstance(one, Busy):
            assert one.counted == other.counted == 1, "a recomputation does not count as a forward"
            assert torch.equal(one.seen, other.seen)
    collector = OutputCollector()
    layers(*inputs(layers, torch.float32), collector=collector)
    assert {name: len(values) for name, values in collector.losses.items()} == {
        "busy.balance": 3,
        "busy.size": 3,
    }


def test_losses_without_output_have_gradients():
    """A backward of the losses only still reconstructs the streams."""
    found = []
    for layers in (busy_decoder().double(), plain(busy_decoder().double())):
        (x,) = inputs(layers, torch.float64)
        torch.manual_seed(1)
        collector = OutputCollector()
        layers(x, collector=collector)
        collector.losses["busy.size"][1].backward()
        found.append([x.grad, *(p.grad for p in layers.parameters())])
    assert sum(one is None for one in found[1]) > 0
    whole = [[torch.zeros(()) if one is None else one for one in many] for many in found]
    assert error(*whole) < 1e-12


def test_bf16_autocast_is_close():
    """Compared with the same two streams under the same autocast."""
    flags = {**DROPS, **BIASES, "depth": 12}
    _, grads, _ = trained(decoder(**flags), torch.float32, autocast=True)
    _, wanted, _ = trained(plain(decoder(**flags)), torch.float32, autocast=True)
    joined, other = (torch.cat([one.flatten() for one in many]) for many in (grads, wanted))
    assert (joined - other).norm() / other.norm() < 1e-2


@pytest.mark.parametrize("how", ["fp32", "bf16 autocast", "bf16 model", "fp64"])
def test_exact_streams_are_reconstructed_bit_by_bit(how):
    """Sublayer inputs of the recomputation equal those of the forward, and so do all gradients."""
    dtype = {"fp64": torch.float64, "bf16 model": torch.bfloat16}.get(how, torch.float32)
    flags = {**DROPS, **BIASES, "depth": 12, "reversible_exact": True}
    layers = decoder(**flags).to(dtype)
    seen = []
    for sublayer in layers.sublayers:
        sublayer.register_forward_pre_hook(lambda _, given: seen.append(given[0].read.detach().clone()))
    _, grads, _ = trained(layers, dtype, autocast=how == "bf16 autocast")
    count = len(seen) // 2
    assert count == len(layers.sublayers)
    assert all(torch.equal(one, other) for one, other in zip(seen[:count], seen[: count - 1 : -1]))
    # a cached cast sums the bf16 gradients of shared parameters, in sequential order only
    reference = plain(decoder(**flags).to(dtype))
    _, wanted, _ = trained(reference, dtype, autocast=how == "bf16 autocast", cache=False)
    # sums over sublayers in another order
    assert error(grads, wanted) < {torch.float64: 1e-14, torch.float32: 1e-6}.get(dtype, 4e-2)


def test_exact_streams_that_grow_too_large_are_refused():
    layers = decoder(reversible_exact=True)
    with pytest.raises(RuntimeError, match=r"reversible_exact.*1024"):
        layers(3e5 * torch.randn(2, 7, 16)).sum().backward()


def test_gradcheck():
    """Input, context, the bias of all layers, a collected loss, and every parameter."""
    torch.manual_seed(0)
    layers = Decoder(
        dim=4,
        depth=2,
        heads=2,
        attn_dim_head=2,
        reversible=True,
        rel_pos_bias=True,
        cross_attend=True,
        ff_mult=1.0,
    ).double()
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    layers.sublayers[2].fn.register_forward_hook(_leave_loss)
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    context = torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True)

    def function(x, context, *parameters):
        collector = OutputCollector()
        out = layers(x, context=context, collector=collector)
        return out, collector.losses["test"][0]

    assert torch.autograd.gradcheck(function, (x, context, *layers.parameters()))


def _leave_loss(module, given, out):
    given[1].collector.add_loss("test", out.square().mean())


def test_encoder_and_decoder_in_one_backward():
    """Losses on both sides, one backward, and the encoder runs backward once."""
    found = []
    for prepare in (lambda layers: layers, plain):
        encoder = prepare(_half(Encoder)).double()
        decoder = prepare(_half(Decoder, cross_attend=True, depth=4)).double()
        source, x = inputs(encoder, torch.float64)[0], inputs(decoder, torch.float64)[0]
        runs = []
        for sublayer in encoder.sublayers:
            sublayer.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        torch.manual_seed(3)
        collectors = OutputCollector(), OutputCollector()
        out = decoder(x, context=encoder(source, collector=collectors[0]), collector=collectors[1])
        losses = [
            value for collector in collectors for values in collector.losses.values() for value in values
        ]
        (out.sin().sum() + 0.5 * sum(losses)).backward()
        found.append([one.grad for one in (source, x, *encoder.parameters(), *decoder.parameters())])
        if prepare is not plain:
            assert len(runs) == 2 * len(encoder.sublayers), "one forward and one recomputation"
    assert error(*found) < 1e-12


def _half(kind, **flags):
    torch.manual_seed(4)
    return kind(
        **{**SIZES, "attn_dropout": 0.2, "reversible": True, "feedforward": flagformer.Spec(Busy), **flags}
    )


def test_xtransformer_with_reversible_halves():
    flags = {
        "dim": 16, "enc_num_tokens": 11, "enc_max_seq_len": 8, "enc_depth": 2, "enc_heads": 2,
        "dec_num_tokens": 13, "dec_max_seq_len": 8, "dec_depth": 3, "dec_heads": 2, "dec_ff_dropout": 0.2,
        "enc_reversible": True, "dec_reversible": True, "enc_rel_pos_bias": True,
    }  # fmt: skip
    found = []
    for reference in (False, True):
        torch.manual_seed(2)
        model = flagformer.XTransformer(**flags).double()
        if reference:
            plain(model.encoder.attn_layers)
            plain(model.decoder.net.attn_layers)
        src, tgt = torch.randint(11, (2, 6)), torch.randint(13, (2, 7))
        torch.manual_seed(5)
        model(src, tgt, mask=torch.arange(6) < torch.tensor([[6], [3]])).backward()
        found.append([p.grad for p in model.parameters()])
    # the loss of a model in fp64 is computed in fp32
    assert error(*found) < 1e-6
    with pytest.raises(flagformer.FlagError, match="`dec_reversible` and `dec_pre_norm=False`"):
        flagformer.XTransformer(**flags, dec_pre_norm=False)


class Table(nn.Module):
    """Frozen embeddings before a stack."""

    def __init__(self, layers):
        super().__init__()
        self.table, self.layers = nn.Embedding(11, 16).requires_grad_(False), layers

    def forward(self, ids):
        return self.layers(self.table(ids))


def test_frozen_embeddings_and_sublayers():
    ids = torch.randint(11, (2, 7), generator=torch.Generator().manual_seed(2))
    found = []
    for layers in (decoder(), plain(decoder())):
        layers.sublayers[0].requires_grad_(False)
        layers.sublayers[3].requires_grad_(False)
        torch.manual_seed(3)
        model = Table(layers).double()
        model(ids).square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    assert sum(one is not None for one in found[1]) > 5
    assert error(*found) < 1e-12


def test_eval_mode_has_gradients():
    _, grads, _ = trained(decoder(**DROPS).double().eval(), torch.float64)
    _, wanted, _ = trained(plain(decoder(**DROPS).double().eval()), torch.float64)
    assert error(grads, wanted) < 1e-12


def test_it_runs_without_gradients():
    layers = decoder().requires_grad_(False)
    x = torch.randn(2, 7, 16)
    assert torch.equal(layers(x), plain(layers)(x))
