"""Packed rows, epochs and mixtures: every token once, documents apart, and exact resumption."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

import flagformer
from flagformer.lab.data import IGNORE
from flagformer.lab.data.catalogue import DataConfig
from flagformer.lab.data.packing import Packing, row_table
from flagformer.lab.data.permutation import permuted
from flagformer.lab.data.token_store import Spans
from flagformer.lab.train.config import TrainConfig, Trial

READER = TypeAdapter(DataConfig)
LENGTHS = np.array([3, 1, 30, 8, 9, 10, 2, 17, 5])


@pytest.mark.parametrize("size", [1, 2, 3, 100, 4097])
def test_a_permutation_has_every_index_once(size: int) -> None:
    found = permuted(np.arange(size), size, "x", 1)
    assert sorted(found.tolist()) == list(range(size))
    assert permuted(np.arange(size)[-1:], size, "x", 1) == found[-1:]
    if size > 3:
        assert found.tolist() != permuted(np.arange(size), size, "x", 2).tolist()
        assert abs(np.corrcoef(found, np.arange(size))[0, 1]) < 0.3


@pytest.mark.parametrize("packing", ["documents", "padded", "windows"])
def test_every_token_but_the_first_of_a_document_is_one_target(packing: Packing) -> None:
    spans = Spans(np.cumsum(LENGTHS) - LENGTHS + 100, LENGTHS)
    table = row_table(packing, spans, 8, 8)
    targets: Counter[int] = Counter()
    for index in range(table.count):
        row = table.row(index)
        assert sum(count - 1 for ranges in row for _, count in ranges[-1:]) <= 8
        for ranges in row:
            places = [start + i for start, count in ranges for i in range(count)]
            targets.update(places[1:])
    every = {100 + i for i in range(int(LENGTHS.sum()))}
    if packing == "windows":
        assert set(targets) == set(range(101, 100 + 8 * table.count + 1))
    else:
        assert set(targets) == every - set((np.cumsum(LENGTHS) - LENGTHS + 100).tolist())
    assert set(targets.values()) == {1}
    if packing == "documents":
        assert table.count == 12, "documents of up to eight targets are whole, in order"


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records of 3 to 40 bytes."""
    monkeypatch.setenv("FLAGFORMER_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(1)
    lines = [
        "".join(chr(x) for x in generator.integers(97, 123, size)) for size in generator.integers(3, 40, 90)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    return path


def block(path: Path, **fields: object) -> dict[str, object]:
    return {"source": "jsonl", "path": str(path), "field": "text", "separator": ";", "seq_len": 32, **fields}


def test_packed_documents_are_read_as_alone(texts: Path) -> None:
    source = READER.validate_python(block(texts, packing="documents"))
    inputs, targets = source.batch("train", 0, 0, 3, 32)
    lengths = source.sequence_lengths("train", 0, 0, 3, 32)
    flags = {"num_tokens": 256, "max_seq_len": 32, "dim": 16, "depth": 2, "heads": 2, "rotary_pos_emb": True}
    model = flagformer.build(flags).double().eval()
    with torch.no_grad():
        packed = model(inputs, seq_lens=lengths)
        for row, sizes in enumerate(lengths.tolist()):
            start = 0
            for size in filter(None, sizes):
                alone = model(inputs[row : row + 1, start : start + size])[0]
                assert torch.allclose(packed[row, start : start + size], alone, atol=1e-9)
                assert (targets[row, start : start + size] != IGNORE).all()
                start += size
            assert (targets[row, start:] == IGNORE).all()


@pytest.mark.parametrize("packing", ["documents", "padded", "windows"])
def test_an_epoch_has_every_row_once_in_an_order_of_its_own(texts: Path, packing: str) -> None:
    source = READER.validate_python(block(texts, packing=packing))
    count = source._rows("train", 32).count
    rows = [tuple(source.batch("train", step, 5, 1, 32)[0][0].tolist()) for step in range(2 * count)]
    assert Counter(rows[:count]) == Counter(rows[count:])
    assert rows[:count] != rows[count:]
    together = torch.cat([source.batch("train", step, 5, 7, 32)[0] for step in range(3)])
    assert [tuple(row) for row in together.tolist()] == rows[:21], (
        "the order does not depend on the batch size"
    )
    assert rows[:9] != [tuple(source.batch("train", step, 6, 1, 32)[0][0].tolist()) for step in range(9)]


def test_bytes_are_those_of_the_targets(texts: Path) -> None:
    for packing in ("documents", "padded", "windows"):
        source = READER.validate_python(block(texts, packing=packing))
        targets = source.batch("test", 1, 0, 3, 32)[1]
        assert source.is_bytes
        assert source.target_bytes("test", 1, 0, 3, 32) == int((targets != IGNORE).sum())


def test_a_mixture_has_its_shares_and_continues_every_source(texts: Path) -> None:
    parts = {
        "text": {"weight": 3, "data": {k: v for k, v in block(texts).items() if k != "seq_len"}},
        "copy": {"weight": 1, "data": {"source": "copy", "symbols": 11}},
    }
    source = READER.validate_python({"source": "mixture", "seq_len": 32, "parts": parts})
    text = source.parts["text"].data
    rows = [source._rows("train", step, 0, 50) for step in range(200)]
    shares = Counter(type(one).__name__ for batch in rows for one, _ in batch)
    assert shares == {"Records": 7500, "Copy": 2500}
    numbers = [number for batch in rows for one, number in batch if one is text]
    assert numbers == list(range(7500))
    inputs, targets = source.batch("train", 2, 0, 8, 32)
    for row, (one, number) in enumerate(source._rows("train", 2, 0, 8)):
        assert torch.equal(inputs[row], one.batch("train", number, 0, 1, 32)[0][0])
    assert targets.shape == (8, 32)
    assert source.num_tokens == 256
    assert not source.is_bytes
    parts["copy"] = {"weight": 1, "data": {"source": "copy", "symbols": 11, "seq_len": 8}}
    with pytest.raises(ValidationError, match="`seq_len` is of the mixture"):
        READER.validate_python({"source": "mixture", "parts": parts})


def test_an_objective_gives_the_lengths_to_the_model(texts: Path) -> None:
    source = READER.validate_python(block(texts, packing="documents"))
    trial = Trial(flags={"dim": 16, "depth": 1, "heads": 2}, data=source)
    trial.check()
    model = flagformer.build(trial.model_flags).eval()
    ids, lengths, targets = trial.trained_by.batch(source, "train", 0, 0, 3, 32)
    with torch.no_grad():
        logits = trial.trained_by.ask(model, (ids, lengths), None, losses=False).logits
        assert torch.equal(logits, model(ids, seq_lens=lengths))
    assert targets.shape == ids.shape
    for kind, train in (("encoder", TrainConfig()), ("decoder", TrainConfig(segment=8))):
        with pytest.raises(ValueError, match="packing"):
            Trial(flags={**trial.flags, "model": kind}, data=source, train=train).check()
