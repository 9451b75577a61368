"""The generated tasks, checked against their definitions in plain loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flagformer.data import IGNORE
from flagformer.data.associative_recall import AssociativeRecall
from flagformer.data.copy_task import Copy


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


@settings(max_examples=30, deadline=None)
@given(data=st.data(), pairs=st.integers(1, 6), values=st.integers(2, 20), step=st.integers(0, 1000))
def test_recall_asks_every_key_once_for_its_value(data, pairs, values, step):
    keys = data.draw(st.integers(pairs, 20))
    seq_len = data.draw(st.integers(4 * pairs, 60))
    task = AssociativeRecall(source="associative_recall", pairs=pairs, keys=keys, values=values)
    inputs, targets = task.batch("test", step, 3, 3, seq_len)
    for row, wanted in zip(inputs.tolist(), targets.tolist()):
        bound = dict(zip(row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2]))
        assert len(bound) == pairs
        assert all(1 <= key <= keys < value <= keys + values for key, value in bound.items())
        asked = [place for place, target in enumerate(wanted) if target != IGNORE]
        assert sorted(row[place] for place in asked) == sorted(bound)
        for place in asked:
            assert place >= 2 * pairs
            assert wanted[place] == bound[row[place]]
        blanks = set(range(2 * pairs, seq_len)) - set(asked)
        assert all(row[place] == 0 for place in blanks)


def test_recall_prefers_short_gaps_and_reaches_the_end():
    task = AssociativeRecall(source="associative_recall", pairs=4)
    targets = task.batch("train", 0, 0, 2000, 64)[1]
    asked = (targets != IGNORE).sum(0)[8::2]  # 28 places that can be asked at
    assert asked[0] > asked[3] > asked[12]
    assert asked[-1] > 0
    uniform = AssociativeRecall(source="associative_recall", pairs=4, power=1.0).batch(
        "train", 0, 0, 2000, 64
    )[1]
    counts = (uniform != IGNORE).sum(0)[8::2].float()
    # 4 * 2000 questions over 28 places: 286 each, standard deviation below 17; six of them
    assert (counts - 8000 / 28).abs().max() < 100


@pytest.mark.parametrize("task", [Copy(source="copy"), AssociativeRecall(source="associative_recall")])
def test_chance_is_what_the_best_constant_guess_reaches(task):
    targets = task.batch("train", 0, 0, 500, 64)[1]
    counts = torch.bincount(targets[targets != IGNORE], minlength=task.num_tokens)
    share = counts.max() / counts.sum()
    # 4000 draws or more over 32 symbols: a count of 125 varies by 11, the luckiest stays under 1.5 times 125
    assert task.chance < share < 1.5 * task.chance


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="at least 4 \\* pairs = 32"):
        AssociativeRecall(source="associative_recall").check("train", 31)
    with pytest.raises(ValueError, match="`keys` must be at least `pairs` = 9"):
        AssociativeRecall(source="associative_recall", pairs=9, keys=8).check("train", 64)
    with pytest.raises(ValueError, match="at least 2"):
        Copy(source="copy").check("train", 1)
