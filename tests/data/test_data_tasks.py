"""The generated tasks, checked against their definitions in plain loops."""

from typing import Any

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from flagformer.lab.data import IGNORE
from flagformer.lab.data.associative_recall import AssociativeRecall
from flagformer.lab.data.compression import Compression
from flagformer.lab.data.copy_task import Copy
from flagformer.lab.data.fuzzy_recall import FuzzyRecall
from flagformer.lab.data.induction import Induction
from flagformer.lab.data.list_ops import BLANK, CLOSE, DIGITS, END, ListOps
from flagformer.lab.data.long_retrieval import LongRetrieval
from flagformer.lab.data.parity import Parity
from flagformer.lab.data.reverse import Reverse
from flagformer.lab.data.segment_recall import SegmentRecall
from flagformer.lab.data.selective_copy import SelectiveCopy


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
def test_recall_queries_every_key_once(data, pairs, asks, answers):
    keys = data.draw(st.integers(pairs, 20))
    seq_len = data.draw(st.integers(2 * pairs * (1 + asks), 70))
    task = recall(pairs=pairs, asks=asks, answers=answers, keys=keys, values=7)
    inputs, targets = task.batch("test", data.draw(st.integers(0, 1000)), 3, 3, seq_len)
    for row, wanted in zip(inputs.tolist(), targets.tolist()):
        bound = dict(zip(row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2]))
        assert len(bound) == pairs
        assert all(1 <= key <= keys < value <= keys + 7 for key, value in bound.items())
        asked = [position for position, target in enumerate(wanted) if target != IGNORE]
        assert sorted(row[position] for position in asked) == sorted(list(bound) * asks)
        expected = row[: 2 * pairs] + [0] * (seq_len - 2 * pairs)
        for position in asked:
            assert position >= 2 * pairs
            assert wanted[position] == bound[row[position]]
            expected[position] = row[position]
            if answers:
                expected[position + 1] = bound[row[position]]
        assert row == expected


@pytest.mark.parametrize(("wait", "answers"), [(1, True), (20, False)])
def test_recall_waits_before_the_first_query(wait, answers):
    task = recall(pairs=2, asks=2, keys=5, values=7, wait=wait, answers=answers)
    inputs, targets = task.batch("train", 0, 0, 500, 12 + wait)
    assert not inputs[:, 4 : 4 + wait].any()
    asked = targets >= 0
    assert not asked[:, : 4 + wait].any()
    assert asked[:, 4 + wait].any()
    assert (asked.sum(dim=1) == 4).all()
    if answers:
        assert torch.equal(inputs.roll(-1, dims=1)[asked], targets[asked])


def test_recall_prefers_short_gaps_and_reaches_the_end():
    targets = recall(pairs=4, asks=1).batch("train", 0, 0, 2000, 64)[1]
    asked = (targets != IGNORE).sum(0)[8::2]  # 28 positions where a query can be
    assert asked[0] > asked[3] > asked[12]
    assert asked[-1] > 0
    uniform = recall(pairs=4, asks=1, power=1.0).batch("train", 0, 0, 2000, 64)[1]
    counts = (uniform != IGNORE).sum(0)[8::2].float()
    # 4 * 2000 questions over 28 positions: 286 each, standard deviation below 17; six of them
    assert (counts - 8000 / 28).abs().max() < 100


def test_the_order_of_pairs_does_not_affect_their_queries():
    inputs, targets = recall(pairs=4, asks=1).batch("train", 0, 0, 4000, 64)
    means = []
    for pair in range(4):
        keys = inputs[:, 2 * pair, None]
        places = ((inputs == keys) & (targets != IGNORE)).int().argmax(dim=1)
        means.append(places.double().mean().item())
    # positions spread over 56 tokens with a deviation below 16: the mean of 4000 varies by 0.25; four of them
    assert max(means) - min(means) < 2


@pytest.mark.parametrize("task", [Copy(source="copy"), recall()])
def test_chance_is_the_accuracy_of_the_best_constant_guess(task):
    targets = task.batch("train", 0, 0, 500, 64)[1]
    counts = torch.bincount(targets[targets != IGNORE], minlength=task.num_tokens)
    share = counts.max() / counts.sum()
    # 4000 draws or more over 32 symbols: a count of 125 varies by 11, the luckiest stays under 1.5 times 125
    assert task.chance < share < 1.5 * task.chance


def test_impossible_sizes_are_refused():
    with pytest.raises(
        ValueError,
        match=r"at least 64 for associative_recall \(2 \* pairs \* \(1 \+ asks\) \+ wait\), but is 63",
    ):
        recall().check("train", 63)
    with pytest.raises(ValueError, match="`keys` must be at least `pairs` = 9"):
        recall(pairs=9, keys=8).check("train", 64)
    with pytest.raises(ValueError, match="at least 2"):
        Copy(source="copy").check("train", 1)


def rows_of(task: Any, seq_len: int, step: int = 0, batch_size: int = 40) -> Any:
    """Pairs of plain lists: the row, and {position: target} of the scored tokens."""
    inputs, targets = task.batch("train", step, 0, batch_size, seq_len)
    for row, wanted in zip(inputs.tolist(), targets.tolist()):
        yield row, {position: target for position, target in enumerate(wanted) if target != IGNORE}


@pytest.mark.parametrize("seq_len", [2, 7, 16])
def test_reverse_repeats_the_first_half_backwards(seq_len):
    for row, scored in rows_of(Reverse(source="reverse", symbols=9), seq_len):
        half = seq_len // 2
        assert row[half] == 9
        assert list(scored.values()) == row[:half][::-1]
        assert list(scored) == list(range(half, 2 * half))


@pytest.mark.parametrize("seq_len", [6, 20])
def test_selective_copy_keeps_the_order(seq_len):
    for row, scored in rows_of(SelectiveCopy(source="selective_copy", symbols=9, copies=3), seq_len):
        front = seq_len - 3
        assert row[front] == 10
        word = [token for token in row[:front] if token < 9]
        assert len(word) == 3
        assert row[:front].count(9) == front - 3
        assert scored == dict(zip(range(front, seq_len), word))
        assert row[front + 1 :] == word[:-1]


@pytest.mark.parametrize("seq_len", [3, 4, 30])
def test_induction_queries_the_token_after_the_mark(seq_len):
    for row, scored in rows_of(Induction(source="induction", symbols=9), seq_len):
        first = row.index(9)
        assert [position for position, token in enumerate(row) if token == 9] == [first, seq_len - 1]
        assert first < seq_len - 2
        assert scored == {seq_len - 1: row[first + 1]}


@pytest.mark.parametrize("width", [1, 2, 3])
def test_fuzzy_recall_binds_whole_keys(width):
    task = FuzzyRecall(source="fuzzy_recall", pairs=4, width=width, keys=5, values=6)
    least = 4 * width * 4
    for seq_len in (least, least + 5):
        for row, scored in rows_of(task, seq_len):
            front = seq_len - least
            assert row[:front] == [0] * front
            words = [tuple(row[position : position + width]) for position in range(front, seq_len, width)]
            bindings = dict(zip(words[0:8:2], words[1:8:2]))
            assert len(bindings) == 4
            assert all(1 <= token <= 5 for key in bindings for token in key)
            assert all(6 <= token <= 11 for value in bindings.values() for token in value)
            asked = list(zip(words[8::2], words[9::2]))
            assert sorted(asked) == sorted(bindings.items())
            expected = {}
            for number, (_, value) in enumerate(asked):
                start = front + least // 2 + 2 * width * number + width
                expected |= {start + position - 1: token for position, token in enumerate(value)}
            assert scored == expected


@pytest.mark.parametrize("seq_len", [3, 8, 9])
def test_compression_scores_every_symbol_at_the_blanks(seq_len):
    for row, scored in rows_of(Compression(source="compression", symbols=9), seq_len):
        length = (seq_len - 1) // 2
        assert row[length] == 10
        assert row[length + 1 :] == [9] * (seq_len - length - 1)
        assert scored == {length + 1 + position: row[position] for position in range(length)}


def test_parity_is_scored_at_every_position():
    for row, scored in rows_of(Parity(source="parity"), 17):
        assert scored == {position: sum(row[: position + 1]) % 2 for position in range(17)}


def read_expression(tokens: list[int]) -> tuple[int, list[int], int]:
    """(value, remaining tokens, depth) of the expression at the start of `tokens`; an independent check."""
    head, *rest = tokens
    if head < DIGITS:
        return head, rest, 0
    values, deepest = [], 0
    while rest[0] != CLOSE:
        value, rest, depth = read_expression(rest)
        values.append(value)
        deepest = max(deepest, depth)
    assert 2 <= len(values) <= 4
    middle = sorted(values)[len(values) // 2 - (len(values) % 2 == 0)]
    value = {10: max(values), 11: min(values), 12: middle, 13: sum(values) % 10}[head]
    return value, rest[1:], deepest + 1


@pytest.mark.parametrize("seq_len", [5, 12, 40])
def test_list_ops_is_the_value_of_the_expression(seq_len):
    found, deepest = [], 0
    for row, scored in rows_of(ListOps(source="list_ops", depth=3), seq_len, batch_size=300):
        tokens = [token for token in row if token != BLANK]
        assert row == [BLANK] * (seq_len - len(tokens)) + tokens
        assert tokens[-1] == END
        value, left, depth = read_expression(tokens[:-1])
        assert (left, scored) == ([], {seq_len - 1: value})
        found.append(value)
        deepest = max(deepest, depth)
    assert deepest == (1 if seq_len < 8 else 2 if seq_len < 11 else 3)
    assert all(10 <= found.count(digit) <= 55 for digit in range(10))  # 30 each, five standard deviations


@pytest.mark.parametrize("seq_len", [3, 64])
def test_long_retrieval_queries_at_the_end(seq_len):
    for row, scored in rows_of(LongRetrieval(source="long_retrieval", keys=3, values=5, noise=4), seq_len):
        [position] = [position for position, token in enumerate(row[:-1]) if 4 <= token < 7]
        assert position <= max(0, (seq_len - 2) // 8)
        assert row[-1] == row[position]
        assert scored == {seq_len - 1: row[position + 1]}
        assert 7 <= row[position + 1] < 12


@pytest.mark.parametrize(
    ("task", "seq_len", "words"),
    [
        (Reverse(source="reverse"), 1, r"at least 2 for reverse \(a symbol and the separator\), but is 1"),
        (SelectiveCopy(source="selective_copy"), 15, r"at least 16 for selective_copy \(2 \* copies\)"),
        (FuzzyRecall(source="fuzzy_recall", pairs=9, width=1, keys=8), 99, r"at most keys \*\* width = 8"),
        (ListOps(source="list_ops"), 4, "at least 5 for list_ops .*, but is 4"),
    ],
)
def test_rows_that_are_too_short_are_refused(task, seq_len, words):
    with pytest.raises(ValueError, match=words):
        task.check("train", seq_len)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), segment=st.integers(1, 6), count=st.integers(2, 5), symbols=st.integers(2, 9))
def test_later_segments_query_symbols_of_the_first(data, segment, count, symbols):
    stored = data.draw(st.integers(1, segment))
    delay = data.draw(st.none() | st.integers(1, count - 1))
    task = SegmentRecall(
        source="segment_recall", segment=segment, stored=stored, symbols=symbols, noise=3, delay=delay
    )
    seq_len = segment * count
    step = data.draw(st.integers(0, 1000))
    try:
        inputs, targets = task.batch("test", step, 3, 3, seq_len)
    except ValueError:  # a few rows in all, of which none is in the test split
        assert stored * symbols < 9
        reject()
    for row, wanted in zip(inputs.tolist(), targets.tolist()):
        memory = row[:stored]
        assert all(stored <= token < stored + symbols for token in memory)
        for position in range(stored, seq_len):
            number = position // segment
            asks = wanted[position] != IGNORE
            assert asks == (number > 0 and wanted[number * segment] != IGNORE)
            if asks:
                assert wanted[position] == memory[row[position]]
            else:
                assert stored + symbols <= row[position] < task.num_tokens
            if delay is not None:
                assert asks == (number == delay)


def test_half_of_the_later_segments_query():
    task = SegmentRecall(source="segment_recall", segment=2, stored=2)
    targets = task.batch("train", 0, 0, 2000, 10)[1].view(2000, 5, 2)
    shares = (targets != IGNORE).float().mean(dim=(0, 2)).tolist()
    assert shares[0] == 0
    # a coin toss each; in one row of sixteen none was heads: then the nearest one queries
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
def test_segments_too_small_for_a_query_are_refused(fields, seq_len, says):
    with pytest.raises(ValueError, match=says):
        SegmentRecall(source="segment_recall", **fields).check("train", seq_len)
