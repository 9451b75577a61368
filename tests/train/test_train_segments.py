"""Rows read in segments: memories for the next segment, gradients through them, refusals."""

import pytest
import torch
from tiny_trial import tiny

import flagformer
from flagformer.lab.objectives import token_losses
from flagformer.lab.objectives.segment_reader import read_rows
from flagformer.lab.train.trial import run_trial

SIZES = {"num_tokens": 11, "max_seq_len": 4, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
SLOTS = {"cross_attend": True, "num_memory_slots": 2, "mem_update_attn_heads": 2}
TOKENS = {"max_mem_len": 4, "rotary_pos_emb": True}
ROWS = torch.randint(0, 11, (3, 10), generator=torch.Generator().manual_seed(0))  # the last segment is short
TASK = {"source": "segment_recall", "seq_len": 12, "segment": 4, "stored": 2, "symbols": 3, "noise": 2}


def model_of(**flags):
    torch.manual_seed(0)
    return flagformer.build({**SIZES, **flags}).double()


def test_without_memory_segments_are_independent():
    model = model_of()
    alone = torch.cat([model(part) for part in ROWS.split(4, dim=1)], dim=1)
    torch.testing.assert_close(read_rows(model, ROWS, 4).logits, alone, rtol=0, atol=0)


@pytest.mark.parametrize("flags", [SLOTS, TOKENS, {**SLOTS, **TOKENS}], ids=["slots", "tokens", "both"])
def test_a_segment_uses_the_memories_of_earlier_ones(flags):
    model = model_of(**flags).eval()
    changed = ROWS.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 11
    apart = (read_rows(model, ROWS, 4).logits - read_rows(model, changed, 4).logits).abs().amax(dim=(0, 2))
    assert all(apart[:8] > 1e-6), "memories of two layers and slots reach the next segment at least"
    assert torch.equal(read_rows(model, ROWS[:, :4], 4).logits, model(ROWS[:, :4]))


def test_learning_through_slots_equals_replay():
    """`train_segments` gives the exact gradients of the mean over a text; its targets are the next tokens."""
    first, second = model_of(**SLOTS), model_of(**SLOTS)
    losses = token_losses(read_rows(first, ROWS[:, :-1], 4).logits, ROWS[:, 1:])
    losses.mean().backward()
    flagformer.train_segments(second, ROWS)
    for one, two in zip(first.parameters(), second.parameters()):
        assert one.grad is not None
        # losses are fp32, the rest is fp64
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6)


def test_the_auxiliary_loss_is_the_mean_of_the_segments():
    model = model_of(attn_z_loss_weight=1e-2)
    found = read_rows(model, ROWS, 4, losses=True).extra
    parts = [model(part, return_losses=True)[1].extra_loss * part.shape[1] / 10 for part in ROWS.split(4, 1)]
    torch.testing.assert_close(found, sum(parts))
    assert read_rows(model.eval(), ROWS, 4).extra is None


def test_a_trial_uses_the_configured_segments(tmp_path):
    trial = tiny(flags=SLOTS, data=TASK, train={"segment": 4}, evaluate={"seq_lens": [12, 24], "batches": 2})
    assert trial.model_flags["max_seq_len"] == 4
    result = run_trial(trial, tmp_path)
    assert result["status"] == "finished"
    assert [entry["seq_len"] for entry in result["evaluation"]] == [12, 24]
    whole = tiny(data=TASK, evaluate={"seq_lens": [12], "batches": 2})
    assert whole.model_flags["max_seq_len"] == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flags": {**SLOTS, "max_seq_len": 3}, "train": {"segment": 4}}, "`max_seq_len` must be at least 4"),
        (
            {"flags": {**SLOTS, "rotary_pos_emb": True, "max_seq_len": 4}},
            "`max_seq_len` must be at least 24.*slots",
        ),
        ({"flags": {"max_seq_len": 3}, "train": {"segment": 4}}, "at least 4.*absolute positions"),
    ],
)
def test_segments_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes).check()


def test_images_have_no_segments():
    pytest.importorskip("sklearn")
    flags = {"model": "vit", "dim": 16, "depth": 1, "heads": 2, "image_size": 8, "patch_size": 4}
    with pytest.raises(ValueError, match="`segment` must be left out for images"):
        tiny(flags=flags, data={"source": "digits"}, train={"segment": 4}, evaluate={}).check()
