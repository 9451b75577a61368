"""The generated tasks, checked against their definitions in plain loops."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flagformer.data import IGNORE
from flagformer.data.associative_recall import AssociativeRecall
from flagformer.data.copy_task import Copy
from flagformer.data.segment_recall import SegmentRecall


def recall(**fields: Any) -> AssociativeRecall:
    return AssociativeRecall(source="associative_recall", **fields)


@settings(max_examples=30, deadline=None)
@given(symbols=st.integers(2, 40), seq_len=st.integers(2, 50), step=st.integers(0, 1000))
def test_copy_repeats_the_first_half(symbols, seq_len, step):
    inputs, targets = Copy(source="copy", symbols=symbols).batch("train", step, 0, 3, seq_len)
    half = seq_len // 2
    for row, wanted in zip(inputs.tolist(), targets.tolist()):
        word = row[:half]
        assert all(token < symbols for token in word)
        expected_inputs = [*word, symbols, *word, symbols][:seq_len]
        expected_targets = [IGNORE] * half + word + [IGNORE] * (seq_len - 2 * half)
        assert row == expected_inputs
        assert wanted == expected_targets


@settings(max_examples=40, deadline=None)
@given(data=st.data(), pairs=st.integers(1, 6), asks=st.integers(1, 3), answers=st.booleans())
def test_recall_asks_every_key_for_its_value(data, pairs, asks, answers):
    keys = data.draw(st.integers(pairs, 20))
    seq_len = data.draw(st.integers(2 * pairs * (1 + asks), 70))
    task = recall(pairs=pairs, asks=asks, answers=answers, keys=keys, values=7)
    inputs, targets = task.batch("test", data.draw(st.integers(0, 1000)), 3, 3, seq_len)
    for row, wanted in zip(inputs.tolist(), targets.tolist()):
        bound = dict(zip(row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2]))
        assert len(bound) == pairs
        assert all(1 <= key <= keys < value <= keys + 7 for key, value in bound.items())
        asked = [place for place, target in enumerate(wanted) if target != IGNORE]
        assert sorted(row[place] for place in asked) == sorted(list(bound) * asks)
        expected = row[: 2 * pairs] + [0] * (seq_len - 2 * pairs)
        for place in asked:
            assert place >= 2 * pairs
            assert wanted[place] == bound[row[place]]
            expected[place] = row[place]
            if answers:
                expected[place + 1] = bound[row[place]]
        assert row == expected


def test_recall_prefers_short_gaps_and_reaches_the_end():
    targets = recall(pairs=4, asks=1).batch("train", 0, 0, 2000, 64)[1]
    asked = (targets != IGNORE).sum(0)[8::2]  # 28 places that can be asked at
    assert asked[0] > asked[3] > asked[12]
    assert asked[-1] > 0
    uniform = recall(pairs=4, asks=1, power=1.0).batch("train", 0, 0, 2000, 64)[1]
    counts = (uniform != IGNORE).sum(0)[8::2].float()
    # 4 * 2000 questions over 28 places: 286 each, standard deviation below 17; six of them
    assert (counts - 8000 / 28).abs().max() < 100


def test_no_pair_is_asked_earlier_than_another():
    inputs, targets = recall(pairs=4, asks=1).batch("train", 0, 0, 4000, 64)
    means = []
    for pair in range(4):
        keys = inputs[:, 2 * pair, None]
        places = ((inputs == keys) & (targets != IGNORE)).int().argmax(dim=1)
        means.append(places.double().mean().item())
    # places spread over 56 tokens with a deviation below 16: the mean of 4000 varies by 0.25; four of them
    assert max(means) - min(means) < 2


@pytest.mark.parametrize("task", [Copy(source="copy"), recall()])
def test_chance_is_what_the_best_constant_guess_reaches(task):
    targets = task.batch("train", 0, 0, 500, 64)[1]
    counts = torch.bincount(targets[targets != IGNORE], minlength=task.num_tokens)
    share = counts.max() / counts.sum()
    # 4000 draws or more over 32 symbols: a count of 125 varies by 11, the luckiest stays under 1.5 times 125
    assert task.chance < share < 1.5 * task.chance


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match=r"at least 2 \* pairs \* \(1 \+ asks\) = 64 .* is 63"):
        recall().check("train", 63)
    with pytest.raises(ValueError, match="`keys` must be at least `pairs` = 9"):
        recall(pairs=9, keys=8).check("train", 64)
    with pytest.raises(ValueError, match="at least 2"):
        Copy(source="copy").check("train", 1)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), segment=st.integers(1, 6), count=st.integers(2, 5), symbols=st.integers(2, 9))
def test_segments_ask_for_what_the_first_one_held(data, segment, count, symbols):
    stored = data.draw(st.integers(1, segment))
    delay = data.draw(st.none() | st.integers(1, count - 1))
    task = SegmentRecall(
        source="segment_recall", segment=segment, stored=stored, symbols=symbols, noise=3, delay=delay
    )
    seq_len = segment * count
    inputs, targets = task.batch("test", data.draw(st.integers(0, 1000)), 3, 3, seq_len)
    for row, wanted in zip(inputs.tolist(), targets.tolist()):
        held = row[:stored]
        assert all(stored <= token < stored + symbols for token in held)
        for place in range(stored, seq_len):
            number = place // segment
            asks = wanted[place] != IGNORE
            assert asks == (number > 0 and wanted[number * segment] != IGNORE)
            if asks:
                assert wanted[place] == held[row[place]]
            else:
                assert stored + symbols <= row[place] < task.num_tokens
            if delay is not None:
                assert asks == (number == delay)


def test_half_of_the_later_segments_ask():
    task = SegmentRecall(source="segment_recall", segment=2, stored=2)
    targets = task.batch("train", 0, 0, 2000, 10)[1].view(2000, 5, 2)
    shares = (targets != IGNORE).float().mean(dim=(0, 2)).tolist()
    assert shares[0] == 0
    # a coin each, and in one row of sixteen none said so: then the one that was nearest asks
    assert all(0.46 < share < 0.57 for share in shares[1:])
    assert (targets != IGNORE).flatten(1).any(dim=1).all()


@pytest.mark.parametrize(
    ("fields", "seq_len", "says"),
    [
        ({}, 12, "`seq_len` must be a multiple of `segment` = 8 and at least 16"),
        ({"delay": 3}, 24, "and at least 32"),
        ({"stored": 9}, 16, "`stored` must be at most `segment` = 8, but is 9"),
    ],
)
def test_segments_that_cannot_ask_are_refused(fields, seq_len, says):
    with pytest.raises(ValueError, match=says):
        SegmentRecall(source="segment_recall", **fields).check("train", seq_len)
