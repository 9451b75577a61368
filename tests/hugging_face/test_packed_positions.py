"""Packed rows by `position_ids`, and the logits of trainers that apply the head themselves."""

import pytest
import torch
import torch.nn.functional as F

import flagformer

transformers = pytest.importorskip("transformers", reason="pip install 'flagformer[hf]'")

from flagformer.interop.hugging_face import FlagformerForCausalLM  # noqa: E402

V = 17
SIZES = {"num_tokens": V, "max_seq_len": 32, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
ROTARY = {"rotary_pos_emb": True}
FLAGS = {
    "rotary": {**ROTARY, "logits_bias": True, "logits_scale": 0.5, "logits_softcap": 2.0},
    "absolute": {},
    "tied": {**ROTARY, "tie_embedding": True, "logits_bias": True, "emb_dim": 8},
    "tied, unit": {**ROTARY, "tie_embedding": True, "l2norm_embed": True, "logits_scale": 3.0},
    "transform": {**ROTARY, "head_transform": "gelu"},
    "hybrid": {"mixer": "gated_deltanet : attention"},
}


def wrapped(name):
    torch.manual_seed(0)
    return FlagformerForCausalLM.of(flagformer.build({**SIZES, **FLAGS[name]}).eval())


def documents(*lengths):
    return [torch.randint(1, V, (length,)) for length in lengths]


@pytest.mark.parametrize("name", ["rotary", "absolute", "hybrid"])
@torch.no_grad()
def test_packed_documents_are_read_apart(name):
    """By the collator of transformers, equal to one row for each document."""
    model, rows = wrapped(name), documents(5, 1, 9)
    batch = transformers.DataCollatorWithFlattening()([{"input_ids": row.tolist()} for row in rows])
    assert batch["position_ids"].shape == (1, 15)
    found = model(**batch)
    want = torch.cat([model(row[None]).logits[0] for row in rows])
    torch.testing.assert_close(found.logits[0], want, rtol=0, atol=1e-5)
    losses = [F.cross_entropy(model(row[None]).logits[0, :-1], row[1:], reduction="sum") for row in rows]
    torch.testing.assert_close(found.loss, sum(losses) / 12)


@torch.no_grad()
def test_positions_of_one_sequence_change_nothing():
    model, ids = wrapped("rotary"), torch.stack(documents(8, 8))
    mask = torch.tensor([[1] * 8, [0] * 3 + [1] * 5])
    want = model(ids, attention_mask=mask).logits
    given = (mask.cumsum(1) - 1).clamp(min=0)
    assert torch.equal(model(ids, attention_mask=mask, position_ids=given).logits, want)
    cache = model(ids[:, :5], attention_mask=mask[:, :5], use_cache=True).cache
    last = model(ids[:, 5:], attention_mask=mask, position_ids=given[:, 5:], cache=cache).logits
    torch.testing.assert_close(last, want[:, 5:], rtol=0, atol=1e-5)


def test_other_positions_are_refused():
    model, ids = wrapped("rotary"), torch.stack(documents(6, 6))
    packed = torch.tensor([[0, 1, 2, 0, 1, 2]])
    padded = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    refused = {
        r"`position_ids` must have shape \[2, 6\]": {"position_ids": torch.arange(4)[None]},
        r"`position_ids` must count the tokens of each row": {"position_ids": packed + 1},
        r"rows without padding": {"position_ids": packed, "attention_mask": padded},
        r"and no cache": {"position_ids": packed, "use_cache": True},
    }
    for text, given in refused.items():
        with pytest.raises(ValueError, match=text):
            model(ids, **given)


@pytest.mark.parametrize("name", FLAGS)
def test_base_model_and_head_give_the_logits(name):
    """As TRL computes its loss: the head's weight on the backbone's output, then factor and soft cap."""
    model, ids = wrapped(name), torch.stack(documents(8, 8))
    output = model.base_model(input_ids=ids)
    head = model.get_output_embeddings()
    logits = F.linear(output.last_hidden_state, head.weight, head.bias)
    if model.config.logit_scale is not None:
        logits = logits * model.config.logit_scale
    cap = model.config.final_logit_softcapping
    logits = logits if cap is None else (logits / cap).tanh() * cap
    torch.testing.assert_close(logits, model(ids).logits, rtol=0, atol=1e-5)
    del output
    assert (model.get_output_embeddings() is None) == FLAGS[name].get("tie_embedding", False)


def test_auxiliary_losses_are_not_left_out():
    torch.manual_seed(0)
    flags = {**SIZES, **ROTARY, "ff_moe": True, "moe_num_experts": 3, "moe_top_k": 2}
    model = FlagformerForCausalLM.of(flagformer.build(flags)).train()
    with pytest.raises(ValueError, match="would leave out the auxiliary losses"):
        model.base_model(input_ids=torch.ones(1, 4, dtype=torch.long))
