"""Contrastive decoding: the formula, amateurs with decode state, refusals."""

import logging
import math

import pytest
import torch
from x_transformers.autoregressive_wrapper import contrastive_decode_fn

from flagformer import AutoregressiveWrapper
from flagformer.generation import contrast
from perturbed_models import perturbed

SIZES = {"num_tokens": 13, "max_seq_len": 24, "heads": 2, "attn_dim_head": 8, "depth": 2}
PROMPTS = [[3, 1, 4], [1], [5, 9]]


def build(seed, **flags):
    return AutoregressiveWrapper(perturbed({**SIZES, "dim": 16, **flags}, seed).eval())


def test_the_formula():
    expert, amateur = torch.randn(5, 13), torch.randn(5, 13)
    got = contrast(expert, amateur, beta=0.7, alpha=0.3)
    for row in range(5):
        probs = expert[row].softmax(-1)
        for token in range(13):
            if probs[token] < 0.3 * probs.max():
                assert got[row, token] == -math.inf
            else:
                want = 1.7 * expert[row, token] - 0.7 * amateur[row, token]
                assert got[row, token].item() == pytest.approx(want.item(), abs=1e-5)
    theirs = contrastive_decode_fn(expert, amateur, alpha=0.3, beta=0.7)
    kept = got.isfinite()
    torch.testing.assert_close(got[kept], theirs[kept])
    assert torch.equal(kept, theirs > -1e30)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("cache_kv", [True, False])
def test_greedy_tokens_by_hand(several, cache_kv):
    wrapper, amateurs = build(0, rotary_pos_emb=True), [build(1, depth=1).net, build(2, alibi_pos_bias=True)]
    given = amateurs if several else amateurs[0]
    settings = {"beta": 0.8, "alpha": 0.05}
    new = wrapper.generate(
        PROMPTS, 10, temperature=0, amateur_model=given, contrastive_decode_kwargs=settings, cache_kv=cache_kv
    )
    for row, prompt in enumerate(PROMPTS):
        text = list(prompt)
        for token in new[row].tolist():
            logits = wrapper.net(torch.tensor([text]))[0, -1]
            for net in [amateurs[0], amateurs[1].net][: 2 if several else 1]:
                logits = contrast(logits, net(torch.tensor([text]))[0, -1], 0.8, 0.05)
            assert token == logits.argmax().item()
            text.append(token)
    assert not torch.equal(new, wrapper.generate(PROMPTS, 10, temperature=0))


def test_beta_zero_equals_greedy_and_modes_are_restored():
    wrapper, amateur = build(0, rotary_pos_emb=True), build(1).train()
    how = {"temperature": 0, "amateur_model": amateur, "contrastive_decode_kwargs": {"beta": 0}}
    assert torch.equal(wrapper.generate(PROMPTS, 8, **how), wrapper.generate(PROMPTS, 8, temperature=0))
    assert all(module.training for module in amateur.modules())


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"contrastive_decode_kwargs": {"gamma": 1}}, "must hold `beta` and `alpha` only"),
        ({"contrastive_decode_kwargs": {"beta": -1}}, "`beta` must be a number of at least 0, but is -1"),
        ({"contrastive_decode_kwargs": {"alpha": 0}}, "`alpha` must be a number above 0"),
    ],
)
def test_mistakes_are_named(how, says):
    logging.getLogger("x_transformers").setLevel(logging.ERROR)
    with pytest.raises(ValueError) as error:
        build(0).generate(PROMPTS, 3, amateur_model=build(1), **how)
    assert says in str(error.value)


def test_another_vocabulary_or_no_model_is_refused():
    with pytest.raises(ValueError, match="must have the expert's 13 tokens, but has 9"):
        build(0).generate(PROMPTS, 3, amateur_model=build(1, num_tokens=9))
    with pytest.raises(ValueError, match="must be a TransformerWrapper, but is Linear"):
        build(0).generate(PROMPTS, 3, amateur_model=torch.nn.Linear(2, 2))
