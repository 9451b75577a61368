"""PrefixDecoder: the decode state, the loss after the prefix, generation."""

import pytest
import torch

from flagformer import AutoregressiveWrapper
from perturbed_models import perturbed

SIZES = {"num_tokens": 13, "max_seq_len": 24, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
SCHEMES = {
    "learned": {}, "rotary": {"rotary_pos_emb": True}, "t5": {"rel_pos_bias": True},
    "alibi with memory": {"alibi_pos_bias": True, "attn_num_mem_kv": 2},
}  # fmt: skip
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [2, 6, 5]]
# fp32 sums of magnitude about 1 in another order
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def build(kind="prefix_decoder", **flags):
    return AutoregressiveWrapper(perturbed({"model": kind, **SIZES, **flags}).eval())


@pytest.fixture
def ids():
    return torch.randint(13, (2, 10), generator=torch.Generator().manual_seed(1))


def nats(wrapper, row, prefix, first):
    """The loss of each target from `first` on, each from a forward over exactly the tokens before it."""
    model = wrapper.net
    return [
        -model(row[None, :t], prefix_attn_len=prefix)[0, -1].log_softmax(-1)[row[t]]
        for t in range(first, len(row))
    ]


@pytest.mark.parametrize("flags", SCHEMES.values(), ids=SCHEMES)
def test_loss_counts_the_tokens_after_the_prefix(flags, ids):
    wrapper = build(**flags)
    want = torch.stack([*nats(wrapper, ids[0], 4, 4), *nats(wrapper, ids[1], 2, 2)]).mean()
    torch.testing.assert_close(wrapper(ids, prefix_attn_len=torch.tensor([4, 2])), want, **CLOSE)
    alone = torch.stack(nats(wrapper, ids[0], 4, 4)).mean()
    torch.testing.assert_close(wrapper(ids[:1], prefix_attn_len=4), alone, **CLOSE)


def test_loss_of_packed_sequences_after_their_prefixes(ids):
    wrapper = build(rotary_pos_emb=True)
    parts = [ids[0, :4], ids[0, 4:], ids[1, :7], ids[1, 7:]]
    want = torch.cat([torch.stack(nats(wrapper, part, 2, 2)) for part in parts]).mean()
    got = wrapper(ids, seq_lens=[[4, 6], [7, 3]], prefix_attn_len=2)
    torch.testing.assert_close(got, want, **CLOSE)


def test_without_a_prefix_it_is_causal(ids):
    wrapper = build(rotary_pos_emb=True)
    causal = build("decoder", rotary_pos_emb=True)
    causal.load_state_dict(wrapper.state_dict())
    torch.testing.assert_close(wrapper(ids), causal(ids), **CLOSE)
    assert torch.equal(
        wrapper.generate(PROMPTS, 8, temperature=0), causal.generate(PROMPTS, 8, temperature=0)
    )


@pytest.mark.parametrize("flags", SCHEMES.values(), ids=SCHEMES)
def test_cached_generation_equals_uncached_and_the_forward(flags):
    wrapper = build(**flags)
    lengths = torch.tensor([4, 2, 1])
    how = {"temperature": 0, "prefix_attn_len": lengths}
    new = wrapper.generate(PROMPTS, 16, **how)
    assert torch.equal(new, wrapper.generate(PROMPTS, 16, cache_kv=False, **how))
    assert len(new.unique()) > 2  # a text, not one token
    for row, prompt in enumerate(PROMPTS):
        alone = wrapper.generate(prompt, 16, temperature=0, prefix_attn_len=int(lengths[row]))
        assert torch.equal(new[row], alone)
        text = torch.cat([torch.tensor(prompt), alone])[None]
        logits = wrapper.net(text[:, :-1], prefix_attn_len=lengths[row])
        assert torch.equal(alone, logits[0, len(prompt) - 1 :].argmax(-1))


def test_past_max_seq_len_a_window_applies_to_the_prefix_too():
    wrapper = build(rotary_pos_emb=True)
    how = {"temperature": 0, "prefix_attn_len": 2}
    cached = wrapper.generate(PROMPTS, 40, **how)
    assert torch.equal(cached, wrapper.generate(PROMPTS, 40, cache_kv=False, **how))


def test_the_prefix_affects_generation():
    wrapper, seen = build(rotary_pos_emb=True), []
    for prefix in (None, 4):
        wrapper.generate(
            PROMPTS[0], 1, filter_logits_fn=lambda x: seen.append(x) or x, prefix_attn_len=prefix
        )
    assert (seen[0] - seen[1]).abs().max() > 1e-3


def test_the_state_stores_the_prefix(ids):
    model = build().net
    state = model.init_state(2, 10)
    model(ids[:, :5], state=state, prefix_attn_len=torch.tensor([4, 3]))
    with pytest.raises(ValueError, match=r"`state` holds 5 tokens already: leave it out, the state holds"):
        model(ids[:, 5:], state=state, prefix_attn_len=4)
    with pytest.raises(ValueError, match=r"must keep the prefix, 4 tokens, but is 3"):
        state.truncate(3)
    state.truncate(4)
    state.reorder(torch.tensor([1, 1]))
    assert state.prefix.tolist() == [3, 3]


def test_a_prefix_in_two_blocks_is_refused(ids):
    model = build().net
    with pytest.raises(ValueError, match=r"reaches to token 6, but the first block has 4"):
        model(ids[:, :4], state=model.init_state(2, 10), prefix_attn_len=6)
    starts = torch.tensor([0, 3])
    with pytest.raises(ValueError, match=r"reaches to token 5, but the first block has 4"):
        model(ids[:, :4], state=model.init_state(2, 10, seq_start_pos=starts), prefix_attn_len=2)


def test_generation_refuses_a_prefix_longer_than_a_prompt():
    with pytest.raises(
        ValueError, match=r"0 to the length of each prompt, but is \[3\] for lengths \[5, 2, 3\]"
    ):
        build().generate(PROMPTS, 3, prefix_attn_len=3)


@pytest.mark.parametrize("call", ["forward", "generate"])
def test_a_decoder_has_no_prefix(call, ids):
    wrapper = build("decoder")
    with pytest.raises(ValueError, match="`prefix_attn_len` is for PrefixDecoder"):
        wrapper(ids, prefix_attn_len=2) if call == "forward" else wrapper.generate(ids, 2, prefix_attn_len=2)
