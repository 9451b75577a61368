"""Dropout of context tokens in training (arXiv:2202.07765)."""

import pytest
import torch

import flagformer

SIZES = {"num_tokens": 11, "max_seq_len": 16, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}


def build(**flags):
    torch.manual_seed(0)
    return flagformer.build({**SIZES, "cross_attend": True, **flags})


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return torch.randint(11, (3, 5)), torch.randn(3, 8, 16)


def seen(model, ids, **how):
    """[B, S] bool for each cross-attention: the valid keys of its kernel."""
    masks, hooks = [], []
    for sublayer in model.attn_layers.sublayers:
        if sublayer.kind == "c":
            hooks.append(
                sublayer.fn.core.kernel.register_forward_pre_hook(
                    lambda _, given: masks.append(given[3].dense().allowed)
                )
            )
    model(ids, **how)
    for hook in hooks:
        hook.remove()
    return [None if mask is None else mask[:, 0, 0] for mask in masks]


def test_a_fraction_of_each_row_is_masked_in_all_layers(inputs):
    ids, context = inputs
    real = torch.arange(8) < torch.tensor([[8], [4], [1]])
    model = build(cross_attn_tokens_dropout=0.5).train()
    drawn = [seen(model, ids, context=context, context_mask=real) for _ in range(20)]
    for first, second in drawn:
        assert torch.equal(first, second), "one draw a forward"
        assert not (first & ~real).any()
        assert first.sum(-1).tolist() == [4, 2, 1], "half of each row, at least one"
    assert len({tuple(first.flatten().tolist()) for first, _ in drawn}) > 10
    assert seen(model, ids, context=context)[0].sum(-1).tolist() == [4, 4, 4]


def test_only_in_training(inputs):
    ids, context = inputs
    dropping, plain = build(cross_attn_tokens_dropout=0.9).eval(), build().eval()
    assert torch.equal(dropping(ids, context=context), plain(ids, context=context))
    assert seen(dropping, ids, context=context) == [None, None]


def test_decoding_attends_to_all(inputs):
    ids, context = inputs
    model = build(cross_attn_tokens_dropout=0.9).train()
    with torch.no_grad():
        got = model(ids, context=context, state=model.init_state(3, 5))
        torch.testing.assert_close(got, model.eval()(ids, context=context))


def test_a_recomputation_drops_the_same_tokens(inputs):
    ids, context = inputs
    results = []
    for unit in (None, "sublayer"):
        model = build(cross_attn_tokens_dropout=0.5, checkpoint=unit).train()
        torch.manual_seed(7)
        loss = model(ids, context=context).square().mean()
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters()), torch.get_rng_state()])
    for one, other in zip(*results):
        assert torch.equal(one, other)


def test_an_invalid_mask(inputs):
    ids, context = inputs
    model = build(cross_attn_tokens_dropout=0.5).train()
    with pytest.raises(ValueError, match="`context_mask` must have shape"):
        model(ids, context=context, context_mask=torch.ones(3, 7, dtype=torch.bool))


def test_needs_cross_attention():
    with pytest.raises(flagformer.FlagError, match="`cross_attn_tokens_dropout` has no effect here, because"):
        flagformer.build({**SIZES, "cross_attn_tokens_dropout": 0.5})


@pytest.mark.parametrize("half", ["enc_", "dec_"])
def test_an_encoder_decoder_has_the_flag_without_prefix(half):
    sizes = {
        f"{part}{name}": value for part in ("enc_", "dec_") for name, value in SIZES.items() if name != "dim"
    }
    whole = flagformer.XTransformer(dim=16, **sizes, cross_attn_tokens_dropout=0.5)
    assert whole.decoder.net.attn_layers.dims.context_dropout == 0.5
    assert flagformer.build(whole.flags).flags == whole.flags
    with pytest.raises(flagformer.FlagError, match=f"`{half}cross_attn_tokens_dropout` cannot be given"):
        flagformer.XTransformer(dim=16, **sizes, **{f"{half}cross_attn_tokens_dropout": 0.5})
