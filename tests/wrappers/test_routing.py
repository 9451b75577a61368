"""Routing transformers by the names of routing-transformer: every name has an effect or is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flagformer
from flagformer import FlagError, RoutingTransformer, RoutingTransformerEncDec, RoutingTransformerLM
from flagformer.attention.cores.kmeans import KMeans

SIZES = {"dim": 16, "depth": 2, "max_seq_len": 32, "heads": 4, "window_size": 4}
LM = {**SIZES, "num_tokens": 23, "dim_head": 8}
HALF = {"num_tokens": 23, "depth": 1, "max_seq_len": 32, "heads": 2, "dim_head": 8, "window_size": 8}
PAIR = {"dim": 16, **{f"{prefix}_{name}": value for prefix in ("enc", "dec") for name, value in HALF.items()}}


def ids(rows=2, length=12, seed=1):
    return torch.randint(23, (rows, length), generator=torch.Generator().manual_seed(seed))


def lm(**flags):
    torch.manual_seed(0)
    return RoutingTransformerLM(**{**LM, **flags})


def refused(make, **flags):
    with pytest.raises(FlagError) as caught:
        make(**flags)
    return str(caught.value)


def test_return_forms():
    model = lm(causal=True)
    logits, loss = model.train()(ids())
    assert logits.shape == (2, 12, 23)
    assert loss.shape == ()
    assert loss > 0
    assert model.eval()(ids())[1] == 0
    vectors, loss = RoutingTransformer(**SIZES, causal=True).train()(torch.randn(2, 7, 16))
    assert vectors.shape == (2, 7, 16)
    assert loss > 0
    embedded, _ = lm(return_embeddings=True)(ids())
    assert embedded.shape == (2, 12, 16)


def test_one_cluster_a_window_by_default():
    def counts(**flags):
        return [module.count for module in lm(**flags).modules() if isinstance(module, KMeans)]

    assert counts() == [8, 8]
    assert counts(num_clusters=3) == [3, 3]
    assert counts(n_local_attn_heads=(4, 2)) == [8]
    assert counts(n_local_attn_heads=4) == []


ACTS = {
    "causal": True, "local_attn_radius_blocks": 2, "emb_dim": 12, "weight_tie": True, "ff_mult": 2,
    "ff_glu": True, "ff_activation": nn.SiLU, "num_mem_kv": 2, "shared_qk": True, "use_scale_norm": True,
    "tie_embedding": True, "use_absolute_pos_emb": True, "shift_tokens": True, "rel_pos_emb": False,
    "pkm_layers": (2,), "moe_layers": (1,), "n_local_attn_heads": 4, "local_attn_window_size": 2,
}  # fmt: skip
WITH = {
    "local_attn_radius_blocks": {"n_local_attn_heads": 2},
    "local_attn_window_size": {"n_local_attn_heads": 2},
}


@pytest.mark.parametrize("name", ACTS)
def test_every_name_changes_the_model(name):
    extra = WITH.get(name, {})
    torch.manual_seed(3)
    with_it, without = (lm(**flags).eval() for flags in ({**extra, name: ACTS[name]}, extra))
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (with_it, without)]
    if shapes[0] == shapes[1]:
        for model in (with_it, without):
            model.load_state_dict(without.state_dict())
        assert (with_it(ids())[0] - without(ids())[0]).abs().max() > 1e-5


def test_a_context_is_routed_if_its_window_is_given():
    """With as many clusters as self-attention; one set of weights for queries and keys on request."""
    torch.manual_seed(0)
    whole, routed, tied = (
        lm(causal=True, receives_context=True, **flags).eval()
        for flags in ({}, {"context_window_size": 2}, {"context_window_size": 2, "context_shared_qk": True})
    )
    counts = [module.count for module in routed.modules() if isinstance(module, KMeans)]
    assert counts == [8] * 4
    context = torch.randn(2, 9, 16)
    routed.load_state_dict(whole.state_dict(), strict=False)
    assert (routed(ids(), context=context)[0] - whole(ids(), context=context)[0]).abs().max() > 1e-5
    assert (
        sum(p.numel() for p in tied.parameters()) == sum(p.numel() for p in routed.parameters()) - 2 * 16 * 32
    )


@pytest.mark.parametrize("name", ["attn_dropout", "ff_dropout", "layer_dropout"])
def test_dropouts_act_in_training_only(name):
    model = lm(**{name: 0.5})
    assert torch.equal(model.eval()(ids())[0], model(ids())[0])
    assert not torch.equal(model.train()(ids())[0], model(ids())[0])


@pytest.mark.parametrize(("name", "value"), [("kmeans_ema_decay", 0.5), ("commitment_factor", 0.1)])
def test_settings_of_kmeans_reach_it(name, value):
    model = lm(**{name: value})
    attribute = {"kmeans_ema_decay": "decay", "commitment_factor": "commitment"}[name]
    found = {getattr(module, attribute) for module in model.modules() if isinstance(module, KMeans)}
    assert found == {value}


def test_experts_and_keys_have_the_given_counts():
    model = lm(pkm_layers=(1,), pkm_num_keys=5, moe_layers=(2,), moe_num_experts=3, moe_loss_coef=0.5)
    first, second = (s.fn for s in model.net.attn_layers.sublayers if s.kind == "f")
    assert first.memory.num_keys == 5
    assert (len(second.w_in.weight), second.losses.balance) == (3, 0.5)


def test_any_other_flag_can_be_added():
    model = lm(attn_qk_norm=True, attn_qk_norm_dim_scale=True, use_rmsnorm=True)
    assert model.net.flags["attn_qk_norm_dim_scale"]
    again = flagformer.build(model.net.flags)
    again.load_state_dict(model.net.state_dict())
    assert torch.equal(again.eval()(ids()), model.eval()(ids())[0]), "a routing model is a set of flags"


REFUSALS = {
    "max_seq_len": (33, "`max_seq_len` must be a multiple of `window_size` = 4"),
    "n_local_attn_heads": (5, "`n_local_attn_heads` must be at most `heads` = 4"),
    "context_window_size": (8, "set `receives_context=True` too"),
    "context_shared_qk": (True, "needs cross-attention"),
    "heads": (0, "`heads` must be"),
    "attn_layer_dropout": (0.1, "`layer_dropout`"),
    "use_rezero": (True, "`use_layerscale`"),
    "_register_kmeans_update": (True, "`update_kmeans()`"),
    "windw_size": (4, "did you mean `window_size`?"),
    "pkm_layers": ((3,), "from 1 to `depth` = 2"),
    "moe_layers": ((0,), "from 1 to `depth` = 2"),
    "dim_head": (0, "`dim_head` must be at least 1"),
    "window_size": (0, "`window_size` must be a whole number of at least 1"),
    "attn_dim_head": (8, "both set the same flag"),
    "num_mem_kv": (-1, "`num_mem_kv` must be at least 0"),
    "kmeans_ema_decay": (1.0, "must be below 1"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_invalid_values_are_refused_by_name(name):
    value, words = REFUSALS[name]
    text = refused(lm, **{name: value})
    assert f"`{name}`" in text
    assert words in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"moe_num_experts": 3}, "it is a parameter of `moe_layers`, which is not set"),
        ({"pkm_num_keys": 3}, "it is a parameter of `pkm_layers`, which is not set"),
        ({"moe_layers": (1,), "pkm_layers": (1,)}, "`pkm_layers` and `moe_layers` cannot be combined"),
        ({"ff_moe": True, "ff_pkm": True}, "`ff_pkm` and `ff_moe` cannot be combined"),
        ({"ff_moe": True, "moe_layers": (1,)}, "both set the same flag"),
        ({"ff_activation": 3}, "`ff_activation` must be a Spec"),
        ({"moe_layers": 0}, "`moe_layers` must hold layers from 1"),
        ({"causal": "yes"}, "`causal` must be bool, but is 'yes'"),
        ({"shift_tokens": (1, 0)}, "`shift_tokens` has 2 values for 4 sublayers"),
        ({"shift_tokens": "a"}, "`shift_tokens` must be int"),
        ({"local_attn_window_size": 0, "n_local_attn_heads": 1}, "`local_attn_window_size` must be at least"),
        ({"reversible": 0}, "`reversible` must be bool"),
    ],
)
def test_messages_name_flags_as_given(flags, words):
    assert words in refused(lm, **flags)


def test_dim_head_none_is_not_the_default():
    assert "`dim_head` must be at least 1, but is 0" in refused(RoutingTransformer, **SIZES, dim_head=0)


def test_token_shift_in_every_layer():
    for given in ((1, 0, 1, 0), [True, False, True, False]):
        sublayers = lm(shift_tokens=given).net.attn_layers.sublayers
        shifts = [type(sublayer.input_mixer).__name__ == "TokenShift" for sublayer in sublayers]
        assert shifts == [True, False, True, False]


def test_all_mistakes_in_one_error():
    text = refused(lm, max_seq_len=33, use_rezero=True, bogus=1)
    assert text.startswith("3 flags")
    assert "`num_tokens` is required" in refused(RoutingTransformerLM, **SIZES)
    assert "`depth` is required" in refused(RoutingTransformer, dim=16, max_seq_len=32)
    assert "`num_tokens` is for RoutingTransformerLM" in refused(RoutingTransformer, **SIZES, num_tokens=4)
    assert "`dim` must be a multiple of `heads` = 3" in refused(RoutingTransformer, **{**SIZES, "heads": 3})
    assert "`kmeans_ema_decay` has no effect" in refused(lm, n_local_attn_heads=4, kmeans_ema_decay=0.5)


def test_masked_tokens_and_odd_lengths():
    """No length need be a multiple of the window, and masked tokens change nothing."""
    model = lm(n_local_attn_heads=2, causal=True).eval()
    mask = torch.arange(13) < torch.tensor([[13], [9]])
    with torch.no_grad():
        padded, _ = model(ids(2, 13), input_mask=mask)
        alone, _ = model(ids(2, 13)[1:, :9])
    assert torch.allclose(padded[1:, :9], alone, atol=1e-5)


def test_decoding_is_incremental_and_equals_uncached():
    model = lm(n_local_attn_heads=2, causal=True)
    draws = [model.generate(ids(2, 5), 20, temperature=0, cache_kv=cached) for cached in (True, False)]
    assert torch.equal(*draws)


def test_a_language_model_learns():
    model = lm(causal=True, n_local_attn_heads=2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = torch.arange(23).repeat(2)[None, :32].repeat(4, 1)
    losses = []
    for _ in range(30):
        loss = model.loss(rows)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_kmeans()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_one_backward_trains_both_halves():
    torch.manual_seed(0)
    model = RoutingTransformerEncDec(**PAIR, enc_commitment_factor=1.0).train()
    loss, rest = model(ids(), ids(seed=2), return_loss=True)
    assert rest == 0
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    logits, _ = model(ids(), ids(seed=2))
    assert logits.shape == (2, 12, 23)
    entropy = F.cross_entropy(
        model(ids(), ids(seed=2)[:, :-1])[0].flatten(0, 1), ids(seed=2)[:, 1:].flatten(), ignore_index=0
    )
    _, of_inputs = model(ids(), ids(seed=2)[:, :-1])
    assert torch.allclose(loss, entropy + of_inputs, atol=1e-5)
    before = [module.means.clone() for module in model.modules() if isinstance(module, KMeans)]
    model.update_kmeans()
    after = [module.means for module in model.modules() if isinstance(module, KMeans)]
    assert not any(torch.equal(one, other) for one, other in zip(before, after))


def test_masks_of_both_halves():
    torch.manual_seed(0)
    model = RoutingTransformerEncDec(**PAIR).eval()
    mask = torch.arange(12) < torch.tensor([[12], [7]])
    got, _ = model(ids(), ids(seed=2), return_loss=True, enc_input_mask=mask, dec_input_mask=mask)
    rows = [
        model(ids()[row : row + 1, :length], ids(seed=2)[row : row + 1, :length], return_loss=True)[0]
        for row, length in ((0, 12), (1, 7))
    ]
    counts = [int((ids(seed=2)[row, 1:length] != 0).sum()) for row, length in ((0, 12), (1, 7))]
    want = sum(count * loss for count, loss in zip(counts, rows)) / sum(counts)
    assert torch.allclose(got, want, atol=1e-5)


def test_random_lengths_and_generation():
    torch.manual_seed(0)
    model = RoutingTransformerEncDec(**PAIR)
    losses = {
        round(model(ids(), ids(seed=2), return_loss=True, randomly_truncate_sequence=True)[0].item(), 4)
        for _ in range(8)
    }
    assert len(losses) > 2
    with pytest.raises(ValueError, match="`randomly_truncate_sequence` needs"):
        model(ids(), ids(), randomly_truncate_sequence=True)
    new = model.generate(ids(), ids(2, 1), 6, temperature=0)
    assert new.shape == (2, 6)
    assert torch.equal(new, model.generate(ids(), ids(2, 1), 6, temperature=0, cache_kv=False))
    assert model.generate(ids(), ids(2, 1)).shape == (2, 32)


def test_flags_of_halves_are_named_as_given():
    make = RoutingTransformerEncDec
    assert "did you mean `enc_window_size`?" in refused(make, **PAIR, enc_windw_size=4)
    assert "`dec_max_seq_len` must be a multiple of `dec_window_size` = 8" in refused(
        make, **{**PAIR, "dec_max_seq_len": 33}
    )
    assert "`dec_causal` cannot be given" in refused(make, **PAIR, dec_causal=True)
    assert "`enc_receives_context` cannot be given" in refused(make, **PAIR, enc_receives_context=True)
    assert "`heads` is not a flag of RoutingTransformerEncDec" in refused(make, **PAIR, heads=3)
    assert "`enc_dim_head` must be at least 1" in refused(make, **{**PAIR, "enc_dim_head": 0})
    text = refused(make, **{**PAIR, "enc_dim_head": 0}, dec_use_rezero=True, bogus=1)
    assert text.startswith("3 flags")
    assert "did you mean `dec_n_local_attn_heads`?" in refused(make, **PAIR, dec_n_local_atn_heads=1)


def test_windows_beyond_the_row_and_contexts_of_another_dim():
    """A window larger than the row covers it; a context must have the expected dim."""
    short = ids(length=3)
    with torch.no_grad():
        wide = lm(causal=True, window_size=32, n_local_attn_heads=2).eval()
        state = wide.net.init_state(2, 3)
        steps = [wide.net(short[:, at : at + 1], state=state) for at in range(3)]
        assert torch.allclose(torch.cat(steps, dim=1), wide(short)[0], atol=1e-5)
    model = lm(causal=True, receives_context=True, context_window_size=8)
    with pytest.raises(ValueError, match=r"`context` must have shape \[2, S, 16\], but has \[2, 5, 12\]"):
        model(short, context=torch.randn(2, 5, 12))
    assert model(short, context=torch.randn(2, 5, 16))[0].shape == (2, 3, 23), "fewer than a window"
