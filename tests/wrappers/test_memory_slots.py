"""Memory slots of a decoder: streams, XL memories of tokens together with them, and refusals."""

import pytest
import torch

import flagformer
from flagformer import XLAutoregressiveWrapper
from flagformer.storage.tensors import load_metadata, load_tensors, save_tensors

SIZES = {"num_tokens": 11, "max_seq_len": 5, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
SLOTS = {"cross_attend": True, "num_memory_slots": 3}
SCHEMES = {
    "learned": {}, "rotary": {"rotary_pos_emb": True}, "alibi": {"alibi_pos_bias": True},
    "t5": {"rel_pos_bias": True}, "bmn": {"rotary_pos_emb": True, "memory_update": "bmn"},
    "shifted": {"rotary_pos_emb": True, "shift_tokens": 1},
    "memory tokens": {"rotary_pos_emb": True, "num_memory_tokens": 2},
    "interspersed": {"rotary_pos_emb": True, "num_memory_tokens": 2, "memory_tokens_interspersed_every": 2},
    "memory keys": {"alibi_pos_bias": True, "attn_num_mem_kv": 2},
    "memories of tokens": {"rotary_pos_emb": True, "max_mem_len": 7},
    "tokens alone": {
        "num_memory_slots": 0, "cross_attend": False, "rotary_pos_emb": True, "max_mem_len": 10,
    },
    "of layers above": {"rel_pos_bias": True, "max_mem_len": 5, "shift_mem_down": 1},
}  # fmt: skip
# fp64: cached, in blocks and in one pass differ by rounding
CLOSE = 1e-10


def make(**flags):
    torch.manual_seed(0)
    model = flagformer.build({**SIZES, **SLOTS, **flags}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def text(length=23):
    return torch.randint(11, (2, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def by_segments(model, ids):
    pieces, mems = [], None
    for part in ids.split(5, dim=1):
        logits, mems = model(part, mems=mems, return_mems=True)
        pieces.append(logits)
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_stream_equals_segments(name):
    model, ids = make(**SCHEMES[name]), text()
    want = by_segments(model, ids)
    for sizes in ((1,) * 23, (3, 4, 9, 1, 6), (23,)):
        stream = model.stream(2)
        got = torch.cat([stream(part) for part in ids.split(sizes, dim=1)], dim=1)
        assert (got - want).abs().max() < CLOSE
        assert stream.length == 23


@pytest.mark.parametrize("name", SCHEMES)
def test_earlier_segments_have_an_effect_and_later_ones_have_none(name):
    model, ids = make(**SCHEMES[name]), text()
    want, changed = by_segments(model, ids), ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 11
    got = by_segments(model, changed)
    assert (got - want)[:, :7].abs().max() < CLOSE
    assert (got - want)[:, 20:].abs().max() > 1e-6


def test_a_stream_has_constant_size():
    stream = make(rotary_pos_emb=True).stream(2)
    stream(text(8))
    held = stream.size_bytes()
    stream(text(50))
    assert stream.size_bytes() == held


@pytest.mark.parametrize("name", ["rotary", "bmn", "memories of tokens", "interspersed"])
@pytest.mark.parametrize("read", [3, 5, 13])
def test_a_stream_is_saved_and_continues(name, read, tmp_path):
    model, ids = make(**SCHEMES[name]), text()
    stream = model.stream(2)
    stream(ids[:, :read])
    stream.save(tmp_path)
    other = flagformer.load(tmp_path).stream(2, tmp_path)
    assert other.length == read
    assert torch.equal(other(ids[:, read:]), stream(ids[:, read:]))
    assert other.size_bytes() == stream.size_bytes()
    with pytest.raises(ValueError, match="`batch_size` must be that of the stream"):
        flagformer.load(tmp_path).stream(3, tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("name", ["rotary", "memories of tokens", "of layers above"])
def test_selected_rows_of_memories_continue(name):
    model, ids = make(**SCHEMES[name]), text()
    _, mems = model(ids[:, :5], return_mems=True, seq_start_pos=torch.tensor([0, 2]))
    rows = mems.select([1, 0, 1])
    assert rows.size_bytes() * 2 == mems.size_bytes() * 3
    want = model(ids[:, 5:9], mems=mems)
    assert (model(ids[[1, 0, 1], 5:9], mems=rows) - want[[1, 0, 1]]).abs().max() < CLOSE
    with pytest.raises(ValueError, match="`rows` must hold rows from 0 to 1"):
        mems.select([2])


@torch.no_grad()
def test_a_stream_without_its_decode_state_reads_its_segment_again(tmp_path):
    """As version 0.1 saved it."""
    model, ids = make(rotary_pos_emb=True), text()
    stream = model.stream(2)
    stream(ids[:, :8])
    stream.save(tmp_path)
    path, kept = tmp_path / "stream.safetensors", ("ids", "length", "slots", "positions", "start")
    old = {name: one for name, one in load_tensors(path).items() if name in kept}
    save_tensors(old, path, {"of weights": load_metadata(path)["of weights"]})
    other = flagformer.load(tmp_path).stream(2, tmp_path)
    assert (other(ids[:, 8:]) - stream(ids[:, 8:])).abs().max() < CLOSE


def test_a_stream_preserves_the_mode_of_its_model():
    model = make(rotary_pos_emb=True, ff_dropout=0.5).train()
    one, other = model.stream(2), model.stream(2)
    assert torch.equal(one(text()), other(text()))
    assert model.training


@torch.no_grad()
@pytest.mark.parametrize("name", ["rotary", "memories of tokens"])
def test_loss_and_generation_over_segments(name):
    model, ids = make(**SCHEMES[name]), text()
    wrapper = XLAutoregressiveWrapper(model)
    logits = by_segments(model, ids[:, :-1])
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert (wrapper(ids) - want).abs() < 1e-5  # its cross entropy is fp32
    stream, tokens = model.stream(2), ids
    drawn = wrapper.generate(ids, 9, temperature=0.0)
    for place in range(9):
        new = stream(tokens)[:, -1:].argmax(dim=-1)
        assert torch.equal(new[:, 0], drawn[:, place])
        tokens = new


def test_gradients_flow_through_slots_by_default():
    model, first = make(rotary_pos_emb=True), text(5)
    for detach, reaches in ((None, True), (False, True), (True, False)):
        _, mems = model(first, return_mems=True, detach_mems=detach)
        assert mems.slots.requires_grad == reaches
    with pytest.raises(ValueError, match="XLAutoregressiveWrapper"):
        flagformer.AutoregressiveWrapper(model).generate(first, 9)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            {"cross_attend": False},
            "`num_memory_slots` needs cross-attention, but this model has none; set `cross_attend=True`",
        ),
        (
            {"num_memory_slots": 0, "memory_update": "bmn"},
            "it is a parameter of `num_memory_slots`, which is not set",
        ),
        ({"cross_attn_dim_context": 8}, "`num_memory_slots` and `cross_attn_dim_context` cannot be combined"),
        (
            {"max_seq_len": 0, "use_abs_pos_emb": False},
            "`max_seq_len` must be at least 1 under `num_memory_slots`",
        ),
    ],
)
def test_mistakes_are_named(flags, says):
    with pytest.raises(flagformer.FlagError) as error:
        flagformer.build({**SIZES, **SLOTS, **flags})
    assert says in str(error.value)


def test_layers_without_cross_attention_are_refused():
    layers = flagformer.Decoder(dim=16, depth=1)
    with pytest.raises(flagformer.FlagError, match="`num_memory_slots` needs `cross_attend=True`"):
        flagformer.TransformerWrapper(num_tokens=7, max_seq_len=5, attn_layers=layers, num_memory_slots=2)


def held(model, length=3):
    state = model.init_state(2, 5)
    model(text(length), state=state)
    return state


@pytest.mark.parametrize(
    ("flags", "call", "says"),
    [
        ({}, lambda m, x: m(x), "`x` must be one segment of at most `max_seq_len` = 5 tokens, but has 23"),
        ({}, lambda m, x: m(x[:, :5], mems=torch.zeros(3, 3, 16)), "slots of shape [2, 3, 16]"),
        ({}, lambda m, x: m(x[:, :5], mems=torch.zeros(2, 4, 16)), "slots of shape [2, 3, 16]"),
        ({}, lambda m, x: m(x[:, :5], mask=x[:, :4] > 0), "`mask` must have shape [2, 5]"),
        ({}, lambda m, x: m(x[:, :5], mem_masks=x[:, :5] > 0), "this model has only slots"),
        ({}, lambda m, x: m(x[:, :5], context=torch.zeros(2, 3, 16)), "reads its memory slots"),
        ({}, lambda m, x: m(x[:, :5], context_mask=x[:, :5] > 0), "`context_mask` cannot be given"),
        ({}, lambda m, x: m.init_state(2, 6), "`length` must be at most `max_seq_len` = 5"),
        ({}, lambda m, x: m(x[:, :1], state=held(m), mems=torch.zeros(2, 3, 16)), "holds 3 tokens already"),
        ({}, lambda m, x: m.stream(3)(x), "`ids` must hold the 3 rows of this stream, but holds 2"),
        ({}, lambda m, x: m.stream(0), "`batch_size` must be"),
        ({"model": "encoder"}, lambda m, x: m.stream(2), "a stream needs causal layers"),
        (
            {"num_memory_slots": 0, "cross_attend": False}, lambda m, x: m.stream(2),
            "a stream needs a model with memory",
        ),
        (
            {"max_mem_len": 4, "use_abs_pos_emb": True}, lambda m, x: m.stream(2),
            "learned positions for 5 tokens",
        ),
        (
            {"num_memory_slots": 0, "cross_attend": False, "max_mem_len": 4, "rotary_pos_emb": True},
            lambda m, x: m(x[:, :5], mems=make(rotary_pos_emb=True)(x[:, :5], return_mems=True)[1]),
            "`mems` holds slots, but this model has none",
        ),
    ],
)  # fmt: skip
def test_invalid_calls_are_named(flags, call, says):
    with pytest.raises(ValueError) as error:
        call(make(**flags), text())
    assert says in str(error.value)
