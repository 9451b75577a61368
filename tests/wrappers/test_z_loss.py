"""The z-loss of attention: its formula, every way to request it, and it is never dropped."""

import pytest
import torch
import x_transformers as peer
from torch.nn import functional as F

import flagformer
from flagformer import AutoregressiveWrapper, FlagError, XTransformer
from perturbed_models import perturbed

SIZES = {"num_tokens": 11, "max_seq_len": 16, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
TIGHT = {"rtol": 1e-9, "atol": 1e-9}
FORMS = {
    "fused": {},
    "eager": {"attn_flash": False},
    "learned bias": {"rel_pos_bias": True},
    "prefix kv": {"attn_num_mem_kv": 3},
    "clamped": {"attn_softclamp_logits": True, "attn_logit_softclamp_value": 0.7},
    "residual scores": {"residual_attn": True},
    "cross-attention": {"cross_attend": True},
    "windows": {"attn_max_attend_past": (1, None)},
    "tied": {"weight_tie_layers": True},
    "checkpointed": {"checkpoint": "sublayer"},
    "checkpointed, dropouts": {"checkpoint": "sublayer", "attn_dropout": 0.3, "ff_dropout": 0.3},
    "grouped": {"attn_kv_heads": 1, "rotary_pos_emb": True},
}


def build(**flags):
    return perturbed({**SIZES, **flags}, dtype=torch.float64)


@pytest.fixture
def ids():
    return torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(1))


def context_of(model):
    maker = torch.Generator().manual_seed(2)
    wide = torch.randn(2, 5, 16, generator=maker, dtype=torch.float64)
    return {"context": wide} if model.attn_layers.has_cross else {}


def scores_of(model, ids, **how):
    """The scores of each attention in order of execution, recorded outside: the inputs of its softmax."""
    seen, hooks = [], []
    for sublayer in model.attn_layers.sublayers:
        if sublayer.kind != "f":
            path = sublayer.fn.core.path.normalizer
            hooks.append(path.register_forward_pre_hook(lambda _, given: seen.append(given[0])))
    with torch.no_grad():
        model(ids, return_attn=True, **context_of(model), **how)
    for hook in hooks:
        hook.remove()
    return seen


def by_hand(scores, weight, real):
    """One number at a time: weight * mean over valid queries of the sum over heads of log(sum(exp)) ** 2."""
    total = 0.0
    for layer in scores:
        squares = []
        for row in range(layer.shape[0]):
            for place in range(layer.shape[2]):
                if real[row, place]:
                    logs = [layer[row, head, place].exp().sum().log() for head in range(layer.shape[1])]
                    squares.append(sum(log**2 for log in logs))
        total += weight * sum(squares) / len(squares)
    return total


@pytest.mark.parametrize("form", FORMS)
def test_formula(form, ids):
    model = build(**FORMS[form], attn_z_loss_weight=0.5).eval()
    _, outputs = model(ids, return_attn_z_loss=True, **context_of(model))
    scores = scores_of(model, ids)
    # kernels that compute scores do so twice if maps are requested: once for the map
    want = by_hand(scores[:: len(scores) // len(outputs.losses["attn.z"])], 0.5, torch.ones_like(ids))
    torch.testing.assert_close(outputs.attn_z_loss, want, **TIGHT)


@pytest.mark.parametrize("form", ["fused", "prefix kv", "learned bias"])
def test_padded_queries_do_not_count(form, ids):
    model = build(**FORMS[form], attn_z_loss_weight=0.5).eval()
    alone = [model(ids[row : row + 1, :end], return_attn_z_loss=True)[1] for row, end in ((0, 9), (1, 4))]
    want = (9 * alone[0].attn_z_loss + 4 * alone[1].attn_z_loss) / 13
    right = torch.arange(9) < torch.tensor([[9], [4]])
    torch.testing.assert_close(model(ids, mask=right, return_attn_z_loss=True)[1].attn_z_loss, want, **TIGHT)
    moved = ids.clone()
    moved[1, 5:] = ids[1, :4]
    left = {"seq_start_pos": torch.tensor([0, 5])}
    torch.testing.assert_close(model(moved, **left, return_attn_z_loss=True)[1].attn_z_loss, want, **TIGHT)
    packed = torch.cat([ids[:1], ids[1:, :4]], dim=1)
    got = model(packed, seq_lens=[[9, 4]], return_attn_z_loss=True)[1]
    torch.testing.assert_close(got.attn_z_loss, want, **TIGHT)


def test_queries_without_keys_add_nothing(ids):
    model = build(attn_z_loss_weight=0.5)
    seen = torch.ones(9, 9, dtype=torch.bool)
    seen[3] = False
    _, outputs = model(ids, attn_mask=seen, return_attn_z_loss=True)
    outputs.attn_z_loss.backward()
    assert outputs.attn_z_loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_gradient_follows_the_formula(form, ids):
    """It equals finite differences."""
    model = build(**FORMS[form], attn_z_loss_weight=0.5).eval()
    weight = model.attn_layers.sublayers[0].fn.source.projection.to_qkv.weight
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    _, outputs = model(ids, return_attn_z_loss=True, **context_of(model))
    outputs.attn_z_loss.backward()
    step, losses = 1e-5, []
    with torch.no_grad():
        for sign in (1, -1):
            weight.add_(sign * step * direction)
            losses.append(model(ids, return_attn_z_loss=True, **context_of(model))[1].attn_z_loss)
            weight.add_(-sign * step * direction)
    slope = (losses[0] - losses[1]) / (2 * step)
    # central differences are off by the third derivative times 1e-10, and rounding by 1e-16 / 1e-5
    torch.testing.assert_close((weight.grad * direction).sum(), slope, rtol=1e-6, atol=1e-7)


def test_recomputation_adds_no_loss_and_no_other_gradient(ids):
    results = []
    for unit in (None, "sublayer"):
        model = build(checkpoint=unit, attn_dropout=0.3, attn_z_loss_weight=0.5, cross_attend=True).train()
        torch.manual_seed(5)
        logits, outputs = model(ids, return_attn_z_loss=True, **context_of(model))
        (logits.square().mean() + outputs.attn_z_loss).backward()
        assert len(outputs.losses["attn.z"]) == 4
        results.append([outputs.attn_z_loss.detach(), *(p.grad for p in model.parameters())])
    for one, other in zip(*results):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("layers", "kind"), [(peer.Decoder, "decoder"), (peer.Encoder, "encoder")])
def test_peer_with_one_layer(layers, kind, ids):
    """With one layer x-transformers' sum before the square equals ours."""
    from flagformer.interop.x_transformers import load_x_transformers

    sizes = {"dim": 16, "heads": 2, "attn_dim_head": 8, "depth": 1, "attn_num_mem_kv": 2}
    theirs = peer.TransformerWrapper(
        num_tokens=11, max_seq_len=16, attn_layers=layers(**sizes, verbose=False)
    )
    ours = flagformer.build({**SIZES, **sizes, "model": kind})
    load_x_transformers(theirs, ours)
    _, found = theirs.eval()(ids, return_attn_z_loss=True, attn_z_loss_weight=0.3)
    _, outputs = ours.eval()(ids, return_attn_z_loss=True, attn_z_loss_weight=0.3)
    torch.testing.assert_close(outputs.attn_z_loss, found.attn_z_loss)


def test_every_way_to_give_the_weight(ids):
    plain, built = build().eval(), build(attn_z_loss_weight=0.5).eval()

    def reported(model, **how):
        return model(ids, return_attn_z_loss=True, **how)[1].attn_z_loss.item()

    one = reported(plain, attn_z_loss_weight=1.0)
    assert reported(plain) == pytest.approx(1e-4 * one)
    assert reported(built) == pytest.approx(0.5 * one)
    assert reported(built, attn_z_loss_weight=0.25) == pytest.approx(0.25 * one)
    assert reported(built, attn_z_loss_weight=0) == 0
    assert built(ids, return_intermediates=True)[1].attn_z_loss.item() == pytest.approx(0.5 * one)
    both = built(ids, return_intermediates=True, return_attn_z_loss=True)[1]
    assert both.attn_z_loss.item() == pytest.approx(0.5 * one)
    assert len(both.attention) == 2
    assert built(ids, return_intermediates=True, attn_z_loss_weight=0)[1].attn_z_loss is None
    assert plain(ids, return_intermediates=True)[1].losses == {}
    logits, outputs = plain(ids, return_attn_z_loss=True)
    assert torch.equal(logits, plain(ids))
    assert outputs.attention == ()


@pytest.mark.parametrize("how", [{}, {"return_embeddings": True}, {"return_attn": True}])
def test_a_training_forward_that_would_drop_it_is_refused(how, ids):
    model = build(attn_z_loss_weight=0.5).train()
    with pytest.raises(ValueError, match=r"`attn_z_loss_weight` = 0\.5 would be lost"):
        model(ids, **how)
    model(ids, attn_z_loss_weight=0, **how)
    with torch.no_grad():
        model(ids, **how)
    model.eval()(ids, **how)


@pytest.mark.parametrize("weight", [-1, "1e-4", True, float("nan"), float("inf")])
def test_invalid_weights(weight, ids):
    with pytest.raises(ValueError, match="`attn_z_loss_weight` must be a number of at least 0"):
        build()(ids, return_attn_z_loss=True, attn_z_loss_weight=weight)


def test_a_weight_without_effect_is_refused(ids):
    with pytest.raises(ValueError, match="this form of the call returns no losses"):
        build()(ids, attn_z_loss_weight=0.1)
    with pytest.raises(
        FlagError, match="`attn_z_loss_weight` has no effect here, because this model has no att"
    ):
        build(custom_layers="ff", depth=None, attn_z_loss_weight=0.1)
    for how in ({}, {"attn_z_loss_weight": 0.1}):
        with pytest.raises(ValueError, match="this model has no attention"):
            build(custom_layers="ff", depth=None)(ids, return_attn_z_loss=True, **how)


def test_the_wrapper_adds_it_in_training(ids):
    model = build(attn_z_loss_weight=0.5)
    wrapper = AutoregressiveWrapper(model).train()
    logits, outputs = model(ids[:, :-1], return_attn_z_loss=True)
    entropy = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(wrapper(ids), entropy + outputs.attn_z_loss, check_dtype=False)
    loss, given = wrapper(ids, return_outputs=True)
    torch.testing.assert_close(loss, entropy + given.attn_z_loss)
    torch.testing.assert_close(wrapper.eval()(ids), entropy)
    asked = AutoregressiveWrapper(build(), add_attn_z_loss=True).train()
    torch.testing.assert_close(asked(ids), entropy + outputs.attn_z_loss * (1e-4 / 0.5))
    torch.testing.assert_close(AutoregressiveWrapper(build(), add_attn_z_loss=False).train()(ids), entropy)
    with pytest.raises(ValueError, match="`add_attn_z_loss` must not be False"):
        AutoregressiveWrapper(model, add_attn_z_loss=False)


def test_the_encoder_decoder_adds_both(ids):
    sizes = {
        f"{half}_{name}": value for half in ("enc", "dec") for name, value in SIZES.items() if name != "dim"
    }

    def made(**flags):
        torch.manual_seed(0)
        return XTransformer(dim=16, **sizes, **flags).train()

    loss, outputs = made()(ids, ids, return_outputs=True)
    assert outputs.losses == {}
    counts = {}
    for half in ("enc", "dec"):
        model = made(**{f"{half}_attn_z_loss_weight": 0.5})
        more, outputs = model(ids, ids, return_outputs=True)
        torch.testing.assert_close(more - loss, outputs.attn_z_loss)
        torch.testing.assert_close(model.eval()(ids, ids), loss)
        counts[half] = len(outputs.losses["attn.z"])
    assert counts == {"enc": 2, "dec": 4}, "the decoder has two self- and two cross-attentions"
    both = made(enc_attn_z_loss_weight=0.5, dec_attn_z_loss_weight=0.5)
    assert len(both(ids, ids, return_outputs=True)[1].losses["attn.z"]) == 6
    with pytest.raises(ValueError, match="would be lost"):
        both.encode(ids)


def test_generation_and_saving_still_work(ids, tmp_path):
    model = build(attn_z_loss_weight=0.5, rotary_pos_emb=True)
    plain = build(rotary_pos_emb=True)
    said = [AutoregressiveWrapper(m).generate(ids, 5, temperature=0.0) for m in (model, plain)]
    assert torch.equal(*said)
    model.save(tmp_path)
    assert flagformer.load(tmp_path).attn_z_loss_weight == 0.5


def test_compiled_and_under_autocast(ids):
    model = build(attn_z_loss_weight=0.5).float()
    torch._dynamo.reset()
    want = model(ids, return_attn_z_loss=True)[1].attn_z_loss
    got = torch.compile(model, fullgraph=True, backend="eager")(ids, return_attn_z_loss=True)[1].attn_z_loss
    torch.testing.assert_close(got, want)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(ids, return_attn_z_loss=True)[1].attn_z_loss
    assert low.dtype is torch.float32
    torch.testing.assert_close(low, want, rtol=0.05, atol=0)  # scores have 8 bits


def test_long_inputs_do_not_use_the_table(ids):
    from flagformer.ops.lengths import LONG

    model = build(alibi_pos_bias=True, max_seq_len=LONG, attn_z_loss_weight=0.5).eval()
    long = torch.randint(11, (1, LONG))
    torch.testing.assert_close(model(long, return_attn_z_loss=True)[0], model(long), **TIGHT)
