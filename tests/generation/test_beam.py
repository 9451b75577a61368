"""Beam search against every continuation, scored one by one; its state, padding, context and messages."""

import itertools

import pytest
import torch

import flagformer
from flagformer import AutoregressiveWrapper
from perturbed_models import perturbed

SIZES = {"num_tokens": 4, "max_seq_len": 16, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
SCHEMES = {
    "learned": {}, "rotary": {"rotary_pos_emb": True},
    "t5 with memory": {"rel_pos_bias": True, "attn_num_mem_kv": 2},
    "tied": {"weight_tie_layers": True, "alibi_pos_bias": True},
}  # fmt: skip
PROMPTS = [[3, 1, 2], [0], [2, 2]]


def build(seed=0, **flags):
    return AutoregressiveWrapper(perturbed({**SIZES, **flags}, seed, torch.float64).eval())


def every(wrapper, prompt, seq_len, eos, penalty, **side):
    """(score, tokens) of every continuation, best first: one forward each."""
    found = []
    for tokens in itertools.product(range(4), repeat=seq_len):
        if eos is not None and eos in tokens:
            end = tokens.index(eos) + 1
            if any(tokens[end:]):  # after the end come padding ids, which are 0
                continue
            tokens = tokens[:end]
        row = torch.tensor([[*prompt, *tokens]])
        logs = wrapper.net(row[:, :-1], **side)[0].log_softmax(-1)[len(prompt) - 1 :]
        score = sum(logs[i, token].item() for i, token in enumerate(tokens)) / len(tokens) ** penalty
        found.append((score, [*tokens, *[0] * (seq_len - len(tokens))]))
    return sorted(found, reverse=True)


@pytest.mark.parametrize(("eos", "penalty"), [(None, 0.0), (3, 0.0), (3, 1.0), (1, 0.6)])
@pytest.mark.parametrize("flags", SCHEMES.values(), ids=SCHEMES)
def test_with_enough_beams_it_is_exhaustive_search(flags, eos, penalty):
    wrapper = build(**flags)
    how = {"eos_token": eos, "length_penalty": penalty, "return_beams": True}
    tokens, scores = wrapper.beam_search(PROMPTS, 3, beams=16, **how)
    for row, prompt in enumerate(PROMPTS):
        want = every(wrapper, prompt, 3, eos, penalty)[:16]
        assert tokens[row].tolist() == [best for _, best in want]
        # log probabilities are summed in float64 like the models
        torch.testing.assert_close(
            scores[row].double(), torch.tensor([s for s, _ in want]).double(), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("flags", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("eos", [None, 3])
def test_cached_equals_uncached_and_single_rows(flags, eos):
    wrapper = build(**flags)
    how = {"beams": 3, "eos_token": eos, "length_penalty": 0.5}
    together = wrapper.beam_search(PROMPTS, 9, **how)
    assert torch.equal(together, wrapper.beam_search(PROMPTS, 9, cache_kv=False, **how))
    for row, prompt in enumerate(PROMPTS):
        assert torch.equal(together[row], wrapper.beam_search(prompt, 9, **how))


@pytest.mark.parametrize("flags", [{}, {"mixer": "mamba2"}, {"num_memory_tokens": 2}], ids=str)
def test_each_prompt_is_read_once(flags):
    wrapper, seen = build(**flags), []
    wrapper.net.token_emb.register_forward_hook(lambda _, given, out: seen.append(list(given[0].shape)))
    wrapper.beam_search(PROMPTS, 4, beams=5)
    assert seen == [[3, 3], [15, 1], [15, 1], [15, 1]]


def test_one_beam_is_greedy():
    wrapper = build(rotary_pos_emb=True)
    assert torch.equal(wrapper.beam_search(PROMPTS, 9, beams=1), wrapper.generate(PROMPTS, 9, temperature=0))


def test_more_beams_find_continuations_that_greedy_misses():
    better = 0
    for seed in range(6):
        wrapper = build(seed, rotary_pos_emb=True)
        scores = [wrapper.beam_search(PROMPTS, 6, k, return_beams=True)[1][:, 0] for k in (1, 8)]
        assert (scores[1] >= scores[0] - 1e-6).all()
        better += int((scores[1] > scores[0] + 1e-3).sum())
    assert better


def test_the_length_penalty_favours_longer_ones():
    lengths = []
    for penalty in (0.0, 2.0):
        rows = build(2).beam_search(PROMPTS, 6, beams=16, eos_token=3, length_penalty=penalty)
        lengths.append(sum(6 if 3 not in row else row.index(3) + 1 for row in rows.tolist()))
    assert lengths[0] < lengths[1]


def test_fewer_continuations_than_beams_are_refused():
    tokens, scores = build().beam_search([1], 1, beams=7, return_beams=True)
    assert tokens.shape == (7, 1)
    assert scores[:4].isfinite().all()
    assert (scores[4:] == -float("inf")).all()
    assert scores[:4].exp().sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("cache_kv", [True, False])
def test_cross_attention(cache_kv):
    wrapper = build(cross_attend=True, rotary_pos_emb=True)
    context = torch.randn(3, 5, 16, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([[5], [2], [4]])
    got = wrapper.beam_search(PROMPTS, 3, beams=16, context=context, context_mask=mask, cache_kv=cache_kv)
    for row, prompt in enumerate(PROMPTS):
        side = {"context": context[row : row + 1], "context_mask": mask[row : row + 1]}
        assert got[row].tolist() == every(wrapper, prompt, 3, None, 0.0, **side)[0][1]


def test_prefix_and_kinds():
    wrapper = build(model="prefix_decoder", embed_num_tokens={"side": 2})
    lengths = torch.tensor([3, 1, 2])
    how = {"embed_ids": {"side": torch.tensor([[0, 1, 1]] * 3)}, "prefix_attn_len": lengths, "beams": 3}
    got = wrapper.beam_search(PROMPTS, 6, **how)
    assert torch.equal(got, wrapper.beam_search(PROMPTS, 6, cache_kv=False, **how))


def test_beam_search_of_an_encoder_decoder():
    sizes = {prefix + name: v for prefix in ("enc_", "dec_") for name, v in SIZES.items() if name != "dim"}
    torch.manual_seed(3)
    model = flagformer.XTransformer(dim=16, **sizes).train()
    src, mask = torch.randint(4, (3, 5)), torch.arange(5) < torch.tensor([[5], [2], [4]])
    got = model.beam_search(src, PROMPTS, 3, beams=16, mask=mask)
    assert all(module.training for module in model.modules())
    model.eval()
    encoded = model.encode(src, mask)
    for row, prompt in enumerate(PROMPTS):
        side = {"context": encoded[row : row + 1], "context_mask": mask[row : row + 1]}
        assert got[row].tolist() == every(model.decoder, prompt, 3, None, 0.0, **side)[0][1]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"beams": 0}, "`beams` must be a whole number of at least 1, but is 0"),
        ({"length_penalty": -1}, "`length_penalty` must be a number of at least 0, but is -1"),
        ({"eos_token": 4}, "`eos_token` must be an id from 0 to 3"),
        ({"seq_len": 15}, "`seq_len` must be at most 14 after 3 prompt tokens"),
    ],
)
def test_mistakes_are_named(how, says):
    with pytest.raises(ValueError) as error:
        build().beam_search(**{"prompts": PROMPTS, "seq_len": 3, **how})
    assert says in str(error.value)
