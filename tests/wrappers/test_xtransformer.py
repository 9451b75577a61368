"""XTransformer: the loss, which flags reach which half, generation, storage, parity."""

import copy
import logging
import pickle

import pytest
import torch
import x_transformers as peer

import flagformer
from flagformer.interop.x_transformers import load_x_transformers
from flagformer.lab.reference import choices
from flagformer.ops.drop import keep_some
from perturbed_models import perturbed

HALF = {"num_tokens": 13, "max_seq_len": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
# fp32 sums of magnitude about 1 in another order
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def both(**flags):
    sizes = {prefix + name: value for prefix in ("enc_", "dec_") for name, value in HALF.items()}
    return {"model": "xtransformer", "dim": 16, **sizes, **flags}


def build(**flags):
    return perturbed(both(**flags)).eval()


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(13, (3, 7), generator=generator), torch.randint(13, (3, 6), generator=generator)


def findings(**flags):
    with pytest.raises(flagformer.FlagError) as error:
        flagformer.check(both(**flags))
    return {finding.flag: finding.message for finding in error.value.findings}


def test_loss_is_the_decoders_mean_nats_given_the_encoder(pair):
    model, (src, tgt) = build(), pair
    tgt[1, 4:] = -100
    encoded = model.encoder(src)
    assert encoded.shape == (3, 7, 16)
    read = tgt[:, :-1].clamp(min=0)
    logs = model.decoder.net(read, context=encoded).log_softmax(-1)
    nats = [-logs[row, t, tgt[row, t + 1]] for row in range(3) for t in range(5) if tgt[row, t + 1] >= 0]
    torch.testing.assert_close(model(src, tgt), torch.stack(nats).mean(), **CLOSE)


def test_every_parameter_is_trained(pair):
    for flags in ({}, {"tie_token_emb": True}):
        model = build(**flags).train()
        model(*pair).backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_source_padding_changes_nothing(pair):
    model, (src, tgt) = build(enc_rel_pos_bias=True), pair
    mask = torch.arange(7) < torch.tensor([[7], [4], [2]])
    got = [model(src[i : i + 1], tgt[i : i + 1], mask=mask[i : i + 1]) for i in range(3)]
    for row, length in enumerate((7, 4, 2)):
        alone = model(src[row : row + 1, :length], tgt[row : row + 1])
        torch.testing.assert_close(got[row], alone, **CLOSE)
    torch.testing.assert_close(model(src, tgt, mask=mask), torch.stack(got).mean(), **CLOSE)
    assert (model(src, tgt) - model(src, tgt, mask=mask)).abs() > 1e-4


def test_target_mask_and_encoder_mask(pair):
    model, (src, tgt) = build(), pair
    real = torch.arange(6) < 4
    short = model(src, tgt[:, :4])
    torch.testing.assert_close(model(src, tgt, tgt_mask=real.expand(3, 6)), short, **CLOSE)
    own = torch.eye(7, dtype=torch.bool)
    assert (model(src, tgt, attn_mask=own) - model(src, tgt)).abs() > 1e-4


NOT_OF_A_HALF = {
    "tie_embedding", "return_only_embed", "cross_attn_tokens_dropout", "max_mem_len", "num_memory_slots",
}  # fmt: skip
REACHING = [
    choice for choice in choices()
    if choice.component is not None and not NOT_OF_A_HALF & set(choice.flags)
]  # fmt: skip


@pytest.mark.parametrize("choice", REACHING, ids=lambda choice: choice.name)
@pytest.mark.parametrize("prefix", ["enc_", "dec_"])
def test_every_flag_reaches_its_half(choice, prefix, pair):
    # a decoder always attends to the encoder, and refuses the flag for it
    given = {
        name: value
        for name, value in {**choice.extra, **choice.flags}.items()
        if (prefix, name) != ("dec_", "cross_attend")
    }
    needs = {need.flag for need in choice.component.requires}
    if prefix == "enc_" and ("causal" in needs or "cross_attend" in given):
        with pytest.raises(flagformer.FlagError, match="enc_"):
            build(**{prefix + name: value for name, value in given.items()})
        return
    model = build(**{prefix + name: value for name, value in given.items()})
    halves = {"enc_": model.encoder, "dec_": model.decoder.net}
    for name, half in halves.items():
        in_it = all(half.flags.get(flag) == value for flag, value in given.items())
        said = [n for n in given if n not in ("use_abs_pos_emb",)]
        assert in_it == (name == prefix) or not said
    assert choice.component.name in halves[prefix].explain()
    assert model(*pair).isfinite()
    assert flagformer.build(model.flags).flags == model.flags


@pytest.mark.parametrize(
    ("flags", "flag", "says"),
    [
        ({"depth": 3}, "depth", "`depth` must have a prefix for its half: `enc_depth`, `dec_depth` or both"),
        ({"en_depth": 3}, "en_depth", "did you mean `enc_depth`?"),
        ({"tie_token_embb": True}, "tie_token_embb", "did you mean `tie_token_emb`?"),
        ({"enc_rotary_pos_em": True}, "enc_rotary_pos_em", "did you mean `enc_rotary_pos_emb`?"),
        ({"dec_ff_mult": 0}, "dec_ff_mult", "`dec_ff_mult` must be at least"),
        ({"dec_attn_kv_heads": 3}, "dec_attn_kv_heads", "must divide `dec_heads` = 2, but is 3"),
        ({"enc_dim": 8}, "enc_dim", "`enc_dim` cannot be given, because both halves have one width"),
        ({"enc_cross_attend": True}, "enc_cross_attend", "because the encoder reads only the source"),
        ({"enc_custom_layers": "acf", "enc_depth": None}, "enc_custom_layers", "must hold no 'c'"),
        ({"dec_custom_layers": "af", "dec_depth": None}, "dec_custom_layers", "must hold a 'c'"),
        ({"dec_cross_attn_dim_context": 8}, "dec_cross_attn_dim_context", "output, of width `dim`"),
        ({"tie_token_emb": True, "enc_num_tokens": 9}, "tie_token_emb", "`enc_num_tokens` is 9"),
        ({"cross_attn_tokens_dropout": 1.0}, "cross_attn_tokens_dropout", "must be below 1, but is 1.0"),
        ({"ignore_index": 0.5}, "ignore_index", "must be int, but is 0.5"),
        ({"dim": -1}, "dim", "`dim` must be at least 1, but is -1"),
    ],
)
def test_mistakes_are_named_as_given(flags, flag, says):
    found = findings(**flags)
    assert says in found[flag]


def test_all_mistakes_are_in_one_error():
    found = findings(depth=1, enc_rotary_pos_em=True, dec_ff_glue=True)
    assert set(found) == {"depth", "enc_rotary_pos_em", "dec_ff_glue"}
    with pytest.raises(flagformer.FlagError, match="`dim` is required"):
        flagformer.build({"model": "xtransformer"})


FLAGS = {
    "learned": {},
    "rotary": {"enc_rotary_pos_emb": True, "dec_rotary_pos_emb": True},
    "t5": {"enc_rel_pos_bias": True, "dec_rel_pos_bias": True, "dec_attn_kv_heads": 1},
    "alibi with memory": {
        "dec_alibi_pos_bias": True,
        "dec_attn_num_mem_kv": 2,
        "dec_cross_attn_num_mem_kv": 1,
    },
}
STARTS = [[3, 1, 4], [1], [5, 9]]


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_cached_generation_equals_uncached_and_the_forward(flags, pair):
    model, (src, _) = build(**flags), pair
    mask = torch.arange(7) < torch.tensor([[7], [4], [2]])
    how = {"temperature": 0, "mask": mask}
    new = model.generate(src, STARTS, 10, **how)
    assert torch.equal(new, model.generate(src, STARTS, 10, cache_kv=False, **how))
    for row, start in enumerate(STARTS):
        alone = model.generate(src[row : row + 1], start, 10, temperature=0, mask=mask[row : row + 1])
        assert torch.equal(new[row], alone)
        text = torch.cat([torch.tensor(start), alone])[None]
        encoded = model.encode(src[row : row + 1], mask[row : row + 1])
        side = {"context": encoded, "context_mask": mask[row : row + 1]}
        want = model.decoder.net(text[:, :-1], **side)[0, len(start) - 1 :].argmax(-1)
        assert torch.equal(alone, want)


def test_the_source_is_encoded_once(pair):
    model, (src, _) = build(), pair
    calls = []
    for name, module in model.named_modules():
        if name.endswith("to_kv") or name == "encoder":
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    model.generate(src, STARTS, 5)
    assert len(calls) == 3  # the encoder, and the context's keys of two layers


def test_generation_restores_modes_and_ends_rows(pair):
    model, (src, _) = build().train(), pair
    new = model.generate(src, STARTS, 8, temperature=0)
    assert all(module.training for module in model.modules())
    assert not new.requires_grad
    eos = int(new[0, 2])
    ended = model.generate(src, STARTS, 8, temperature=0, eos_token=eos)[0]
    stop = int((new[0] == eos).nonzero()[0])
    assert torch.equal(ended[: stop + 1], new[0, : stop + 1])
    assert not ended[stop + 1 :].any()


@pytest.mark.parametrize("mask", [torch.ones(3, 6, dtype=torch.bool), torch.ones(3, 7)])
def test_a_wrong_mask_is_named(mask, pair):
    with pytest.raises(ValueError, match="`mask` must"):
        build().generate(pair[0], STARTS, 2, mask=mask)


@pytest.mark.parametrize("tied", [False, True])
def test_copies_and_files_preserve_the_model(tied, tmp_path, pair):
    model = build(tie_token_emb=tied, dec_tie_embedding=True)
    want = model(*pair).detach()
    model.save(tmp_path)
    made = [flagformer.load(tmp_path).eval(), copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in made:
        assert torch.equal(other(*pair), want)
        assert (other.encoder.token_emb is other.decoder.net.token_emb) == tied
        assert other.flags == model.flags
        assert other.num_params() == model.num_params()
        with torch.no_grad():
            other.encoder.token_emb.weight.add_(1)
    assert torch.equal(model(*pair), want)


def test_tied_tokens_count_once():
    free, tied = build(), build(tie_token_emb=True)
    assert free.num_params() - tied.num_params() == 13 * 16
    assert free.num_params(embedding=False) == tied.num_params(embedding=False)
    assert "one token embedding" in tied.explain()


def test_masked_source_tokens():
    real = torch.arange(12) < torch.tensor([[12], [5], [1]])
    kept = torch.stack([keep_some(real, 0.5) for _ in range(200)])
    assert not (kept & ~real).any()
    assert kept.sum(-1).eq(torch.tensor([6, 2, 1])).all()
    assert kept[:, 0].float().mean(0).sub(0.5).abs().max() < 0.2  # 200 samples: five standard errors are 0.18


def test_source_dropout_acts_in_training_only(pair):
    model = build(cross_attn_tokens_dropout=0.5)
    assert torch.equal(model(*pair), model(*pair))
    model.train()
    assert len({model(*pair).item() for _ in range(5)}) > 1


@pytest.mark.parametrize("tied", [False, True])
def test_parity_with_the_peer(tied, pair):
    logging.getLogger("x_transformers").setLevel(logging.ERROR)
    sizes = {prefix + name: value for prefix in ("enc_", "dec_") for name, value in HALF.items()}
    theirs = peer.XTransformer(dim=16, tie_token_emb=tied, **sizes).eval()
    ours = build(tie_token_emb=tied)
    load_x_transformers(theirs.encoder, ours.encoder)
    load_x_transformers(theirs.decoder.net, ours.decoder.net)
    mask = torch.arange(7) < torch.tensor([[7], [4], [2]])
    torch.testing.assert_close(ours(*pair, mask=mask), theirs(*pair, mask=mask), **CLOSE)


def test_a_model_without_logits_has_no_loss():
    with pytest.raises(ValueError, match="`net` must give logits"):
        flagformer.AutoregressiveWrapper(
            flagformer.build(
                {"dim": 16, "depth": 1, "num_tokens": 5, "max_seq_len": 4, "return_only_embed": True}
            )
        )
