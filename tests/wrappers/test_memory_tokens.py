"""Memory tokens: padding, packing, decoding change nothing; windows and masks never apply to them."""

import copy

import pytest
import torch

import flagformer
from flagformer import AutoregressiveWrapper, Decoder, TransformerWrapper
from flagformer.stack.layers import CrossAttender
from perturbed_models import perturbed

SIZES = {"num_tokens": 13, "max_seq_len": 32, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
MEMORIES = {
    "in front": {"num_memory_tokens": 2},
    "every token": {"num_memory_tokens": 1, "memory_tokens_interspersed_every": 1},
    "every third": {"num_memory_tokens": 2, "memory_tokens_interspersed_every": 3},
    "every fourth": {"num_memory_tokens": 3, "memory_tokens_interspersed_every": 4},
}
SCHEMES = {
    "learned": {},
    "rotary": {"rotary_pos_emb": True},
    "alibi, prefix kv": {"alibi_pos_bias": True, "attn_num_mem_kv": 1},
    "t5, shifted": {"rel_pos_bias": True, "shift_tokens": 1},
}
STARTS = {
    "full": None,
    "ragged": [0, 3, 5, 6],
    "all begin late": [2, 3, 6, 6],
    "alike": [2, 2, 2, 2],
}
TIGHT = {"rtol": 0, "atol": 1e-9}  # fp64: rounding stays below 1e-12
PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [2, 6, 5]]


def build(kind="decoder", **flags):
    return perturbed({"model": kind, **SIZES, **flags}, dtype=torch.float64).eval()


@pytest.fixture
def ids():
    return torch.randint(13, (4, 14), generator=torch.Generator().manual_seed(1))


def starts_of(name):
    return None if STARTS[name] is None else torch.tensor(STARTS[name])


def cached(model, ids, blocks, **how):
    state = model.init_state(len(ids), ids.shape[1], **how)
    pieces = []
    with torch.no_grad():
        for block in blocks:
            pieces.append(model(ids[:, state.length : state.length + block], state=state))
    assert state.length == sum(blocks)
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("starts", STARTS)
def test_cached_equals_full_equals_single_rows(memory, scheme, starts, ids):
    model = build(**MEMORIES[memory], **SCHEMES[scheme])
    begin, first = starts_of(starts), STARTS[starts] or [0] * 4
    for window in (None, 4):
        with torch.no_grad():
            full = model(ids, seq_start_pos=begin, window=window)
        for row, start in enumerate(first):
            alone = model(ids[row : row + 1, start:], window=window)[0]
            torch.testing.assert_close(full[row, start:], alone, **TIGHT)
        for blocks in ((14,), (1,) * 14, (4, 1, 1, 3, 5), (9, *(1,) * 5)):
            got = cached(model, ids, blocks, window=window, seq_start_pos=begin)
            for row, start in enumerate(first):
                torch.testing.assert_close(got[row, start:], full[row, start:], **TIGHT)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("kind", ["decoder", "encoder", "prefix_decoder"])
def test_padding_on_either_side_and_packing(memory, kind, ids):
    model = build(kind, **MEMORIES[memory], rotary_pos_emb=True)
    with torch.no_grad():
        alone = model(ids[1:2, 3:11])
        mask = (torch.arange(14) >= 3) & (torch.arange(14) < 11)
        for how in (
            {"mask": mask.expand(4, -1)},
            {"seq_start_pos": torch.full((4,), 3), "mask": (torch.arange(14) < 11).expand(4, -1)},
            {"seq_lens": [[3, 8, 3]] * 4},
            {"seq_lens": torch.tensor([[3, 0, 8, 0]] * 4)},
        ):
            torch.testing.assert_close(model(ids, **how)[1:2, 3:11], alone, **TIGHT)


def test_a_window_counts_tokens_and_never_masks_memory(ids):
    model = build(**MEMORIES["in front"], depth=1)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.memory.tokens.copy_(model.memory.tokens.roll(1, 1))  # a norm would remove a constant
        for window in (1, 3):
            for state in (None, model.init_state(4, 14, window=window)):
                how = {"window": window} if state is None else {"state": state}
                want = model(ids, **how)
                if state is not None:
                    state.truncate(0)
                changed = ids.clone()
                changed[:, 13 - window] += 1
                assert torch.equal(model(changed % 13, **how)[:, -1], want[:, -1])
                if state is not None:
                    state.truncate(0)
                changed[:, 14 - window] += 1
                assert (model(changed % 13, **how)[:, -1] - want[:, -1]).abs().max() > 1e-6
        assert (other(ids, window=1)[:, -1] - model(ids, window=1)[:, -1]).abs().max() > 1e-6


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("shape", [(14, 14), (2, 14, 14), (4, 1, 14, 14), (4, 2, 14, 14)])
def test_a_mask_of_tokens_does_not_apply_to_memory(memory, shape, ids):
    """Under a mask over token 5, other tokens there change nothing; memory tokens stay allowed."""
    model = build(**MEMORIES[memory], rotary_pos_emb=True)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[..., 5] = False
    mask[..., 5, 5] = True
    with torch.no_grad():
        want, changed = model(ids, attn_mask=mask), ids.clone()
        changed[:, 5] = (changed[:, 5] + 1) % 13
        got = model(changed, attn_mask=mask)
        assert (got[:, 5] - want[:, 5]).abs().max() > 1e-6
        if memory == "in front":  # memory of later blocks attends to token 5, and tokens attend to it
            keep = torch.arange(14) != 5
            torch.testing.assert_close(got[:, keep], want[:, keep], **TIGHT)
        torch.testing.assert_close(model(ids, attn_mask=torch.ones_like(mask)), model(ids), **TIGHT)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("starts", STARTS)
def test_a_mask_of_tokens_while_decoding(memory, starts, ids):
    model = build(**MEMORIES[memory], rotary_pos_emb=True)
    mask = torch.rand(14, 14, generator=torch.Generator().manual_seed(2)) > 0.4
    begin = starts_of(starts)
    with torch.no_grad():
        full = model(ids, attn_mask=mask, seq_start_pos=begin)
        state, pieces = model.init_state(4, 14, seq_start_pos=begin), []
        for end in (4, 5, 6, 9, *range(10, 15)):
            at = state.length
            pieces.append(model(ids[:, at:end], state=state, attn_mask=mask[at:end, :end]))
    got = torch.cat(pieces, dim=1)
    for row, start in enumerate(STARTS[starts] or [0] * 4):
        torch.testing.assert_close(got[row, start:], full[row, start:], **TIGHT)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_prefix_counts_tokens(memory, ids):
    model = build("prefix_decoder", **MEMORIES[memory], rotary_pos_emb=True)
    lengths, begin = torch.tensor([5, 2, 4, 0]), torch.tensor([0, 3, 5, 6])
    with torch.no_grad():
        full = model(ids, prefix_attn_len=lengths, seq_start_pos=begin)
        for row in range(4):
            start, prefix = int(begin[row]), int(lengths[row])
            alone = model(ids[row : row + 1, start:], prefix_attn_len=prefix)[0]
            torch.testing.assert_close(full[row, start:], alone, **TIGHT)
            changed = ids.clone()
            changed[row, start + prefix :] = 0
            got = model(changed, prefix_attn_len=lengths, seq_start_pos=begin)
            torch.testing.assert_close(got[row, : start + prefix], full[row, : start + prefix], **TIGHT)
        inside = ids.clone()
        inside[0, 4] = (inside[0, 4] + 1) % 13
        got = model(inside, prefix_attn_len=lengths, seq_start_pos=begin)
        assert (got[0, 0] - full[0, 0]).abs().max() > 1e-6
        packed = model(ids[:1], seq_lens=[[6, 8]], prefix_attn_len=3)
        torch.testing.assert_close(packed[:, 6:], model(ids[:1, 6:], prefix_attn_len=3), **TIGHT)
        state = model.init_state(4, 14, seq_start_pos=begin)
        first = model(ids[:, :10], state=state, prefix_attn_len=lengths)
        rest = model(ids[:, 10:], state=state)
    got = torch.cat([first, rest], dim=1)
    for row, start in enumerate(begin.tolist()):
        torch.testing.assert_close(got[row, start:], full[row, start:], **TIGHT)
    assert state.prefix.tolist() == [5, 2, 4, 0]
    with pytest.raises(ValueError, match=r"must keep the prefix, 9 tokens, but is 8"):
        state.truncate(8)
    state.truncate(9)
    with pytest.raises(ValueError, match=r"`state` holds 9 tokens already"):
        model(ids[:, :1], state=state, prefix_attn_len=lengths)
    with pytest.raises(ValueError, match=r"reaches to token 9, but the first block has 8"):
        model(ids[:, :8], state=model.init_state(4, 14, seq_start_pos=begin), prefix_attn_len=lengths)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("scheme", ["rotary", "t5, shifted"])
def test_a_state_truncates_and_reorders(memory, scheme, ids):
    model = build(**MEMORIES[memory], **SCHEMES[scheme])
    begin, order = torch.tensor([0, 3, 5, 6]), torch.tensor([2, 2, 0, 3])
    state = model.init_state(4, 14, seq_start_pos=begin)
    with torch.no_grad():
        model(ids[:, :12], state=state)
        for keep in (11, 9, 8):
            state.truncate(keep)
            assert state.length == keep
        state.reorder(order)
        mixed = torch.cat([ids[order, :8], ids[:, 8:]], dim=1)
        got = torch.cat([model(mixed[:, at : at + 1], state=state) for at in range(8, 14)], dim=1)
        want = model(mixed, seq_start_pos=begin[order])
    torch.testing.assert_close(got, want[:, 8:], **TIGHT)
    assert state.row_starts.tolist() == [5, 5, 0, 6]
    assert state.size_bytes() > 0


@pytest.mark.parametrize("memory", MEMORIES)
def test_cache_length_fits_the_longest_row_exactly(memory, ids):
    model = build(**MEMORIES[memory])
    state = model.init_state(4, 14, seq_start_pos=torch.tensor([1, 0, 4, 6]))
    with torch.no_grad():
        for at in range(14):
            model(ids[:, at : at + 1], state=state)
    assert state.inner.length == state.inner.capacity
    with pytest.raises(
        ValueError, match=r"`state` holds 14 of 14 tokens of 4 rows; `x` with 1 more of 4 rows"
    ):
        model(ids[:, :1], state=state)
    with pytest.raises(ValueError, match=r"`x` with 1 more of 2 rows does not fit"):
        model(ids[:2, :1], state=model.init_state(4, 14))


def test_a_failed_block_can_be_repeated(ids):
    model = build(**MEMORIES["every third"], cross_attend=True)
    context, begin = torch.randn(4, 5, 16).double(), torch.tensor([0, 1, 2, 4])
    state = model.init_state(4, 14, seq_start_pos=begin)
    with torch.no_grad():
        with pytest.raises(ValueError, match="`context` is required"):
            model(ids[:, :7], state=state)
        pieces = [model(ids[:, :7], state=state, context=context)]
        with pytest.raises(ValueError, match="`context` must have shape"):
            model(ids[:, 7:8], state=state, context=context[:, :, :3])
        pieces += [model(ids[:, at : at + 1], state=state) for at in range(7, 14)]
        want = model(ids, context=context, seq_start_pos=begin)
    for row, start in enumerate(begin.tolist()):
        torch.testing.assert_close(torch.cat(pieces, dim=1)[row, start:], want[row, start:], **TIGHT)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_generation_cached_and_not(memory, scheme):
    wrapper = AutoregressiveWrapper(build(**MEMORIES[memory], **SCHEMES[scheme]))
    length = 40 if scheme != "learned" else 24  # past max_seq_len, with a window
    new = wrapper.generate(PROMPTS, length, temperature=0)
    assert torch.equal(new, wrapper.generate(PROMPTS, length, temperature=0, cache_kv=False))
    for row, prompt in enumerate(PROMPTS):
        alone = wrapper.generate(prompt, length, temperature=0)
        within = 32 + 1 - 7  # rows of a batch reach the window in the same step
        assert torch.equal(new[row, :within], alone[:within])


def test_beams_of_ragged_prompts():
    wrapper = AutoregressiveWrapper(build(**MEMORIES["every third"], rotary_pos_emb=True))
    tokens, scores = wrapper.beam_search(PROMPTS, 9, beams=3, eos_token=0, return_beams=True)
    other, same_scores = wrapper.beam_search(
        PROMPTS, 9, beams=3, eos_token=0, return_beams=True, cache_kv=False
    )
    assert torch.equal(tokens, other)
    torch.testing.assert_close(scores, same_scores, **TIGHT)


def test_loss_and_shapes_of_return_values(ids):
    model = build(**MEMORIES["every fourth"])
    logits = model(ids[:, :-1])
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(AutoregressiveWrapper(model)(ids), want)
    places = 14 + 3 * 4
    same_logits, outputs = model(ids, return_intermediates=True)
    assert same_logits.shape == (4, 14, 13)
    assert outputs.embeddings.shape == (4, 14, 16)
    assert [tuple(x.shape) for x in outputs.attention] == [(4, 2, places, places)] * 2
    assert {tuple(x.shape) for x in outputs.hiddens} == {(4, places, 16)}


def test_explicit_positions_need_absolute_ones(ids):
    places = torch.arange(14) + 3
    model = build(**MEMORIES["in front"])
    shifted = copy.deepcopy(model)
    with torch.no_grad():
        shifted.pos_emb.table.weight.copy_(model.pos_emb.table.weight.roll(-3, 0))
    torch.testing.assert_close(model(ids, pos=places), shifted(ids), **TIGHT)
    with pytest.raises(
        ValueError, match=r"`pos` and memory tokens \(`num_memory_tokens`\) cannot be combined"
    ):
        build(**MEMORIES["in front"], rotary_pos_emb=True)(ids, pos=places)


@pytest.mark.parametrize("memory", ["in front", "every third"])
def test_compiles_and_exports(memory, ids):
    model = build(**MEMORIES[memory], rotary_pos_emb=True)
    for how in (
        {},
        {"seq_start_pos": torch.tensor([0, 1, 2, 3])},
        {"attn_mask": torch.ones(14, 14).tril() > 0},
    ):
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        with torch.no_grad():
            torch.testing.assert_close(compiled(ids, **how), model(ids, **how), **TIGHT)
    exported = torch.export.export(model, (ids,)).module()
    torch.testing.assert_close(exported(ids), model(ids), **TIGHT)


@torch.no_grad()
@pytest.mark.parametrize("flags", [{"attn_talking_heads": True}, {"gate_residual": True}], ids=str)
def test_one_program_for_all_rows(flags, ids):
    """Products of the memory tokens' and the entries' lengths leave no condition on the number of rows."""
    model = build(**MEMORIES["in front"], **flags)
    sizes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC(min=4, max=14)},)
    program = torch.export.export(model, (ids,), dynamic_shapes=sizes, strict=False).module()
    for rows in (ids[:1], ids[:3, :5]):
        torch.testing.assert_close(program(rows), model(rows), **TIGHT)


@pytest.mark.parametrize("starts", [None, [0, 2]])
def test_decoding_compiles_two_graphs(starts):
    model = build(**MEMORIES["in front"], rotary_pos_emb=True)
    begin = None if starts is None else torch.tensor(starts)
    ids = torch.randint(13, (2, 12))
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    step = torch.compile(model, backend=counter)
    state = model.init_state(2, 12, seq_start_pos=begin)
    with torch.no_grad():
        pieces = [model(ids[:, :4], state=state)]
        pieces += [step(ids[:, at : at + 1], state=state) for at in range(4, 12)]
        want = model(ids, seq_start_pos=begin)
    assert counter.frame_count <= 2
    torch.testing.assert_close(torch.cat(pieces, dim=1)[:, 2:], want[:, 2:], **TIGHT)


def test_invalid_combinations_are_refused():
    for flags, says in (
        (
            {"memory_tokens_interspersed_every": 3},
            "it is a parameter of `num_memory_tokens`, which is not set",
        ),
        ({"num_memory_tokens": 2, "memory_tokens_interspersed_every": 0}, "must be at least 1"),
        ({"num_memory_tokens": -1}, "`num_memory_tokens` must be at least 0"),
        (
            {"num_memory_tokens": 2, "only_cross": True},
            "`num_memory_tokens` and `only_cross` cannot be combined",
        ),
    ):
        with pytest.raises(flagformer.FlagError) as error:
            flagformer.check({**SIZES, **flags})
        assert says in str(error.value)
    layers = CrossAttender(dim=16, depth=1, heads=2)
    with pytest.raises(flagformer.FlagError, match="`num_memory_tokens` and `only_cross` cannot be combined"):
        TransformerWrapper(num_tokens=5, max_seq_len=8, attn_layers=layers, num_memory_tokens=2)


def test_a_state_of_other_layers_is_refused(ids):
    model = build(**MEMORIES["in front"])
    for other in (build(), build(**MEMORIES["every third"]), model.attn_layers):
        with pytest.raises(ValueError, match="`state` must come from `init_state` of this model"):
            model(ids, state=other.init_state(4, 14))
    with pytest.raises(ValueError, match="`state` must come from `init_state` of this model"):
        build()(ids, state=model.init_state(4, 14))
    for how in ((4, 0), (0, 4), (4, "8")):
        with pytest.raises(ValueError, match="must be a whole number of at least 1"):
            model.init_state(*how)


def test_zero_memory_tokens_equal_none(ids):
    torch.manual_seed(0)
    plain = TransformerWrapper(num_tokens=13, max_seq_len=32, attn_layers=Decoder(dim=16, depth=1, heads=2))
    torch.manual_seed(0)
    none = TransformerWrapper(
        num_tokens=13, max_seq_len=32, attn_layers=Decoder(dim=16, depth=1, heads=2), num_memory_tokens=0
    )
    assert torch.equal(plain(ids), none(ids))
    assert isinstance(none.init_state(4, 14), flagformer.flow.DecodeState)
