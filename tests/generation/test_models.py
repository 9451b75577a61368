"""Generation and loss of whole models, over every position scheme and every component with decode state."""

import pytest
import torch
from torch import Tensor

import flagformer
from flagformer import AutoregressiveWrapper

MAX_SEQ_LEN = 24
POSITIONS = {
    "rotary": {"rotary_pos_emb": True},
    "alibi": {"alibi_pos_bias": True},
    "t5": {"rel_pos_bias": True},
    "dynamic": {"dynamic_pos_bias": True},
    "sinusoidal": {"scaled_sinu_pos_emb": True},
    "none": {"use_abs_pos_emb": False},
    "learned": {},
}
PARTS = {
    "grouped": {"attn_kv_heads": 2, "rotary_pos_emb": True},
    "one head": {"attn_one_kv_head": True, "alibi_pos_bias": True},
    "memory": {"attn_num_mem_kv": 3, "rotary_pos_emb": True},
    "null": {"attn_add_zero_kv": True, "rel_pos_bias": True},
    "qk norm": {"attn_qk_norm": True, "rotary_pos_emb": True},
    "tied": {"weight_tie_layers": True, "rotary_pos_emb": True},
    "sandwich": {"sandwich_norm": True, "ff_glu": True, "rotary_pos_emb": True},
}
ENDLESS = {name: flags for name, flags in POSITIONS.items() if name != "learned"}
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
# Logits of magnitude about 1, float32, sums in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def build(flags: dict) -> AutoregressiveWrapper:
    torch.manual_seed(0)
    shape = {"num_tokens": 32, "max_seq_len": MAX_SEQ_LEN, "dim": 32, "depth": 2, "heads": 4}
    model = flagformer.build({"model": "decoder", **shape, **flags})
    with torch.no_grad():
        for parameter in model.parameters():  # every component matters, and greedy choices are not near ties
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return AutoregressiveWrapper(model.eval())


def record(wrapper: AutoregressiveWrapper, prompts: list, seq_len: int, **options) -> tuple[Tensor, Tensor]:
    """New tokens and the logits they were sampled from: [B, seq_len] and [B, seq_len, V]."""
    seen = []

    def keep(logits: Tensor) -> Tensor:
        seen.append(logits.clone())
        return logits

    new = wrapper.generate(prompts, seq_len, filter_logits_fn=keep, seed=1, **options)
    return new, torch.stack(seen, dim=1)


@pytest.mark.parametrize("flags", [*POSITIONS.values(), *PARTS.values()], ids=[*POSITIONS, *PARTS])
def test_cached_equals_uncached(flags):
    wrapper = build(flags)
    tokens, logits = record(wrapper, PROMPTS, 18)
    tokens_again, logits_again = record(wrapper, PROMPTS, 18, cache_kv=False)
    assert len(tokens.unique()) > 8  # the comparison needs a text, which one repeated token is not
    assert torch.equal(tokens, tokens_again)
    torch.testing.assert_close(logits, logits_again, **CLOSE)


@pytest.mark.parametrize("flags", [*POSITIONS.values(), *PARTS.values()], ids=[*POSITIONS, *PARTS])
def test_greedy_equals_the_full_forward(flags):
    wrapper = build(flags)
    new = wrapper.generate(PROMPTS[0], 15, temperature=0)
    row = torch.cat([torch.tensor(PROMPTS[0]), new])[None]
    with torch.no_grad():
        wanted = wrapper.net(row[:, :-1]).argmax(-1)[0, len(PROMPTS[0]) - 1 :]
    assert torch.equal(new, wanted)


@pytest.mark.parametrize("cache_kv", [True, False])
@pytest.mark.parametrize("flags", [*POSITIONS.values(), *PARTS.values()], ids=[*POSITIONS, *PARTS])
def test_a_ragged_batch_equals_one_by_one(flags, cache_kv):
    wrapper = build(flags)
    together = wrapper.generate(PROMPTS, 12, temperature=0, cache_kv=cache_kv)
    for row, prompt in zip(together, PROMPTS):
        assert torch.equal(row, wrapper.generate(prompt, 12, temperature=0))


@pytest.mark.parametrize("restrict", [True, False])
@pytest.mark.parametrize("flags", [*ENDLESS.values(), *PARTS.values()], ids=[*ENDLESS, *PARTS])
def test_past_max_seq_len_cached_equals_uncached(flags, restrict):
    wrapper = build(flags)
    options = {"restrict_to_max_seq_len": restrict}
    tokens, logits = record(wrapper, PROMPTS, 2 * MAX_SEQ_LEN, **options)
    tokens_again, logits_again = record(wrapper, PROMPTS, 2 * MAX_SEQ_LEN, cache_kv=False, **options)
    assert torch.equal(tokens, tokens_again)
    torch.testing.assert_close(logits, logits_again, **CLOSE)


@pytest.mark.parametrize("cache_kv", [True, False])
def test_past_max_seq_len_the_window_is_that_of_the_docstring(cache_kv):
    """One layer: the last token of a long row attends to the last max_seq_len tokens only, or to all."""
    wrapper = build({"rotary_pos_emb": True, "depth": 1})
    far = torch.arange(2 * MAX_SEQ_LEN) % 32
    changed = far.clone()
    changed[:MAX_SEQ_LEN] = 7
    options = {"cache_kv": cache_kv}
    _, first = record(wrapper, far[None], 1, **options)
    _, second = record(wrapper, changed[None], 1, **options)
    torch.testing.assert_close(first, second, **CLOSE)
    changed[MAX_SEQ_LEN] = 7
    _, third = record(wrapper, changed[None], 1, **options)
    assert (third - first).abs().max() > 1e-2
    _, whole = record(wrapper, far[None], 1, restrict_to_max_seq_len=False, **options)
    assert (whole - first).abs().max() > 1e-2
    with torch.no_grad():
        torch.testing.assert_close(whole[:, 0], wrapper.net(far[None])[:, -1], **CLOSE)


def test_learned_positions_are_used_up_to_the_last():
    wrapper = build({})
    assert wrapper.generate([1, 2, 3], MAX_SEQ_LEN - 2).shape == (MAX_SEQ_LEN - 2,)
    with pytest.raises(ValueError, match=f"max_seq_len {MAX_SEQ_LEN}"):
        wrapper.generate([1, 2, 3], MAX_SEQ_LEN - 1)


@pytest.mark.parametrize("flags", POSITIONS.values(), ids=POSITIONS)
def test_training_continues_after_generating(flags):
    """Inference tensors remain neither in the model nor in the returned values."""
    wrapper = build(flags).train()
    new = wrapper.generate([[1, 2, 3]], 12, seed=0)
    assert wrapper.net.training
    wrapper(new).backward()
    missing = [name for name, parameter in wrapper.named_parameters() if parameter.grad is None]
    assert not missing


class TestCrossAttention:
    @pytest.fixture
    def wrapper(self):
        return build({"cross_attend": True, "rotary_pos_emb": True})

    @pytest.fixture
    def side(self):
        context = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(2))
        return {"context": context, "context_mask": torch.arange(7) < torch.tensor([[7], [4], [1]])}

    def test_cached_equals_uncached(self, wrapper, side):
        tokens, logits = record(wrapper, PROMPTS, 16, **side)
        tokens_again, logits_again = record(wrapper, PROMPTS, 16, cache_kv=False, **side)
        assert torch.equal(tokens, tokens_again)
        torch.testing.assert_close(logits, logits_again, **CLOSE)

    def test_a_ragged_batch_equals_one_by_one(self, wrapper, side):
        together = wrapper.generate(PROMPTS, 12, temperature=0, **side)
        for index, prompt in enumerate(PROMPTS):
            alone = {name: value[index : index + 1] for name, value in side.items()}
            assert torch.equal(together[index], wrapper.generate(prompt, 12, temperature=0, **alone))

    def test_the_context_is_projected_once(self, wrapper, side):
        calls = []
        for name, module in wrapper.net.named_modules():
            if name.endswith("to_kv"):
                module.register_forward_hook(lambda *_: calls.append(1))
        wrapper.generate(PROMPTS, 6, **side)
        assert len(calls) == 2  # one for each of the two layers

    def test_the_context_and_its_mask_have_an_effect(self, wrapper, side):
        context = side["context"].clone()
        context[1, 4:] = 5.0  # masked
        masked = {**side, "context": context}
        assert torch.equal(record(wrapper, PROMPTS, 4, **side)[1], record(wrapper, PROMPTS, 4, **masked)[1])
        open_ = {"context": context}
        assert not torch.allclose(
            record(wrapper, PROMPTS, 4, **side)[1], record(wrapper, PROMPTS, 4, **open_)[1]
        )

    def test_loss_uses_the_context(self, wrapper, side):
        ids = torch.randint(0, 32, (3, 9), generator=torch.Generator().manual_seed(3))
        logits = wrapper.net(ids[:, :-1], **side)
        wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        torch.testing.assert_close(wrapper(ids, **side), wanted)

    def test_a_missing_context_is_named(self, wrapper):
        with pytest.raises(ValueError, match="`context` is required"):
            wrapper.generate([[1]], 2)


class TestLoss:
    @pytest.fixture
    def ids(self):
        return torch.randint(0, 32, (2, 12), generator=torch.Generator().manual_seed(4))

    @pytest.mark.parametrize("flags", POSITIONS.values(), ids=POSITIONS)
    @pytest.mark.parametrize("as_tensor", [True, False])
    def test_packed_rows_score_what_their_sequences_score(self, ids, flags, as_tensor):
        wrapper = build(flags)
        lens = [[5, 1, 6], [4, 3]]  # the second row ends in 5 padding positions
        sequences = [row for line, sizes in zip(ids, lens) for row in line[: sum(sizes)].split(sizes)]
        counts = [len(row) - 1 for row in sequences]
        total = sum(wrapper(row[None]) * count for row, count in zip(sequences, counts) if count)
        given = torch.tensor([[5, 1, 6], [4, 3, 0]]) if as_tensor else lens
        # Mean over 13 targets of float32 terms.
        torch.testing.assert_close(wrapper(ids, seq_lens=given), total / sum(counts), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("side", ["right", "left"])
    @pytest.mark.parametrize("flags", [POSITIONS["rotary"], POSITIONS["alibi"]], ids=["rotary", "alibi"])
    def test_masked_rows_score_their_valid_targets(self, ids, flags, side):
        # Relative positions: a row does not depend on its start.
        wrapper = build(flags)
        valid = torch.arange(12) < 8 if side == "right" else torch.arange(12) >= 4
        mask = torch.stack([torch.ones(12, dtype=torch.bool), valid])
        total = wrapper(ids[:1]) * 11 + wrapper(ids[1:, valid]) * 7
        torch.testing.assert_close(wrapper(ids, mask=mask), total / 18, rtol=1e-5, atol=1e-5)
        ids[1, ~valid] = 0
        torch.testing.assert_close(wrapper(ids, mask=mask), total / 18, rtol=1e-5, atol=1e-5)

    def test_a_row_of_max_seq_len_and_one_token_fits_learned_positions(self):
        assert build({})(torch.zeros(1, MAX_SEQ_LEN + 1, dtype=torch.long)).isfinite()

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (
                {"mask": torch.ones(2, 11, dtype=torch.bool)},
                r"`mask` must have shape \[2, 12\], but has \[2, 11\]",
            ),
            ({"mask": torch.ones(2, 12)}, "`mask` must be boolean"),
            ({"seq_lens": [[5, 8], [12]]}, "`seq_lens` must be lengths that sum to at most 12"),
            ({"seq_lens": [[12]]}, "`seq_lens` must hold one list of lengths for each of the 2 rows"),
        ],
    )
    def test_bad_masks_and_lengths_are_named(self, ids, options, says):
        with pytest.raises(ValueError, match=says):
            build({"rotary_pos_emb": True})(ids, **options)


def test_bfloat16_models_generate_and_sum_in_float32():
    wrapper = build({"rotary_pos_emb": True}).bfloat16()
    assert wrapper(torch.tensor([[3, 1, 4]])).dtype == torch.float32
    assert wrapper.generate(PROMPTS, 6, seed=0).shape == (3, 6)


def test_acausal_models_are_refused():
    model = flagformer.build(
        {"model": "encoder", "num_tokens": 8, "max_seq_len": 8, "dim": 16, "depth": 1, "heads": 2}
    )
    with pytest.raises(ValueError, match="`net` must be causal, but its layers"):
        AutoregressiveWrapper(model)


def test_a_saved_default_draw_is_reproducible_across_batches_of_one():
    wrapper = build({"rotary_pos_emb": True})
    before = torch.get_rng_state()
    first = wrapper.generate([3, 1], 20, seed=7)
    assert torch.equal(first, wrapper.generate(torch.tensor([[3, 1]]), 20, seed=7)[0])
    assert not torch.equal(first, wrapper.generate([3, 1], 20, seed=8))
    assert torch.equal(before, torch.get_rng_state())
