"""Sequence to sequence: tasks and their answers, disjoint splits, teacher forcing, and exact match."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from objective_runs import held_out, mean_nats, trained, trial_of
from pydantic import TypeAdapter

import flagformer
from flagformer.lab.data.catalogue import DataConfig
from flagformer.lab.objectives.sequence_to_sequence import SequenceToSequence
from flagformer.lab.train.config import Trial
from flagformer.lab.train.trial import run_trial

READER = TypeAdapter(DataConfig)
ANSWERS = {
    "copy": lambda row: row,
    "reverse": lambda row: row[::-1],
    "sort": sorted,
}
KINDS = ("xtransformer", "memformer", "routing_encdec")


def number(digits: list[int]) -> int:
    return int("".join(map(str, digits)))


@pytest.mark.parametrize("name", ANSWERS)
def test_targets_are_the_answers(name: str) -> None:
    data = READER.validate_python({"source": name, "symbols": 9})
    sources, targets = data.paired("train", 2, 1, 16, 13)
    assert sources.shape == targets.shape == (16, 6)
    for source, target in zip(sources.tolist(), targets.tolist()):
        assert target == list(ANSWERS[name](source))


@pytest.mark.parametrize("reverse", [False, True])
def test_sums_are_right(reverse: bool) -> None:
    data = READER.validate_python({"source": "addition", "reverse": reverse})
    sources, targets = data.paired("train", 2, 1, 32, 16)
    assert (sources.shape[1], targets.shape[1]) == data.pair_lengths(16) == (9, 5)
    for source, target in zip(sources.tolist(), targets.tolist()):
        total = number(source[:4]) + number(source[5:])
        assert source[4] == 10
        assert number(target[::-1] if reverse else target) == total
    inputs, wanted = data.batch("train", 2, 1, 32, 16)
    for row, answer in zip(inputs.tolist(), wanted.tolist()):
        digits = [digit for digit in answer if digit >= 0]
        assert number(digits[::-1] if reverse else digits) == number(row[:4]) + number(row[5:9])
        assert row[9] == 11
        assert row[10:14] == digits[:-1], "each digit is read after it is predicted"


@pytest.mark.parametrize(
    "block",
    [{"source": "copy", "symbols": 2}, {"source": "sort", "symbols": 3}, {"source": "addition"}],
    ids=lambda block: block["source"],
)
def test_no_test_source_is_a_training_source(block: dict[str, Any]) -> None:
    """Short rows, so that the splits would overlap if each drew from all rows."""
    data = READER.validate_python(block)
    length = 18 if block["source"] == "copy" else 12 if block["source"] == "sort" else 8
    seen: dict[str, set] = {}
    for split in ("train", "validation", "test"):
        rows = torch.cat([data.paired(split, step, 0, 32, length)[0] for step in range(16)])
        seen[split] = set(map(tuple, rows.tolist()))
        assert len(seen[split]) > 40
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_and_exact_match_by_loops(kind: str) -> None:
    """The decoder without a cache, token by token: its greedy answers are counted again."""
    trial, result, model = trained(kind, "sequence_to_sequence")
    [entry] = result["evaluation"]
    encoder, decoder = (
        (model.enc, model.dec.net) if kind == "routing_encdec" else (model.encoder, model.decoder.net)
    )
    found, exact, rows = [], 0, 0
    for source, given, targets in held_out(trial):
        with torch.no_grad():
            context = encoder(source, return_embeddings=True)
            found.append((decoder(given, context=context), targets))
            new = given[:, :1]
            for _ in range(targets.shape[1]):
                logits = decoder(new, context=context)[:, -1]
                new = torch.cat([new, logits.argmax(-1, keepdim=True)], dim=1)
        exact += sum(one[1:] == target for one, target in zip(new.tolist(), targets.tolist()))
        rows += len(targets)
    loss, accuracy, count = mean_nats(found)
    assert entry["nats"] == pytest.approx(loss, abs=2e-6)
    assert (entry["accuracy"], entry["tokens"]) == (accuracy, count)
    assert entry["exact_match"] == exact / rows


def test_exact_match_counts_whole_rows(tmp_path: Any) -> None:
    """A task that a small model learns: some rows are right, others are wrong."""
    data = {"source": "sort", "symbols": 4, "seq_len": 8}
    content = trial_of("xtransformer", "sequence_to_sequence", steps=200, batch_size=32).model_dump()
    trial = Trial.model_validate({**content, "data": data})
    [entry] = run_trial(trial, tmp_path)["evaluation"]
    assert 0.1 < entry["exact_match"] <= entry["accuracy"]
    model = flagformer.load(tmp_path / "model").eval()
    right = 0
    for step in range(2):
        source, given, targets = SequenceToSequence().batch(trial.source, "test", step, 0, 32, 8)
        new = model.generate(source, given[:, :1], 4, temperature=0.0, cache_kv=False)
        right += int((new == targets).all(1).sum())
    assert entry["exact_match"] == right / 64


def test_halves_of_text_are_pairs() -> None:
    data = READER.validate_python({"source": "stdlib", "mib": 1.0})
    rows = data.batch("train", 1, 0, 4, 17)[0]
    source, given, targets = SequenceToSequence().batch(data, "train", 1, 0, 4, 17)
    assert torch.equal(torch.cat([source, targets], dim=1), rows)
    assert given[0].tolist() == [256, *targets[0, :-1].tolist()]
    assert not SequenceToSequence().has_answers(data)
