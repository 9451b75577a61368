"""`mask_prob`: which tokens are masked, when, and the loss is otherwise unchanged."""

import pytest
import torch

import flagformer
from flagformer import AutoregressiveWrapper
from flagformer.ops.drop import forgetful_causal_mask

SIZES = {"num_tokens": 13, "max_seq_len": 24, "dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8}


def build(mask_prob, **flags):
    torch.manual_seed(0)
    return AutoregressiveWrapper(flagformer.build({**SIZES, **flags}), mask_prob=mask_prob)


@pytest.fixture
def ids():
    return torch.randint(13, (2, 11), generator=torch.Generator().manual_seed(1))


def test_a_fraction_of_each_row_is_masked_except_first_tokens():
    real = torch.stack([torch.ones(12, dtype=torch.bool), torch.arange(12) >= 5])
    places = torch.arange(12)[None]
    seen = torch.stack([forgetful_causal_mask(real, places, 0.25)[:, 0, 0] for _ in range(200)])
    hidden = real & ~seen
    assert not hidden[:, 0, 0].any()
    assert not hidden[:, 1, 5].any()
    assert hidden.sum(-1).eq(torch.tensor([3, 2])).all()  # of 11 and 6 others, rounded up
    share = hidden[:, 0, 1:].float().mean(0)
    assert (share - 3 / 11).abs().max() < 0.16  # 200 samples: five standard errors
    packed = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4]])
    firsts = torch.stack([forgetful_causal_mask(real[:1], packed, 0.9)[0, 0, 0] for _ in range(20)])
    assert firsts[:, packed[0] == 0].all()


def test_it_acts_in_training_only(ids):
    forgetting, plain = build(0.4), build(0.0)
    assert torch.equal(forgetting.eval()(ids), plain.eval()(ids))
    forgetting.train()
    assert len({forgetting(ids).item() for _ in range(5)}) == 5


def test_masked_tokens_are_keys_of_no_query(ids):
    """The loss equals that of a forward with the same keys masked by hand."""
    wrapper = build(0.5).train()
    torch.manual_seed(4)
    got = wrapper(ids)
    torch.manual_seed(4)
    mask = forgetful_causal_mask(torch.ones(2, 10, dtype=torch.bool), torch.arange(10)[None], 0.5)
    assert not mask.all()
    logits = wrapper.net(ids[:, :-1], attn_mask=mask)
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("how", [{"mask": True}, {"seq_lens": [[4, 7], [6, 5]]}, {}])
def test_it_combines_with_padding_and_packing(how, ids):
    if "mask" in how:
        how = {"mask": torch.arange(11) < torch.tensor([[11], [6]])}
    wrapper = build(0.5, rotary_pos_emb=True).train()
    loss = wrapper(ids, **how)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in wrapper.parameters())


@pytest.mark.parametrize("value", [1.0, -0.1, "half"])
def test_invalid_probabilities_are_refused(value):
    with pytest.raises(ValueError, match="`mask_prob` must be at least 0 and below 1"):
        build(value)
