"""Faults that occur only in long rows or only under autocast."""

import pytest
import torch

import flagformer
from flagformer import audit
from flagformer.ops.lengths import LENGTHS, LONG, LONG_TABLE
from flagformer.stack.long_rows import long_rows

FLAGS = {"num_tokens": 11, "max_seq_len": LONG + 4, "dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8}


def model_with(fault, **flags):
    """A decoder whose layer outputs [B, T, D] pass through `fault`."""
    torch.manual_seed(0)
    model = flagformer.build({**FLAGS, **flags})
    model.attn_layers.register_forward_hook(lambda module, given, out: fault(out))
    return model


def leaks_when_long(out):
    return out + 0.5 * out.flip(1) if out.shape[1] >= LONG else out


def leaks_in_half(out):
    return out + 0.5 * out.flip(1) if torch.is_autocast_enabled("cpu") else out


def raises_in_half_when_long(out):
    if torch.is_autocast_enabled("cpu") and out.shape[1] >= LONG:
        raise RuntimeError("expected scalar type Float but found BFloat16")
    return out


def test_rows_longer_than_a_change_of_path_are_checked():
    report = audit(model_with(leaks_when_long), checks=["future_leak", "length"])
    assert [result.status for result in report] == ["failed", "failed"]
    assert all(result.words.startswith(f"in rows of {LONG + 4} tokens: ") for result in report)
    assert audit(model_with(leaks_when_long, max_seq_len=LONG - 1), checks=["future_leak"]).passed


def mixes_rows(out):
    return out + 0.5 * out.flip(0) if out.shape[0] > 1 else out


def counts_the_row(out):
    return out * out.shape[1]


def counts_steps(out):
    return out + out.shape[1] % 2


def random_numbers(out):
    return out + torch.rand_like(out)


FAULTS = {
    "batch": mixes_rows, "right_padding": counts_the_row, "left_padding": counts_the_row,
    "packing": counts_the_row, "length": counts_the_row, "cache": counts_steps, "determinism": random_numbers,
    "finite": lambda out: out * float("nan"),
}  # fmt: skip


@pytest.mark.parametrize("check", FAULTS)
def test_every_check_covers_long_rows(check):
    def when_long(out):
        long = out.shape[1] >= LONG
        return FAULTS[check](out) if long or decoding else out

    model = model_with(when_long)
    decoding = False
    begin = model.init_state

    def init_state(batch, length, **given):
        nonlocal decoding
        decoding = length >= LONG
        return begin(batch, length, **given)

    model.init_state = init_state
    result = audit(model, checks=[check])[check]
    assert result.failed
    assert result.words.startswith(f"in rows of {LONG + 4} tokens: ")


def test_long_rows_are_batched_in_pairs():
    """All checks together run 85 long rows; the budget is a quarter above that."""
    model, rows = model_with(lambda out: out), []
    model.register_forward_pre_hook(lambda module, given: rows.append(given[0].shape))
    audit(model)
    assert {batch for batch, length in rows if length >= LONG} == {1, 2}
    assert sum(batch for batch, length in rows if length >= LONG) <= 106


def test_the_precision_of_training_is_checked():
    assert audit(model_with(leaks_in_half), checks=["future_leak"]).passed
    result = audit(model_with(leaks_in_half), checks=["future_leak"], precision="bf16")["future_leak"]
    assert result.failed
    assert "under bf16 autocast" in result.words


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_an_error_under_autocast_in_long_rows_is_not_finite(precision):
    result = audit(model_with(raises_in_half_when_long), checks=["finite"], precision=precision)["finite"]
    assert result.failed
    low = "fp16" if precision == "fp16" else "bf16"
    assert result.words.startswith(f"in rows of {LONG + 4} tokens: under {low} autocast: the model raises")


def test_precision_is_one_of_three_names():
    with pytest.raises(ValueError, match="`precision` must be one of fp32, bf16, fp16, but is 'half'"):
        audit(model_with(lambda out: out), precision="half")


def test_one_row_covers_all_path_changes_of_its_kind():
    flags = {**FLAGS, "max_seq_len": 4 * LONG_TABLE}

    def rows(longest, **more):
        return long_rows(flagformer.build({**flags, **more}).attn_layers, longest)

    assert rows(4 * LONG_TABLE) == tuple(length + length // 4 for length in LENGTHS)
    assert rows(LONG) == (LONG,)
    assert rows(LONG - 1) == ()
    # the largest of a window, a T5 table and local heads
    wide = {"attn_max_attend_past": 100, "rel_pos_bias": True, "rel_pos_max_distance": 40}
    local = {"n_local_attn_heads": 1, "local_attn_window_size": 60}
    assert rows(LONG - 1, **wide, **local) == (126,)  # 100 tokens and itself
    assert rows(LONG - 1, num_clusters=2, window_size=80) == (100,)
    assert rows(120, **wide) == (120,)
