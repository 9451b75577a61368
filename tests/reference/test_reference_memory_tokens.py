"""Positions of memory tokens and tokens, row by row by hand, and the model on such rows."""

import pytest
import torch

import flagformer
from flagformer.flow import (
    InsertionPattern,
    Layout,
    interleave_packed,
    interleave_padded,
    interleave_unpadded,
)

T = 8
PATTERNS = [(2, None), (1, 3), (3, 2), (2, 1), (2, 50), (0, None)]
CPU = torch.device("cpu")


def pattern_of(memory, every):
    return InsertionPattern(memory) if every is None else InsertionPattern(memory, every)


def row_by_hand(entries, memory, every):
    """Labels of a row: ("m", i) for memory, the entry itself for others."""
    row = []
    for number, entry in enumerate(entries):
        if number % (every or 10**6) == 0:
            row += [("m", i) for i in range(memory)]
        row.append(entry)
    return row


def labels(index, row, memory):
    """The entry and the position at each valid index of a row."""
    numbers = index.source_index[row if len(index.source_index) > 1 else 0].tolist()
    valid = [True] * len(numbers) if index.layout.valid is None else index.layout.valid[row].tolist()
    found = [("m", n) if n < memory else n - memory for n in numbers]
    positions = index.layout.positions[row if len(index.layout.positions) > 1 else 0].tolist()
    return [(label, position) for label, position, is_valid in zip(found, positions, valid) if is_valid]


@pytest.mark.parametrize(("memory", "every"), PATTERNS)
@pytest.mark.parametrize("hidden", [[0, 3], [8, 1], [7, 7]])
@pytest.mark.parametrize("prepended", [0, 2])
def test_left_padded_rows(memory, every, hidden, prepended):
    valid = torch.arange(T) >= torch.tensor(hidden)[:, None]
    front = torch.tensor([[True, True], [True, False]])[:, :prepended]
    index = interleave_padded(pattern_of(memory, every), torch.cat([front, valid], dim=1), prepended)
    for row in (0, 1):
        entries = torch.cat([front, valid], dim=1)[row].nonzero()[:, 0].tolist()
        want = row_by_hand(entries, memory, every)
        assert labels(index, row, memory) == [(label, position) for position, label in enumerate(want)]
        start = index.layout.length - len(want)  # rows end at the last index
        assert [index.cache_positions[row, entry] for entry in entries] == [
            start + want.index(e) for e in entries
        ]


@pytest.mark.parametrize(("memory", "every"), PATTERNS)
def test_masked_tokens_after_the_first_keep_their_positions(memory, every):
    valid = torch.tensor([[False, True, False, True, True, False, False, False]])
    index = interleave_padded(pattern_of(memory, every), valid, 0)
    row = row_by_hand(list(range(1, T)), memory, every)
    # memory before a block is valid as long as a valid token follows
    last = row.index(4)
    want = [
        (label, position)
        for position, label in enumerate(row)
        if (position < last if isinstance(label, tuple) else valid[0, label])
    ]
    assert labels(index, 0, memory) == want


@pytest.mark.parametrize(("memory", "every"), PATTERNS)
@pytest.mark.parametrize("lengths", [[[3, 5], [1, 2]], [[8, 0], [4, 0]], [[0, 3], [2, 6]], [[0, 0], [1, 1]]])
def test_packed_rows(memory, every, lengths):
    index = interleave_packed(pattern_of(memory, every), Layout.packed(torch.tensor(lengths), T))
    for row in (0, 1):
        want, at = [], 0
        for length in lengths[row]:
            part = row_by_hand(list(range(at, at + length)), memory, every)
            want += [(label, position) for position, label in enumerate(part)]
            at += length
        assert labels(index, row, memory) == want
        segments = index.layout.segment_ids[row][index.layout.valid[row]].tolist()
        cached = [
            n for n, length in enumerate(lengths[row]) for _ in row_by_hand(range(length), memory, every)
        ]
        assert segments == cached


@pytest.mark.parametrize(("memory", "every"), PATTERNS)
@pytest.mark.parametrize("cached", [0, 1, 3, 6])
def test_unpadded_rows_after_cached_ones(memory, every, cached):
    index = interleave_unpadded(pattern_of(memory, every), cached, T, 0, CPU)
    before = len(row_by_hand(range(cached), memory, every))
    want = row_by_hand(range(cached + T), memory, every)[before:]
    assert index.layout.start == before
    memories, stream = (
        torch.arange(memory)[:, None] - 100.0,
        torch.arange(cached, cached + T)[None, :, None] + 0.0,
    )
    made = index.merge(memories, stream)[0, :, 0].tolist()
    assert made == [label[1] - 100 if isinstance(label, tuple) else label for label in want]
    assert torch.equal(index.unmerge(index.merge(memories, stream)), stream)
    assert index.layout.always_visible[0].tolist() == [isinstance(label, tuple) for label in want]


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize(("memory", "every"), [(2, None), (2, 3)])
def test_a_model_runs_its_row(kind, memory, every):
    """Positions are added to tokens only, memory tokens are in between, the head reads tokens."""
    flags = {"num_memory_tokens": memory, "memory_tokens_interspersed_every": every}
    sizes = {"num_tokens": 11, "max_seq_len": T, "dim": 16, "depth": 2, "heads": 2}
    model = flagformer.build({"model": kind, **sizes, **flags, "use_abs_pos_emb": True}).eval()
    ids = torch.randint(11, (2, T))
    x = model.token_emb.weight[ids] + model.pos_emb.table.weight[:T]
    row = row_by_hand(range(T), memory, every)
    tokens = model.memory.tokens
    parts = [tokens[e[1]].expand(2, -1) if isinstance(e, tuple) else x[:, e] for e in row]
    out = model.attn_layers(torch.stack(parts, dim=1))
    kept = out[:, [position for position, entry in enumerate(row) if not isinstance(entry, tuple)]]
    torch.testing.assert_close(model(ids), model.head.project(kept), rtol=1e-5, atol=1e-5)  # fp32 sums


def test_memory_tokens_are_initialised_like_tokens():
    torch.manual_seed(0)
    model = flagformer.build(
        {"num_tokens": 5, "max_seq_len": 4, "dim": 64, "depth": 1, "num_memory_tokens": 64}
    )
    assert abs(model.memory.tokens.std() * 8 - 1) < 0.05  # 4096 samples of standard deviation 1/8
