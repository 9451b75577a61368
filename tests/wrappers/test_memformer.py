"""Memformer: forms, masks, flags of both halves, generation, and refusals."""

import pytest
import torch

import flagformer
from flagformer import Memformer

HALF = {"num_tokens": 11, "max_seq_len": 6, "depth": 2, "heads": 2, "attn_dim_head": 8}
SIZES = {"dim": 16, "num_memory_slots": 3}
CLOSE = {"rtol": 0, "atol": 1e-10}


def both(**more):
    return {prefix + name: value for prefix in ("enc_", "dec_") for name, value in {**HALF, **more}.items()}


def make(**flags):
    torch.manual_seed(0)
    model = Memformer(**{**SIZES, **both(), **flags}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def make_encoder(**flags):
    halves = {name: value for name, value in both().items() if name.startswith("enc_")}
    torch.manual_seed(0)
    return Memformer(**{**SIZES, **halves, "encoder_only": True, **flags}).double().eval()


@pytest.fixture
def pair():
    draws = torch.Generator().manual_seed(1)
    return torch.randint(11, (3, 6), generator=draws), torch.randint(11, (3, 5), generator=draws)


@torch.no_grad()
def test_forms(pair):
    src, tgt = pair
    enc_out, mem, dec_out = make()(src, tgt)
    assert enc_out.shape == (3, 6, 16)
    assert mem.shape == (3, 3, 16)
    assert dec_out.shape == ()
    assert make()(src).dec_out == 0
    results = make_encoder()(src)
    assert type(results).__name__ == "EncOnlyResults"
    assert results._fields == ("enc_out", "mem")


@torch.no_grad()
@pytest.mark.parametrize("update", ["gru", "bmn"])
def test_memory_affects_later_segments(update, pair):
    model, (src, tgt) = make(memory_update=update), pair
    first = model(src)
    start = model.get_initial_mem(3)
    torch.testing.assert_close(model(src, mems=start).enc_out, first.enc_out, **CLOSE)
    second = model(src, tgt, mems=first.mem)
    assert (second.enc_out - first.enc_out).abs().max() > 1e-4
    assert (second.dec_out - model(src, tgt).dec_out).abs() > 1e-6


@torch.no_grad()
def test_padding_changes_nothing(pair):
    model, (src, tgt) = make(), pair
    mask = torch.arange(6) < torch.tensor([[6], [4], [0]])
    held = model(src).mem
    got = model(src, tgt, held, mask)
    alone = model(src[1:2, :4], tgt[1:2], held[1:2])
    torch.testing.assert_close(got.enc_out[1:2, :4], alone.enc_out, **CLOSE)
    torch.testing.assert_close(got.mem[1:2], alone.mem, **CLOSE)
    assert torch.equal(got.mem[2], held[2])
    assert got.enc_out.isfinite().all()
    real = torch.arange(5) < torch.tensor([[5], [3], [3]])
    short = [model(src[i : i + 1], tgt[i : i + 1, :3]).dec_out for i in (1, 2)]
    padded = model(src[1:], tgt[1:], tgt_mask=real[1:]).dec_out
    torch.testing.assert_close(padded, torch.stack(short).mean(), **CLOSE)


@torch.no_grad()
def test_the_decoder_attends_to_no_later_token(pair):
    model, (src, tgt) = make(), pair
    decoder, context = model.decoder.net, model(src).enc_out
    changed = tgt.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 11
    before, after = decoder(tgt, context=context), decoder(changed, context=context)
    torch.testing.assert_close(after[:, :3], before[:, :3], **CLOSE)
    assert (after[:, 3:] - before[:, 3:]).abs().max() > 1e-4


@pytest.mark.parametrize(
    "flags",
    [
        {}, {"dec_rotary_pos_emb": True}, {"dec_alibi_pos_bias": True}, {"memory_update": "bmn"},
        {"compat_positions": "memformer-0.3"},
    ],
)  # fmt: skip
def test_cached_generation_equals_uncached(flags, pair):
    model, (src, _) = make(**flags), pair
    mems = model(src).mem.detach()
    mask = torch.arange(6) < torch.tensor([[6], [4], [2]])
    start = [[1], [2, 3], [4, 5, 6]]
    how = {"mems": mems, "src_mask": mask, "seed": 0, "temperature": 0.7}
    got = model.generate(src, start, 4, **how)
    assert torch.equal(got, model.generate(src, start, 4, **how, cache_kv=False))
    assert got.shape == (3, 4)
    greedy = model.generate(src, start, 4, temperature=0.0, src_mask=mask)
    other = model.generate(src, start, 4, temperature=0.0, src_mask=mask, mems=3 * mems)
    assert greedy.shape == other.shape


FLAGS = [
    {"enc_rotary_pos_emb": True}, {"dec_ff_glu": True}, {"enc_reversible": True, "dec_reversible": True},
    {"enc_alibi_pos_bias": True}, {"enc_ff_glu": True, "enc_ff_swish": True}, {"dec_attn_kv_heads": 1},
    {"enc_use_rmsnorm": True}, {"enc_sandwich_norm": True}, {"enc_checkpoint": "sublayer"},
    {"enc_num_memory_tokens": 2}, {"dec_num_memory_tokens": 2}, {"enc_attn_num_mem_kv": 2},
    {"enc_use_abs_pos_emb": True}, {"enc_use_abs_pos_emb": False}, {"dec_tie_embedding": True},
    {"enc_attn_talking_heads": True}, {"enc_residual_attn": True}, {"enc_gate_residual": True},
    {"enc_shift_tokens": 1}, {"dec_shift_tokens": 1}, {"enc_attn_z_loss_weight": 0.1},
    {"enc_emb_dim": 8}, {"enc_cross_attn_num_mem_kv": 2}, {"enc_macaron": True},
    {"enc_weight_tie_layers": True},
]  # fmt: skip


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: next(iter(flags)))
def test_flags_reach_their_half_and_learn(flags, pair):
    model, (src, tgt) = make(**flags), pair
    assert {name: model.flags[name] for name in flags} == flags
    rebuilt = flagformer.build(model.flags).double().eval()
    rebuilt.load_state_dict(model.state_dict())
    with torch.no_grad():
        want = model(src, tgt, model(src).mem)
        got = rebuilt(src, tgt, rebuilt(src).mem)
    torch.testing.assert_close(got.dec_out, want.dec_out, **CLOSE)
    model.train()
    first = model(src, tgt)
    second = model(src, tgt, first.mem)
    (first.dec_out + second.dec_out).backward()
    none = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not none


def test_saved_and_loaded(tmp_path, pair):
    model, (src, tgt) = make(compat_positions="memformer-0.3", memory_update="bmn"), pair
    model.save(tmp_path)
    other = flagformer.load(tmp_path).eval()
    assert (other(src, tgt).dec_out - model(src, tgt).dec_out).abs() < 1e-12
    assert other.explain() == model.explain()


AUXILIARY = {
    "commitment": {"enc_num_clusters": 2, "enc_window_size": 4, "enc_commitment_factor": 0.1},
    "balance": {"enc_ff_moe": True},
    "z-loss": {"enc_attn_z_loss_weight": 0.1},
}


@pytest.mark.parametrize("name", AUXILIARY)
def test_the_training_loss_includes_the_encoders_auxiliary_losses(name, pair):
    model, (src, tgt) = make(**AUXILIARY[name]).train(), pair
    results, outputs = model(src, tgt, return_outputs=True)
    alone = model.decoder(tgt, context=results.enc_out)
    assert outputs.extra_loss > 0
    torch.testing.assert_close(results.dec_out - alone, outputs.extra_loss, rtol=0, atol=1e-6)
    silent, outputs = model(src, return_outputs=True)
    torch.testing.assert_close(silent.dec_out, outputs.extra_loss)
    _, outputs = model.eval()(src, tgt, return_outputs=True)
    assert outputs.extra_loss is None


@torch.no_grad()
@pytest.mark.parametrize("read", [4, 6, 14])
@pytest.mark.parametrize("update", ["gru", "bmn"])
def test_a_stream_reads_a_source_segment_by_segment(update, read, tmp_path):
    model = make(memory_update=update, enc_ff_dropout=0.5).train()
    src = torch.randint(11, (2, 20), generator=torch.Generator().manual_seed(2))
    stream = model.stream(2)
    for part in src[:, :read].split(3, dim=1):
        stream(part)
    stream.save(tmp_path)
    again = flagformer.load(tmp_path).stream(2, tmp_path)
    assert again.length == stream.length == read
    mems = None
    for part in src[:, :read].split(6, dim=1):
        held, mems = mems, model.eval()(part, mems=mems).mem
    want = model.generate(part, [[1], [2, 3]], 5, mems=held, temperature=0.0)
    model.train()
    for one in (stream, again):
        assert torch.equal(one.generate([[1], [2, 3]], 5, temperature=0.0), want)
    assert model.training
    got = torch.cat([again(src[:, read:18]), again(src[:, 18:])], dim=1)
    torch.testing.assert_close(stream(src[:, read:])[:, -2:], got[:, -2:], **CLOSE)
    torch.testing.assert_close(again.mems, stream.mems, **CLOSE)
    held = stream.size_bytes()
    stream(src[:, :12])
    assert stream.size_bytes() == held


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"no_such_flag": 1}, "`no_such_flag` is not a flag of Memformer"),
        ({"depth": 2}, "`depth` must have a prefix for its half"),
        ({"enc_rotary_pos_em": True}, "did you mean `enc_rotary_pos_emb`"),
        ({"enc_num_memory_slots": 2}, "it has no prefix: use `num_memory_slots`"),
        ({"dec_num_memory_slots": 2}, "slots belong to the encoder"),
        ({"enc_max_mem_len": 4}, "the memory of the encoder is in its slots"),
        ({"mem_update_attn_heads": 3}, "`mem_update_attn_heads` must divide `dim` = 16, but is 3"),
        ({"num_memory_slots": 0}, "`num_memory_slots` must be at least 1, but is 0"),
        ({"memory_update": "lstm"}, "`memory_update` must be"),
        ({"memory_temperature": 0.5}, "`memory_temperature` needs `memory_update='bmn'`"),
        ({"encoder_only": True}, "`dec_depth` and `encoder_only=True` cannot be combined"),
        ({"enc_max_seq_len": 0}, "`enc_max_seq_len` must be at least 1"),
        ({"enc_custom_layers": "af", "enc_depth": None}, "needs cross-attention"),
        ({"dec_custom_layers": "af", "dec_depth": None}, "must hold a 'c'"),
        ({"enc_cross_attn_dim_context": 8}, "`num_memory_slots` and `enc_cross_attn_dim_context`"),
        ({"compat_positions": "memformer-0.3", "dec_rotary_pos_emb": True}, "needs `dec_rel_pos_bias=True`"),
        ({"compat_positions": "0.3"}, "`compat_positions` must be"),
    ],
)
def test_mistakes_are_named_as_given(flags, says):
    given = {name: value for name, value in {**SIZES, **both(), **flags}.items() if value is not None}
    with pytest.raises(flagformer.FlagError) as error:
        Memformer(**given)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda m, s, t: m(s.repeat(1, 2)),
            "`src` must be one segment of at most `enc_max_seq_len` = 6 tokens",
        ),
        (lambda m, s, t: m(s, t.repeat(1, 2)), "`tgt` must be ids of shape"),
        (lambda m, s, t: m(s, t[:2]), "`tgt` must be ids of shape"),
        (lambda m, s, t: m(s, mems=torch.zeros(2, 3, 16).double()), "slots of shape [3, 3, 16]"),
        (lambda m, s, t: m(s, mems=[torch.zeros(3, 3, 16)]), "`mems` must be a result of `return_mems`"),
        (lambda m, s, t: m(s, src_mask=s[:, :4] > 0), "`src_mask` must have shape [3, 6]"),
        (lambda m, s, t: m(s, t, tgt_mask=t[:, :4] > 0), "`tgt_mask` must have shape [3, 5]"),
        (lambda m, s, t: m(s, tgt_mask=t > 0), "`tgt_mask` needs the `tgt`"),
        (lambda m, s, t: m(s.float()), "`src` must be token ids"),
        (lambda m, s, t: m(s + 11), "`src` must hold ids from 0 to 10"),
        (lambda m, s, t: make_encoder()(s, t), "this model has no decoder"),
        (lambda m, s, t: make_encoder().generate(s, t, 3), "needs a decoder"),
        (lambda m, s, t: m.get_initial_mem(0), "`batch_size` must be"),
        (lambda m, s, t: m.generate(s, t, 3, context=s), "`context` cannot be given"),
        (lambda m, s, t: m.stream(0), "`batch_size` must be"),
        (lambda m, s, t: m.stream(2)(s), "`ids` must hold the 2 rows of this stream, but holds 3"),
        (lambda m, s, t: m.stream(3)(s + 11), "`ids` must hold ids from 0 to 10"),
        (lambda m, s, t: m.stream(3).generate(t, 3), "this stream has read no tokens yet"),
    ],
)
def test_invalid_calls_are_named(call, says, pair):
    with pytest.raises(ValueError) as error:
        call(make(), *pair)
    assert says in str(error.value)
